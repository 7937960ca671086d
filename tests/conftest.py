"""Command lines run in processes forked from an interpreter that has torch loaded, instead of one import each."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

PROLOGUE = """
import contextlib, json, os, random, re, signal, sys, threading, time, warnings
import torch
import barlow.training.pretrain
from barlow.cli import main
from barlow.training import checkpoint, trainer
warnings.simplefilter("error")
torch.set_num_threads(1)

def fork(arguments, before=lambda: None, out=None, **environment):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        if out:
            file = os.open(out, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1), os.dup2(file, 2)
        before()
        main(arguments)
        code = 0
    except SystemExit as leave:
        code = leave.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@dataclass(frozen=True)
class Rehearsal:
    """What a script of forks said: the JSON on its last line of output, and everything on stderr."""

    answer: object
    err: str


def _rehearse(script: str, *arguments: object) -> Rehearsal:
    command = [sys.executable, "-c", PROLOGUE + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return Rehearsal(json.loads(done.stdout.splitlines()[-1]), done.stderr)


@pytest.fixture
def rehearse() -> Callable[..., Rehearsal]:
    """Run a script with `fork(arguments of barlow, before=function, out=file, **environment)` and `wait(child)`."""
    return _rehearse


@pytest.fixture
def free_port() -> int:
    """A port for the ranks of a test to meet at."""
    return _free_port()


@pytest.fixture
def free_ports() -> Callable[[], int]:
    """Draws such ports, for a test with several groups of ranks at a time."""
    return _free_port


def _free_port() -> int:
    """Below the range that the kernel hands out by itself, so that no outgoing connection takes it meanwhile.

    Each worker of pytest has ports of its own: tests seed `random`, and seeded alike they would draw the same.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12
    while True:
        port = 20_000 + 1_000 * worker + random.SystemRandom().randrange(1_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """72 grey images [16, 16] of a bright disc somewhere, as .npy."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    centres, radii = generator.uniform(4, 12, (72, 2, 1, 1)), generator.uniform(2, 6, (72, 1, 1))
    inside = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < radii**2
    np.save(tmp_path / "discs.npy", np.asarray(inside * 200 + generator.integers(0, 40, (72, 16, 16)), np.uint8))
    return tmp_path / "discs.npy"

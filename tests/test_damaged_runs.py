"""Run folders whose files were damaged in seeded ways: every command that reads one gives its result or one line."""

import json
import math
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import barlow
from barlow.cli import main
from barlow.errors import InputError
from barlow.report import write_report
from barlow.run import Run
from barlow.serve import find_runs, summary
from barlow.training.faults import Fault, save_replay

DAMAGES = 250
FILES = (
    *("config.json", "run.json", "encoder.json", "health.json", "metrics.jsonl", "gallery.json"),
    *("evaluations/*.json", "gallery.npz", "encoder.safetensors", "checkpoints/*.pt", "replay-*.pt"),
)
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    10**400,
    1e308,
    math.nan,
    math.inf,
    "",
    "x" * 9,
    [],
    {},
    [[1], [1, 2]],
)
DEEP = "[" * 10_000 + "]" * 10_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 tiny images with evaluations, a gallery and a step kept for replay."""
    folder = tmp_path_factory.mktemp("finished")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), y=np.arange(60) % 3)
    settings: dict[str, Any] = {"encoder": "resnet10-narrow", "projector": (8, 8), "epochs": 2, "batch_size": 16}
    run = barlow.pretrain(folder / "data.npz", folder / "run", holdout=0.3, device="cpu", quiet=True, **settings)
    barlow.evaluate(run, folder / "data.npz", protocols=["knn"], device="cpu")
    main(["report", str(run.path), "--points", "20"])
    save_replay(run.path, Fault(3, ("loss",)), batch={}, state={})
    return folder


def damage(path: Path, rng: random.Random) -> str:
    """Damage a file in one way, and say which."""
    content = path.read_bytes()
    ways: list[tuple[str, Callable[[], object]]] = [
        ("deleted", path.unlink),
        ("emptied", lambda: path.write_bytes(b"")),
        ("cut off", lambda: path.write_bytes(content[: rng.randrange(len(content))])),
        ("bytes flipped", lambda: path.write_bytes(flipped(content, rng))),
        ("a folder in its place", lambda: path.rename(path.with_suffix(".gone")).with_name(path.name).mkdir()),
    ]
    if path.suffix in (".json", ".jsonl"):
        ways += [("a value replaced", lambda: path.write_text(replaced(content.decode(), rng)))] * 10
    name, way = rng.choice(ways)
    way()
    return name


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Up to 20 bytes changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def replaced(text: str, rng: random.Random) -> str:
    """A JSON text, or one line of several, in which a random value has become one of another type or size."""
    lines = text.splitlines(keepends=True) if text.count("\n{") else [text]
    at = rng.randrange(len(lines))
    value = json.loads(lines[at])
    places = list(spots(value))
    container, key = rng.choice(places)
    if rng.random() < 0.1:
        del container[key]
    else:
        container[key] = rng.choice((*WRONG, "DEEP"))
    lines[at] = json.dumps(value).replace('"DEEP"', DEEP) + "\n"
    return "".join(lines)


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside; of a long list a few."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(min(3, len(value))):
            yield value, key
            yield from spots(value[key])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged")
@pytest.mark.timeout(280)
def test_a_damaged_run_is_one_line_or_a_page(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = finished / "damaged"
    data, copy, page = finished / "data.npz", damaged / "run", damaged / "page.html"
    readers: list[Callable[[], object]] = [
        lambda: write_report([Run(copy)], page),
        lambda: [summary(name, run, damaged) for name, run in find_runs(damaged).items()],
    ]
    commands: list[Callable[[], object]] = [  # slower: one of them for each damage
        lambda: main(["report", str(copy), "--points", "20"]),
        lambda: main(["export", str(copy), "--format", "hf", "--out", str(damaged / "exported")]),
        lambda: main(["pretrain", str(data), "--out", str(copy), "--resume"]),
        lambda: main(["replay", str(copy)]),
    ]
    told, failed = 0, []
    for seed in range(DAMAGES):
        rng = random.Random(seed)
        shutil.copytree(finished / "run", copy)
        chosen = rng.choice(sorted(copy.glob(FILES[seed % len(FILES)])))
        what = f"seed {seed}: {chosen.relative_to(copy)}, {damage(chosen, rng)}"
        for command in (*readers, commands[seed // len(FILES) % len(commands)]):
            try:
                command()
            except InputError as error:
                told += 1
                assert "\n" not in str(error), what
            except SystemExit as left:
                assert left.code == 2, what
                told += 1
                lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("barlow: ")]
                assert lines and not lines[-1].startswith("barlow: warning"), what
            except BaseException:
                failed.append(f"{what}:\n{traceback.format_exc()[-900:]}")
        shutil.rmtree(damaged)
    assert not failed, "\n".join(failed)
    assert told > DAMAGES / 2  # the damage was seen, not read over

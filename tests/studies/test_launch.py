"""Cells as jobs elsewhere: submitit's local executor stands in for Slurm, a cluster started here for Ray's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from barlow.run import Run

SETTINGS = ("epochs=1", "batch_size=16", "projector=16,16", "encoder=resnet10-narrow", "network=symmetric,predictor")


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_cells_run_as_jobs_and_their_results_come_back(launcher: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    data, out = tmp_path / "images.npy", tmp_path / "study"
    np.save(data, np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8))
    chosen = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "barlow", "study", "asymmetry", str(data), "--out", str(out), *chosen]
    command += ["--seeds", "1", "--launch", launcher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    runs = [Run(folder) for folder in (out / "cells").iterdir()]
    assert [run.facts["status"] for run in runs] == ["finished", "finished"]
    assert "Not complete" not in (out / "findings.md").read_text()
    assert done.stdout.count("| 1 |") == 2

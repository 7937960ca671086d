"""The demo's chain, shortened: what it must show, not how well it scores."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sklearn.manifold import TSNE

from barlow.cli import main
from barlow.demo import METHODS, PROTOCOLS, run_demo
from barlow.evaluation import Linear, Result
from barlow.run import Run
from barlow.training.pretrain import Interrupted


@pytest.mark.slow
def test_the_demo_measures_both_methods_beside_both_baselines_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = [Linear(c=1.0) if isinstance(protocol, Linear) else protocol for protocol in PROTOCOLS]
    monkeypatch.setattr("barlow.demo.PROTOCOLS", quick)
    monkeypatch.setattr("barlow.report.gallery.TSNE", partial(TSNE, max_iter=250))
    results: list[Result] = run_demo(tmp_path, epochs=2, batch_size=256, projector=(64, 64))
    assert len(results) == 2 * len(PROTOCOLS)
    for result in results:
        assert set(result.baselines) == {"raw-pixels", "random-init"}
        assert (result.n, result.split) == (359, "the data's own: fitted on train, scored on test")
        assert not result.warnings
        low, high = result.interval
        assert low <= result.value <= high
    stored = [Run(tmp_path / method).evaluations() for method in METHODS]
    assert {e["protocol"] for e in stored[0]} == {result.protocol for result in results}
    assert [e["baselines"] for e in stored[0]] == [e["baselines"] for e in stored[1]]
    shown = capsys.readouterr().out
    for name in ("raw pixels", "Barlow Twins", "k 20, T", "linear", "1-shot", "5-shot"):
        assert name in shown
    assert f"report: {tmp_path / 'report.html'}\n" in shown
    page = (tmp_path / "report.html").read_text()
    assert "mixed-barlow-twins" in page


def test_an_interrupted_demo_tells_the_command_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def interrupted(data: str, out: Path, **settings: Any) -> Run:
        asked.append(settings)
        raise Interrupted(out, 130, told=True)

    monkeypatch.setattr("barlow.demo.pretrain", interrupted)
    for flags in ([], ["--overwrite"]):
        with pytest.raises(SystemExit) as left:
            main(["demo", "--out", str(tmp_path), "--seed", "3", *flags])
        assert left.value.code == 130
        said = capsys.readouterr().err
        assert said == f"barlow: interrupted after saving; continue with `barlow demo --out {tmp_path} --seed 3`\n"
    assert [(found["resume"], found["overwrite"]) for found in asked] == [(True, False), (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--mixed"]])
def test_the_one_file_version_of_the_method_runs_and_learns(flags: list[str]) -> None:
    script = Path(__file__).parents[1] / "examples" / "minimal.py"
    done = subprocess.run(
        [sys.executable, str(script), "--epochs", "2", *flags], check=True, capture_output=True, text=True
    )
    scores = {line[:15].strip(): float(line.split()[-1].rstrip("%")) for line in done.stdout.splitlines()[-3:]}
    assert set(scores) == {"raw pixels", "random network", "trained"}
    assert min(scores.values()) > 60

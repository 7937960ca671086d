"""A study from command to files: nothing is run twice, nothing is lost, every result is said."""

import signal
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from barlow.cli import main
from barlow.config import PretrainConfig, config_from_settings
from barlow.data import Source, describe
from barlow.errors import InputError
from barlow.files import read_json, write_json
from barlow.plan import environment, split_indices
from barlow.studies import STUDIES, Figure, Study, run_study
from barlow.studies.metrics import measured_of
from barlow.studies.results import summarise
from barlow.studies.runner import hardware
from barlow.training.pretrain import Interrupted
from barlow.training.trainer import Trainer


def study(source: Source, out: Path, **options: Any) -> Any:
    return run_study("tiny", source, out, quiet=True, **{"seeds": 2, **options})


def test_finished_cells_are_never_repeated_and_a_changed_setting_never_reuses_one(
    source: Source, tmp_path: Path, fake: Any
) -> None:
    first = study(source, tmp_path)
    assert (len(fake.ran), first.complete) == (8, True)
    again = study(source, tmp_path)
    assert len(fake.ran) == 8
    assert [o.measured for o in again.outcomes] == [o.measured for o in first.outcomes]
    study(source, tmp_path, seeds=3)
    assert len(fake.ran) == 12
    study(source, tmp_path, settings={"epochs": 3})
    assert len(fake.ran) == 20


def test_a_metric_that_a_finished_cell_lacks_is_measured_without_training(
    source: Source, tmp_path: Path, fake: Any
) -> None:
    outcome = study(source, tmp_path).outcomes[0]
    record = tmp_path / "cells" / outcome.cell.key / "study.json"
    content = read_json(record, dict[str, Any])
    for name in ("heldout_loss", "knn_pixels", "knn_untrained", "health"):
        del content["measured"][name]
    write_json(record, content)
    assert study(source, tmp_path).outcomes[0].measured == outcome.measured
    assert len(fake.ran) == 8


def test_shares_of_cells_add_up_to_the_study(source: Source, tmp_path: Path, fake: Any) -> None:
    first = study(source, tmp_path, cells="1/2")
    assert (len(fake.ran), first.complete) == (4, False)
    assert "Not complete: 4 of 8" in (tmp_path / "findings.md").read_text()
    assert study(source, tmp_path, cells="2/2").complete
    assert len(fake.ran) == 8
    assert "Not complete" not in (tmp_path / "findings.md").read_text()


def test_a_cell_that_fails_is_reported_and_tried_again_and_the_others_go_on(
    source: Source, tmp_path: Path, fake: Any
) -> None:
    fake.fails = lambda config: config.objective.lambd == 0.1 and config.training.seed == 1
    results = study(source, tmp_path)
    assert [o.status for o in results.outcomes].count("finished") == 6
    assert {o.reason for o in results.failed} == {"InputError: the loss is not finite | <at> step 3"}
    assert "failed; InputError: the loss is not finite \\| &lt;at&gt; step 3" in (tmp_path / "table.md").read_text()
    fake.fails = lambda config: False
    assert study(source, tmp_path).complete
    assert len(fake.ran) == 10


def test_the_table_has_mean_and_standard_deviation_over_seeds(source: Source, tmp_path: Path, fake: Any) -> None:
    study(source, tmp_path, seeds=3)
    table = (tmp_path / "table.md").read_text()
    assert "| lambd | method plain | method mixed |" in table
    assert "| 0.01 | 51.0 ± 1.0 | 61.0 ± 1.0 |" in table
    assert "| 0.1 | mixed | 3 | 61.0 ± 1.0 | 1.000 ± 0.000 |" in table
    summary = summarise([1.0, 2.0, 6.0])
    assert (summary.mean, summary.std, summary.n) == pytest.approx((3.0, 7.0**0.5, 3))


def test_the_parquet_file_has_one_row_per_cell_with_settings_seed_and_metrics(
    source: Source, tmp_path: Path, fake: Any
) -> None:
    study(source, tmp_path)
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert len(rows) == 8
    row = next(r for r in rows if r["level.method"] == "mixed" and r["seed"] == 1 and r["setting.lambd"] == 0.1)
    assert (row["knn"], row["setting.projector"], row["status"]) == (pytest.approx(0.61), "[16, 16]", "finished")
    assert row["knn_curve.value"] == pytest.approx([0.4, 0.66, 0.61])


def test_findings_give_verdict_numbers_command_and_hardware(source: Source, tmp_path: Path, fake: Any) -> None:
    study(source, tmp_path, seeds=3, settings={"lambd": "0.01"})
    page = (tmp_path / "findings.md").read_text()
    assert "**Confirmed.** Contrast +10.0 points (+7.7 points to +12.3 points), 3 seeds." in page
    assert "Compared: method mixed, less method plain, over lambd 0.01." in page
    assert "--seeds 3 --budget full --set lambd=0.01" in page
    assert "16 of the 64 samples" in page


def test_scores_stand_beside_those_of_the_untrained_network_and_of_pixels(
    source: Source, tmp_path: Path, fake: Any
) -> None:
    results = study(source, tmp_path)
    expected = [knn_of_pixels(source, seed) for seed in (0, 1)]
    assert [outcome.measured["knn_pixels"] for outcome in results.outcomes[:2]] == expected
    assert [outcome.measured["knn_untrained"] for outcome in results.outcomes] == [0.4] * 8
    summary = summarise([100 * value for value in expected] * 4)
    line = f"k-NN accuracy (%): untrained network 40.0 ± 0.0, raw pixels {summary.mean:.1f} ± {summary.std:.1f}"
    section = f"## Baselines\n\nMean ± standard deviation over all finished cells.\n\n- {line}\n"
    for page in ("table.md", "findings.md"):
        assert section in (tmp_path / page).read_text()


def knn_of_pixels(source: Source, seed: int) -> float:
    """By hand: 20 neighbours by cosine of the standardised pixels, weights exp(similarity / .07)."""
    run = config_from_settings({"holdout": 0.25, "seed": seed})
    train, held = split_indices(run, source)
    about = describe(source, seed=seed)
    pixels = np.stack([source.read(i).numpy().ravel() for i in range(len(source))]) / 255
    pixels = (pixels - about.mean[0]) / about.std[0]
    units = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    labels = np.asarray(source.labels)
    right = 0
    for i in held:
        similar = units[train] @ units[i]
        nearest = np.argsort(-similar)[:20]
        votes = np.bincount(labels[train][nearest], np.exp(similar[nearest] / 0.07), minlength=2)
        right += int(votes.argmax() == labels[i])
    return right / len(held)


def test_cells_that_are_not_healthy_are_listed_by_state(source: Source, tmp_path: Path, fake: Any) -> None:
    fake.state = lambda config: "collapsed-constant" if config.objective.lambd == 0.1 else "healthy"
    results = study(source, tmp_path)
    assert [outcome.measured["health"] for outcome in results.outcomes].count("collapsed-constant") == 4
    for page in ("table.md", "findings.md"):
        text = (tmp_path / page).read_text()
        assert "They count in all means and contrasts." in text
        assert "- collapsed-constant: lambd 0.1, method plain (seed 0, 1); lambd 0.1, method mixed (seed 0, 1)" in text


def test_results_hold_what_another_share_finished_meanwhile(source: Source, tmp_path: Path, fake: Any) -> None:
    inner = fake.fails

    def other_share_finishes(config: PretrainConfig) -> bool:
        if len(fake.ran) == 1:
            study(source, tmp_path, cells="2/2")
        return bool(inner(config))

    fake.fails = other_share_finishes
    assert study(source, tmp_path, cells="1/2").complete
    assert len(fake.ran) == 8
    assert "Not complete" not in (tmp_path / "findings.md").read_text()


def test_hardware_names_every_machine_and_a_processor_for_this_one_alone() -> None:
    here = {**environment(), "gpus": []}
    there = {**here, "cores": 999, "threads": 1, "machine": "riscv64"}
    runs = [{"environment": where, "device": "cpu", "precision": "float32"} for where in (here, there, here)]
    first, second = hardware(runs).split(". Also: ")
    assert second == f"riscv64, 999 cores, 1 thread; torch {here['torch']}, float32"
    assert first.endswith(
        f"{here['cores']} cores, {here['threads']} thread{'s' * (here['threads'] > 1)}; torch {here['torch']}, float32"
    )
    gpu = {"environment": {**there, "gpus": ["H200"]}, "device": "cuda", "precision": "bfloat16"}
    assert hardware([gpu]).startswith("H200, 999 cores")


def test_references_are_drawn_in_figures_of_knn(
    source: Source, tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch, tiny: Study
) -> None:
    for figure in (Figure("dots", ("knn",), x="method"), Figure("lines", ("knn",), x="lambd")):
        monkeypatch.setattr("barlow.studies.runner.STUDIES", {"tiny": replace(tiny, figure=figure)})
        study(source, tmp_path)
        root = ET.fromstring((tmp_path / "figure.svg").read_text())
        assert {"untrained network", "raw pixels"} <= {element.text for element in root.iter()}
        assert len([element for element in root.iter() if element.get("class") == "reference"]) == 2


def test_the_figure_is_well_formed_and_escapes_its_text(source: Source, tmp_path: Path, fake: Any) -> None:
    study(source, tmp_path)
    root = ET.fromstring((tmp_path / "figure.svg").read_text())
    texts = [element.text for element in root.iter() if element.text]
    assert "Is more lambda & <more> mixing better?" in texts
    assert {"epochs", "0.01", "0.1", "k-NN accuracy (%): method plain", "method mixed"} <= set(texts)


@pytest.mark.parametrize("name", STUDIES)
def test_every_studys_figure_is_drawn_without_and_with_results(
    name: str, source: Source, tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {
        **dict.fromkeys(measured_of(STUDIES[name]), 0.5),
        **{m: [(0.0, 0.1), (1.0, 0.2)] for m in STUDIES[name].metrics if m.endswith("curve")},
        "health": "healthy",
    }
    monkeypatch.setattr("barlow.studies.cell.collect", lambda run, source, wanted: {m: measured[m] for m in wanted})
    options: dict[str, Any] = {"budget": "small", "settings": {"batch_size": 16} if name != "batch" else {}}
    for share in ("999/999", ""):  # none, then all
        run_study(name, source, tmp_path, seeds=1, quiet=True, cells=share, **options)
        drawn = (tmp_path / "figure.svg").read_text()
        ET.fromstring(drawn)
    assert "circle" in drawn


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as left:
        main(["study", *map(str, arguments)])
    assert left.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_mistakes_end_in_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "study")
    assert "unknown study 'widht'. Did you mean 'width'" in told(capsys, "widht", "digits", *out)
    assert "unknown setting 'epoch'" in told(capsys, "width", "digits", *out, "--set", "epoch=3")
    assert "missing --out" in told(capsys, "width", "digits")
    assert "missing DATA" in told(capsys, "width")
    assert "unknown launcher 'cloud'" in told(capsys, "tiny", "digits", *out, "--launch", "cloud")
    assert "unknown budget 'smal'. Did you mean 'small'" in told(capsys, "width", "digits", *out, "--budget", "smal")
    assert "--seeds must be 1 or more" in told(capsys, "width", "digits", *out, "--seeds", "0")


def test_without_a_name_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["study"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == [*STUDIES, "tiny"]


def test_the_command_prints_the_table_and_its_exit_code_tells_of_failures(
    tmp_path: Path, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fails = lambda config: config.training.seed == 1
    with pytest.raises(SystemExit) as left:
        main(["study", "tiny", "digits", "--out", str(tmp_path), "--seeds", "2", "--set", "lambd=0.1"])
    assert left.value.code == 1
    shown = capsys.readouterr()
    assert "| 0.1 | plain | 1 | 50.0 |" in shown.out
    assert "cell 2/4  lambd 0.1, method plain, seed 1: failed" in shown.err


def test_data_that_others_cannot_open_is_not_sent_away(source: Source, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a path or the name of a data set"):
        study(source, tmp_path, launch_on="slurm")


@pytest.mark.slow
def test_an_interrupted_study_goes_on_to_the_results_of_one_that_was_not(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"seeds": 1, "settings": {"lambd": "0.01"}}
    whole = study(source, tmp_path / "whole", **options)
    step, calls = Trainer.train_step, []

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        calls.append(trainer.step)
        if len(calls) == 9:  # in the second cell, in its second epoch
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(Interrupted):
        study(source, tmp_path / "cut", **options)
    assert "Not complete: 1 of 2" in (tmp_path / "cut" / "findings.md").read_text()
    resumed = study(source, tmp_path / "cut", **options)
    assert len(calls) == 2 * 2 * 3
    assert [o.measured for o in resumed.outcomes] == [o.measured for o in whole.outcomes]

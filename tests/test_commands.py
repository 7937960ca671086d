"""Commands that hand their options on: what is asked for on the command line is what the library does."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import barlow.embedding
import barlow.evaluation.session
import barlow.importing
import barlow.report
import barlow.serve
from barlow import cli
from barlow.cli import main
from barlow.config import PretrainConfig, config_to_dict
from barlow.data import identity, open_source
from barlow.embedding import read_features
from barlow.errors import InputError
from barlow.files import write_json
from barlow.models import Preprocess, build_encoder, load_encoder, save_encoder
from barlow.run import Run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 labelled images [8, 8] in an .npz."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), y=np.arange(40) % 4)
    return tmp_path / "data.npz"


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Run:
    """A run that was trained on all of `data`, or says so."""
    torch.manual_seed(0)
    folder = tmp_path / "runs" / "one"
    save_encoder(build_encoder("resnet10-narrow", channels=1, image_size=8), Preprocess(8, 1, (0.5,), (0.2,)), folder)
    write_json(folder / "config.json", config_to_dict(PretrainConfig()))
    facts = {"location": str(data), **identity(open_source(data))}
    write_json(folder / "run.json", {"data_name": str(data), "n": 40, "n_held": 0, "channels": 1, "data": facts})
    return Run(folder)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "functions"),
    [
        (cli.evaluate, (barlow.evaluation.evaluate, barlow.evaluation.session.measure)),
        (cli.embed, (barlow.embedding.embed,)),
        (cli.search, (barlow.embedding.search,)),
        (cli.import_, (barlow.importing.import_checkpoint,)),
        (cli.report, (barlow.report.report,)),
        (cli.serve, (barlow.serve.serve,)),
    ],
)
def test_a_default_on_the_command_line_is_the_functions_own(
    command: Callable[..., None], functions: tuple[Callable[..., object], ...]
) -> None:
    own = {name: p.default for function in functions for name, p in inspect.signature(function).parameters.items()}
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.default is not parameter.empty and own.get(name, parameter.empty) is not parameter.empty:
            assert parameter.default == own[name], name


def test_overlap_is_looked_for_unless_told_otherwise(run: Run, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", str(run.path), "--data", str(data), "--protocols", "knn"]
    main(asked)
    assert f"\n{data}: 8 scored, 20% held out of every class, seed 0\n" in capsys.readouterr().out  # on a line, uncut
    (found,) = run.evaluations()
    seen = "8 of 8 evaluation images were seen, without labels, in pretraining"
    few = "k is 20, but the smallest class has 8 training images, so that every vote counts images of other classes"
    assert found["warnings"] == [seen, few]
    main([*asked, "--no-check-overlap", "--batch-size", "7", "--workers", "2"])
    (again,) = run.evaluations()
    assert again["warnings"] == [few]
    assert again["settings"]["batch_size_of_extraction"] == 7
    assert again["value"] == found["value"]


def test_a_part_of_the_data_can_be_embedded_and_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "parts.npz", x_train=images[:8], x_test=images[8:])
    out = tmp_path / "test.npz"
    asked = ["embed", str(run.path), str(tmp_path / "parts.npz"), "--out", str(out)]
    main([*asked, "--split", "test"])
    assert "split 'test' of train, test\n4 samples" in capsys.readouterr().out
    whole = barlow.embed(run, images)
    np.testing.assert_allclose(np.load(out)["x"], whole.x[8:], rtol=1e-4, atol=1e-5)
    assert "no split 'tset'; it has train, test" in refusal(capsys, *asked, "--split", "tset")


def test_whoever_may_read_the_settings_may_read_the_encoder(run: Run) -> None:
    assert (run.path / "encoder.safetensors").stat().st_mode == (run.path / "config.json").stat().st_mode


def test_a_name_with_a_line_break_stays_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b\nc.png", os.fsdecode(b"\xff.png")):
        pixels = np.full((8, 8), len(name) * 20, np.uint8)
        with (tmp_path / "photos" / name).open("wb") as file:  # Pillow opens no name that is not text
            Image.fromarray(pixels).save(file, "PNG")
    main(["search", str(run.path), str(tmp_path / "photos" / "a.png"), "--data", str(tmp_path / "photos")])
    names = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == ["\\udcff.png", "a.png", "b\\nc.png"]
    main(["embed", str(run.path), str(tmp_path / "photos"), "--out", str(tmp_path / "f.parquet")])
    assert read_features(tmp_path / "f.parquet").keys == ("a.png", "b\nc.png", "\\udcff.png")


def test_a_tilde_that_the_shell_left_alone_is_the_home_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["views", "~/data.npz", "--out=~/new/views.png", "--samples", "1"])
    assert (tmp_path / "new" / "views.png").is_file()
    assert Run("~/runs/one").path == run.path
    assert load_encoder("~/runs/one").feature_dim == 256
    with pytest.raises(InputError, match=rf"{tmp_path}/runs/one was started with other settings"):
        barlow.pretrain("~/data.npz", "~/runs/one", resume=True, epochs=3)


@pytest.mark.parametrize("command", ["evaluate", "embed"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch-size", "0"), "--batch-size must be 1 or more, got 0"),
        (("--workers", "-1"), "--workers must be 0 or more, got -1"),
        (("--device", "gpu"), "unknown device 'gpu'; use cpu, cuda, mps or auto"),
        (("--device", "cuda:99"), "device 'cuda:99' is not available here"),
    ],
)
def test_a_number_or_device_that_cannot_be_is_refused(
    command: str, flags: tuple[str, ...], message: str, run: Run, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--data", data) if command == "evaluate" else (data, "--out", run.path / "features.npz")
    assert message in refusal(capsys, command, run.path, *rest, *flags)


TWO_RANKS = """
import os, sys
import barlow.evaluation
from barlow.cli import main
children = []
for rank in range(2):
    if not (child := os.fork()):
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        main(["evaluate", *sys.argv[1:], "--protocols", "knn"])
        sys.stdout.flush()
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


@pytest.mark.slow
def test_of_two_processes_one_evaluates_as_if_alone_and_none_waits(run: Run, data: Path) -> None:
    command = [sys.executable, "-c", TWO_RANKS, str(run.path), "--data", str(data)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert said.count("protocol") == 1
    (together,) = run.evaluations()
    main(["evaluate", str(run.path), "--data", str(data), "--protocols", "knn"])
    (alone,) = run.evaluations()
    for said_alike in ("value", "interval", "n", "n_train", "baselines", "encoder_hash"):
        assert together[said_alike] == alone[said_alike]


def test_a_checkpoint_of_another_code_base_becomes_an_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = timm.create_model("resnet18", num_classes=0)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    main(["import", str(tmp_path / "theirs.pth"), "--out", str(tmp_path / "ours")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "ours")
    encoder = load_encoder(tmp_path / "ours")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), theirs.eval()(x))
    said = refusal(capsys, "import", tmp_path / "theirs.pth", "--out", tmp_path / "o", "--layout", "lightly")
    assert "--trained-on" in said
    said = refusal(capsys, "import", tmp_path / "theirs.pth", "--out", tmp_path / "o", "--layout", "lihgtly")
    assert "Did you mean 'lightly'" in said


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.11's own loader
def test_stored_pixels_go_into_an_export_with_preprocessing(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "encoder.pt2"
    main(["export", str(run.path), "--format", "torch-export", "--out", str(out), "--preprocessing"])
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    encoder = run.encoder()
    assert encoder.preprocess is not None
    with torch.no_grad():
        expected = encoder(encoder.preprocess(pixels))
        torch.testing.assert_close(torch.export.load(out).module()(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_layout_of_the_map_that_does_not_exist_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown layout 'tsn'" in refusal(capsys, "report", run.path, "--layout", "tsn")


def test_serving_says_its_address_and_refuses_a_folder_that_is_not_there(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, sockets: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    main(["serve", str(run.path.parent), "--port", "0"])
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    assert "no folder at" in refusal(capsys, "serve", run.path / "nowhere")
    assert "--host is empty" in refusal(capsys, "serve", run.path.parent, "--host", "")


def test_serving_without_its_extra_says_what_to_install(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "barlow.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "needs uvicorn: pip install 'barlow[serve]'" in refusal(capsys, "serve", run.path.parent)


@pytest.mark.filterwarnings("default")
def test_a_score_that_cannot_be_saved_is_printed_with_a_warning(
    run: Run, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / "evaluations").touch()  # where the folder would be: also root cannot write there
    main(["evaluate", str(run.path), "--data", str(data), "--protocols", "knn"])
    said = capsys.readouterr()
    assert f"barlow: warning: this result is not saved: {run.path / 'evaluations'}: " in said.err
    assert "k-NN" in said.out

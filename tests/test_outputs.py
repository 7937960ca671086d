"""No command overwrites what it did not write: every command that writes, against every kind of place."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from barlow.cli import main
from barlow.config import PretrainConfig, config_to_dict
from barlow.files import write_json
from barlow.models import Preprocess, build_encoder, save_encoder


@dataclass(frozen=True)
class Home:
    """A folder with everything that commands read."""

    run: Path
    photos: Path
    array: Path
    theirs: Path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    rng, run, photos = np.random.default_rng(0), folder / "run", folder / "photos"
    save_encoder(build_encoder("resnet18", image_size=16), Preprocess(16, 3, (0.5,) * 3, (0.2,) * 3), run)
    write_json(run / "config.json", config_to_dict(PretrainConfig()))
    write_json(run / "run.json", {"channels": 3})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000000001.pt").write_bytes(b"weights")
    (run / "checkpoints" / "last.pt").hardlink_to(run / "checkpoints" / "step-000000001.pt")
    photos.mkdir()
    pixels = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(photos / f"{i}.png")
    np.savez(folder / "array.npz", x=pixels)
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), folder / "theirs.pth")
    return Home(run, photos, folder / "array.npz", folder / "theirs.pth")


def arguments(home: Home, command: str) -> list[str]:
    name, _, form = command.partition(" ")
    return {
        "embed": ["embed", str(home.run), str(home.photos)],
        "export": ["export", str(home.run), "--format", form],
        "import": ["import", str(home.theirs)],
        "report": ["report", str(home.run)],
        "views": ["views", str(home.photos), "--image-size", "16", "--samples", "2"],
    }[name]


# What --out names, and the file of the output that may be in the way already.
PLACES = {
    "embed npz": ("features.npz", "features.npz"),
    "embed parquet": ("features.parquet", "features.parquet"),
    "export safetensors": ("encoder.safetensors", "encoder.json"),
    "export torchvision": ("README.pth", "README.md"),
    "export timm": ("encoder", "encoder/config.json"),
    "export hf": ("encoder", "encoder/README.md"),
    "import": ("imported", "imported/encoder.json"),
    "report": ("page.html", "page.html"),
    "views": ("views.png", "views.png"),
}
SLOW = {"export torch-export": ("encoder.pt2", "encoder.pt2"), "export onnx": ("encoder.onnx", "encoder.onnx")}
every_command = pytest.mark.parametrize(
    "command", [*PLACES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)


def contents(folder: Path) -> Mapping[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """One line on stderr, exit code 2."""
    with pytest.raises(SystemExit) as left:
        main(list(command))
    said = capsys.readouterr().err
    assert (left.value.code, said.count("\n")) == (2, 1), said
    return said


@every_command
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch's own loader
def test_a_file_in_the_way_is_kept_until_overwrite_and_an_own_output_is_replaced(
    command: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, in_the_way = (tmp_path / name for name in {**PLACES, **SLOW}[command])
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.hardlink_to(home.run / "checkpoints" / "step-000000001.pt")  # as last.pt is
    read, there = contents(home.run.parent), contents(tmp_path)
    again = [*arguments(home, command), "--out", str(out)]
    said = refused(capsys, *again)
    assert f"{in_the_way} exists and was not written by barlow; name another --out, or add --overwrite" in said
    assert contents(tmp_path) == there
    main([*again, "--overwrite"])
    assert contents(tmp_path) != there
    main(again)
    assert contents(home.run.parent) == read
    assert not list(tmp_path.rglob(".*"))


@every_command
def test_a_place_that_cannot_be_written_is_named(
    command: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {**PLACES, **SLOW}[command][0]
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    said = refused(capsys, *arguments(home, command), "--out", str(file / out))
    assert str(file) in said
    if "." in out:  # the others write into a folder
        (tmp_path / out).mkdir()
        said = refused(capsys, *arguments(home, command), "--out", str(tmp_path / out), "--overwrite")
        assert f"{tmp_path / out} is a folder" in said
    elif command != "import":
        said = refused(capsys, *arguments(home, command), "--out", str(file), "--overwrite")
    if os.geteuid():  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "locked" in refused(capsys, *arguments(home, command), "--out", str(tmp_path / "locked" / out))
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ("embed", "{run}", "{array}", "--out", "{array}"),
        ("embed", "{run}", "{photos}", "--out", "{photos}/mine.npz"),
        ("export", "{run}", "--format", "timm", "--out", "{run}"),
        ("export", "{run}", "--format", "hf", "--out", "{run}"),
        ("export", "{run}", "--format", "torchvision", "--out", "{run}/checkpoints/last.pt"),
        ("import", "{run}/encoder.safetensors", "--layout", "official", "--out", "{run}"),
        ("report", "{run}", "--out", "{run}/config.json"),
        ("views", "{photos}", "--out", "{photos}/0.png"),
    ],
)
def test_what_a_command_reads_is_never_overwritten(
    command: tuple[str, ...], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(home.photos / "mine.npz", notes=np.arange(3))
    before = contents(home.run.parent)
    filled = [part.format(**vars(home)) for part in command]
    assert "is a part of what this command reads" in refused(capsys, *filled, "--overwrite")
    assert contents(home.run.parent) == before
    (home.photos / "mine.npz").unlink()  # other tests open the folder, and would be told of it


def test_features_that_are_read_as_data_are_not_overwritten_either(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = str(tmp_path / "features.npz")
    main(["embed", str(home.run), str(home.photos), "--out", features])
    capsys.readouterr()
    assert "is a part of what" in refused(capsys, "embed", str(home.run), features, "--out", features, "--overwrite")


def test_a_study_leaves_a_folder_of_somebody_else_alone(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.md").write_text("mine")
    said = refused(capsys, "study", "width", str(home.photos), "--out", str(tmp_path), "--budget", "small")
    assert f"{tmp_path / 'table.md'} exists and is not of a study" in said.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [tmp_path / "table.md"]


def test_a_demo_looks_for_its_report_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.html").write_text("mine")
    assert "report.html exists and was not written by barlow" in refused(capsys, "demo", "--out", str(tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_overwriting_a_run_needs_a_run(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')  # as timm and transformers write it
    (tmp_path / "encoder.json").write_text("mine")
    before = contents(tmp_path)
    tiny = ["--encoder", "resnet10-narrow", "--image-size", "16", "--batch-size", "2", "--projector", "8", "8"]
    for flag in ("--overwrite", "--resume"):
        refused(capsys, "pretrain", str(home.photos), "--out", str(tmp_path), *tiny, "--holdout", "0", flag)
        assert contents(tmp_path) == before

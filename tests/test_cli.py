"""The command line end to end, and what it says when a person is wrong: one line, exit code 2, no traceback."""

import gzip
import importlib.metadata
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import barlow
import barlow.doctor
from barlow.cli import COMMANDS, main
from barlow.run import Run

FAST = ("--encoder", "resnet10-narrow", "--projector", "32", "32", "--epochs", "2", "--batch-size", "8")


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> Image.Image:
    generator = np.random.default_rng(seed)
    colour = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return colour if mode == "RGB" else colour.convert(mode)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight images in mixed formats, modes and sizes."""
    folder = tmp_path / "photos"
    kinds = [("jpg", "RGB"), ("png", "RGBA"), ("webp", "RGB"), ("bmp", "L"), ("gif", "P"), ("tif", "RGB")]
    for i in range(16):
        suffix, mode = kinds[i % len(kinds)]
        place = folder / ("cats" if i % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        picture(i, mode, (20 + i, 24)).save(place / f"{i:02d}.{suffix}")
    return folder


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on stderr of a command that must fail."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("barlow: ") and "warning" not in line]) == 1, lines
    return lines[-1]


@pytest.mark.slow
def test_from_photos_to_an_encoder_in_other_tools(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["pretrain", str(photos), "--out", str(run), *FAST, "--holdout", "0", "--workers", "0"])
    assert Run(run).facts["status"] == "finished"
    assert "recipe cifar" in capsys.readouterr().err

    main(["evaluate", str(run), "--data", str(photos), "--protocols", "knn", "linear"])
    shown = capsys.readouterr().out
    results = {result["protocol"]: result for result in Run(run).evaluations()}
    assert set(results) == {"knn", "linear"}
    assert set(results["knn"]["baselines"]) == {"raw-pixels", "random-init"}
    assert "random init" in shown
    assert "seen, without labels, in pretraining" in " ".join(results["knn"]["warnings"])

    main(["embed", str(run), str(photos), "--out", str(tmp_path / "features.npz")])
    features = np.load(tmp_path / "features.npz", allow_pickle=False)
    assert features["x"].shape == (16, 256)

    capsys.readouterr()
    main(["search", str(run), str(photos / "cats" / "01.png"), "--data", str(photos), "--k", "3"])
    nearest = capsys.readouterr().out.splitlines()[0].split()
    assert (nearest[0], nearest[1]) == ("1.0000", "cats/01.png")

    main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "taken.safetensors")])
    ours, taken = barlow.load_encoder(run), barlow.load_encoder(tmp_path / "taken.safetensors")
    x = torch.randn(2, 3, 24, 24)
    assert torch.equal(ours(x), taken(x))

    main(["report", str(run), "--data", str(photos)])
    page = (run / "report.html").read_text()
    assert "barlow-twins" in page
    assert "http://" not in page.replace("http://www.w3.org", "")

    main(["views", str(photos), "--out", str(tmp_path / "views.png"), "--samples", "2"])
    with Image.open(tmp_path / "views.png") as drawn:
        assert drawn.width > 200


@pytest.mark.slow
def test_sources_that_pretraining_takes(tmp_path: Path, photos: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "b.npz", images=images[..., None].repeat(3, -1), labels=np.arange(20) % 2)
    idx = struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    for name, channels in (("a.npy", 1), ("b.npz", 3), ("train-images-idx3-ubyte.gz", 1)):
        out = tmp_path / f"run-{name}"
        main(["pretrain", str(tmp_path / name), "--out", str(out), *FAST, "--epochs", "1"])
        assert (Run(out).facts["channels"], Run(out).facts["n"]) == (channels, 20)


@pytest.mark.slow
def test_corrupt_images_are_skipped_and_named_and_too_many_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(120):
        picture(i, size=(16, 16)).save(folder / f"{i:03d}.png")
    (folder / "999.jpg").write_text("I am not an image")
    main(["pretrain", str(folder), "--out", str(tmp_path / "run"), *FAST, "--epochs", "1"])
    assert "skipped    999.jpg" in capsys.readouterr().err
    assert Run(tmp_path / "run").facts["skipped"][0][0] == "999.jpg"
    for name in ("zero.png", "cut.jpg"):
        (folder / name).write_bytes(b"" if name == "zero.png" else (folder / "000.png").read_bytes()[:60])
    assert "%" in told(capsys, "pretrain", folder, "--out", tmp_path / "other", *FAST)


Make = Callable[[Path], list[str | Path]]


def folder_with(*files: tuple[str, bytes]) -> Make:
    def make(tmp_path: Path) -> list[str | Path]:
        (tmp_path / "data").mkdir()
        for name, content in files:
            (tmp_path / "data" / name).write_bytes(content)
        return ["pretrain", tmp_path / "data", "--out", tmp_path / "run"]

    return make


def images(n: int, size: tuple[int, int] = (16, 16)) -> Make:
    def make(tmp_path: Path) -> list[str | Path]:
        (tmp_path / "data").mkdir()
        for i in range(n):
            picture(i, size=size).save(tmp_path / "data" / f"{i}.png")
        return ["pretrain", tmp_path / "data", "--out", tmp_path / "run"]

    return make


def with_flags(*flags: str) -> Make:
    return lambda tmp_path: [*images(20)(tmp_path), "--batch-size", "8", *flags]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: ["pretrain", tmp / "nowhere", "--out", tmp / "run"], "nowhere"),
        (folder_with(), "no images|no samples|holds no"),
        (folder_with(("notes.txt", b"hello")), "no images|no samples|holds no"),
        (folder_with(("a.jpg", b"text")), "could be read|cannot be read|unreadable|not an image"),
        (folder_with(("a.jpg", b"")), "could be read|cannot be read|unreadable|empty"),
        (images(1), "only 1 sample to train on"),
        (images(20), "fewer than --batch-size 256; use --batch-size 18 or less"),
        (images(20, (1, 1)), "1x1|could be read|cannot be read|unreadable"),
        (with_flags("--method", "barlow"), "unknown method 'barlow'. Did you mean 'barlow-twins'"),
        (with_flags("--encoder", "resnt18"), "unknown encoder 'resnt18'. Did you mean 'resnet18'"),
        (with_flags("--recipe", "cifer"), "Did you mean 'cifar'"),
        (with_flags("--batch-size", "1"), "--batch-size must be 2 or more, got 1"),
        (with_flags("--projector", "64", "1"), "--projector must be 2 or more, got 1"),
        (with_flags("--method", "mixed"), "Choose one of: barlow-twins, byol, dino, mixed-barlow-twins, moco-v2"),
        (with_flags("--method", "byol", "--micro-batch", "4"), "encoder and projector alone"),
        (with_flags("--resume", "--overwrite"), "--resume continues a run and --overwrite replaces it"),
        (with_flags("--seed", "-1"), "--seed must be 0 or more, got -1"),
        (with_flags("--seed", str(2**64)), f"--seed must be at most {2**63 - 1}, got {2**64}"),
        (with_flags("--std", "1", "0", "1"), "--std must be more than 0, got 0.0"),
        (
            lambda tmp: ["views", "digits", "--out", tmp / "v.png", "--samples", "0"],
            "--samples must be 1 or more, got 0",
        ),
        (with_flags("--epoch", "3"), "Did you mean --epochs"),
        (with_flags("--epochs", "many"), "--epochs"),
        (with_flags("--device", "cuda:9"), "cuda"),
        (with_flags("--trackers", "wandbb"), "wandb"),
        (lambda tmp: ["pretrain", "", "--out", tmp / "run"], "named by an empty text"),
        (lambda tmp: ["serve", tmp, "--port", "65536"], "--port must be at most 65535, got 65536"),
        (lambda tmp: ["evaluate", tmp, "--data", "digits", "--seed", "-1"], "--seed must be 0 or more, got -1"),
        (lambda tmp: [*images(20)(tmp)[:-1], "/proc/run", "--batch-size", "8"], "cannot write to /proc/run"),
        (lambda tmp: ["evaluate", tmp / "nowhere", "--data", "digits"], "nowhere"),
        (lambda tmp: ["report", tmp], "is not a run folder"),
        (lambda tmp: ["pretrian"], "unknown command 'pretrian'. Did you mean 'pretrain'"),
        (lambda tmp: ["pretrain"], "missing DATA"),
    ],
)
def test_a_mistake_ends_in_one_line_and_code_2(
    make: Make, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = told(capsys, *make(tmp_path))
    assert any(part in line for part in message.split("|")), line


@pytest.mark.parametrize("columns", ["40", "300"])
def test_a_message_is_whole_on_any_terminal(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    line = told(capsys, "pretrain", "digits", "--out", "run", "--cache", "ram")
    assert "'ram'" in line
    assert all(choice in line for choice in ("--cache", "auto", "memory", "disk", "none"))
    assert "--warmup-epochs" in told(capsys, "pretrain", "digits", "--out", "run", "--warmup-epoch", "3")
    assert os.environ["COLUMNS"] == columns


def test_ctrl_c_is_one_line_and_the_exit_code_of_a_program_that_it_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(barlow.doctor, "examine", interrupted)
    with pytest.raises(SystemExit) as left:
        main(["doctor"])
    assert (left.value.code, capsys.readouterr().err) == (130, "barlow: interrupted\n")


@pytest.mark.slow
def test_an_image_of_20000_pixels_a_side_is_read_reduced_or_refused_but_never_exhausts_memory(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(9):
        picture(i, size=(300, 300)).save(folder / f"{i}.jpg")
    Image.new("L", (20000, 20000), 128).save(folder / "huge.jpg")
    main(["pretrain", str(folder), "--out", str(tmp_path / "run"), *FAST, "--epochs", "1", "--holdout", "0"])
    facts = Run(tmp_path / "run").facts
    assert (facts["n_train"], facts["skipped"]) == (10, [])


def test_an_existing_run_must_be_resumed_or_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*map(str, images(4)(tmp_path)), *FAST, "--epochs", "1", "--batch-size", "2"]
    main(arguments)
    assert "use --resume to continue it or --overwrite to replace it" in told(capsys, *arguments)
    main([*arguments[:4], "--resume"])  # what is not said again is as it was
    assert "--seed 3 (was 0)" in told(capsys, *arguments[:4], "--resume", "--seed", "3")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_fits_80_columns_and_tells_every_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in shown.splitlines() if not line.startswith("usage:")) <= 80
    assert "{None}" not in shown
    assert f"usage: barlow {command}" in shown


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in COMMANDS)
    assert max(map(len, shown.splitlines())) <= 80
    main(["--version"])
    assert capsys.readouterr().out.strip() == importlib.metadata.version("barlow")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("could not create a primitive\nat line 3")])
def test_memory_that_runs_out_in_any_command_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy() -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "doctor", greedy)
    assert told(capsys, "doctor").startswith("barlow: out of memory (")

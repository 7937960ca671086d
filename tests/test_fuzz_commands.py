"""Hostile values for every option of every command: one line and exit code 2, or they work; never a traceback."""

import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from PIL import Image

import barlow
from barlow.cli import COMMANDS, main
from barlow.config import PretrainConfig, leaves

NUMBERS = ("", "-1", "0", "nan", "inf", "-inf", "1e999", "9" * 30, "9" * 5000, "-" + "9" * 30, "0.5.5", "\u0663\u00b2")
TEXTS = (
    "",
    " ",
    "zz",
    "\u5199\u771f",
    "\U0001f648\n",
    "--",
    "../..",
    "a" * 5000,
    "resnet18.nosuch",
    "nosuch.toml",
    "1/0",
)
LINES = 280


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, data and files that hostile lines may name, and must leave as they are."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.integers(0, 256, (24, 8, 8), dtype=np.uint8), y=np.arange(24) % 2)
    barlow.pretrain(
        folder / "data.npz", folder / "run", encoder="resnet10-narrow", projector=(8, 8), epochs=1, batch_size=8,
        device="cpu", quiet=True,
    )  # fmt: skip
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "photo.png")
    (folder / "empty").mkdir()
    (folder / "weights.pth").write_bytes(b"\x80\x04")
    return folder


def paths(place: Path) -> tuple[str, ...]:
    names = ("nowhere", "empty", "photo.png", "data.npz", "run", "weights.pth", "photo.png/below", "n\u00e4her\n.npz")
    return ("", "\u0000", "~nosuchuser/x", "/proc/nowhere", "a" * 300, *(str(place / name) for name in names))


# Lines that would work, were the hostile value not there. Where that takes long or never ends, they lack something that
# is looked at late.
BASE: dict[str, tuple[str, ...]] = {
    "demo": (),
    "pretrain": ("{place}/data.npz", "--out", "{new}", "--encoder", "no-such-encoder"),
    "evaluate": ("{place}/run", "--data", "{place}/data.npz", "--protocols", "knn", "--no-check-overlap"),
    "embed": ("{place}/run", "{place}/data.npz", "--out", "{new}.npz"),
    "search": ("{place}/run", "{place}/photo.png", "--data", "{place}/data.npz"),
    "export": ("{place}/run", "--format", "safetensors", "--out", "{new}.safetensors"),
    "import": ("{place}/weights.pth", "--out", "{new}"),
    "report": ("{place}/nowhere", "--out", "{new}.html"),
    "serve": ("{place}/nowhere",),
    "views": ("{place}/data.npz", "--out", "{new}.png", "--samples", "1"),
    "study": ("no-such-study", "{place}/data.npz", "--out", "{new}"),
    "replay": ("{place}/run",),
    "doctor": ("--no-such-option",),
    "completion": ("tcsh",),
}
POSITIONALS = {"evaluate": 1, "embed": 2, "search": 2, "export": 1, "import": 1, "report": 1, "serve": 1, "views": 1}
POSITIONALS |= {"pretrain": 1, "study": 2, "replay": 1, "completion": 1}


def options(command: str) -> list[tuple[str, Any]]:
    """(flag, type) of every option of a command, the settings of pretraining among them."""
    found: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(COMMANDS[command]).items():
        if hint is PretrainConfig:
            sections = get_type_hints(PretrainConfig)
            found += [(leaf, get_type_hints(sections[section])[leaf]) for section, leaf, _ in leaves()]
        elif name != "return":
            found.append((name, hint))
    return [("--" + name.replace("_", "-"), hint) for name, hint in found if "bool" not in str(hint)]


def lines(place: Path, new: Path) -> Iterator[list[str]]:
    """Every option of every command once with a hostile value (no existing --out), then random ones of them."""
    draw = random.Random(0)
    everything = [(command, flag, hint) for command in COMMANDS for flag, hint in options(command)]
    for at in range(LINES):
        command, flag, hint = everything[at] if at < len(everything) else draw.choice(everything)
        base = [part.format(place=place, new=new / str(at)) for part in BASE[command]]
        number = "int" in str(hint) or "float" in str(hint)
        values: Sequence[str] = NUMBERS if number else (*TEXTS, *paths(place))
        if at % 4 == 3 and command in POSITIONALS:
            base[draw.randrange(POSITIONALS[command])] = draw.choice((*TEXTS, *paths(place)))
        if flag == "--out":
            values = paths(place)
        if command == "demo" and not number:
            flag, values = "--seed", NUMBERS[3:]  # an --out alone would run the demo
        yield [command, *base, flag, draw.choice(values)]
    yield from ([word, draw.choice(TEXTS)] for word in TEXTS)


def contents(place: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_hostile_command_lines_end_in_one_line_or_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command line sets its own
    before, failures = contents(place), []
    for line in lines(place, tmp_path / "new"):
        code: object = 0
        try:
            main(line)
        except SystemExit as left:
            code = left.code or 0
        except BaseException as error:
            code = repr(error)
        said = capsys.readouterr().err
        mistakes = [row for row in said.splitlines() if row.startswith("barlow: ") and "warning: " not in row]
        if code not in (0, 2) or "Traceback" in said or (code == 2 and len(mistakes) != 1):
            failures.append(([part[:60] for part in line], code, said[-300:]))
    assert not failures, "\n".join(map(str, failures))
    after = contents(place)
    assert {name: after.get(name) for name in before} == before
    assert not list((tmp_path / "here").iterdir())

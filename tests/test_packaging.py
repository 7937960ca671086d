"""What people are told to install exists."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from barlow.config import TRACKERS
from barlow.errors import InputError
from barlow.training import trackers

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMED = re.compile(r"barlow\[([\w,-]+)\]")


def texts() -> list[Path]:
    folders = [path for name in ("src", "docs", "examples", "benchmarks") for path in (ROOT / name).rglob("*")]
    return [ROOT / "README.md", ROOT / "pyproject.toml", *(p for p in folders if p.suffix in (".py", ".md", ".sh"))]


def named_extras(text: str) -> set[str]:
    return {extra for names in NAMED.findall(text) for extra in names.split(",")}


def test_every_extra_that_is_named_exists() -> None:
    named = {extra: path.name for path in texts() for extra in named_extras(path.read_text())}
    assert len(named) >= 5  # or the search finds nothing
    assert {extra: file for extra, file in named.items() if extra not in EXTRAS} == {}


def test_every_extra_that_a_message_fills_in_exists() -> None:
    for name in TRACKERS:
        try:
            trackers._optional(name)
        except InputError as error:
            assert named_extras(str(error)) <= set(EXTRAS)
        assert name in EXTRAS
    launch = ast.parse((ROOT / "src/barlow/studies/launch.py").read_text())
    calls = [node for node in ast.walk(launch) if isinstance(node, ast.Call) and ast.unparse(node.func) == "optional"]
    assert calls
    assert {ast.literal_eval(call.args[1]) for call in calls} <= set(EXTRAS)


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_requirement_of_an_extra_has_a_lower_bound_or_is_of_this_project(extra: str) -> None:
    assert [line for line in EXTRAS[extra] if ">=" not in line and not line.startswith("barlow[")] == []

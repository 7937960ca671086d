"""Every code block of the documentation runs, every command in it is one that the program has, and the site builds.

Python blocks of a page run in order in one namespace; a `bash` block runs line by line through `barlow.cli.main`.
Blocks marked `no-run` (clusters, installation) are not run, but their `barlow` commands must parse. What a page may
assume, as its reader has it: a folder `photos` with classes, and a finished run of it in `run`.
"""

import doctest
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from barlow import cli, pretrain

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w+)( no-run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("bash", "sh")


@dataclass(frozen=True)
class Block:
    language: str
    runs: bool
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[1], found[2] is None, found[3], text.count("\n", 0, found.start(3)))
        for found in FENCE.finditer(text)
    ]


def commands(script: str) -> list[list[str]]:
    """The words of every line of a shell script; continued lines are one."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, three classes that differ in colour, and `run`, one epoch on them."""
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for i in range(120):
        place = folder / "photos" / ("red", "green", "blue")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 150, (32, 36, 3), dtype=np.uint8)
        pixels[..., i % 3] += 100
        Image.fromarray(pixels).save(place / f"{i:03d}.png")
    settings: dict[str, Any] = {"encoder": "resnet10-narrow", "projector": (32, 32), "epochs": 1, "batch_size": 32}
    pretrain(folder / "photos", folder / "run", quiet=True, **settings)
    return folder


@pytest.fixture
def workplace(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run a page in, with its own caches and without the network."""
    for name in ("BARLOW_CACHE", "BARLOW_DATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("BARLOW_OFFLINE", "1")
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def that_run(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.runs and block.language in ("python", *SHELLS)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if that_run(page)], ids=lambda page: page.name)
def test_every_block_of_the_page_runs(page: Path, workplace: Path, request: pytest.FixtureRequest) -> None:
    if page.name != "tutorial.md":  # which makes its own
        shutil.copytree(request.getfixturevalue("prepared"), workplace, dirs_exist_ok=True)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in that_run(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)  # noqa: S102  our own pages
            continue
        for words in commands(block.text):
            assert words[0] == "barlow", f"{page.name}:{block.line}: cannot run '{words[0]}'; mark the block no-run"
            cli.main(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_a_block_that_is_seen(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall(r"^\s*(```|~~~)", text, re.MULTILINE)) == 2 * len(blocks(page))


def barlow_commands(page: Path) -> list[str]:
    """Every `barlow ...` in the shell blocks of a page, also behind torchrun, srun or exec."""
    scripts = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language in SHELLS]
    lines = [re.split(r" [#>|]", line)[0] for script in scripts for line in script.splitlines()]
    found = [re.search(r"(?:^|\s)barlow ([a-z-].*)", line) for line in lines if not line.startswith("#")]
    return [match[1].rstrip("& ") for match in found if match]


@pytest.mark.parametrize("page", [page for page in PAGES if barlow_commands(page)], ids=lambda page: page.name)
def test_every_command_on_the_page_is_one_that_the_program_has(page: Path, workplace: Path) -> None:
    for command in barlow_commands(page):
        cli._parse(shlex.split(command))


def test_the_documents_with_formulas_are_doctested_elsewhere() -> None:
    """Pages with `>>>` are exactly those that tests/objectives/test_document.py runs."""
    with_examples = [page.name for page in PAGES if doctest.DocTestParser().get_examples(page.read_text())]
    assert with_examples == ["objective.md"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert [page.name for page in PAGES if f" {page.name}" not in navigation] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs barlow[docs]")
@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="needs barlow[docs]")
def test_the_site_builds_without_a_warning_and_shows_every_result_and_setting(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    figures = (tmp_path / "performance.html").read_text()
    for result in (ROOT / "benchmarks" / "results").glob("*.md"):
        assert result.read_text().splitlines()[0].removeprefix("# ") in figures
    assert "--lambd-reg" in (tmp_path / "settings.html").read_text()
    every_page = "".join(page.read_text() for page in tmp_path.glob("*.html"))
    assert "no-run" not in every_page
    assert re.findall(r"<h[1-6][^>]*>(?:Raises|Args|Returns)", every_page) == []  # sections of docstrings, not of pages
    assert re.findall(r'(?:src|href)="(?:https?:)?//[^"]*\.(?:js|css|woff2?)', every_page) == []

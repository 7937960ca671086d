"""The page in a real browser: no errors, no requests, and the map answers to mouse and keyboard."""

import dataclasses
import io
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from barlow.report import read_gallery, write_report
from barlow.report.gallery import jpeg, write_gallery
from barlow.run import Run

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

MakeRun = Callable[..., Run]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[[Path], Any]]:
    """Opens a file; at the end of the test nothing may have been logged as an error or asked of the network."""
    troubles: list[str] = []
    pages: list[Any] = []

    def opener(file: Path, **options: Any) -> Any:
        page = browser.new_page(**{"viewport": {"width": 1100, "height": 900}, "reduced_motion": "reduce", **options})
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on("request", lambda r: troubles.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield opener
    for page in pages:
        page.close()
    assert troubles == []


def point_on_screen(page: Any, run: Run, point: int) -> tuple[float, float]:
    """Where a sample lies in the window, by the map's rule: the long side fills the canvas but for 16 pixels."""
    gallery = read_gallery(run.path)
    assert gallery is not None
    page.locator("canvas").scroll_into_view_if_needed()
    page.wait_for_timeout(200)  # scrolling hides what was shown
    box = page.locator("canvas").bounding_box()
    wide, high = gallery.arrays["coords"].max(axis=0).tolist()
    side = min((box["width"] - 2 - 32) / wide, (box["height"] - 2 - 32) / high)
    x, y = gallery.arrays["coords"][point].tolist()
    return box["x"] + box["width"] / 2 + (x - wide / 2) * side, box["y"] + box["height"] / 2 + (y - high / 2) * side


def most_isolated(coords: np.ndarray) -> int:
    """The point farthest from any other, so that a pixel more or less does not matter."""
    apart = np.linalg.norm(coords[:, None] - coords[None], axis=2) + 9 * np.eye(len(coords))
    return int(apart.min(axis=1).argmax())


def test_hovering_shows_the_image_and_clicking_its_nearest_neighbours(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    run = make_run()
    gallery = read_gallery(run.path)
    assert gallery is not None
    page = open_page(write_report([run], tmp_path / "page.html"))
    lone = most_isolated(gallery.arrays["coords"])
    page.mouse.move(*point_on_screen(page, run, lone))
    assert page.locator("#tip").inner_text().strip().endswith(gallery.keys[lone])
    page.mouse.click(*point_on_screen(page, run, lone))
    shown = [button.get_attribute("aria-label") for button in page.locator(".chosen button").all()]
    names = [gallery.keys[i] for i in (lone, *gallery.arrays["neighbours"][lone])]
    assert [label.rpartition(": ")[2] for label in shown] == [name.rpartition(": ")[2] for name in names]


def test_the_map_is_walked_by_keyboard_and_left_by_escape(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(write_report([make_run()], tmp_path / "page.html"))
    page.locator("canvas").focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "+", "ArrowDown"):
        page.keyboard.press(key)
        seen.append(page.locator(".chosen b").inner_text())
    assert seen[0] != seen[1] == seen[2] != seen[3]
    page.keyboard.press("Escape")
    assert page.locator(".chosen b").count() == 0


def test_a_strip_chooses_on_the_map_and_the_same_image_in_the_other_run(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    runs = [make_run("one"), make_run("two")]
    page = open_page(write_report(runs, tmp_path / "page.html"))
    first = page.locator(".strip button").first
    name = first.get_attribute("aria-label")
    first.click()
    assert [b.inner_text() for b in page.locator(".chosen b").all()] == [name, name]


def test_charts_tell_their_values_by_arrow_keys(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(write_report([make_run()], tmp_path / "page.html"))
    page.locator("svg[aria-label^='Barlow Twins loss']").focus()
    page.wait_for_timeout(200)  # scrolling there hides what was shown
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tip").inner_text().split("\n") == ["epoch 4", "first, trained on: 54", "first, held out: 59"]


def test_the_heat_map_tells_its_values_by_arrow_keys(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(write_report([make_run()], tmp_path / "page.html"))
    page.locator(".heat").focus()
    page.wait_for_timeout(200)  # scrolling there hides what was shown
    seen = []
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
        seen.append(page.locator("#tip").inner_text())
    assert seen == ["row 1, column 0: 0.05", "row 1, column 1: 0.95"]


def test_on_paper_legends_keep_their_colours_and_maps_their_shape(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page(write_report([make_run("one"), make_run("two")], tmp_path / "page.html"))
    page.emulate_media(media="print")
    style = "e => getComputedStyle(e, '::before').printColorAdjust"
    assert {key.evaluate(style) for key in page.locator(".key").all()} == {"exact"}
    for canvas in page.locator("canvas").all():
        drawn, shown = canvas.evaluate("e => [e.width / e.height, e.clientWidth / e.clientHeight]")
        assert shown == pytest.approx(drawn, rel=0.02)


def test_light_and_dark_differ_and_the_button_overrides_the_system(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    file = write_report([make_run()], tmp_path / "page.html")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(file, color_scheme=scheme) for scheme in ("light", "dark"))
    in_light, in_dark = light.evaluate(paper), dark.evaluate(paper)
    assert in_light != in_dark
    light.locator("#theme").click()
    assert light.evaluate(paper) == in_dark


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_sticks_out_sideways(
    width: int, make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    file = write_report([make_run("one"), make_run("two")], tmp_path / "page.html")
    page = open_page(file, viewport={"width": width, "height": 800})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_hostile_names_do_nothing(make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run("<svg onload=alert(2)>")
    page = open_page(write_report([run], tmp_path / "page.html"))
    page.mouse.move(*point_on_screen(page, run, 7))
    page.mouse.click(*point_on_screen(page, run, 7))
    assert "<img src=x onerror=alert(1)>" in page.locator(".chosen b").inner_text()
    assert page.locator("img[src='x']").count() == 0


def test_fifty_thousand_points_are_searched_in_a_frame(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    """A bound loose enough for a busy machine without graphics hardware; it sees a search over all points."""
    run = make_run()
    small = read_gallery(run.path)
    assert small is not None
    n, rng = 50_000, np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "coords": rng.random((n, 2), dtype=np.float32),
        "labels": rng.integers(0, 3, n),
        "neighbours": rng.integers(0, n, (n, 12)).astype(np.int32),
        "cosines": rng.random((n, 12), dtype=np.float32),
        "features": np.ones((n, 2), np.float16),
        "atlas": small.arrays["atlas"],
    }
    keys = tuple(f"{i}.png" for i in range(n))
    write_gallery(dataclasses.replace(small, arrays=arrays, keys=keys, total=n), run.path)
    page = open_page(write_report([run], tmp_path / "page.html"))
    moves = """() => {
      const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect(), times = [];
      for (let i = 0; i < 30; i++) {
        const start = performance.now();
        canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 80 + 12 * i, clientY: box.top + 90}));
        times.push(performance.now() - start);
      }
      return times.sort((a, b) => a - b)[15];
    }"""
    assert page.evaluate(moves) < 100


def test_four_thousand_thumbnails_of_real_size_are_painted(
    make_run: MakeRun, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    """Green noise of 56 pixels a side makes an atlas of several megabytes, which Chromium shows none of at once."""
    run, n, side, columns = make_run(), 4000, 56, 64
    small = read_gallery(run.path)
    assert small is not None
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 90, (math.ceil(n / columns) * side, columns * side, 3), dtype=np.uint8)
    pixels[..., 1] += 160
    arrays: dict[str, np.ndarray] = {
        "coords": rng.random((n, 2), dtype=np.float32),
        "labels": np.zeros(n, np.int64),
        "neighbours": rng.integers(0, n, (n, 12)).astype(np.int32),
        "cosines": rng.random((n, 12), dtype=np.float32),
        "features": np.ones((n, 2), np.float16),
        "atlas": np.frombuffer(jpeg(pixels), np.uint8),
    }
    assert len(arrays["atlas"]) > 4_000_000
    keys = tuple(f"{i}.png" for i in range(n))
    large: dict[str, Any] = {"keys": keys, "total": n, "thumb": side, "columns": columns, "queries": (n - 1, 0, 1999)}
    write_gallery(dataclasses.replace(small, arrays=arrays, **large), run.path)
    page = open_page(write_report([run], tmp_path / "page.html"))

    def green(element: Any) -> float:
        shown = np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"), np.int64)
        return float(((shown[..., 1] > 130) & (shown[..., 0] < 120) & (shown[..., 2] < 120)).mean())

    for query in page.locator(".strip button:first-child").all():
        assert green(query) > 0.9
    lone = most_isolated(arrays["coords"])
    page.mouse.move(*point_on_screen(page, run, lone))
    assert green(page.locator("#tip .thumb")) > 0.9
    canvas = page.locator("canvas")
    canvas.focus()
    for _ in range(6):
        page.keyboard.press("+")
    page.wait_for_timeout(300)
    assert green(canvas) > 0.05  # some fourteen pictures of 64 pixels a side; dots are blue

"""The page says what the run folder says, needs nothing else, and lets no text in as markup."""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from barlow.errors import InputError
from barlow.evaluation.paired import pack
from barlow.report import report, write_report
from barlow.report.evidence import facts_list
from barlow.run import Run

MakeRun = Callable[..., Run]
VOID = {"br", "hr", "img", "link", "meta"}


class Page(HTMLParser):
    """Elements, attributes, ids and text of a page; fails on elements that are not closed in order."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.raw = file.read_text(encoding="utf-8")
        self.feed(self.raw)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(*runs: Run, tmp_path: Path) -> Page:
    return Page(write_report(runs, tmp_path / "page.html"))


def test_the_three_answers_come_first_and_in_order(make_run: MakeRun, tmp_path: Path) -> None:
    text = page_of(make_run(), tmp_path=tmp_path).text
    first = [text.index(words) for words in ("91.0%", "Healthy:", "Is the encoder good?")]
    places = [*first, text.rindex("Is it healthy?"), text.index("on what? resnet10-narrow")]
    assert places == sorted(places)
    assert "(90.0% to" not in text
    assert "(90.0 to 92.0)" in text
    assert "ahead of raw pixels and random init" in text


def test_the_table_has_every_score_with_interval_and_baselines(make_run: MakeRun, tmp_path: Path) -> None:
    text = page_of(make_run(), tmp_path=tmp_path).text
    assert re.search(r"Linear probe.*?91\.0 90\.0 to 92\.0 60\.0 59\.0 to 61\.0 50\.0 49\.0 to 51\.0 1,234", text)
    assert re.search(r"k-NN.*?55\.0 50\.0 to 60\.0 30\.0 29\.0 to 31\.0 56\.0 55\.0 to 57\.0 1,234", text)
    assert "3 evaluation images were seen in pretraining" in text


def test_no_text_of_the_data_becomes_markup(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(make_run("<svg onload=alert(2)>"), tmp_path=tmp_path)
    assert "onerror=alert(1)" in page.text
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("src") != "x"
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert [script.get("type") for script in scripts] == ["application/json", None]
    assert page.raw.count("</script>") == 2


def test_the_page_needs_no_network_and_runs_only_its_own_script(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(make_run(), tmp_path=tmp_path)
    assert not [a for tag, a in page.elements if tag in ("link", "iframe", "object", "base")]
    assert not re.search(
        r"""(?:src|href)=["']?(?:https?:)?//|url\((?!data:)|@import|fetch\(|XMLHttpRequest""", page.raw
    )
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", page.raw, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_everything_that_can_be_pressed_has_a_name_and_is_reached_by_keyboard(
    make_run: MakeRun, tmp_path: Path
) -> None:
    page = page_of(make_run(), tmp_path=tmp_path)
    canvas = next(a for tag, a in page.elements if tag == "canvas")
    assert canvas["tabindex"] == "0"
    assert canvas["aria-label"]
    buttons = [a for tag, a in page.elements if tag == "button"]
    assert len(buttons) > 50
    assert all(button.get("aria-label") for button in buttons)
    assert all(a.get("alt") is not None for tag, a in page.elements if tag == "img")
    charts = [a for tag, a in page.elements if tag == "svg"]
    assert charts
    assert all(chart.get("aria-label") for chart in charts)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


def test_a_bare_run_says_which_command_adds_what(make_run: MakeRun, tmp_path: Path) -> None:
    text = page_of(make_run(bare=True), tmp_path=tmp_path).text
    for words in ("barlow evaluate", "barlow report", "not measured yet", "not checked yet", "Nothing was logged"):
        assert words in text


def test_runs_stand_side_by_side_and_differences_come_first(make_run: MakeRun, tmp_path: Path) -> None:
    one, two = make_run("one"), make_run("two")
    config = (two.path / "config.json").read_text().replace('"epochs": 100', '"epochs": 7')
    (two.path / "config.json").write_text(config)
    page = page_of(one, two, tmp_path=tmp_path)
    assert "2 runs side by side" in page.text
    assert re.search(r"Settings \(1 differ\) Name one two training\.epochs 100 7", page.text)
    assert [a["data-map"] for tag, a in page.elements if tag == "canvas"] == ["0", "1"]
    assert page.raw.count("data:image/jpeg") == 1  # equal sheets of thumbnails are stored once


def chart(page: Page, label: str) -> dict[str, str]:
    return next(a for tag, a in page.elements if a.get("aria-label", "").startswith(label))


def test_curves_carry_the_logged_values(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(make_run(), tmp_path=tmp_path)
    loss = chart(page, "Loss by epoch")
    assert '"x":[0.0,1.0,2.0,3.0,4.0,5.0],"y":[90.0,80.0,70.0,60.0,50.0,40.0]' in loss["data-lines"]
    assert "from 90 to 40" in loss["aria-label"]


def test_held_out_and_trained_on_losses_are_of_one_objective_in_one_chart(make_run: MakeRun, tmp_path: Path) -> None:
    losses = chart(page_of(make_run(), tmp_path=tmp_path), "Barlow Twins loss by epoch")
    assert "first, trained on from 94 to 44; first, held out from 95 to 50" in losses["aria-label"]


def test_measures_without_labels_and_the_check_of_mixing_are_shown(make_run: MakeRun, tmp_path: Path) -> None:
    page = page_of(make_run(), tmp_path=tmp_path)
    for words in (
        "RankMe directions the features use; higher is better 33.3",
        "views of one image; higher is better 17.25",
    ):
        assert words in page.text
    assert "Dead features that are the same for every image 12.5%" in page.text
    assert "over between them, where there are labels; lower is better 0.5" in page.text
    assert "mean diagonal of C 0.95" in page.text  # the verdict's evidence, in words
    mixing = json.loads(chart(page, "Deviation from linear mixing")["data-lines"])
    assert [(line["n"], line["x"], line["y"]) for line in mixing] == [
        ("first, encoder", [0.1, 0.5], [0.01, 0.08]),
        ("first, projector", [0.1, 0.5], [0.03, 0.02]),
    ]


def test_terms_of_any_method_are_drawn_also_below_zero(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(pictures=False)
    steps = [
        {"kind": "epoch", "epoch": e, "step": e, "loss": -0.25 * (e + 1), "koleo_entropy": 3.0 - e, "lr": 0.1}
        for e in range(4)
    ]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    (run.path / "config.json").write_text((run.path / "config.json").read_text().replace("barlow-twins", "simsiam"))
    page = page_of(run, tmp_path=tmp_path)
    assert "with SimSiam on" in page.text
    assert "from -0.25 to -1" in chart(page, "Loss by epoch")["aria-label"]
    assert '"y":[3.0,2.0,1.0,0.0]' in chart(page, "Koleo entropy term by epoch")["data-lines"]
    assert "Invariance term" not in page.text
    assert "Lr term" not in page.text


@pytest.mark.parametrize(("value", "words"), [(0.2, "behind"), (0.5, "not clearly ahead of"), (0.9, "ahead of")])
def test_a_score_is_judged_against_its_strongest_baseline(
    value: float, words: str, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(pictures=False)
    result = run.evaluations()[-1] | {"value": value, "interval": [value - 0.01, value + 0.01]}
    strongest = {"raw-pixels": {"value": 0.505, "interval": [0.49, 0.52]}, "random-init": {"value": 0.1}}
    run.save_evaluation(result | {"protocol": "linear", "baselines": strongest})
    assert f": {words}" in page_of(run, tmp_path=tmp_path).text


def test_two_settings_of_knn_are_never_one_row_or_one_name(make_run: MakeRun, tmp_path: Path) -> None:
    old, new = make_run("old", pictures=False), make_run("new", pictures=False)
    result = next(e for e in new.evaluations() if e["protocol"] == "knn")
    new.save_evaluation(result | {"value": 0.75, "settings": {"k": 20, "temperature": 0.07}})
    text = page_of(old, new, tmp_path=tmp_path).text
    assert re.search(r"k-NN \(k 200, T 0\.5\) accuracy, % on .{,80}? 55\.0 50\.0 to 60\.0 . 30\.0", text)
    assert re.search(r"k-NN \(k 20, T 0\.07\) accuracy, % on .{,80}? . 75\.0", text)
    assert "k-NN (k 20, T 0.07) accuracy while training" in text


def test_runs_are_told_apart_by_a_paired_test_and_only_then_one_is_marked(make_run: MakeRun, tmp_path: Path) -> None:
    right = np.arange(300) >= 20
    answers = {"one": right, "two": right & (np.arange(300) < 285), "three": np.roll(right, 40)}
    runs = {name: make_run(name, pictures=False) for name in answers}
    for name, run in runs.items():
        kept = {"value": float(answers[name].mean()), "interval": [0.8, 0.99], "baselines": {}}
        packed = pack(answers[name], [str(i) for i in range(300)])
        run.save_evaluation(run.evaluations()[-1] | kept | {"protocol": "linear", "per_image": packed})
    apart = page_of(runs["one"], runs["two"], tmp_path=tmp_path)
    assert "one is ahead of two, 5.0 points, p < 0.001 (McNemar, exact)" in apart.text
    assert "<b>93.3</b>" in apart.raw
    alike = page_of(runs["one"], runs["three"], tmp_path=tmp_path)
    assert "one cannot be told from three, 0.0 points, p 1 (McNemar, exact)" in alike.text
    assert "<b>93.3</b>" not in alike.raw
    assert "not the training seed" in alike.text


def test_no_runs_or_too_many_are_one_clear_line(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 to 8 runs, got 0"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(InputError, match="got 9"):
        write_report([make_run(bare=True)] * 9, tmp_path / "page.html")
    with pytest.raises(InputError, match="no run to report on"):
        report([])


def test_the_command_makes_missing_pictures_once(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(pictures=False)
    page = report([run.path], data=tmp_path / "data.npz", points=30)
    assert page == run.path / "report.html"
    made = (run.path / "gallery.npz").stat().st_mtime_ns
    report([run.path], data=tmp_path / "data.npz", points=30)
    assert (run.path / "gallery.npz").stat().st_mtime_ns == made
    report([run.path], data=tmp_path / "data.npz", points=20)
    assert (run.path / "gallery.npz").stat().st_mtime_ns != made


def test_the_command_writes_a_page_although_the_data_has_gone(make_run: MakeRun) -> None:
    run = make_run(pictures=False)
    assert "No pictures of first" in Page(report([run.path])).text


def test_long_values_of_a_protocol_have_a_line_of_their_own_behind_the_short_ones() -> None:
    shown = facts_list({"draws": ", ".join(["0.5"] * 20), "k": "200"})
    assert shown.index("<dt>k</dt>") < shown.index('<div class="long"><dt>draws</dt>')

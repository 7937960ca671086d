"""Axes, marks and figures, at hand-checked values."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barlow.numbers import number
from barlow.report.charts import MOST_POINTS, Axis, Estimate, Line, forest, heat_map, line_chart, log_ticks, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.31, 0.78, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        (5, 5, [5, 6]),
        (-3, 3, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_always_cover_and_are_few(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step
    assert marks[-1] >= low + span - 1e-6 * step
    assert 2 <= len(marks) <= 8


def test_log_ticks_go_finer_where_the_range_is_short() -> None:
    assert log_ticks(23, 170) == pytest.approx([20, 50, 100, 200])
    assert log_ticks(215, 420) == [200, 250, 300, 350, 400, 450]
    assert log_ticks(0.02, 30) == pytest.approx([0.01, 0.1, 1, 10, 100])


@given(st.floats(1e-8, 1e8), st.floats(1, 1e8))
def test_log_ticks_always_cover(low: float, factor: float) -> None:
    marks = log_ticks(low, low * factor)
    assert marks[0] <= low * (1 + 1e-8)
    assert marks[-1] >= low * factor * (1 - 1e-8)
    assert len(marks) >= 2


def test_an_axis_puts_its_ends_at_its_ends_and_powers_evenly() -> None:
    assert [Axis([0, 5, 10], 50, 150)(v) for v in (0, 5, 10)] == [50, 100, 150]
    assert [Axis([1, 10, 100], 0, 100, log=True)(v) for v in (1, 10, 100)] == [0, 50, 100]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.5, "0.5"), (1234.5, "1,234"), (0.00001, "1.0e-05"), (2e7, "2.0e+07"), (100, "100")]
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert number(value) == text


def test_a_curve_is_drawn_where_its_values_are() -> None:
    chart = line_chart([Line("run", [0, 10], [0, 4], 0)], x_label="epoch", y_label="loss", summary="falls")
    assert '<path d="M50.0 214.0L446.0 12.0" class="curve s0"/>' in chart  # frame: x 50..446, y 214 (low) .. 12
    assert 'aria-label="falls"' in chart


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    line = Line("run", [0, 1, 2, 3], [1.0, math.nan, math.inf, -2.0], 0)
    chart = line_chart([line], x_label="x", y_label="y", summary="s", log_y=True)
    found = re.search(r'data-lines="([^"]*)"', chart)
    assert found is not None
    assert json.loads(found.group(1).replace("&#34;", '"'))[0]["y"] == [1.0]
    empty = line_chart([Line("run", [], [], 0)], x_label="x", y_label="y", summary="s")
    assert "No finite values" in empty


def test_long_curves_are_thinned_to_means_of_runs() -> None:
    n = 20 * MOST_POINTS
    noise = [1.0 if i % 2 else 3.0 for i in range(n)]
    chart = line_chart([Line("run", list(range(n)), noise, 0)], x_label="x", y_label="y", summary="s")
    found = re.search(r'data-lines="([^"]*)"', chart)
    assert found is not None
    values = json.loads(found.group(1).replace("&#34;", '"'))[0]["y"]
    assert values == [2.0] * MOST_POINTS


def test_intervals_span_their_bounds() -> None:
    drawn = forest([("k-NN", [Estimate("run", 0.5, 0.4, 0.6, "s0")])], summary="s", percent=True)
    # ticks 40 to 60 over 10..450: the interval is the whole width, the value its middle
    assert '<line class="whisker s0" x1="10.0" x2="450.0"' in drawn
    assert 'cx="230.0"' in drawn


def test_a_heat_map_carries_its_values_and_a_picture_for_light_and_dark() -> None:
    drawn = heat_map(np.array([[1.0, -1.0], [0.0, np.nan]]), summary="C")
    assert drawn.count("data:image/png;base64,") == 2
    assert 'data-values="f4EAAA=="' in drawn  # 127, -127, 0, 0 as signed bytes

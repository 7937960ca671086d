"""Text cannot become markup by accident."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from barlow.report.markup import Markup, data_block, escape, join, tag


def test_plain_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", tag("b", "d")) == "<p>a &lt; b &amp; c<b>d</b></p>"


def test_attributes_are_escaped_renamed_and_left_out() -> None:
    made = tag("a", class_="x", aria_label='"<>', hidden=True, title=None, open=False)
    assert made == '<a class="x" aria-label="&quot;&lt;&gt;" hidden></a>'


@given(st.text())
def test_no_text_adds_an_element_or_an_attribute(text: str) -> None:
    assert re.fullmatch(r'<p title="[^<>"]*">[^<>"]*</p>', tag("p", text, title=text), re.DOTALL)


@given(st.text())
def test_data_of_the_script_survives_and_cannot_end_its_element(text: str) -> None:
    block = data_block("x", {"name": text})
    inside = block.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert json.loads(inside) == {"name": text}
    assert not re.search(r"[<>&\u2028\u2029]", inside)


def test_escaping_twice_is_escaping_once() -> None:
    assert escape(escape("<")) == escape("<") == "&lt;"
    assert join([None, "<", Markup("<hr/>"), 3]) == "&lt;<hr/>3"

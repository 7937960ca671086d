"""Text cannot become markup by accident."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup, escape

from barlow.report.markup import join, tag
from barlow.report.page import PAGES


def test_plain_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", tag("b", "d")) == "<p>a &lt; b &amp; c<b>d</b></p>"


def test_attributes_are_escaped_renamed_and_left_out() -> None:
    made = tag("a", class_="x", aria_label='"<>', hidden=True, title=None, open=False)
    assert made == '<a class="x" aria-label="&#34;&lt;&gt;" hidden></a>'


@given(st.text())
def test_no_text_adds_an_element_or_an_attribute(text: str) -> None:
    assert re.fullmatch(r'<p title="[^<>"]*">[^<>"]*</p>', tag("p", text, title=text), re.DOTALL)


@given(st.text())
def test_templates_escape_what_they_show_and_data_cannot_end_its_element(text: str) -> None:
    page = PAGES.from_string("<title>{{ title }}</title><script>{{ data|tojson }}</script>").render(
        title=text, data=[text]
    )
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    data = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert title is not None and data is not None
    assert title[1] == escape(text)
    assert json.loads(data[1]) == [text]


def test_escaping_twice_is_escaping_once() -> None:
    assert escape(escape("<")) == escape("<") == "&lt;"
    assert join([None, "<", Markup("<hr/>"), 3]) == "&lt;<hr/>3"

"""Docstrings have aligned lists, `name   what it is`, which read well in a terminal; Markdown needs a real list."""

import re
from typing import Any

import griffe

ROW = re.compile(r"^(?:([\w.*-]+) {2,}|([\w.*-]+): +)(\S.*)$")  # the longest name may leave one space


class AlignedLists(griffe.Extension):
    """Turns them into lists while the API reference is built."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_lists(obj.docstring.value)


def as_lists(text: str) -> str:
    """Two or more aligned rows in one block become one list; lines that go on are joined to their row."""
    return "\n\n".join(_as_list(block) for block in text.split("\n\n"))


def _as_list(block: str) -> str:
    lines = block.splitlines()
    if sum(ROW.match(line) is not None for line in lines) < 2:
        return block
    rows: list[str] = []
    for line in lines:
        if found := ROW.match(line):
            rows.append(f"- `{found[1] or found[2]}`: {found[3]}")
        else:
            rows.append(f"  {line.strip()}")
    return "\n".join(rows)

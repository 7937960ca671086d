"""HTML that cannot be forgotten to be escaped: plain text is escaped, only `Markup` passes through."""

import html
import json
from collections.abc import Iterable
from typing import TypeAlias

Child: TypeAlias = "str | float | Markup | Iterable[Child] | None"

VOID = frozenset({"br", "circle", "hr", "image", "img", "line", "meta", "path", "rect"})


class Markup(str):
    """Text that is HTML already. Made only by `tag`, `join` and the page's own template files."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text from anywhere (class names, file names, configuration) as harmless HTML, also inside attributes."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text), quote=True))


def join(child: Child) -> Markup:
    """Children one after another; None is left out, plain text is escaped."""
    if child is None:
        return Markup()
    if isinstance(child, str | int | float):
        return escape(child)
    return Markup("".join(join(part) for part in child))


def tag(name: str, *children: Child, **attributes: object) -> Markup:
    """One element. `class_` is written class, `aria_label` aria-label; None or False leaves an attribute out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def data_block(identifier: str, data: object) -> Markup:
    """Data for the page's script: JSON in which no character can end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')

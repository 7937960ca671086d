"""Elements of HTML and SVG as functions: plain text is escaped, only `Markup` passes through."""

from collections.abc import Iterable
from typing import TypeAlias

from markupsafe import Markup, escape

Child: TypeAlias = "str | float | Markup | Iterable[Child] | None"

VOID = frozenset({"br", "circle", "hr", "image", "img", "line", "meta", "path", "rect"})


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

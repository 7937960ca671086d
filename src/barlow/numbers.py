"""Numbers, scores, times and settings as people read them."""

from collections.abc import Mapping
from typing import Any


def number(value: float) -> str:
    """A figure for people: four significant digits, no exponent between a thousandth and a million."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"


def heading(words: str) -> str:
    """With a capital, but for k-NN."""
    return words if words.startswith("k-NN") else words[:1].upper() + words[1:]


def is_percent(metric: str) -> bool:
    """Whether a metric is a share of right answers, shown in percent."""
    return any(word in metric.lower() for word in ("accuracy", "top", "recall"))


def amount(value: float, metric: str) -> str:
    """A score as people write it: 91.3 for a share, four digits otherwise."""
    return f"{100 * value:.1f}" if is_percent(metric) else number(value)


def span(interval: Any, metric: str) -> str:
    """An interval as `90.8 to 91.7`; empty when there is none."""
    return f"{amount(interval[0], metric)} to {amount(interval[1], metric)}" if interval else ""


def duration(seconds: float) -> str:
    """A time as people say it."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.name` and text."""
    out: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: plain(value)}
    return out


def plain(value: object) -> str:
    """A setting as text."""
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(plain(v) for v in value) if isinstance(value, list | tuple) else str(value)

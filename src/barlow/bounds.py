"""Which numbers a setting or an option takes: declared beside it, checked here.

    epochs: Annotated[int, Bounds(1, 10**6)] = 100

Upper bounds are far beyond any use. They keep a slip of the finger, or 1e20 epochs, from ending in an overflow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from barlow.errors import InputError


@dataclass(frozen=True)
class Bounds:
    """`lowest` to `highest`, both of them allowed unless `above` and `below` say otherwise."""

    lowest: float
    highest: float
    above: bool = False
    """more than `lowest`, not `lowest` itself"""
    below: bool = False
    """less than `highest`, not `highest` itself"""

    def check(self, name: str, value: float) -> None:
        """Raises InputError for a value outside, and for NaN."""
        if not (value > self.lowest if self.above else value >= self.lowest):
            least = f"more than {self.lowest:g}" if self.above else f"{self.lowest:g} or more"
            raise InputError(f"{name} must be {least}, got {value}")
        if not (value < self.highest if self.below else value <= self.highest):
            raise InputError(f"{name} must be {'less than' if self.below else 'at most'} {self.highest}, got {value}")


def declared(hint: Any) -> Iterator[Bounds]:
    """The bounds in a type, also inside a union or a tuple."""
    for part in get_args(hint):
        if isinstance(part, Bounds):
            yield part
        else:
            yield from declared(part)


def check(name: str, hint: Any, value: Any) -> None:
    """Raises InputError where `value`, or an item of a tuple, is outside the bounds that its type `hint` declares."""
    for bounds in declared(hint):
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None:
                bounds.check(name, item)


Count = Annotated[int, Bounds(1, 10**9)]
Seed = Annotated[int, Bounds(0, 2**63 - 1)]
ImageSize = Annotated[int, Bounds(2, 2**13)]
Workers = Annotated[int, Bounds(0, 2**10)]

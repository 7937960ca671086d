"""A person's mistake, told in one line."""

import contextlib
import difflib
import sys
from collections.abc import Iterable


class InputError(ValueError):
    """What is wrong, what was received, what to do: one line. The command line prints it and exits with 2."""


def suggest(name: str, options: Iterable[str]) -> str:
    """The end of an error message: the nearest right name, or all of them when none is near."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Choose one of: {', '.join(known)}."


def tell(line: str) -> None:
    """Print a line on stderr. That its disk is full, or its reader or terminal gone, must end no work."""
    with contextlib.suppress(OSError, ValueError):  # a closed stream is a ValueError
        print(line, file=sys.stderr, flush=True)

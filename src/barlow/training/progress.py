"""What a person sees while a run trains: a live line in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_SECONDS = 10.0  # without a terminal, a line every so often, and one per epoch end when epochs are longer


class _Lenient:
    """A stream that loses what it cannot write: reporting must not end training when its disk is full or its reader
    or terminal is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # a closed stream is a ValueError
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ProgressDisplay:
    """Progress of a run on a text stream. `quiet` says nothing at all."""

    def __init__(self, *, total_steps: int, steps_per_epoch: int, quiet: bool = False, stream: TextIO | None = None):
        self.total, self.per_epoch, self.quiet = total_steps, steps_per_epoch, quiet
        self.console = Console(file=cast(TextIO, _Lenient(stream or sys.stderr)), highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self._last_plain = 0.0

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def start(self, step: int) -> None:
        """Begin the live line, in a terminal."""
        if self.quiet or not self.console.is_terminal:
            return
        self.bar = Progress(BarColumn(20), TextColumn("{task.description}"), console=self.console, transient=True)
        self.bar.start()
        self.bar.add_task("starting", total=self.total, completed=step)

    def update(self, step: int, values: Mapping[str, Any], seconds_left: float) -> None:
        """Show the state after `step` steps: epoch, terms, speed, data wait, time left."""
        text = self._describe(step, values, seconds_left)
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=step, description=text)
        elif time.monotonic() - self._last_plain >= PLAIN_SECONDS or step == self.total:
            self._last_plain = time.monotonic()
            self.say(text)

    def stop(self) -> None:
        """Take the live line away."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _describe(self, step: int, values: Mapping[str, Any], seconds_left: float) -> str:
        epoch, epochs = -(-step // self.per_epoch), self.total // self.per_epoch
        names = ("loss", "invariance", "redundancy", "mix", "variance", "covariance")
        terms = "  ".join(f"{name} {values[name]:.4g}" for name in names if name in values)
        knn = f"  k-NN {100 * values['knn']:.1f}%" if values.get("knn") is not None else ""
        speed = f"{values['images_per_s']:,.0f} images/s  data {100 * values['data_wait']:.0f}%"
        return f"epoch {epoch}/{epochs}  {terms}{knn}  {speed}  {clock(seconds_left)} left"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

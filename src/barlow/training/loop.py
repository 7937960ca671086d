"""The loop: batches in, steps, lines logged, validations, checkpoints; leaves cleanly when asked to."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from barlow.config import OutputConfig
from barlow.data import Batch, Loader
from barlow.training.progress import ProgressDisplay
from barlow.training.trainer import Trainer

Record = dict[str, Any]


@dataclass
class Meter:
    """Terms of the steps of one epoch, summed on the device so that no step waits to be read."""

    sums: Tensor | None = None
    names: tuple[str, ...] = ()
    count: int = 0

    def add(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Take one step's terms in; returns them stacked."""
        self.names = tuple(terms)
        values = [value.detach() for value in terms.values()]
        double = values[0].device.type != "mps"  # which has no float64
        stacked = torch.stack([value.double() if double else value.float() for value in values])
        self.sums = stacked if self.sums is None else self.sums + stacked
        self.count += 1
        return stacked

    def means(self) -> dict[str, float]:
        """Mean of each term over the epoch so far; waits for the device."""
        if self.sums is None:
            return {}
        return dict(zip(self.names, (self.sums / self.count).tolist(), strict=True))

    def state_dict(self) -> Record:
        """For the checkpoint: an epoch that is resumed in the middle still reports its whole mean."""
        return {"sums": self.sums, "names": list(self.names), "count": self.count}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "Meter":
        """The meter of `state_dict`."""
        sums = None if state["sums"] is None else state["sums"].to(device)
        return cls(sums, tuple(state["names"]), int(state["count"]))


@dataclass
class Clock:
    """Images per second and the share of time spent waiting for data, over a window of steps."""

    started: float = field(default_factory=time.perf_counter)
    images: int = 0
    waited: float = 0.0

    def add(self, images: int, waited: float) -> None:
        """One step."""
        self.images += images
        self.waited += waited

    def read(self) -> dict[str, float]:
        """The rates since the start."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        return {"images_per_s": self.images / elapsed, "data_wait": min(1.0, self.waited / elapsed)}


@dataclass
class Pending:
    """One logged step whose values are still on their way from the device."""

    record: Record
    names: tuple[str, ...]
    values: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def fetch(cls, record: Record, names: tuple[str, ...], values: Tensor) -> "Pending":
        """Start the copy; `finish` is free once it has arrived."""
        if values.device.type != "cuda":
            return cls(record, names, values, None)
        copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copied.copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return cls(record, names, copied, event)

    def finish(self) -> Record:
        """The complete line."""
        if self.arrived:
            self.arrived.synchronize()
        return {**self.record, **dict(zip(self.names, self.values.tolist(), strict=True))}


@dataclass
class Hooks:
    """What the loop calls back: where lines, checkpoints and validations go, and whether to stop."""

    log: Callable[[Record], None]
    checkpoint: Callable[[Meter], None]
    validate: Callable[[int], Record] | None
    check: Callable[[], None]
    """raises when a term was not finite"""
    stop: Callable[[], bool]
    pause: Callable[[], float]
    """seconds from one checkpoint to the next"""


def train(trainer: Trainer, loader: Loader, hooks: Hooks, display: ProgressDisplay, meter: Meter) -> bool:
    """Run until the last step or until `hooks.stop()`; True when the run is complete."""
    return _Loop(trainer, loader, hooks, display, meter, trainer.config.output).run()


class _Loop:
    def __init__(
        self,
        trainer: Trainer,
        loader: Loader,
        hooks: Hooks,
        display: ProgressDisplay,
        meter: Meter,
        output: OutputConfig,
    ) -> None:
        self.trainer, self.loader, self.hooks, self.display, self.meter = trainer, loader, hooks, display, meter
        self.output, self.plan = output, trainer.plan
        self.window, self.epoch_clock, self.total_clock = Clock(), Clock(), Clock()
        self.pending: Pending | None = None
        self.saved_at = time.monotonic()
        self.last_knn: float | None = None

    def run(self) -> bool:
        self.display.start(self.trainer.step)
        try:
            while self.trainer.step < self.plan.total_steps:
                if not self._epoch():
                    return False
            return True
        finally:
            self.display.stop()

    def _epoch(self) -> bool:
        epoch, start = divmod(self.trainer.step, self.plan.steps_per_epoch)
        self.epoch_clock = Clock()
        with closing(self.loader.epoch(epoch, start)) as batches:
            for batch in batches:
                self._step(batch, epoch)
                if self.trainer.step % self.plan.steps_per_epoch == 0:
                    self._end_epoch(epoch)
                stopping = self.hooks.stop()
                if stopping or self._checkpoint_due():
                    self._save()
                if stopping:
                    return self.trainer.step == self.plan.total_steps
        return True

    def _step(self, batch: Batch, epoch: int) -> None:
        lr = self.trainer.lr
        terms = self.trainer.train_step(batch, epoch)
        values = self.meter.add(terms)
        for clock in (self.window, self.epoch_clock, self.total_clock):
            clock.add(len(batch.ids) * self.plan.world_size, batch.wait_s)
        self.hooks.check()
        step = self.trainer.step
        if step % self.output.log_every == 0 or step == 1:
            self._flush()
            record = {"kind": "step", "step": step, "epoch": epoch + 1, "lr": lr, **self.window.read()}
            self.pending = Pending.fetch(record, self.meter.names, values)
            self.window = Clock()

    def _flush(self) -> None:
        if self.pending is None:
            return
        line, self.pending = self.pending.finish(), None
        self.hooks.log(line)
        self._show(line)

    def _show(self, line: Record) -> None:
        remaining = (self.plan.total_steps - self.trainer.step) * self.plan.local_batch * self.plan.world_size
        rate = self.total_clock.read()["images_per_s"]
        self.display.update(self.trainer.step, {**line, "knn": self.last_knn}, remaining / max(rate, 1e-9))

    def _end_epoch(self, epoch: int) -> None:
        self._flush()
        line = {"kind": "epoch", "step": self.trainer.step, "epoch": epoch + 1, **self.meter.means()}
        line |= self.epoch_clock.read()
        self.hooks.log(line)
        self._show(line)
        self.meter = Meter()
        last = self.trainer.step == self.plan.total_steps
        if self.hooks.validate and ((epoch + 1) % self.plan.validate_every == 0 or last):
            found = self.hooks.validate(epoch + 1)
            self.last_knn = found.get("knn", self.last_knn)
        self.window = Clock()

    def _checkpoint_due(self) -> bool:
        if self.trainer.step == self.plan.total_steps:
            return True
        if self.output.checkpoint_steps is not None:
            return self.trainer.step % self.output.checkpoint_steps == 0
        return time.monotonic() - self.saved_at >= self.hooks.pause()

    def _save(self) -> None:
        self._flush()
        self.hooks.checkpoint(self.meter)
        self.saved_at = time.monotonic()

"""NaN and infinity: noticed without stopping the device, and kept so that the step can be run again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from barlow.records import typed
from barlow.training.checkpoint import State, load, save_file

NEVER = torch.iinfo(torch.int64).max


class KeptBatch(TypedDict):
    """The samples of the failing step, of all ranks."""

    ids: Tensor
    epoch: int
    images: Any
    cuts: Any
    reference: Tensor | None
    micro_batch: int | None


class Kept(TypedDict):
    """What a replay file holds."""

    step: int
    quantities: list[str]
    batch: dict[str, Any]
    """a `KeptBatch`, where it is of a run"""
    state: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """The first step at which named quantities were not finite."""

    step: int
    quantities: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' and '.join(self.quantities)} not finite at step {self.step}"


class NonFiniteWatch:
    """Remembers on the device the first step at which each watched quantity was NaN or infinite.

    `guard` makes an optimizer skip every update from that step on, so that by the time the host hears of it weights and
    momenta are still the ones that the failing step began with.
    """

    def __init__(self, device: torch.device) -> None:
        self.tripped = torch.zeros((), device=device)  # float32 0 or 1: what fused optimizers take
        self._names: tuple[str, ...] = ()
        self._first = torch.empty(0, dtype=torch.int64, device=device)
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def guard(self, optimizer: Optimizer) -> None:
        """From now on the optimizer's steps do nothing once a fault has happened (fused ones and LARS)."""
        optimizer.found_inf = self.tripped  # type: ignore[attr-defined]  # torch's protocol with GradScaler
        optimizer.grad_scale = None  # type: ignore[attr-defined]

    @torch.no_grad()
    def update(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Look at the scalars of a step, always the same names, on the device; call before the optimizer's step."""
        if not self._names:
            self._names = tuple(values)
            self._first = torch.full((len(values),), NEVER, device=self.tripped.device)
        bad = ~torch.isfinite(torch.stack([values[name].detach().float() for name in self._names]))
        self._first = torch.where(bad, self._first.clamp(max=step), self._first)
        self.tripped.logical_or_(bad.any())

    def poll(self, *, wait: bool = False) -> Fault | None:
        """The first fault, if any is known. On CUDA without `wait` the answer lags a few steps and costs no sync."""
        if not self._names:
            return None
        if self._first.device.type != "cuda" or wait:
            return self._fault(self._first.cpu())
        if self._copied is None:
            self._host = torch.empty_like(self._first, device="cpu", pin_memory=True)
            self._host.copy_(self._first, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        if not self._copied.query() or self._host is None:  # type: ignore[no-untyped-call]
            return None
        self._copied = None
        return self._fault(self._host)

    def _fault(self, first: Tensor) -> Fault | None:
        steps: list[int] = first.tolist()
        step = min(steps)
        if step == NEVER:
            return None
        return Fault(step, tuple(n for n, s in zip(self._names, steps, strict=True) if s == step))


def nonfinite_gradients(module: nn.Module) -> list[str]:
    """Names of the parameters whose gradient holds a NaN or an infinity. Waits for the device."""
    return [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]


def save_replay(folder: Path, fault: Fault, *, batch: State, state: State) -> Path:
    """Keep what `barlow replay` needs to run the failing step again.

    batch: tensors and plain values of the batch (sample ids, epoch, images). state: the training state before the step.
    Returns the file. Raises CheckpointError when it cannot be written.
    """
    content: dict[str, Any] = {"step": fault.step, "quantities": list(fault.quantities), "batch": batch, "state": state}
    return save_file(content, folder / f"replay-{fault.step:09d}.pt")


def load_replay(folder: Path) -> tuple[Fault, State, State] | None:
    """The latest kept fault with its batch and its state; None when the run had none.

    Raises CheckpointError for a damaged file and InputError for one that is no replay.
    """
    files = sorted(folder.glob("replay-*.pt"))
    if not files:
        return None
    content = typed(load(files[-1]), Kept, files[-1])
    return Fault(content["step"], tuple(content["quantities"])), content["batch"], content["state"]

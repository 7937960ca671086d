"""How much memory a step will take, what the device has, and what to change when it does not fit.

The network is run forward and backward on fake tensors (shapes without data): nothing is computed or allocated, and
every tensor that the real step would hold is counted while it lives.
"""

import copy
import math
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from barlow.data.memory import group_rooms, local_ranks
from barlow.models.sync_norm import GlobalBatchNorm
from barlow.training.gradient_cache import part_sizes

STATES_PER_WEIGHT = {"muon": 1, "adamw": 2, "adam": 2, "lars": 1, "sgd": 1}
# Share of the free memory that tensors can fill. Measured on the CPU, where glibc's allocator fragments: ResNet-18 at
# 32 px, batch 96, took 1.23 (channels last) and 1.43 times the estimate, and 1.04 times with every tensor in a mapping
# of its own (tests/training/test_memory.py). GPUs keep some for workspaces.
USABLE_SHARE = {"cpu": 0.7, "cuda": 0.9, "mps": 0.8}


class NotEstimated(Exception):  # noqa: N818  a run can do without
    """The network does not run on tensors without data; the text says why, in a few words."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank's device at the peak of a step."""

    weights: int
    """weights and buffers, and their moving average"""
    optimizer: int
    """momenta"""
    gradients: int
    activations: int
    """what the encoder's forward passes leave for the backward pass"""
    projector: int
    """the same for the projector, embeddings included"""
    loss: int
    """standardised embeddings and correlation or Gram matrices, with their gradients"""
    workspace: int
    """temporaries of the passes beyond what they leave"""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {gib(getattr(self, field.name))}" for field in fields(self))
        return f"{gib(self.total)} ({parts})"


def estimate_memory(
    encoder: nn.Module,
    projector: nn.Module,
    *,
    view_shapes: Sequence[tuple[int, ...]],
    batch: int,
    micro_batch: int | None = None,
    world_size: int = 1,
    device: str = "cpu",
    precision: str = "float32",
    optimizer: str = "adamw",
    form: str = "auto",
    ema: bool = False,
) -> MemoryEstimate:
    """The memory of one training step, without running it.

    view_shapes: shape of a sample in each of the views that go through the network, e.g. [(3, 224, 224)] * 2 (three
    for Mixed Barlow Twins). batch: samples per rank. micro_batch: samples per forward pass of the gradient cache.
    form: of the objective. Batch norms are counted as local ones. Raises NotEstimated where the network cannot run on
    fake tensors.
    """
    passes = [(shape, batch) for shape in view_shapes]
    if micro_batch is not None and micro_batch < batch:
        passes = [(max(view_shapes, key=math.prod), max(part_sizes(batch, micro_batch)))]
    encoder_bytes, projector_bytes, peak, width = _measured(encoder, projector, passes, device, precision)
    trained = sum(p.nbytes for p in {p for m in (encoder, projector) for p in m.parameters()} if p.requires_grad)
    held = encoder_bytes + projector_bytes
    if len(passes) < len(view_shapes) or micro_batch is not None:
        projector_bytes += 2 * 4 * len(view_shapes) * batch * width  # the cache: embeddings and their gradients
    return MemoryEstimate(
        weights=weight_bytes(encoder, projector, ema=ema),
        optimizer=STATES_PER_WEIGHT[optimizer] * trained,
        gradients=trained,
        activations=encoder_bytes,
        projector=projector_bytes,
        loss=loss_bytes(len(view_shapes), batch * world_size, width, form),
        workspace=max(0, peak - held - trained),
    )


def weight_bytes(encoder: nn.Module, projector: nn.Module, *, ema: bool = False) -> int:
    """Bytes of weights, buffers and the encoder's moving average: what is on the device before the first step."""
    weights = sum(p.nbytes for p in {p for m in (encoder, projector) for p in m.parameters()})
    buffers = sum(b.nbytes for m in (encoder, projector) for b in m.buffers())
    averaged = sum(t.nbytes for t in (*encoder.parameters(), *encoder.buffers())) if ema else 0
    return weights + buffers + averaged


def loss_bytes(views: int, samples: int, width: int, form: str = "auto") -> int:
    """Bytes of the objective over `samples` of the global batch: float32 embeddings [N, D] per view, standardised, and
    their gradients; and per pair of views one matrix with its gradient, [N, N] in the Gram form, else [D, D]."""
    side = samples if form == "gram" or (form == "auto" and samples < width) else width
    matrices = views if side == samples else views * (views - 1) // 2
    return 4 * (3 * views * samples * width + 2 * matrices * side * side)


def available_bytes(device: str) -> int:
    """Memory that a new process could still take on `device`: the least of the machine's and the container's; the
    CPU's is divided by the ranks of the machine."""
    kind = torch.device(device).type
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if kind == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min([_machine_bytes(), *group_rooms()]) // local_ranks()


def usable_bytes(device: str, available: int) -> int:
    """What a step's tensors may take of `available` bytes."""
    return int(USABLE_SHARE[torch.device(device).type] * available)


def choose_micro_batch(needed: Callable[[int], int], batch: int, usable: int) -> int:
    """The largest of batch, batch/2, batch/4, ... (rounded up, at least 2) whose `needed(micro_batch)` is `usable`."""
    size = batch
    while size > 2 and needed(size) > usable:
        size = max(2, -(-size // 2))
    return size


def oom_advice(settings: Mapping[str, Callable[[], int]], usable: int, *, most: int = 3) -> str:
    """One line: the first three of `settings` (flags, mapped to the bytes a step would then need) that fit."""
    fitting: list[str] = []
    for flags, needed in settings.items():
        size = needed()
        if size <= usable:
            fitting.append(f"{flags} (about {gib(size)})")
        if len(fitting) == most:
            break
    has = f"out of memory: the device has room for {gib(usable)}."
    if not fitting:
        return f"{has} None of the usual settings would fit: use a smaller encoder, image size or projector."
    return f"{has} Would fit: {', or '.join(fitting)}."


# oneDNN names no reason when it finds no room for a kernel; an operation that it lacks ends in "primitive descriptor".
NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc"
    "|could not create a (primitive(?! descriptor)|memory)"
)
"""Words in the errors of torch, its libraries and the system when memory ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU (where torch raises RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error).lower()) is not None


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operations made and that are still alive: `live`, and at most `peak`."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._alive: dict[int, Any] = {}
        self._known = [t.untyped_storage() for t in known]  # held, so that no id is used twice
        self._known_ids = {s._cdata for s in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or key in self._known_ids:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._free(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        del self._alive[key]
        self.live -= size


class _LocalNorm(_BatchNorm):
    """A batch norm that asks no other rank, with the dropout and the activation that timm's may hold."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any."""

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        for name in ("drop", "act"):
            out = getattr(self, name)(out) if hasattr(self, name) else out
        return out


def _measured(
    encoder: nn.Module, projector: nn.Module, passes: Sequence[tuple[tuple[int, ...], int]], device: str, precision: str
) -> tuple[int, int, int, int]:
    """As `_measure`; raises NotEstimated for whatever the caller's module raises for want of data."""
    try:
        return _measure(encoder, projector, passes, device, precision)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise NotEstimated("what the network does depends on the values it meets") from error
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise NotEstimated(f"{type(error).__name__} on tensors without data: {first[:100]}") from error


def _measure(
    encoder: nn.Module,
    projector: nn.Module,
    passes: Sequence[tuple[tuple[int, ...], int]],
    device: str,
    precision: str,
) -> tuple[int, int, int, int]:
    """Bytes left by the encoder's and by the projector's passes, peak with gradients, and the embeddings' width."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network, tensors = _fake(nn.ModuleList([encoder, projector]), device)
        by_encoder = by_projector = 0
        with _LiveBytes(tensors) as tracker:
            embeddings = []
            for shape, samples in passes:
                before = tracker.live
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                    features = network[0](torch.empty((samples, *shape), device=device))
                    middle = tracker.live
                    embeddings.append(network[1](features))
                    del features
                by_encoder, by_projector = by_encoder + middle - before, by_projector + tracker.live - middle
            width = embeddings[0].shape[1]
            torch.autograd.backward([z.sum() for z in embeddings])
        return by_encoder, by_projector, tracker.peak, width


def _fake(network: nn.ModuleList, device: str) -> tuple[nn.ModuleList, list[Tensor]]:
    """The network's structure over fake tensors on `device`, in training mode; the network itself is left alone."""
    fakes = {id(t): _fake_tensor(t, device) for t in (*network.parameters(), *network.buffers())}
    copied: nn.ModuleList = copy.deepcopy(network, dict(fakes)).train()  # the memo puts the fakes in place
    norms: list[Any] = [m for m in copied.modules() if isinstance(m, nn.SyncBatchNorm | GlobalBatchNorm)]
    for norm in norms:
        norm.__class__ = _LocalNorm
    return copied, list(fakes.values())


def _fake_tensor(tensor: Tensor, device: str) -> Tensor:
    """Within a fake mode: the same shape and layout without data."""
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _machine_bytes() -> int:
    """Memory of the machine that can be had without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(values["MemAvailable"].split()[0]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**62  # unknown: no limit is claimed

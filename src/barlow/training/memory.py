"""How much memory a step will take, what the device has, and what to change when it does not fit.

The network is run forward and backward on fake tensors (shapes without data): nothing is computed or allocated, and
every tensor that the real step would hold is counted while it lives.
"""

import copy
import math
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from barlow.config import PretrainConfig
from barlow.data.memory import group_rooms, local_ranks
from barlow.errors import InputError
from barlow.methods.method import Method
from barlow.methods.mixed_barlow_twins import MixedBarlowTwins
from barlow.models.network import TwinNetwork
from barlow.models.sync_norm import GlobalBatchNorm
from barlow.plan import Plan, choose_optimizer
from barlow.training.gradient_cache import part_sizes
from barlow.views import Recipe, ViewRecipe

STATES_PER_WEIGHT = {"muon": 1, "adamw": 2, "adam": 2, "lars": 1, "sgd": 1}
# Share of the free memory that tensors can fill. On the CPU glibc's allocator fragments: ResNet-18 at 32 px took up to
# 1.43 times the estimate, and 1.04 times with every tensor in a mapping of its own. GPUs keep some for workspaces.
USABLE_SHARE = {"cpu": 0.7, "cuda": 0.9, "mps": 0.8}
# oneDNN names no reason when it finds no room for a kernel; an operation that it lacks ends in "primitive descriptor".
NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc"
    "|could not create a (primitive(?! descriptor)|memory)"
)


class NotEstimated(Exception):  # noqa: N818  a run can do without
    """The network does not run on tensors without data; the text says why, in a few words."""


class MemoryEstimate(NamedTuple):
    """Bytes on one rank's device at the peak of a step; `activations` and `projector` wait for the backward pass."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    projector: int
    loss: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        return f"{gib(self.total)} ({', '.join(f'{name} {gib(size)}' for name, size in self._asdict().items())})"


class StepMemory:
    """The memory of one step of a run, for its own settings and for others.

    Made when network and data are on the device and nothing else of a step is: after a failed step the free memory
    would be less, because momenta are allocated and the traceback holds activations.
    """

    def __init__(
        self,
        config: PretrainConfig,
        plan: Plan,
        network: TwinNetwork,
        method: Method,
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        self.config, self.plan, self.method, self.encoder = config, plan, method, network.encoder
        self.projector = network.projector if network.head is None else nn.Sequential(network.projector, network.head)
        self.shapes = list(shapes) if method.takes_all_views else list(shapes[:2])
        if isinstance(method, MixedBarlowTwins):
            self.shapes.append(self.shapes[0])
        remembered = sum(tensor.nbytes for tensor in method.memory.state_dict().values())
        self.weights = weight_bytes(self.encoder, self.projector, ema=config.model.ema is not None) + remembered
        self.available = available_bytes(plan.device) + self.weights
        self.usable = int(USABLE_SHARE[torch.device(plan.device).type] * self.available)

    def estimate(self, *, batch: int | None = None, micro_batch: int | None = None) -> MemoryEstimate:
        """Bytes of a step on one rank. Raises NotEstimated where the encoder does not run without data."""
        batch = batch or self.plan.local_batch
        estimate = estimate_memory(
            self.encoder,
            self.projector,
            view_shapes=self.shapes,
            batch=batch,
            micro_batch=micro_batch,
            world_size=self.plan.world_size,
            device=self.plan.device,
            precision=self.plan.precision,
            optimizer=choose_optimizer(self.config.optimizer.optimizer, self.plan.encoder),
            form=self.config.objective.form,
            ema=self.config.model.ema is not None,
        )
        # Contrastive losses compare the samples of two views in a matrix of scores, with its softmax and gradient.
        contrasted = 3 * 4 * (2 * batch) * self.method.compared_samples()
        return estimate._replace(weights=self.weights, loss=estimate.loss + contrasted)

    def micro_batch(self) -> int | None:
        """`--micro-batch` as it is, or for `auto` the largest of batch, batch/2, batch/4, ... that fits; None for all.

        Raises InputError for `auto` where a step cannot be estimated.
        """
        setting, batch = self.config.training.micro_batch, self.plan.local_batch
        if setting != "auto":
            return None if setting is None else int(setting)
        size: int | None = None
        try:
            while size != 2 and self.estimate(micro_batch=size).total > self.usable:
                size = max(2, -(-(size or batch) // 2))
        except NotEstimated as error:
            raise InputError(f"--micro-batch auto cannot tell what fits ({error}); give a number instead") from error
        return None if size == batch else size

    def describe(self, micro_batch: int | None) -> str:
        """One line for the person who starts the run."""
        micro = f", micro-batches of {micro_batch}" if micro_batch else ""
        try:
            return f"about {self.estimate(micro_batch=micro_batch)} of {gib(self.available)}{micro}"
        except NotEstimated as error:
            return f"not estimated ({error}); the device has {gib(self.available)}{micro}"

    def advice(self) -> str:
        """One line after memory ran out: three smaller micro-batches, where the method can, or batches that fit."""
        batch, settings, fitting = self.plan.local_batch, dict[str, dict[str, int]](), list[str]()
        for share in (2, 4, 8, 16):
            micro = min(batch, self.micro_batch() or batch) // share
            if micro >= 2 and self.method.is_lean(self.config.objective):
                settings[f"--micro-batch {micro}"] = {"micro_batch": micro}
            if batch // share >= 2:
                settings[f"--batch-size {batch // share * self.plan.world_size}"] = {"batch": batch // share}
        start = f"out of memory: the device has room for {gib(self.usable)}."
        try:
            for flags, sizes in settings.items():
                needed = self.estimate(**sizes).total
                if needed <= self.usable and len(fitting) < 3:
                    fitting.append(f"{flags} (about {gib(needed)})")
        except NotEstimated:
            return f"{start} Try {' or '.join(list(settings)[:2])}."
        if not fitting:
            return f"{start} None of the usual settings would fit: use a smaller encoder, image size or projector."
        return f"{start} Would fit: {', or '.join(fitting)}."


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
    encoder_bytes, projector_bytes, peak, width = _measure(encoder, projector, passes, device, precision)
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


def view_shapes(recipe: Recipe, plan: Plan) -> list[tuple[int, ...]]:
    """Shape of a sample in every view that the recipe makes."""
    if plan.kind == "table":
        return [(plan.channels,)] * recipe.view_count
    if plan.kind == "signal":
        return [(plan.channels, plan.spatial[1])] * recipe.view_count
    sizes = [
        view.size or plan.image_size for view in recipe.views if isinstance(view, ViewRecipe) for _ in range(view.count)
    ]
    return [(plan.channels, size, size) for size in sizes]


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


@contextmanager
def placing(device: str) -> Iterator[None]:
    """A region that puts the network and its data on the device. Raises InputError where memory runs out in it."""
    free = available_bytes(device)
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"out of memory: {device} had {gib(free)} for the network and what is kept beside it; use a smaller "
            "encoder, --projector or --image-size, or end what else runs there"
        ) from error


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

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._weights = [t.untyped_storage() for t in weights]  # held, so that no id is used twice
        self._seen = {storage._cdata for storage in self._weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
        return out

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
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


@contextmanager
def _data_not_needed() -> Iterator[None]:
    """Raises NotEstimated for whatever the caller's module raises for want of data."""
    try:
        yield
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
    with _data_not_needed(), FakeTensorMode(allow_non_fake_inputs=True):
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
    fakes = dict[int, Tensor]()
    for t in (*network.parameters(), *network.buffers()):
        fake = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
        fakes[id(t)] = nn.Parameter(fake, t.requires_grad) if isinstance(t, nn.Parameter) else fake
    copied: nn.ModuleList = copy.deepcopy(network, {**fakes}).train()  # the memo puts the fakes in place
    norms: list[Any] = [m for m in copied.modules() if isinstance(m, nn.SyncBatchNorm | GlobalBatchNorm)]
    for norm in norms:
        norm.__class__ = _LocalNorm
    return copied, list(fakes.values())


def _machine_bytes() -> int:
    """Memory of the machine that can be had without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(values["MemAvailable"].split()[0]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**62  # unknown: no limit is claimed

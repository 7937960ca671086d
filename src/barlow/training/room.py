"""Does the run fit? The memory of a step before it is taken, and what would fit when it does not."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from barlow.config import PretrainConfig
from barlow.errors import InputError
from barlow.methods.method import Method
from barlow.methods.mixed_barlow_twins import MixedBarlowTwins
from barlow.models.network import TwinNetwork
from barlow.plan import Plan, choose_optimizer
from barlow.training.memory import (
    MemoryEstimate,
    NotEstimated,
    available_bytes,
    choose_micro_batch,
    estimate_memory,
    gib,
    is_out_of_memory,
    oom_advice,
    usable_bytes,
    weight_bytes,
)
from barlow.views import Recipe, ViewRecipe

Shapes = Sequence[tuple[int, ...]]


class Room:
    """The memory of one step of a run, for its own settings and for others.

    Made when network and data are where they stay and nothing else of a step is: what the device has for a step is what
    is free then and what the network has taken. Asked after a step has failed, it would be less: momenta are allocated,
    and the traceback holds activations.
    """

    def __init__(
        self, config: PretrainConfig, plan: Plan, network: TwinNetwork, method: Method, shapes: Shapes
    ) -> None:
        self.config, self.plan, self.network = config, plan, network
        self.method = method
        shapes = list(shapes) if method.takes_all_views else list(shapes[:2])
        self.shapes = [*shapes, shapes[0]] if isinstance(method, MixedBarlowTwins) else shapes
        self.available = available_bytes(plan.device) + self._placed()
        self.usable = usable_bytes(plan.device, self.available)

    def _projector(self) -> nn.Module:
        """Projector and head, where there is one."""
        head, projector = self.network.head, self.network.projector
        return projector if head is None else nn.Sequential(projector, head)

    def _placed(self) -> int:
        """Bytes of a step that are on the device before the first one."""
        ema = self.config.model.ema is not None
        return weight_bytes(self.network.encoder, self._projector(), ema=ema) + self._remembered()

    def _remembered(self) -> int:
        return sum(tensor.nbytes for tensor in self.method.memory.state_dict().values())

    def estimate(self, *, batch: int | None = None, micro_batch: int | None = None, form: str = "") -> MemoryEstimate:
        """Bytes of a step on one rank. Raises NotEstimated where the encoder does not run without data."""
        batch = batch or self.plan.local_batch
        found = estimate_memory(
            self.network.encoder,
            self._projector(),
            view_shapes=self.shapes,
            batch=batch,
            micro_batch=micro_batch,
            world_size=self.plan.world_size,
            device=self.plan.device,
            precision=self.plan.precision,
            optimizer=choose_optimizer(self.config.optimizer.optimizer, self.plan.encoder),
            form=form or self.config.objective.form,
            ema=self.config.model.ema is not None,
        )
        contrasted = self._contrasted(batch)
        return dataclasses.replace(found, weights=found.weights + self._remembered(), loss=found.loss + contrasted)

    def _contrasted(self, batch: int) -> int:
        """Bytes of the matrices in which the samples of two views are compared: scores, softmax and gradient."""
        return 3 * 4 * (2 * batch) * self.method.compared_samples()

    def micro_batch(self) -> int | None:
        """What `--micro-batch` asks for: a number as it is, `auto` the largest that fits, none when all of it does.

        Raises InputError for `auto` where a step cannot be estimated.
        """
        asked = self.config.training.micro_batch
        if asked is None or asked != "auto":
            return None if asked is None else int(asked)
        whole = self.plan.local_batch
        try:
            fits = choose_micro_batch(self._needed, whole, self.usable)
        except NotEstimated as error:
            raise InputError(f"--micro-batch auto cannot tell what fits ({error}); give a number instead") from error
        return None if fits >= whole else fits

    def _needed(self, micro_batch: int) -> int:
        return self.estimate(micro_batch=micro_batch if micro_batch < self.plan.local_batch else None).total

    def describe(self, micro_batch: int | None) -> str:
        """One line for the person who starts the run."""
        micro = f", micro-batches of {micro_batch}" if micro_batch else ""
        try:
            return f"about {self.estimate(micro_batch=micro_batch)} of {gib(self.available)}{micro}"
        except NotEstimated as error:
            return f"not estimated ({error}); the device has {gib(self.available)}{micro}"

    def advice(self) -> str:
        """One line after memory ran out: three settings that would fit."""
        try:
            return oom_advice(self._settings(), self.usable)
        except NotEstimated:
            flags = " or ".join(list(self._settings())[:2])
            return f"out of memory: the device has room for {gib(self.usable)}. Try {flags}."

    def _settings(self) -> dict[str, Callable[[], int]]:
        """Smaller micro-batches, where the method can, and batches; with the bytes that a step would then need."""
        batch, settings = self.plan.local_batch, dict[str, Callable[[], int]]()
        micro = min(batch, self.micro_batch() or batch)  # larger ones than now would not help, whatever they need
        for share in (2, 4, 8, 16):
            if micro // share >= 2 and self.method.is_lean(self.config.objective):
                settings[f"--micro-batch {micro // share}"] = lambda n=micro // share: self._needed(n)  # type: ignore[misc]
            if batch // share >= 2:
                total = batch // share * self.plan.world_size
                settings[f"--batch-size {total}"] = lambda n=batch // share: self.estimate(batch=n).total  # type: ignore[misc]
        return settings


@contextmanager
def placing(device: str) -> Iterator[None]:
    """A region that puts what a run keeps on the device. Raises InputError where memory runs out in it."""
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

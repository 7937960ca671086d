"""Does the run fit? The memory of a step before it is taken, and what would fit when it does not."""

import dataclasses
from collections.abc import Callable, Sequence

from torch import nn

from barlow.config import PretrainConfig, is_lean
from barlow.training.memory import (
    MemoryEstimate,
    available_bytes,
    choose_micro_batch,
    estimate_memory,
    gib,
    oom_advice,
    usable_bytes,
)
from barlow.training.methods import Method
from barlow.training.network import TwinNetwork
from barlow.training.plan import Plan
from barlow.views import Recipe, ViewRecipe

Shapes = Sequence[tuple[int, ...]]


class Room:
    """The memory of one step of a run, for its own settings and for others."""

    def __init__(
        self, config: PretrainConfig, plan: Plan, network: TwinNetwork, method: Method, shapes: Shapes
    ) -> None:
        self.config, self.plan, self.network = config, plan, network
        self.memory = method.memory
        chosen = config.objective.method
        mixes, all_views = chosen == "mixed-barlow-twins", chosen == "barlow-twins"
        self.shapes = [*shapes, shapes[0]] if mixes else list(shapes if all_views else shapes[:2])

    def estimate(self, *, batch: int | None = None, micro_batch: int | None = None, form: str = "") -> MemoryEstimate:
        """Bytes of a step on one rank."""
        batch = batch or self.plan.local_batch
        head = self.network.head
        found = estimate_memory(
            self.network.encoder,
            self.network.projector if head is None else nn.Sequential(self.network.projector, head),
            view_shapes=self.shapes,
            batch=batch,
            micro_batch=micro_batch,
            world_size=self.plan.world_size,
            device=self.plan.device,
            precision=self.plan.precision,
            optimizer=self.config.optimizer.optimizer,
            form=form or self.config.objective.form,
            ema=self.config.model.ema is not None,
            parts=self.plan.world_size if self.config.training.fsdp else 1,
        )
        remembered = sum(tensor.nbytes for tensor in self.memory.state_dict().values())
        contrasted = self._contrasted(batch)
        return dataclasses.replace(found, weights=found.weights + remembered, loss=found.loss + contrasted)

    def _contrasted(self, batch: int) -> int:
        """Bytes of the matrices in which the samples of two views are compared: scores, softmax and gradient."""
        others = 0
        if self.config.objective.method == "simclr":
            others = 2 * batch * self.plan.world_size
        if "queue" in self.memory:
            others = len(self.memory.state_dict()["queue.rows"])
        return 3 * 4 * (2 * batch) * others

    def micro_batch(self) -> int | None:
        """What `--micro-batch` asks for: a number as it is, `auto` the largest that fits, none when all of it does."""
        asked = self.config.training.micro_batch
        if asked is None or asked != "auto":
            return None if asked is None else int(asked)
        whole = self.plan.local_batch
        fits = choose_micro_batch(self._needed, whole, usable_bytes(self.plan.device))
        return None if fits >= whole else fits

    def _needed(self, micro_batch: int) -> int:
        return self.estimate(micro_batch=micro_batch if micro_batch < self.plan.local_batch else None).total

    def describe(self, micro_batch: int | None) -> str:
        """One line for the person who starts the run."""
        micro = f", micro-batches of {micro_batch}" if micro_batch else ""
        return f"about {self.estimate(micro_batch=micro_batch)} of {gib(available_bytes(self.plan.device))}{micro}"

    def advice(self) -> str:
        """One line after memory ran out: three settings that would fit."""
        batch = self.plan.local_batch
        halves = [size for size in (batch // 2, batch // 4, batch // 8, batch // 16) if size >= 2]
        settings: dict[str, Callable[[], int]] = {}
        for size in halves:
            if is_lean(self.config.objective):
                settings[f"--micro-batch {size}"] = lambda size=size: self._needed(size)  # type: ignore[misc]
            total = size * self.plan.world_size
            settings[f"--batch-size {total}"] = lambda size=size: self.estimate(batch=size).total  # type: ignore[misc]
        return oom_advice(settings, usable_bytes(self.plan.device))


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

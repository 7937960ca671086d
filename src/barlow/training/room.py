"""Does the run fit? The memory of a step before it is taken, and what would fit when it does not."""

from collections.abc import Callable, Sequence

from barlow.config import PretrainConfig
from barlow.training.memory import (
    MemoryEstimate,
    available_bytes,
    choose_micro_batch,
    estimate_memory,
    gib,
    oom_advice,
    usable_bytes,
)
from barlow.training.network import TwinNetwork
from barlow.training.plan import Plan
from barlow.views import Recipe, ViewRecipe

Shapes = Sequence[tuple[int, ...]]


class Room:
    """The memory of one step of a run, for its own settings and for others."""

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, shapes: Shapes) -> None:
        self.config, self.plan, self.network = config, plan, network
        mixes = config.objective.method == "mixed-barlow-twins"
        self.shapes = [*shapes, shapes[0]] if mixes else list(shapes)

    def estimate(self, *, batch: int | None = None, micro_batch: int | None = None, form: str = "") -> MemoryEstimate:
        """Bytes of a step on one rank."""
        return estimate_memory(
            self.network.encoder,
            self.network.projector,
            view_shapes=self.shapes,
            batch=batch or self.plan.local_batch,
            micro_batch=micro_batch,
            world_size=self.plan.world_size,
            device=self.plan.device,
            precision=self.plan.precision,
            optimizer=self.config.optimizer.optimizer,
            form=form or self.config.objective.form,
            ema=self.config.model.ema is not None,
            parts=self.plan.world_size if self.config.training.fsdp else 1,
        )

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

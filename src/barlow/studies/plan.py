"""From a study, data and settings to cells: every one with its full config and the key that stands for it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from barlow.config import PretrainConfig, config_from_settings, config_to_dict
from barlow.data import Source, describe, identity
from barlow.errors import InputError, suggest
from barlow.methods import check_options
from barlow.models.encoders import Architecture, timm_options
from barlow.plan import choose_image_size, choose_recipe, resolve_recipe, split_indices
from barlow.studies.settings import apply, choose_levels
from barlow.studies.study import Axis, Study, grid

BUDGETS: Mapping[str, Mapping[str, Any]] = {
    "full": {"epochs": 200, "projector": (512, 1024)},
    "small": {
        "encoder": "resnet10-narrow",
        "projector": (512, 512),
        "epochs": 8,
        "batch_size": 64,
        "holdout": 0.3,
        "validate_every": 4,
    },
}
"""Settings of all cells, under those of the study: `full` for a GPU and tens of thousands of images, `small` for a
thousand images on two cores, where a larger share is held out so that scores can be told apart."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    study: str
    levels: Mapping[str, str]
    seed: int
    config: PretrainConfig
    key: str
    skipped: str = ""
    """why the data does not allow it, or nothing"""

    @property
    def label(self) -> str:
        """Levels and seed in words."""
        return ", ".join([*(f"{axis} {level}" for axis, level in self.levels.items()), f"seed {self.seed}"])


@dataclass(frozen=True)
class StudyPlan:
    """A study's axes as chosen, and its cells: all seeds of one combination before the next."""

    study: Study
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]


def make_plan(
    study: Study, source: Source, *, seeds: int = 3, settings: Mapping[str, Any] | None = None, budget: str = "full"
) -> StudyPlan:
    """The cells of a study on this data.

    A cell's settings are, from weak to strong: the budget's, the study's, those of its levels, and `settings` (see
    `settings.apply`). Raises InputError for an unknown budget or setting, a wrong value, an encoder or a recipe that
    does not exist, and fewer than one seed.
    """
    if budget not in BUDGETS:
        raise InputError(f"unknown budget '{budget}'. {suggest(budget, BUDGETS)}")
    if seeds < 1:
        raise InputError(f"--seeds must be 1 or more, got {seeds}")
    axes, given = apply(_thinned(study) if budget == "small" else study, settings or {})
    own = {**study.settings, **(study.small if budget == "small" else {})}
    data, cells = data_identity(source), []
    about = describe(source)
    recipe = choose_recipe(source, about.channels, choose_image_size(about))
    for levels, varied in grid(axes):
        config = config_from_settings(_on_recipe({**BUDGETS[budget], **own, **given, **varied}, recipe))
        check_names(config)
        cells += [_cell(study, levels, config, seed, source, data) for seed in range(seeds)]
    return StudyPlan(study, axes, tuple(cells))


def _on_recipe(settings: dict[str, Any], recipe: str) -> dict[str, Any]:
    """`auto:crop-only` as the chain of the recipe that fits the data."""
    name, colon, chain = str(settings.get("recipe", "")).partition(":")
    return {**settings, "recipe": f"{recipe}:{chain}"} if colon and name == "auto" else settings


def check_names(config: PretrainConfig) -> None:
    """Raise InputError for an encoder or a recipe that does not exist, or a recipe file that cannot be read."""
    if config.views.recipe != "auto":
        resolve_recipe(config.views.recipe)
    check_options(config)
    if config.model.encoder != "auto":
        timm_options(Architecture(config.model.encoder, 3, 224, "standard"))  # knows the names, builds nothing


def _thinned(study: Study) -> Study:
    kept = study.small_levels
    axes = [choose_levels(axis, kept[axis.name]) if axis.name in kept else axis for axis in study.axes]
    return Study(**{**vars(study), "axes": tuple(axes)})


def _cell(
    study: Study, levels: Mapping[str, str], config: PretrainConfig, seed: int, source: Source, data: str
) -> Cell:
    seeded = config_from_settings({"seed": seed}, config)
    train, _ = split_indices(seeded, source)
    batch = seeded.training.batch_size
    if study.snapshots and batch <= len(train):
        steps = max(1, len(train) // batch * seeded.training.epochs // study.snapshots)
        kept = {"checkpoint_steps": steps, "keep_checkpoints": 2 * study.snapshots}
        seeded = config_from_settings(kept, seeded)
    few = f"batch {batch:,} is more than the {len(train):,} samples to train on" if batch > len(train) else ""
    return Cell(study.name, levels, seed, seeded, cell_key(seeded, data), study.left_out(levels) or few)


def cell_key(config: PretrainConfig, data: str) -> str:
    """What a cell is filed under: a hash of every setting, the seed among them, and of the data.

    Of a recipe file what it says counts, beside its name.
    """
    parts: list[object] = [config_to_dict(config), data]
    if config.views.recipe.endswith(".toml"):
        parts.append(resolve_recipe(config.views.recipe).to_dict())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def data_identity(source: Source) -> str:
    """A hash of the samples and their labels: the same for a copy on another machine."""
    digest = hashlib.sha256(json.dumps([source.kind, source.channels, identity(source)]).encode())
    digest.update(b"" if source.labels is None else source.labels.tobytes())
    return digest.hexdigest()


def share_of(cells: tuple[Cell, ...], share: str) -> tuple[Cell, ...]:
    """The cells of share "i/n", i from 1 to n: disjoint, together all. InputError for what is no share."""
    if not share:
        return cells
    first, slash, last = share.partition("/")
    if not (slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise InputError(f"--cells takes i/n with 1 <= i <= n, such as 1/4, got '{share}'")
    return cells[int(first) - 1 :: int(last)]

"""The picture of `barlow views`: what a recipe does to this data."""

from pathlib import Path
from typing import Any

import numpy as np

from barlow.config import config_from_settings
from barlow.data import CorruptSample, Source, open_source
from barlow.data.files import FolderSource, is_picture_name
from barlow.errors import InputError
from barlow.files import check_outputs
from barlow.plan import make_plan, resolve_recipe
from barlow.views import ViewMaker, grid, view_maker


def draw_views(
    data: Any,
    out: str | Path,
    *,
    recipe: str = "auto",
    samples: int = 8,
    image_size: int | None = None,
    seed: int = 0,
    channels: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a PNG with originals and their views in two epochs; the settings are those `pretrain` would choose.

    Raises InputError for data that are not images, an unknown recipe, fewer than one sample, and an `out` that barlow
    did not write unless `overwrite`.
    """
    if samples < 1:
        raise InputError(f"--samples must be 1 or more, got {samples}")
    check_outputs([Path(out)], inputs=[data], overwrite=overwrite)
    source = data if isinstance(data, Source) else open_source(data, channels=channels)
    if source.kind != "image":
        raise InputError(f"{source.name} holds {source.kind} samples; only views of images can be drawn")
    inside = isinstance(source, FolderSource) and Path(out).resolve().is_relative_to(source.root.resolve())
    if inside and not is_picture_name(Path(out).name):
        raise InputError(
            f"{out} would lie among the images of {source.name} and become one; name another --out, or views*.png, "
            "which is left out of the data"
        )
    settings = {"recipe": recipe, "image_size": image_size, "seed": seed, "batch_size": 2, "holdout": 0.0}
    plan = make_plan(config_from_settings(settings), source)
    maker = view_maker(
        resolve_recipe(plan.recipe),
        image_size=plan.image_size,
        mean=plan.mean,
        std=plan.std,
        seed=seed,
        value_range=plan.value_range,
    )
    assert isinstance(maker, ViewMaker)  # the recipes of images make it
    rows = _readable(source, samples, seed)
    return grid([source.read(i) for i in rows], maker, out, ids=rows, epochs=2)


def _readable(source: Source, samples: int, seed: int) -> list[int]:
    found: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(source)).tolist():
        try:
            source.read(i)
        except CorruptSample:
            continue
        found.append(i)
        if len(found) == samples:
            break
    return found

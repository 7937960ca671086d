"""One door to the view makers: the recipe's kind decides."""

from collections.abc import Sequence

import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.views.maker import ViewMaker
from barlow.views.recipes import Recipe
from barlow.views.signals import SignalViewMaker
from barlow.views.tables import TableViewMaker


def view_maker(
    recipe: Recipe,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    image_size: int | None = None,
    reference: Tensor | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    dtype: torch.dtype = torch.float32,
) -> ViewMaker | SignalViewMaker | TableViewMaker:
    """The maker for a recipe of images (which needs `image_size`), signals, or table rows (with `reference` rows).

    `mean` and `std` per channel or feature; their number is the number of channels or features. `value_range` is of
    float images, as in `ViewMaker`.
    """
    channels = len(mean)
    if recipe.kind == "signal":
        return SignalViewMaker(recipe, channels=channels, mean=mean, std=std, seed=seed, dtype=dtype)
    if recipe.kind == "table":
        return TableViewMaker(
            recipe, features=channels, mean=mean, std=std, seed=seed, reference=reference, dtype=dtype
        )
    if image_size is None:
        raise InputError(f"Recipe '{recipe.name}' is for images and needs image_size, in pixels.")
    return ViewMaker(
        recipe,
        image_size=image_size,
        channels=channels,
        mean=mean,
        std=std,
        seed=seed,
        value_range=value_range,
        dtype=dtype,
    )

"""Views of tabular rows [B, F]."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.views.maker import check_statistics
from barlow.views.random import Stream
from barlow.views.recipes import Recipe, TableView


class TableViewMaker:
    """Makes the views of a batch of rows; called as `ViewMaker`, with the same promise about the draws.

    A corrupted feature takes the value it has in another row, drawn from `reference` rows [R, F] (the training set):
    a draw from the feature's marginal distribution, as in SCARF (arXiv 2106.15147). Without reference rows the other
    rows of the batch are drawn from, and a view then depends on its batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        features: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        reference: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`mean` and `std` per feature, in the unit of the feature."""
        check_statistics(mean, std, features)
        if reference is not None and (reference.ndim != 2 or reference.shape[1] != features or not len(reference)):
            raise InputError(f"reference must be rows [R, {features}], got {list(reference.shape)}.")
        self.recipe = recipe
        self.features = features
        self.seed = seed
        self.dtype = dtype
        self._mean = torch.tensor(mean, dtype=torch.float32)
        self._std = torch.tensor(std, dtype=torch.float32)
        self._reference = None if reference is None else reference.float()
        self._views = _table_views(recipe)

    def __call__(self, rows: Tensor, ids: Tensor, epoch: int) -> list[Tensor]:
        """Views [B, F], normalised, of rows [B, F] with ids int64 [B]."""
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise InputError(f"Views need rows [B, {self.features}], got {list(rows.shape)}.")
        self._move_to(rows.device)
        others, mean, std = rows if self._reference is None else self._reference, self._mean, self._std
        views = []
        for v, view in enumerate(self._views):
            stream = Stream.of(self.seed, epoch, ids.cpu(), [v])
            x = (corrupt(rows.float(), others.float(), stream, view.corruption) - mean) / std
            if view.noise:
                x = x + view.noise * stream.field("row noise", self.features, x.device)
            views.append(x.to(self.dtype))
        return views

    def _move_to(self, device: torch.device) -> None:
        """Keep what every batch needs beside the batches: the reference rows may be the whole training set."""
        if self._mean.device != device:
            self._mean, self._std = self._mean.to(device), self._std.to(device)
            self._reference = None if self._reference is None else self._reference.to(device)


def _table_views(recipe: Recipe) -> tuple[TableView, ...]:
    views = []
    for view in recipe.views:
        if not isinstance(view, TableView):
            raise InputError(f"Recipe '{recipe.name}' is of kind '{recipe.kind}'; the data are table rows.")
        views += [replace(view, count=1)] * view.count
    return tuple(views)


def corrupt(rows: Tensor, others: Tensor, stream: Stream, p: float) -> Tensor:
    """Replace each feature of rows [B, F], with probability p, by its value in a row drawn from `others` [R, F]."""
    if not p:
        return rows
    features = rows.shape[1]
    chosen = stream.field("corrupt", features, rows.device, numbers="uniform") < p
    draw = stream.field("other row", features, rows.device, numbers="uniform")
    # 24-bit draws times the number of rows can round up to that number in float32
    donor = (draw.double() * len(others)).long().clamp(max=len(others) - 1)
    return torch.where(chosen, others.gather(0, donor), rows)

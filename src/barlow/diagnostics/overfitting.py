"""Evidence of overfitting: the objective on views of images that training has not seen, beside those it has."""

from collections.abc import Callable

from torch import Tensor, nn

from barlow.diagnostics.forward import forward
from barlow.errors import InputError

Views = tuple[Tensor, Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]


def view_loss(encoder: nn.Module, projector: nn.Module, views: Views, objective: Objective) -> float:
    """The objective on two views [N, C, h, w] through both networks in eval mode.

    Its value depends on N (the noise in C is of the order D^2 / N), so compare only losses of equal N.
    """
    (_, z_a), (_, z_b) = (forward(encoder, projector, view) for view in views)
    return float(objective(z_a, z_b))


def overfitting_evidence(
    encoder: nn.Module, projector: nn.Module, train_views: Views, heldout_views: Views, objective: Objective
) -> dict[str, float]:
    """`train_loss` and `heldout_loss` of the objective, measured alike, and their `loss_gap` (held - train) / held.

    Raises:
        InputError: The two slices differ in size: their losses would not be comparable.
    """
    check_sizes(train_views, heldout_views)
    train = view_loss(encoder, projector, train_views, objective)
    return gap(train, view_loss(encoder, projector, heldout_views, objective))


def check_sizes(train_views: Views, heldout_views: Views) -> None:
    sizes = len(train_views[0]), len(heldout_views[0])
    if sizes[0] != sizes[1]:
        raise InputError(f"training and held-out slices must be of equal size, got {sizes[0]} and {sizes[1]}")


def gap(train: float, heldout: float) -> dict[str, float]:
    share = (heldout - train) / heldout if heldout else 0.0
    return {"train_loss": train, "heldout_loss": heldout, "loss_gap": share}

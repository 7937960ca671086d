"""The head between encoder and objective. It is dropped after pretraining."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from barlow.errors import InputError, suggest

HEADS = ("mlp", "rbf")


def build_projector(
    in_dim: int, widths: Sequence[int], *, head: str = "mlp", norm: bool = True, last_norm: bool = False
) -> nn.Sequential:
    """Layers of the given widths, `[B, in_dim]` -> `[B, widths[-1]]`; the last one is linear.

    "mlp": batch normalisation and ReLU follow every layer but the last, and no layer before one has a bias, as in
    the official code of Barlow Twins (arXiv 2103.03230, section 2.2: three layers of 8192). The last layer has
    none either: the objective standardises its output, which removes any constant. Without `norm` the hidden layers
    have biases instead. "rbf": the hidden layers are radial basis functions of standardised inputs. `last_norm`
    standardises the output too, as SimSiam does.

    Raises InputError for an empty list, a width under 2 (one feature has no off-diagonal to decorrelate), or an unknown
    head.
    """
    if not widths or min(widths) < 2:
        raise InputError(f"projector widths must be 2 or more, got {list(widths)}; try 1024 1024")
    if head not in HEADS:
        raise InputError(f"unknown head '{head}'. {suggest(head, HEADS)}")
    layers: list[nn.Module] = []
    dims = [in_dim, *widths]
    for inputs, outputs in itertools.pairwise(dims[:-1]):
        layers += _radial(inputs, outputs) if head == "rbf" else _perceptron(inputs, outputs, norm)
    layers.append(nn.Linear(dims[-2], dims[-1], bias=False))
    if last_norm and norm:
        layers.append(nn.BatchNorm1d(dims[-1], affine=False))
    return nn.Sequential(*layers)


def build_predictor(width: int, hidden: int) -> nn.Sequential:
    """One hidden layer with batch normalisation and ReLU, `[B, width]` -> `[B, width]`: from one view to the other."""
    return nn.Sequential(*_perceptron(width, hidden, norm=True), nn.Linear(hidden, width))


def _perceptron(inputs: int, outputs: int, norm: bool) -> list[nn.Module]:
    norms = [nn.BatchNorm1d(outputs)] if norm else []
    return [nn.Linear(inputs, outputs, bias=not norm), *norms, nn.ReLU(inplace=True)]


def _radial(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.BatchNorm1d(inputs, affine=False), RadialBasis(inputs, outputs), nn.BatchNorm1d(outputs)]


class RadialBasis(nn.Module):
    """Normalised Gaussian radial basis functions of learnt centres, `[B, F]` -> `[B, K]`, rows with mean 1.

    phi_k(h) = K exp(-b_k |h - c_k|^2) / sum_j exp(-b_j |h - c_j|^2)  (Moody and Darken, 1989). Centres start as draws
    of N(0, 1), the distribution of standardised inputs, with b = 1 / sqrt(F): the exponents then differ by a few
    units, whatever F, so that neither one centre nor all of them answer. float32 throughout: distances cancel.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(outputs, inputs))
        self.log_sharpness = nn.Parameter(torch.full((outputs,), -0.5 * math.log(inputs)))

    def forward(self, h: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            x = h if h.dtype == torch.float64 else h.float()
            squares = x.square().sum(1, keepdim=True) + self.centres.square().sum(1) - 2 * x @ self.centres.mT
            return (-self.log_sharpness.exp() * squares).softmax(dim=1) * len(self.centres)


class Prototypes(nn.Module):
    """Cosines of embeddings with K learnt unit vectors, `[B, D]` -> `[B, K]`: clusters (SwAV), classes (DINO).

    A linear layer whose weights are normalised and have no scale of their own, over normalised inputs.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) / math.sqrt(width))

    def forward(self, z: Tensor) -> Tensor:
        normalize = nn.functional.normalize
        return nn.functional.linear(normalize(z, dim=1), normalize(self.weight, dim=1))

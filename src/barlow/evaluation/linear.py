"""The linear probe on cached features: multinomial logistic regression by L-BFGS."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn import functional as F

from barlow.data import holdout_split
from barlow.errors import InputError

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse regularisers tried on the held-out slice of the training set (scikit-learn's `C`)."""

EXACT_VALUES = 50_000_000
"""Up to this many feature values rows are kept in float64, above in float32; sums over rows are always float64."""

BLOCK = 16384
"""Rows whose logits are held at a time."""

ITERATIONS_REACHED = 1
"""SciPy's status of an L-BFGS-B that ran out of iterations or evaluations."""

SEARCH_TOLERANCE = 1e-3
"""Tolerance while the regulariser is chosen: moves .3% of the predictions at most, less than the slice can tell."""

HELD_OUT = 0.2
"""Share of the training set on which the regulariser is chosen."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: scores = ((x - mean) / scale) W' + b."""

    weight: NDArray[np.float64]  # [K, F]
    bias: NDArray[np.float64]  # [K]
    mean: NDArray[np.float64]  # [F]
    scale: NDArray[np.float64]  # [F]
    classes: Ints  # [K], the labels the columns of the scores stand for
    c: float
    converged: bool = True

    def scores(self, x: Floats) -> NDArray[np.float64]:
        """Logits [M, K] of rows [M, F]."""
        folded = self.weight / self.scale
        return np.asarray(x @ folded.T + (self.bias - folded @ self.mean), dtype=np.float64)

    def predict(self, x: Floats) -> Ints:
        """The most likely label of each row [M]."""
        return np.asarray(self.classes[self.scores(x).argmax(axis=1)])


def fit_linear(
    x: Floats,
    y: Ints,
    *,
    c: float,
    standardise: bool = True,
    start: LinearProbe | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 10_000,
    device: torch.device | str = "cpu",
) -> LinearProbe:
    """Minimise `sum_n cross-entropy_n + ||W||^2 / (2 c)`; the bias is not penalised.

    The solution is that of scikit-learn's `LogisticRegression(C=c)`; for two classes the penalty is doubled, which
    makes it so there too. `standardise` brings every feature to mean 0 and variance 1 first (statistics of `x`), so
    that `c` means the same for every encoder. `tolerance` is the largest component of the (preconditioned) gradient at
    which to stop, as a share of the objective: of classes that can be separated both go to 0 as `c` grows. Where
    rounding ends the descent earlier (float32 rows, at about 3e-4), that counts as converged; `max_iterations` does
    not. `start` is a probe of the same data to begin from. Held beside the features are one copy of them and the
    logits of one block.

    Raises:
        InputError: Fewer than two classes, or features that are not finite.
    """
    classes, target = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"a linear probe needs at least two classes, got {len(classes)}: pass more labelled data")
    if not all(np.isfinite(block).all() for block in _blocks(x)):
        raise InputError("the features hold NaN or infinity: check the encoder that made them")
    mean, scale = _statistics(x) if standardise else (np.zeros(x.shape[1]), np.ones(x.shape[1]))
    problem = _Problem(_Rows(x, mean, scale, device), target, len(classes), c)
    first = problem.pack(start.weight, start.bias) if start else np.zeros(problem.size)
    # SciPy's own tolerances are absolute and would end the fit early where the objective is small
    options = {"maxiter": max_iterations, "maxfun": 2 * max_iterations, "gtol": 0.0, "ftol": 0.0, "maxcor": 20}

    def stop(flat: NDArray[np.float64]) -> None:
        if problem.slope_share <= tolerance:
            raise StopIteration

    # scipy's threads and torch's wait for each other's turn by spinning: on two cores ten times slower than without
    with ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        found = minimize(problem, first, jac=True, method="L-BFGS-B", options=options, callback=stop)
    weight, bias = problem.unpack(found.x)
    return LinearProbe(weight, bias, mean, scale, classes.astype(np.int64), c, found.status != ITERATIONS_REACHED)


def _statistics(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation per feature; a constant feature keeps scale 1 and so contributes nothing.

    Block by block: NumPy's own deviation in float64 holds a copy of all rows in float64.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    squares = sum(((block - mean) ** 2).sum(axis=0) for block in _blocks(x))
    scale = np.sqrt(squares / len(x))
    return mean, np.where(scale > 1e-8 * max(1e-30, float(scale.max(initial=0.0))), scale, 1.0)


def _blocks(x: Floats) -> Iterator[Floats]:
    return (x[start : start + BLOCK] for start in range(0, len(x), BLOCK))


class _Rows:
    """Standardised features [N, F], rotated to their principal axes once they are known."""

    def __init__(self, x: Floats, mean: Floats, scale: Floats, device: torch.device | str) -> None:
        exact = x.size <= EXACT_VALUES
        self.values = torch.empty(x.shape, dtype=torch.float64 if exact else torch.float32, device=device)
        moments = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=device)
        for start in range(0, len(x), BLOCK):
            block = torch.as_tensor((x[start : start + BLOCK] - mean) / scale, dtype=torch.float64, device=device)
            moments += block.T @ block / len(x)
            self.values[start : start + BLOCK] = block
        self.moments, self.basis = torch.linalg.eigh(moments)

    def rotate(self, stretch: Tensor) -> Tensor:
        """The rows along the axes, each axis times its stretch [F]; they take the place of the standardised ones."""
        turn = self.basis * stretch
        for block in torch.split(self.values, BLOCK):
            block.copy_(block.double() @ turn)
        return self.values


class _Problem:
    """Mean penalised cross-entropy and its gradient as a function of a flat vector that stands for (W, b).

    Features are far from independent, so that in W itself L-BFGS would need thousands of steps. It works on
    V = W U / s instead: U are the eigenvectors of X'X / N, and 1 / s^2 is about the curvature along each of them.
    """

    def __init__(self, rows: _Rows, target: Ints, classes: int, c: float) -> None:
        n, width = rows.values.shape
        # Two classes: scikit-learn has one logit u, penalised by u^2; here it is split evenly over two, (u/2, -u/2).
        self.penalty = (2.0 if classes == 2 else 1.0) / (c * n)
        self.basis = rows.basis
        self.scale = (0.25 * rows.moments.clamp(min=0) + self.penalty).rsqrt()
        self.x = rows.rotate(self.scale)
        self.target = torch.as_tensor(target, device=self.x.device)
        self.shape = (classes, width)
        self.size = classes * (width + 1)
        self.slope_share = float("inf")  # largest component of the last gradient over the objective there

    def pack(self, weight: Floats, bias: Floats) -> NDArray[np.float64]:
        rotated = torch.as_tensor(weight, device=self.x.device) @ self.basis / self.scale
        return np.concatenate([rotated.cpu().numpy().ravel(), bias])

    def unpack(self, flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scaled, bias = self._split(flat)
        weight = (scaled * self.scale) @ self.basis.T
        return weight.cpu().numpy(), bias.cpu().numpy()

    def _split(self, flat: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        values = torch.as_tensor(flat, device=self.x.device)
        split = self.shape[0] * self.shape[1]
        return values[:split].view(self.shape), values[split:]

    def __call__(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = self._split(flat)
        shrunk = weight * self.scale  # W U: as long as W
        loss = 0.5 * self.penalty * shrunk.square().sum()
        slope, slope_bias = self.penalty * shrunk * self.scale, torch.zeros_like(bias)
        for rows, target in zip(torch.split(self.x, BLOCK), torch.split(self.target, BLOCK), strict=True):
            log_p = F.log_softmax((rows @ weight.T.to(rows.dtype)).double() + bias, dim=1)
            loss += F.nll_loss(log_p, target, reduction="sum") / len(self.x)
            error = (log_p.exp() - F.one_hot(target, len(bias))) / len(self.x)  # d(cross-entropy) / d(logits)
            slope += (error.T.to(rows.dtype) @ rows).double()
            slope_bias += error.sum(dim=0)
        gradient = torch.cat([slope.flatten(), slope_bias])
        self.slope_share = float(gradient.abs().max() / loss)
        return float(loss), gradient.cpu().numpy()


def choose_c(
    x: Floats,
    y: Ints,
    *,
    grid: Sequence[float] = C_GRID,
    held_out: float = HELD_OUT,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """The inverse regulariser with the best accuracy on a stratified, seeded slice of the *training* set.

    Of equal ones the strongest regulariser (smallest c). Each fit starts from the one before. Where every class
    has one sample there is nothing to hold out, and 1.0 (scikit-learn's default) is returned.
    """
    fit, check = holdout_split(y, share=held_out, seed=seed)
    if len(np.unique(y[fit])) < len(np.unique(y)):
        return 1.0
    best, chosen, probe = -1.0, 1.0, None
    for c in sorted(grid):
        probe = fit_linear(x[fit], y[fit], c=c, start=probe, tolerance=SEARCH_TOLERANCE, device=device)
        right = float((probe.predict(x[check]) == y[check]).mean())
        if right > best:
            best, chosen = right, c
    return chosen


def linear_probe(
    train_x: Floats,
    train_y: Ints,
    test_x: Floats,
    test_y: Ints,
    *,
    c: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Accuracy on the test rows [M, F] of a probe fitted on the training rows [N, F].

    Without `c` it is chosen on a held-out slice of the training rows (`choose_c`), then fitted on all of them.
    """
    chosen = choose_c(train_x, train_y, seed=seed, device=device) if c is None else c
    probe = fit_linear(train_x, train_y, c=chosen, device=device)
    return float((probe.predict(test_x) == test_y).mean())

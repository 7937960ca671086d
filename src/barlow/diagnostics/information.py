"""The information-bottleneck reading of the objective: how much a representation keeps of the image, and of the views.

Barlow Twins (arXiv 2103.03230), appendix A: with Z the representation of a randomly changed view of an image X, the
objective trades the entropy H(Z), to be large, against H(Z|X), to be small. Their difference is I(Z;X). The paper
assumes Gaussians, so that entropies are log-determinants of covariances; beside that, nearest neighbours
assume nothing.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

from barlow.diagnostics.scale import centred, unit_scale
from barlow.errors import InputError

Floats = NDArray[np.floating]

NEIGHBOUR = 3
"""The neighbour whose distance is taken: the usual trade of variance (1) against bias (many)."""

DIRECTIONS = 8
"""Dimensions in which the entropies are estimated: few enough for a few dozen views per image."""

SMALLEST = 1e-12
"""Variances and distances below this share of the largest count as this share: views that coincide."""


def gaussian_entropy(x: Floats) -> float:
    """Differential entropy of the Gaussian that samples [N, d] are drawn from, in nats; N > d.

    Unbiased: the logarithm of a sample covariance's determinant is too low by a known amount (Ahmed and Gokhale
    1989). NaN where a sample is NaN or infinite. Raises InputError for too few samples.
    """
    n, d = _shape(x)
    if n <= d:
        raise InputError(f"a Gaussian entropy in {d} dimensions needs more than {d} samples, got {n}")
    points, log_scale = _points(x)
    if np.isnan(points).any():
        return float("nan")
    values = np.linalg.eigvalsh(np.cov(points, rowvar=False, ddof=1).reshape(d, d))
    log_det = np.log(np.maximum(values, SMALLEST * max(values[-1], 1e-300))).sum()
    bias = digamma((n - np.arange(1, d + 1)) / 2).sum() + d * np.log(2 / (n - 1))
    return float(0.5 * (d * np.log(2 * np.pi * np.e) + log_det - bias) + d * log_scale)


def neighbour_entropy(x: Floats, *, k: int = NEIGHBOUR) -> float:
    """Differential entropy of samples [N, d] by the distances to their k-th neighbours, in nats; N > k.

    Kozachenko and Leonenko (1987), in the form of Kraskov et al. (2004, equation 20). Consistent for any density;
    too high in many dimensions. NaN where a sample is NaN or infinite. Raises InputError for too few samples.
    """
    n, d = _shape(x)
    if n <= k:
        raise InputError(f"the {k}-th neighbour needs more than {k} samples, got {n}")
    points, log_scale = _points(x)
    if np.isnan(points).any():
        return float("nan")
    distances = cKDTree(points).query(points, k=k + 1)[0][:, k]
    log_distance = np.log(np.maximum(distances, SMALLEST * max(distances.max(), 1e-300))).mean()
    log_ball = 0.5 * d * np.log(np.pi) - gammaln(0.5 * d + 1)
    return float(digamma(n) - digamma(k) + log_ball + d * (log_distance + log_scale))


def bottleneck_terms(views: Floats, *, directions: int = DIRECTIONS, seed: int = 0) -> dict[str, float]:
    """`entropy` H(Z), `conditional` H(Z|X) and `information` I(Z;X), each `_gauss` and `_knn`, in nats.

    `views` are embeddings [N, V, D] of V > `directions` random views of each of N images. Features are standardised
    over all, as the objective does; the terms are those of `directions` fixed random orthonormal directions (seeded;
    all of them when D is smaller), so `information` is a lower bound of that of the whole embedding. H(Z) is measured
    on samples of different images, and averaged over the views; H(Z|X) on the views of an image, and averaged over
    the images.

    Raises InputError for views of another shape, or too few.
    """
    if views.ndim != 3:
        raise InputError(f"the bottleneck needs embeddings [N, V, D] of V views of N images, got shape {views.shape}")
    z = _directions(views, directions, seed)
    found: dict[str, float] = {}
    for name, entropy in (("gauss", gaussian_entropy), ("knn", neighbour_entropy)):
        whole = float(np.mean([entropy(z[:, v]) for v in range(z.shape[1])]))
        given = float(np.mean([entropy(image) for image in z]))
        found |= {f"entropy_{name}": whole, f"conditional_{name}": given, f"information_{name}": whole - given}
    return found


def _directions(views: Floats, directions: int, seed: int) -> NDArray[np.float64]:
    """Standardised embeddings along random orthonormal directions [N, V, d]."""
    z = centred(views, axis=(0, 1))
    deviation = np.sqrt((z**2).mean(axis=(0, 1)))
    standard = z / np.where(deviation == 0, 1.0, deviation)
    drawn = np.random.default_rng(seed).standard_normal((views.shape[2], min(directions, views.shape[2])))
    basis, _ = np.linalg.qr(drawn)
    return np.asarray(standard @ basis)


def _shape(x: Floats) -> tuple[int, int]:
    if x.ndim != 2:
        raise InputError(f"an entropy needs samples [N, d], got shape {x.shape}")
    return x.shape[0], x.shape[1]


def _points(x: Floats) -> tuple[NDArray[np.float64], float]:
    """The samples over their largest magnitude, and its logarithm, which an entropy grows by in each dimension."""
    largest = float(np.abs(x).max(initial=0.0))
    return unit_scale(x), math.log(largest) if 0 < largest < math.inf else 0.0

"""Where features lie on the unit sphere, and how classes lie among them: NaN where a feature is NaN or infinite."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from barlow.diagnostics.scale import unit_scale
from barlow.errors import InputError

Floats = NDArray[np.floating]


def _unit(x: Floats) -> NDArray[np.float64]:
    """The rows of [N, F] with length 1; rows of zeros stay zeros."""
    wide = unit_scale(x)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(length == 0, 1.0, length))


def uniformity(x: Floats, *, t: float = 2.0) -> float:
    """log of the mean over pairs of exp(-t |x_i - x_j|^2), rows of [N, F] on the unit sphere (arXiv 2005.10242).

    0 when all samples coincide, lower when they are spread; -2t is the limit for t = 2 in many dimensions.
    """
    if len(x) < 2:
        raise InputError(f"uniformity needs two samples or more, got {len(x)}")
    return float(np.log(np.exp(-t * pdist(_unit(x), "sqeuclidean")).mean()))


def alignment(a: Floats, b: Floats, *, alpha: float = 2.0) -> float:
    """Mean |a_i - b_i|^alpha over two views of every sample [N, F], on the unit sphere (arXiv 2005.10242)."""
    if a.shape != b.shape:
        raise InputError(f"alignment needs two views of one shape, got {a.shape} and {b.shape}")
    return float((np.linalg.norm(_unit(a) - _unit(b), axis=1) ** alpha).mean())


def class_distances(x: Floats, y: NDArray[np.int64]) -> dict[str, float]:
    """Mean distance between samples of one class (`intra`), of different classes (`inter`), and their `ratio`.

    Euclidean on the unit sphere, over all pairs of rows of [N, F]; a ratio below 1 means that classes cluster.
    NaN where there is no such pair.
    """
    distances = pdist(_unit(x))
    first, second = np.triu_indices(len(x), 1)
    same = y[first] == y[second]
    intra = float(distances[same].mean()) if same.any() else float("nan")
    inter = float(distances[~same].mean()) if (~same).any() else float("nan")
    return {"intra": intra, "inter": inter, "ratio": intra / inter if inter else float("nan")}

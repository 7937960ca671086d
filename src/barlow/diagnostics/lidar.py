"""LiDAR: the rank of the features that tell samples apart in spite of the augmentation."""

import numpy as np
from numpy.typing import NDArray

from barlow.diagnostics.scale import centred, unit_scale
from barlow.diagnostics.spectrum import RANKME_EPS, entropy_rank
from barlow.errors import InputError

DELTA = 1e-4
"""Added to the diagonal of the within-sample scatter, as a share of the features' mean variance.

The paper adds 1e-4 itself, which presumes features of about unit variance; larger ones would leave a singular scatter.
"""


def lidar(views: NDArray[np.floating], *, delta: float = DELTA, eps: float = RANKME_EPS) -> float:
    """LiDAR (arXiv 2312.04000, equations 1 to 4) of V views of N samples [N, V, F].

    exp of the entropy of the eigenvalues of S_w^(-1/2) S_b S_w^(-1/2), where S_b is the covariance of the samples'
    means and S_w the covariance of the views around them plus `delta` times the mean variance of a feature on its
    diagonal. At most min(N - 1, F); 0 for constant features; NaN where a feature is NaN or infinite. The paper uses
    N = 1,000 samples and V = 50 views; two views work, with more noise.

    Raises:
        InputError: Not [N, V, F] with N and V of 2 or more.
    """
    if views.ndim != 3 or views.shape[0] < 2 or views.shape[1] < 2:
        raise InputError(f"LiDAR needs features [N, V, F] of 2 samples and 2 views or more, got shape {views.shape}")
    variance = (centred(views, axis=(0, 1)) ** 2).mean()
    if not variance > 0:
        return float(variance)
    wide = unit_scale(views)
    means = wide.mean(axis=1)
    within = (wide - means[:, None]).reshape(-1, wide.shape[2])
    between = (means - means.mean(axis=0)) / np.sqrt(len(means))
    scatter = within.T @ within / len(within) + delta * variance * np.eye(wide.shape[2])
    # With S_w = L L', the eigenvalues are the squared singular values of the N x F matrix B L^-T.
    whitened = np.linalg.solve(np.linalg.cholesky(scatter), between.T)
    return entropy_rank(np.linalg.svd(whitened, compute_uv=False) ** 2, eps)

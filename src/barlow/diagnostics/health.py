"""All label-free diagnostics of a held-out slice in one go: what a run writes to `health.json`."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from barlow.diagnostics.collapse import (
    correlation_sample,
    correlation_summary,
    dead_share,
    relative_spread,
    standardise,
)
from barlow.diagnostics.forward import forward
from barlow.diagnostics.geometry import alignment, class_distances, uniformity
from barlow.diagnostics.lidar import lidar
from barlow.diagnostics.mixing import mixing_deviation
from barlow.diagnostics.overfitting import Objective, Views, check_sizes, view_loss
from barlow.diagnostics.spectrum import alpha_req, effective_rank, rankme, singular_values
from barlow.diagnostics.verdict import Evidence, verdict

Floats = NDArray[np.floating]

MIXED_IMAGES = 256
"""Images on which the mixing assumption is measured."""


def health(
    encoder: nn.Module,
    projector: nn.Module,
    view_pairs: Views,
    objective: Objective,
    *,
    train_pairs: Views | None = None,
    labels: NDArray[np.int64] | None = None,
    n_train: int | None = None,
    step: int | None = None,
    initial_loss: float | None = None,
    initial_diagonal: float | None = None,
    best_heldout_loss: float | None = None,
    knn: float | None = None,
    best_knn: float | None = None,
    knn_images: int | None = None,
    distinct_share: float | None = None,
    mixing: bool = True,
) -> dict[str, Any]:
    """Rank, collapse, geometry, overfitting, mixing and a verdict, ready for `health.json`.

    `view_pairs` are two views [N, C, h, w] (model inputs on the networks' device) of a held-out slice,
    `train_pairs` two views of as many training images; `objective` maps (z_a, z_b) to the plain Barlow Twins loss.
    `initial_loss` and `initial_diagonal` are `heldout_loss` and `diagonal` of the first call, `best_heldout_loss` is
    the lowest so far, `knn` and `best_knn` the k-NN accuracy now and at its best on `knn_images` images, where there
    are labels, and `distinct_share` is that of the held-out images. Both networks run in eval mode and get their modes
    back. Rank, collapse and geometry speak of the encoder's features, the correlations of the embedding. A figure that
    cannot be measured (NaN or infinity in the features, a constant encoder that mixes anything) is None.

    Raises:
        InputError: `train_pairs` and `view_pairs` differ in size.
    """
    (h_a, z_a), (h_b, z_b) = (forward(encoder, projector, view) for view in view_pairs)
    features, embeddings = (_numpy(h_a), _numpy(h_b)), (_numpy(z_a), _numpy(z_b))
    measured = {**_features(*features), **_embeddings(*embeddings), "heldout_loss": float(objective(z_a, z_b))}
    if train_pairs is not None:
        check_sizes(train_pairs, view_pairs)
        measured["train_loss"] = view_loss(encoder, projector, train_pairs, objective)
    evidence = Evidence(
        n=len(z_a),
        width=z_a.shape[1],
        dead_share=measured["dead_share"],
        relative_spread=measured["relative_spread"],
        effective_rank=measured["embedding_effective_rank"],
        diagonal=measured["diagonal"],
        off_diagonal=measured["off_diagonal"],
        heldout_loss=measured["heldout_loss"],
        train_loss=measured.get("train_loss"),
        initial_loss=initial_loss,
        initial_diagonal=initial_diagonal,
        best_heldout_loss=best_heldout_loss,
        knn=knn,
        best_knn=best_knn,
        knn_images=knn_images,
        n_train=n_train,
        distinct_share=distinct_share,
        step=step,
    )
    report: dict[str, Any] = {"n": len(z_a), "feature_dim": h_a.shape[1], "width": z_a.shape[1], **measured}
    report["spectrum"] = [float(f"{value:.4g}") for value in singular_values(features[0])]
    report["correlation"] = correlation_sample(*embeddings)
    if evidence.loss_gap is not None:
        report["loss_gap"] = evidence.loss_gap
    if labels is not None:
        labelled = labels >= 0
        report["class_distances"] = class_distances(features[0][labelled], labels[labelled])
    if mixing and len(z_a) > 1:
        some = np.random.default_rng(0).permutation(len(z_a))[:MIXED_IMAGES]  # the first may all be of one class
        report["mixing"] = _mixing(encoder, projector, view_pairs[0][torch.from_numpy(some)])
    return {**_measurable(report), "verdict": asdict(verdict(evidence))}


def _measurable(value: Any) -> Any:
    """JSON has no NaN: None in its place, and in that of a list or matrix that holds one."""
    if isinstance(value, dict):
        return {name: _measurable(part) for name, part in value.items()}
    return value if np.isfinite(value).all() else None


def _numpy(x: Tensor) -> Floats:
    return np.asarray(x.cpu().numpy())


def _features(a: Floats, b: Floats) -> dict[str, float]:
    return {
        "rankme": rankme(a),
        "effective_rank": effective_rank(a),
        "alpha_req": alpha_req(a),
        "lidar": lidar(np.stack([a, b], axis=1)),
        "dead_share": dead_share(a),
        "relative_spread": relative_spread(a),
        "uniformity": uniformity(a),
        "alignment": alignment(a, b),
    }


def _embeddings(a: Floats, b: Floats) -> dict[str, float]:
    """Of features on one scale, as the objective sees them."""
    return {"embedding_effective_rank": effective_rank(standardise(a)), **correlation_summary(a, b)}


def _mixing(encoder: nn.Module, projector: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Keys as text: JSON has no numbers for keys."""
    found = mixing_deviation(encoder, projector, images)
    return {where: {f"{a:g}": value for a, value in values.items()} for where, values in found.items()}

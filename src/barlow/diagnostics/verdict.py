"""A verdict in plain words, and the figures it rests on."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

State = Literal[
    "healthy",
    "diverged",
    "collapsed-constant",
    "collapsed-dimensional",
    "not-learning-yet",
    "overfitting",
    "too-little-data",
]

CONSTANT_SPREAD = 1e-3
"""Below this relative spread the features are one constant for all practical purposes."""

CONSTANT_DEAD = 0.95
"""From this share of dead features on, nothing of use is left."""

FEW_DIRECTIONS = 3.0
"""Below this effective rank the embedding says one or two things about an image, whatever its width.

On the digits (D = 256, 15 epochs) lambda 0 ends at 1.1 and lambda 1e-4 at 1.2; the default, 1/128, is at 3.5 or more
from its second epoch on and ends at 6.4. Rank follows the data and not the width, so this is no share of the width.
"""

SHARE_IN_USE = 0.05
"""A healthy embedding with a smaller share of the possible directions is told that more of them are free."""

UNRELATED = 0.2
"""Views that agree less than this (mean C_ii) are as good as unrelated: on the digits an untrained network has .13 and
the first epoch ends at .23. Chance alone gives 1 / sqrt(N) at most, .1 for 100 samples."""

DISTINCT = 0.5
"""Where fewer of the inputs than this share are different, the rest are blank or copies."""

FEW_IMAGES = 500
"""Below this many training images there is too little to learn invariances from."""

PROGRESS = 0.95
"""The held-out loss has to fall below this share of its value before training, or ..."""

AGREEMENT = 0.05
"""... the agreement of the views (mean C_ii) has to rise by this much: methods other than Barlow Twins need not lower
its loss."""

GAP = 0.5
"""From this gap (held - train) / held on, training images are remembered: their loss is under half the other."""

RISE = 1.1
"""The held-out loss has risen this far above its lowest, while the gap is at least half of `GAP`."""


KNN_FALL = 0.02
"""The k-NN accuracy has fallen this far below its best, and by more than two standard errors."""


EARLIER = ("initial_loss", "initial_diagonal", "best_heldout_loss", "knn", "best_knn")
PRESENT = ["dead_share", "relative_spread", "effective_rank", "diagonal", "off_diagonal", "heldout_loss", "train_loss"]


@dataclass(frozen=True)
class Evidence:
    """What a verdict looks at. None where it was not measured; a rule that lacks its figure is skipped."""

    n: int
    """samples measured"""
    width: int
    """features of the embedding"""
    dead_share: float
    """share of features that do not change"""
    relative_spread: float
    """root mean variance over root mean square of the features"""
    effective_rank: float
    """of the embedding's covariance"""
    diagonal: float
    """mean C_ii of two views' embeddings"""
    off_diagonal: float
    """mean |C_ij|, i != j"""
    heldout_loss: float | None = None
    """objective on held-out views"""
    train_loss: float | None = None
    """the same on as many training images"""
    initial_loss: float | None = None
    """held-out loss before training"""
    initial_diagonal: float | None = None
    """mean C_ii before training"""
    best_heldout_loss: float | None = None
    """lowest held-out loss so far"""
    knn: float | None = None
    """k-NN accuracy on held-out images, 0 to 1"""
    best_knn: float | None = None
    """highest k-NN accuracy so far"""
    knn_images: int | None = None
    """images the k-NN accuracies are of; None: the samples measured"""
    n_train: int | None = None
    """images trained on"""
    distinct_share: float | None = None
    """share of the images that are neither blank nor a copy of another"""
    step: int | None = None
    """optimizer steps taken"""

    @property
    def loss_gap(self) -> float | None:
        """(held - train) / held."""
        if self.heldout_loss is None or self.train_loss is None or self.heldout_loss <= 0:
            return None
        return (self.heldout_loss - self.train_loss) / self.heldout_loss

    def to_dict(self) -> dict[str, float]:
        """The figures that were measured and are finite, by name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)} | {"loss_gap": self.loss_gap}
        return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


@dataclass(frozen=True)
class Verdict:
    """A state, one or two sentences for a person, and the evidence."""

    state: State
    text: str
    evidence: dict[str, float] = field(default_factory=dict)


def verdict(evidence: Evidence) -> Verdict:
    """The first rule that applies, from the gravest; healthy when none does.

    Earlier figures that are not finite count as not measured; a present one that is not finite means `diverged`.
    """
    unknown: Any = {name: None for name in EARLIER if not math.isfinite(getattr(evidence, name) or 0.0)}
    evidence = replace(evidence, **unknown)
    for state, rule in _RULES:
        text = rule(evidence)
        if text is not None:
            return Verdict(state, text, evidence.to_dict())
    return Verdict("healthy", _healthy(evidence), evidence.to_dict())


def _diverged(e: Evidence) -> str | None:
    broken = [name.replace("_", " ") for name in PRESENT if not math.isfinite(getattr(e, name) or 0.0)]
    if not broken:
        return None
    return (
        f"Diverged: not a finite number: {', '.join(broken)}. The network's outputs hold NaN or infinity, or are "
        "too large to compute with. Lower the learning rate, or clip the gradient."
    )


def _alike(e: Evidence) -> str | None:
    if e.distinct_share is None or e.distinct_share >= DISTINCT:
        return None
    return (
        f"Too little data: only {e.distinct_share:.0%} of the held-out images are different, the rest are blank or "
        "copies. Check what was read; no setting helps where there is nothing to tell apart."
    )


def _constant(e: Evidence) -> str | None:
    if e.dead_share < CONSTANT_DEAD and e.relative_spread >= CONSTANT_SPREAD:
        return None
    return (
        f"Collapsed to a constant: every image gets nearly the same features ({e.dead_share:.0%} of them never "
        f"change, spread {e.relative_spread:.1g}). Lower the learning rate."
    )


def _untouched(e: Evidence) -> str | None:
    return "Not learning yet: no step has been taken; these are random weights." if e.step == 0 else None


def _dimensional(e: Evidence) -> str | None:
    possible = min(e.n - 1, e.width)
    # Of views that are unrelated the rank is that of noise: such a network is not learning yet.
    if e.effective_rank >= min(FEW_DIRECTIONS, possible / 2) or e.diagonal < UNRELATED:
        return None
    return (
        f"Dimensional collapse: the views agree (mean diagonal {e.diagonal:.2f}), but {e.width} features span "
        f"only about {e.effective_rank:.1f} of {possible} possible directions and repeat each other (mean "
        f"off-diagonal |C| {e.off_diagonal:.2f}). Raise lambda where the method has it, or lower the learning rate."
    )


def _few_images(e: Evidence) -> str | None:
    if e.n_train is None or e.n_train >= FEW_IMAGES:
        return None
    return (
        f"Too little data: {e.n_train} training images are too few to learn from without labels. "
        "Collect more images of the same kind, or start from an encoder that was trained on many."
    )


def _not_learning(e: Evidence) -> str | None:
    if e.diagonal < UNRELATED:
        words = f"the two views of an image agree hardly at all (mean diagonal {e.diagonal:.2f})"
    elif _progressed(e):
        return None
    else:
        words = f"the held-out loss is {e.heldout_loss:.4g}, before training it was {e.initial_loss:.4g}"
    return f"Not learning yet: {words}. Train longer; if it stays so, change the learning rate."


def _progressed(e: Evidence) -> bool:
    """By the loss or by the agreement of the views; also where it is not known what they were before training."""
    if e.initial_loss is None or e.heldout_loss is None:
        return True
    agree_more = e.initial_diagonal is not None and e.diagonal >= e.initial_diagonal + AGREEMENT
    return agree_more or e.heldout_loss <= PROGRESS * e.initial_loss


def _overfitting(e: Evidence) -> str | None:
    signs = [words for words in (_remembers(e), _forgets(e)) if words]
    if not signs:
        return None
    remedy = "Mixed Barlow Twins, stronger augmentation, more images or fewer epochs help."
    return f"Overfitting: {' and '.join(signs)}. {remedy}"


def _remembers(e: Evidence) -> str | None:
    """Training images have a much lower loss than others."""
    share = e.loss_gap
    if share is None:
        return None
    risen = e.best_heldout_loss is not None and (e.heldout_loss or 0.0) > RISE * e.best_heldout_loss
    if share < GAP and not (risen and share >= GAP / 2):
        return None
    lowest = f", whose lowest was {e.best_heldout_loss:.4g}" if risen else ""
    return f"the loss is {e.train_loss:.4g} on images trained on and {e.heldout_loss:.4g} on others{lowest}"


def _forgets(e: Evidence) -> str | None:
    """Features have become worse at telling classes apart."""
    if e.knn is None or e.best_knn is None:
        return None
    images = e.n if e.knn_images is None else e.knn_images
    error = math.sqrt(2 * e.best_knn * (1 - e.best_knn) / images)  # of the difference of two accuracies
    if e.best_knn - e.knn < max(KNN_FALL, 2 * error):
        return None
    return f"the k-NN accuracy has fallen from {e.best_knn:.1%} to {e.knn:.1%}"


def _healthy(e: Evidence) -> str:
    possible = min(e.n - 1, e.width)
    text = (
        f"Healthy: the views agree (mean diagonal {e.diagonal:.2f}), and the features span about "
        f"{e.effective_rank:.0f} of {possible} possible directions (mean off-diagonal |C| {e.off_diagonal:.2f})."
    )
    if e.effective_rank < SHARE_IN_USE * possible:
        text += " These are few; a larger lambda, where the method has it, would spread the features over more."
    if e.loss_gap is None:
        return text
    return f"{text} The loss is {e.train_loss:.4g} on images trained on and {e.heldout_loss:.4g} on others."


_RULES: tuple[tuple[State, Callable[[Evidence], str | None]], ...] = (
    ("diverged", _diverged),
    ("too-little-data", _alike),
    ("collapsed-constant", _constant),
    ("not-learning-yet", _untouched),
    ("collapsed-dimensional", _dimensional),
    ("too-little-data", _few_images),
    ("overfitting", _overfitting),
    ("not-learning-yet", _not_learning),
)

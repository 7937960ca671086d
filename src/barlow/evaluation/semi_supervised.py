"""Fine-tuning the whole network on a share of the labels, beside the same network from random weights."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from barlow.errors import InputError
from barlow.evaluation.few_shot import draw_shots
from barlow.evaluation.intervals import image_interval
from barlow.evaluation.supervised import Optimisation, fit_classifier
from barlow.evaluation.task import Score, Subset, Task

Ints = NDArray[np.int64]

OFFICIAL = Optimisation(
    epochs=20,
    batch_size=256,
    optimizer="sgd",
    lr_head=0.5,
    lr_encoder=0.005,
    weight_decay=0.0,
    decay="cosine",
    least_steps=1000,
)
"""Barlow Twins, released code, for 1% and 10% of ImageNet; 20 epochs of 1% are 1,000 steps there."""


def label_rows(y: Ints, *, fraction: float | None, per_class: int | None, seed: int) -> Ints:
    """Sorted rows of a stratified, seeded part of the labels: `fraction` of every class (at least one), or a count.

    Raises:
        InputError: Not exactly one of the two, a fraction outside (0, 1], or a class with too few samples.
    """
    if (fraction is None) == (per_class is None):
        raise InputError(f"give a fraction of the labels or a number per class, got {fraction} and {per_class}")
    if per_class is not None:
        return draw_shots(y, per_class, seed)
    if fraction is None or not 0 < fraction <= 1:
        raise InputError(f"the fraction of labels must lie above 0 and be at most 1, got {fraction}")
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
    return np.sort(np.concatenate([rows[: max(1, round(fraction * len(rows)))] for rows in members]))


@dataclass(frozen=True)
class SemiSupervised:
    """Accuracy after fine-tuning on part of the labels; mean over `repeats` draws of labels, heads and augmentation."""

    fraction: float | None = None
    per_class: int | None = None
    repeats: int = 3
    how: Optimisation = OFFICIAL
    baselines: ClassVar[tuple[str, ...]] = ("random-init",)

    @property
    def name(self) -> str:
        if self.per_class is not None:
            return f"semi-supervised-{self.per_class}-per-class"
        return "fine-tune" if self.fraction == 1 else f"semi-supervised-{100 * (self.fraction or 0):g}%"

    def score(self, task: Task) -> Score:
        """Mean accuracy; the interval is over test images, each with its share of right answers over the repeats."""
        y, found, labelled = task.train_set.labels, [], 0
        for seed in range(task.seed, task.seed + self.repeats):
            rows = label_rows(y, fraction=self.fraction, per_class=self.per_class, seed=seed)
            part, labelled = Subset(task.train_set.source, task.train_set.indices[rows]), len(rows)
            found.append(fit_classifier(task, part, self.how, seed=seed).answers(task))
        shares = np.mean([repeat.right for repeat in found], axis=0)
        interval, method = image_interval(shares, seed=task.seed)
        own = {"fraction": self.fraction, "per_class": self.per_class, "repeats": self.repeats}
        settings = {
            **self.how.settings(labelled),
            **own,
            "interval": method,
            "encoder_mode": "train",
        }
        means = {name: float(np.mean([repeat.details[name] for repeat in found])) for name in found[0].details}
        details = {"per_repeat": [float(repeat.right.mean()) for repeat in found], **means}
        right = np.stack([repeat.right for repeat in found]).squeeze(axis=0 if self.repeats == 1 else ())
        return Score("accuracy", float(shares.mean()), interval, len(shares), labelled, settings, details, right)


def fine_tuning(how: Optimisation = OFFICIAL, **changes: float) -> SemiSupervised:
    """Fine-tuning on all labels, once, with any field of the optimisation changed: transfer to another data set."""
    return SemiSupervised(fraction=1.0, repeats=1, how=replace(how, **changes))  # type: ignore[arg-type]

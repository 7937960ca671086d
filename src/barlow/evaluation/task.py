"""What a protocol is given and what it gives back."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from barlow.data import Source
from barlow.errors import InputError
from barlow.evaluation.accuracy import Answers
from barlow.evaluation.features import BATCH_SIZE, Features, extract
from barlow.evaluation.intervals import image_interval
from barlow.models import Encoder

Ints = NDArray[np.int64]
Split = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Subset:
    """Some samples of a source, by position."""

    source: Source
    indices: Ints

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Ints:
        """Class of every sample [N]. Raises InputError where the source has no labels."""
        if self.source.labels is None:
            raise InputError(
                f"'{self.source.name}' has no labels, so no score by class can be computed. Without labels: the health "
                "of the run (barlow report), nearest images (barlow search), features (barlow embed)"
            )
        return np.asarray(self.source.labels, dtype=np.int64)[self.indices]


@dataclass
class Task:
    """One encoder and one pair of splits; the features of both are extracted at most once."""

    encoder: Encoder
    train_set: Subset
    test_set: Subset
    seed: int = 0
    batch_size: int = BATCH_SIZE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int | None = None
    """readers of images at a time; see `choose_workers`"""
    extraction_s: float = 0.0
    """Seconds spent so far on features that protocols share."""
    unreadable: dict[str, int] = field(default_factory=dict)
    """Corrupt samples of a split that were met and left out."""

    @cached_property
    def train(self) -> Features:
        """Features of the training split."""
        return self._shared("training")

    @cached_property
    def test(self) -> Features:
        """Features of the evaluation split."""
        return self._shared("evaluation")

    def with_encoder(self, encoder: Encoder) -> "Task":
        """The same splits and settings for another encoder."""
        return replace(self, encoder=encoder.to(self.device), extraction_s=0.0, unreadable={})

    def _shared(self, split: Split) -> Features:
        started = time.perf_counter()
        features = self.features(split, self.encoder)
        self.extraction_s += time.perf_counter() - started
        return features

    def features(self, split: Split, encoder: Encoder) -> Features:
        """Features of a split by any encoder, each time anew; `train` and `test` are the task's own, made once.

        Raises InputError where they are not finite: no score is worth anything then.
        """
        part = self.train_set if split == "training" else self.test_set
        features = extract(
            encoder,
            part.source,
            part.indices,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
        )
        self.note_unreadable(split, len(part) - len(features))
        if not np.isfinite(features.x.sum(axis=0, dtype=np.float64)).all():  # a sum needs no array of truth values
            raise InputError("the features hold NaN or infinity: check the encoder that made them")
        return features

    def note_unreadable(self, split: Split, count: int) -> None:
        """Remember how many samples of a split could not be read, as far as is known."""
        if count:
            self.unreadable[split] = max(count, self.unreadable.get(split, 0))


@dataclass(frozen=True)
class Score:
    """A measured value with its interval, what was measured, and every setting behind it."""

    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    """test samples (draws or seeds times samples are in the settings)"""
    n_train: int
    """labelled training samples used"""
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    """further values: per draw, per class, other cut-offs"""
    values: NDArray[Any] | None = None
    """what was averaged, per test image [n], or per draw and test image [R, n]; None where the metric is no mean"""
    warnings: tuple[str, ...] = ()


def accuracy(
    found: Answers, n_train: int, settings: Mapping[str, Any], *, seed: int, warnings: tuple[str, ...] = ()
) -> Score:
    """The score of right and wrong answers, by a classifier of `n_train` labelled samples."""
    interval, method = image_interval(found.right, seed=seed)
    stated, value = {**settings, "interval": method}, float(found.right.mean())
    return Score("accuracy", value, interval, len(found.right), n_train, stated, found.details, found.right, warnings)


class EvaluationProtocol(Protocol):
    """A way to measure an encoder."""

    @property
    def name(self) -> str:
        """Name in results and on the command line."""

    @property
    def baselines(self) -> tuple[str, ...]:
        """Baselines the protocol can be run on."""

    def score(self, task: Task) -> Score:
        """Measure the task's encoder."""

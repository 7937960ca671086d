"""The protocols on cached features, and the names of all protocols."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from barlow.errors import InputError
from barlow.evaluation.accuracy import Answers, answers
from barlow.evaluation.few_shot import DRAWS, RIDGE, Method, few_shot
from barlow.evaluation.intervals import image_interval
from barlow.evaluation.knn import MIXED_K, MIXED_TEMPERATURE, TEMPERATURE, K, knn_predict, nearest
from barlow.evaluation.linear import C_GRID, HELD_OUT, choose_c, fit_linear
from barlow.evaluation.paper_linear import RELEASED_MIXED, PaperLinear
from barlow.evaluation.retrieval import average_precision, recall_at
from barlow.evaluation.semi_supervised import SemiSupervised, fine_tuning
from barlow.evaluation.task import EvaluationProtocol, Score, Task, accuracy

ON_FEATURES = ("raw-pixels", "pca-pixels", "random-init")
"""Baselines that have features like any encoder."""


@dataclass(frozen=True)
class KNN:
    """Weighted k-NN; `KNN()` is DINO's setting, `KNN(200, 0.5)` Mixed Barlow Twins'."""

    k: int = K
    temperature: float = TEMPERATURE
    baselines: ClassVar[tuple[str, ...]] = ON_FEATURES

    @property
    def name(self) -> str:
        named = {(K, TEMPERATURE): "knn", (MIXED_K, MIXED_TEMPERATURE): "knn-mixed"}
        return named.get((self.k, self.temperature), f"knn-k{self.k}-t{self.temperature:g}")

    def score(self, task: Task) -> Score:
        """Accuracy; k is at most the number of training samples. Warns where k is more than the smallest class."""
        k = min(self.k, len(task.train))
        predicted = knn_predict(
            task.train.x,
            task.train.labels,
            task.test.x,
            k=k,
            temperature=self.temperature,
            device=task.device,
        )
        settings = {"k": k, "temperature": self.temperature, "similarity": "cosine", "vote": "exp(similarity / T)"}
        smallest = int(np.unique(task.train.labels, return_counts=True)[1].min())
        words = f"k is {k}, but the smallest class has {smallest} training images"
        warning = f"{words}, so that every vote counts images of other classes"
        found = Answers(task.test.labels, predicted == task.test.labels)
        warnings = (warning,) if k > smallest else ()
        return accuracy(found, len(task.train), settings, seed=task.seed, warnings=warnings)


@dataclass(frozen=True)
class Linear:
    """Logistic regression on cached, standardised features; the regulariser is chosen on a slice of train."""

    c: float | None = None
    baselines: ClassVar[tuple[str, ...]] = ON_FEATURES
    name: ClassVar[str] = "linear"

    def score(self, task: Task) -> Score:
        """Accuracy; top-5 and the mean over classes in the details."""
        x, y = task.train.x, task.train.labels
        c = choose_c(x, y, seed=task.seed, device=task.device) if self.c is None else self.c
        probe = fit_linear(x, y, c=c, device=task.device)
        chosen = {"c_grid": list(C_GRID), "c_held_out_share_of_train": HELD_OUT} if self.c is None else {}
        settings = {"c": c, "solver": "L-BFGS", "features": "standardised", **chosen}
        found = answers(probe.scores(task.test.x), probe.classes, task.test.labels)
        warning = f"the probe at C = {c:g} ran out of iterations before it converged"
        warnings = () if probe.converged else (warning,)
        return accuracy(found, len(x), settings, seed=task.seed, warnings=warnings)


@dataclass(frozen=True)
class FewShot:
    """k-NN (k = shots) or ridge on `shots` samples of every class, over seeded draws."""

    shots: int = 1
    method: Method = "knn"
    draws: int = DRAWS
    baselines: ClassVar[tuple[str, ...]] = ON_FEATURES

    @property
    def name(self) -> str:
        return f"{self.shots}-shot" if self.method == "knn" else f"{self.shots}-shot-{self.method}"

    def score(self, task: Task) -> Score:
        """Mean accuracy over the draws."""
        train_y, test_y = task.train.labels, task.test.labels
        found = few_shot(
            task.train.x,
            train_y,
            task.test.x,
            test_y,
            shots=self.shots,
            draws=self.draws,
            method=self.method,
            seed=task.seed,
        )
        own = {"k": self.shots, "temperature": TEMPERATURE} if self.method == "knn" else {"penalty": RIDGE}
        settings = {"shots": self.shots, "draws": self.draws, "interval": "Student t over draws", **own}
        labelled = self.shots * len(np.unique(train_y))
        details = {"per_draw": list(found.accuracies)}
        return Score("accuracy", found.mean, found.interval, len(test_y), labelled, settings, details, found.right)


@dataclass(frozen=True)
class Retrieval:
    """Test images as queries, training images as the gallery."""

    ks: tuple[int, ...] = (1, 5, 10)
    baselines: ClassVar[tuple[str, ...]] = ON_FEATURES
    name: ClassVar[str] = "retrieval"

    def score(self, task: Task) -> Score:
        """Mean average precision; recall at k in the details. Both over the queries whose class the gallery has."""
        bank, queries = task.train, task.test
        ks = [k for k in self.ks if k <= len(bank)]
        _, rows = nearest(bank.x, queries.x, max(ks), device=task.device)
        precision = average_precision(bank.x, bank.labels, queries.x, queries.labels, device=task.device)
        there = ~np.isnan(precision)
        known = precision[there]
        if not len(known):
            raise InputError("no test image has a class of the training split: there is nothing to retrieve")
        found = {k: recall_at(bank.labels, queries.labels, rows, k)[there] for k in ks}
        recall = {f"recall@{k}": float(right.mean()) for k, right in found.items()}
        interval, method = image_interval(known, seed=task.seed)
        ranking = {"similarity": "cosine", "queries": "test", "gallery": "train", "ranking": "whole gallery"}
        settings = {**ranking, "interval": method}
        return Score("mAP", float(known.mean()), interval, len(known), len(bank), settings, recall, known)


PROTOCOLS: dict[str, tuple[EvaluationProtocol, ...]] = {
    "knn": (KNN(),),
    "knn-mixed": (KNN(MIXED_K, MIXED_TEMPERATURE),),
    "linear": (Linear(),),
    "few-shot": (FewShot(1), FewShot(5)),
    "few-shot-ridge": (FewShot(1, "ridge"), FewShot(5, "ridge")),
    "retrieval": (Retrieval(),),
    "linear-paper": (PaperLinear(),),
    "linear-mixed": (PaperLinear("linear-mixed", RELEASED_MIXED),),
    "linear-mixed-drifting": (PaperLinear("linear-mixed-drifting", RELEASED_MIXED, drifting=True),),
    "semi-supervised": (SemiSupervised(0.01), SemiSupervised(0.1)),
    "fine-tune": (fine_tuning(),),
}
"""Protocols by name, as the command line takes them."""

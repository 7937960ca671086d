"""VOC07 classification: one linear SVM per class on frozen features, 11-point mean average precision."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from barlow.data import Source, open_source
from barlow.errors import InputError
from barlow.evaluation.features import preprocess_of
from barlow.evaluation.intervals import LEVEL
from barlow.evaluation.knn import unit_rows
from barlow.evaluation.session import Result, Settings, Splits, measure
from barlow.evaluation.task import Score, Subset, Task
from barlow.models import Encoder, load_encoder
from barlow.records import typed
from barlow.run import Run

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

COSTS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""SVM costs tried; the one with the best average precision over three folds of the training split is taken."""

POSITIVE_WEIGHT = 2.0
"""Weight of a positive sample over a negative one, as in the benchmark of Goyal et al. 2019 (arXiv 1905.01235)."""

RESAMPLES = 500
"""Bootstrap resamples of the test images; each computes every class's average precision anew."""


def voc07(
    run: Run | Encoder | str | Path,
    root: str | Path,
    *,
    splits: tuple[str, str] = ("trainval", "test"),
    jobs: int = 1,
    seed: int = 0,
    **settings: Unpack[Settings],
) -> Result:
    """Evaluate on a folder in VOC layout (`JPEGImages/`, `ImageSets/Main/<class>_<split>.txt`), such as VOC2007.

    `jobs` processes cross-validate at the same time.

    Raises:
        InputError: The folder lacks a part of the layout, or an image that a list names.
    """
    encoder = run if isinstance(run, Encoder) else load_encoder(run)
    folder = Path(root)
    source = open_source(folder / "JPEGImages", channels=preprocess_of(encoder).channels)
    classes = voc_classes(folder, splits[0])
    (train, train_y), (test, test_y) = (_split(folder, source, classes, name) for name in splits)
    protocol = LinearSVMs(train_y, test_y, classes, jobs)
    words = f"the data's own: fitted on {splits[0]}, scored on {splits[1]}"
    (result,) = measure(run, Splits(train, test, words), [protocol], seed=seed, **settings)
    return result


def voc_classes(root: Path, split: str) -> tuple[str, ...]:
    """Class names in alphabetical order, from the names of the lists of a split."""
    ending = f"_{split}.txt"
    found = sorted(file.name[: -len(ending)] for file in (root / "ImageSets" / "Main").glob(f"*{ending}"))
    if not found:
        raise InputError(f"{root} has no ImageSets/Main/*{ending}: give the folder VOC2007 inside VOCdevkit")
    return tuple(found)


def _split(root: Path, source: Source, classes: tuple[str, ...], split: str) -> tuple[Subset, Ints]:
    """Images of a split and their labels [N, K]: 1 there, -1 not there, 0 there but difficult (not counted)."""
    columns = []
    for name in classes:
        file = root / "ImageSets" / "Main" / f"{name}_{split}.txt"
        rows = [line.split() for line in file.read_text(errors="replace").splitlines() if line.strip()]
        columns.append(dict(typed(rows, list[tuple[str, Literal[-1, 0, 1]]], file, strict=False)))
    position = {Path(key).stem: index for index, key in enumerate(source.keys)}
    images = list(columns[0])
    missing = [image for image in images if image not in position]
    if missing or any(set(column) != set(images) for column in columns):
        raise InputError(
            f"{root}: the lists of {split} and JPEGImages disagree, for instance on {missing[:1] or split}"
        )
    labels = np.array([[column[image] for column in columns] for image in images], dtype=np.int64)
    return Subset(source, np.array([position[image] for image in images], dtype=np.int64)), labels


def eleven_point_ap(present: NDArray[np.bool_], scores: Floats) -> float:
    """VOC2007's average precision: mean over recall r = 0, .1, ..., 1 of the best precision at recall r or more."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(present[order])
    if hits[-1] == 0:
        return float("nan")
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / hits[-1]
    best = [precision[recall >= r - 1e-12].max(initial=0.0) for r in np.linspace(0, 1, 11)]
    return float(np.mean(best))


def area_ap(present: NDArray[np.bool_], scores: Floats) -> float:
    """Area under the curve of the best precision at a recall or more: VOC's since 2010, and that of VISSL's SVMs."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(present[order])
    if hits[-1] == 0:
        return float("nan")
    best = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(best[present[order]].mean())  # recall rises by one share at every hit


def mean_ap(
    labels: Ints, scores: Floats, precision: Callable[[NDArray[np.bool_], Floats], float] = eleven_point_ap
) -> tuple[float, list[float]]:
    """Mean of the classes' average precision, and each class's; difficult samples (0) of a class are left out."""
    each = []
    for column, values in zip(labels.T, scores.T, strict=True):
        counted = column != 0
        each.append(precision(column[counted] == 1, values[counted]))
    return float(np.nanmean(each)), each


def fit_svm(x: Floats, y: Ints, *, jobs: int = 1) -> LinearSVC:
    """A linear SVM of labels 1 and -1, its cost chosen by three-fold cross-validation on the same samples."""
    folds = min(3, int((y == 1).sum()), int((y == -1).sum()))
    if folds < 2:
        raise InputError("a linear SVM needs two samples with the class and two without in the training split")
    means = [cross_val_score(_svm(c), x, y, cv=folds, scoring="average_precision", n_jobs=jobs).mean() for c in COSTS]
    return _svm(COSTS[int(np.argmax(means))]).fit(x, y)


def _svm(cost: float) -> LinearSVC:
    return LinearSVC(C=cost, class_weight={1: POSITIVE_WEIGHT, -1: 1.0}, max_iter=20_000, random_state=0)


@dataclass(frozen=True, eq=False)
class LinearSVMs:
    """Multi-label classification; labels [N, K] and [M, K] of the task's splits are 1, -1, or 0 (difficult)."""

    train_y: Ints
    test_y: Ints
    classes: tuple[str, ...]
    jobs: int = 1
    name: ClassVar[str] = "voc07-svm"
    baselines: ClassVar[tuple[str, ...]] = ("raw-pixels", "pca-pixels", "random-init")

    def score(self, task: Task) -> Score:
        """11-point mean average precision; in the details that by the area under the curve, as VISSL has it."""
        self._check(task)
        train_x, test_x = (unit_rows(part.x, "cpu", np.float64).numpy() for part in (task.train, task.test))
        columns = []
        for labels in self.train_y.T:
            counted = labels != 0
            columns.append(fit_svm(train_x[counted], labels[counted], jobs=self.jobs).decision_function(test_x))
        scores = np.stack(columns, axis=1)
        value, each = mean_ap(self.test_y, scores)
        settings = {
            "costs": list(COSTS),
            "cost_chosen_by": "average precision, 3 folds of the training split",
            "positive_weight": POSITIVE_WEIGHT,
            "features": "rows of length one",
            "interval": f"bootstrap over test images, {RESAMPLES} resamples",
        }
        interval = self._interval(scores, task.seed)
        area, _ = mean_ap(self.test_y, scores, area_ap)
        details = {"per_class": dict(zip(self.classes, each, strict=True)), "mAP, area under the curve": area}
        return Score("11-point mAP", value, interval, len(test_x), len(train_x), settings, details)

    def _check(self, task: Task) -> None:
        if len(task.train) != len(self.train_y) or len(task.test) != len(self.test_y):
            raise InputError("some images of the split cannot be read: labels and features do not correspond")

    def _interval(self, scores: Floats, seed: int) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        draws = (rng.integers(len(scores), size=len(scores)) for _ in range(RESAMPLES))
        values = [mean_ap(self.test_y[rows], scores[rows])[0] for rows in draws]
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

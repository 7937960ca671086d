"""Protocols run on one pair of splits, and the results they give."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray

from barlow.data import Source, difference, holdout_split, identity
from barlow.data.content import content_hashes
from barlow.errors import InputError, suggest
from barlow.evaluation.baselines import PIXEL_SIDE, calibrate, principal_pixels, random_init, raw_pixels
from barlow.evaluation.features import BATCH_SIZE, choose_device, device_of, preprocess_of
from barlow.evaluation.frozen import frozen
from barlow.evaluation.intervals import LEVEL
from barlow.evaluation.overlap import overlap
from barlow.evaluation.paired import pack
from barlow.evaluation.task import EvaluationProtocol, Ints, Score, Subset, Task
from barlow.models import Encoder, load_encoder
from barlow.run import Run

BASELINES: dict[str, Callable[[Encoder, Subset, int], Encoder]] = {
    "raw-pixels": lambda encoder, train, seed: raw_pixels(encoder),
    "pca-pixels": lambda encoder, train, seed: principal_pixels(encoder, train.source, train.indices),
    "random-init": lambda encoder, train, seed: calibrate(
        random_init(encoder, seed=seed).to(device_of(encoder)), train.source, train.indices, seed=seed
    ),
}
"""Encoders made from the one under test and the training split."""

RANDOM_SEEDS = 3
"""Random networks whose mean is the baseline of a frozen encoder."""


@dataclass(frozen=True)
class Result:
    """One score and everything needed to repeat or to doubt it."""

    protocol: str
    data: str
    metric: str
    value: float
    interval: tuple[float, float]
    n: int
    n_train: int
    split: str
    seed: int
    settings: Mapping[str, Any]
    wall_s: float
    encoder_hash: str
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    finished: str = ""
    per_image: Mapping[str, Any] = field(default_factory=dict)
    """what was averaged, for `compare_scores`; empty where the metric is no mean over images"""

    @property
    def title(self) -> str:
        """The protocol as people call it."""
        return protocol_title(self.protocol, self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "interval": list(self.interval), "warnings": list(self.warnings)}


def protocol_title(protocol: str, settings: Mapping[str, Any]) -> str:
    """A protocol as people call it; a k-NN always with its k and T, without which it cannot be compared."""
    name = {"linear": "linear probe", "knn": "k-NN"}.get(protocol, protocol)
    k, temperature = settings.get("k"), settings.get("temperature")
    if k is None or temperature is None:
        return name
    name = "k-NN" if protocol.startswith("knn") else f"{name} k-NN"
    return f"{name} (k {k}, T {temperature:g})"


@dataclass(frozen=True)
class Splits:
    """Training and evaluation samples, and in words where they come from."""

    train: Subset
    test: Subset
    words: str


class Settings(TypedDict, total=False):
    """Settings of `measure` that everything built on it passes on."""

    baselines: Sequence[str]
    """names of `BASELINES`"""
    batch_size: int
    """samples per forward pass"""
    device: str | torch.device | None
    """None: a GPU where there is one"""
    workers: int | None
    """readers of images at a time; None: one per processor for image files"""
    check_overlap: bool
    """hash the images of both splits and of pretraining, and warn about images that are in two of them"""
    save: bool
    """write the results into the run's folder"""


def measure(
    run: Run | Encoder | str | Path,
    splits: Splits,
    protocols: Iterable[EvaluationProtocol],
    *,
    seed: int,
    baselines: Sequence[str] = ("raw-pixels", "random-init"),
    batch_size: int = BATCH_SIZE,
    device: str | torch.device | None = None,
    workers: int | None = None,
    check_overlap: bool = True,
    save: bool = True,
) -> list[Result]:
    """`evaluate` on splits that are given. Each result is saved when it is there: what stops a later one leaves it."""
    names = [known_name("baseline", name, BASELINES) for name in baselines]
    encoder = run if isinstance(run, Encoder) else load_encoder(run)
    target = choose_device(device)
    home = run_of(run)
    warnings = _unknown_classes(splits) + (_warnings(splits, home) if check_overlap else ())
    base = Task(encoder.to(target), splits.train, splits.test, seed, batch_size, target, workers)
    results = []
    for result in Session(base, names, splits.words, warnings, check_overlap).measure(protocols):
        results.append(result)
        if save and home is not None:
            try:
                home.save_evaluation(result.to_dict())
            except OSError as error:
                warn(f"this result is not saved: {error.filename}: {error.strerror or error}", stacklevel=2)
    return results


def known_name(what: str, name: str, options: Iterable[str]) -> str:
    if name not in options:
        raise InputError(f"unknown {what} '{name}'. {suggest(name, options)}")
    return name


def run_of(run: Run | Encoder | str | Path) -> Run | None:
    """The run folder, or None for an encoder that stands alone."""
    try:
        return None if isinstance(run, Encoder) else Run(run)
    except InputError:
        return None


def everything(source: Source) -> Subset:
    return Subset(source, np.arange(len(source), dtype=np.int64))


@dataclass
class Session:
    """Protocols over one task; every baseline's encoder and features are made once."""

    task: Task
    baselines: Sequence[str]
    split: str
    warnings: tuple[str, ...] = ()
    overlap_checked: bool = False
    _tasks: dict[tuple[str, int], Task] = field(default_factory=dict)

    def measure(self, protocols: Iterable[EvaluationProtocol]) -> Iterator[Result]:
        """One result per protocol. Raises RuntimeError if a protocol changed the encoder."""
        for protocol in protocols:
            with frozen(self.task.encoder) as digest:
                score, wall = _timed(protocol, self.task)
            beside, missing = self._beside(protocol)
            yield self._result(protocol.name, score, wall, digest, beside, missing)

    def _beside(self, protocol: EvaluationProtocol) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
        """Scores of the baselines, and which were left out for what reason."""
        scores, missing = {}, []
        for name in (name for name in self.baselines if name in protocol.baselines):
            # pixels as features mean a frozen encoder; a network that is trained anew for each seed would take too long
            seeds = RANDOM_SEEDS if name == "random-init" and "raw-pixels" in protocol.baselines else 1
            try:
                scores[name] = self._mean([protocol.score(self._task(name, seed)) for seed in range(seeds)])
            except InputError as error:
                missing.append(f"baseline {name} left out: {error}")
        return scores, tuple(missing)

    def _mean(self, scores: Sequence[Score]) -> dict[str, Any]:
        """The mean of one baseline's scores; its interval, as wide as theirs are on average, is over test images."""
        values = [score.value for score in scores]
        low, high = np.mean([score.interval for score in scores], axis=0).tolist()
        found = {"value": float(np.mean(values)), "interval": [low, high]}
        if len(scores) > 1:
            found |= {"per_seed": values, "spread": float(np.std(values, ddof=1))}
        each = [score.values for score in scores if score.values is not None]
        mean = np.mean(each, axis=0) if len(each) > 1 else next(iter(each), None)
        return found | {"per_image": self._packed(mean)}

    def _packed(self, values: NDArray[Any] | None) -> dict[str, Any]:
        """Values with what names their images; empty where an image is left out, so that positions would not fit."""
        test = self.task.test_set
        if values is None or values.shape[-1] != len(test):
            return {}
        return pack(values, [f"{test.source.keys[i]} {y}" for i, y in zip(test.indices, test.labels, strict=True)])

    def _task(self, name: str, seed: int) -> Task:
        if (name, seed) not in self._tasks:
            encoder = BASELINES[name](self.task.encoder, self.task.train_set, self.task.seed + seed)
            self._tasks[name, seed] = self.task.with_encoder(encoder)
        return self._tasks[name, seed]

    def _result(
        self,
        protocol: str,
        score: Score,
        wall: float,
        digest: str,
        beside: dict[str, dict[str, Any]],
        missing: tuple[str, ...],
    ) -> Result:
        return Result(
            protocol=protocol,
            data=self.task.test_set.source.name,
            metric=score.metric,
            value=score.value,
            interval=score.interval,
            n=score.n,
            n_train=score.n_train,
            split=self.split,
            seed=self.task.seed,
            settings={**self._common_settings(), **score.settings},
            wall_s=round(wall, 3),
            encoder_hash=digest,
            baselines=beside,
            warnings=self.warnings + self._unreadable() + score.warnings + missing,
            details=score.details,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            per_image=self._packed(score.values),
        )

    def _unreadable(self) -> tuple[str, ...]:
        sizes = {"training": len(self.task.train_set), "evaluation": len(self.task.test_set)}
        counts = sorted(self.task.unreadable.items())
        return tuple(f"{n} of {sizes[split]} {split} samples could not be read and are left out" for split, n in counts)

    def _common_settings(self) -> dict[str, Any]:
        """What every protocol shares, unless its own settings say otherwise."""
        preprocess = preprocess_of(self.task.encoder)
        return {
            "interval_level": LEVEL,
            "image_size": preprocess.image_size,
            "resize": preprocess.resize or preprocess.image_size,
            "interpolation": preprocess.interpolation,
            "encoder_mode": "eval",
            "overlap_checked": self.overlap_checked,
            "raw_pixels_side": min(preprocess.image_size, PIXEL_SIDE),
            "device": self.task.device.type,
            "batch_size_of_extraction": self.task.batch_size,
        }


def _timed(protocol: EvaluationProtocol, task: Task) -> tuple[Score, float]:
    """The score, and the seconds it took with the features it needs, whether or not they were there already."""
    before, started = task.extraction_s, time.perf_counter()
    score = protocol.score(task)
    return score, time.perf_counter() - started + before


def _unknown_classes(splits: Splits) -> tuple[str, ...]:
    """A warning of scored samples whose class no training sample has, which no answer can get right."""
    sources = splits.train.source, splits.test.source
    if any(source.labels is None for source in sources):
        return ()
    unknown = int((~np.isin(splits.test.labels, splits.train.labels)).sum())
    words = f"{unknown} of {len(splits.test)} evaluation images are of classes that the training split lacks"
    return (f"{words}: they count as missed",) if unknown else ()


def _warnings(splits: Splits, run: Run | None) -> tuple[str, ...]:
    tested, found = content_hashes(splits.test.source, splits.test.indices), []
    train_hashes = set(content_hashes(splits.train.source, splits.train.indices))
    shared = overlap(tested, train_hashes)
    if shared:
        found.append(f"{shared} of {len(tested)} evaluation images are also in the labelled training split")
    try:
        trained = None if run is None else _pretraining_set(run)
    except InputError as error:
        trained = None
        found.append(f"whether pretraining has seen the evaluation images is not known: {error}")
    if trained is not None:
        same = _same_subset(trained, splits.train)
        hashes = train_hashes if same else set(content_hashes(trained.source, trained.indices))
        seen = overlap(tested, hashes)
        if seen:
            found.append(f"{seen} of {len(tested)} evaluation images were seen, without labels, in pretraining")
    return tuple(found)


def _same_subset(a: Subset, b: Subset) -> bool:
    """Whether both are the same rows of the same files, so that their contents need not be read twice."""
    return np.array_equal(a.indices, b.indices) and a.source.fingerprint() == b.source.fingerprint()


def _pretraining_set(run: Run) -> Subset:
    """The samples the run was trained on. Raises InputError where they cannot be told, as `Run.open_data` does."""
    source = run.open_data()
    return Subset(source, _pretraining_rows(run, source)[0])


def _pretraining_rows(run: Run, source: Source) -> tuple[Ints, Ints]:
    """Rows of the run's data that were trained on, and rows it held out: a pure function of its seed."""
    held = run.facts["n_held"]
    if not held:
        return everything(source).indices, np.arange(0)
    return holdout_split(len(source), share=held / len(source), seed=run.config.training.seed)


def split_of_pretraining(run: Run, source: Source) -> tuple[Subset, Subset] | None:
    """Samples of `source` that the run was trained on and those it held out; None where it was trained on other data,
    or on all of it."""
    if "data" not in run.facts or difference(run.facts["data"], identity(source)):
        return None
    trained, held = _pretraining_rows(run, source)
    return (Subset(source, trained), Subset(source, held)) if len(held) else None

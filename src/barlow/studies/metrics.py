"""What a study collects from a finished run: numbers and curves, all of its held-out slice."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from barlow.data import Source
from barlow.evaluation import EvaluationProtocol, FewShot, Linear, Subset, extract, knn_accuracy, raw_pixels
from barlow.evaluation.knn import TEMPERATURE, K
from barlow.evaluation.session import Splits, measure
from barlow.plan import split_indices
from barlow.run import Run
from barlow.studies.bottleneck import bottleneck_curves
from barlow.studies.study import Study
from barlow.training.validation import BANK, drawn

Curve = list[list[float]]  # [epoch, value], as JSON has it
Measured = dict[str, Any]  # metric -> float, None or Curve; HEALTH -> the state, or None
HEALTH = "health"
HEALTHY = "healthy"


@dataclass(frozen=True)
class Metric:
    """How a metric is written."""

    label: str
    unit: str = ""
    """written after the label; % values are stored as shares and shown times 100"""
    curve: bool = False
    higher_is_better: bool | None = None

    @property
    def title(self) -> str:
        """Label and unit, for an axis or a column."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def scale(self) -> float:
        """From stored to shown values."""
        return 100.0 if self.unit.startswith(("%", "points")) else 1.0

    def show(self, value: float, like: float | None = None) -> str:
        """A value in words, with as many decimals as `like` (itself) has within four significant digits."""
        shown, size = value * self.scale, abs((value if like is None else like) * self.scale)
        digits = 1 if self.scale == 100 else 3 - math.floor(math.log10(size)) if size > 0 else 3
        return f"{shown:.{min(max(digits, 0), 6)}f}"


METRICS: Mapping[str, Metric] = {
    "knn": Metric("k-NN accuracy", "%", higher_is_better=True),
    "knn_gain": Metric("k-NN accuracy above the untrained network", "points", higher_is_better=True),
    "knn_untrained": Metric("k-NN accuracy, untrained network", "%"),
    "knn_pixels": Metric("k-NN accuracy, raw pixels", "%"),
    "knn_curve": Metric("k-NN accuracy", "%", curve=True),
    "knn_mean": Metric("mean k-NN accuracy over training", "%", higher_is_better=True),
    "knn_drop": Metric("best k-NN accuracy less the last", "points", higher_is_better=False),
    "half_way": Metric("epochs to halve the untrained k-NN error", higher_is_better=False),
    "linear": Metric("linear accuracy", "%", higher_is_better=True),
    "linear_untrained": Metric("linear accuracy, untrained network", "%"),
    "linear_pixels": Metric("linear accuracy, raw pixels", "%"),
    "1-shot": Metric("1-shot accuracy", "%", higher_is_better=True),
    "5-shot": Metric("5-shot accuracy", "%", higher_is_better=True),
    "heldout_loss": Metric("held-out loss"),
    "heldout_loss_curve": Metric("held-out loss", curve=True),
    "loss_gap": Metric("held-out loss above training loss, share of it", "%"),
    "rankme": Metric("RankMe", higher_is_better=True),
    "dead_share": Metric("dead features", "%", higher_is_better=False),
    "mixing_encoder": Metric("deviation from linear mixing, features"),
    "mixing_projector": Metric("deviation from linear mixing, embedding"),
    "information_gauss_curve": Metric("I(Z;X), Gaussian", "nats", curve=True),
    "information_knn_curve": Metric("I(Z;X), k-NN", "nats", curve=True),
    "conditional_gauss_curve": Metric("H(Z|X), Gaussian", "nats", curve=True),
    "conditional_knn_curve": Metric("H(Z|X), k-NN", "nats", curve=True),
    "entropy_gauss_curve": Metric("H(Z), Gaussian", "nats", curve=True),
    "entropy_knn_curve": Metric("H(Z), k-NN", "nats", curve=True),
    "information_gauss_change": Metric("change of I(Z;X), Gaussian", "nats"),
    "information_knn_change": Metric("change of I(Z;X), nearest neighbours", "nats"),
    "conditional_gauss_change": Metric("change of H(Z|X), Gaussian", "nats"),
    "conditional_knn_change": Metric("change of H(Z|X), nearest neighbours", "nats"),
    "entropy_gauss_change": Metric("change of H(Z), Gaussian", "nats"),
    "entropy_knn_change": Metric("change of H(Z), nearest neighbours", "nats"),
}


BASELINES: Mapping[str, Mapping[str, str]] = {
    metric: {f"{metric}_untrained": "untrained network", f"{metric}_pixels": "raw pixels"}
    for metric in ("knn", "linear")
}
"""What a metric is held against: the same score of what has learnt nothing."""


def baselines_of(study: Study) -> tuple[str, ...]:
    """The baselines that the study measures: those of k-NN wherever it is a metric, and its own choice."""
    return tuple(BASELINES["knn"] if "knn" in study.metrics else ()) + study.baselines


def measured_of(study: Study) -> tuple[str, ...]:
    """Everything that a finished cell of the study has: metrics, baselines, and the state of its health."""
    return (*study.metrics, *baselines_of(study), HEALTH)


def collect(run: Run, source: Source, wanted: Iterable[str]) -> Measured:
    """The wanted metrics of a finished run on the data it was trained on; None where the data has no labels for it."""
    names = set(wanted)
    found: Measured = {}
    for offered, measurer in MEASURERS:
        if names & set(offered):
            found |= measurer(run, source, names & set(offered))
    return {name: found.get(name) for name in sorted(names)}


def _logged(run: Run, source: Source, names: set[str]) -> Measured:
    """From the run's own validations: k-NN (k 20, T .07), losses and rank."""
    records = run.metrics("validation")
    last, start = records[-1], records[0]
    knn: Curve = [[line["epoch"], line["knn"]] for line in records if "knn" in line]
    losses: Curve = [[line["epoch"], line["heldout_loss"]] for line in records]
    found: Measured = {name: last.get(name) for name in ("knn", "heldout_loss", "rankme", "dead_share")}
    gap = last["heldout_loss"] - last["train_loss"]
    found |= {"heldout_loss_curve": losses, "loss_gap": gap / last["train_loss"] if last["train_loss"] else None}
    if knn:
        found |= {"knn_untrained": start["knn"], "knn_gain": last["knn"] - start["knn"]}
        target = (1 + start["knn"]) / 2
        trained = [value for epoch, value in knn if epoch > 0]
        found |= {
            "knn_curve": knn,
            "knn_mean": sum(trained) / len(trained),
            "knn_drop": max(trained) - trained[-1],
            "half_way": first_reached(knn, target),
        }
    return found


def first_reached(curve: Curve, target: float) -> float | None:
    """Where the curve first reaches the target, linear between its points; None where it never does."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 >= target > y0:
            return x0 + (target - y0) / (y1 - y0) * (x1 - x0)
    return None


def _protocols(run: Run, source: Source, names: set[str]) -> Measured:
    """Linear and few-shot accuracy, fitted on what the run was trained on, scored on what it held out.

    With the baselines of the linear probe where they are asked for.
    """
    if source.labels is None:
        return {}
    train, held = (Subset(source, rows) for rows in split_indices(run.config, source))
    protocols: dict[str, EvaluationProtocol] = {"linear": Linear(), "1-shot": FewShot(1), "5-shot": FewShot(5)}
    beside = {"linear_untrained": "random-init", "linear_pixels": "raw-pixels"}
    given = {name: baseline for name, baseline in beside.items() if name in names}
    asked = [of for name, of in protocols.items() if name in names or (name == "linear" and given)]
    splits = Splits(train, held, "the run's own: fitted on what it was trained on, scored on what it held out")
    results = measure(
        run,
        splits,
        asked,
        seed=run.config.training.seed,
        baselines=tuple(given.values()),
        check_overlap=False,
        device=_device(run),
    )
    found: Measured = {result.protocol: result.value for result in results}
    linear = next((result.baselines for result in results if result.protocol == "linear"), {})
    return found | {name: linear[baseline]["value"] for name, baseline in given.items() if baseline in linear}


def _pixels(run: Run, source: Source, names: set[str]) -> Measured:
    """k-NN on raw pixels, with the neighbours, temperature and number of training samples of the run's validations."""
    if source.labels is None or len(np.unique(source.labels)) < 2:
        return {}
    train, held = split_indices(run.config, source)
    bank = drawn(train, BANK, run.config.training.seed)
    pixels = raw_pixels(run.encoder())
    known, asked = (extract(pixels, source, rows, device=_device(run)) for rows in (bank, held))
    k = min(K, len(bank))
    return {"knn_pixels": knn_accuracy(known.x, known.labels, asked.x, asked.labels, k=k, temperature=TEMPERATURE)}


def _health(run: Run, source: Source, names: set[str]) -> Measured:
    """The state of the last validation's verdict."""
    verdict = run.health().get("verdict")
    return {HEALTH: verdict["state"] if verdict else None}


def _device(run: Run) -> str:
    return str(run.facts["device"]).split(":")[0]


def _mixing(run: Run, source: Source, names: set[str]) -> Measured:
    """Deviation at equal shares, of the last validation; nothing for data that is not images."""
    deviations = run.health().get("mixing", {})
    return {f"mixing_{where}": values["0.5"] for where, values in deviations.items()}


def _information(run: Run, source: Source, names: set[str]) -> Measured:
    found: Measured = {}
    for name, curve in bottleneck_curves(run, source).items():
        found |= {f"{name}_curve": curve, f"{name}_change": curve[-1][1] - curve[0][1]}
    return found


Measurer = Callable[[Run, Source, set[str]], Measured]
_BOTTLENECK = tuple(name for name in METRICS if name.startswith(("information_", "conditional_", "entropy_")))
_LOGGED = (
    *("knn", "knn_curve", "knn_mean", "knn_drop", "half_way", "knn_gain", "knn_untrained"),
    *("heldout_loss", "heldout_loss_curve", "loss_gap", "rankme", "dead_share"),
)
MEASURERS: tuple[tuple[tuple[str, ...], Measurer], ...] = (
    (_LOGGED, _logged),
    (("linear", "1-shot", "5-shot", "linear_untrained", "linear_pixels"), _protocols),
    (("knn_pixels",), _pixels),
    ((HEALTH,), _health),
    (("mixing_encoder", "mixing_projector"), _mixing),
    (_BOTTLENECK, _information),
)

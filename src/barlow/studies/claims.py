"""Findings of the papers, and the rule that says of each whether a study's results bear it out.

A finding is a linear contrast of cell means (a difference, a trend, a difference of differences) with the range that it
should lie in. Its standard error comes from the spread over seeds: the residuals after the means of cells and of seeds
are taken out, pooled over all cells of the study; or the contrast's own spread over the seeds where that is larger.
The verdict is read off the interval alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Group = tuple[str, ...]  # one level per axis
Values = Mapping[Group, Mapping[int, float]]  # group -> seed -> value
Weights = Mapping[Group, float]
Verdict = Literal["confirmed", "not confirmed", "not resolvable at this budget"]
OPEN: Verdict = "not resolvable at this budget"
LEVEL = 0.95
FIRST, LAST = "(first)", "(last)"
"""Levels of a selector: the first and the last that has results."""


class MissingCells(Exception):  # noqa: N818  a state of the study, not an error
    """A contrast speaks of cells that have no results."""


@dataclass(frozen=True)
class Results:
    """One metric of a study's finished cells."""

    axes: tuple[str, ...]
    values: Values

    def levels(self, axis: str) -> list[str]:
        """The levels of an axis that have results, in order."""
        place = self.axes.index(axis)
        return list(dict.fromkeys(group[place] for group in self.values))

    def select(self, selector: Mapping[str, str]) -> list[Group]:
        """The groups with those levels. Raises MissingCells when there is none."""
        wanted = {axis: self._level(axis, level) for axis, level in selector.items()}
        places = {self.axes.index(axis): level for axis, level in wanted.items()}
        found = [group for group in self.values if all(group[i] == level for i, level in places.items())]
        if not found:
            raise MissingCells(", ".join(f"{axis} {level}" for axis, level in wanted.items()) or "any")
        return found

    def _level(self, axis: str, level: str) -> str:
        if level not in (FIRST, LAST):
            return level
        present = self.levels(axis)
        if len(present) < 2:
            raise MissingCells(f"more than one level of {axis}")
        return present[0 if level == FIRST else -1]


Contrast = Callable[[Results], Weights]


def mean_of(**selector: str) -> Contrast:
    """The mean of the selected cells."""

    def weights(results: Results) -> Weights:
        groups = results.select(selector)
        return dict.fromkeys(groups, 1 / len(groups))

    return weights


def difference(plus: Mapping[str, str], minus: Mapping[str, str]) -> Contrast:
    """Mean of the cells with the levels `plus`, less that of those with `minus`; what is not named is averaged over.

    Only pairs count: a cell takes part when the other side has the one with the same other levels.
    """

    def weights(results: Results) -> Weights:
        sides = [_by_rest(results, side, free={*plus, *minus}) for side in (plus, minus)]
        shared = [rest for rest in sides[0] if rest in sides[1]]
        if not shared:
            raise MissingCells(f"{_words(plus)} beside {_words(minus)}")
        found: dict[Group, float] = {}
        for sign, side in zip((1, -1), sides, strict=True):
            for rest in shared:
                for group in side[rest]:
                    found[group] = found.get(group, 0.0) + sign / (len(shared) * len(side[rest]))
        return found

    return weights


def _by_rest(results: Results, selector: Mapping[str, str], free: set[str]) -> dict[Group, list[Group]]:
    """The selected groups by their levels on the axes that neither side names."""
    kept = [i for i, axis in enumerate(results.axes) if axis not in free]
    found: dict[Group, list[Group]] = {}
    for group in results.select(selector):
        found.setdefault(tuple(group[i] for i in kept), []).append(group)
    return found


def trend(axis: str, **selector: str) -> Contrast:
    """Least-squares slope per doubling of a numeric axis, averaged over what is not named."""

    def weights(results: Results) -> Weights:
        groups = results.select(selector)
        place = results.axes.index(axis)
        position = np.log2([float(group[place]) for group in groups])
        centred = position - position.mean()
        if not np.any(centred):
            raise MissingCells(f"more than one level of {axis}")
        return dict(zip(groups, (centred / (centred**2).sum()).tolist(), strict=True))

    return weights


def gain_of(first: Contrast, second: Contrast) -> Contrast:
    """One contrast less another: by how much more."""

    def weights(results: Results) -> Weights:
        found = dict(first(results))
        for group, weight in second(results).items():
            found[group] = found.get(group, 0.0) - weight
        return found

    return weights


@dataclass(frozen=True)
class Claim:
    """A paper's finding: in our words, with its figures, and the range its contrast should lie in."""

    text: str
    figures: str
    metric: str
    contrast: Contrast
    above: float | None = 0.0
    below: float | None = None


@dataclass(frozen=True)
class Finding:
    """What the results say of a claim."""

    claim: Claim
    verdict: Verdict
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    seeds: int = 0
    reason: str = ""


def judge(claim: Claim, results: Results) -> Finding:
    """The verdict: the interval lies inside the claimed range, outside it, or neither."""
    try:
        weights = claim.contrast(results)
    except MissingCells as missing:
        return Finding(claim, OPEN, reason=f"no results for {missing}")
    if not any(weights.values()):
        return Finding(claim, OPEN, reason="the levels that were run leave nothing to compare")
    seeds = _common_seeds(results.values, weights)
    if not seeds:
        return Finding(claim, OPEN, reason="no seed has results in all cells that are compared")
    per_seed = [sum(w * results.values[group][seed] for group, w in weights.items()) for seed in seeds]
    estimate = float(np.mean(per_seed))
    if len(seeds) < 2:
        return Finding(claim, OPEN, estimate, None, 1, "one seed has no spread; use --seeds 2 or more")
    error, freedom = standard_error(results.values, weights, seeds)
    margin = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    interval = (estimate - margin, estimate + margin)
    return Finding(claim, _verdict(interval, claim), estimate, interval, len(seeds))


def _verdict(interval: tuple[float, float], claim: Claim) -> Verdict:
    low, high = interval
    above = -math.inf if claim.above is None else claim.above
    below = math.inf if claim.below is None else claim.below
    if low > above and high < below:
        return "confirmed"
    return "not confirmed" if high < above or low > below else OPEN


def standard_error(values: Values, weights: Weights, seeds: Sequence[int]) -> tuple[float, int]:
    """Standard error of a contrast of means over `seeds`, and its degrees of freedom."""
    used = np.array([[values[group][seed] for seed in seeds] for group in weights])
    own = float(np.std(np.array(list(weights.values())) @ used, ddof=1)) / math.sqrt(len(seeds))
    table = _complete(values, seeds)
    residuals = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    freedom = (table.shape[0] - 1) * (len(seeds) - 1)
    if freedom < 2:
        return own, len(seeds) - 1
    spread = math.sqrt(float((residuals**2).sum()) / freedom)
    pooled = spread * math.sqrt(sum(w**2 for w in weights.values()) / len(seeds))
    return max(own, pooled), freedom


def _complete(values: Values, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Groups with a value for every seed [G, S]."""
    return np.array([[of[seed] for seed in seeds] for of in values.values() if all(seed in of for seed in seeds)])


def _common_seeds(values: Values, weights: Weights) -> list[int]:
    return sorted(set.intersection(*(set(values[group]) for group in weights)))


def _words(selector: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {level}" for axis, level in selector.items())

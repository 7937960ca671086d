"""Findings of the papers, and the rule that says of each whether a study's results bear it out.

A finding is a linear contrast of cell means (a difference, a trend, a difference of differences) with the range that it
should lie in. The interval of a contrast whose weights sum to zero is Welch's: every cell has its own spread over
seeds, and the degrees of freedom are Satterthwaite's. That of a mean is the t interval of its values over the seeds,
since all cells of a seed share its split. No spread is borrowed from other cells, and the verdict is read off the
interval alone.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Group = tuple[str, ...]  # one level per axis
Values = Mapping[Group, Mapping[int, float]]  # group -> seed -> value
Weights = Mapping[Group, float]
Verdict = Literal["confirmed", "not confirmed", "not resolvable at this budget"]
OPEN: Verdict = "not resolvable at this budget"
LEVEL = 0.95
BALANCED = 1e-9
"""Weights whose sum is smaller compare cells with each other: a shift common to all cells of a seed cancels."""
FIRST, LAST = "(first)", "(last)"
"""Levels of a selector: the first and the last that has results."""


class MissingCells(Exception):  # noqa: N818  a state of the study, not an error
    """A contrast speaks of cells that have no results."""


@dataclass(frozen=True)
class Results:
    """One metric of a study's finished cells."""

    axes: Mapping[str, Sequence[str]]
    """the levels of every axis, in the study's order"""
    values: Values

    def levels(self, axis: str) -> list[str]:
        """The levels of an axis that have results, in the study's order."""
        present = {group[self.place(axis)] for group in self.values}
        return [level for level in self.axes[axis] if level in present]

    def place(self, axis: str) -> int:
        """Where a group has its level of an axis."""
        return list(self.axes).index(axis)

    def resolve(self, selector: Mapping[str, str]) -> dict[str, str]:
        """The selector with the levels that FIRST and LAST stand for."""
        return {axis: self._level(axis, level) for axis, level in selector.items()}

    def select(self, selector: Mapping[str, str]) -> list[Group]:
        """The groups with those levels. Raises MissingCells when there is none."""
        wanted = self.resolve(selector)
        places = {self.place(axis): level for axis, level in wanted.items()}
        found = [group for group in self.values if all(group[i] == level for i, level in places.items())]
        if not found:
            raise MissingCells(_words(wanted) or "any")
        return found

    def _level(self, axis: str, level: str) -> str:
        if level not in (FIRST, LAST):
            return level
        present = self.levels(axis)
        if len(present) < 2:
            raise MissingCells(f"more than one level of {axis}")
        return present[0 if level == FIRST else -1]


@dataclass(frozen=True)
class Contrast:
    """What is compared: the cells' weights, and in words the levels that they have. Both raise MissingCells."""

    weights: Callable[[Results], Weights]
    words: Callable[[Results], str]


def mean_of(**selector: str) -> Contrast:
    """The mean of the selected cells."""

    def weights(results: Results) -> Weights:
        groups = results.select(selector)
        return dict.fromkeys(groups, 1 / len(groups))

    def words(results: Results) -> str:
        return f"the mean of {_side(results, selector)}{_over(results, weights(results), selector)}"

    return Contrast(weights, words)


def difference(plus: Mapping[str, str], minus: Mapping[str, str]) -> Contrast:
    """Mean of the cells with the levels `plus`, less that of those with `minus`; what is not named is averaged over.

    Only pairs count: a cell takes part when the other side has the one with the same other levels.
    """
    named = {*plus, *minus}

    def weights(results: Results) -> Weights:
        sides = [_by_rest(results, side, free=named) for side in (plus, minus)]
        shared = [rest for rest in sides[0] if rest in sides[1]]
        if not shared:
            raise MissingCells(f"{_words(plus)} beside {_words(minus)}")
        found: dict[Group, float] = {}
        for sign, side in zip((1, -1), sides, strict=True):
            for rest in shared:
                for group in side[rest]:
                    found[group] = found.get(group, 0.0) + sign / (len(shared) * len(side[rest]))
        return found

    def words(results: Results) -> str:
        sides = f"{_side(results, plus)}, less {_side(results, minus)}"
        return sides + _over(results, weights(results), named)

    return Contrast(weights, words)


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
        return _slope(results, axis, selector, results.levels(axis))

    def words(results: Results) -> str:
        return _side(results, selector) + _over(results, weights(results), selector)

    return Contrast(weights, words)


def steeper(axis: str, plus: Mapping[str, str], minus: Mapping[str, str]) -> Contrast:
    """The slope of `plus` less that of `minus`, both over the levels that the two have."""

    def weights(results: Results) -> Weights:
        both = [{group[results.place(axis)] for group in results.select(side)} for side in (plus, minus)]
        shared = both[0] & both[1]
        return _less(*(_slope(results, axis, side, shared) for side in (plus, minus)))

    def words(results: Results) -> str:
        sides = f"{_side(results, plus)}, less {_side(results, minus)}"
        return sides + _over(results, weights(results), {*plus, *minus})

    return Contrast(weights, words)


def _slope(results: Results, axis: str, selector: Mapping[str, str], among: Collection[str]) -> dict[Group, float]:
    """Weights of the slope per doubling, over the levels `among` of the axis."""
    place = results.place(axis)
    groups = [group for group in results.select(selector) if group[place] in among]
    position = np.log2([float(group[place]) for group in groups])
    centred = position - position.mean() if groups else position
    if not np.any(centred):
        raise MissingCells(f"more than one level of {axis}")
    return dict(zip(groups, (centred / (centred**2).sum()).tolist(), strict=True))


def gain_of(first: Contrast, second: Contrast) -> Contrast:
    """One contrast less another: by how much more."""

    def weights(results: Results) -> Weights:
        return _less(first.weights(results), second.weights(results))

    def words(results: Results) -> str:
        return f"({first.words(results)}) less ({second.words(results)})"

    return Contrast(weights, words)


def _less(first: Weights, second: Weights) -> Weights:
    found = dict(first)
    for group, weight in second.items():
        found[group] = found.get(group, 0.0) - weight
    return found


def _side(results: Results, selector: Mapping[str, str]) -> str:
    return _words(results.resolve(selector)) or "all cells"


def _over(results: Results, groups: Iterable[Group], named: Collection[str]) -> str:
    """The levels that take part of the axes that are not named: ", over width 16, 64"."""
    used = list(groups)
    parts = []
    for place, (axis, levels) in enumerate(results.axes.items()):
        present = {group[place] for group in used}
        if axis not in named:
            parts.append(f"{axis} {', '.join(level for level in levels if level in present)}")
    return f", over {' and '.join(parts)}" if parts else ""


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
    compared: str = ""
    """the levels of the cells that took part"""


def judge(claim: Claim, results: Results) -> Finding:
    """The verdict: the interval lies inside the claimed range, outside it, or neither."""
    try:
        weights, compared = claim.contrast.weights(results), claim.contrast.words(results)
    except MissingCells as missing:
        return Finding(claim, OPEN, reason=f"no results for {missing}")
    if not any(weights.values()):
        return Finding(claim, OPEN, reason="the levels that were run leave nothing to compare", compared=compared)
    seeds = _common_seeds(results.values, weights)
    if not seeds:
        return Finding(claim, OPEN, reason="no seed has results in all cells that are compared", compared=compared)
    per_seed = [sum(w * results.values[group][seed] for group, w in weights.items()) for seed in seeds]
    estimate = float(np.mean(per_seed))
    if len(seeds) < 2:
        return Finding(claim, OPEN, estimate, None, 1, "one seed has no spread; use --seeds 2 or more", compared)
    error, freedom = standard_error(results.values, weights, seeds)
    margin = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    interval = (estimate - margin, estimate + margin)
    return Finding(claim, _verdict(interval, claim), estimate, interval, len(seeds), compared=compared)


def _verdict(interval: tuple[float, float], claim: Claim) -> Verdict:
    low, high = interval
    above = -math.inf if claim.above is None else claim.above
    below = math.inf if claim.below is None else claim.below
    if low > above and high < below:
        return "confirmed"
    return "not confirmed" if high < above or low > below else OPEN


def standard_error(values: Values, weights: Weights, seeds: Sequence[int]) -> tuple[float, float]:
    """Standard error of a contrast of means over two `seeds` or more, and its degrees of freedom.

    Of cells that are compared, by Welch (1947) and Satterthwaite (1946); of a mean, by the spread of the seeds' means.
    """
    used = np.array([[values[group][seed] for seed in seeds] for group in weights])  # [G, S]
    factors, n = np.array(list(weights.values())), len(seeds)
    if abs(factors.sum()) > BALANCED:
        return float(np.std(factors @ used, ddof=1)) / math.sqrt(n), n - 1
    parts = factors**2 * used.var(axis=1, ddof=1) / n
    variance = float(parts.sum())
    if variance == 0:
        return 0.0, n - 1
    return math.sqrt(variance), variance**2 / float((parts**2).sum()) * (n - 1)


def _common_seeds(values: Values, weights: Weights) -> list[int]:
    return sorted(set.intersection(*(set(values[group]) for group in weights)))


def _words(selector: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {level}" for axis, level in selector.items())

"""The papers' experiments as data: grids of runs, tables, figures, and what they say of the papers' claims."""

from barlow.studies.catalogue import STUDIES
from barlow.studies.claims import Claim, Finding, difference, gain_of, judge, mean_of, steeper, trend
from barlow.studies.metrics import METRICS, Metric
from barlow.studies.plan import BUDGETS
from barlow.studies.results import StudyResults
from barlow.studies.runner import run_study
from barlow.studies.study import Axis, Figure, Study, numeric_axis

__all__ = [
    "BUDGETS",
    "METRICS",
    "STUDIES",
    "Axis",
    "Claim",
    "Figure",
    "Finding",
    "Metric",
    "Study",
    "StudyResults",
    "difference",
    "gain_of",
    "judge",
    "mean_of",
    "numeric_axis",
    "run_study",
    "steeper",
    "trend",
]

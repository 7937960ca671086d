"""Health without labels: rank, collapse, geometry, overfitting, the mixing assumption, and a verdict in words."""

from barlow.diagnostics.collapse import (
    correlation_sample,
    correlation_summary,
    cross_correlation,
    dead_share,
    relative_spread,
)
from barlow.diagnostics.geometry import alignment, class_distances, uniformity
from barlow.diagnostics.health import health
from barlow.diagnostics.inputs import distinct_share
from barlow.diagnostics.lidar import lidar
from barlow.diagnostics.mixing import deviation, mixing_deviation
from barlow.diagnostics.overfitting import overfitting_evidence, view_loss
from barlow.diagnostics.spectrum import alpha_req, covariance_eigenvalues, effective_rank, rankme, singular_values
from barlow.diagnostics.verdict import Evidence, State, Verdict, verdict
from barlow.objectives.expected import expected_initial_loss

__all__ = [
    "Evidence",
    "State",
    "Verdict",
    "alignment",
    "alpha_req",
    "class_distances",
    "correlation_sample",
    "correlation_summary",
    "covariance_eigenvalues",
    "cross_correlation",
    "dead_share",
    "deviation",
    "distinct_share",
    "effective_rank",
    "expected_initial_loss",
    "health",
    "lidar",
    "mixing_deviation",
    "overfitting_evidence",
    "rankme",
    "relative_spread",
    "singular_values",
    "uniformity",
    "verdict",
    "view_loss",
]

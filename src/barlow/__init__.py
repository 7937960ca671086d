"""Self-supervised learning by redundancy reduction: Barlow Twins and Mixed Barlow Twins.

The names below are imported on first use, so that `barlow --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from barlow.embedding import embed, search
    from barlow.errors import InputError
    from barlow.estimator import BarlowTwinsEncoder
    from barlow.evaluation import Features, evaluate, few_shot, knn_accuracy, linear_probe
    from barlow.exporting import export
    from barlow.models import load_encoder
    from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss
    from barlow.report import write_report
    from barlow.run import Run
    from barlow.training.pretrain import pretrain

_HOME = {
    "BarlowTwinsEncoder": "barlow.estimator",
    "BarlowTwinsLoss": "barlow.objectives",
    "Features": "barlow.evaluation",
    "InputError": "barlow.errors",
    "MixedBarlowTwinsLoss": "barlow.objectives",
    "Run": "barlow.run",
    "embed": "barlow.embedding",
    "evaluate": "barlow.evaluation",
    "export": "barlow.exporting",
    "few_shot": "barlow.evaluation",
    "knn_accuracy": "barlow.evaluation",
    "linear_probe": "barlow.evaluation",
    "load_encoder": "barlow.models",
    "pretrain": "barlow.training.pretrain",
    "search": "barlow.embedding",
    "write_report": "barlow.report",
}

__all__ = [
    "BarlowTwinsEncoder",
    "BarlowTwinsLoss",
    "Features",
    "InputError",
    "MixedBarlowTwinsLoss",
    "Run",
    "embed",
    "evaluate",
    "export",
    "few_shot",
    "knn_accuracy",
    "linear_probe",
    "load_encoder",
    "pretrain",
    "search",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'barlow' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

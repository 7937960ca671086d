"""The self-supervised methods, one per file: its facts, its head, its loss, and what it remembers.

To add a method, write its file and name it here. Nothing is imported before it is needed: the settings and the command
line read the names alone.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING, cast

from barlow.config import PretrainConfig, flag
from barlow.errors import InputError, suggest

if TYPE_CHECKING:  # the base class brings torch
    from barlow.methods.method import Method

METHODS = {
    "barlow-twins": "barlow_twins.BarlowTwins",
    "mixed-barlow-twins": "mixed_barlow_twins.MixedBarlowTwins",
    "simclr": "simclr.SimCLR",
    "moco-v2": "moco.MoCo",
    "byol": "byol.BYOL",
    "simsiam": "simsiam.SimSiam",
    "swav": "swav.SwAV",
    "vicreg": "vicreg.VICReg",
    "w-mse": "w_mse.WMSE",
    "dino": "dino.DINO",
}


def method_class(name: str) -> "type[Method]":
    """The class of a method. Raises InputError for an unknown name."""
    if name not in METHODS:
        raise InputError(f"unknown method '{name}'. {suggest(name, METHODS)}")
    module, attribute = METHODS[name].split(".")
    return cast("type[Method]", getattr(importlib.import_module(f"barlow.methods.{module}"), attribute))


# Settings of the objective that only some methods take; each method names its own.
OPTIONS = frozenset({"mix_global", "variant", "temperature", "predictor", "stop_gradient", "target_ema"})


def check_options(config: PretrainConfig) -> None:
    """Raise InputError where the method of `config` does not take one of its settings."""
    objective, method = config.objective, method_class(config.objective.method)
    for leaf in dataclasses.fields(objective):
        if leaf.name in OPTIONS - method.options and getattr(objective, leaf.name) != leaf.default:
            takers = [name for name in METHODS if leaf.name in method_class(name).options]
            raise InputError(f"--method {objective.method} takes no {flag(leaf.name)}; use it with {', '.join(takers)}")
    method.check(objective)
    if config.views.views not in (None, 2) and not method.takes_all_views:
        takers = [name for name in METHODS if method_class(name).takes_all_views]
        raise InputError(f"--method {objective.method} takes two views; more go with {', '.join(takers)}")
    if config.training.micro_batch is not None and not method.is_lean(objective):
        raise InputError(
            f"--micro-batch goes with methods that have encoder and projector alone; --method {objective.method} "
            "has more with these options"
        )

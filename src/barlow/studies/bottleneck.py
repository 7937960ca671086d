"""The information-bottleneck terms of a run's checkpoints."""

import numpy as np
from numpy.typing import NDArray

from barlow.data import Loader, Source
from barlow.diagnostics.forward import forward
from barlow.diagnostics.information import bottleneck_terms
from barlow.errors import InputError
from barlow.models.network import autocast
from barlow.plan import plan_from_dict, split_indices
from barlow.run import Run
from barlow.training.checkpoint import checkpoint_path, checkpoint_steps, load
from barlow.training.trainer import Trainer
from barlow.training.validation import FIXED_EPOCH, drawn

IMAGES, VIEWS = 128, 32
"""Held-out images, and random views of each."""


def bottleneck_curves(run: Run, source: Source) -> dict[str, list[list[float]]]:
    """(epoch, nats) of every term of `bottleneck_terms`, for the untrained network and every kept checkpoint.

    The embedding of `IMAGES` held-out images, the same `VIEWS` views of each at every checkpoint. Raises InputError
    for a run without held-out samples.
    """
    plan = plan_from_dict(run.facts)
    trainer = Trainer(run.config, plan)
    curves: dict[str, list[list[float]]] = {}
    for step in (0, *checkpoint_steps(run.checkpoints)):
        if step:
            trainer.load_state_dict(load(checkpoint_path(run.checkpoints, step))["trainer"])
        for name, value in bottleneck_terms(_embeddings(run, source, trainer)).items():
            curves.setdefault(name, []).append([step / plan.steps_per_epoch, value])
    return curves


def _embeddings(run: Run, source: Source, trainer: Trainer) -> NDArray[np.float32]:
    """Embeddings [N, V, D] of the held-out images' views."""
    _, held = split_indices(run.config, source)
    if len(held) < 2:
        raise InputError("the bottleneck is measured on held-out samples; set holdout above 0")
    rows = drawn(held, IMAGES, run.config.training.seed)
    found: list[NDArray[np.float32]] = []
    epoch = FIXED_EPOCH
    while len(found) < VIEWS:
        epoch -= 1  # none that validation or training ever sees
        loader = Loader(source, rows, len(rows), maker=trainer.cutter, seed=run.config.training.seed)
        batch = next(iter(loader.epoch(epoch)))
        order = np.argsort(batch.ids.numpy())
        for view in trainer.views(batch, epoch):
            with autocast(trainer.plan.device, trainer.plan.precision):
                _, z = forward(trainer.encoder, trainer.network.projector, view)
            found.append(z.float().cpu().numpy()[order])
    return np.stack(found[:VIEWS], axis=1)

"""`barlow replay`: the step that produced a NaN or an infinity, run again under torch's anomaly detection."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from barlow.data import Batch
from barlow.errors import InputError
from barlow.run import Run
from barlow.training.checkpoint import CheckpointError
from barlow.training.faults import load_replay, nonfinite_gradients
from barlow.training.plan import plan_from_dict
from barlow.training.trainer import Trainer


def replay(run: Run | str | Path) -> Iterator[str]:
    """Lines that tell what the failing step of a run did: terms, parameters with bad gradients, the operation.

    Raises InputError when the run kept no failing step or its file is damaged, or its encoder was the caller's own.
    """
    folder = Run(run)
    try:
        kept = load_replay(folder.path)
    except CheckpointError as error:
        raise InputError(str(error)) from None
    if kept is None:
        raise InputError(f"{folder.path} kept no failing step: nothing was not finite in it")
    if folder.config.model.encoder == "custom":
        raise InputError("a run of your own module cannot be replayed from its folder; call train_step yourself")
    fault, batch, state = kept
    yield f"{fault}; {len(batch['ids'])} samples, epoch {batch['epoch'] + 1}"
    # One process: of several ranks, the main one kept its part of the batch.
    trainer = Trainer(folder.config, dataclasses.replace(plan_from_dict(folder.facts), world_size=1))
    trainer.load_state_dict(state)
    yield from _run_again(trainer, Batch(batch["images"], batch["cuts"], batch["ids"], 0.0), batch["epoch"])


def _run_again(trainer: Trainer, batch: Batch, epoch: int) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the mode is slow, and the stack told below
            with torch.autograd.detect_anomaly(check_nan=True):
                terms = trainer.train_step(batch, epoch)
    except RuntimeError as error:
        yield f"anomaly detection: {str(error).splitlines()[0]}"
        return
    yield ", ".join(f"{name} {value.item():.6g}" for name, value in terms.items())
    bad = nonfinite_gradients(trainer.network)
    yield f"gradients that are not finite: {', '.join(bad)}" if bad else "every gradient is finite"

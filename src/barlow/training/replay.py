"""`barlow replay`: the step that produced a NaN or an infinity, run again under torch's anomaly detection."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from barlow.data import Batch
from barlow.errors import InputError
from barlow.plan import choose_device, plan_from_dict
from barlow.records import typed
from barlow.run import Run
from barlow.training.checkpoint import CheckpointError
from barlow.training.faults import KeptBatch, load_replay, nonfinite_gradients
from barlow.training.memory import is_out_of_memory
from barlow.training.trainer import Trainer


def replay(run: Run | str | Path, *, device: str | None = None) -> Iterator[str]:
    """Lines that tell what the failing step of a run did: terms, parameters with bad gradients, the operation.

    The batch of all ranks goes through one process, on `device`; the run's own when None. Mixing partners that each
    rank drew from its own samples are then drawn from all.

    Raises InputError when the run kept no failing step or its file is damaged, its encoder was the caller's own, or
    the device is not there or too small.
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
    fault, content, state = kept
    batch = typed(content, KeptBatch, f"the failing step of {folder.path}")
    yield f"{fault}; {len(batch['ids'])} samples, epoch {batch['epoch'] + 1}"
    plan = plan_from_dict(folder.facts)
    here = choose_device(device or torch.device(plan.device).type)
    alone = dataclasses.replace(plan, world_size=1, local_batch=len(batch["ids"]), device=here)
    try:
        trainer = Trainer(folder.config, alone, reference=batch["reference"])
        if batch["micro_batch"]:  # as much at once as on all ranks together
            trainer.micro_batch = batch["micro_batch"] * plan.world_size
        trainer.load_state_dict(state)
        yield from _run_again(trainer, Batch(batch["images"], batch["cuts"], batch["ids"], 0.0), batch["epoch"])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"the batch of {plan.world_size} ranks does not fit {here}; use --device cpu") from error


def _run_again(trainer: Trainer, batch: Batch, epoch: int) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the mode is slow, and the stack told below
            with torch.autograd.detect_anomaly(check_nan=True):
                terms = trainer.train_step(batch, epoch)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        yield f"anomaly detection: {str(error).splitlines()[0]}"
        return
    yield ", ".join(f"{name} {value.item():.6g}" for name, value in terms.items())
    bad = nonfinite_gradients(trainer.network)
    yield f"gradients that are not finite: {', '.join(bad)}" if bad else "every gradient is finite"

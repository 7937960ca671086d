"""From a run and data to results: every score with its protocol, split, seed, interval and baselines."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from barlow.data import Source, holdout_split, open_source
from barlow.errors import InputError, suggest
from barlow.evaluation.detection import detection_on_folder
from barlow.evaluation.features import preprocess_of
from barlow.evaluation.protocols import PROTOCOLS
from barlow.evaluation.session import (
    Result,
    Settings,
    Splits,
    everything,
    known_name,
    measure,
    run_of,
    split_of_pretraining,
)
from barlow.evaluation.task import EvaluationProtocol, Subset
from barlow.evaluation.voc07 import voc07
from barlow.models import Encoder, load_encoder
from barlow.run import Run

Data = str | Path | NDArray[Any] | Tensor | Source

ON_FOLDERS: dict[str, Callable[..., Result]] = {
    "voc07-svm": voc07,
    "faster-rcnn": detection_on_folder,
    "mask-rcnn": partial(detection_on_folder, masks=True),
}
"""Protocols by name whose data is a folder in a layout of its own: VOC's, or COCO's."""

TRAIN_SPLITS = ("trainval", "train")
"""Names of a data set's own training split, the first that exists is taken."""

TEST_SPLITS = ("test", "val", "valid", "validation")
"""Names of a data set's own evaluation split, the first that exists is taken."""


def evaluate(
    run: Run | Encoder | str | Path,
    data: Data,
    protocols: Iterable[str | EvaluationProtocol] = ("knn", "linear"),
    *,
    held_out: float = 0.2,
    seed: int = 0,
    **settings: Unpack[Settings],
) -> list[Result]:
    """Measure a run's encoder on labelled data, by each protocol, beside the baselines.

    Data with a test split of its own is evaluated on that, data the run was trained on on the samples it held out
    then; otherwise `held_out` of every class is held out, drawn from `seed`. The result says which.

    `protocols` are names (`PROTOCOLS`, or `ON_FOLDERS` when `data` is a folder with annotations) or protocol objects.
    Baselines go through the same protocol. Results of a run are saved in its folder. For the rest see `Settings`.

    Raises:
        InputError: Unknown names, data without labels, images the encoder cannot read.
    """
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, got {seed}")
    asked = [protocols] if isinstance(protocols, str) else list(protocols)
    on_folders = [name for name in asked if isinstance(name, str) and name in ON_FOLDERS]
    results = [ON_FOLDERS[name](run, _folder(data, name), seed=seed, **settings) for name in on_folders]
    if on_folders and len(on_folders) == len(asked):
        return results
    chosen = resolve([item for item in asked if item not in on_folders])
    encoder = run if isinstance(run, Encoder) else load_encoder(run)
    splits = split_data(data, channels=preprocess_of(encoder).channels, held_out=held_out, seed=seed, run=run_of(run))
    return results + measure(run, splits, chosen, seed=seed, **settings)


def _folder(data: Data, protocol: str) -> Path:
    if isinstance(data, str | Path) and Path(data).is_dir():
        return Path(data)
    given = data if isinstance(data, str | Path) else f"a {type(data).__name__}"
    raise InputError(f"{protocol} reads a folder in the layout of VOC or COCO, got {given}")


def resolve(protocols: Iterable[str | EvaluationProtocol]) -> list[EvaluationProtocol]:
    """Protocol objects of names and objects; a name may stand for several (`few-shot`)."""
    chosen: list[EvaluationProtocol] = []
    for item in protocols:
        chosen += PROTOCOLS[_protocol(item)] if isinstance(item, str) else [item]
    if not chosen:
        raise InputError(f"no protocol was asked for. {suggest('', [*PROTOCOLS, *ON_FOLDERS])}")
    return chosen


def _protocol(name: str) -> str:
    known_name("protocol", name, [*PROTOCOLS, *ON_FOLDERS])
    return name


def split_data(data: Data, *, channels: int, held_out: float, seed: int, run: Run | None = None) -> Splits:
    """Training and evaluation samples: the data's own test split; else what `run` held out, where this is the data it
    was trained on; else a seeded, stratified split.

    Raises InputError where there are no labels, or all are the same, or no class of the evaluation samples is among
    those of the training samples.
    """
    splits = _split_data(data, channels, held_out, seed, run)
    trained = np.unique(splits.train.labels)
    if len(trained) < 2:
        raise InputError(f"'{splits.train.source.name}' has labelled samples of one class only: nothing to tell apart")
    if not len(splits.test) or not np.isin(splits.test.labels, trained).any():
        fitted, scored = (_class_names(part) for part in (splits.train, splits.test))
        raise InputError(
            f"no class of the {len(splits.test)} samples to score ({scored}) is among those to fit on ({fitted}), so "
            "every answer would be wrong: name the classes of both splits alike, or give two or more samples of each"
        )
    return splits


def _class_names(part: Subset) -> str:
    """The first few classes of the samples, by name where they have one."""
    numbers, names = np.unique(part.labels), part.source.classes
    shown = [str(number) if names is None else names[number] for number in numbers[:3]]
    return ", ".join([*shown, "..."] if len(numbers) > 3 else shown) or "none"


def _split_data(data: Data, channels: int, held_out: float, seed: int, run: Run | None) -> Splits:
    whole = data if isinstance(data, Source) else open_source(data, channels=channels)
    own = next((name for name in TEST_SPLITS if name in whole.split_names), None)
    fit = next((name for name in TRAIN_SPLITS if name in whole.split_names), None)
    if own is not None and fit is not None and not isinstance(data, Source):  # a source is one split already
        train, test = (open_source(data, split=name, channels=channels) for name in (fit, own))
        _number_alike(train, test)
        words = f"the data's own: fitted on {fit}, scored on {own}"
        return Splits(_labelled(everything(train)), _labelled(everything(test)), words)
    of_run = None if run is None or whole.labels is None else split_of_pretraining(run, whole)
    if run is not None and of_run is not None:
        trained, unseen = (_labelled(part) for part in of_run)
        if len(trained) and len(unseen):
            words = "the run's own: fitted on what it was trained on, scored on what it held out"
            return Splits(trained, unseen, f"{words}, seed {run.config.training.seed}")
    labelled = _labelled(everything(whole))
    kept, held = holdout_split(labelled.labels, share=held_out, seed=seed)
    rows = labelled.indices
    words = f"{held_out:.0%} held out of every class, seed {seed}"
    return Splits(Subset(whole, rows[kept]), Subset(whole, rows[held]), words)


def _number_alike(train: Source, test: Source) -> None:
    """Number the classes of `test` as those of `train` are, by name; classes that `train` lacks come after them.

    Each split numbers the classes that it has, so that one folder missing in one of them would shift the others.
    """
    if train.classes is None or test.classes is None or test.labels is None or train.classes == test.classes:
        return
    classes = (*train.classes, *(name for name in test.classes if name not in train.classes))
    number = np.array([classes.index(name) for name in test.classes])
    test.labels = np.where(test.labels >= 0, number[test.labels], test.labels)
    test.classes = classes


def _labelled(part: Subset) -> Subset:
    """The samples that have a label (unlabelled ones are numbered below zero)."""
    return Subset(part.source, part.indices[part.labels >= 0])

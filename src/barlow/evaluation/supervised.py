"""Training a linear head on augmented images, on a frozen encoder or together with it."""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from barlow.data import Batch, Loader
from barlow.errors import InputError
from barlow.evaluation.accuracy import Answers, answers
from barlow.evaluation.features import choose_workers, preprocess_of
from barlow.evaluation.frozen import eval_mode
from barlow.evaluation.task import Subset, Task
from barlow.models import Encoder, Preprocess
from barlow.views import Recipe, ViewMaker, ViewRecipe

Ints = NDArray[np.int64]

CROP_AND_FLIP = ViewRecipe(interpolation="bilinear")
"""Random resized crop (8% to 100% of the area) and flip, torchvision's defaults as the official code uses them."""


@dataclass(frozen=True)
class Optimisation:
    """How a head, and the encoder when `lr_encoder` is above 0, are trained."""

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam"]
    """SGD has momentum 0.9"""
    lr_head: float
    weight_decay: float
    decay: Literal["cosine", "exponential"]
    """learning rate from epoch to epoch: cosine to 0, or a constant factor down to `EXPONENTIAL_END` of the start"""
    lr_encoder: float = 0.0
    least_steps: int = 0
    """with few images, epochs are added until there are this many steps"""
    view: ViewRecipe = CROP_AND_FLIP

    def batch_of(self, n: int) -> int:
        """Images per step with n in all."""
        return min(self.batch_size, n)

    def epochs_of(self, n: int) -> int:
        """Epochs with n images in all."""
        return max(self.epochs, math.ceil(self.least_steps / (n // self.batch_of(n))))

    def factor(self, progress: float) -> float:
        """Learning rate over its start, at a share of the epochs."""
        if self.decay == "exponential":
            return float(EXPONENTIAL_END**progress)
        return 0.5 * (1 + math.cos(math.pi * progress))

    def settings(self, n: int) -> dict[str, Any]:
        """Plain values for a result on n images; of the view only what differs from doing nothing."""
        nothing = ViewRecipe(crop_scale=None, flip=0.0)
        view = {name: value for name, value in asdict(self.view).items() if value != getattr(nothing, name)}
        return {**asdict(self), "view": view, "epochs": self.epochs_of(n), "batch_size": self.batch_of(n)}


EXPONENTIAL_END = 1e-4
"""Mixed Barlow Twins' linear evaluation goes from 1e-2 to 1e-6."""


@dataclass
class Classifier:
    """An encoder, a linear head on it, and the labels its outputs stand for."""

    encoder: Encoder
    head: nn.Linear
    classes: Ints

    @torch.no_grad()
    def answers(self, task: Task) -> Answers:
        """What each readable test image of the task gets, preprocessed as for any evaluation."""
        features = task.features("evaluation", self.encoder)
        scores = self.head(torch.from_numpy(features.x).to(self.head.weight.device))
        return answers(scores.cpu().numpy(), self.classes, features.labels)


def fit_classifier(task: Task, train: Subset, how: Optimisation, *, seed: int, drifting: bool = False) -> Classifier:
    """Train a head on the images of `train`; the task's encoder itself is never touched.

    A frozen encoder runs in eval mode; `drifting` leaves it in training mode, so that BatchNorm uses and updates
    its statistics, and a copy is what drifts. With `lr_encoder` a copy of the encoder is trained along.

    Raises:
        InputError: Samples that are not images, fewer than two of them, or weights that are not finite in the end.
    """
    check_images(train)
    classes, target = np.unique(train.labels, return_inverse=True)
    number = torch.zeros(len(train.source), dtype=torch.int64)
    number[torch.from_numpy(train.indices)] = torch.from_numpy(target)
    encoder = _trainee(task.encoder, how, drifting)
    head = _new_head(encoder.feature_dim, len(classes), seed).to(task.device)
    with eval_mode(encoder) if encoder is task.encoder else nullcontext():
        _train(encoder, head, number, augmented_batches(task, train, how, seed), how, how.epochs_of(len(train)))
    if encoder is not task.encoder:
        encoder.eval()
    if not all(torch.isfinite(weight).all() for weight in (head.weight, *encoder.parameters())):
        raise InputError(f"training the head diverged at learning rate {how.lr_head}: lower it (Optimisation.lr_head)")
    return Classifier(encoder, head, classes.astype(np.int64))


def check_images(train: Subset) -> None:
    if train.source.kind != "image" or len(train) < 2:
        raise InputError(
            f"this protocol trains on two or more images, '{train.source.name}' gives {len(train)} of kind "
            f"{train.source.kind}: use --protocols knn linear"
        )


def _trainee(encoder: Encoder, how: Optimisation, drifting: bool) -> Encoder:
    """The frozen encoder itself, or a copy in training mode where something of it is to change."""
    if not (drifting or how.lr_encoder):
        return encoder
    return copy.deepcopy(encoder).requires_grad_(bool(how.lr_encoder)).train()


def _train(
    encoder: Encoder,
    head: nn.Linear,
    number: Tensor,
    batches: Iterable[tuple[int, Tensor, Tensor]],
    how: Optimisation,
    epochs: int,
) -> None:
    optimizer = _optimizer(how, encoder, head)
    for epoch, views, ids in batches:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * how.factor(epoch / epochs)
        with torch.set_grad_enabled(bool(how.lr_encoder)):
            features = encoder(views)
        loss = F.cross_entropy(head(features), number[ids].to(views.device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _new_head(inputs: int, classes: int, seed: int) -> nn.Linear:
    """Weights from N(0, 0.01^2), biases 0, as the official evaluation code; the global generator is left alone."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, classes)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head


def _optimizer(how: Optimisation, encoder: Encoder, head: nn.Linear) -> torch.optim.Optimizer:
    groups = [{"params": list(head.parameters()), "lr": how.lr_head, "initial_lr": how.lr_head}]
    if how.lr_encoder:
        rate = {"lr": how.lr_encoder, "initial_lr": how.lr_encoder}
        groups.append({"params": list(encoder.parameters()), **rate})
    if how.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=how.weight_decay)
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=how.weight_decay)


def augmented_batches(task: Task, train: Subset, how: Optimisation, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(epoch, views [B, C, h, w] on the task's device, ids [B]) of all epochs; complete batches only."""
    maker = _maker(preprocess_of(task.encoder), how.view, seed)
    loader = Loader(
        train.source,
        train.indices,
        how.batch_of(len(train)),
        maker=maker,
        seed=seed,
        workers=choose_workers(train.source, task.workers),
        device=task.device,
    )
    for epoch in range(how.epochs_of(len(train))):
        for batch in loader.epoch(epoch):
            yield epoch, _view(maker, batch, epoch), batch.ids
    task.note_unreadable("training", len(loader.skipped))


def _view(maker: ViewMaker, batch: Batch, epoch: int) -> Tensor:
    if batch.cuts is not None:
        return maker.finish(batch.cuts, batch.ids, epoch)[0]
    if batch.images is None:
        raise RuntimeError("a batch holds neither images nor cuts")
    return maker(batch.images, batch.ids, epoch)[0]


def _maker(preprocess: Preprocess, view: ViewRecipe, seed: int) -> ViewMaker:
    return ViewMaker(
        Recipe("probe", (view,)),
        image_size=preprocess.image_size,
        channels=preprocess.channels,
        mean=preprocess.mean,
        std=preprocess.std,
        seed=seed,
    )

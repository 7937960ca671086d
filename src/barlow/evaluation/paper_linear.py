"""The papers' linear evaluations: a head trained by gradient descent on augmented images."""

from dataclasses import dataclass
from typing import ClassVar

from barlow.evaluation.supervised import Optimisation, fit_classifier
from barlow.evaluation.task import Score, Task, accuracy
from barlow.views import ViewRecipe

OFFICIAL = Optimisation(epochs=100, batch_size=256, optimizer="sgd", lr_head=0.3, weight_decay=1e-6, decay="cosine")
"""Barlow Twins, released code: random resized crop and flip."""

RELEASED_MIXED = Optimisation(
    epochs=200,
    batch_size=512,
    optimizer="adam",
    lr_head=1e-2,
    weight_decay=5e-6,
    decay="exponential",
    view=ViewRecipe(
        interpolation="bilinear", jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2
    ),
)
"""Mixed Barlow Twins, released code, CIFAR: the augmentation of pretraining."""


@dataclass(frozen=True)
class PaperLinear:
    """Head on a frozen encoder. Scored after the last epoch: the papers' code takes the best epoch on the test set."""

    name: str = "linear-paper"
    how: Optimisation = OFFICIAL
    drifting: bool = False
    """leave the encoder in training mode, as the released Mixed Barlow Twins code does: its statistics drift"""
    baselines: ClassVar[tuple[str, ...]] = ("raw-pixels", "random-init")

    def score(self, task: Task) -> Score:
        """Accuracy; top-5 and the mean over classes in the details."""
        trained = fit_classifier(task, task.train_set, self.how, seed=task.seed, drifting=self.drifting)
        found = trained.answers(task)
        settings = {
            **self.how.settings(len(task.train_set)),
            "encoder_mode": "train (drifting)" if self.drifting else "eval",
        }
        return accuracy(found, len(task.train_set), settings, seed=task.seed)

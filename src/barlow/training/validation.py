"""What is measured on held-out samples every few epochs: k-NN when there are labels, losses and rank without."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from barlow.data import CorruptSample, Loader, Source
from barlow.diagnostics import distinct_share, health
from barlow.evaluation import extract, knn_accuracy
from barlow.evaluation.knn import TEMPERATURE, K
from barlow.models import Encoder
from barlow.models.network import autocast
from barlow.objectives import BarlowTwinsLoss
from barlow.training.trainer import Trainer

Ints = NDArray[np.int64]

BANK = 5000  # training samples that the held-out ones are compared with
PAIRS = 512  # held-out samples whose views are kept for losses and rank
LOOKED_AT = 128  # held-out samples among which blank ones and copies are counted
FIXED_EPOCH = 2**31 - 1  # the same views at every validation, and none that training ever sees
SUMMARY = (
    "heldout_loss",
    "train_loss",
    "rankme",
    "embedding_effective_rank",
    "diagonal",
    "off_diagonal",
    "dead_share",
    "alignment",
    "uniformity",
)


def drawn(rows: Ints, n: int, seed: int) -> Ints:
    """At most `n` of the rows, drawn by the seed, ascending. The first `n` would be of the first classes only."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:n])


class Validator:
    """Scores a trainer's encoder on held-out samples; weights, modes and generators stay as they were."""

    def __init__(self, source: Source, train: Ints, held: Ints, trainer: Trainer) -> None:
        seed = trainer.config.training.seed
        self.source, self.held, self.n_train = source, held, len(train)
        self.bank, self.scored = drawn(self._labelled(train), BANK, seed), self._labelled(held)
        pairs = min(PAIRS, len(held), len(train))
        self.skipped: list[tuple[str, str]] = []
        self.held_views, self.pair_ids = self._views(drawn(held, pairs, seed), trainer)
        self.distinct_share = distinct_share(self._stored(drawn(self.pair_ids, LOOKED_AT, seed)))
        self.train_views, _ = self._views(drawn(train, pairs, seed), trainer)
        # One process measures: its loss must not wait for the others.
        alone: Any = dist.new_group([0]) if trainer.plan.world_size > 1 else None
        self.objective = BarlowTwinsLoss(trainer.plan.lambd, group=alone)
        self.history: list[dict[str, Any]] = []  # held-out loss, diagonal, and k-NN accuracy where there are labels

    def __call__(
        self, trainer: Trainer, encoder: Encoder, projector: nn.Module
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A flat record for metrics.jsonl and the full diagnostics for health.json."""
        encoder.preprocess = trainer.plan.preprocess()
        with autocast(trainer.plan.device, trainer.plan.precision):
            record = self._knn(encoder)
            found = self._health(trainer, encoder, projector, record.get("knn"))
        self.history.append({"heldout_loss": found["heldout_loss"], "diagonal": found.get("diagonal"), **record})
        return {**record, **{name: found[name] for name in SUMMARY if name in found}}, {**found, **record}

    def _stored(self, rows: Ints) -> Iterator[Tensor]:
        """The samples as they are stored, JPEGs at an eighth of their size; unreadable ones are left out."""
        for row in rows:
            with suppress(CorruptSample):
                yield self.source.image(int(row)).decode(8)[0]

    def _views(self, rows: Ints, trainer: Trainer) -> tuple[tuple[Tensor, Tensor], Ints]:
        """Two views of `rows`, made once, and the samples they are of, in ascending order."""
        loader = Loader(self.source, rows, len(rows), maker=trainer.cutter, seed=trainer.config.training.seed)
        batch = next(iter(loader.epoch(FIXED_EPOCH)))
        self.skipped += loader.skipped
        with torch.no_grad():
            first, second = trainer.views(batch, FIXED_EPOCH)[:2]
        order = torch.argsort(batch.ids)
        there = order.to(first.device)
        return (first[there], second[there]), batch.ids[order].numpy()

    def _labelled(self, rows: Ints) -> Ints:
        """Those with a label (unlabelled samples among labelled ones are numbered below zero)."""
        labels = self.source.labels
        return rows if labels is None else rows[labels[rows] >= 0]

    def _knn(self, encoder: Encoder) -> dict[str, float]:
        labels = self.source.labels
        if labels is None or len(np.unique(labels[self.bank])) < 2:
            return {}
        if not np.isin(labels[self.scored], labels[self.bank]).any():
            return {}  # no held-out sample has a class that the bank has: every answer would be wrong
        bank, held = (extract(encoder, self.source, rows) for rows in (self.bank, self.scored))
        if not (np.isfinite(bank.x).all() and np.isfinite(held.x).all()):
            return {}  # of a network that diverged there is no score; the losses tell
        k = min(K, len(bank))
        found = knn_accuracy(bank.x, bank.labels, held.x, held.labels, k=k, temperature=TEMPERATURE)
        return {"knn": found, "knn_k": k, "knn_temperature": TEMPERATURE}

    def _health(self, trainer: Trainer, encoder: Encoder, projector: nn.Module, knn: float | None) -> dict[str, Any]:
        labels = self.source.labels
        losses = [earlier["heldout_loss"] for earlier in self.history if earlier["heldout_loss"] is not None]
        return health(
            encoder,
            projector,
            self.held_views,
            self.objective,
            train_pairs=self.train_views,
            labels=None if labels is None else labels[self.pair_ids],
            n_train=self.n_train,
            step=trainer.step,
            initial_loss=self.history[0]["heldout_loss"] if self.history else None,
            initial_diagonal=self.history[0].get("diagonal") if self.history else None,  # not kept by earlier versions
            best_heldout_loss=min(losses, default=None),
            knn=knn,
            best_knn=max((earlier["knn"] for earlier in self.history if "knn" in earlier), default=None),
            distinct_share=self.distinct_share,
            knn_images=None if knn is None else len(self.scored),
            mixing=trainer.plan.kind == "image",
        )

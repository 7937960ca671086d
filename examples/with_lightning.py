"""Barlow Twins in PyTorch Lightning: the loss and the views of barlow, on one device or many.

    pip install pytorch-lightning
    python examples/with_lightning.py [--epochs 20]

With `Trainer(strategy="ddp")` the loss finds the ranks by itself: every rank returns the loss of the global batch, and
DDP's averaged gradient is that of one process. Data: scikit-learn's handwritten digits, without labels.
"""

import argparse

import torch
from pytorch_lightning import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from barlow import BarlowTwinsLoss
from barlow.models import build_encoder, build_projector
from barlow.training.optimizers import build_optimizer, parameter_groups
from barlow.views import ViewMaker, get_recipe


class BarlowTwins(LightningModule):
    """Encoder and projector; a batch is (images uint8 [B, 1, 8, 8], ids [B])."""

    def __init__(self, lr: float = 0.002, seed: int = 0) -> None:
        super().__init__()
        self.encoder = build_encoder("resnet10-narrow", channels=1, image_size=16)
        self.projector = build_projector(self.encoder.feature_dim, (256, 256))
        self.loss, self.lr = BarlowTwinsLoss(lambd=1 / 128), lr
        self.maker = ViewMaker(get_recipe("digits"), image_size=16, channels=1, mean=(0.3,), std=(0.38,), seed=seed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, ids = batch  # views are made here, on the device, from (seed, epoch, id)
        view_a, view_b = self.maker(images, ids, self.current_epoch)
        terms = self.loss.terms(self.projector(self.encoder(view_a)), self.projector(self.encoder(view_b)))
        self.log_dict({name: value.detach() for name, value in terms.items()}, prog_bar=True)
        return terms["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.encoder, self.projector)
        return build_optimizer("adamw", groups, lr=self.lr, weight_decay=1e-6)


def loader(batch: int = 128) -> DataLoader[tuple[Tensor, ...]]:
    """Images with their ids; complete batches only."""
    images = (torch.from_numpy(load_digits().images)[:, None] * 255 / 16).to(torch.uint8)
    return DataLoader(TensorDataset(images, torch.arange(len(images))), batch, shuffle=True, drop_last=True)


def main() -> nn.Module:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    model = BarlowTwins()
    Trainer(max_epochs=parser.parse_args().epochs, logger=False).fit(model, loader())
    return model.encoder


if __name__ == "__main__":
    main()

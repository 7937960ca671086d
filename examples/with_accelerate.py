"""Barlow Twins with Hugging Face Accelerate: the same loop on one device or many.

    pip install accelerate
    python examples/with_accelerate.py [--epochs 20]          or: accelerate launch examples/with_accelerate.py

Nothing is gathered by hand: the loss finds the ranks by itself. Batch normalisation is synchronised, as the paper does.
Data: scikit-learn's handwritten digits, without labels.
"""

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from barlow import BarlowTwinsLoss
from barlow.models import build_encoder, build_projector
from barlow.training.optimizers import LARS
from barlow.views import ViewMaker, get_recipe


def train(epochs: int, batch: int = 128, most_steps: int | None = None) -> list[float]:
    """The loss at every step. `batch` is per process."""
    accelerator = Accelerator()
    torch.manual_seed(0)
    encoder = build_encoder("resnet10-narrow", channels=1, image_size=16)
    model: nn.Module = nn.Sequential(encoder, build_projector(encoder.feature_dim, (256, 256)))
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    maker = ViewMaker(get_recipe("digits"), image_size=16, channels=1, mean=(0.3,), std=(0.38,), seed=0)
    images = (torch.from_numpy(load_digits().images)[:, None] * 255 / 16).to(torch.uint8)
    data = TensorDataset(images, torch.arange(len(images)))
    model, optimizer, loader = accelerator.prepare(
        model,
        LARS(model.parameters(), lr=0.3, weight_decay=1e-6),
        DataLoader(data, batch, shuffle=True, drop_last=True),
    )
    loss_of, losses = BarlowTwinsLoss(lambd=1 / 128), []
    for epoch in range(epochs):
        for pixels, ids in loader:
            view_a, view_b = maker(pixels, ids, epoch)
            loss = loss_of(model(view_a), model(view_b))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == most_steps:
                return losses
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    for number, value in enumerate(train(parser.parse_args().epochs), start=1):
        if number % 14 == 0:
            print(f"step {number:4d}  loss {value:8.2f}")

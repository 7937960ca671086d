"""Mixed Barlow Twins in a loop of your own: barlow's views, loss and LARS, a network and a loop of yours.

    python examples/plain_loop.py [--epochs 20]

Data: scikit-learn's handwritten digits, without labels.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from barlow import MixedBarlowTwinsLoss
from barlow.schedules import warmup_cosine
from barlow.training.optimizers import LARS, set_lr
from barlow.views import ViewMaker, draw_mix, get_recipe, mix_views

BATCH, SEED = 128, 0


def digits() -> Tensor:
    """All images, uint8 [1797, 1, 8, 8]."""
    return (torch.from_numpy(load_digits().images)[:, None] * 255 / 16).to(torch.uint8)


def network() -> nn.Sequential:
    """Encoder [B, 1, 16, 16] -> [B, 64], then the projector -> [B, 256]."""
    encoder = [nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    projector = [nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256)]
    return nn.Sequential(*encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *projector)


def train(images: Tensor, epochs: int) -> list[float]:
    """The mean loss of every epoch."""
    torch.manual_seed(SEED)
    maker = ViewMaker(get_recipe("digits"), image_size=16, channels=1, mean=(0.3,), std=(0.38,), seed=SEED)
    model, loss_of = network(), MixedBarlowTwinsLoss(lambd=1 / 128, lambd_reg=4.0)
    optimizer = LARS([{"params": list(model.parameters()), "base_lr": 0.35}], lr=0.35, weight_decay=1e-6)
    steps, step, history = len(images) // BATCH, 0, []
    for epoch in range(epochs):
        losses = []
        for ids in torch.split(torch.randperm(len(images)), BATCH)[:steps]:
            set_lr(optimizer, warmup_cosine(step, total=epochs * steps, warmup=steps))
            view_a, view_b = maker(images[ids], ids, epoch)
            mix, partner = draw_mix(BATCH, seed=SEED, step=step)
            mixed = mix_views(view_a, view_b, mix, partner)
            loss = loss_of(model(view_a), model(view_b), model(mixed), mix, partner)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
        history.append(sum(losses) / steps)
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    for number, mean in enumerate(train(digits(), parser.parse_args().epochs), start=1):
        print(f"epoch {number:3d}  loss {mean:8.2f}")

"""Barlow Twins and Mixed Barlow Twins in one file: the method, without the machinery of the package.

    python examples/minimal.py [--mixed] [--epochs 15]

Trains a small convolutional network on scikit-learn's 1,797 handwritten digits without their labels, then asks how
well the labels of held-out digits can be read off the nearest neighbours of the others. Under a minute on two cores.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

LAMBDA, LAMBDA_REG = 1 / 128, 4.0  # off-diagonal weight; weight of the mixing term, in units of LAMBDA
BATCH, WIDTH = 256, 512


def standardise(z: Tensor) -> Tensor:
    """Each feature of [N, D] to mean 0 and variance 1 over the batch."""
    return (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()


def barlow_twins(z_a: Tensor, z_b: Tensor) -> Tensor:
    """arXiv 2103.03230, equation 1: the cross-correlation matrix of two views is driven to the identity."""
    c = standardise(z_a).T @ standardise(z_b) / len(z_a)  # [D, D]
    on_diagonal = (1 - c.diagonal()).square().sum()
    off_diagonal = c.square().sum() - c.diagonal().square().sum()
    return on_diagonal + LAMBDA * off_diagonal


def mixing(z_a: Tensor, z_b: Tensor, z_m: Tensor, a: Tensor, partner: Tensor) -> Tensor:
    """arXiv 2312.02151: a mixed image should correlate with the views as the mix of their embeddings does."""
    z_a, z_b, z_m = standardise(z_a), standardise(z_b), standardise(z_m)
    mix_of_embeddings = a * z_a + (1 - a) * z_b[partner]
    to_a = (z_m - mix_of_embeddings).T @ z_a / len(z_a)  # C^MA - C^MA_gt
    to_b = (z_m - mix_of_embeddings).T @ z_b / len(z_a)  # C^MB - C^MB_gt
    return LAMBDA_REG * LAMBDA * (to_a.square().sum() + to_b.square().sum())


def view(x: Tensor) -> Tensor:
    """A random view of digits [N, 1, 8, 8]: turned, scaled, sheared and shifted, resampled to 16 pixels, with noise."""
    n = len(x)
    angle = (torch.rand(n) - 0.5) * 0.7
    scale = 1 / (0.8 + 0.4 * torch.rand(n, 1, 1))
    shear, shift = (torch.rand(n) - 0.5) * 0.4, (torch.rand(n, 2, 1) - 0.5) * 0.4
    turn = torch.stack([angle.cos(), -angle.sin() + shear, angle.sin(), angle.cos()], 1).view(n, 2, 2)
    grid = functional.affine_grid(torch.cat([turn * scale, shift], 2), [n, 1, 16, 16], align_corners=False)
    moved = functional.grid_sample(x, grid, align_corners=False)
    return moved + 0.1 * torch.randn_like(moved)


def encoder() -> nn.Sequential:
    """[N, 1, 16, 16] -> [N, 256]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2 if inputs > 1 else 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def pretrain(x: Tensor, epochs: int, mixed: bool) -> nn.Module:
    """The loop: two views, their embeddings, the loss. No labels."""
    backbone = encoder()
    head = nn.Sequential(nn.Linear(256, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    network = nn.Sequential(backbone, head)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].view(-1, BATCH):
            y_a, y_b = view(x[rows]), view(x[rows])
            z_a, z_b = network(y_a), network(y_b)
            loss = barlow_twins(z_a, z_b)
            if mixed:
                a, partner = torch.rand(()), torch.randperm(BATCH)
                loss = loss + mixing(z_a, z_b, network(a * y_a + (1 - a) * y_b[partner]), a, partner)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        schedule.step()
        if epoch % 10 == 9 or epoch == 0:
            print(f"epoch {epoch + 1:3d}  loss {total / (len(x) // BATCH):8.2f}")
    return backbone.eval()


@torch.no_grad()
def knn(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, k: int = 5) -> float:
    """Share of test rows whose k nearest training rows (cosine) vote for the right class."""
    similarity = functional.normalize(test) @ functional.normalize(train).T
    votes = labels[similarity.topk(k).indices].mode().values
    return (votes == truth).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixed", action="store_true", help="add the mixing term of Mixed Barlow Twins")
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    y = torch.from_numpy(digits.target)
    order = torch.randperm(len(x))
    train, test = order[360:], order[:360]
    trained = pretrain(x[train], options.epochs, options.mixed)
    centre = functional.interpolate(x, size=16, mode="bilinear")
    untrained = encoder()
    for layer in untrained.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # one pass gives it the statistics of the training images, which it lacks
    with torch.no_grad():
        untrained(centre[train])
        features = {"raw pixels": x.flatten(1), "random network": untrained.eval()(centre), "trained": trained(centre)}
    for name, h in features.items():
        print(f"{name:15s} k-NN (k 5) {100 * knn(h[train], y[train], h[test], y[test]):5.1f}%")


if __name__ == "__main__":
    main()

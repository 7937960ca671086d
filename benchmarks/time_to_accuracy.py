"""Accuracy against time on the same cores: our quick recipe, ResNet-18 with AdamW, and lightly's Barlow Twins.

    python -m benchmarks.time_to_accuracy DATA --arm whitenet --minutes 5 --seeds 0 1 2 [--test]

DATA holds `train/<class>/` and `test/<class>/` of small images of one size. Every arm trains for `--minutes` of wall
clock (with `--core-minutes`, of processor time, on one thread: a clock that other work on the machine does not move) on
nine tenths of train, with a cosine schedule over that time, and is scored once, at its end: k-NN and a linear probe on
encoder features of one view, on the held-out tenth of train, or with `--test` on test. Nothing is chosen on test.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from barlow.data import open_source
from barlow.evaluation import knn_accuracy, linear_probe
from barlow.models import build_encoder, build_projector
from barlow.models.network import TwinNetwork, autocast, guard_convolutions, to_layout
from barlow.objectives import BarlowTwinsLoss
from barlow.training.optimizers import build_optimizer, parameter_groups, set_lr
from barlow.views import get_recipe, view_maker

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SPLIT_SEED = 123  # of the held-out tenth, the same for every arm and seed
WARMUP = 0.1  # of the time


@dataclass(frozen=True)
class Arm:
    """What is trained; views of `size` pixels, scored at the images' own size."""

    encoder: str
    projector: tuple[int, ...]
    optimizer: str
    lr: float
    batch: int
    views: int
    size: int
    least_crop: float
    lambd: float


ARMS = {
    "whitenet": Arm("whitenet", (1024, 1024), "muon", 0.06, 128, 4, 24, 0.2, 1 / 128),
    "whitenet-two-views": Arm("whitenet", (1024, 1024), "muon", 0.06, 256, 2, 24, 0.08, 1 / 128),
    "whitenet-adamw": Arm("whitenet", (1024, 1024), "adamw", 0.01, 128, 4, 24, 0.2, 1 / 128),
    "resnet18": Arm("resnet18", (1024, 1024), "adamw", 0.01, 256, 2, 32, 0.08, 1 / 128),
}


def read(folder: Path, split: str) -> tuple[Tensor, np.ndarray]:
    """Images uint8 [N, C, H, W] and labels [N]."""
    source = open_source(folder, split=split)
    assert source.labels is not None  # class folders
    return torch.stack([source.read(i) for i in range(len(source))]), np.asarray(source.labels)


def normalised(images: Tensor) -> Tensor:
    """float32 images as the views are normalised."""
    return (images.float() / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def train(arm: Arm, images: Tensor, seed: int, seconds: float, clock: Callable[[], float]) -> tuple[nn.Module, int]:
    """An encoder after `seconds` on the clock, and the steps that it took."""
    torch.manual_seed(seed)
    encoder = build_encoder(arm.encoder, channels=3, image_size=images.shape[-1])
    if encoder.first_layer_fits_data:
        encoder.fit_first_layer(normalised(images[:500]))
    network = TwinNetwork(encoder, build_projector(encoder.feature_dim, arm.projector))
    guard_convolutions(network)
    network = network.to(memory_format=torch.channels_last)
    rate_of_biases = arm.lr / 10 if arm.optimizer == "muon" else arm.lr
    optimizer = build_optimizer(arm.optimizer, parameter_groups(network), lr=arm.lr, lr_biases=rate_of_biases)
    recipe = get_recipe("cifar", crop_scale=(arm.least_crop, 1.0)).with_views(arm.views)
    maker = view_maker(recipe, image_size=arm.size, mean=MEAN, std=STD, seed=seed, dtype=torch.bfloat16)
    loss, steps, began = BarlowTwinsLoss(arm.lambd), 0, clock()
    for epoch in range(10**6):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for ids in order[: len(order) // arm.batch * arm.batch].view(-1, arm.batch):
            share = (clock() - began) / seconds
            if share >= 1:
                return encoder, steps
            cosine = 0.5 * (1 + math.cos(math.pi * (share - WARMUP) / (1 - WARMUP)))
            set_lr(optimizer, share / WARMUP if share < WARMUP else cosine)
            with autocast("cpu", "bfloat16"):
                embeddings = network([to_layout(view) for view in maker(images[ids], ids, epoch)])
            optimizer.zero_grad(set_to_none=True)
            loss(*embeddings).backward()
            optimizer.step()
            steps += 1
    raise AssertionError("the time ends before the epochs do")


@torch.no_grad()
def features(encoder: nn.Module, images: Tensor) -> np.ndarray:
    """Encoder features [N, F] of one view, the image itself."""
    encoder.eval()
    with autocast("cpu", "bfloat16"):
        parts = [encoder(to_layout(normalised(part))).float() for part in torch.split(images, 500)]
    return torch.cat(parts).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--arm", choices=ARMS, default="whitenet")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--core-minutes", action="store_true", help="minutes of processor time of one thread")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test", action="store_true", help="score on test instead of the held-out tenth of train")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.core_minutes else torch.get_num_threads())
    clock = time.process_time if options.core_minutes else time.perf_counter
    images, labels = read(options.data, "train")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    held, kept = order[: len(order) // 10], order[len(order) // 10 :]
    queries, answers = read(options.data, "test") if options.test else (images[held], labels[held])
    images, labels = images[kept], labels[kept]
    for seed in options.seeds:
        encoder, steps = train(ARMS[options.arm], images, seed, 60 * options.minutes, clock)
        bank, asked = features(encoder, images), features(encoder, queries)
        record = {
            "arm": options.arm,
            "minutes": options.minutes,
            "clock": "processor, one thread" if options.core_minutes else f"wall, {torch.get_num_threads()} threads",
            "seed": seed,
            "steps": steps,
            "scored_on": "test" if options.test else "held-out tenth of train",
            "n": len(answers),
            "knn_20_.07": knn_accuracy(bank, labels, asked, answers, k=20, temperature=0.07),
            "knn_200_.5": knn_accuracy(bank, labels, asked, answers, k=200, temperature=0.5),
            "linear": linear_probe(bank, labels, asked, answers),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()

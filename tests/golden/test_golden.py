"""Views, losses and features as they were when written down: a redesign must not change them unnoticed.

`python tests/golden/test_golden.py` writes them anew, for a change that is meant to change them; say why in the commit.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from barlow import pretrain
from barlow.models import build_encoder
from barlow.views import RECIPES, view_maker

GOLDEN = Path(__file__).with_name("golden.npz")
METHODS = ("barlow-twins", "mixed-barlow-twins")
STEPS = 20


def picture(channels: int, side: int = 24) -> torch.Tensor:
    """Three smooth uint8 images [3, C, side, side] that differ in every channel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [torch.sin(0.3 * (i + 1) * x + 0.2 * (c + 1) * y + i) for i in range(3) for c in range(channels)]
    return (torch.stack(waves).view(3, channels, side, side) * 120 + 128).to(torch.uint8)


def views_of(name: str) -> list[torch.Tensor]:
    """The views of three samples in epoch 5, at 16 pixels."""
    recipe = RECIPES[name]
    ids = torch.tensor([3, 70_000, 12])
    if recipe.kind == "signal":
        samples = picture(2).flatten(2).float() / 255
    elif recipe.kind == "table":
        samples = picture(1).flatten(1)[:, :40].float() / 255
    else:
        samples = picture({"digits": 1, "grayscale": 1, "multispectral": 5}.get(name, 3))
    channels = samples.shape[1]
    maker = view_maker(
        recipe,
        image_size=16 if recipe.kind == "image" else None,
        mean=[0.4] * channels,
        std=[0.25] * channels,
        seed=9,
        reference=samples if recipe.kind == "table" else None,
    )
    return [view[..., ::3] for view in maker(samples, ids, 5)]  # a third of the columns keeps the file small


def losses(method: str, folder: Path) -> list[float]:
    """The losses of 20 steps on 72 drawn images, in float32."""
    images = picture(3, 24 * 24).unfold(2, 24, 96).unfold(3, 24, 96).permute(0, 2, 3, 1, 4, 5)
    np.save(folder / "images.npy", images.reshape(-1, 3, 24, 24)[:72].numpy())
    run = pretrain(
        folder / "images.npy",
        folder / method,
        method=method,
        encoder="resnet10-narrow",
        recipe="cifar",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        lambd=1 / 128,
        projector=(32, 32),
        optimizer="adamw",
        lr=0.001,
        batch_size=16,
        epochs=5,
        holdout=0.1,
        log_every=1,
        device="cpu",
        precision="float32",
        workers=0,
    )
    return [line["loss"] for line in run.metrics("step")][:STEPS]


def features() -> torch.Tensor:
    """Features [3, 256] of an encoder with seeded weights."""
    torch.manual_seed(4)
    encoder = build_encoder("resnet10-narrow", channels=3, image_size=24).eval()
    with torch.no_grad():
        out: torch.Tensor = encoder(picture(3).float() / 255 - 0.5)
    return out


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_views(name: str) -> None:
    with np.load(GOLDEN) as golden:
        for number, view in enumerate(views_of(name)):
            np.testing.assert_allclose(view.numpy(), golden[f"views/{name}/{number}"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_losses(method: str, tmp_path: Path) -> None:
    with np.load(GOLDEN) as golden:
        # float32 sums differ between processors, and twenty steps amplify that
        np.testing.assert_allclose(losses(method, tmp_path), golden[f"losses/{method}"], rtol=2e-3)


def test_features() -> None:
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(features().numpy(), golden["features"], rtol=1e-4, atol=1e-5)


def write(folder: Path) -> None:
    """Write the golden file."""
    values = {f"views/{name}/{i}": view.numpy() for name in RECIPES for i, view in enumerate(views_of(name))}
    values |= {f"losses/{method}": np.array(losses(method, folder)) for method in METHODS}
    np.savez_compressed(GOLDEN, features=features().numpy(), **values)  # type: ignore[arg-type]


if __name__ == "__main__":
    write(Path(sys.argv[1]))

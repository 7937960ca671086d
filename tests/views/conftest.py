"""Real images: scikit-learn's embedded photographs."""

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor


@pytest.fixture(scope="session")
def photos() -> list[Tensor]:
    """Two photographs, uint8 [3, 427, 640], with the channels last in memory, as they are decoded."""
    return [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def patches(photos: list[Tensor]) -> Tensor:
    """Twelve different patches of the photographs, uint8 [12, 3, 32, 32]."""
    corners = [(40 + 90 * i, 60 + 130 * j) for i in range(2) for j in range(3)]
    return torch.stack([photo[:, y : y + 32, x : x + 32] for photo in photos for y, x in corners])

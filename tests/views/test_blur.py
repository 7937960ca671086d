import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from barlow.views import blur

SIGMAS = [0.1, 0.26, 0.5, 1.0, 1.37, 2.0]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("size", [32, 96])
def test_blur_equals_torchvision(photos: list[Tensor], sigma: float, size: int) -> None:
    """32 px takes the matrices, 96 px the taps."""
    x = torch.stack([photo[:, 100 : 100 + size, 200 : 200 + size] for photo in photos]).float() / 255
    width = 2 * math.ceil(4 * sigma) + 1
    expected = tv.gaussian_blur(x, [width, width], [sigma, sigma])
    assert torch.allclose(blur.gaussian_blur_(x.clone(), torch.full((2,), sigma)), expected, atol=2e-6)


def test_both_implementations_agree_per_sample_on_images_that_are_not_square(photos: list[Tensor]) -> None:
    x = torch.stack([photo[:, :70, :81] for photo in photos]).float()
    sigma = torch.tensor([0.4, 1.9])
    by_taps = blur.gaussian_blur_(x.clone(), sigma)
    by_matrix = blur._blur_matrices_(x.clone(), sigma)
    assert torch.allclose(by_taps, by_matrix, atol=1e-3)


def test_rows_of_the_matrix_sum_to_one_and_a_tiny_image_reflects() -> None:
    matrix = blur.blur_matrix(torch.tensor([2.0, 0.7]), 5, torch.zeros(1))
    assert torch.allclose(matrix.sum(2), torch.ones(2, 5))
    x = torch.rand(2, 1, 5, 5)
    assert torch.allclose(
        blur.gaussian_blur_(x.clone(), torch.tensor([2.0, 2.0])), tv.gaussian_blur(x, [9, 9], [2.0, 2.0]), atol=1e-6
    )


def test_pillow_approximates_the_same_gaussian(photos: list[Tensor]) -> None:
    """Pillow's GaussianBlur, which the official code uses, is three box blurs: close, not equal."""
    x = photos[0][None, :, 100:324, 200:424].float()
    picture = Image.fromarray(x[0].permute(1, 2, 0).byte().numpy()).filter(ImageFilter.GaussianBlur(2.0))
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    difference = (blur.gaussian_blur_(x.clone(), torch.tensor([2.0]))[0] - expected).abs()
    assert difference[:, 8:-8, 8:-8].mean() < 1.0
    assert difference[:, 8:-8, 8:-8].max() < 8.0

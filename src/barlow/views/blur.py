"""Gaussian blur with one width per sample, reflecting at the borders."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from barlow.views.geometry import multiply
from barlow.views.scratch import scratch

_REACH = 4.0  # the kernel ends at 4 sigma, beyond which lies 6e-5 of its mass
_MATRIX_LIMIT = 64  # pixels: up to here, on a CPU, the matrix product beats the sum over taps


def kernel_radius(sigma: float, height: int, width: int) -> int:
    """Taps on either side of the centre: 4 sigma, less than the image so that it can reflect."""
    return max(1, min(math.ceil(_REACH * sigma), height - 1, width - 1))


def gaussian_blur_(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur samples [B, C, H, W], in place, by sigma [B] in pixels.

    Equals torchvision's `gaussian_blur` with kernel_size = 2 * ceil(4 sigma) + 1. (Pillow's GaussianBlur is three
    box blurs that approximate the same.)
    """
    if x.device.type == "cpu" and max(x.shape[2:]) > _MATRIX_LIMIT:
        for image, width in zip(x, sigma.tolist(), strict=True):
            _blur_taps_(image, width)
        return x
    return _blur_matrices_(x, sigma)


def _taps(sigma: float, radius: int) -> list[float]:
    weights = [math.exp(-0.5 * (t / sigma) ** 2) for t in range(radius + 1)]
    total = weights[0] + 2.0 * sum(weights[1:])
    return [w / total for w in weights]


def _blur_taps_(image: Tensor, sigma: float) -> Tensor:
    """One image [C, H, W] by shifted sums along each axis: few taps, no zeros multiplied."""
    _, height, width = image.shape
    r = kernel_radius(sigma, height, width)
    taps = _taps(sigma, r)
    both = scratch("both", image.shape, image)
    for axis, size, padding in ((2, width, (r, r, 0, 0)), (1, height, (0, 0, r, r))):
        padded = F.pad(image[None], padding, mode="reflect")[0]
        torch.mul(padded.narrow(axis, r, size), taps[0], out=image)
        for t in range(1, r + 1):
            torch.add(padded.narrow(axis, r - t, size), padded.narrow(axis, r + t, size), out=both)
            image.add_(both, alpha=taps[t])
    return image


def _blur_matrices_(x: Tensor, sigma: Tensor) -> Tensor:
    """A batch by two products with banded matrices that have the reflection folded in."""
    columns = blur_matrix(sigma, x.shape[3], x)
    rows = columns if x.shape[2] == x.shape[3] else blur_matrix(sigma, x.shape[2], x)
    return multiply(rows, x, columns, out=x)  # x is read by the first product and written by the second


def blur_matrix(sigma: Tensor, size: int, like: Tensor) -> Tensor:
    """[B, size, size]: row i holds the weights with which pixel i of the blurred axis takes the pixels of the axis."""
    radius = (_REACH * sigma).ceil().clamp(1, size - 1)[:, None]
    shifts = _shifts(int(radius.max()), size, like.device)
    t = torch.arange(len(shifts), dtype=torch.float32)
    taps = torch.exp(-0.5 * (t / sigma[:, None]) ** 2) * (t <= radius).float()
    taps /= 2.0 * taps.sum(dim=1, keepdim=True) - taps[:, :1]
    return (taps.to(like.device, like.dtype, non_blocking=True) @ shifts.to(like.dtype)).view(-1, size, size)


@lru_cache(maxsize=16)
def _shifts(radius: int, size: int, device: torch.device) -> Tensor:
    """[radius + 1, size * size]: for each t the matrix that adds the pixels t to the left and t to the right."""
    i = torch.arange(size)
    matrices = torch.zeros(radius + 1, size, size)
    for t in range(radius + 1):
        for j in {t, -t}:
            reflected = size - 1 - (size - 1 - (i + j).abs()).abs()
            matrices[t].index_put_((i, reflected), torch.ones(size), accumulate=True)
    return matrices.flatten(1).to(device)

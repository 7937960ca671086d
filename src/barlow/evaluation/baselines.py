"""What a score is worth is seen beside these: pixels as features, and the same network before training."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from barlow.data import Source
from barlow.errors import InputError
from barlow.evaluation.features import BATCH_SIZE, device_of, extract, preprocess_of, read_images
from barlow.evaluation.frozen import eval_mode
from barlow.models import Architecture, Encoder, build_encoder
from barlow.models.whitenet import FIRST_LAYER_IMAGES

PIXEL_SIDE = 32
"""Larger images are averaged down to this many pixels a side before their pixels are used as features."""

CALIBRATION_IMAGES = 2048
"""Training images whose BatchNorm statistics an untrained network is given."""


class Pixels(nn.Module):
    """Normalised pixels as features: [B, C, h, w] -> [B, C h' w'], h' and w' at most `PIXEL_SIDE`."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and max(x.shape[2:]) > PIXEL_SIDE:
            x = F.adaptive_avg_pool2d(x, (min(x.shape[2], PIXEL_SIDE), min(x.shape[3], PIXEL_SIDE)))
        return x.flatten(1)


class PrincipalPixels(nn.Module):
    """The first principal components of the pixels: [B, C, h, w] -> [B, K]."""

    mean: Tensor
    components: Tensor

    def __init__(self, mean: NDArray[np.floating], components: NDArray[np.floating]) -> None:
        super().__init__()
        self.pixels = Pixels()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("components", torch.as_tensor(components, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = self.pixels(x)
        return (pixels - self.mean) @ self.components.T


def raw_pixels(encoder: Encoder) -> Encoder:
    """An `Encoder` whose features are the pixels that `encoder` is given, by the same preprocessing."""
    preprocess = preprocess_of(encoder)
    side = min(preprocess.image_size, PIXEL_SIDE)
    width = preprocess.channels * max(1, side * side)
    return _as_encoder(Pixels(), encoder, width, "raw-pixels")


def principal_pixels(encoder: Encoder, source: Source, indices: NDArray[np.int64], *, components: int = 128) -> Encoder:
    """The same, reduced to principal components fitted on the *training* samples `indices`."""
    pixels = extract(raw_pixels(encoder), source, indices)
    count = min(components, *pixels.x.shape)
    fitted = PCA(count, svd_solver="covariance_eigh" if pixels.x.shape[1] <= 4096 else "auto", random_state=0)
    fitted.fit(pixels.x)
    return _as_encoder(PrincipalPixels(fitted.mean_, fitted.components_), encoder, count, "pca-pixels")


def _as_encoder(module: nn.Module, like: Encoder, width: int, name: str) -> Encoder:
    preprocess = preprocess_of(like)
    wrapped = Encoder(module, Architecture(name, preprocess.channels, preprocess.image_size, "standard"), width)
    wrapped.preprocess = preprocess
    return wrapped.eval()


def random_init(encoder: Encoder, *, seed: int = 0) -> Encoder:
    """An encoder of the same architecture and preprocessing with fresh weights drawn from `seed`.

    Built anew by name; of the caller's own module, a copy whose every layer draws its weights again.

    Raises:
        InputError: The caller's module holds parameters outside layers that can draw theirs again.
    """
    architecture = encoder.architecture
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture.name == "custom":
            fresh = Encoder(_redraw(copy.deepcopy(encoder.backbone)), architecture, encoder.feature_dim)
        else:
            fresh = build_encoder(
                architecture.name,
                channels=architecture.channels,
                image_size=architecture.image_size,
                stem=architecture.stem,
            )
    fresh.preprocess = preprocess_of(encoder)
    return fresh.eval()


def calibrate(encoder: Encoder, source: Source, indices: NDArray[np.int64], *, seed: int, workers: int = 0) -> Encoder:
    """Set the BatchNorm statistics of `encoder` to those of the *training* samples `indices`; weights stay.

    A network that was never trained still has mean 0 and variance 1 there, which its activations do not have: as it
    is, it would be a worse network than random weights make. Of many samples, `CALIBRATION_IMAGES` drawn from `seed`.
    """
    layers = [part for part in encoder.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    rows = np.random.default_rng(seed).permutation(indices)[:CALIBRATION_IMAGES]
    size = min(BATCH_SIZE, len(rows))
    with eval_mode(encoder), torch.no_grad():
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain average over batches
            layer.train()
        preprocess = preprocess_of(encoder)
        if encoder.first_layer_fits_data:  # as training does before its first step
            images, _ = read_images(source, rows[:FIRST_LAYER_IMAGES], preprocess, workers=workers)
            encoder.fit_first_layer(preprocess(torch.cat(images).to(device_of(encoder))))
        for start in range(0, len(rows) - size + 1, size) if layers else ():
            images, _ = read_images(source, rows[start : start + size], preprocess, workers=workers)
            if len(images) > 1:
                encoder(preprocess(torch.cat(images).to(device_of(encoder))))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return encoder


def _redraw(module: nn.Module) -> nn.Module:
    for name, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in part.parameters(recurse=False)):
            raise InputError(
                f"'{name or type(part).__name__}' has parameters but no reset_parameters(): add that method, "
                "or leave out the random-init baseline"
            )
    return module

"""A small convolutional encoder for quick pretraining on a CPU: a fixed whitening layer, then plain stages.

Both follow the CIFAR-10 speed runs of K. Jordan (arXiv 2404.00498): at 32 pixels a step costs a tenth of ResNet-18's.
"""

import itertools

import torch
from torch import Tensor, nn

PATCH = 2  # pixels a side of the patches that the first layer whitens
FIRST_LAYER_IMAGES = 500  # that the directions are taken from; more do not change those of small patches
MOST_DIRECTIONS = 32  # principal directions that it keeps; more of many-channel images are noise
FLOOR = 5e-4  # added to the eigenvalues of normalised patches, so that flat directions are not blown up


class WhiteningConv(nn.Module):
    """Projects 2 x 2 patches on K whitened principal directions and their negatives: [B, C, h, w] -> [B, 2K, h, w].

    The filters are fixed: seeded random directions until `fit` takes them from images. The right and lower edges are
    padded by one pixel. After the activation both signs of a direction survive, one in either half.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = channels * PATCH**2
        directions = torch.linalg.qr(torch.randn(size, size))[0][: min(size, MOST_DIRECTIONS)]
        self.weight = nn.Parameter(torch.empty(2 * len(directions), channels, PATCH, PATCH), requires_grad=False)
        self._set(directions)

    def _set(self, directions: Tensor) -> None:
        filters = directions.view(-1, *self.weight.shape[1:])
        with torch.no_grad():
            self.weight.copy_(torch.cat([filters, -filters]))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take the directions from normalised images [N, C, h, w]: a function of the images alone, no labels."""
        patches = nn.functional.unfold(images.double(), PATCH).mT.flatten(0, 1)  # [places, C * 4]
        values, vectors = torch.linalg.eigh(torch.cov(patches.mT))
        count = len(self.weight) // 2
        strongest = (vectors / (values + FLOOR).sqrt()).mT.flip(0)[:count]
        # An eigenvector's sign is arbitrary: its largest entry is made positive, or machines would differ.
        signs = strongest.gather(1, strongest.abs().argmax(dim=1, keepdim=True)).sign()
        self._set((strongest * signs).to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), self.weight)


class Stage(nn.Module):
    """Two 3 x 3 convolutions, the first one pooled to half the side: [B, C_in, h, w] -> [B, C_out, h // 2, w // 2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.pool(self.conv1(x))))
        out: Tensor = self.act(self.bn2(self.conv2(x)))
        return out


class WhiteNet(nn.Module):
    """Whitened patches, then stages of these widths, then the mean over all places: [B, C, h, w] -> [B, widths[-1]]."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.whiten = WhiteningConv(channels)
        self.act = nn.ReLU(inplace=True)
        self.stages = nn.Sequential(*itertools.starmap(Stage, itertools.pairwise([len(self.whiten.weight), *widths])))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(self.act(self.whiten(x)))
        return features.mean(dim=(2, 3))


def whitenet(channels: int, image_size: int) -> nn.Module:
    """`WhiteNet` with 256 features: three stages up to 40 pixels, four up to 112, five beyond."""
    widths = (16, 32, 64, 128, 256)
    return WhiteNet(channels, widths[-3:] if image_size <= 40 else widths[-4:] if image_size <= 112 else widths)

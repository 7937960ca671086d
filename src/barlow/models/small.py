"""Default encoders for what timm has no model for: very small images, signals, and table rows."""

from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn


def resnet10_narrow(channels: int) -> nn.Module:
    """ResNet with one basic block per stage and widths 32-64-128-256: `[B, C, h, w]` -> `[B, 256]`, 1.2 M weights."""
    return ResNet(
        block=BasicBlock,  # type: ignore[arg-type]  # timm annotates the class as an instance
        layers=(1, 1, 1, 1),
        channels=(32, 64, 128, 256),
        stem_width=32,
        in_chans=channels,
        num_classes=0,
    )


class Block1d(nn.Module):
    """Basic residual block over time: `[B, C_in, T]` -> `[B, C_out, T / stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 7, stride, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 7, padding=3, bias=False)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.act = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Sequential(nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        summed: Tensor = self.bn2(self.conv2(out)) + self.shortcut(x)
        return self.act(summed)  # type: ignore[no-any-return]


def resnet1d(channels: int) -> nn.Module:
    """Residual network over time, widths 64-128-256: signals `[B, C, T]` -> `[B, 256]`."""
    return nn.Sequential(
        nn.Conv1d(channels, 64, 15, 2, padding=7, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(inplace=True),
        Block1d(64, 64, 1),
        Block1d(64, 128, 2),
        Block1d(128, 256, 2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


def mlp(channels: int) -> nn.Module:
    """Two hidden layers of 256 with batch normalisation: table rows `[B, C]` -> `[B, 256]`."""
    return nn.Sequential(
        nn.Linear(channels, 256, bias=False),
        nn.BatchNorm1d(256),
        nn.ReLU(inplace=True),
        nn.Linear(256, 256, bias=False),
        nn.BatchNorm1d(256),
        nn.ReLU(inplace=True),
    )

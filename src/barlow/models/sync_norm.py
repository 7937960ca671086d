"""Batch normalisation over the samples of all ranks, on any device.

torch's SyncBatchNorm refuses CPU tensors, and the claim that two processes train as one has to be testable where
there is no GPU. On CUDA, torch's own (fused) layer is used. Some of timm's norms hold dropout and activation too
(EfficientNet, MobileNetV3, RegNet): these stay with the norm on either device.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from barlow.errors import InputError
from barlow.ranks import Ranks


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are those of the global batch; equal local batches on all ranks.

    Statistics are taken in float32 whatever the input's type. The gradient is the exact one of the global batch:
    the all-reduce of the two sums is part of the graph.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of spatial dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        ranks = Ranks((1,) * dist.get_world_size())
        dims = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1] * ranks.world
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean = ranks.sum(x.sum(dims)) / count
        centred = x - mean.view(shape)  # two passes: E[x^2] - E[x]^2 cancels in float32
        variance = ranks.sum(centred.square().sum(dims)) / count
        self._update_running(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # goes with the two above
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


class GlobalBatchNormAct(GlobalBatchNorm):
    """The same with what timm's BatchNormAct2d does after normalising, under the names that it has there."""

    def __init__(self, drop: nn.Module, act: nn.Module, *norm: Any) -> None:
        super().__init__(*norm)
        self.drop, self.act = drop, act

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


KNOWN = (_BatchNorm, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct)


def synchronise_norms(module: nn.Module, device: str) -> nn.Module:
    """The module with every batch normalisation replaced by one over all ranks; weights and statistics are shared.

    Raises InputError for a norm with a forward pass of its own, which a replacement would lose.
    """
    cuda = torch.device(device).type == "cuda"
    if isinstance(module, nn.SyncBatchNorm if cuda else GlobalBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        _check_known(module)
        return convert_sync_batchnorm(module) if cuda else _converted(module)  # type: ignore[no-untyped-call]
    for name, child in module.named_children():
        setattr(module, name, synchronise_norms(child, device))
    return module


def _check_known(norm: _BatchNorm) -> None:
    if type(norm).forward not in [kind.forward for kind in KNOWN]:
        raise InputError(
            f"cannot synchronise {type(norm).__name__} over ranks: it is a BatchNorm with a forward pass of its own; "
            "make it a module that holds a torch.nn.BatchNorm, or train with one process"
        )


def _converted(norm: _BatchNorm) -> GlobalBatchNorm:
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if isinstance(norm, BatchNormAct2d | SyncBatchNormAct):
        new: GlobalBatchNorm = GlobalBatchNormAct(norm.get_submodule("drop"), norm.get_submodule("act"), *settings)
    else:
        new = GlobalBatchNorm(*settings)
    new.weight, new.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(new, name, buffer)
    return new.train(norm.training)

"""An exponential moving average of a network: a slow target, or the averaged encoder of a run."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """`average = decay * average + (1 - decay) * network` over parameters; buffers (BatchNorm statistics) are copied.

    `.module` is the average: a frozen copy that starts equal to the network, on the same device, in eval mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float | None = None) -> None:
        """One step of the average; `decay` overrides the constant one (for a schedule)."""
        share = 1 - (self.decay if decay is None else decay)
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), share)
        for mine, theirs in zip(self.module.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state, strict=True)

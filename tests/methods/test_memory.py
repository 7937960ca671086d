"""The moving average against its definition."""

import pytest
import torch
from torch import nn

from barlow.methods.memory import follow


def test_the_average_is_the_exponentially_weighted_sum_of_all_past_weights_without_skipped_steps() -> None:
    torch.manual_seed(0)
    network, average = (nn.Linear(4, 4).double() for _ in range(2))
    expected = average.weight.detach().clone()
    for step in range(20):
        skip = step % 5 == 4
        with torch.no_grad():
            network.weight.add_(torch.randn(4, 4, dtype=torch.float64))
        follow(average, network, 0.9, torch.tensor(float(skip)))
        expected = expected if skip else 0.9 * expected + 0.1 * network.weight.detach()
    torch.testing.assert_close(average.weight.detach(), expected)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_0_follows_the_network_and_decay_1_stays(decay: float) -> None:
    network, average = (nn.Linear(4, 4).double() for _ in range(2))
    expected = (average if decay else network).weight.detach().clone()
    follow(average, network, decay, torch.tensor(0.0))
    torch.testing.assert_close(average.weight.detach(), expected)

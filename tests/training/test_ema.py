"""The moving average against its definition."""

import pytest
import torch
from torch import nn

from barlow.training.ema import EMA


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()


def weight(net: nn.Module) -> nn.Parameter:
    return net.get_parameter("0.weight")


def test_the_average_is_the_exponentially_weighted_sum_of_all_past_weights() -> None:
    net = network()
    ema = EMA(net, 0.9)
    past = [weight(net).detach().clone()]
    for _ in range(20):
        with torch.no_grad():
            weight(net).add_(torch.randn(4, 4, dtype=torch.float64))
        past.append(weight(net).detach().clone())
        ema.update(net)
    expected = 0.9**20 * past[0] + sum(0.1 * 0.9 ** (20 - k) * w for k, w in enumerate(past) if k > 0)
    torch.testing.assert_close(ema.module.state_dict()["0.weight"], expected)


def test_batch_statistics_are_copied_not_averaged() -> None:
    net = network()
    ema = EMA(net, 0.99)
    net(torch.randn(8, 4, dtype=torch.float64))
    ema.update(net)
    for mine, theirs in zip(ema.module.buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("decay", "same_as"), [(0.0, "network"), (1.0, "start")])
def test_decay_0_follows_the_network_and_decay_1_stays(decay: float, same_as: str) -> None:
    net = network()
    start = weight(net).detach().clone()
    ema = EMA(net, 0.5)
    with torch.no_grad():
        weight(net).mul_(3)
    ema.update(net, decay)
    expected = weight(net) if same_as == "network" else start
    assert torch.equal(ema.module.state_dict()["0.weight"], expected)


def test_the_average_is_frozen_in_eval_mode_and_separate_from_the_network() -> None:
    net = network()
    ema = EMA(net, 0.9)
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    with torch.no_grad():
        weight(net).zero_()
    assert ema.state_dict()["0.weight"].abs().sum() > 0


def test_state_loads_strictly() -> None:
    ema = EMA(network(), 0.9)
    state = ema.state_dict()
    other = EMA(network(), 0.9)
    other.load_state_dict(state)
    del state["0.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)

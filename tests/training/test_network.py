"""What stands between the network and a processor's kernels."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from barlow.models.network import GuardedConv2d, guard_convolutions


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weight_gradient(conv: nn.Conv2d, images: Tensor, *, bfloat16: bool) -> Tensor:
    """The gradient of a sum of squares, with memory around that was used before."""
    conv.weight.grad = None
    used = [torch.full_like(conv.weight, torch.nan, dtype=torch.bfloat16) for _ in range(3)]
    del used
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = conv(images)
    out.float().square().sum().backward()
    assert conv.weight.grad is not None
    return conv.weight.grad


@pytest.mark.parametrize(("side", "kernel", "stride"), [(1, 3, 2), (1, 5, 1), (2, 7, 1), (4, 3, 2), (8, 3, 1)])
def test_gradients_in_bfloat16_are_those_in_float32_on_maps_of_any_size(
    side: int, kernel: int, stride: int, two_threads: None
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, kernel, stride, padding=kernel // 2, bias=False)
    images = torch.randn(32, 64, side, side)
    exact = weight_gradient(conv, images, bfloat16=False).clone()
    guard_convolutions(conv)
    for _ in range(8):
        error = weight_gradient(conv, images, bfloat16=True) - exact
        assert error.norm() < 0.02 * exact.norm()


def test_guarding_changes_neither_weights_nor_names_nor_results_in_float32() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4))
    before, images = copy.deepcopy(network), torch.randn(2, 3, 8, 8)
    guard_convolutions(network)
    assert [type(module) for module in network] == [GuardedConv2d, nn.Conv2d]
    assert network.state_dict().keys() == before.state_dict().keys()
    assert torch.equal(network(images), before(images))

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from barlow.views.noise import draw_rectangles, erase_, gaussian_noise_, pixel_permutation, shuffle_pixels
from barlow.views.random import Stream


def stream(n: int) -> Stream:
    return Stream.of(0, 0, torch.arange(n), [0])


def test_erase_equals_torchvision(patches: Tensor) -> None:
    x = patches.float()
    rectangles = torch.tensor([[0, 0, 32, 32], [3, 5, 1, 20], [31, 31, 1, 1], [4, 4, 0, 0]]).repeat(3, 1)
    result = erase_(x.clone(), rectangles, 7.0)
    for one, before, (top, left, height, width) in zip(result, x, rectangles.tolist(), strict=True):
        assert torch.equal(one, tv.erase(before, top, left, height, width, torch.tensor(7.0)))


def test_rectangles_lie_in_the_view_and_keep_their_scale_and_ratio() -> None:
    top, left, height, width = draw_rectangles(stream(5000), 64, (0.02, 0.33), (0.3, 3.3)).unbind(1)
    assert (height > 0).double().mean() > 0.999
    assert ((top >= 0) & (left >= 0) & (top + height <= 64) & (left + width <= 64)).all()
    share = (height * width / 64**2)[height > 0]
    assert share.min() > 0.015
    assert share.max() < 0.35
    assert abs(share.mean() - 0.175) < 0.01


def test_noise_has_its_standard_deviation_per_sample_and_stays_in_range() -> None:
    x = torch.full((3, 3, 64, 64), 128.0)
    noisy = gaussian_noise_(x, torch.tensor([0.0, 0.02, 0.1]), stream(3), 255.0)
    deviation = noisy.flatten(1).std(dim=1) / 255
    assert torch.allclose(deviation, torch.tensor([0.0, 0.02, 0.1]), rtol=0.03)
    assert not torch.equal(noisy[1, 0], noisy[1, 1])
    extreme = gaussian_noise_(torch.zeros(1, 1, 8, 8), torch.tensor([5.0]), stream(1), 1.0)
    assert extreme.min() == 0.0
    assert extreme.max() == 1.0


def test_shuffle_is_one_permutation_for_all_samples_and_channels(patches: Tensor) -> None:
    order = pixel_permutation(32, 32)
    assert sorted(order.tolist()) == list(range(1024))
    assert (order != torch.arange(1024)).double().mean() > 0.99
    shuffled = shuffle_pixels(patches)
    assert torch.equal(shuffled.flatten(2)[:, :, order.argsort()].view_as(patches), patches)

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.views import Recipe, SignalView, SignalViewMaker, get_recipe
from barlow.views.random import Stream
from barlow.views.signals import mask_time, resample_time, time_positions


def maker(*views: SignalView, channels: int = 2, **settings: Any) -> SignalViewMaker:
    defaults: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "seed": 0}
    return SignalViewMaker(Recipe("test", views), channels=channels, **{**defaults, **settings})


def waves(n: int = 6, length: int = 200) -> Tensor:
    t = torch.linspace(0.0, 1.0, length)
    return torch.stack([torch.stack([torch.sin(20 * t + i), torch.cos(9 * t * (i + 1))]) for i in range(n)])


def test_linear_interpolation_is_exact_on_lines_and_on_the_samples() -> None:
    line = torch.arange(50.0).view(1, 1, 50)
    positions = torch.tensor([[0.0, 0.25, 13.5, 48.75, 49.0]])
    assert torch.allclose(resample_time(line, positions)[0, 0], positions[0])
    x = waves()
    assert torch.equal(resample_time(x, torch.arange(200.0).expand(6, -1)), x)


def test_a_crop_is_a_stretch_of_the_signal_at_the_chosen_place() -> None:
    view = SignalView(crop=(0.25, 0.5))
    luck = torch.tensor([[0.0, 0.0, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    positions = time_positions(luck, 101, view)
    assert torch.allclose(positions[:, 0], torch.tensor([0.0, 50.0, 31.25]), atol=1e-4)
    assert torch.allclose(positions[:, -1], torch.tensor([25.0, 100.0, 68.75]), atol=1e-4)
    assert torch.allclose(positions.diff(dim=1), positions.diff(dim=1).mean(1, keepdim=True), atol=1e-4)


def test_a_warp_keeps_the_ends_and_the_order_of_time_and_its_speed_limit() -> None:
    luck = torch.rand(500, 4, generator=torch.Generator().manual_seed(0))
    positions = time_positions(luck, 301, SignalView(crop=(1.0, 1.0), warp=0.9))
    assert torch.allclose(positions[:, 0], torch.zeros(500))
    assert torch.allclose(positions[:, -1], torch.full((500,), 300.0), atol=1e-3)
    speed = positions.diff(dim=1)
    assert speed.min() > 0.09
    assert speed.max() < 1.91
    assert speed.std() > 0.1


def test_a_mask_zeroes_one_stretch_of_the_given_share() -> None:
    x = torch.ones(3, 2, 100)
    masked = mask_time(x, start=torch.tensor([0.0, 0.999, 0.5]), share=torch.tensor([0.2, 0.3, 0.0]))
    assert masked[0, 0].tolist() == [0.0] * 20 + [1.0] * 80
    assert masked[1, 1].tolist() == [1.0] * 70 + [0.0] * 30
    assert torch.equal(masked[2], x[2])


def test_a_recipe_that_does_nothing_normalises() -> None:
    x = waves() * 3 + 5
    (view,) = maker(SignalView(crop=(1.0, 1.0)), mean=(5.0, 5.0), std=(3.0, 3.0))(x, torch.arange(6), 0)
    assert torch.allclose(view, (x - 5) / 3, atol=1e-4)


def test_jitter_scale_flip_and_channel_drop_do_what_they_say() -> None:
    ids, ones = torch.arange(400), torch.ones(400, 2, 50)
    whole = SignalView(crop=(1.0, 1.0))
    (noisy,) = maker(replace(whole, jitter=0.3))(ones, ids, 0)
    assert abs((noisy - 1).std() - 0.3) < 0.01
    (scaled,) = maker(replace(whole, scale=0.4))(ones, ids, 0)
    assert torch.allclose(scaled, scaled[:, :1, :1].expand_as(scaled))
    assert 0.6 <= scaled.min() < 0.62
    assert 1.38 < scaled.max() <= 1.4
    ramp = torch.arange(50.0).expand(400, 2, 50)
    (flipped,) = maker(replace(whole, flip=1.0))(ramp, ids, 0)
    assert torch.allclose(flipped, ramp.flip(2), atol=1e-4)
    (dropped,) = maker(replace(whole, channel_drop=0.5))(ones, ids, 0)
    kept = dropped[:, :, 0]
    assert (kept.sum(1) >= 1).all()
    assert abs(kept.mean() - 0.625) < 0.06  # 0.5, and 0.25 of the pairs get one back


def test_views_follow_the_sample_through_any_batch() -> None:
    make = SignalViewMaker(get_recipe("signal"), channels=2, mean=(0, 0), std=(1, 1), seed=3)
    x, ids = waves(), torch.tensor([4, 8, 15, 16, 23, 42])
    views = make(x, ids, 1)
    order = torch.tensor([3, 1, 5, 0])
    for view, again in zip(views, make(x[order], ids[order], 1), strict=True):
        assert torch.equal(view[order], again)
    for a, b in zip(views, make(x, ids, 2), strict=True):
        assert ((a - b).abs().amax((1, 2)) > 1e-2).all()
    assert not torch.allclose(views[0], views[1], atol=0.1)


def test_normal_noise_differs_between_views_and_ids() -> None:
    stream = Stream.of(0, 0, torch.arange(2), [0, 1])
    fields = stream.field("signal noise", 64)
    assert torch.corrcoef(fields).fill_diagonal_(0).abs().max() < 5 / math.sqrt(64)


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match=r"is of kind .image.; the data are signals"):
        SignalViewMaker(get_recipe("cifar"), channels=1, mean=(0,), std=(1,), seed=0)
    with pytest.raises(InputError, match=r"signals \[B, 2, T\], got \[6, 200\]"):
        maker(SignalView())(waves()[:, 0], torch.arange(6), 0)

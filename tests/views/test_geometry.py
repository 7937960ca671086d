import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from barlow.views.geometry import Box, Boxes, cut, draw_boxes, resample
from barlow.views.random import Stream
from barlow.views.recipes import ViewRecipe

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
CROPS = [(0, 0, 427, 640), (13, 57, 301, 199), (100, 3, 40, 31), (5, 600, 224, 40), (426, 639, 1, 1)]


def box(
    place: tuple[int, int, int, int], size: int, kind: str, mirror: bool = False, upend: bool = False, turns: int = 0
) -> Box:
    return Box(*place, mirror, upend, turns, size, kind)


def boxes(*one_each: Box) -> Boxes:
    return Boxes(torch.tensor([list(b[:7]) for b in one_each]).long(), one_each[0].size, one_each[0].interpolation)


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("place", CROPS)
def test_cut_equals_torchvision_resized_crop_exactly(
    photos: list[Tensor], place: tuple[int, int, int, int], size: int, kind: str
) -> None:
    expected = tv.resized_crop(photos[0], *place, [size, size], MODES[kind], antialias=True)
    assert torch.equal(cut(photos[0], box(place, size, kind)), expected)


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("place", CROPS)
def test_cut_and_matrices_equal_pillow_to_its_rounding_and_clipping(
    photos: list[Tensor], place: tuple[int, int, int, int], size: int, kind: str
) -> None:
    top, left, height, width = place
    picture = Image.fromarray(photos[0].permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    resized = picture.resize((size, size), Image.Resampling[kind.upper()])
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()
    chosen = box(place, size, kind)
    difference = (cut(photos[0], chosen).float() - expected).abs()
    assert difference.mean() < 0.25  # the weights of the uint8 kernel have fewer bits than those of Pillow
    assert difference.quantile(0.99) <= 1.0
    assert difference.max() <= (1.0 if kind == "bilinear" else 12.0)
    by_matrix = resample(photos[0][None], boxes(chosen))[0].clamp(0, 255)
    difference = (by_matrix - expected).abs()
    assert difference.quantile(0.995) <= 1.01  # Pillow rounds after each axis ...
    if kind == "bilinear":
        assert difference.max() <= 1.01
    else:
        assert difference.max() <= 12.0  # ... and clips the overshoot of bicubic after the first


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("place", CROPS)
def test_matrices_equal_torchs_antialiased_resize(
    photos: list[Tensor], place: tuple[int, int, int, int], kind: str
) -> None:
    image = photos[1].double() / 255
    expected = tv.resized_crop(image, *place, [48, 48], MODES[kind], antialias=True)
    assert torch.allclose(resample(image[None], boxes(box(place, 48, kind)))[0].double(), expected, atol=2e-5)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("upend", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_flips_and_quarter_turns_equal_torchvision(photos: list[Tensor], mirror: bool, upend: bool, turns: int) -> None:
    chosen = box((20, 30, 200, 150), 40, "bilinear", mirror, upend, turns)
    expected = tv.resized_crop(photos[0], 20, 30, 200, 150, [40, 40], MODES["bilinear"], antialias=True)
    expected = tv.horizontal_flip(expected) if mirror else expected
    expected = tv.vertical_flip(expected) if upend else expected
    expected = tv.rotate(expected, 90.0 * turns)
    assert torch.equal(cut(photos[0], chosen), expected)
    assert (resample(photos[0][None], boxes(chosen))[0] - expected).abs().max() <= 1.01  # rounded after each axis


def test_each_image_of_a_batch_gets_its_own_box(photos: list[Tensor]) -> None:
    chosen = [box((0, 0, 427, 640), 32, "bicubic"), box((9, 70, 100, 120), 32, "bicubic", mirror=True)]
    batch = resample(torch.stack(photos), boxes(*chosen))
    for view, photo, one in zip(batch, photos, chosen, strict=True):
        assert torch.allclose(view, resample(photo[None], boxes(one))[0], atol=1e-3)


def test_a_crop_does_not_see_pixels_outside_it(photos: list[Tensor]) -> None:
    chosen = box((100, 100, 50, 60), 32, "bicubic")
    painted = photos[0].clone()
    painted[:, :100], painted[:, 150:], painted[:, :, :100], painted[:, :, 160:] = 0, 255, 255, 0
    assert torch.equal(cut(painted, chosen), cut(photos[0], chosen))
    assert torch.equal(resample(painted[None], boxes(chosen)), resample(photos[0][None], boxes(chosen)))


def drawn(recipe: ViewRecipe, height: int, width: int, n: int = 4000) -> Tensor:
    stream = Stream.of(0, 0, torch.arange(n), [0])
    return draw_boxes(stream, recipe, height, width, 32).fields


def test_crops_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    image = torch.empty(3, 300, 200)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = drawn(ViewRecipe(), 300, 200).numpy()
    for field in range(4):
        assert stats.ks_2samp(ours[:, field], theirs[:, field]).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (2, 3)])
def test_crops_of_extreme_images_fall_back_to_the_centre(height: int, width: int) -> None:
    fields = drawn(ViewRecipe(crop_scale=(0.9, 1.0)), height, width, 200)
    top, left, crop_height, crop_width = fields[:, :4].unbind(1)
    assert (crop_height >= 1).all()
    assert (crop_width >= 1).all()
    central = (crop_height * 3 <= crop_width * 4 + 4) & (crop_width * 3 <= crop_height * 4 + 4)
    assert central.all()
    if max(height, width) == 1000:
        assert ((height - crop_height) // 2 == top).all()
        assert ((width - crop_width) // 2 == left).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**40), st.sampled_from([1.0, 0.5, 0.25, 0.125]))
def test_a_box_never_leaves_its_image_at_any_scale_of_decoding(
    height: int, width: int, sample: int, scale: float
) -> None:
    one = draw_boxes(Stream.of(0, 0, torch.tensor([sample]), [0]), ViewRecipe(), height, width, 8).to_list()[0]
    assert 0 <= one.top < one.top + one.height <= height
    assert 0 <= one.left < one.left + one.width <= width
    reduced = torch.zeros(3, max(1, int(height * scale)), max(1, int(width * scale)), dtype=torch.uint8)
    assert cut(reduced, one, scale).shape == (3, 8, 8)


def test_a_cut_from_a_reduced_image_is_the_same_place(photos: list[Tensor]) -> None:
    chosen = box((40, 80, 320, 400), 64, "bilinear")
    half = tv.resize(photos[0][:, :426], [213, 320], MODES["bilinear"], antialias=True)
    difference = (cut(half, chosen, 0.5).float() - cut(photos[0], chosen).float()).abs()
    assert difference.mean() < 4.0
    assert (cut(half, chosen._replace(left=100), 0.5).float() - cut(photos[0], chosen).float()).abs().mean() > 10.0


def test_without_a_crop_the_view_is_the_central_square() -> None:
    assert drawn(ViewRecipe(crop_scale=None, flip=0.0), 30, 50, 3)[:, :4].tolist() == [[0, 10, 30, 30]] * 3


def test_flip_and_turn_probabilities_are_kept() -> None:
    fields = drawn(ViewRecipe(flip=0.3, vertical_flip=0.6, quarter_turns=0.75), 32, 32, 20000).double()
    assert abs(fields[:, 4].mean() - 0.3) < 0.015
    assert abs(fields[:, 5].mean() - 0.6) < 0.015
    shares = torch.bincount(fields[:, 6].long(), minlength=4) / 20000
    assert (shares - 0.25).abs().max() < 0.015

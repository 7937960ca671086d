import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from barlow.errors import InputError
from barlow.views import RECIPES, Recipe, ViewMaker, ViewRecipe, get_recipe
from barlow.views.geometry import draw_boxes
from barlow.views.maker import _orders
from barlow.views.random import Stream

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE_RECIPES = [name for name, recipe in RECIPES.items() if recipe.kind == "image"]


def maker(recipe: str | Recipe = "imagenet", size: int = 32, **settings: Any) -> ViewMaker:
    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    defaults: dict[str, Any] = {"channels": 3, "mean": MEAN, "std": STD, "seed": 0}
    return ViewMaker(chosen, image_size=size, **{**defaults, **settings})


def by_torchvision(image: Tensor, make: ViewMaker, sample: int, epoch: int, v: int) -> Tensor:
    """One view of one image, op by op, with torchvision's functions and the maker's draws."""
    view = make.recipe.views[v]
    assert isinstance(view, ViewRecipe)
    stream = Stream.of(make.seed, epoch, torch.tensor([sample]), [v])
    size = make.image_size
    box = draw_boxes(stream, view, image.shape[1], image.shape[2], size).to_list()[0]
    draws = make._draw(stream, [view])
    x = tv.resized_crop(image, *box[:4], [size, size], InterpolationMode(box.interpolation), antialias=True)
    x = (tv.horizontal_flip(x) if box.mirror else x).float() / 255
    jitter = {
        "brightness": tv.adjust_brightness,
        "contrast": tv.adjust_contrast,
        "saturation": tv.adjust_saturation,
        "hue": tv.adjust_hue,
    }
    for op in _orders(view)[int(draws.order)] if draws.order >= 0 else ():
        x = jitter[op](x, float(draws.factors[op]))
    x = tv.rgb_to_grayscale(x, 3) if draws.grayscale else x
    if draws.sigma > 0:
        width = 2 * int((4 * draws.sigma).ceil()) + 1
        x = tv.gaussian_blur(x, [width, width], [float(draws.sigma)] * 2)
    x = tv.solarize(x, 0.5) if draws.solarize else x
    normalised: Tensor = tv.normalize(x, list(MEAN), list(STD))
    return normalised


def test_large_views_equal_the_torchvision_chain_with_the_same_draws(photos: list[Tensor]) -> None:
    make = maker(size=96)
    ids = torch.tensor([3, 8])
    for epoch in range(4):
        for v, views in enumerate(make(torch.stack(photos), ids, epoch)):
            for view, photo, sample in zip(views, photos, ids.tolist(), strict=True):
                assert torch.allclose(view, by_torchvision(photo, make, sample, epoch, v), atol=1e-4)


def test_small_views_equal_the_torchvision_chain_to_the_rounding_of_the_crop(patches: Tensor) -> None:
    """torchvision rounds the crop of a uint8 image, by at most half a level; colour factors up to 1.4^3 widen that."""
    make = maker(get_recipe("imagenet", interpolation="bilinear"))
    ids = torch.arange(len(patches))
    for v, views in enumerate(make(patches, ids, 0)):
        for view, patch, sample in zip(views, patches, ids.tolist(), strict=True):
            difference = (view - by_torchvision(patch, make, sample, 0, v)).abs() * 0.225 * 255
            assert difference.mean() < 0.6
            assert difference.quantile(0.99) < 2.5


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_a_view_does_not_depend_on_the_batch_around_it(patches: Tensor, name: str) -> None:
    make = maker(name)
    ids = torch.arange(100, 100 + len(patches))
    whole = make(patches, ids, 2)
    order = torch.tensor([7, 0, 11, 3, 9, 1, 10, 2, 8, 4, 6, 5])
    for view, shuffled in zip(whole, make(patches[order], ids[order], 2), strict=True):
        assert torch.equal(view[order], shuffled)
    for n in (1, 5):  # another size of batch may round differently in the matrix products
        for view, few in zip(whole, make(patches[:n], ids[:n], 2), strict=True):
            assert torch.allclose(view[:n], few, atol=1e-4)


def test_a_large_view_is_the_same_bits_in_a_batch_of_any_size(photos: list[Tensor]) -> None:
    make = maker(size=80)
    ids = torch.tensor([4, 5])
    for v, views in enumerate(make(torch.stack(photos), ids, 0)):
        for i in range(2):
            assert torch.equal(make(photos[i][None], ids[i : i + 1], 0)[v][0], views[i])


def test_views_change_with_epoch_seed_view_and_id_and_with_nothing_else(patches: Tensor) -> None:
    ids = torch.arange(len(patches))
    first = maker()(patches, ids, 0)
    torch.manual_seed(123)
    again = maker()(patches, ids, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [maker()(patches, ids, 1), maker(seed=1)(patches, ids, 0), maker()(patches, ids + 1000, 0)]
    for other in [*others, first[::-1]]:
        for a, b in zip(first, other, strict=True):
            assert ((a - b).abs().amax(dim=(1, 2, 3)) > 0.05).all()


def test_resuming_at_an_epoch_continues_the_stream(patches: Tensor) -> None:
    ids = torch.arange(len(patches))
    running = maker()
    through = [running(patches, ids, epoch) for epoch in range(3)]
    resumed = pickle.loads(pickle.dumps(maker()))(patches, ids, 2)  # noqa: S301 its own bytes
    assert all(torch.equal(a, b) for a, b in zip(through[2], resumed, strict=True))


def test_global_random_state_is_not_touched(patches: Tensor) -> None:
    before = torch.get_rng_state()
    maker("digits")(patches, torch.arange(len(patches)), 0)
    assert torch.equal(torch.get_rng_state(), before)


def _cuts_in_worker(make: ViewMaker, image: Tensor, sample: int) -> list[Tensor]:
    return make.cut(image, make.boxes(sample, 1, image.shape[1], image.shape[2]))


@pytest.mark.parametrize("name", ["imagenet", "multicrop", "multispectral", "document", "shuffle-jitter"])
def test_cutting_in_workers_and_finishing_later_gives_the_same_views(photos: list[Tensor], name: str) -> None:
    make = maker(name, size=64)
    ids = torch.tensor([11, 12])
    cuts = [torch.stack(pair) for pair in zip(*map(_cuts_in_worker, [make] * 2, photos, [11, 12]), strict=True)]
    assert all(cut.dtype == torch.uint8 for cut in cuts)
    for view, finished in zip(make(torch.stack(photos), ids, 1), make.finish(cuts, ids, 1), strict=True):
        assert torch.equal(view, finished)


@pytest.mark.slow
def test_any_number_of_worker_processes_cuts_the_same(photos: list[Tensor]) -> None:
    make = maker(size=64)
    tasks = ([make] * 4, photos * 2, [1, 2, 3, 4])
    here = [_cuts_in_worker(*task) for task in zip(*tasks, strict=True)]
    for workers in (1, 3):
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for theirs, ours in zip(pool.map(_cuts_in_worker, *tasks), here, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_multicrop_gives_views_of_two_sizes(photos: list[Tensor]) -> None:
    views = maker("multicrop", size=128)(torch.stack(photos), torch.arange(2), 0)
    assert [view.shape[-1] for view in views] == [128] * 2 + [96] * 6
    assert not torch.equal(views[2], views[3])


def test_the_recipe_none_is_the_normalised_image(patches: Tensor) -> None:
    expected = tv.normalize(patches.float() / 255, list(MEAN), list(STD))
    for view in maker("none")(patches, torch.arange(len(patches)), 0):
        assert torch.allclose(view, expected, atol=1e-5)
        assert torch.allclose(maker().unnormalise(view), patches.float() / 255, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_float_images_in_the_unit_range_give_the_views_of_uint8_images(patches: Tensor, interpolation: str) -> None:
    make = maker(get_recipe("imagenet", interpolation=interpolation))
    ids = torch.arange(len(patches))
    for a, b in zip(make(patches, ids, 0), make(patches.float() / 255, ids, 0), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_large_float_images_give_the_views_of_uint8_images_to_a_level(photos: list[Tensor]) -> None:
    """Cuts of uint8 images are rounded and clipped along one axis, then along the other, which shows in few pixels."""
    recipe = get_recipe("imagenet", interpolation="bicubic", grayscale=0.0, hue=0.0, saturation=0.0, blur=0.0)
    make = maker(recipe, size=64, mean=(0.0,) * 3, std=(1.0,) * 3)
    sharp = torch.stack(photos) // 128 * 255  # from black to white at once: bicubic crops overshoot both
    pixels = sharp.float() / 255

    def streamed(images: Tensor) -> list[Tensor]:
        """As a loader's workers make them: cut one by one, finished together."""
        cuts = [make.cut(image, make.boxes(i, 0, *image.shape[1:])) for i, image in zip((4, 9), images, strict=True)]
        return make.finish([torch.stack(views) for views in zip(*cuts, strict=True)], torch.tensor([4, 9]), 0)

    for views in (lambda images: make(images, torch.tensor([4, 9]), 0), streamed):
        for a, b in zip(views(sharp), views(pixels), strict=True):
            apart = 255 * (a - b).abs()
            assert apart.median() < 0.1
            assert apart.quantile(0.99) < 6


def test_float_images_beyond_the_unit_range_keep_their_range(patches: Tensor) -> None:
    """Elevations, counts, temperatures: colour ops must not clip them to [0, 1]."""
    wide = patches.float() * 20 - 1000
    make = maker("none", mean=(0.0,) * 3, std=(1.0,) * 3)
    ids = torch.arange(len(patches))
    assert torch.allclose(make(wide, ids, 0)[0], wide, rtol=1e-4, atol=1e-2)
    jittered = maker("cifar", mean=(0.0,) * 3, std=(1.0,) * 3)(wide, ids, 0)[0]
    assert (jittered.flatten(1).std(dim=1) > 5).all()
    assert (jittered.flatten(1).amin(dim=1) >= wide.flatten(1).amin(dim=1) - 1e-1).all()


@pytest.mark.parametrize("channels", [1, 2, 6, 32])
def test_multispectral_takes_any_number_of_channels(patches: Tensor, channels: int) -> None:
    images = patches[:, :1].repeat(1, channels, 1, 1)
    make = maker("multispectral", channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    views = make(images, torch.arange(len(images)), 0)
    dropped = torch.stack([((view + 2.0).abs() < 1e-5).flatten(2).all(dim=2) for view in views])  # black, normalised
    assert not dropped.all(dim=2).any()  # one channel always stays
    assert dropped.any() == (channels > 1)


def test_one_gray_channel_takes_the_colour_recipes(patches: Tensor) -> None:
    gray = patches[:, :1]
    views = maker("imagenet", channels=1, mean=(0.5,), std=(0.25,))(gray, torch.arange(len(gray)), 0)
    for view in views:
        assert (view.flatten(1).std(dim=1) > 0.001).all()
        assert view.std() > 0.3


def test_bfloat16_views_are_the_float_views_rounded(patches: Tensor) -> None:
    ids = torch.arange(len(patches))
    for exact, rounded in zip(maker()(patches, ids, 0), maker(dtype=torch.bfloat16)(patches, ids, 0), strict=True):
        assert torch.equal(exact.bfloat16(), rounded)


EVERYTHING = ViewRecipe(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    jitter=0.9,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
    blur=0.5,
    posterize=0.5,
    noise=0.5,
    erase=0.5,
)
EFFECTS: dict[str, Any] = {
    "crop_scale": (0.1, 0.2),
    "crop_ratio": (0.3, 0.4),
    "interpolation": "bilinear",
    "flip": 1.0,
    "vertical_flip": 1.0,
    "quarter_turns": 1.0,
    "channel_gain": 0.5,
    "channel_drop": 0.9,
    "jitter": 0.0,
    "brightness": 0.9,
    "contrast": 0.9,
    "saturation": 0.9,
    "hue": 0.4,
    "grayscale": 1.0,
    "blur": 0.0,
    "blur_sigma": (3.0, 4.0),
    "solarize": 1.0,
    "posterize": 0.0,
    "posterize_bits": 2,
    "noise": 0.0,
    "noise_std": (0.2, 0.3),
    "erase": 0.0,
    "erase_scale": (0.5, 0.6),
    "erase_ratio": (0.1, 0.2),
    "shuffle": True,
    "size": 16,
}


@pytest.mark.parametrize("field", EFFECTS)
def test_every_field_of_a_view_recipe_has_an_effect(patches: Tensor, field: str) -> None:
    ids = torch.arange(len(patches))
    before = maker(Recipe("before", (EVERYTHING,)))(patches, ids, 0)[0]
    after = maker(Recipe("after", (replace(EVERYTHING, **{field: EFFECTS[field]}),)))(patches, ids, 0)[0]
    assert before.shape != after.shape or not torch.allclose(before, after, atol=1e-3)


def test_the_effects_above_cover_every_field() -> None:
    assert {field.name for field in fields(ViewRecipe)} == set(EFFECTS) | {"count"}


def test_probabilities_of_the_colour_ops_are_kept() -> None:
    make = maker("imagenet")
    n = 20000
    views = [view for view in make.recipe.views if isinstance(view, ViewRecipe)]
    draws = make._draw(Stream.of(0, 0, torch.arange(n), [0, 1]), views)
    share = [mask.double().view(2, n).mean(dim=1) for mask in (draws.order >= 0, draws.grayscale, draws.sigma > 0)]
    share.append(draws.solarize.double().view(2, n).mean(dim=1))
    expected = torch.tensor([[0.8, 0.8], [0.2, 0.2], [1.0, 0.1], [0.0, 0.2]], dtype=torch.float64)
    assert torch.allclose(torch.stack(share), expected, atol=0.012)
    counts = torch.bincount(draws.order[draws.order >= 0], minlength=24)
    assert (counts - counts.double().mean()).abs().max() < 5 * counts.double().mean() ** 0.5
    assert draws.factors["brightness"].min() >= 0.6
    assert draws.factors["saturation"].max() < 1.2
    assert draws.factors["hue"].abs().max() < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 5, "mean": (0.5,) * 5, "std": (1.0,) * 5}, r"uses saturation, .* 5 channels.* 'multispectral'"),
        ({"mean": (0.5,)}, r"mean and std need 3 values, one per channel; got 1 and 3"),
        ({"std": (0.2, 0.0, 0.2)}, r"std must be positive"),
        ({"size": 1}, r"image_size must be at least 2 pixels, got 1"),
        ({"recipe": "signal"}, r"Recipe 'signal' is of kind .signal.; the data are images"),
    ],
)
def test_a_recipe_that_does_not_suit_the_data_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        maker(**settings)


@pytest.mark.parametrize(
    ("images", "ids", "message"),
    [
        (torch.zeros(2, 1, 8, 8), torch.arange(2), r"images \[B, 3, H, W\], got \[2, 1, 8, 8\]"),
        (torch.zeros(3, 8, 8), torch.arange(3), r"images \[B, 3, H, W\], got \[3, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), torch.arange(2), r"uint8 or float images, got torch.int32"),
        (torch.zeros(2, 3, 8, 8), torch.arange(3), r"one id per image: 2 images, ids \[3\]"),
    ],
)
def test_a_wrong_batch_is_told(images: Tensor, ids: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        maker()(images, ids, 0)


def test_a_wrong_number_of_cuts_is_told(patches: Tensor) -> None:
    with pytest.raises(InputError, match="has 2 views, got 1 cuts"):
        maker().finish([patches], torch.arange(len(patches)), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_the_gpu_are_those_on_the_cpu(patches: Tensor) -> None:
    ids = torch.arange(len(patches))
    for a, b in zip(maker()(patches, ids, 0), maker()(patches.cuda(), ids, 0), strict=True):
        assert torch.allclose(a, b.cpu(), atol=2e-3)

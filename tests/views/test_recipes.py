from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from barlow.errors import InputError
from barlow.views import (
    ABLATIONS,
    RECIPES,
    Recipe,
    SignalView,
    ViewRecipe,
    get_recipe,
    recipe_from_dict,
    recipe_from_toml,
)


def image_views(recipe: Recipe) -> list[ViewRecipe]:
    return [view for view in recipe.views if isinstance(view, ViewRecipe)]


def test_imagenet_is_the_released_chain_of_barlow_twins() -> None:
    first, second = image_views(RECIPES["imagenet"])
    assert (first.crop_scale, first.interpolation, first.flip) == ((0.08, 1.0), "bicubic", 0.5)
    assert (first.jitter, first.brightness, first.contrast, first.saturation, first.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
    assert (first.grayscale, first.blur, first.solarize, first.blur_sigma) == (0.2, 1.0, 0.0, (0.1, 2.0))
    assert second == replace(first, blur=0.1, solarize=0.2)


@pytest.mark.parametrize(
    ("name", "gray", "scale", "filter"),
    [("cifar", 0.2, 0.08, "bilinear"), ("tiny", 0.1, 0.2, "bicubic"), ("stl", 0.1, 0.2, "bicubic")],
)
def test_small_data_recipes_are_those_of_mixed_barlow_twins(name: str, gray: float, scale: float, filter: str) -> None:
    first, second = image_views(RECIPES[name])
    assert first == second
    assert (first.grayscale, first.crop_scale, first.interpolation) == (gray, (scale, 1.0), filter)
    assert (first.jitter, first.brightness, first.contrast, first.saturation, first.hue) == (0.8, 0.4, 0.4, 0.4, 0.1)
    assert first.blur == first.solarize == 0.0


@pytest.mark.parametrize("name", ["document", "digits"])
def test_letters_are_never_mirrored_or_turned(name: str) -> None:
    for view in image_views(RECIPES[name]):
        assert view.flip == view.vertical_flip == view.quarter_turns == 0.0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_being_written_and_read(name: str) -> None:
    assert recipe_from_dict(RECIPES[name].to_dict()) == RECIPES[name]


def test_ablations_take_away_ops_down_to_the_crop() -> None:
    ops = ("flip", "jitter", "grayscale", "blur", "solarize")
    left = {
        chain: {op for op in ops if any(getattr(view, op) for view in get_recipe(f"imagenet:{chain}").views)}
        for chain in ABLATIONS
    }
    assert left == {
        "full": set(ops),
        "no-grayscale": set(ops) - {"grayscale"},
        "no-colour": {"flip", "blur"},
        "crop-blur": {"blur"},
        "crop-flip": {"flip"},
        "crop-only": set(),
    }


@pytest.mark.parametrize("recipe", ["cifar", "digits", "document", "multispectral"])
def test_crop_only_is_a_crop_in_every_recipe(recipe: str) -> None:
    whole, crop = (image_views(get_recipe(name))[0] for name in (recipe, f"{recipe}:crop-only"))
    assert crop == replace(ViewRecipe(flip=0.0), **{name: getattr(whole, name) for name in PARAMETERS})


PARAMETERS = (
    *("crop_scale", "crop_ratio", "interpolation", "brightness", "contrast", "saturation", "hue", "blur_sigma"),
    *("posterize_bits", "noise_std", "erase_scale", "erase_ratio", "size", "count"),
)
"""Fields that do nothing by themselves, and those of the crop."""


def test_keywords_replace_a_field_in_all_views() -> None:
    recipe = get_recipe("imagenet", hue=0.3, crop_scale=[0.5, 1])
    for view, base in zip(recipe.views, image_views(RECIPES["imagenet"]), strict=True):
        assert view == replace(base, hue=0.3, crop_scale=(0.5, 1.0))


def test_toml_starts_from_a_base_and_sets_fields_for_all_views_or_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "cifar"\nhue = 0.2\ncrop_scale = "none"\n[[views]]\n[[views]]\nsolarize = 0.5\nhue = 0\n')
    recipe = recipe_from_toml(path)
    base = replace(image_views(RECIPES["cifar"])[0], hue=0.2, crop_scale=None)
    assert recipe == Recipe("mine", (base, replace(base, solarize=0.5, hue=0.0)))


def test_without_a_base_the_views_do_nothing_but_what_is_written() -> None:
    recipe = recipe_from_dict({"blur": 1.0})
    assert recipe.views == (ViewRecipe(crop_scale=None, flip=0.0, blur=1.0),) * 2
    signal = recipe_from_dict({"kind": "signal", "jitter": 0.5, "views": [{}, {}, {"flip": 0.5}]})
    assert signal.views == (SignalView(jitter=0.5), SignalView(jitter=0.5), SignalView(jitter=0.5, flip=0.5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"solarise": 0.1}, r"unknown key 'solarise'. Did you mean 'solarize'\?"),
        ({"views": [{"blurr": 1}]}, r"unknown key 'blurr'. Did you mean 'blur'\?"),
        ({"bass": "cifar"}, r"unknown key 'bass'. Did you mean 'base'\?"),
        ({"base": "cifer"}, r"Unknown recipe 'cifer'. Did you mean 'cifar'\?"),
        ({"kind": "sound"}, r"unknown kind 'sound'. Choose one of: image, signal, table"),
        ({"views": 2}, r"views must be tables \(\[\[views\]\]\), got 2"),
        ({"views": []}, r"has no views"),
        ({"blur": "often"}, r"blur cannot be 'often'; an example is 0.0"),
        ({"shuffle": 1}, r"shuffle cannot be 1"),
        ({"blur": True}, r"blur cannot be True"),
        ({"posterize_bits": 2.5}, r"posterize_bits cannot be 2.5"),
        ({"blur_sigma": [1]}, r"blur_sigma must be two numbers \(low, high\)"),
        ({"blur_sigma": [2, 1]}, r"blur_sigma must be two numbers \(low, high\), low at most high, got \(2.0, 1.0\)"),
        ({"crop_scale": [0.5, 1.5]}, r"crop_scale must be two numbers \(low, high\) in \(0, 1\]"),
        ({"blur": 1.5}, r"blur must be a probability in \[0, 1\], got 1.5"),
        ({"hue": 0.6}, r"hue must be in \[0, 0.5\], got 0.6"),
        ({"brightness": -1}, r"brightness must be at least 0, got -1.0"),
        ({"interpolation": "nearest"}, r"interpolation must be 'bilinear' or 'bicubic', got 'nearest'"),
        ({"posterize_bits": 9}, r"posterize_bits must be from 1 to 8"),
        ({"count": 0}, r"count must be at least 1"),
        ({"size": 1}, r"size must be at least 2 pixels"),
        ({"kind": "signal", "warp": 1.0}, r"warp must be in \[0, 1\)"),
        ({"kind": "table", "corruption": 2}, r"corruption must be a probability"),
    ],
)
def test_a_mistake_is_told_in_one_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recipe_from_dict(content)
    assert "\n" not in str(caught.value)


def test_mistakes_in_names_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown recipe 'imagenett'. Did you mean 'imagenet'\?"):
        get_recipe("imagenett")
    with pytest.raises(InputError, match=r"Unknown chain 'crop-onl' in recipe 'cifar:crop-onl'. Did you mean"):
        get_recipe("cifar:crop-onl")
    with pytest.raises(InputError, match="Unknown chain"):
        get_recipe("signal:crop-only")
    with pytest.raises(InputError, match="unknown key 'hues'"):
        get_recipe("cifar", hues=0.1)
    with pytest.raises(InputError, match="Cannot read the recipe"):
        recipe_from_toml(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("blur = = 1")
    with pytest.raises(InputError, match="not valid TOML"):
        recipe_from_toml(broken)
    with pytest.raises(InputError, match="mixes kinds"):
        Recipe("both", (ViewRecipe(), SignalView()))

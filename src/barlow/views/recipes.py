"""Recipes: how the views of a sample are made, as data. One frozen dataclass per view, by name, keyword or TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from barlow.errors import InputError, suggest


@dataclass(frozen=True)
class ViewRecipe:
    """The chain of ops of one view, in the order in which they act. `p` is a probability per sample."""

    crop_scale: tuple[float, float] | None = (0.08, 1.0)  # share of the image's area; None: the central square
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop
    interpolation: str = "bicubic"  # "bilinear" or "bicubic", both antialiased
    flip: float = 0.5  # p of a left-right flip
    vertical_flip: float = 0.0  # p of a top-bottom flip
    quarter_turns: float = 0.0  # p of a turn by 90, 180 or 270 degrees
    channel_gain: float = 0.0  # each channel times U[1 - gain, 1 + gain]
    channel_drop: float = 0.0  # p, per channel, of becoming zero; one channel always stays
    jitter: float = 0.0  # p of the four ops below, in random order
    brightness: float = 0.0  # factor U[1 - b, 1 + b]
    contrast: float = 0.0  # factor U[1 - c, 1 + c]
    saturation: float = 0.0  # factor U[1 - s, 1 + s]
    hue: float = 0.0  # turn U[-h, h] of the colour circle, at most 0.5
    grayscale: float = 0.0  # p
    blur: float = 0.0  # p of a Gaussian blur
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels, uniform
    solarize: float = 0.0  # p of inverting the values above half of the range
    posterize: float = 0.0  # p of keeping `posterize_bits` of 8 bits
    posterize_bits: int = 4
    noise: float = 0.0  # p of additive Gaussian noise
    noise_std: tuple[float, float] = (0.0, 0.1)  # share of the range of values, uniform
    erase: float = 0.0  # p of filling a rectangle with the data's mean
    erase_scale: tuple[float, float] = (0.02, 0.33)  # share of the view's area
    erase_ratio: tuple[float, float] = (0.3, 3.3)  # height / width of the rectangle
    shuffle: bool = False  # move the pixels by one fixed permutation: a control, no spatial structure is left
    size: int | None = None  # pixels; None: the image size of training
    count: int = 1  # views made by this recipe

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            _require(0.0 <= getattr(self, name) <= 1.0, name, getattr(self, name), "a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "channel_gain"):
            _require(getattr(self, name) >= 0.0, name, getattr(self, name), "at least 0")
        for name in _RANGES:
            _require_range(name, getattr(self, name))
        _require(0.0 <= self.hue <= 0.5, "hue", self.hue, "in [0, 0.5]")
        _require(self.interpolation in ("bilinear", "bicubic"), "interpolation", self.interpolation, "'bilinear' or 'bicubic'")
        _require(1 <= self.posterize_bits <= 8, "posterize_bits", self.posterize_bits, "from 1 to 8")
        _require(self.count >= 1, "count", self.count, "at least 1")
        _require(self.size is None or self.size >= 2, "size", self.size, "at least 2 pixels")
        for name in ("crop_scale", "erase_scale"):
            value = getattr(self, name)
            _require(value is None or (0.0 < value[0] and value[1] <= 1.0), name, value, "shares of the area in (0, 1]")


_PROBABILITIES = (
    *("flip", "vertical_flip", "quarter_turns", "channel_drop", "jitter", "grayscale"),
    *("blur", "solarize", "posterize", "noise", "erase"),
)
_RANGES = ("crop_scale", "crop_ratio", "blur_sigma", "noise_std", "erase_scale", "erase_ratio")


def _require(valid: bool, name: str, value: object, rule: str) -> None:
    if not valid:
        raise InputError(f"Recipe: {name} must be {rule}, got {value!r}.")


def _require_range(name: str, value: tuple[float, float] | None) -> None:
    if value is None and name == "crop_scale":
        return
    lowest = 0.0 if name == "noise_std" else 1e-3
    valid = value is not None and len(value) == 2 and lowest <= value[0] <= value[1]
    _require(valid, name, value, "two numbers (low, high), low at most high")


@dataclass(frozen=True)
class Recipe:
    """A name and the recipe of each view."""

    name: str
    views: tuple[ViewRecipe, ...]

    def __post_init__(self) -> None:
        if sum(view.count for view in self.views) < 1:
            raise InputError(f"Recipe '{self.name}' has no views.")

    @property
    def view_count(self) -> int:
        return sum(view.count for view in self.views)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or TOML; `recipe_from_dict` reads them back."""
        return asdict(self)


def _twice(name: str, **ops: Any) -> Recipe:
    return Recipe(name, (ViewRecipe(**ops),) * 2)


_PLAIN: dict[str, Any] = {"crop_scale": None, "flip": 0.0}  # the whole image, nothing done to it
_COLOUR: dict[str, Any] = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
_MIX_BT: dict[str, Any] = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_IMAGENET = ViewRecipe(**_COLOUR, grayscale=0.2, blur=1.0)
_LOCAL = ViewRecipe(**_COLOUR, grayscale=0.2, blur=0.5, crop_scale=(0.05, 0.14), size=96, count=6)

_RECIPES = (
    # Barlow Twins, released code: the two views differ in blur and solarize
    Recipe("imagenet", (_IMAGENET, replace(_IMAGENET, blur=0.1, solarize=0.2))),
    # the same with six small views, sizes and scales of SwAV's multi-crop (arXiv 2006.09882)
    Recipe("multicrop", (replace(_IMAGENET, crop_scale=(0.14, 1.0), blur=0.5, count=2), _LOCAL)),
    # Mixed Barlow Twins, released code: both views alike, no blur, no solarize
    _twice("cifar", **_MIX_BT, grayscale=0.2, interpolation="bilinear"),
    _twice("tiny", **_MIX_BT, grayscale=0.1, crop_scale=(0.2, 1.0)),
    _twice("stl", **_MIX_BT, grayscale=0.1, crop_scale=(0.2, 1.0)),
    # one channel: X-ray, microscopy, radar
    _twice("grayscale", jitter=0.8, brightness=0.4, contrast=0.4, blur=0.5, solarize=0.1, crop_scale=(0.2, 1.0)),
    # any number of channels, seen from above: no direction is up, and no colour op ties the channels together
    _twice(
        "multispectral",
        **{"crop_scale": (0.2, 1.0), "vertical_flip": 0.5, "quarter_turns": 0.75, "channel_gain": 0.2},
        **{"channel_drop": 0.1, "jitter": 0.8, "brightness": 0.2, "contrast": 0.2, "blur": 0.2},
    ),
    # text and digits: a mirrored letter is another letter
    _twice("document", flip=0.0, crop_scale=(0.4, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, blur=0.3, erase=0.2),
    _twice(
        "digits",
        **{"flip": 0.0, "crop_scale": (0.5, 1.0), "interpolation": "bilinear", "jitter": 0.8, "brightness": 0.4},
        **{"contrast": 0.4, "noise": 0.5, "noise_std": (0.0, 0.05), "erase": 0.2, "erase_scale": (0.02, 0.1)},
    ),
    _twice("none", **_PLAIN),
    # the control: the second view has the same pixels elsewhere, always in the same places
    Recipe("shuffle", (ViewRecipe(**_PLAIN), ViewRecipe(**_PLAIN, shuffle=True))),
    Recipe("shuffle-jitter", (ViewRecipe(**_PLAIN, **_COLOUR), ViewRecipe(**_PLAIN, **_COLOUR, shuffle=True))),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}

_NO_COLOUR: dict[str, Any] = {"jitter": 0.0, "grayscale": 0.0, "solarize": 0.0, "posterize": 0.0}
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "no-grayscale": {"grayscale": 0.0},
    "no-colour": _NO_COLOUR,
    "crop-blur": {**_NO_COLOUR, "flip": 0.0},
    "crop-flip": {**_NO_COLOUR, "blur": 0.0},
    "crop-only": {**_NO_COLOUR, "blur": 0.0, "flip": 0.0},
}
"""Chains of the augmentation-removal study (arXiv 2103.03230, section 4), after "recipe:", from all ops to crops alone."""


def get_recipe(name: str, **overrides: Any) -> Recipe:
    """A recipe by name, with any fields of `ViewRecipe` replaced in all its views.

    "cifar:crop-only" is `cifar` reduced to the chain `crop-only` of `ABLATIONS`. Raises InputError for an unknown
    name, chain or field.
    """
    base, _, chain = name.partition(":")
    if base not in RECIPES:
        raise InputError(f"Unknown recipe '{base}'. {suggest(base, RECIPES)}")
    if chain and chain not in ABLATIONS:
        raise InputError(f"Unknown chain '{chain}' in recipe '{name}'. {suggest(chain, ABLATIONS)}")
    changes = {**(ABLATIONS[chain] if chain else {}), **_view_fields(overrides, name)}
    return Recipe(name, tuple(replace(view, **changes) for view in RECIPES[base].views))


def recipe_from_toml(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file: `name`, optionally `base` (a recipe's name), fields of `ViewRecipe` for all
    views, and one `[[views]]` table per view for what differs.

        name = "mine"
        base = "cifar"
        hue = 0.2
        [[views]]
        [[views]]
        solarize = 0.2
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} is not valid TOML: {error}.") from error
    return recipe_from_dict({"name": path.stem, **content})


def recipe_from_dict(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as `recipe_from_toml` describes and `Recipe.to_dict` writes them."""
    common = {key: value for key, value in content.items() if key not in ("name", "base", "views")}
    name = str(content.get("name", "custom"))
    base = get_recipe(content["base"]).views if "base" in content else (ViewRecipe(**_PLAIN),) * 2
    tables = content.get("views", [{}] * len(base))
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        raise InputError(f"Recipe '{name}': views must be a list of tables ([[views]]), got {tables!r}.")
    common = _view_fields(common, name, extra=("name", "base", "views"))
    starts = [base[min(i, len(base) - 1)] for i in range(len(tables))]
    views = (
        replace(start, **common, **_view_fields(table, name)) if not set(common) & set(table)
        else replace(start, **{**common, **_view_fields(table, name)})
        for start, table in zip(starts, tables, strict=True)
    )
    return Recipe(name, tuple(views))


def _view_fields(values: Mapping[str, Any], recipe: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Checked fields of `ViewRecipe`: known names, numbers where numbers belong; lists become tuples."""
    known = {field.name: field.default for field in fields(ViewRecipe)}
    for key in values:
        if key not in known:
            raise InputError(f"Recipe '{recipe}': unknown key '{key}'. {suggest(key, (*known, *extra))}")
    return {key: _typed(key, value, known[key], recipe) for key, value in values.items()}


def _typed(key: str, value: Any, default: Any, recipe: str) -> Any:
    if value is None and key in ("crop_scale", "size"):
        return None
    if value == "none" and key in ("crop_scale", "size"):  # TOML has no null
        return None
    if isinstance(default, tuple):
        valid = isinstance(value, list | tuple) and all(_is_number(v) for v in value)
        if valid:
            return tuple(float(v) for v in value)
    elif isinstance(default, bool) or isinstance(default, str):
        if isinstance(value, type(default)):
            return value
    elif isinstance(default, float):
        if _is_number(value):
            return float(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InputError(f"Recipe '{recipe}': {key} cannot be {value!r}; the default is {default!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

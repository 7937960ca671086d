"""Recipes: how the views of a sample are made, as data: a frozen dataclass per view, by name, keyword or TOML."""

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
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
        _check_probabilities(self, _PROBABILITIES)
        _check_at_least_zero(self, ("brightness", "contrast", "saturation", "channel_gain"))
        for name in ("crop_ratio", "blur_sigma", "erase_ratio"):
            _check_range(name, getattr(self, name), above=0.0)
        _check_range("noise_std", self.noise_std)
        _check_range("erase_scale", self.erase_scale, above=0.0, most=1.0)
        if self.crop_scale is not None:
            _check_range("crop_scale", self.crop_scale, above=0.0, most=1.0)
        _require(self.hue <= 0.5 and self.hue >= 0.0, "hue", self.hue, "in [0, 0.5]")
        known = ("bilinear", "bicubic")
        _require(self.interpolation in known, "interpolation", self.interpolation, "'bilinear' or 'bicubic'")
        _require(1 <= self.posterize_bits <= 8, "posterize_bits", self.posterize_bits, "from 1 to 8")
        _require(self.count >= 1, "count", self.count, "at least 1")
        _require(self.size is None or self.size >= 2, "size", self.size, "at least 2 pixels")


@dataclass(frozen=True)
class SignalView:
    """The chain of ops of one view of a signal [C, T], in the order in which they act."""

    crop: tuple[float, float] = (0.5, 1.0)  # share of the time kept, then stretched to the full length
    warp: float = 0.0  # largest relative change of local speed, below 1
    scale: float = 0.0  # all channels times U[1 - s, 1 + s]
    jitter: float = 0.0  # standard deviation of added noise, in units of each channel's
    mask: tuple[float, float] = (0.0, 0.0)  # share of the time set to the mean, one stretch
    channel_drop: float = 0.0  # p, per channel, of becoming its mean; one channel always stays
    flip: float = 0.0  # p of reversing the time
    count: int = 1  # views made by this recipe

    def __post_init__(self) -> None:
        _check_probabilities(self, ("channel_drop", "flip"))
        _check_at_least_zero(self, ("scale", "jitter"))
        _check_range("crop", self.crop, above=0.0, most=1.0)
        _check_range("mask", self.mask, most=1.0)
        _require(0.0 <= self.warp < 1.0, "warp", self.warp, "in [0, 1)")
        _require(self.count >= 1, "count", self.count, "at least 1")


@dataclass(frozen=True)
class TableView:
    """The chain of ops of one view of a row [F]."""

    corruption: float = 0.0  # p, per feature, of the value of another row (SCARF, arXiv 2106.15147)
    noise: float = 0.0  # standard deviation of added noise, in units of each feature's
    count: int = 1  # views made by this recipe

    def __post_init__(self) -> None:
        _check_probabilities(self, ("corruption",))
        _check_at_least_zero(self, ("noise",))
        _require(self.count >= 1, "count", self.count, "at least 1")


AnyView = ViewRecipe | SignalView | TableView
_KINDS: Mapping[str, type[AnyView]] = {"image": ViewRecipe, "signal": SignalView, "table": TableView}
_PROBABILITIES = (
    *("flip", "vertical_flip", "quarter_turns", "channel_drop", "jitter", "grayscale"),
    *("blur", "solarize", "posterize", "noise", "erase"),
)


def _require(valid: bool, name: str, value: object, rule: str) -> None:
    if not valid:
        raise InputError(f"Recipe: {name} must be {rule}, got {value!r}.")


def _check_probabilities(view: AnyView, names: Sequence[str]) -> None:
    for name in names:
        _require(0.0 <= getattr(view, name) <= 1.0, name, getattr(view, name), "a probability in [0, 1]")


def _check_at_least_zero(view: AnyView, names: Sequence[str]) -> None:
    for name in names:
        _require(getattr(view, name) >= 0.0, name, getattr(view, name), "at least 0")


def _check_range(name: str, value: tuple[float, float], above: float = -1e-9, most: float = math.inf) -> None:
    """Two numbers, low <= high, above `above` and at most `most`."""
    valid = len(value) == 2 and above < value[0] <= value[1] <= most
    limits = f" in ({max(above, 0.0):g}, {most:g}]" if most < math.inf else ""
    _require(valid, name, value, f"two numbers (low, high){limits}, low at most high")


@dataclass(frozen=True)
class Recipe:
    """A name and the recipe of each view, all of one kind."""

    name: str
    views: tuple[AnyView, ...]

    def __post_init__(self) -> None:
        if not self.views:
            raise InputError(f"Recipe '{self.name}' has no views.")
        if len({type(view) for view in self.views}) > 1:
            raise InputError(f"Recipe '{self.name}' mixes kinds of views.")

    @property
    def kind(self) -> str:
        """What the recipe is for: "image", "signal" or "table"."""
        return next(kind for kind, view in _KINDS.items() if isinstance(self.views[0], view))

    @property
    def view_count(self) -> int:
        return sum(view.count for view in self.views)

    def with_views(self, count: int | None) -> "Recipe":
        """The recipe with `count` views, its own in turn; None: as it is."""
        if count is None:
            return self
        singles = [replace(view, count=1) for view in self.views for _ in range(view.count)]
        return replace(self, views=tuple(itertools.islice(itertools.cycle(singles), count)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `recipe_from_dict` reads them back."""
        return {"kind": self.kind, **asdict(self)}


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
        crop_scale=(0.2, 1.0),
        vertical_flip=0.5,
        quarter_turns=0.75,
        channel_gain=0.2,
        channel_drop=0.1,
        jitter=0.8,
        brightness=0.2,
        contrast=0.2,
        blur=0.2,
    ),
    # text and digits: a mirrored letter is another letter
    _twice(
        "document",
        flip=0.0,
        crop_scale=(0.4, 1.0),
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        blur=0.3,
        erase=0.2,
        erase_scale=(0.02, 0.2),
    ),
    _twice(
        "digits",
        flip=0.0,
        crop_scale=(0.65, 1.0),  # of 8 pixels a side, a smaller part is no longer a digit
        interpolation="bilinear",
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        noise=0.5,
        noise_std=(0.0, 0.05),
        erase=0.2,
        erase_scale=(0.02, 0.1),
    ),
    _twice("none", **_PLAIN),
    # the control: the second view has the same pixels elsewhere, always in the same places
    Recipe("shuffle", (ViewRecipe(**_PLAIN), ViewRecipe(**_PLAIN, shuffle=True))),
    Recipe("shuffle-jitter", (ViewRecipe(**_PLAIN, **_COLOUR), ViewRecipe(**_PLAIN, **_COLOUR, shuffle=True))),
    # time series, audio, EEG
    Recipe("signal", (SignalView(warp=0.2, scale=0.2, jitter=0.1, mask=(0.0, 0.2), channel_drop=0.1),) * 2),
    # SCARF corrupts one view of two; here both, each less, so that the views are exchangeable
    Recipe("table", (TableView(corruption=0.3, noise=0.1),) * 2),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}

_NO_COLOUR: dict[str, Any] = {"jitter": 0.0, "grayscale": 0.0, "solarize": 0.0, "posterize": 0.0, "channel_gain": 0.0}
_OTHERS = ("vertical_flip", "quarter_turns", "channel_drop", "noise", "erase")  # not in the paper's chain
_CROP: dict[str, Any] = {**_NO_COLOUR, **dict.fromkeys(_OTHERS, 0.0)}
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "no-grayscale": {"grayscale": 0.0},
    "no-colour": _NO_COLOUR,
    "crop-blur": {**_CROP, "flip": 0.0},
    "crop-flip": {**_CROP, "blur": 0.0},
    "crop-only": {**_CROP, "blur": 0.0, "flip": 0.0},
}
"""Chains of the augmentation-removal study (arXiv 2103.03230, section 4), written "recipe:chain"."""


def get_recipe(name: str, **overrides: Any) -> Recipe:
    """A recipe by name, with any fields of its views replaced in all of them.

    "cifar:crop-only" is `cifar` reduced to the chain `crop-only` of `ABLATIONS`. Raises InputError for an unknown
    name, chain or field.
    """
    base, _, chain = name.partition(":")
    if base not in RECIPES:
        raise InputError(f"Unknown recipe '{base}'. {suggest(base, RECIPES)}")
    recipe = RECIPES[base]
    if chain and (chain not in ABLATIONS or recipe.kind != "image"):
        raise InputError(f"Unknown chain '{chain}' in recipe '{name}'. {suggest(chain, ABLATIONS)}")
    changes = {**(ABLATIONS[chain] if chain else {}), **_fields_of(recipe.kind, overrides, name)}
    return Recipe(name, tuple(replace(view, **changes) for view in recipe.views))


def recipe_from_toml(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file.

    `base` (a recipe's name) or `kind` ("image", "signal", "table") to start from, fields for all views, and one
    `[[views]]` table per view for what differs; `name` is by default the name of the file:

        base = "cifar"
        hue = 0.2
        [[views]]
        [[views]]
        solarize = 0.2
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} is not valid TOML: {error}.") from error
    return recipe_from_dict({"name": path.stem, **content})


def recipe_from_dict(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as `recipe_from_toml` describes and `Recipe.to_dict` writes them."""
    name = str(content.get("name", "custom"))
    kind, starts = _starting_views(content, name)
    common = {key: value for key, value in content.items() if key not in _RECIPE_KEYS}
    common = _fields_of(kind, common, name, more=_RECIPE_KEYS)
    tables = content.get("views", [{}] * len(starts))
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        raise InputError(f"Recipe '{name}': views must be tables ([[views]]), got {tables!r}.")
    own = [{**common, **_fields_of(kind, table, name)} for table in tables]
    return Recipe(name, tuple(replace(starts[min(i, len(starts) - 1)], **fields) for i, fields in enumerate(own)))


_RECIPE_KEYS = ("name", "base", "kind", "views")


def _starting_views(content: Mapping[str, Any], name: str) -> tuple[str, tuple[AnyView, ...]]:
    """The kind, and the views to which the fields are applied: those of `base`, or two that do nothing."""
    if "base" in content:
        base = get_recipe(str(content["base"]))
        return base.kind, base.views
    kind = str(content.get("kind", "image"))
    if kind not in _KINDS:
        raise InputError(f"Recipe '{name}': unknown kind '{kind}'. {suggest(kind, _KINDS)}")
    plain: AnyView = ViewRecipe(**_PLAIN) if kind == "image" else _KINDS[kind]()
    return kind, (plain, plain)


def _fields_of(kind: str, values: Mapping[str, Any], recipe: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """Checked fields of a view: known names, values of the default's type; lists become tuples."""
    known = {field.name: field.default for field in fields(_KINDS[kind])}
    for key in values:
        if key not in known:
            raise InputError(f"Recipe '{recipe}': unknown key '{key}'. {suggest(key, (*known, *more))}")
    return {key: _typed(key, value, known[key], recipe) for key, value in values.items()}


_NULLABLE = ("crop_scale", "size")


def _typed(key: str, value: Any, default: Any, recipe: str) -> Any:
    """The value in the type of the field; "none" is TOML's way to write None."""
    if key in _NULLABLE and value in (None, "none"):
        return None
    if isinstance(default, tuple) and isinstance(value, list | tuple) and all(_is_number(v) for v in value):
        return tuple(float(v) for v in value)
    if isinstance(default, float) and _is_number(value):
        return float(value)
    if isinstance(default, bool | str) and isinstance(value, type(default)):
        return value
    if (default is None or type(default) is int) and type(value) is int:
        return value
    raise InputError(f"Recipe '{recipe}': {key} cannot be {value!r}; an example is {default!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

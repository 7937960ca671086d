"""`--set key=value`: text to typed settings, and to other levels of a study's axes."""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from barlow.config import PretrainConfig, leaves
from barlow.errors import InputError, suggest
from barlow.studies.study import Axis, Study, spelled

OWN = {"seed": "use --seeds"}
"""Settings that are not the caller's to set, and what to do instead."""


def split_pairs(pairs: Sequence[str], flag: str = "--set") -> dict[str, str]:
    """`["epochs=20"]` as `{"epochs": "20"}`; dashes and underscores are one. InputError for what is no pair."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise InputError(f"{flag} takes key=value, got '{pair}'")
        found[name.strip().replace("-", "_")] = value.strip()
    return found


def apply(study: Study, given: Mapping[str, Any]) -> tuple[tuple[Axis, ...], dict[str, Any]]:
    """The study's axes and base settings with what was given: the name of an axis chooses its levels, by commas; any
    other key is a setting of every cell.

    Values are text, or already of their type. Raises InputError for unknown keys and levels, text that is not of the
    setting's type, and settings that an axis varies. Whether values go together is for the cells' configs to say: a
    temperature may be wrong for the default method and right for those of the levels.
    """
    axes: dict[str, Axis] = {axis.name: axis for axis in study.axes}
    base: dict[str, Any] = {}
    for name, value in given.items():
        if name in axes:
            axes[name] = choose_levels(axes[name], _texts(value))
            continue
        _check_name(name, axes)
        base[name] = parse(name, value) if isinstance(value, str) else value
    return tuple(axes.values()), base


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]


def choose_levels(axis: Axis, wanted: Sequence[str]) -> Axis:
    """The axis with those levels only, each once; new ones are made where the axis can.

    Numbers are put in order and written in one way (1e3 is 1000); other levels keep the order asked for.
    """
    if not wanted:
        raise InputError(f"--set {axis.name}= names no level. Use one or more of: {', '.join(axis.levels)}.")
    if axis.numeric:
        wanted = [spelled(number) for number in sorted(_number(axis, text) for text in wanted)]
    return replace(axis, levels={level: _level(axis, level) for level in wanted})


def _number(axis: Axis, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (axis.whole and not number.is_integer()):
        raise InputError(f"--set {axis.name}: '{text}' is not a {'whole ' if axis.whole else ''}number")
    return number


def _level(axis: Axis, level: str) -> Mapping[str, Any]:
    if level in axis.levels:
        return axis.levels[level]
    if axis.make is not None:
        return axis.make(level)
    raise InputError(f"unknown level '{level}' of {axis.name}. {suggest(level, axis.levels)}")


def _check_name(name: str, axes: Mapping[str, Axis]) -> None:
    if name in OWN:
        raise InputError(f"--set {name}: {OWN[name]}")
    varying = [axis.name for axis in axes.values() if name in axis.settings]
    if varying:
        raise InputError(f"{name} is what the study varies; choose levels with --set {varying[0]}=...")
    known = [leaf for _, leaf, _ in leaves() if leaf not in OWN]
    if name not in known:
        raise InputError(f"unknown setting '{name}'. {suggest(name, [*known, *axes])}")


def parse(name: str, text: str) -> Any:
    """A setting's value from text, by the type of its field: numbers, true/false, none, lists with commas."""
    hint = _hint(name)
    options = get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if type(None) in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not type(None))
    try:
        return _value(kind, text)
    except ValueError:
        raise InputError(f"--set {name}: '{text}' is not {_kind_name(kind)}") from None


def _value(kind: Any, text: str) -> Any:
    if get_origin(kind) is tuple:
        return tuple(_value(get_args(kind)[0], part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return text if get_origin(kind) is Literal else kind(text)


def _kind_name(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list of {_kind_name(get_args(kind)[0]).split()[-1]}s, separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")


def _hint(name: str) -> Any:
    section = next(section for section, leaf, _ in leaves() if leaf == name)
    return get_type_hints(get_type_hints(PretrainConfig)[section])[name]

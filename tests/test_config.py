import ast
import json
import math
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import barlow
from barlow.bounds import Bounds, check
from barlow.config import PretrainConfig, config_from_dict, config_from_settings, config_to_dict, flag, leaves
from barlow.errors import InputError

SOURCES = Path(barlow.__file__).parent


def test_a_config_survives_json() -> None:
    config = config_from_settings({"epochs": 7, "mean": (0.1, 0.2, 0.3), "projector": [64, 32], "lr": 1})
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    assert config.model.projector == (64, 32)
    assert isinstance(config.optimizer.lr, float)


def test_flat_names_are_unique_over_the_sections() -> None:
    names = [name for _, name, _ in leaves()]
    assert len(names) == len(set(names))


def test_every_field_is_documented_and_read_somewhere_outside_the_config() -> None:
    tree = ast.parse((SOURCES / "config.py").read_text())
    documented = {
        field.target.id
        for section in tree.body
        if isinstance(section, ast.ClassDef)
        for field, below in zip(section.body, section.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }
    read = {
        node.attr
        for file in SOURCES.rglob("*.py")
        if file.name != "config.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    }
    for _, name, _ in leaves():
        assert name in documented, f"{name} has no docstring"
        assert name in read, f"{name} is read nowhere"


def test_every_number_has_bounds_and_none_lets_nan_or_infinity_through() -> None:
    for section in get_type_hints(PretrainConfig).values():
        for name, hint in get_type_hints(section, include_extras=True).items():
            if {int, float} & _kinds(hint):
                for value in (math.nan, math.inf, -math.inf, 10**31):
                    with pytest.raises(InputError, match=f"{flag(name)} must be"):
                        check(flag(name), hint, value)


def _kinds(hint: object) -> set[object]:
    return {hint}.union(*(_kinds(part) for part in get_args(hint) if not isinstance(part, Bounds)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'. Did you mean 'epochs'"),
        ({"optimizer": "adan"}, "Did you mean 'adam'"),
        ({"epochs": "ten"}, "training.epochs must be int, got 'ten'"),
        ({"epochs": True}, "training.epochs must be int, got True"),
        ({"epochs": 0}, "--epochs must be 1 or more, got 0"),
        ({"batch_size": 1}, "--batch-size must be 2 or more, got 1"),
        ({"projector": [64, 1]}, "--projector must be 2 or more, got 1"),
        ({"projector": []}, "--projector names no width"),
        ({"holdout": 0.9}, "--holdout must be at most 0.5, got 0.9"),
        ({"lambd": float("nan")}, "--lambd must be 0 or more, got nan"),
        ({"micro_batch": "some"}, "--micro-batch must be a number of 2 or more, or auto"),
        ({"micro_batch": "\u00b2"}, "--micro-batch must be a number of 2 or more, or auto"),
        ({"micro_batch": "9" * 5000}, "--micro-batch must be a number of 2 or more, or auto"),
        ({"ema": 1.0}, "--ema must be less than 1, got 1.0"),
        ({"target_ema": 0.0, "method": "byol"}, "--target-ema must be more than 0, got 0.0"),
        ({"lr": 0.0}, "--lr must be more than 0, got 0.0"),
        ({"lr": math.inf}, "--lr must be at most 1e"),
        ({"mean": [0.5, math.nan]}, "--mean must be -1e\\+30 or more, got nan"),
        ({"std": [0.5, math.inf]}, "--std must be at most 1e\\+30, got inf"),
        ({"epochs": 10**20}, f"--epochs must be at most 1000000, got {10**20}"),
        ({"image_size": 10**9}, "--image-size must be at most 8192, got 1000000000"),
        ({"clip": 0.0}, "--clip must be more than 0"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        config_from_settings(settings)
    assert "\n" not in str(raised.value)


def test_reading_back_is_strict() -> None:
    values = config_to_dict(PretrainConfig())
    with pytest.raises(InputError, match="unknown field 'epoch'. Did you mean 'epochs'"):
        config_from_dict({**values, "training": {**values["training"], "epoch": 3}})
    with pytest.raises(InputError, match="lacks the field 'views'"):
        config_from_dict({name: part for name, part in values.items() if name != "views"})


def test_a_config_of_a_version_with_fsdp_is_read_when_it_was_off_and_refused_when_it_was_on() -> None:
    values = json.loads(json.dumps(config_to_dict(PretrainConfig())))
    values["training"]["fsdp"] = False
    assert config_from_dict(values) == PretrainConfig()
    values["training"]["fsdp"] = True
    with pytest.raises(InputError, match="^this run was trained with --fsdp, which was removed: start .*$"):
        config_from_dict(values)


def test_a_config_from_before_there_were_baselines_is_read_as_what_it_did_then() -> None:
    values = config_to_dict(config_from_settings({"lambd": 0.02}))
    for section, name in (("objective", "variant"), ("objective", "mix_global"), ("model", "head")):
        del values[section][name]
    assert config_from_dict(values) == config_from_settings({"lambd": 0.02})

import ast
import json
from pathlib import Path

import pytest

import barlow
from barlow.config import PretrainConfig, config_from_dict, config_from_settings, config_to_dict, leaves
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'. Did you mean 'epochs'"),
        ({"method": "barlow-twin"}, "Did you mean 'barlow-twins'"),
        ({"optimizer": "adan"}, "Did you mean 'adam'"),
        ({"epochs": "ten"}, "training.epochs must be int, got 'ten'"),
        ({"epochs": True}, "training.epochs must be int, got True"),
        ({"epochs": 0}, "--epochs must be 1 or more, got 0"),
        ({"batch_size": 1}, "--batch-size must be 2 or more, got 1"),
        ({"projector": [1]}, "widths must be 2 or more"),
        ({"projector": []}, "widths must be 2 or more"),
        ({"holdout": 0.9}, "--holdout must be at most 0.5, got 0.9"),
        ({"lambd": float("nan")}, "--lambd must be 0 or more, got nan"),
        ({"micro_batch": "some"}, "--micro-batch must be a number of 2 or more, or auto"),
        ({"ema": 1.0}, "--ema must lie between 0 and 1"),
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


def test_a_config_from_before_there_were_baselines_is_read_as_what_it_did_then() -> None:
    values = config_to_dict(config_from_settings({"lambd": 0.02}))
    for section, name in (("objective", "variant"), ("objective", "mix_global"), ("model", "head")):
        del values[section][name]
    assert config_from_dict(values) == config_from_settings({"lambd": 0.02})

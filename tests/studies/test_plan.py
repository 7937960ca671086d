"""Cells, their keys, and what --set and --cells make of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from barlow.config import PretrainConfig, config_from_settings, config_to_dict, leaves
from barlow.data import Source, open_source
from barlow.errors import InputError
from barlow.studies import STUDIES, Study
from barlow.studies.metrics import METRICS, baselines_of
from barlow.studies.plan import cell_key, data_identity, make_plan, share_of
from barlow.studies.settings import parse, split_pairs

OTHER: dict[str, Any] = {
    "optimizer": "lars",
    "form": "gram",
    "cache": "none",
    "stem": "small",
    "precision": "float32",
    "head": "rbf",
    "ema": 0.9,
    "projector": (8, 8),
    "mean": (0.5,),
    "std": (0.5,),
    "trackers": ("mlflow",),
    "micro_batch": "8",
    "holdout": 0.2,
    "clip": 1.5,
    "split": "test",
    "recipe": "cifar",
    "encoder": "mlp",
    "device": "cpu",
}
NEEDS: dict[str, dict[str, Any]] = {
    "mix_global": {"method": "mixed-barlow-twins"},
    "temperature": {"method": "simclr"},
    "target_ema": {"method": "byol"},
}


def other_than(name: str, value: Any) -> Any:
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {"method": "simclr", "variant": "no-norm", "target_ema": 0.5}.get(name, 0.5 if value is None else value)


@pytest.mark.parametrize("name", [name for _, name, _ in leaves()])
def test_the_key_changes_with_every_setting(name: str) -> None:
    base = config_from_settings(NEEDS.get(name, {}))
    value = next(value for _, leaf, value in leaves(base) if leaf == name)
    try:
        changed = config_from_settings({name: other_than(name, value)}, base)
    except InputError:  # a setting that takes whole numbers
        changed = config_from_settings({name: 3}, base)
    assert changed != base
    assert cell_key(changed, "data") != cell_key(base, "data")


def test_the_key_changes_with_the_data_and_not_with_its_place() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    first, copy = open_source(images), open_source(images.copy())
    images[7] = 0
    assert data_identity(first) != data_identity(copy)  # the first reads the changed array
    assert data_identity(open_source(images)) == data_identity(first)
    assert cell_key(PretrainConfig(), "a") != cell_key(PretrainConfig(), "b")


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 11])
def test_shares_are_disjoint_and_cover_all_cells(shares: int, source: Source, tiny: Study) -> None:
    cells = make_plan(tiny, source, seeds=3).cells
    parts = [share_of(cells, f"{i}/{shares}") for i in range(1, shares + 1)]
    assert sorted(cell.key for part in parts for cell in part) == sorted(cell.key for cell in cells)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(InputError, match="1 <= i <= n"):
        share_of((), share)


def test_an_axis_name_chooses_levels_and_makes_new_ones(source: Source, tiny: Study) -> None:
    plan = make_plan(tiny, source, seeds=1, settings={"lambd": "0.1,0.5", "method": "mixed", "epochs": "7"})
    assert [cell.levels["lambd"] for cell in plan.cells] == ["0.1", "0.5"]
    assert [cell.config.objective.lambd for cell in plan.cells] == [0.1, 0.5]
    assert {cell.config.training.epochs for cell in plan.cells} == {7}


def test_numbers_are_put_in_order_and_written_in_one_way(source: Source, tiny: Study) -> None:
    plan = make_plan(tiny, source, seeds=1, settings={"lambd": "1e3, 0.1,64.0,64,.1,1000", "method": "mixed"})
    assert list(plan.axes[0].levels) == ["0.1", "64", "1000"]
    wide = make_plan(STUDIES["overfitting"], source, seeds=1, settings={"width": "4096,1.28e2"})
    assert list(wide.axes[0].levels) == ["128", "4096"]
    assert {cell.config.model.projector[-1] for cell in wide.cells} == {128, 4096}
    linear = make_plan(STUDIES["linearity"], source, seeds=1, settings={"lambd_reg": "16,0.0,1"})
    assert list(linear.axes[1].levels) == ["0", "1", "16"]


@pytest.mark.parametrize("text", ["1.5", "inf", "nan", "-inf", "many", "1e999"])
@pytest.mark.parametrize(("study", "axis"), [("overfitting", "width"), ("width", "width"), ("batch", "batch_size")])
def test_widths_and_batches_are_whole_numbers(study: str, axis: str, text: str, source: Source) -> None:
    with pytest.raises(InputError, match=f"--set {axis}: '{text}' is not a whole number"):
        make_plan(STUDIES[study], source, settings={axis: text})


@pytest.mark.parametrize(
    ("study", "settings", "message"),
    [
        ("augmentations", {"views": "nosuch"}, "Unknown recipe 'nosuch'"),
        ("augmentations", {"views": "gone.toml"}, "Cannot read the recipe gone.toml"),
        ("architectures", {"encoder": "nosuchnet"}, "unknown encoder 'nosuchnet'"),
        ("methods", {"encoder": "nosuchnet"}, "unknown encoder 'nosuchnet'"),
        ("methods", {"temperature": ".2"}, "--method barlow-twins takes --temperature"),
        ("methods", {"method": "simclr", "temperature": -1.0}, "--temperature must be more than 0"),
        ("methods", {"epochs": 1.5}, "training.epochs must be int"),
    ],
)
def test_what_no_cell_could_run_is_refused_before_any_does(
    study: str, settings: dict[str, Any], message: str, source: Source
) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(STUDIES[study], source, settings=settings)


def test_a_setting_may_suit_the_levels_alone(source: Source) -> None:
    cells = make_plan(STUDIES["methods"], source, settings={"method": "simclr,dino", "temperature": ".2"}).cells
    assert {cell.config.objective.temperature for cell in cells} == {0.2}


def test_a_recipe_file_counts_by_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    config = config_from_settings({"recipe": str(file)})
    keys = []
    for text in ('base = "cifar"', 'base = "cifar"\n', 'base = "cifar"\nhue = 0.2'):
        file.write_text(text)
        keys.append(cell_key(config, "data"))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("recipe", ["auto", "cifar:crop-only"])
def test_the_key_of_a_named_recipe_is_that_of_config_and_data_alone(recipe: str) -> None:
    config = config_from_settings({"recipe": recipe})
    text = json.dumps([config_to_dict(config), "data"], sort_keys=True)
    assert cell_key(config, "data") == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": "3"}, "unknown setting 'epoch'. Did you mean 'epochs'"),
        ({"epochs": "3.5"}, "--set epochs: '3.5' is not a whole number"),
        ({"projector": "8,x"}, "is not a list of numbers, separated by commas"),
        ({"compile": "yes"}, "is not true or false"),
        ({"method": "mixd"}, "unknown level 'mixd' of method. Did you mean 'mixed'"),
        ({"lambd": "many"}, "'many' is not a number"),
        ({"seed": "3"}, "use --seeds"),
        ({"epochs": "0"}, "--epochs must be 1 or more"),
        ({"optimizer": "adamww"}, "Did you mean"),
    ],
)
def test_a_setting_that_is_wrong_is_named(settings: dict[str, str], message: str, source: Source, tiny: Study) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(tiny, source, settings=settings)


def test_a_setting_that_an_axis_varies_cannot_be_set_for_all(source: Source) -> None:
    with pytest.raises(InputError, match="choose levels with --set width="):
        make_plan(STUDIES["overfitting"], source, settings={"projector": "64,64"})


def test_values_are_parsed_by_the_type_of_their_field() -> None:
    pairs = split_pairs(["batch-size=64", "lr=0.01", "projector=512, 64", "compile=true", "image_size=none"])
    expected = {"batch_size": 64, "lr": 0.01, "projector": (512, 64), "compile": True, "image_size": None}
    assert {name: parse(name, text) for name, text in pairs.items()} == expected
    with pytest.raises(InputError, match="takes key=value"):
        split_pairs(["epochs"])


@pytest.mark.parametrize("budget", ["full", "small"])
@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_every_study_plans_names_known_metrics_and_claims_what_its_grid_has(
    study: Study, budget: str, source: Source
) -> None:
    plan = make_plan(study, source, seeds=2, budget=budget)
    assert len({cell.key for cell in plan.cells}) > 1
    assert {*study.metrics} >= {claim.metric for claim in study.claims} | {*study.figure.y}
    assert {*study.metrics, *baselines_of(study)} <= {*METRICS}
    allowed = {axis.name for axis in study.axes}
    assert {name for name in (study.figure.series, study.figure.panels, study.columns) if name} <= allowed


def test_a_batch_larger_than_the_data_is_skipped_with_the_reason(source: Source) -> None:
    cells = make_plan(STUDIES["batch"], source, seeds=1, budget="small").cells
    assert [cell.levels["batch_size"] for cell in cells if not cell.skipped] == ["32"]
    assert cells[-1].skipped == "batch 256 is more than the 45 samples to train on"


def test_chains_of_augmentations_are_those_of_the_datas_own_recipe(source: Source) -> None:
    cells = make_plan(STUDIES["augmentations"], source, seeds=1, budget="small").cells
    recipes = list(dict.fromkeys(cell.config.views.recipe for cell in cells))
    assert recipes == ["digits:full", "digits:no-colour", "digits:crop-only", "shuffle", "shuffle-jitter"]

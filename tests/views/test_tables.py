from typing import Any

import pytest
import torch
from torch import Tensor

from barlow.errors import InputError
from barlow.views import Recipe, SignalViewMaker, TableView, TableViewMaker, ViewMaker, get_recipe, view_maker


def maker(*views: TableView, reference: Tensor | None = None, features: int = 4) -> TableViewMaker:
    mean, std = (0.0,) * features, (1.0,) * features
    return TableViewMaker(Recipe("test", views), features=features, mean=mean, std=std, seed=0, reference=reference)


def rows(n: int = 2000) -> Tensor:
    """Feature f of row n is f + n / 10000: every value tells its feature and its row."""
    return torch.arange(4.0) + torch.arange(n)[:, None] / 10000


def test_a_corrupted_feature_takes_its_own_column_of_another_row_with_its_probability() -> None:
    x, reference = rows(), rows(300) + 0.5
    (view,) = maker(TableView(corruption=0.3), reference=reference)(x, torch.arange(len(x)), 0)
    changed = view != x
    assert abs(changed.double().mean() - 0.3) < 0.02
    for feature in range(4):
        taken = view[changed[:, feature], feature]
        assert torch.isin(taken, reference[:, feature]).all()
        assert len(set(taken.tolist())) > 200  # 600 draws from 300 rows: donors are drawn over all rows


def test_without_reference_rows_the_batch_lends_them() -> None:
    x = rows(500)
    (view,) = maker(TableView(corruption=1.0))(x, torch.arange(500), 0)
    for feature in range(4):
        assert torch.isin(view[:, feature], x[:, feature]).all()


def test_with_reference_rows_a_view_does_not_depend_on_the_batch() -> None:
    x, ids = rows(50), torch.arange(50)
    make = maker(TableView(corruption=0.5, noise=0.1), TableView(corruption=0.5), reference=rows(99))
    order = torch.tensor([7, 3, 49])
    for view, few in zip(make(x, ids, 4), make(x[order], ids[order], 4), strict=True):
        assert torch.equal(view[order], few)


def test_reference_rows_go_to_the_device_once_and_not_with_every_batch() -> None:
    make = maker(TableView(corruption=0.5), reference=rows(99))
    make(rows(5).to("meta"), torch.arange(5), 0)
    kept = make._reference
    assert kept is not None
    assert kept.device.type == "meta"
    make(rows(5).to("meta"), torch.arange(5), 1)
    assert make._reference is kept


def test_noise_is_in_units_of_the_features_deviation() -> None:
    make = TableViewMaker(
        Recipe("noise", (TableView(noise=0.2),)), features=2, mean=(1.0, 100.0), std=(1.0, 50.0), seed=0
    )
    x = torch.tensor([[1.0, 100.0]]).expand(4000, 2)
    (view,) = make(x, torch.arange(4000), 0)
    assert torch.allclose(view.std(0), torch.full((2,), 0.2), atol=0.01)
    assert torch.allclose(view.mean(0), torch.zeros(2), atol=0.02)


def test_one_door_opens_the_maker_of_the_recipes_kind() -> None:
    common: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "seed": 0}
    assert isinstance(view_maker(get_recipe("cifar"), image_size=32, **common), ViewMaker)
    assert isinstance(view_maker(get_recipe("signal"), **common), SignalViewMaker)
    assert isinstance(view_maker(get_recipe("table"), **common), TableViewMaker)
    with pytest.raises(InputError, match="needs image_size"):
        view_maker(get_recipe("cifar"), **common)


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match=r"rows \[B, 4\], got \[3, 5\]"):
        maker(TableView())(torch.zeros(3, 5), torch.arange(3), 0)
    with pytest.raises(InputError, match=r"reference must be rows \[R, 4\], got \[0, 4\]"):
        maker(TableView(), reference=torch.zeros(0, 4))
    with pytest.raises(InputError, match="the data are table rows"):
        TableViewMaker(get_recipe("signal"), features=1, mean=(0,), std=(1,), seed=0)

"""How the views of a sample are made: recipes as data, batched ops, and draws that belong to the sample."""

from barlow.views.factory import view_maker
from barlow.views.geometry import Box
from barlow.views.grid import grid
from barlow.views.maker import ViewMaker
from barlow.views.mixing import draw_mix, mix_views
from barlow.views.recipes import (
    ABLATIONS,
    RECIPES,
    Recipe,
    SignalView,
    TableView,
    ViewRecipe,
    get_recipe,
    recipe_from_dict,
    recipe_from_toml,
)
from barlow.views.signals import SignalViewMaker
from barlow.views.tables import TableViewMaker

__all__ = [
    "ABLATIONS",
    "RECIPES",
    "Box",
    "Recipe",
    "SignalView",
    "SignalViewMaker",
    "TableView",
    "TableViewMaker",
    "ViewMaker",
    "ViewRecipe",
    "draw_mix",
    "get_recipe",
    "grid",
    "mix_views",
    "recipe_from_dict",
    "recipe_from_toml",
    "view_maker",
]

"""How the views of a sample are made: recipes as data, batched ops, and draws that belong to the sample."""

from barlow.views.geometry import Box
from barlow.views.maker import ViewMaker
from barlow.views.mixing import draw_mix, mix_views
from barlow.views.recipes import (
    ABLATIONS,
    RECIPES,
    Recipe,
    ViewRecipe,
    get_recipe,
    recipe_from_dict,
    recipe_from_toml,
)

__all__ = [
    "ABLATIONS",
    "RECIPES",
    "Box",
    "Recipe",
    "ViewMaker",
    "ViewRecipe",
    "draw_mix",
    "get_recipe",
    "mix_views",
    "recipe_from_dict",
    "recipe_from_toml",
]

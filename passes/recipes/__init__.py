"""One file per family of linear-complexity mixers."""

from .elu1 import elu1
from .recipe import ALL, RECIPES, Mixing, Recipe, recipe, recipe_named
from .taylor1 import taylor1
from .window import window

__all__ = [
    "ALL", "RECIPES", "Mixing", "Recipe", "elu1", "recipe_named", "recipe", "taylor1", "window",
]  # fmt: skip

"""One file per family of linear-complexity mixers."""

from .elu1 import elu1
from .recipe import ALL, RECIPES, Mixing, Recipe, find_recipe, recipe
from .taylor1 import taylor1
from .window import window

__all__ = [
    "ALL", "RECIPES", "Mixing", "Recipe", "elu1", "find_recipe", "recipe", "taylor1", "window",
]  # fmt: skip

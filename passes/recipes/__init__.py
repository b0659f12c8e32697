"""One file per family of linear-complexity mixers."""

from .elu1 import elu1
from .gla import gla
from .lightning import lightning
from .mamba2 import discrete_mamba2, mamba2
from .recipe import ALL, RECIPES, Mixing, Recipe, recipe, recipe_named
from .retnet import retnet
from .taylor1 import taylor1
from .window import window

__all__ = [
    "ALL", "RECIPES", "Mixing", "Recipe", "discrete_mamba2", "elu1", "gla", "lightning", "mamba2", "recipe",
    "recipe_named", "retnet", "taylor1", "window",
]  # fmt: skip

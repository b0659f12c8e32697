"""One file per family of linear-complexity mixers."""

from .deltanet import deltanet, gated_deltanet, kda
from .elu1 import elu1
from .gla import gla
from .liger import liger
from .lightning import lightning
from .mamba2 import discrete_mamba2, mamba2
from .mlgru import mlgru
from .recipe import ALL, RECIPES, Mixing, Recipe, recipe, recipe_named
from .retnet import retnet
from .taylor1 import taylor1
from .window import window

__all__ = [
    "ALL", "RECIPES", "Mixing", "Recipe", "deltanet", "discrete_mamba2", "elu1", "gated_deltanet", "gla",
    "kda", "liger", "lightning", "mamba2", "mlgru", "recipe", "recipe_named", "retnet", "taylor1", "window",
]  # fmt: skip

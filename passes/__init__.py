"""Graph -> Graph: passes, their pipeline and the linear-complexity recipes. Never imports torch."""

from .attention import attention
from .canonicalize import canonicalize
from .linearize import compare_costs, linearize
from .pipeline import BOUND, PASSES, Checker, Pass, Pipeline, Step, pass_
from .recipes import RECIPES, Recipe, find_recipe, recipe
from .recognize import recognize
from .sites import Site, find_sites

__all__ = [
    "BOUND", "PASSES", "RECIPES", "Checker", "Pass", "Pipeline", "Recipe", "Site", "Step",
    "attention", "canonicalize", "compare_costs", "find_recipe", "find_sites", "linearize", "pass_",
    "recipe", "recognize",
]  # fmt: skip

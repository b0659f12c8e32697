"""Graph -> Graph: passes, their pipeline and the linear-complexity recipes. Never imports torch."""

from .attention import attention
from .canonicalize import canonicalize
from .fold import fold
from .linearize import compare_costs, linearize, possible_gains
from .local import local
from .pipeline import BOUND, PASSES, Checker, Pass, Pipeline, Step, pass_
from .reassociate import reassociate
from .recipes import RECIPES, Recipe, recipe, recipe_named
from .recognize import recognize
from .sites import Site, find_sites

EXACT = Pipeline(canonicalize, fold, recognize, attention, reassociate, local, canonicalize)
"""What `subquad.optimize` runs by default; it changes no result."""

__all__ = [
    "BOUND", "EXACT", "PASSES", "RECIPES", "Checker", "Pass", "Pipeline", "Recipe", "Site", "Step",
    "attention", "canonicalize", "compare_costs", "find_sites", "fold", "linearize", "local", "pass_",
    "possible_gains", "recipe", "reassociate", "recipe_named",
    "recognize",
]  # fmt: skip

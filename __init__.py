"""subquad: make PyTorch models sub-quadratic, one checked graph rewrite at a time.

    fast = subquad.optimize(model, args)
    print(fast.log)

Names are loaded when first used, so that `import subquad` costs nothing and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "optimize": "api",
    "explain": "explanation",
    "compare": "harness",
    "bisect": "harness",
    "Budget": "budget",
    "Calibration": "calibration",
    "Comparison": "harness",
    "PassLog": "report",
    "Pipeline": "passes",
    "Plan": "plan",
    "EXACT": "passes",
    "pass_": "passes",
    "Recipe": "passes",
    "recipe": "passes",
    "RECIPES": "passes",
    "Graph": "ir",
    "No": "ir",
    "SubquadError": "ir",
    "composite": "ir",
    "op": "ir",
    "parse": "ir",
    "rule": "ir",
}

__all__ = [*sorted(_HOME), "__version__"]

if TYPE_CHECKING:
    from .api import optimize as optimize
    from .budget import Budget as Budget
    from .calibration import Calibration as Calibration
    from .explanation import explain as explain
    from .harness import Comparison as Comparison
    from .harness import bisect as bisect
    from .harness import compare as compare
    from .ir import (
        Graph as Graph,
    )
    from .ir import (
        No as No,
    )
    from .ir import (
        SubquadError as SubquadError,
    )
    from .ir import (
        composite as composite,
    )
    from .ir import (
        op as op,
    )
    from .ir import (
        parse as parse,
    )
    from .ir import (
        rule as rule,
    )
    from .passes import (
        EXACT as EXACT,
    )
    from .passes import (
        RECIPES as RECIPES,
    )
    from .passes import (
        Pipeline as Pipeline,
    )
    from .passes import (
        Recipe as Recipe,
    )
    from .passes import (
        pass_ as pass_,
    )
    from .passes import (
        recipe as recipe,
    )
    from .plan import Plan as Plan
    from .report import PassLog as PassLog


_ROOMS = {"ir", "passes", "frontend", "backends"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS or name == "dynamo":
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'subquad' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

"""The vocabulary: each op declared once. Importing this package fills `subquad.ir.core.OPS`."""

from ..core import OPS
from . import (
    activation,
    attention,
    conv,
    elementwise,
    graph,
    index,
    linear,
    linear_attention,
    nonlinear,
    norm,
    pool,
    random,
    reduce,
    scan,
    shape,
)

__all__ = [
    "activation", "attention", "conv", "elementwise", "graph", "index", "linear", "linear_attention",
    "nonlinear", "norm", "pool", "random", "reduce", "scan", "shape",
]  # fmt: skip

globals().update({name: OPS[name] for name in __all__ if name in OPS})  # `ops.linear`: not its file


def __getattr__(name: str):
    """`ops.softmax`: any declared op by name."""
    defn = OPS.get(name.rstrip("_"))
    if defn is None:
        raise AttributeError(f"no op is called {name!r}")
    return defn

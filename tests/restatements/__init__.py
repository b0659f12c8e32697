"""Every recipe said a second time, in numpy and float64, from its paper: what the code is held against.

One module for each file under passes/recipes/. A restatement is written for reading: loops over
tokens, dense matrices, nothing shared with the recipe.

    @restates("elu1")
    def elu1(site):
        weights = phi(site.q) @ swap(phi(site.k)) * site.seen
        return weights @ site.v / (weights.sum(-1, keepdims=True) + 1e-6)
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Site:
    """One attention in numpy: q [b,h,n,d], k [b,h,m,d], v [b,h,m,e], heads repeated; float64.

    keep: bool [b,m], keys that are no padding. tokens: x [b,n,c] or None. weights: what the recipe
    learned, by the names it gave them.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    keep: np.ndarray
    causal: bool
    scale: float
    weights: Mapping[str, np.ndarray]
    tokens: np.ndarray | None = None
    grid: tuple[int, ...] = ()
    before: int = 0
    index: int = 0
    count: int = 1

    @property
    def seen(self) -> np.ndarray:
        """bool [b,1,n,m]: which keys each query may see."""
        n, m = self.q.shape[2], self.k.shape[2]
        order = np.tri(n, m, dtype=bool) if self.causal else np.ones((n, m), bool)
        return self.keep[:, None, None, :] & order


@dataclass(frozen=True)
class Restatement:
    """A recipe's second saying, and the sizes at which the two are compared."""

    spec: str
    function: Callable[..., np.ndarray]
    sizes: Mapping[str, int] = field(default_factory=dict)
    lengths: tuple[int, ...] = (1, 3, 7, 8, 9, 33)
    grids: tuple[tuple[int, ...], ...] = ((1, 1), (2, 3), (4, 4), (5, 7))
    before: tuple[int, ...] = (0, 1)
    linear: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


RESTATED: dict[str, Restatement] = {}
"""By the recipe as text, options and all: `window(size=8)`."""


def restates(spec: str, *, sizes: Mapping[str, int] = {}, options: Mapping[str, Any] = {}, **rest: Any):
    """Register the decorated function `(site, **options) -> [b,h,n,e]` as what recipe `spec` computes.

    sizes: of b, h, g, d, e, c where the defaults do not fit. linear=False: its cost is not linear in
    tokens, and its table says so.
    """

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        RESTATED[spec] = Restatement(spec, function, dict(sizes), options=dict(options), **rest)
        return function

    return register


def swap(x: np.ndarray) -> np.ndarray:
    """The last two axes exchanged."""
    return np.swapaxes(x, -1, -2)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

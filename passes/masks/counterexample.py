"""A key that a mask keeps or masks and the nearest mask with a name does not, found by running it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir import Graph, IRError, Value, evaluate
from ...ir.dims import evaluate as evaluate_dim
from ...ir.dims import symbols
from ...ir.graph import operands_first
from .mask import NEGLIGIBLE

SIZE = 8
"""What every open dim is taken to be."""

LARGEST = 1 << 22
"""Elements of the largest tensor that is worth running."""


def counterexample(mask: Value) -> str:
    """Where `mask` is neither causal nor absent, by one index, at small sizes and seeded random inputs.

    "keeps key 5 for query 2 (batch 0, head 0), which causal does not, at n=8"; "" where there is none
    or where the mask cannot be run here. Never raises.
    """
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _differs(mask)
    except Exception:  # whatever a model's own ops do at sizes they were not made for
        return ""


def _differs(mask: Value) -> str:
    inputs = [op.results[0] for op in operands_first([mask.op]) if op.name == "input"]
    graph = Graph("mask", inputs, (mask,))
    sizes = {name: SIZE for op in graph.ops() for type in op.types for name in symbols(type.shape)}
    largest = max(_count(t.shape, sizes) for op in graph.ops() for t in op.types)
    if largest > LARGEST:
        return ""
    random = np.random.default_rng(0)
    arrays = [_random(v, sizes, random) for v in inputs]
    weights = [op.results[0] for op in graph.ops() if op.name == "param"]
    params = {v.op.attrs["name"]: _random(v, sizes, random) for v in weights}
    (found,), _ = evaluate(graph, arrays, params, sizes)
    keep = found if found.dtype == bool else found > NEGLIGIBLE
    keep = keep.reshape((1,) * (4 - keep.ndim) + keep.shape)
    n, m = keep.shape[2:]
    past = np.tri(n, m, m - n if n < m else 0, dtype=bool)
    future = np.broadcast_to(~past, keep.shape)
    causal = bool(future.any()) and keep[future].mean() < 0.5
    other, name = (past, "causal") if causal else (np.ones((n, m), bool), "no mask")
    places = np.argwhere(keep != other)
    if not len(places):
        added = "" if found.dtype == bool else _added(found.reshape(keep.shape), keep)
        return added and f"{added}, {_at(n, m)}"
    b, h, i, j = places[0]
    does, other_does = ("keeps", "does not") if keep[b, h, i, j] else ("masks", "keeps")
    return f"{does} key {j} for query {i} (batch {b}, head {h}), which {name} {other_does}, {_at(n, m)}"


def _added(found: np.ndarray, keep: np.ndarray) -> str:
    """Two keys of one query to which different numbers are added."""
    for b, h, i, j in np.argwhere(keep):
        first = int(np.argmax(keep[b, h, i]))
        a, c = found[b, h, i, first], found[b, h, i, j]
        if abs(a - c) > 1e-9:
            return f"adds {a:.3g} at key {first} and {c:.3g} at key {j} for query {i} (batch {b}, head {h})"
    return ""


def _at(n: int, m: int) -> str:
    return f"at n={n}" if n == m else f"at n={n}, m={m}"


def _count(shape: tuple[Any, ...], sizes: Mapping[str, int]) -> int:
    total = 1
    for dim in shape:
        try:
            total *= evaluate_dim(dim, sizes)
        except IRError:  # known only when it runs
            continue
    return total


def _random(x: Value, sizes: Mapping[str, int], random: np.random.Generator) -> np.ndarray:
    """Flags for bools and integers, standard normal numbers for floats."""
    shape = [evaluate_dim(dim, sizes) for dim in x.shape]
    if x.dtype.is_float:
        return random.standard_normal(shape)
    return random.integers(0, 2, shape)

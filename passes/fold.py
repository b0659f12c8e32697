"""Compute at compile time what does not depend on data: constants, index arithmetic, masks.

A tensor all of whose elements are one number is written `expand(const)`, or the 0-d `const` itself
where an elementwise op takes it. Weights are not touched: their data is not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..ir import OPS, Graph, IRError, Op, Value, replace
from ..ir.core import build
from ..ir.dims import at_least
from ..ir.interpret import meaning
from ..ir.ops.shape import expand, permute, reshape
from ..ir.rewrite import current_journal
from ..ir.types import DType, TensorType
from .masks import affine, uniform
from .pipeline import pass_


@pass_
def fold(graph: Graph) -> Graph:
    """Compute constants, index arithmetic and provable comparisons; changes no result."""
    record = current_journal()

    def make(op: Op, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if len(op.types) != 1 or op.name in LEFT or not inputs or op.defn.random or record.spent:
            return None
        for attempt in ATTEMPTS:
            result = attempt(op, inputs)
            if result is not None and result.type == op.types[0]:
                record.record(attempt.__name__, op, result)
                return (result,)
        return None

    return replace(graph, make, via="fold")


LEFT = frozenset({"opaque", "expand"})
"""What is never folded: the unknown, and the form that folding ends in."""


def constant(number: bool | int | float, type: TensorType) -> Value:
    """A tensor all of whose elements are `number`."""
    value = OPS["const"](value=number, dtype=type.dtype)
    return expand(value, size=type.shape) if type.rank else value


def _number(x: np.ndarray, dtype: DType) -> bool | int | float | None:
    """The Python number of a 0-d array; None when a narrow `dtype` would round it."""
    item = x.item()
    # as Python floats: numpy rounds a Python float before it compares it with a narrow scalar
    if dtype.name == "f16" and not np.isnan(x) and float(np.float16(item)) != item:
        return None
    if dtype.name == "bf16" and not np.isnan(x):  # the upper half of an f32
        narrow = np.float32(item)
        if float(narrow) != item or narrow.view(np.uint32) & 0xFFFF:
            return None
    return item if dtype.kind in "buif" else None


def elementwise(op: Op) -> bool:
    """Whether element i of the result depends on elements i of the operands only."""
    kinds = {attr.kind for attr in op.defn.attrs}
    if not kinds <= {"dtype", "number", "str", "float", "bool"} or not op.inputs:
        return False
    try:
        types = [None if v is None else v.type.with_(shape=()) for v in op.inputs]
        return op.defn.infer(*types, **op.attrs).shape == ()
    except (IRError, IndexError, AttributeError):
        return False


def fold_constants(op: Op, inputs: Sequence[Value | None]) -> Value | None:
    """An elementwise op on constants."""
    pairs = [(uniform(v), v) for v in inputs]
    scalars = [constant(x, v.type.with_(shape=())) for x, v in pairs if x is not None and v is not None]
    if len(scalars) < len(inputs) or not elementwise(op):
        return None
    small = build(op.defn, scalars, op.attrs)
    data = [np.asarray(v.number, v.dtype.numpy) for v in scalars]
    with np.errstate(all="ignore"):
        (result,) = meaning(small, data, {})
        number = _number(result, op.types[0].dtype)
    return None if number is None else constant(number, op.types[0])


def fold_moved(op: Op, inputs: Sequence[Value | None]) -> Value | None:
    """Moving, joining or cutting a tensor whose elements are all the same."""
    if op.name not in ("reshape", "permute", "slice", "flip", "index", "index_select", "cat"):
        return None
    parts = inputs if op.name == "cat" else inputs[:1]
    numbers = [uniform(v) for v in parts]
    if None in numbers or len({repr(x) for x in numbers}) != 1:
        return None
    return constant(numbers[0], op.types[0])  # type: ignore[arg-type]


def fold_sums_of_zero(op: Op, inputs: Sequence[Value | None]) -> Value | None:
    """Running and plain sums of zeros, triangles of zeros."""
    number = uniform(inputs[0])
    if op.name not in ("cumsum", "sum", "tril", "triu") or number is None or number != 0:
        return None
    if math.copysign(1, number) < 0:
        return None  # -0.0 keeps its sign in some of them
    zero = {"b": False, "i": 0, "u": 0, "f": 0.0}.get(op.types[0].dtype.kind)
    return None if zero is None else constant(zero, op.types[0])


def fold_comparison(op: Op, inputs: Sequence[Value | None]) -> Value | None:
    """A comparison of index arithmetic that always comes out the same."""
    if op.name not in ("lt", "le", "gt", "ge", "eq", "ne"):
        return None
    a, b = inputs
    if a is None or b is None:
        return None
    rank = op.types[0].rank
    sides = [affine(x, tuple(range(rank - x.rank, rank))) for x in (a, b)]
    if sides[0] is None or sides[1] is None:
        return None
    gap = sides[0][0] - sides[1][0]
    left, right = sides[0][1], sides[1][1]
    slopes = [left.get(k, 0) - right.get(k, 0) for k in {*left, *right}]
    falls, rises = all(s <= 0 for s in slopes), all(s >= 0 for s in slopes)
    never_more, never_less = falls and at_least(-gap, 0), rises and at_least(gap, 0)
    less, more = falls and at_least(-gap, 1), rises and at_least(gap, 1)
    same = never_more and never_less and falls and rises
    known = {
        "lt": (less, never_less), "le": (never_more, more), "gt": (more, never_more),
        "ge": (never_less, less), "eq": (same, less or more), "ne": (less or more, same),
    }[op.name]  # fmt: skip
    return constant(known[0], op.types[0]) if any(known) else None


def fold_logic(op: Op, inputs: Sequence[Value | None]) -> Value | None:
    """x and True, x or False, and what absorbs them; a choice that is made."""
    if op.name == "where":
        chosen = uniform(inputs[0])
        return None if chosen is None else _broadcast(inputs[1 if chosen else 2], op.types[0])
    if op.name not in ("logical_and", "logical_or"):
        return None
    for this, other in (inputs, inputs[::-1]):
        number = uniform(this)
        if number is not None:
            if bool(number) == (op.name == "logical_and"):
                return _broadcast(other, op.types[0])
            return constant(bool(number), op.types[0])
    return None


def _broadcast(x: Value | None, type: TensorType) -> Value | None:
    if x is None or x.dtype is not type.dtype:
        return None
    return x if x.shape == type.shape else expand(x, size=type.shape)


def fold_index(op: Op, inputs: Sequence[Value | None]) -> Value | None:
    """x[arange(n)[:, None], arange(m)] is x itself: every element in order, perhaps transposed."""
    x, *indices = inputs
    if op.name != "index" or x is None or len(indices) != x.rank or None in indices:
        return None
    rank = op.types[0].rank
    order = []
    for axis, i in enumerate(indices):
        found = affine(i, tuple(range(rank - i.rank, rank)))  # type: ignore[union-attr, arg-type]
        if found is None or found[0] != 0 or list(found[1].values()) not in ([], [1]):
            return None
        if not found[1] and x.shape[axis] != 1:
            return None
        to = next(iter(found[1]), None)
        if to is not None and op.types[0].shape[to] != x.shape[axis]:
            return None
        order.append(to)
    used = [to for to in order if to is not None]
    sizes = [d for i, d in enumerate(op.types[0].shape) if i not in used]
    if len(set(used)) != len(used) or any(d != 1 for d in sizes):
        return None
    kept = [axis for _, axis in sorted((to, axis) for axis, to in enumerate(order) if to is not None)]
    dims = (*(axis for axis, to in enumerate(order) if to is None), *kept)
    moved = x if dims == tuple(range(x.rank)) else permute(x, dims=dims)
    return moved if moved.type == op.types[0] else reshape(moved, shape=op.types[0].shape)


def fold_operand(op: Op, inputs: Sequence[Value | None]) -> Value | None:
    """An elementwise op takes a repeated number as the number, where types stay the same."""
    if not elementwise(op) or len(inputs) < 2:
        return None
    changed = list(inputs)
    for i, v in enumerate(inputs):
        if v is not None and v.op.name == "expand" and v.op.args[0].number is not None:
            changed[i] = v.op.args[0]
            try:
                types = [None if c is None else c.type for c in changed]
                if op.defn.infer(*types, **op.attrs) != op.types[0]:
                    changed[i] = v
            except IRError:
                changed[i] = v
    return None if changed == list(inputs) else build(op.defn, changed, op.attrs).results[0]


ATTEMPTS = (
    fold_constants, fold_moved, fold_sums_of_zero, fold_comparison, fold_logic, fold_index,
    fold_operand,
)  # fmt: skip
"""What is tried at each op, in order."""

"""Upward from a softmax: through scales, soft-caps and masks to the product of queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ...ir import No, Value
from ...ir.core import build
from ...ir.ops.activation import as_dtype
from ...ir.ops.elementwise import logical_not, mul, neg, where
from ...ir.types import DType, f16, f32
from ..masks import overflows, uniform
from .axes import Atom, Axis, Labelled, aligned, behind, fresh, leaves

LOW_ENOUGH = -1e6
"""A score replaced by this, or by less, leaves no weight beside a key that is kept.

Logits of 5e4 have been met in training (arXiv:2302.05442), so -1e4 may well be the largest of a row.
"""

LEAST_F16 = -65504.0
"""In float16 this will do: no finite score is less."""


@dataclass(frozen=True)
class Term:
    """scale * q k^T: one product of queries and keys; width: the atoms that it sums over."""

    q: Labelled
    k: Labelled
    width: Axis
    scale: float = 1.0


@dataclass
class Scores:
    """softmax's operand taken apart: cap(sum of terms * factors), then kept and added.

    product: that of the first term; rows: the atoms of its axis of queries. factors: tensors that do
    not vary over the keys, with whether they multiply. softcap: c of c * tanh(x / c). masks: in the
    order in which they are applied, an additive mask and None, or a condition and what a score becomes
    where it does not hold.
    """

    product: Value
    rows: Axis
    terms: list[Term]
    softcap: float | None = None
    factors: list[tuple[Labelled, bool]] = field(default_factory=list)
    masks: list[tuple[Labelled, float | None]] = field(default_factory=list)

    @property
    def chosen(self) -> bool:
        """Whether a mask was met that replaces scores."""
        return any(low is not None for _, low in self.masks)


def scores(x: Labelled, key: Atom) -> Scores | No:
    """What the value x before a softmax over the axis `key` is made of, or what is in the way."""
    op = x.value.op
    step = _STEPS.get(op.name)
    if step is not None:
        return step(x, key)
    if op.name in ("permute", "reshape", "expand"):
        source = behind(x)
        if source is None:
            return No("the scores are reshaped across queries, keys and heads", x.value)
        return scores(source, key)
    words = _WHY_NOT.get(op.name, f"stands {op.name}, not a product of queries and keys")
    return No(f"before the softmax {words}", x.value)


_WHY_NOT = {
    "clamp": "the scores are clamped, which attention has no name for",
    "linear": "stands a projection by weights of the model, not a product of queries and keys",
    "slice": "only a part of the scores is taken: take the part of the keys before the product",
    "cat": "scores of several products are joined: join their keys instead",
    "index_put": "scores are written into a tensor",
    "scatter": "scores are scattered: which keys count depends on data",
}


def _product(x: Labelled, key: Atom) -> Scores | No:
    a, b = x.value.op.args
    *batch, rows, columns = x.axes
    here = set(leaves([key]))
    width = fresh(a.shape[-1:])[0]
    left = Labelled(a, (*aligned(a, (*batch, rows, width)).axes[:-2], rows, width))
    right = Labelled(b, (*aligned(b, (*batch, width, columns)).axes[:-2], width, columns))
    if here and here <= set(leaves(columns)):
        return Scores(x.value, rows, [Term(left, right, width)])
    if here and here <= set(leaves(rows)):
        return Scores(x.value, columns, [Term(right, left, width)])
    return No("the softmax is not over an axis of the product of queries and keys", x.value)


def _cast(x: Labelled, key: Atom) -> Scores | No:
    source = x.value.op.args[0]
    found = scores(Labelled(source, x.axes), key)
    if isinstance(found, No) or (x.value.dtype.is_float and source.dtype.is_float):
        if isinstance(found, Scores) and found.masks and x.value.dtype.bits < min(32, source.dtype.bits):
            return No(f"masked scores are narrowed to {x.value.dtype}, which may make them -inf", x.value)
        return found
    return No(f"the scores become {x.value.dtype}", x.value)


def _scaled(x: Labelled, key: Atom) -> Scores | No:
    op = x.value.op
    divides = op.name == "div"
    if divides and op.attrs["rounding_mode"] is not None:
        return No("the scores are rounded", x.value)
    this, other = op.args if divides else _told_apart(x.value)
    found = scores(aligned(this, x.axes), key)
    if isinstance(found, No):
        return found
    number = uniform(other)
    if number is None:
        factor = aligned(other, x.axes)
        if set(leaves([key])) & set(factor.atoms):
            return No("the scores are multiplied by a tensor that varies over the keys", x.value)
        if found.masks or found.softcap is not None:
            what = "masked" if found.masks else "capped"
            return No(f"the scores are {what} before they are scaled by a tensor", x.value)
        found.factors.append((factor, not divides))
        return found
    if not math.isfinite(number) or number == 0:
        return No(f"the scores are scaled by {number}", x.value)
    by = 1 / number if divides else float(number)
    if found.chosen and by <= 0:
        return No(f"masked scores are -inf before a scale of {by:g}", x.value)
    found.terms = [replace(term, scale=term.scale * by) for term in found.terms]
    if found.softcap is not None:
        found.softcap *= by
    wide = max(f32, this.dtype, key=lambda dtype: dtype.bits)  # a narrow mask was widened, then scaled
    masks: list[tuple[Labelled, float | None]] = []
    for mask, low in found.masks:
        if low is None:
            masks.append((Labelled(_times(as_dtype(mask.value, wide), by), mask.axes), None))
        elif math.isfinite(low) and overflows(low * by, x.value.dtype):
            return No(f"masked scores of {low:g} become -inf by a scale of {by:g}", x.value)
        elif abs(by) < 1 and low * by > LOW_ENOUGH:
            return No(f"masked scores are {low * by:g}, which still leaves them some weight", x.value)
        else:
            masks.append((mask, low * by))
    found.masks = masks
    return found


def _times(mask: Value, by: float) -> Value:
    """A mask times a number, in the form in which masks are proved."""
    op = mask.op
    if op.name in ("expand", "reshape", "permute"):
        return build(op.defn, (_times(op.args[0], by),), op.attrs).results[0]
    number = uniform(op.args[1]) if op.name == "mul" else None
    if number is not None:
        return mul(op.args[0], number * by)
    choice = op.args[0].op if op.name == "cast" else op
    if choice.name == "where":
        condition, a, b = choice.args
        numbers = uniform(a), uniform(b)
        if None not in numbers:
            return where(condition, *(number * by for number in numbers))  # type: ignore[operator]
    return mul(mask, by)


def _added(x: Labelled, key: Atom) -> Scores | No:
    this, other = _told_apart(x.value)
    found = scores(aligned(this, x.axes), key)
    if isinstance(found, No):
        return found
    if other.dtype.kind == "b":
        return No("a bool is added to the scores", other)
    if not _joined(found, other, x, key):
        found.masks.append((aligned(other, x.axes), None))
    return found


def _joined(found: Scores, other: Value, x: Labelled, key: Atom) -> bool:
    """Whether what is added is a product too: q k^T + p r^T is [q, p] [k, r]^T."""
    if other.shape != x.value.shape or _distance(other) > _NEAR:
        return False
    more = scores(aligned(other, x.axes), key)
    if isinstance(more, No) or more.masks or more.factors or more.softcap is not None:
        return False
    rows = set(leaves(found.rows))
    alike = all(rows <= set(term.q.atoms) and not rows & set(term.k.atoms) for term in more.terms)
    if not alike or found.chosen or found.factors or found.softcap is not None:
        return False
    found.terms += more.terms
    return True


def _less(x: Labelled, key: Atom) -> Scores | No:
    """The largest score of a row may be taken off all of them; anything else is a mask."""
    this, other = x.value.op.args
    found = scores(aligned(this, x.axes), key)
    if isinstance(found, No):
        return found
    off = aligned(other, x.axes)
    if not is_maximum(off, Labelled(this, aligned(this, x.axes).axes), key):
        less = _times(other, -1.0) if other.dtype.is_float else neg(other)
        found.masks.append((Labelled(less, off.axes), None))
    return found


def is_maximum(off: Labelled, of: Labelled, key: Atom) -> bool:
    """Whether `off` is the largest element of each row of `of` along `key`."""
    value = off.value
    if set(leaves([key])) & set(off.atoms):  # it lies along the keys, where each has another row's
        return False
    while value.op.name in ("detach", "reshape", "cast"):
        value = value.op.args[0]
    if value.op.name != "amax" or value.op.args[0] is not of.value:
        return False
    return [leaves(of.axes[i]) for i in value.op.attrs["dim"]] == [leaves([key])]


def _chosen(x: Labelled, key: Atom) -> Scores | No:
    condition, kept, masked = x.value.op.args
    if uniform(kept) is not None:
        condition, kept, masked = logical_not(condition), masked, kept
    low = uniform(masked)
    if low is None or not has_product(kept):
        return No("where masks the scores in a way that is not where(keep, scores, -inf)", x.value)
    found = scores(aligned(kept, x.axes), key)
    if isinstance(found, No):
        return found
    if overflows(low, x.value.dtype):
        return No(f"masked scores are {low:g}, which {x.value.dtype} rounds to -inf", x.value)
    if not low_enough(low, x.value.dtype):
        return No(f"masked scores are {low:g}, which still leaves them some weight", x.value)
    found.masks.append((aligned(condition, x.axes), float(low)))
    return found


def low_enough(low: float, dtype: DType) -> bool:
    """Whether a score of `low` in place of another leaves no weight beside a key that is kept."""
    return low <= LOW_ENOUGH or (dtype is f16 and low <= LEAST_F16)


def _capped(x: Labelled, key: Atom) -> Scores | No:
    found = scores(Labelled(x.value.op.args[0], x.axes), key)
    if isinstance(found, No):
        return found
    if found.masks or found.softcap is not None:
        return No("the scores are masked before they are capped by tanh", x.value)
    found.softcap = 1.0
    return found


_STEPS = {
    "matmul": _product, "cast": _cast, "mul": _scaled, "div": _scaled, "add": _added, "sub": _less,
    "where": _chosen, "tanh": _capped,
}  # fmt: skip


def _told_apart(x: Value) -> tuple[Value, Value]:
    """The operands of a sum or product of scores and something else: the scores first."""
    a, b = x.op.args
    near = [_distance(part) + (part.shape != x.shape) * _FAR // 2 for part in (a, b)]
    return (b, a) if near[1] < near[0] else (a, b)


_FAR = 1000
_NEAR = 8
_STEPPED = frozenset({*_STEPS, "permute", "reshape", "expand"}) - {"matmul"}


def _distance(x: Value) -> int:
    """How many steps that scores may take lie between x and the nearest matrix product."""
    level, seen = [x], {x}
    for steps in range(_FAR // 4):
        if any(value.op.name == "matmul" for value in level):
            return steps
        ahead = [v for value in level if value.op.name in _STEPPED for v in value.op.operands]
        level = [v for v in dict.fromkeys(ahead) if v not in seen]
        seen.update(level)
        if not level or len(seen) > _FAR:
            break
    return _FAR


def has_product(x: Value) -> bool:
    """Whether a matrix product stands behind views, casts, scales and masks of x."""
    return _distance(x) < _FAR

"""Raise every spelling of softmax attention to `attention(q, k, v, mask)`, k and v un-expanded.

The search starts at a softmax that meets a matrix product and walks outward: through casts and
folded heads to the product of queries and keys, collecting scales and masks on the way. What
stops it is kept as a refusal with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ir import Dim, Graph, IRError, No, Op, Value, replace
from ..ir.core import build
from ..ir.ops.attention import attention as attention_op
from ..ir.ops.elementwise import logical_and, logical_not, where
from ..ir.ops.shape import expand, permute, reshape
from ..ir.rewrite import current_journal
from ..ir.types import broadcast
from .canonicalize import holds_all
from .masks import AS_GOOD_AS_INFINITE, classify, uniform
from .pipeline import pass_


@dataclass
class Scores:
    """q k^T on its way to the softmax: operands, the scale so far, and the masks added to it."""

    q: Value
    kt: Value
    scale: float = 1.0
    masks: list[Value] = field(default_factory=list)
    keeps: list[Value] = field(default_factory=list)


@pass_
def attention(graph: Graph) -> Graph:
    """Raise softmax attention to the `attention` op and simplify those there are."""
    record = current_journal()

    def make(op: Op, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        given: Any = inputs
        result: Value | No | None
        if record.spent:
            return None
        if op.name == "matmul":
            rule, result = "raise_attention", raised(op, inputs, graph)
        elif op.name == "attention":
            rule, result = "simplify_attention", simplified(*given, attrs=dict(op.attrs))
        else:
            return None
        if result is None:
            return None
        record.record(rule, op, result)
        return (result,) if isinstance(result, Value) else None

    return replace(graph, make, via="attention")


def raised(op: Op, inputs: Sequence[Value | None], graph: Graph) -> Value | No | None:
    """`attention` for a matmul of softmax weights with values; None where there is no softmax."""
    weights, v = inputs
    if weights is None or v is None or _softmax(weights) is None:
        return None
    kept = {*graph.outputs, *graph.updates.values()}
    old: Value | None = op.args[0]
    while old is not None and (old.op.name in PASSING or old.op.name == "softmax"):
        if len(graph.uses(old)) > 1 or old in kept:
            return No("its weights are used elsewhere too", old)
        old = None if old.op.name == "softmax" else old.op.args[0]
    return spelled(weights, v)


PASSING = ("cast", "reshape")
"""Ops that may stand between a softmax and the product with the values."""


def _softmax(x: Value) -> Value | None:
    while x.op.name in PASSING:
        x = x.op.args[0]
    return x if x.op.name == "softmax" else None


def spelled(weights: Value, v: Value) -> Value | No:
    """`attention` from its softmax weights [.., n, m] and its values [.., m, e]."""
    softmax = _softmax(weights)
    if softmax is None:
        return No("there is no softmax", weights)
    x = softmax.op.args[0]
    if softmax.op.attrs["dim"] != softmax.rank - 1:
        axis = softmax.op.attrs["dim"]
        return No(f"softmax is over axis {axis} of {softmax.rank}, not over the keys", softmax)
    if weights.shape[-2:] != softmax.shape[-2:]:
        return No("the weights are reshaped across queries or keys", weights)
    found = scores(x)
    if isinstance(found, No):
        return found
    q, k = found.q, transposed(found.kt)
    if not q.dtype is k.dtype is v.dtype:
        q, k = _narrowed(q, v), _narrowed(k, v)
        if not q.dtype is k.dtype is v.dtype:
            return No(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}", v)
    mask = _joined(found, softmax)
    if isinstance(mask, No):
        return mask
    try:
        return four_axes(q, k, v, mask, found.scale, weights, softmax)
    except IRError as error:
        return No(f"heads do not line up: {error}", weights)


def scores(x: Value) -> Scores | No:
    """What stands before the softmax, taken apart; No where it is not q k^T, scaled and masked."""
    op = x.op
    if op.name == "matmul":
        q, a = unscaled(op.args[0])
        kt, b = unscaled(op.args[1])
        return Scores(q, kt, a * b)
    if op.name in ("mul", "div") and op.args[1].number is not None:
        found = scores(op.args[0])
        if isinstance(found, No):
            return found
        if found.masks:
            return No("the mask is added before the scale", x)
        factor = op.args[1].number
        if found.keeps and not 0 < factor < math.inf:
            return No(f"masked scores are -inf before a scale of {factor}", x)
        found.scale *= factor if op.name == "mul" else 1 / factor if factor else float("nan")
        return found
    if op.name == "cast" and holds_all(op.args[0].dtype, x.dtype):
        return scores(op.args[0])
    if op.name == "reshape" and op.args[0].shape[-2:] == x.shape[-2:]:
        found = scores(op.args[0])
        if isinstance(found, Scores) and (found.masks or found.keeps):
            return _refolded(found, op.args[0].shape, x.shape)
        return found
    if op.name == "add":
        for this, other in (op.args, op.args[::-1]):
            if _product(this):
                found = scores(this)
                if isinstance(found, Scores):
                    found.masks.append(other)
                return found
        for this in op.args:  # for the reason: which of the two were scores is not known
            if this.shape == x.shape and this.op.name not in ("expand", "param", "input"):
                return scores(this)
    if op.name == "where":
        condition, kept, masked = op.args
        if uniform(kept) is not None:
            condition, kept, masked = logical_not(condition), masked, kept
        low = uniform(masked)
        if low is None or not _product(kept):
            return No("where masks the scores in a way that is not where(keep, scores, -inf)", x)
        found = scores(kept)
        if isinstance(found, No):
            return found
        if low == float("-inf"):
            found.keeps.append(condition)
        elif low <= AS_GOOD_AS_INFINITE:
            found.masks.append(where(condition, 0.0, low))
        else:
            return No(f"masked scores are {low}, which a row of only masked keys would show", x)
        return found
    return No(f"before the softmax stands {op.name}, not a product of queries and keys", x)


def _product(x: Value) -> bool:
    """Whether a matmul stands behind views, casts, scales and masks of x."""
    while x.op.name in ("cast", "reshape", "mul", "div", "add", "where"):
        if x.op.name == "add":
            return any(map(_product, x.op.args))
        where_masks = x.op.name == "where" and uniform(x.op.args[1]) is not None
        x = x.op.args[2 if where_masks else 1 if x.op.name == "where" else 0]
    return x.op.name == "matmul"


def _refolded(
    found: Scores, before: tuple[Dim, ...], shape: tuple[Dim, ...]
) -> Scores | No:
    """The masks of scores that are reshaped from `before` to `shape`, batch and heads only."""
    for group in (found.masks, found.keeps):
        for i, mask in enumerate(group):
            lead = mask.shape[:-2]
            if lead not in (before[:-2], (), (1,) * len(lead)):  # OPT: [b, 1, n, m] on [b, h, n, m]
                try:
                    mask = expand(mask, size=(*before[:-2], *mask.shape[-2:]))
                except IRError:
                    return No("heads are folded after a mask of other heads", mask)
                lead = before[:-2]
            folded = shape[:-2] if lead == before[:-2] else (1,) * (len(shape) - 2)
            group[i] = reshape(mask, shape=(*folded, *(1, 1, *mask.shape)[-2:]))
    return found


def unscaled(x: Value) -> tuple[Value, float]:
    """x without constant factors, and their product; looks through transposes."""
    name, inputs = x.op.name, x.op.args
    if name in ("mul", "div") and inputs[1].number and inputs[0].type == x.type:
        inner, scale = unscaled(inputs[0])
        return inner, scale * (inputs[1].number if name == "mul" else 1 / inputs[1].number)
    if name in ("permute", "reshape"):
        inner, scale = unscaled(inputs[0])
        if scale != 1.0:
            return build(x.op.defn, (inner,), x.op.attrs).results[0], scale
    return x, 1.0


def transposed(x: Value) -> Value:
    """The last two axes of x exchanged, as one transpose at most."""
    dims = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    if x.op.name == "permute":
        dims, x = tuple(x.op.attrs["dims"][i] for i in dims), x.op.args[0]
    return x if dims == tuple(range(x.rank)) else permute(x, dims=dims)


def _narrowed(x: Value, like: Value) -> Value:
    widened = x.op.name == "cast" and x.op.args[0].dtype is like.dtype
    return x.op.args[0] if widened and holds_all(like.dtype, x.dtype) else x


def _joined(found: Scores, softmax: Value) -> Value | No | None:
    """One mask of the collected ones: bool when all are, else additive."""
    for mask in (*found.masks, *found.keeps):
        try:
            fits = broadcast(mask.shape, softmax.shape) == softmax.shape
        except IRError:
            fits = False
        if not fits:
            return No("a mask does not broadcast to the scores", mask)
    joined: Value | None = None
    for keep in found.keeps:
        joined = keep if joined is None else logical_and(joined, keep)
    for added in found.masks:
        if added.dtype.kind == "b":
            return No("a bool is added to the scores", added)
        if joined is not None and joined.dtype.kind == "b":
            joined = where(joined, added, float("-inf"))
        else:
            joined = added if joined is None else joined + added
    return joined


def four_axes(
    q: Value, k: Value, v: Value, mask: Value | None, scale: float, weights: Value, softmax: Value
) -> Value | No:
    """`attention` on operands brought to [b, h, n, d], and its result as the matmul shaped it.

    Heads may be folded into the batch in the products and apart in the softmax, or the reverse.
    """
    if softmax.rank == 4:
        fold = softmax.shape[:2]
    elif weights.rank == 4:
        fold = weights.shape[:2]
    elif softmax.rank in (2, 3):
        fold = _unfolded(q, k, v) or (1, *softmax.shape[:-2], 1)[-2:]
    else:
        return No(f"the scores have {softmax.rank} axes", softmax)
    if broadcast(weights.shape[:-2], v.shape[:-2]) != weights.shape[:-2]:
        return No("the values have batches that the weights have not", v)
    if mask is not None and softmax.rank < 4:
        lead = mask.shape[:-2]
        mask = _reshaped(mask, (*((1, 1) if lead in ((), (1,)) else fold), *(1, 1, *mask.shape)[-2:]))
    operands = []
    for x in (q, k, v):
        if x.rank == 4 and x.shape[:2] != fold:
            x = expand(x, size=(*fold, *x.shape[2:]))
        operands.append(_reshaped(x, (*fold, *x.shape[-2:])))
    attrs = {"scale": scale, "causal": False, "empty": "zero" if mask is None else "nan"}
    q, k, v = operands
    result = simplified(q, k, v, mask, attrs=attrs)
    if result is None:
        result = attention_op(q, k, v, mask, **attrs)
    return _reshaped(result, (*weights.shape[:-1], v.shape[-1]))


def _reshaped(x: Value, shape: tuple[Dim, ...]) -> Value:
    if x.op.name == "reshape":
        x = x.op.args[0]
    return x if x.shape == shape else reshape(x, shape=shape)


def _unfolded(*operands: Value) -> tuple[Dim, Dim] | None:
    """(b, h) when every operand [b*h, n, d] is a reshape of one that had them apart."""
    sources = [x.op.args[0] for x in operands if x.op.name == "reshape"]
    shapes = {s.shape[:2] for s in sources if s.rank == 4}
    if len(sources) < len(operands) or len(shapes) != 1 or any(s.rank != 4 for s in sources):
        return None
    same = all(s.shape[2:] == x.shape[1:] for s, x in zip(sources, operands, strict=True))
    b, h = shapes.pop()
    return (b, h) if same else None


# ---- simplifying ---------------------------------------------------------------------------------


def simplified(
    q: Value, k: Value, v: Value, mask: Value | None = None, *, attrs: dict
) -> Value | None:
    """The attention with k and v un-expanded and a mask that is proved away; None if it is so."""
    before = (k, v, mask, dict(attrs))
    keys, values = unrepeated(k, 1), unrepeated(v, 1)
    if keys is not None and values is not None and keys.shape[1] == values.shape[1]:
        k, v = keys, values
    if mask is not None:
        found = classify(mask)
        if found.kind in ("none", "causal") and (found.hard or mask.dtype.kind == "b"):
            attrs["causal"] |= found.kind == "causal"
            mask = None
    if mask is None:
        attrs["empty"] = "zero"  # no row is empty: all mean the same
    if (k, v, mask, attrs) == before:
        return None
    return attention_op(q, k, v, mask, **attrs)


def unrepeated(x: Value, axis: int) -> Value | None:
    """x without the repetition of each slice along `axis` that shares key heads; None without one.

    `repeat_kv` in Hugging Face: x[:, :, None].expand(b, g, r, m, d).reshape(b, g * r, m, d).
    One head for all queries may be there by broadcasting: x.expand(b, h, m, d).
    """
    name = x.op.name
    if name == "expand" and x.op.args[0].shape == (*x.shape[:axis], 1, *x.shape[axis + 1 :]):
        return x.op.args[0]
    if name == "permute":
        dims = x.op.attrs["dims"]
        inner = unrepeated(x.op.args[0], dims[axis])
        return None if inner is None else permute(inner, dims=dims)
    if name != "reshape" or x.op.args[0].op.name != "expand":
        return None
    whole = x.op.args[0]
    source = whole.op.args[0]
    if whole.rank != x.rank + 1 or source.rank != whole.rank:
        return None
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    if (*whole.shape[:axis], *whole.shape[axis + 2 :]) != rest:
        return None
    repeated = (*whole.shape[: axis + 1], 1, *whole.shape[axis + 2 :])
    if source.shape != repeated:
        return None
    return _reshaped(source, (*repeated[: axis + 1], *repeated[axis + 2 :]))

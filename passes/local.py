"""Attention within a window or a chunk, as attention inside blocks: linear in tokens, and exact.

A window of w tokens becomes attention of blocks of w/2 queries to the blocks that the window reaches:
1.5 w keys a query where it looks back only, 2 w or so where it looks both ways. A chunk of c tokens is
a block to itself. Blocks are a batch axis, so a backend runs the same kernel as before: on CPUs torch's
scaled_dot_product_attention, three times as fast there as products and a softmax written out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir import OPS, Dim, Graph, No, Op, Value, replace
from ..ir.dims import ceildiv
from ..ir.ops.activation import as_dtype, wide
from ..ir.ops.attention import attention, band, heads, swap
from ..ir.ops.elementwise import eq, logical_and, logical_not, where
from ..ir.ops.reduce import any_, mean
from ..ir.ops.shape import cat, expand, permute, reshape, slice_
from ..ir.rewrite import current_journal
from ..ir.types import bool_
from .masks import Mask, classify
from .pipeline import pass_
from .weighing import cheaper, flops

LEAST = 16
"""The fewest queries to a block: fewer leave matrix products too small to be fast."""

GAIN = 2
"""Blocks copy keys and values, so they have to save this factor of the FLOPs."""

PARTS = frozenset({"causal", "window", "chunked", "packed", "padding"})
"""What a mask may be made of to be kept inside blocks."""


@pass_
def local(graph: Graph, *, sizes: Mapping[str, int] = {}) -> Graph:
    """Attention within a window or a chunk as attention inside blocks; changes no result.

    sizes: values of symbolic dims to compare costs at, best those of the example inputs. The result
    is the same at any length; blocks are taken where they save half of the FLOPs.
    """
    record = current_journal()

    def make(op: Op, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        if op.name != "attention" or record.spent:
            return None
        new = attention(*inputs, **op.attrs).op
        mask = _mask(new)
        if mask.chunk is None and mask.window is None and op.attrs["window"] is None:
            return None
        rule = "window_in_blocks" if mask.chunk is None else "chunks_apart"
        result = in_blocks(new, mask)
        if isinstance(result, Value):
            before, after = flops([new]), flops(result, new.inputs)
            if not cheaper(graph, before, after, sizes, GAIN):
                result = No("its queries are too few for blocks to save half of the work", op.results[0])
        record.record(rule, op, result)
        return None if isinstance(result, No) else (result,)

    return replace(graph, make, via="local")


def _mask(op: Op) -> Mask:
    """What is proved of the mask of an `attention`: looked at only where it can be local."""
    operand = op.args[3] if len(op.args) > 3 else None
    attrs = op.attrs
    if operand is not None and (operand.dtype is not bool_ or operand.rank < 2):
        return Mask("dense", window=attrs["window"], reason="it adds to the scores")
    if operand is not None and attrs["window"] is None and operand.shape[-2] == 1:
        return Mask("padding")
    return classify(operand, attrs["causal"], attrs["offset"], attrs["window"])


def in_blocks(op: Op, mask: Mask) -> Value | No:
    """An `attention` with a proved mask of a window or chunks, in blocks; or why not."""
    q, k, v, _, sink = (*op.args, None, None)[:5]
    n, at, size = q.shape[2], op.results[0], mask.window if mask.chunk is None else mask.chunk
    if not mask.parts <= PARTS:
        why = f" ({mask.reason})" if mask.reason else ""
        return No(
            f"blocks keep windows, chunks, segments, the past and padding; this mask is {mask.kind}{why}", at
        )
    if mask.starts is not None:
        return No("its chunks start where the padding ends, which is known only from the data", at)
    if mask.offset != 0 or n != k.shape[2]:
        return No("its queries are counted from another position than its keys", at)
    if not isinstance(size, int) or size < 1:
        return No(f"a window of {size} tokens is not a fixed number of blocks", at)
    block, before, after = size, 0, 0
    if mask.chunk is None:
        block = max(LEAST, -(-size // 2))
        before = -(-(size - 1) // block)
        after = 0 if mask.causal else before
    b, keep = q.shape[0], _kept(mask, q.shape[0], n, block, before, after)
    by_position: Any = dict(causal=mask.causal, window=mask.window)
    if mask.causal or mask.window is not None:
        by_position["offset"] = before * block
    x, y, z = neighbourhoods(q, block), *(neighbourhoods(t, block, before, after) for t in (k, v))
    scores: Any = {name: op.attrs[name] for name in ("scale", "softcap")}
    out = tokens_of(attention(x, y, z, keep, sink, **scores, **by_position), b, n)
    empty = op.attrs["empty"]
    if sink is not None or (mask.padding is None and mask.segments is None) or empty == "zero":
        return out  # every query sees itself, or rows without keys are 0 in either form
    seen = band(block, y.shape[2], **by_position)
    assert keep is not None
    dead = logical_not(any_(keep if seen is None else logical_and(keep, seen), dim=(3,), keepdim=True))
    dead = expand(dead, size=(x.shape[0], 1, block, 1))
    fill = _filled(v, heads(q, k, v), empty)
    return where(tokens_of(dead, b, n), as_dtype(fill, out.dtype), out)


def _filled(v: Value, each: Dim, empty: str) -> Value:
    """What a row without a key gives, [b, h, 1, e]: NaN, or the mean of all values."""
    if empty == "nan":
        return OPS["const"](value=float("nan"), dtype=v.dtype)
    b, g, _, e = v.shape
    average = reshape(mean(wide(v), dim=(2,), keepdim=True), shape=(b, g, 1, 1, e))
    return reshape(expand(average, size=(b, g, each, 1, e)), shape=(b, g * each, 1, e))


def _kept(mask: Mask, b: Dim, n: Dim, block: int, before: int, after: int) -> Value | None:
    """bool [b * c, 1, 1 or block, keys], which keys of each block there are and count; None for all."""
    keep = None
    if mask.padding is not None:
        shared = mask.padding.shape[0]
        there = reshape(expand(mask.padding, size=(shared, 1, 1, n)), shape=(shared, 1, n, 1))
        keep = swap(_of_all(neighbourhoods(there, block, before, after), b, n, block))
    elif before or not (mask.causal or ceildiv(n, block) * block == n):  # else the future hides the rest
        there = expand(OPS["const"](value=True, dtype=bool_), size=(1, 1, n, 1))
        keep = swap(_of_all(neighbourhoods(there, block, before, after), b, n, block))
    if mask.segments is not None:
        rows, columns = (reshape(x, shape=(x.shape[0], 1, n, 1)) for x in mask.segments)
        own = _of_all(neighbourhoods(rows, block), b, n, block)
        same = eq(own, swap(_of_all(neighbourhoods(columns, block, before, after), b, n, block)))
        keep = same if keep is None else logical_and(keep, same)
    return keep


def _of_all(x: Value, b: Dim, n: Dim, block: int) -> Value:
    """Blocks [c or b * c, 1, r, 1] that all sequences share, or not, for each of b: [b * c, 1, r, 1]."""
    c, rows = ceildiv(n, block), x.shape[2]
    if x.shape[0] == b * c:
        return x
    return reshape(expand(reshape(x, shape=(1, c, rows)), size=(b, c, rows)), shape=(b * c, 1, rows, 1))


def neighbourhoods(x: Value, block: int, before: int = 0, after: int = 0) -> Value:
    """x [b, h, n, d] as [b * c, h, (before + 1 + after) * block, d]: each block and those beside it.

    Zeros, or False, stand where there are no tokens.
    """
    b, h, n, d = x.shape
    c, near = ceildiv(n, block), before + 1 + after
    zero = OPS["const"](value={"b": False, "f": 0.0}.get(x.dtype.kind, 0), dtype=x.dtype)
    first, last = before * block, (c + after) * block - n
    ends = [expand(zero, size=(b, h, length, d)) for length in (first, last)]
    parts = [part for part in (ends[0], x, ends[1]) if part.shape[2] != 0]
    x = cat(*parts, dim=2) if len(parts) > 1 else x
    moved = [
        reshape(
            slice_(x, dim=2, start=i * block, end=(i + c) * block) if near > 1 else x,
            shape=(b, h, c, block, d),
        )
        for i in range(near)
    ]
    x = permute(cat(*moved, dim=3) if near > 1 else moved[0], dims=(0, 2, 1, 3, 4))
    return reshape(x, shape=(b * c, h, near * block, d))


def tokens_of(x: Value, b: Dim, n: Dim) -> Value:
    """The first n tokens of blocks x [b * c, h, block, e], as [b, h, n, e]."""
    _, h, block, e = x.shape
    c = ceildiv(n, block)
    x = permute(reshape(x, shape=(b, c, h, block, e)), dims=(0, 2, 1, 3, 4))
    x = reshape(x, shape=(b, h, c * block, e))
    return x if c * block == n else slice_(x, dim=2, start=0, end=n)

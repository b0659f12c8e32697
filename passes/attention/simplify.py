"""An `attention` op made simpler: repeated keys and values once, a mask by position as attributes."""

from __future__ import annotations

from ...ir import Op, Value
from ...ir.dims import at_least
from ...ir.ops.attention import attention as attention_op
from ..masks import simplify
from .axes import Atom, Labelled, arranged, leaves, regrouped, stripped


def simplified(op: Op) -> Value | None:
    """The same attention with k and v un-expanded and its mask proved away; None if it is so."""
    q, k, v, mask, sink = (*op.inputs, None, None)[:5]
    attrs = dict(op.attrs)
    if mask is not None:
        found = simplify(mask, attrs["causal"], attrs["offset"], attrs["window"], attrs["empty"])
        if found is not None:
            mask, *rest = found
            attrs.update(zip(("causal", "offset", "window", "empty"), rest, strict=True))
    if attrs["empty"] != "zero" and (sink is not None or (mask is None and _no_row_is_empty(attrs))):
        attrs["empty"] = "zero"  # all mean the same
    fewer = _unrepeated(q, k, v, mask, sink, attrs)
    if fewer is not None:
        return fewer
    if mask is (*op.inputs, None)[3] and attrs == dict(op.attrs):
        return None
    return attention_op(q, k, v, mask, sink, **attrs)


def _no_row_is_empty(attrs: dict) -> bool:
    """Whether every query sees its first key, without a mask operand."""
    return attrs["window"] is None and (not attrs["causal"] or at_least(attrs["offset"], 0))


def _unrepeated(q, k, v, mask, sink, attrs: dict) -> Value | None:
    """The attention without the repetition of heads that keys and values share."""
    (b, h, n, d), g, m, e = q.shape, k.shape[1], k.shape[2], v.shape[3]
    atoms = [() if size == 1 else (Atom(size),) for size in (b, h, n, d, m, e)]
    batch, heads, rows, width, keys, features = atoms
    split = regrouped((heads,), (g, h // g)) if g != h else (heads, ())
    if split is None:
        return None
    own = split[0]
    key = stripped(Labelled(k, (batch, own, keys, width)))
    value = stripped(Labelled(v, (batch, own, keys, features)))
    vary = {*key.atoms, *value.atoms}
    kept = [atom for atom in leaves(own) if atom in vary]
    if kept == leaves(own):
        return None
    order = [*kept, *(atom for atom in leaves(heads) if atom not in kept)]
    four = (0, 1, 2, 3)
    k = arranged(key, (batch, kept, keys, width), four)
    v = arranged(value, (batch, kept, keys, features), four)
    if order == leaves(heads):
        return attention_op(q, k, v, mask, sink, **attrs)
    q = arranged(Labelled(q, (batch, heads, rows, width)), (batch, order, rows, width))
    if mask is not None and mask.rank > 2 and mask.shape[-3] != 1:
        lead = (batch, heads, rows, keys)[4 - mask.rank :]
        axes = tuple(() if size == 1 else axis for size, axis in zip(mask.shape, lead, strict=True))
        mask = arranged(Labelled(mask, axes), (batch, order, rows, keys))
    if sink is not None:
        sink = arranged(Labelled(sink, (heads,)), (order,))
    out = attention_op(q, k, v, mask, sink, **attrs)
    return arranged(Labelled(out, (batch, tuple(order), rows, features)), (batch, heads, rows, features))

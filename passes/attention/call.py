"""Calls of attention that were imported as one opaque op, because they do more than `attention`."""

from __future__ import annotations

import re
from typing import Any

from ...ir import IRError, No, Op, Value
from ...ir.attributes import Slot
from ...ir.ops.attention import attention as attention_op

CALLS = re.compile(r"scaled_dot_product|multi_head_attention|flex_attention|flash_attn|flash_attention")
"""Targets of opaque ops that compute attention by themselves."""

OPERANDS = ("query", "key", "value", "attn_mask")
_ORDER = (*OPERANDS, "dropout_p", "is_causal")
"""Arguments of scaled_dot_product_attention by position; the rest go by name."""


def is_call(op: Op) -> bool:
    """Whether an op is an opaque call of attention."""
    return op.name == "opaque" and CALLS.search(str(op.attrs["target"])) is not None


def arguments(op: Op) -> dict[str, Any]:
    """What a call of scaled_dot_product_attention is given, by name; tensors as values."""
    given = {**dict(zip(_ORDER, op.attrs["args"], strict=False)), **dict(op.attrs["kwargs"])}
    return {name: op.inputs[x.index] if isinstance(x, Slot) else x for name, x in given.items()}


def called(op: Op) -> tuple[Value, No] | No:
    """The `attention` that a call stands for, [b, h, n, d], and why it stays a call."""
    at, target = op.results[0], str(op.attrs["target"])
    if "scaled_dot_product_attention." not in target:
        return No(f"{target} is a kernel of its own, not scaled_dot_product_attention", at)
    given = arguments(op)
    q, k, v, mask = map(given.get, OPERANDS)
    p = given.get("dropout_p", 0.0)
    if not p or q is None or k is None or v is None:
        return No(f"{target} was imported as one opaque call", at)
    kept = No(f"dropout of {p:g} on its weights: call model.eval(), and pass dropout_p=0.0 there", at)
    scale = given.get("scale") or (q.shape[-1] ** -0.5 if isinstance(q.shape[-1], int) else None)
    if scale is None:
        return kept
    try:
        value = attention_op(q, k, v, mask, scale=scale, causal=bool(given.get("is_causal")))
    except IRError:  # not four axes: what it is called with is shown by the call
        return kept
    return value, kept

"""Routing of tokens to several memories, each a recurrence over the tokens it is given (MoM)."""

from __future__ import annotations

from ....ir import IRError, Value
from ....ir.dims import Dim
from ....ir.ops.activation import as_dtype, softmax, wide
from ....ir.ops.elementwise import gt, where
from ....ir.ops.index import scatter
from ....ir.ops.reduce import sum_, topk
from ....ir.ops.shape import expand, permute, reshape
from .parts import kept, zeros


def routing(logits: Value, count: int, *, padding: Value | None = None) -> tuple[Value, Value]:
    """For router logits [b, n, memories] the weights and the choice of `count` memories a token.

    Weights [b, memories, n, 1] are the softmax renormalised over the chosen, 0 elsewhere; the choice is
    bool of that shape (a chosen weight may round to 0). Padded tokens choose nothing. Each token is
    routed by itself, so this is causal. MoM (arXiv:2502.13685): 2 of 4.
    """
    p = softmax(wide(logits), dim=2)
    best, place = topk(p, k=count, dim=2)
    best = best / sum_(best, dim=(2,), keepdim=True)
    empty = zeros(p.dtype, *p.shape)
    weights, chosen = scatter(empty, place, best, dim=2), scatter(empty, place, best * 0.0 + 1.0, dim=2)
    weights, chosen = (kept(_columns(x), padding) for x in (weights, chosen))
    return weights, gt(chosen, 0.0)


def _columns(x: Value) -> Value:
    b, n, many = x.shape
    return reshape(permute(x, dims=(0, 2, 1)), shape=(b, many, n, 1))


def to_memories(x: Value, chosen: Value | None, many: Dim) -> Value:
    """x [b, h, n, d] repeated for `many` memories, [b, many * h, n, d]; zeros where a token is not chosen.

    Keys, values, log decays and beta are masked so: a memory does not change at other tokens. Queries
    pass None, they may read everywhere. The cost of what follows is `many` times that of one memory.
    """
    b, h, n, d = x.shape
    y = expand(reshape(x, shape=(b, 1, h, n, d)), size=(b, many, h, n, d))
    if chosen is not None:
        y = where(reshape(chosen, shape=(b, many, 1, n, 1)), y, 0.0)
    return reshape(y, shape=(b, many * h, n, d))


def from_memories(x: Value, weights: Value) -> Value:
    """sum_m weights_m x_m: x [b, many * h, n, e] and weights [b, many, n, 1] to [b, h, n, e]."""
    (b, many, n, _), (_, total, _, e) = weights.shape, x.shape
    y = reshape(wide(x), shape=(b, many, total // many, n, e))
    mixed = sum_(y * reshape(as_dtype(weights, y.dtype), shape=(b, many, 1, n, 1)), dim=(1,))
    return as_dtype(mixed, x.dtype)


def load_balance(logits: Value, chosen: Value) -> Value:
    """The auxiliary loss memories * sum_m f_m p_m of Switch (arXiv:2101.03961), 0-d; 1 in balance.

    f_m: the share of choices that fall on m. p_m: its mean softmax weight.
    """
    b, n, many = logits.shape
    if not isinstance(many, int):
        raise IRError(f"logits are {logits.type}: the number of memories has to be known")
    p = softmax(wide(logits), dim=2)
    picks = reshape(where(chosen, zeros(p.dtype, b, many, n, 1) + 1.0, 0.0), shape=(b, many, n))
    share = sum_(picks, dim=(0, 2)) / sum_(picks)
    mean = sum_(p, dim=(0, 1)) / sum_(p)
    return sum_(share * mean) * many

"""Running sums of outer products, read by queries: causal linear attention with all its states written out.

    (k[..., :, None] * v[..., None, :]).cumsum(tokens), then q[..., None, :] @ that

keeps a state [d, e] for every token. The recurrence keeps one.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ir import Dim, Graph, No, Op, Value, cost
from ..ir.ops.linear_attention import linear_attention
from ..ir.ops.shape import permute, reshape
from .weighing import cheaper, made


def running_product(
    op: Op, now: Mapping[Value, Value], graph: Graph, sizes: Mapping[str, int]
) -> Value | No | None:
    """`linear_attention` for a product of queries with running sums of outer products, or why not.

    op: of `graph`. now: new values of its operands and of theirs. Taken where it saves bytes.
    """
    found = _read(op)
    if found is None:
        return None
    query, states, across = found
    outer = _outer(states.op.args[0])
    if outer is None:
        return None
    key, value = outer
    tokens, lead, at = states.op.attrs["dim"], query.shape[:-2], op.results[0]
    if tokens >= len(lead) or not 2 <= len(lead) <= 3 or not at.dtype.is_float:
        return None
    if not lead == key.shape[:-2] == value.shape[:-2] == states.shape[:-2]:
        return No("its queries, keys and values are not of the same sequences", at)
    if len(graph.uses(states)) > 1 or states in {*graph.outputs, *graph.updates.values()}:
        return No("the states of all tokens are used elsewhere too", at)
    if not query.dtype is key.dtype is value.dtype is at.dtype is states.dtype:
        return No("its queries, keys and values are not of one dtype", at)
    q, k, v = (_four(now[x], tokens) for x in (query, key, value))
    out = linear_attention(q, k, v, causal=True, normalize=False)
    b, _, n, e = out.shape
    if len(lead) == 2:
        out = permute(reshape(out, shape=(b, n, e)), dims=(0, 1, 2) if tokens == 1 else (1, 0, 2))
    else:
        order = [axis for axis in range(3) if axis != tokens]
        out = permute(out, dims=(*(order.index(i) if i != tokens else 2 for i in range(3)), 3))
    result = reshape(out, shape=at.shape) if across else out
    before = sum_of_bytes({op, states.op, states.op.args[0].op, *((op.args[0].op,) if not across else ())})
    after = sum_of_bytes(made(result, set(now.values())))
    return result if result.type == at.type and cheaper(graph, before, after, sizes) else None


def _read(op: Op) -> tuple[Value, Value, bool] | None:
    """(queries [.., 1, d] or [.., d, 1], running sums [.., d, e], whether the result has an axis of 1)."""
    if op.name == "matmul":
        query, states = op.args
        if states.op.name == "cumsum" and states.rank == query.rank and query.shape[-2] == 1:
            return query, states, True
    if op.name == "sum" and op.args[0].op.name == "mul" and op.attrs["dim"] == (op.args[0].rank - 2,):
        for query, states in (op.args[0].op.args, op.args[0].op.args[::-1]):
            if states.op.name == "cumsum" and states.rank == query.rank and query.shape[-1] == 1:
                return query, states, op.attrs["keepdim"]
    return None


def _outer(x: Value) -> tuple[Value, Value] | None:
    """(k [.., d, 1], v [.., 1, e]) of a product of all their pairs."""
    if x.op.name not in ("matmul", "mul"):
        return None
    for k, v in (x.op.args, x.op.args[::-1])[: 2 if x.op.name == "mul" else 1]:
        if k.rank == v.rank == x.rank >= 4 and k.shape[-1] == v.shape[-2] == 1:
            return k, v
    return None


def _four(x: Value, tokens: int) -> Value:
    """x [.., d, 1] or [.., 1, d] as [b, h, n, d]; h is 1 where there is one axis beside the tokens."""
    lead, d = x.shape[:-2], x.shape[-1] if x.shape[-2] == 1 else x.shape[-2]
    x = reshape(x, shape=(*lead, d))
    order = [axis for axis in range(len(lead)) if axis != tokens]
    dims = (*order, tokens, len(lead))
    x = x if dims == tuple(range(x.rank)) else permute(x, dims=dims)
    return x if x.rank == 4 else reshape(x, shape=(x.shape[0], 1, *x.shape[1:]))


def sum_of_bytes(ops: set[Op]) -> Dim:
    """The bytes that ops read and write."""
    total: Dim = 0
    for op in ops:
        total = total + cost(op).bytes
    return total

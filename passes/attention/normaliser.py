"""What normalises scores: a softmax, with a sink beside the keys or not, or exp over its sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...ir import Graph, No, Op, Value
from ..masks import uniform
from .axes import Labelled, aligned, fresh
from .call import is_call
from .scores import has_product, is_maximum

SAFE = 80.0
"""exp of this is finite in f32 and bf16, and so is a sum of many."""


@dataclass(frozen=True)
class Normaliser:
    """Scores x become weights y along axis dim, beside a sink: a score, or None.

    kept: why it has to stay as it is.
    """

    x: Value
    y: Value
    dim: int
    sink: Value | float | None = None
    kept: No | None = None


def softmaxes(graph: Graph) -> Iterator[Op]:
    """Every op that makes weights of scores: softmax, exp over its sum, opaque calls of attention."""
    for op in graph.ops():
        if op.name == "exp":
            found = _less_logsumexp(op) is not None
        else:
            found = op.name == "softmax" or is_call(op)
            found |= op.name in ("div", "mul") and _exponentials(op) is not None
        if found:
            yield op


def normaliser(op: Op, graph: Graph) -> Normaliser | No:
    """What an op of `softmaxes` normalises."""
    if op.name == "softmax":
        return _with_sink(op.args[0], op.results[0], op.attrs["dim"], graph)
    log = _less_logsumexp(op) if op.name == "exp" else None
    if log is not None:
        return Normaliser(log[0], op.results[0], log[1])
    parts = _exponentials(op) if op.name in ("div", "mul") else None
    if parts is None:
        return No("it is no softmax", op.results[0])
    return _spelled(*parts, op.results[0])


def _with_sink(x: Value, y: Value, dim: int, graph: Graph) -> Normaliser | No:
    """softmax(cat(scores, sink))[..., :-1] (GPT-OSS), the row's maximum taken off before or not."""
    inner = x
    while inner.op.name in ("cast", "sub"):
        source = inner.op.args[0]
        if inner.op.name == "sub":
            axes = fresh(inner.shape)
            if not axes[dim] or not is_maximum(
                aligned(inner.op.args[1], axes), Labelled(source, axes), axes[dim][0]
            ):
                break
        inner = source
    op = inner.op
    if op.name != "cat" or op.attrs["dim"] != dim or len(op.inputs) != 2:
        return Normaliser(x, y, dim)
    a, b = op.args
    scores, sink = (a, b) if b.shape[dim] == 1 else (b, a)
    if sink.shape[dim] != 1 or not has_product(scores):
        return Normaliser(x, y, dim)
    kept, start = None, 1 if sink is a else 0
    users = graph.uses(y)
    while len(users) == 1 and users[0].name == "cast":
        y = users[0].results[0]
        users = graph.uses(y)
    for user in users:
        ends = user.attrs.get("start"), user.attrs.get("end"), user.attrs.get("step")
        if user.name == "slice" and user.attrs["dim"] == dim:
            if ends != (start, start + scores.shape[dim], 1):
                return No("other weights than those of the keys are taken beside a sink", y)
            if len(users) > 1 or any(y is out for out in (*graph.outputs, *graph.updates.values())):
                kept = No("its weights are used elsewhere too", y)
            return Normaliser(scores, user.results[0], dim, sink, kept)
    return No("a score is joined to those of the keys, and its weight is not dropped", y)


def _less_logsumexp(op: Op) -> tuple[Value, int] | None:
    """(x, dim) of exp(x - logsumexp(x)), however the power is spelled."""
    (power,) = op.args
    if power.op.name == "log_softmax":
        return power.op.args[0], power.op.attrs["dim"]
    if power.op.name != "sub" or power.op.args[1].op.name != "logsumexp":
        return None
    x, total = power.op.args
    dims, keepdim = total.op.attrs["dim"], total.op.attrs["keepdim"]
    alike = total.op.args[0] is x and len(dims) == 1 and keepdim
    return (x, dims[0]) if alike else None


def _exponentials(op: Op) -> tuple[Value, int, list[Value]] | None:
    """(z, dim, others) of exp(z) / (sum(exp(z)) + others)."""
    if op.name == "div":
        top, bottom = op.args
    else:
        top, bottom = op.args if op.args[1].op.name == "reciprocal" else op.args[::-1]
        if bottom.op.name != "reciprocal":
            return None
        bottom = bottom.op.args[0]
    if top.op.name != "exp":
        return None
    others: list[Value] = []
    for _ in range(4):
        if bottom.op.name == "expand":
            bottom = bottom.op.args[0]
        elif bottom.op.name == "add":
            first, second = bottom.op.args
            bottom, other = (first, second) if _is_sum(first, top) else (second, first)
            others.append(other)
    if not _is_sum(bottom, top):
        return None
    if bottom.op.name == "reshape":
        bottom = bottom.op.args[0]
    (dim,) = bottom.op.attrs["dim"]
    return top.op.args[0], dim, others


def _is_sum(x: Value, of: Value) -> bool:
    """Whether x is the sum of `of` along one axis, of size 1 in it."""
    total = x.op.args[0] if x.op.name == "reshape" else x  # sum(-1).unsqueeze(-1)
    op = total.op
    if op.name != "sum" or op.args[0] is not of or len(op.attrs["dim"]) != 1:
        return False
    if op.attrs["keepdim"] or total is x:
        return bool(op.attrs["keepdim"]) and total is x
    (dim,) = op.attrs["dim"]
    return x.shape == (*total.shape[:dim], 1, *total.shape[dim:])


def _spelled(z: Value, dim: int, others: list[Value], y: Value) -> Normaliser | No:
    """exp(x - c) / (sum(exp(x - c)) + exp(s - c)) is a softmax beside a sink of score s, for any c."""
    x, off = z, None
    if z.op.name == "sub" and z.op.args[1].rank == z.rank and z.op.args[1].shape[dim] == 1:
        x, off = z.op.args
    kept = None
    if not (_bound(z) <= SAFE if off is None else _covers(off, x, dim)):
        kept = No("exp without its row's maximum taken off overflows where softmax does not", y)
    if not others:
        return Normaliser(x, y, dim, None, kept)
    sink: Value | float | None = None
    (other, *more) = others
    if off is None and uniform(other) == 1:
        sink = 0.0  # softmax-off-by-one
    elif off is not None and other.op.name == "exp":
        (power,) = other.op.args
        if power.op.name == "neg" and power.op.args[0] is off:
            sink = 0.0
        elif power.op.name == "sub" and power.op.args[1] is off:
            sink = power.op.args[0]
    if sink is None or more:
        return No("what is added to the sum of exponentials is no score of a sink", other)
    return Normaliser(x, y, dim, sink, kept)


def _covers(off: Value, x: Value, dim: int) -> bool:
    """Whether `off` is at least the row's maximum of x."""
    op = off.op
    while op.name in ("detach", "maximum", "relu") or (op.name == "clamp" and op.attrs["max"] is None):
        here = next((v for v in op.operands if v.op.name != "const"), op.args[0])
        op = here.op
    return op.name == "amax" and op.args[0] is x and op.attrs["dim"] == (dim,) and op.attrs["keepdim"]


def _bound(x: Value) -> float:
    """What |x| never exceeds; infinity where that is unknown."""
    op, factor = x.op, 1.0
    while op.name in ("mul", "cast", "reshape", "permute", "expand"):
        if op.name == "mul":
            number = uniform(op.args[1])
            if number is None:
                return float("inf")
            factor *= abs(number)
        op = op.args[0].op
    return factor if op.name in ("tanh", "sigmoid") else float("inf")

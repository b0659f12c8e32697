"""What a softmax is that is no attention, and what a call of attention lacks that stayed opaque.

Nothing here is needed to be right for a rewrite: it is what people are told.
"""

from __future__ import annotations

import re

from ..ir import Dim, Graph, No, Op, Poly, Value
from ..ir.graph import operands_first
from .attention.call import OPERANDS, arguments

_PASSING = frozenset({"cast", "reshape", "permute", "expand", "slice", "dropout", "native_dropout"})
_PICKING = frozenset({"topk", "sort", "argsort", "argmax", "max", "kthvalue", "gather", "scatter"})
_SAMPLING = frozenset({"multinomial", "bernoulli"})


def readers(value: Value, graph: Graph) -> tuple[list[tuple[Op, Value]], bool]:
    """The ops that read `value` behind views, casts and dropout, each with what it reads; and
    whether it is an output or an update of the graph, so read by the caller."""
    kept, found = {*graph.outputs, *graph.updates.values()}, []
    returned, stack, seen = False, [value], {value}
    while stack:
        x = stack.pop()
        returned |= x in kept
        for op in dict.fromkeys(graph.uses(x)):
            if _target(op) not in _PASSING:
                found.append((op, x))
            elif op.results[0] not in seen:
                seen.add(op.results[0])
                stack.append(op.results[0])
    return found, returned


def role(softmax: Op, graph: Graph) -> str | None:
    """What a softmax that no matrix product reads is for, "a router: topk picks among 8"; None
    where one reads it."""
    used, returned = readers(softmax.results[0], graph)
    names = {op.name: op for op, _ in used}
    if "matmul" in names or "linear" in names:
        return None
    size = (*softmax.types[0].shape, 1)[softmax.attrs.get("dim", -2)]
    source = softmax.args[0].op
    while source.name in _PASSING:
        source = source.args[0].op
    if _target(source) in _PICKING:
        return f"a router: it weighs the {size} that {_target(source)} picked"
    for name, op in names.items():
        if name in _PICKING or _target(op) in _PICKING:
            return f"a router: {_target(op)} picks among {size} weights"
        if name in _SAMPLING or _target(op) in _SAMPLING:
            return f"a sampler: {_target(op)} draws from {size} probabilities"
    if "log" in names:
        return f"a classifier: log reads its {size} probabilities"
    if "mul" in names:
        product = names["mul"]
        sums = [op for op, _ in readers(product.results[0], graph)[0] if op.name in ("sum", "mean")]
        if sums:
            return f"a weighted {sums[0].name} of {size}: mul and {sums[0].name} read its weights"
        return f"a gate: {size} weights multiply {product.types[0]}"
    if returned:
        return f"a classifier: its {size} probabilities are an output"
    what = ", ".join(sorted({_target(op) for op in names.values()}))
    return f"a softmax over {size} that {what or 'nothing'} reads"


def _target(op: Op) -> str:
    """The name of an op, of the overload packet where it is opaque."""
    if op.name != "opaque":
        return op.name
    return str(op.attrs["target"]).removeprefix("aten.").partition(".")[0]


def origin(*values: Value) -> str:
    """What values are computed from: "input attention_mask", "self.bias.table", or "positions"."""
    kinds = {"input": "input ", "param": "self."}
    data = [op for op in operands_first(x.op for x in values) if op.name in kinds]
    return ", ".join(sorted({f"{kinds[op.name]}{op.attrs['name']}" for op in data})) or "positions"


def called(no: No) -> No:
    """A refusal because of an opaque op, with what that op calls."""
    if no.at is None or no.at.op.name != "opaque":
        return no
    return No(f"{no.reason}: {_target(no.at.op)}", no.at)


def is_opaque_softmax(op: Op) -> bool:
    """Whether an opaque op is a softmax, such as one over complex or masked tensors."""
    return op.name == "opaque" and bool(re.search(r"(?<!log_)softmax", op.attrs["target"]))


def why_opaque(op: Op) -> No:
    """Why a call of attention was imported as `opaque`: the first thing that it lacks."""
    at = op.results[0]
    if _target(op) != "scaled_dot_product_attention":
        return No(f"{_target(op)} is a kernel of its own, not scaled_dot_product_attention", at)
    given = arguments(op)
    q, k, v, mask = map(given.get, OPERANDS)
    if q is None or k is None or v is None:
        return No("it has no q, k and v", at)
    if given.get("dropout_p"):
        p = given["dropout_p"]
        return No(f"dropout_p={p} drops weights at random, in eval mode too", at)
    if min(q.rank, k.rank, v.rank) < 2:
        return No(f"q has {q.rank} axes, k {k.rank}, v {v.rank}: attention needs at least 2 each", at)
    grouped = bool(given.get("enable_gqa"))
    if grouped and {q.rank, k.rank, v.rank} != {4}:
        return No(f"enable_gqa=True on {q.rank} axes: grouped heads are known on [b,h,n,d] only", at)
    differing = _differing(q, k, v, grouped)
    if isinstance(q.shape[-1], Poly):
        also = f"{differing.reason}; and " if differing is not None else ""
        return No(f"{also}the features of a head, {q.shape[-1]}, are an open size (q is {q.type})", q)
    if differing is not None:
        return differing
    if mask is not None and q.rank != 4 and mask.rank > 2:
        return No(f"q has {q.rank} axes and the mask {mask.rank}: only a mask [n,m] is known there", mask)
    return No(f"{q.type}, {k.type} and {v.type} do not fit attention [b,h,n,d]", at)


def _differing(q: Value, k: Value, v: Value, grouped: bool) -> No | None:
    """The first sizes that must agree and are not known to."""
    wanted: list[tuple[str, Value, Dim, str, Value, Dim]] = []
    if q.rank == k.rank == v.rank:
        last = q.rank - (3 if grouped else 2)
        for i in range(last):
            wanted.append(("q", q, q.shape[i], "k", k, k.shape[i]))
        for i in range(q.rank - 2):
            wanted.append(("k", k, k.shape[i], "v", v, v.shape[i]))
    elif not grouped:
        return No(f"q is {q.type}, k {k.type}, v {v.type}: axes that broadcast", q)
    wanted.append(("q", q, q.shape[-1], "k", k, k.shape[-1]))
    wanted.append(("k", k, k.shape[-2], "v", v, v.shape[-2]))
    for a, x, m, b, y, n in wanted:
        if m == n:
            continue
        if isinstance(m, Poly) or isinstance(n, Poly):
            what = f"unrelated sizes: nothing says that {m} of {a} and {n} of {b} are one"
        else:
            what = f"{a} and {b} broadcast: {m} and {n}"
        return No(f"{what} ({a} is {x.type}, {b} is {y.type})", y)
    return None

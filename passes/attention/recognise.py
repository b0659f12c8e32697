"""One recogniser for softmax attention: from a softmax outward, to keys and queries, and to values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir import Graph, IRError, No, Op, Value
from ...ir.ops.activation import as_dtype
from ...ir.ops.attention import attention as attention_op
from ...ir.ops.elementwise import div, logical_and, mul, where
from ...ir.ops.graph import const
from ...ir.ops.shape import cat, expand, reshape
from ...ir.types import DType
from ..masks import AS_GOOD_AS_INFINITE, uniform
from .axes import Atom, Axes, Axis, Labelled, aligned, arranged, behind, fresh, leaves, stripped
from .call import called, is_call
from .normaliser import Normaliser, normaliser
from .scores import Scores, Term, scores
from .simplify import simplified
from .weights import Reached, reached


@dataclass(frozen=True)
class Attention:
    """A softmax that is attention.

    value: the `attention` that stands for it, [b, h, n, e], on the graph's own values; `result` is
    that in the shape and dtype of `root`, the value of the graph that it equals. kept: why `root`
    is not replaced all the same, or None.
    """

    value: Value
    result: Value
    root: Value
    kept: No | None = None


def examine(softmax: Op, graph: Graph) -> Attention | No:
    """What an op of `softmaxes(graph)` is: attention, or the first precondition that fails."""
    if is_call(softmax):
        call = called(softmax)
        return call if isinstance(call, No) else Attention(call[0], call[0], softmax.results[0], call[1])
    norm = normaliser(softmax, graph)
    if isinstance(norm, No):
        return norm
    frame = fresh(norm.x.shape)
    weights = Labelled(norm.y, frame)
    if not frame or not frame[norm.dim]:
        return No("it has one key only: its weights are all 1", norm.y)
    (key,) = frame[norm.dim]
    try:
        met = reached(weights, frame, norm.dim, graph)
        found = scores(Labelled(norm.x, frame), key)
    except RecursionError:
        return No("hundreds of ops stand between it and its products", norm.y)
    if met is None:
        names = sorted({user.name for user in graph.uses(norm.y)})
        readers = ", ".join(names) or "it is an output"
        return No(f"its weights meet no matrix product with values (they go into: {readers})", norm.y)
    if isinstance(met, No):
        return met
    if isinstance(found, No):
        return found
    try:
        return _composed(norm, found, met, frame)
    except IRError as error:
        return No(f"heads do not line up: {error}", norm.y)


def _composed(norm: Normaliser, found: Scores, met: Reached, frame: Axes) -> Attention | No:
    wanted = met.out.value.dtype
    terms = [_peeled(term, wanted) for term in found.terms]
    v = unwidened(stripped(met.v), wanted)
    masks = [mask for mask, _ in found.masks]
    for each_mask in masks:
        stripped(each_mask)  # so that the atoms which it has apart are known apart
        if _reads(each_mask.value, found.product):
            return No("which keys count depends on the scores themselves (top-k)", each_mask.value)
    chosen = grouped(frame, norm.dim, terms, v, found.rows)
    if isinstance(chosen, No):
        return chosen
    batch, heads, each, rows = chosen
    all_heads, key = [*heads, *each], frame[norm.dim]
    places = (batch, all_heads, rows, key)
    joined = _joined(found, met, places)
    if isinstance(joined, No):
        return joined
    mask, empty = joined
    four = (0, 1, 2, 3)
    scale = terms[0].scale
    queries = [arranged(t.q, (batch, all_heads, rows, t.width), four) for t in terms]
    if found.factors or len(terms) > 1:  # what follows was done on the product, perhaps a wider one
        wide = max(found.product.dtype, wanted, key=lambda dtype: dtype.bits)
        queries = [as_dtype(x, wide) if wide.bits > x.dtype.bits else x for x in queries]
    queries = [
        x if t.scale == scale else mul(x, t.scale / scale) for x, t in zip(queries, terms, strict=True)
    ]
    keys = [arranged(t.k, (batch, heads, key, t.width), four) for t in terms]
    keys = [as_dtype(x, queries[0].dtype) for x in keys] if len(terms) > 1 else keys
    q4, k4 = (parts[0] if len(parts) == 1 else cat(*parts, dim=3) for parts in (queries, keys))
    v4 = arranged(v, (batch, heads, key, met.width), four)
    for factor, multiplies in found.factors:
        by = arranged(stripped(factor), (batch, all_heads, rows, ()))
        q4 = mul(q4, by) if multiplies else div(q4, by)
    sink = _sink(norm, frame, all_heads, q4)
    if isinstance(sink, No):
        return sink
    widest = max((x.dtype for x in (q4, k4, v4)), key=lambda dtype: dtype.bits)
    q4, k4, v4 = (as_dtype(x, widest) for x in (q4, k4, v4))
    attrs = {"scale": scale, "softcap": found.softcap, "causal": False, "empty": empty}
    value = attention_op(q4, k4, v4, mask, sink, **attrs)
    value = simplified(value.op) or value
    result = arranged(Labelled(value, (*map(tuple, places[:3]), met.width)), met.out.axes)
    return Attention(
        value, as_dtype(result, wanted), met.out.value, met.kept if norm.kept is None else norm.kept
    )


def _peeled(term: Term, dtype: DType) -> Term:
    q, a = peeled(term.q, dtype)
    k, b = peeled(term.k, dtype)
    return Term(q, k, term.width, term.scale * a * b)


def peeled(x: Labelled, dtype: DType) -> tuple[Labelled, float]:
    """x without views, constant factors and a widening from `dtype`; and the product of the factors."""
    scale = 1.0
    while True:
        source, op = behind(x), x.value.op
        if source is None and op.name in ("mul", "div") and op.args[0].type == x.value.type:
            number = uniform(op.args[1])
            if number and abs(number) < float("inf") and op.attrs.get("rounding_mode") is None:
                scale *= number if op.name == "mul" else 1 / number
                source = Labelled(op.args[0], x.axes)
        if source is None:
            narrow = unwidened(x, dtype)
            source = narrow if narrow is not x else None
        if source is None:
            return x, scale
        x = source


def unwidened(x: Labelled, dtype: DType) -> Labelled:
    """What x was before it was widened from `dtype`."""
    op = x.value.op
    if op.name == "cast" and x.value.dtype is not dtype and op.args[0].dtype is dtype:
        return stripped(Labelled(op.args[0], x.axes)) if x.value.dtype.bits > dtype.bits else x
    return x


def grouped(
    frame: Axes, dim: int, terms: Sequence[Term], v: Labelled, queries: Axis
) -> tuple[list[Atom], list[Atom], list[Atom], list[Atom]] | No:
    """The atoms of the scores other than the keys: batch, key heads, query heads to each, queries.

    Keys and values vary along the key heads and not along the query heads to each. Which atoms are
    called batch and which heads changes no result: the axis before the queries is that of the heads.
    """
    q = terms[0].q
    vary = {*v.atoms, *(atom for term in terms for atom in term.k.atoms)}
    free = [atom for atom in leaves(queries) if atom not in vary]
    if not free and leaves(queries):
        return No("the values differ from query to query", v.value)
    others = [leaves(axis) if i != dim else [] for i, axis in enumerate(frame)]
    rows: list[Atom] = []
    for axis in others:
        rows = [atom for atom in axis if atom in free] or rows
    if len(rows) > 1:  # r * n queries of r heads, or a grid of queries?
        order = [atom for atom in q.atoms if atom in free]
        at = order.index(rows[-1])
        if order[max(0, at + 1 - len(rows)) : at + 1] != rows:
            rows = rows[-1:]
    first = others[0][:1] if len(frame) > 2 else []
    rest = [[atom for atom in axis if atom not in rows] for axis in others]
    each = [atom for axis in rest for atom in axis if atom not in vary and atom not in first]
    shared = [[atom for atom in axis if atom not in each] for axis in rest]
    heads = next((axis for axis in shared[:0:-1] if axis), [])
    if not heads and len(shared[0]) > 1 and not each:  # folded into the batch
        together = next((axis for axis in map(leaves, q.axes) if shared[0][-1] in axis), [])
        heads = [atom for atom in shared[0][1:] if atom in together] or shared[0][-1:]
    batch = [atom for axis in shared for atom in axis if atom not in heads]
    return batch, heads, each, rows


def _reads(x: Value, product: Value, limit: int = 64) -> bool:
    """Whether x is computed from `product`, not many ops after it."""
    queue, seen = [x], {x}
    for value in queue:
        if value is product:
            return True
        for operand in value.op.operands:
            if operand not in seen and len(seen) < limit:
                seen.add(operand)
                queue.append(operand)
    return False


def _infinite(x: Value, limit: int = 64) -> bool:
    """Whether x is an input, or -inf is written into it, a few elementwise ops or views before."""
    queue, seen = [x], {x}
    for value in queue:
        if value.op.name in ("input", "opaque") or uniform(value) in (float("-inf"), float("inf")):
            return True
        ahead = value.op.operands if value.op.name in _WRITES else ()
        more = [operand for operand in dict.fromkeys(ahead) if operand not in seen]
        seen.update(more)
        queue += more
        if len(seen) > limit:
            return True
    return False


_WRITES = frozenset({
    "add", "sub", "mul", "div", "neg", "log", "maximum", "minimum", "clamp", "where", "cast", "expand",
    "reshape", "permute", "slice", "flip", "tril", "triu", "cat", "pad", "index", "index_put", "detach",
})  # fmt: skip


def _joined(found: Scores, met: Reached, places: Sequence[Sequence[Atom]]) -> tuple[Value | None, str] | No:
    """The masks as one operand, and what a row without keys means."""

    def placed(x: Labelled) -> Value:
        value = arranged(stripped(x), places)
        own = value.op.args[0] if value.op.name == "reshape" else value
        lead = value.rank - own.rank
        return own if lead >= 0 and (1,) * lead + own.shape == value.shape else value

    empty, infinite = "nan", float("-inf")
    lows = {low for _, low in found.masks}
    alike = len(lows) == 1 and not lows & {None, infinite}
    if alike:
        empty = "uniform"  # every score of a row without keys is the same number
    keep: Value | None = None
    mask: Value | None = None
    for x, low in found.masks:
        here = placed(x)
        if low is None:
            mask = here if mask is None else mask + here
        elif low == infinite or alike:
            keep = here if keep is None else logical_and(keep, here)
        elif low <= AS_GOOD_AS_INFINITE:  # in place of what was added, or masked, before
            if keep is not None:
                mask, keep = where(keep, 0.0 if mask is None else mask, infinite), None
            mask = where(here, 0.0 if mask is None else mask, low)
        else:
            return No(f"masked scores are {low:g}, which a row of only masked keys would show", here)
    if met.zeroed is not None:
        if keep is None or keep is not placed(met.zeroed):
            return No("its weights are masked after the softmax, and not as before it", met.zeroed.value)
        if mask is not None and _infinite(mask):
            return No("its weights are masked after the softmax, and not where -inf is added", mask)
        empty = "zero"
    if met.cleaned and empty == "nan":
        empty = "zero"
    if mask is not None and keep is not None:
        mask = where(keep, mask, float("-inf"))
    mask = keep if mask is None else mask
    return mask, empty if mask is not None else "zero"


def _sink(norm: Normaliser, frame: Axes, heads: list[Atom], q: Value) -> Value | No | None:
    """The sink as [h], a score each head."""
    h = q.shape[1]
    if norm.sink is None:
        return None
    if isinstance(norm.sink, float):
        return expand(const(value=norm.sink, dtype=q.dtype), size=(h,))
    sink = stripped(aligned(norm.sink, (*frame[: norm.dim], (), *frame[norm.dim + 1 :])))
    while sink.value.op.name == "cast" and sink.value.op.args[0].dtype.is_float:
        sink = stripped(Labelled(sink.value.op.args[0], sink.axes))
    if set(sink.atoms) - set(heads):
        return No("the sink is not one score for each head", norm.sink)
    value = arranged(sink, (heads,), (0,))
    return value if value.shape == (h,) else reshape(value, shape=(h,))

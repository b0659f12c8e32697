"""Downward from a softmax: through casts and views to the product of its weights with values."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph, No, Op, Value
from ...ir.ops.elementwise import logical_not
from ..masks import uniform
from .axes import Axes, Axis, Labelled, ahead, aligned, fresh, leaves


@dataclass
class Reached:
    """The product of weights and values; width: the atoms of the values' features.

    kept: why it has to stay as it is, or None. zeroed: the condition under which weights were left as
    they are, 0 elsewhere. cleaned: NaN became 0.
    """

    out: Labelled
    v: Labelled
    width: Axis
    kept: No | None = None
    zeroed: Labelled | None = None
    cleaned: bool = False


def reached(x: Labelled, frame: Axes, dim: int, graph: Graph) -> Reached | No | None:
    """The product that reads the weights x of a softmax over axis `dim`, or what is in the way.

    None where nothing that could lead to one reads them.
    """
    users = list(dict.fromkeys(graph.uses(x.value)))
    best: Reached | No | None = None
    for user in users:
        found = _step(x, user, frame, dim, graph)
        if isinstance(found, Reached):
            best = found
            break
        if best is None or (isinstance(found, No) and user.name in _WHY_NOT):
            best = found
    if isinstance(best, Reached) and best.kept is None:
        shown = any(x.value is out for out in (*graph.outputs, *graph.updates.values()))
        if shown or len(users) > 1:
            best.kept = No("its weights are used elsewhere too", x.value)
    return best


def _step(x: Labelled, user: Op, frame: Axes, dim: int, graph: Graph) -> Reached | No | None:
    result = user.results[0]
    if user.name == "matmul":
        return _product(x, user, frame, dim)
    if user.name == "cast" and result.dtype.is_float:
        return reached(Labelled(result, x.axes), frame, dim, graph)
    if user.name in ("permute", "reshape"):
        view = ahead(x, result)
        if view is None:
            return No("the weights are reshaped across queries, keys and heads", result)
        return reached(view, frame, dim, graph)
    if (p := _dropped(user)) is not None:
        found = reached(Labelled(result, x.axes), frame, dim, graph)
        if isinstance(found, Reached):
            found.kept = No(f"dropout of {p:g} on its weights: call model.eval()", result)
        return found
    if user.name == "nan_to_num" and user.attrs.get("nan") in (0, 0.0, None):
        found = reached(Labelled(result, x.axes), frame, dim, graph)
        if isinstance(found, Reached):
            found.cleaned = True
        return found
    if user.name == "where" and x.value in user.inputs[1:]:
        return _zeroed(x, user, frame, dim, graph)
    if user.name == "mul" and uniform(user.args[1]) is not None:
        found = reached(Labelled(result, x.axes), frame, dim, graph)
        if found is None or isinstance(found, No):
            return found
    if user.name in _MEETS_NO_VALUES or not _leads_to_product(result, graph):
        return None
    words = _WHY_NOT.get(user.name, f"go through {user.name} before they meet the values")
    return No(f"its weights {words}", result)


def _dropped(op: Op) -> float | None:
    """The share of elements that a dropout in training takes, also of one that stayed opaque."""
    if op.name == "dropout":
        return op.attrs["p"]
    if op.name == "opaque" and op.attrs["target"] == "aten.native_dropout.default":
        return op.attrs["args"][1]
    return None


_MEETS_NO_VALUES = frozenset({"topk", "sort", "argmax", "gather", "log", "amax"})

_WHY_NOT = {
    "mul": "are multiplied after the softmax",
    "div": "are divided after the softmax",
    "add": "are added to others before they meet the values: add their results instead",
    "sub": "are added to others before they meet the values: subtract their results instead",
    "linear": "are mixed by weights of the model (talking heads)",
    "convolution": "are mixed by a convolution (talking heads)",
    "slice": "are cut into blocks that meet values of their own (block-sparse attention)",
    "opaque": "go into an op that has no meaning here",
}


def _leads_to_product(x: Value, graph: Graph) -> bool:
    """Whether a matrix product reads x, a few ops on."""
    seen, level = {x}, [x]
    for _ in range(6):
        users = {user for value in level for user in graph.uses(value)}
        if any(user.name == "matmul" for user in users):
            return True
        level = [v for user in users for v in user.results if v not in seen]
        seen.update(level)
    return False


def _zeroed(x: Labelled, user: Op, frame: Axes, dim: int, graph: Graph) -> Reached | No | None:
    condition, a, b = user.args
    if uniform(a) == 0 and b is x.value:
        condition = logical_not(condition)
    elif not (uniform(b) == 0 and a is x.value):
        return No("its weights are replaced after the softmax", user.results[0])
    if user.results[0].shape != x.value.shape:
        return No("its weights are repeated after the softmax", user.results[0])
    found = reached(Labelled(user.results[0], x.axes), frame, dim, graph)
    if isinstance(found, Reached):
        if found.zeroed is not None:
            return No("its weights are masked twice after the softmax", user.results[0])
        found.zeroed = aligned(condition, x.axes)
    return found


def _product(x: Labelled, user: Op, frame: Axes, dim: int) -> Reached | No | None:
    left = user.inputs[0] is x.value
    values = user.args[1 if left else 0]
    if values is x.value:
        return No("its weights are multiplied by themselves", user.results[0])
    *batch, rows, columns = x.axes
    inner, kept = (columns, rows) if left else (rows, columns)
    if leaves(inner) != leaves(frame[dim]):
        return No(_other_axis(inner, frame, dim), user.results[0])
    out = user.results[0]
    lead = out.rank - 2
    width = fresh((values.shape[-1 if left else -2],))[0]
    axes: list[Axis] = []
    for i in range(lead):
        at = i - lead + len(batch)
        own = batch[at] if at >= 0 else ()
        if out.shape[i] != 1 and not own:
            return No("the values have batches that the weights have not", values)
        axes.append(own)
    last = (inner, width) if left else (width, inner)
    v = Labelled(values, (*aligned(values, (*axes, *last)).axes[:-2], *last))
    ends = (kept, width) if left else (width, kept)
    return Reached(Labelled(out, (*axes, *ends)), v, width)


def _other_axis(inner: Axis, frame: Axes, dim: int) -> str:
    rank, summed = len(frame), leaves(inner)
    if dim != rank - 1 and any(leaves(axis) == summed for axis in frame[-2:]):
        return f"softmax is over axis {dim} of {rank}, not over the keys"
    return "its weights are mixed across heads or queries (talking heads) before they meet the values"

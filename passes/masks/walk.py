"""What an attention mask is, proved from the graph that computes it.

A mask is taken apart into factors that must all hold. Each factor is followed back, through views,
to the axes of the scores [b, h, n, m] it varies along. A comparison of index arithmetic is causal,
always true, or something else; a factor that varies along batch and keys only is key padding.
What is none of these is unproved: the mask is dense. Unknown means no.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...ir import Dim, Op, Value
from ...ir.dims import at_least
from ...ir.ops.elementwise import logical_and, logical_not, ne
from ...ir.ops.shape import permute, reshape
from .mask import AS_GOOD_AS_INFINITE, NEGLIGIBLE, Mask, uniform

Axes = tuple[int | None, ...]
"""For each axis of a value, the axis of the scores it runs along (0 to 3); None for size 1."""

class UnprovedError(Exception):
    """Why a factor could not be named."""


def classify(
    mask: Value | None, causal: bool = False, offset: Dim = 0, window: Dim | None = None
) -> Mask:
    """What `mask` (bool or additive, broadcastable to [b, h, n, m], or None) keeps and adds.

    causal, offset, window: it is in force together with these attributes of `attention`.
    """
    walk = _Walk()
    try:
        if mask is not None:
            axes = tuple(None if d == 1 else 4 - mask.rank + i for i, d in enumerate(mask.shape))
            if mask.dtype.kind == "b":
                walk.holds(mask, axes, True)
            else:
                walk.adds(mask, axes)
        if walk.causal and (offset != 0 or window is not None):
            raise UnprovedError("it is causal within a window of another offset")
    except UnprovedError as reason:
        return Mask("dense", causal, offset, window, reason=str(reason), at=mask)
    causal = causal or walk.causal
    padding = None
    for factor in walk.padding:
        padding = factor if padding is None else logical_and(padding, factor)
    kinds = [("causal", causal), ("window", window is not None), ("padding", padding is not None)]
    kind = "+".join(name for name, there in kinds if there) or "none"
    return Mask(kind, causal, offset, window, padding=padding, hard=walk.hard)


def classify_op(op: Op) -> Mask:
    """What the mask of an `attention` op is, its attributes included."""
    mask = op.args[3] if len(op.args) > 3 else None
    return classify(mask, op.attrs["causal"], op.attrs["offset"], op.attrs["window"])


def simplify(
    mask: Value, causal: bool = False, offset: Dim = 0, window: Dim | None = None, empty: str = "zero"
) -> tuple[Value | None, bool, Dim, Dim | None, str] | None:
    """A mask operand of `attention` and its attributes as (operand, causal, offset, window, empty).

    The same result exactly, with the part that is by position in the attributes. None where nothing
    changes.
    """
    found = classify(mask, causal, offset, window)
    if found.kind not in ("none", "causal") or not (found.hard or mask.dtype.kind == "b"):
        return None
    return None, found.causal, found.offset, found.window, empty


class _Walk:
    def __init__(self) -> None:
        self.causal = False
        self.hard = True
        self.padding: list[Value] = []

    def adds(self, x: Value, axes: Axes) -> None:
        """Take an additive mask apart; raises UnprovedError."""
        name, inputs = x.op.name, x.op.args
        if x.number is not None and x.number == 0:
            return
        if name == "full" and x.op.attrs.get("fill_value") == 0:
            return
        if name == "add":
            for part in inputs:
                self.adds(part, _broadcast(part, x, axes))
            return
        if name == "where":
            condition, kept, masked = inputs
            for value, other, wanted in ((kept, masked, True), (masked, kept, False)):
                low = uniform(other)
                if uniform(value) == 0 and low is not None and low <= NEGLIGIBLE:
                    self.hard &= low <= AS_GOOD_AS_INFINITE
                    self.holds(condition, _broadcast(condition, x, axes), wanted)
                    return
        if name == "mul" and (low := uniform(inputs[1])) is not None and low <= NEGLIGIBLE:
            flag = inputs[0].op  # (1 - keep) * low, with keep a cast bool
            if flag.name == "sub" and uniform(flag.inputs[0]) == 1:
                keep = flag.inputs[1]
                if keep.op.name == "cast" and keep.op.args[0].dtype.kind == "b":
                    self.hard &= low <= AS_GOOD_AS_INFINITE
                    source = keep.op.args[0]
                    self.holds(source, _broadcast(source, x, axes), True)
                    return
        if name == "triu" and (low := uniform(inputs[0])) is not None and low <= NEGLIGIBLE:
            self.hard &= low <= AS_GOOD_AS_INFINITE  # nn.Transformer's triu(full(-inf), 1)
            return self.triangle(x, axes, False)
        if name == "cast" and inputs[0].dtype.is_float:
            return self.adds(inputs[0], axes)
        for source, inner in _through_view(x, axes):
            return self.adds(source, inner)
        raise UnprovedError(f"what {name} adds to the scores is not proved to be 0 or -inf")

    def holds(self, x: Value, axes: Axes, wanted: bool) -> None:
        """Take `x == wanted` apart; raises UnprovedError."""
        name, inputs = x.op.name, x.op.args
        number = uniform(x)
        if number is not None:
            if bool(number) != wanted:
                raise UnprovedError("the mask keeps nothing")
            return
        if name == "logical_not":
            return self.holds(inputs[0], axes, not wanted)
        if name == ("logical_and" if wanted else "logical_or"):
            for part in inputs:
                self.holds(part, _broadcast(part, x, axes), wanted)
            return
        if name in ("tril", "triu"):
            return self.triangle(x, axes, wanted)
        if name in ("eq", "ne") and uniform(inputs[1]) == 0:
            source, axes = inputs[0], _broadcast(inputs[0], x, axes)
            return self.truth(source, axes, wanted == (name == "ne"))
        if name == "cast" and inputs[0].dtype.kind in "bui":
            return self.truth(inputs[0], axes, wanted)
        if name in ("lt", "le", "gt", "ge") and self.compares(x, axes, wanted):
            return
        for source, inner in _through_view(x, axes):
            return self.holds(source, inner, wanted)
        if self.sliced(x, axes, wanted):
            return
        self.leaf(x, axes, wanted)

    def truth(self, x: Value, axes: Axes, wanted: bool) -> None:
        """Take `bool(x) == wanted` apart for x of any dtype; raises UnprovedError."""
        if x.dtype.kind == "b":
            return self.holds(x, axes, wanted)
        if x.op.name == "cast" and x.op.args[0].dtype.kind in "bui":
            return self.truth(x.op.args[0], axes, wanted)
        if x.op.name in ("tril", "triu"):
            return self.triangle(x, axes, wanted)
        for source, inner in _through_view(x, axes):
            return self.truth(source, inner, wanted)
        self.leaf(ne(x, 0), axes, wanted)

    def sliced(self, x: Value, axes: Axes, wanted: bool) -> bool:
        """Whether the first elements along an axis are named by what they are the first of."""
        if x.op.name != "slice" or x.op.attrs["start"] != 0 or x.op.attrs["step"] != 1:
            return False
        trial = _Walk()
        try:
            trial.holds(x.op.args[0], axes, wanted)
        except UnprovedError:
            return False
        self.causal |= trial.causal and not trial.padding
        return not trial.padding

    def leaf(self, x: Value, axes: Axes, wanted: bool) -> None:
        """Padding, if x varies along batch and keys only; raises UnprovedError."""
        name = x.op.name
        if 1 in axes or 2 in axes:
            what = "query" if 2 in axes else "head"
            raise UnprovedError(f"what it keeps depends on the {what} through {name}")
        keep = x if wanted else logical_not(x)
        self.padding.append(_aligned(keep, axes))

    def triangle(self, x: Value, axes: Axes, wanted: bool) -> None:
        """tril(ones, 0) keeps j <= i, triu(ones, 1) masks the rest."""
        diagonal = x.op.attrs.get("diagonal", 0)
        filled = uniform(x.op.args[0])
        lower = (x.op.name, wanted, diagonal) in (("tril", True, 0), ("triu", False, 1))
        if not lower or not filled or axes[-2:] != (2, 3):
            raise UnprovedError(f"{x.op.name} at diagonal {diagonal} is not proved causal")
        self.causal = True

    def compares(self, x: Value, axes: Axes, wanted: bool) -> bool:
        """Whether a comparison of index arithmetic is named; raises UnprovedError for another."""
        left, right = (affine(part, _broadcast(part, x, axes)) for part in x.op.args)
        if left is None or right is None:
            return False
        (start, slopes), (other, others) = left, right
        name = x.op.name if wanted else _OPPOSITE.get(x.op.name)
        if name in ("gt", "ge"):
            start, slopes, other, others = other, others, start, slopes
        elif name not in ("lt", "le"):
            return False
        # start + slopes . index  <=  other + others . index
        gap = start - other + (1 if name in ("lt", "gt") else 0)
        slope = {a: slopes.get(a, 0) - others.get(a, 0) for a in {*slopes, *others}}
        slope = {a: c for a, c in slope.items() if c}
        if at_least(-gap, 0) and all(c < 0 for c in slope.values()):
            return True  # always
        if gap == 0 and slope == {3: 1, 2: -1}:
            self.causal = True
            return True
        if slope == {2: 1, 3: -1}:
            raise UnprovedError("it keeps a window of past keys only")
        raise UnprovedError(f"{x.op.name} compares positions in a way that is not j <= i")


_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


def affine(x: Value, axes: Axes) -> tuple[Dim, dict[int, int]] | None:
    """`start` and slopes by axis when x = start + sum of slope * index, over integers."""
    if x.dtype.kind != "i" or x.dtype.bits < 32:  # narrow positions wrap
        return None
    name, inputs, attrs = x.op.name, x.op.args, x.op.attrs
    number = uniform(x)
    if number is not None:
        return int(number), {}
    if name == "arange":
        start, step = attrs["start"], attrs["step"]
        if isinstance(start, float) or not isinstance(step, int):
            return None
        return start, {} if axes[0] is None else {axes[0]: step}
    if name in ("add", "sub"):
        left, right = (affine(part, _broadcast(part, x, axes)) for part in inputs)
        if left is None or right is None:
            return None
        sign = 1 if name == "add" else -1
        slopes = dict(left[1])
        for axis, slope in right[1].items():
            slopes[axis] = slopes.get(axis, 0) + sign * slope
        return left[0] + right[0] * sign, slopes
    if name == "cast" and x.dtype.kind == "i":
        return affine(inputs[0], axes)
    if name == "slice":
        return _sliced(x, axes)
    if name == "cat":
        return _joined(x, axes)
    for source, mapped in _through_view(x, axes):
        return affine(source, mapped)
    return None


def _sliced(x: Value, axes: Axes) -> tuple[Dim, dict[int, int]] | None:
    dim, step = x.op.attrs["dim"], x.op.attrs["step"]
    axis = axes[dim]
    along = -1 - dim if axis is None else axis  # one element: which one, the slice knows
    inner = affine(x.op.args[0], (*axes[:dim], along, *axes[dim + 1 :]))
    if inner is None:
        return None
    start, slopes = inner
    slope = slopes.pop(along, 0)
    if axis is not None and slope:
        slopes[axis] = slope * step
    return start + x.op.attrs["start"] * slope, slopes


def _joined(x: Value, axes: Axes) -> tuple[Dim, dict[int, int]] | None:
    """Pieces that go on where the one before stops."""
    dim = x.op.attrs["dim"]
    along, offset, slope = axes[dim], 0, None
    first: tuple[Dim, dict[int, int]] | None = None
    pieces = [(part, affine(part, _broadcast(part, x, axes))) for part in x.op.args]
    slopes = {p[1].get(along, 0) for part, p in pieces if p and part.shape[dim] != 1 and along is not None}
    if along is None or len(slopes) != 1:
        return None
    (slope,) = slopes
    for part, piece in pieces:
        if piece is None:
            return None
        rest = {a: c for a, c in piece[1].items() if a != along}
        here = (piece[0] - offset * slope, rest)
        if first is not None and first != here:
            return None
        first, offset = here, offset + part.shape[dim]
    return None if first is None else (first[0], {**first[1], along: slope})


def _broadcast(part: Value, whole: Value, axes: Axes) -> Axes:
    """The axes of an operand of an elementwise op whose result has `axes`."""
    lead = whole.rank - part.rank
    return tuple(None if d == 1 else axes[lead + i] for i, d in enumerate(part.shape))


def _through_view(x: Value, axes: Axes) -> Iterator[tuple[Value, Axes]]:
    """The operand of a view and its axes, where they can be told; at most one."""
    name, attrs = x.op.name, x.op.attrs
    if name == "expand":
        source = x.op.args[0]
        yield source, _broadcast(source, x, axes)
    elif name == "permute":
        back: list[int | None] = [None] * x.rank
        for i, axis in enumerate(attrs["dims"]):
            back[axis] = axes[i]
        yield x.op.args[0], tuple(back)
    elif name == "reshape":
        source = x.op.args[0]
        real = [i for i, d in enumerate(x.shape) if d != 1]
        inner = [i for i, d in enumerate(source.shape) if d != 1]
        if [x.shape[i] for i in real] == [source.shape[i] for i in inner]:
            found = dict(zip(inner, (axes[i] for i in real), strict=True))
            yield source, tuple(found.get(i) for i in range(source.rank))


def _aligned(keep: Value, axes: Axes) -> Value:
    """A factor that varies along batch and keys as bool [b or 1, 1, 1, m]."""
    order = sorted((a, i) for i, a in enumerate(axes) if a is not None)
    moved = [i for _, i in order] + [i for i, a in enumerate(axes) if a is None]
    keep = keep if moved == sorted(moved) else permute(keep, dims=moved)
    sizes = {a: keep.shape[moved.index(i)] for a, i in order}
    shape = (sizes.get(0, 1), 1, 1, sizes.get(3, 1))
    return keep if keep.shape == shape else reshape(keep, shape=shape)

"""Adapters that move elements: everything becomes permute, reshape, expand, slice, cat or pad."""

from __future__ import annotations

from typing import Any

from ..ir.core import Value
from ..ir.dims import Dim, at_least, maximum, minimum
from ..ir.types import promote
from .adapters import adapter, cast, ops


def axis(dim: int, rank: int) -> int:
    """A dim counted from 0; of a 0-d tensor, 0. Raises IndexError outside the rank."""
    if not -max(rank, 1) <= dim < max(rank, 1):
        raise IndexError(f"axis {dim} of {rank}")
    return dim % max(rank, 1)


def swapped(x: Value, a: int, b: int) -> Value:
    """x with two axes exchanged."""
    order = list(range(x.rank))
    a, b = axis(a, x.rank), axis(b, x.rank)
    if x.rank:
        order[a], order[b] = order[b], order[a]
    return permuted(x, order)


def permuted(x: Value, order: Any) -> Value:
    """x with its axes in another order; x itself when it is the same."""
    order = tuple(axis(d, x.rank) for d in order)
    return x if order == tuple(range(x.rank)) else ops.permute(x, dims=order)


def reshaped(x: Value, shape: Any) -> Value:
    """x under another shape; x itself when it is the same."""
    return x if x.shape == tuple(shape) else ops.reshape(x, shape=tuple(shape))


def expanded(x: Value, size: Any) -> Value:
    """x broadcast to size; x itself when it has it."""
    return x if x.shape == tuple(size) else ops.expand(x, size=tuple(size))


def cut(x: Value, dim: int, start: Dim, end: Dim, step: int = 1) -> Value:
    """x[start:end:step] along one axis; x itself when that is all of it."""
    if start == 0 and end == x.shape[dim] and step == 1:
        return x
    return ops.slice(x, dim=dim, start=start, end=end, step=step)


# ---- other shapes --------------------------------------------------------------------------------


@adapter("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "ravel.default",
         "unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default",
         "view_as.default", "reshape_as.default", "atleast_1d.default", "atleast_2d.default",
         "atleast_3d.default", "view_copy.default", "squeeze_copy.dim", "unsqueeze_copy.default",
         "_reshape_copy.default", "squeeze_copy.default",
         "squeeze_copy.dims")  # fmt: skip
def reshape(*, self, out, **_):
    """The same elements in the same order: the result's shape says it all."""
    return reshaped(self, out[0].shape)


@adapter("expand.default", "expand_as.default", "broadcast_to.default", "expand_copy.default")
def expand(*, self, out, **_):
    """Broadcast to the result's shape."""
    return expanded(self, out[0].shape)


@adapter("permute.default", "permute_copy.default")
def permute(*, self, dims, out):
    """Axes reordered."""
    return permuted(self, dims) if len(dims) == self.rank else None


@adapter("transpose.int", "transpose_copy.int", "swapaxes.default", "swapdims.default")
def transpose(*, self, out, dim0=None, dim1=None, axis0=None, axis1=None):
    """Two axes exchanged."""
    return swapped(self, axis0 if dim0 is None else dim0, axis1 if dim1 is None else dim1)


@adapter("t.default", "t_copy.default", "mT.default", "mH.default", "adjoint.default")
def transposed(*, self, out):
    """The last two axes exchanged; no fewer than two stay as they are."""
    if self.dtype.kind == "c":
        return None
    return swapped(self, -2, -1) if self.rank > 1 else self


@adapter("numpy_T.default")
def reversed_axes(*, self, out):
    """All axes in reverse."""
    return permuted(self, range(self.rank)[::-1])


@adapter("movedim.intlist", "movedim.int", "moveaxis.intlist", "moveaxis.int")
def movedim(*, self, source, destination, out):
    """Axes moved to given places, the others in order."""
    pairs = ([source], [destination]) if isinstance(source, int) else (source, destination)
    origin, target = ([axis(d, self.rank) for d in dims] for dims in pairs)
    rest = iter(d for d in range(self.rank) if d not in origin)
    places = dict(zip(target, origin, strict=True))
    return permuted(self, [places[i] if i in places else next(rest) for i in range(self.rank)])


# ---- parts ---------------------------------------------------------------------------------------


def _from_zero(index: Dim | None, size: Dim, default: Dim) -> Dim:
    """A slice bound counted from the front."""
    if index is None or (isinstance(index, int) and index >= 1 << 62):
        return default
    return index + size if isinstance(index, int) and index < 0 else index


def _place(index: Dim | None, size: Dim, default: Dim) -> Dim:
    """A slice bound counted from the front and kept within the size."""
    return maximum(minimum(_from_zero(index, size, default), size), 0)


@adapter("slice.Tensor", "slice_copy.Tensor")
def slice_(*, self, dim, start, end, step, out):
    """Bounds made explicit. Where a size is unknown, the observed length tells which bounds hold."""
    dim = axis(dim, self.rank)
    size, length = self.shape[dim], out[0].shape[dim]
    first, last = _place(start, size, 0), _place(end, size, size)
    if step == 1:
        plain = _from_zero(start, size, 0), _from_zero(end, size, size)
        if plain[1] - plain[0] == length:
            first, last = plain
        last = first + length
    elif at_least(first - last, 1):
        last = first
    return cut(self, dim, first, last, step)


@adapter("narrow.default", "narrow_copy.default")
def narrow(*, self, dim, start, length, out):
    """A slice by its length."""
    dim = axis(dim, self.rank)
    if isinstance(start, int) and start < 0:
        start = start + self.shape[dim]
    return cut(self, dim, start, start + length)


def selected(x: Value, dim: int, index: Dim, shape: Any) -> Value:
    """One place along an axis, which the result loses."""
    if isinstance(index, int) and index < 0:
        index = index + x.shape[dim]
    return reshaped(cut(x, dim, index, index + 1), shape)


@adapter("select.int", "select_copy.int")
def select(*, self, dim, index, out):
    """One place along an axis."""
    return selected(self, axis(dim, self.rank), index, out[0].shape)


@adapter("unbind.int", "unbind_copy.int")
def unbind(*, self, dim, out):
    """Every place along an axis."""
    dim = axis(dim, self.rank)
    return tuple(selected(self, dim, i, t.shape) for i, t in enumerate(out))


@adapter("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "split_copy.Tensor",
         "split_with_sizes_copy.default", "tensor_split.sections", "tensor_split.indices",
         "unsafe_split.Tensor", "unsafe_chunk.default")  # fmt: skip
def split(*, self, out, dim=0, **_):
    """Consecutive slices of the observed lengths."""
    dim, start, parts = axis(dim, self.rank), 0, []
    for type in out:
        length = type.shape[dim]
        parts.append(cut(self, dim, start, start + length))
        start = start + length
    return tuple(parts) if start == self.shape[dim] else None


# ---- joining and repeating -----------------------------------------------------------------------


@adapter("cat.default", "concat.default", "concatenate.default")
def cat(*, tensors, dim, out):
    """Joined along an axis; a 1-d tensor without elements is no part."""
    parts = [x for x in tensors if x.shape != (0,) or len(out[0].shape) == 1]
    parts = [cast(x, out[0]) for x in parts] if promote(*(x.type for x in tensors)) is out[0].dtype else []
    return parts[0] if len(parts) == 1 else ops.cat(*parts, dim=dim)


@adapter("stack.default", "_stack.default")
def stack(*, tensors, dim, out):
    """Joined along a new axis."""
    rank = len(out[0].shape)
    dim = axis(dim, rank)
    one = [*out[0].shape[:dim], 1, *out[0].shape[dim + 1 :]]
    parts = [ops.reshape(x, shape=one) for x in tensors]
    return parts[0] if len(parts) == 1 else ops.cat(*parts, dim=dim)


@adapter("repeat.default", "tile.default")
def repeat(*, self, out, repeats=None, dims=None):
    """The whole repeated along each axis: a new axis before it, expanded, then joined to it."""
    times = list(dims if repeats is None else repeats)
    times = [1] * (self.rank - len(times)) + times
    sizes = [1] * (len(times) - self.rank) + list(self.shape)
    apart = [d for size in sizes for d in (1, size)]
    spread = [d for pair in zip(times, sizes) for d in pair]
    if all(t == 1 for t in times):
        return reshaped(self, out[0].shape)
    return reshaped(expanded(reshaped(self, apart), spread), out[0].shape)


@adapter("repeat_interleave.self_int")
def repeat_interleave(*, self, repeats, dim, output_size, out):
    """Each element repeated in place: a new axis after it, expanded, then joined to it."""
    x = self if dim is not None else reshaped(self, (self.type.size,))
    dim = axis(0 if dim is None else dim, x.rank)
    if not x.rank:
        return None
    before, after = x.shape[: dim + 1], x.shape[dim + 1 :]
    wide = expanded(reshaped(x, (*before, 1, *after)), (*before, repeats, *after))
    return reshaped(wide, out[0].shape)


@adapter("roll.default")
def roll(*, self, shifts, dims, out):
    """The end moved to the front, along each axis or of the whole."""
    shifts, dims = ([x] if isinstance(x, int) else list(x) for x in (shifts, dims))
    if not dims:
        flat = reshaped(self, (self.type.size,))
        return reshaped(_rolled(flat, 0, shifts[0]), self.shape) if len(shifts) == 1 else None
    x = self
    for shift, dim in zip(shifts, dims, strict=True):
        x = _rolled(x, axis(dim, x.rank), shift) if x.rank else x
    return x


def _rolled(x: Value, dim: int, shift: int) -> Value:
    size = x.shape[dim]
    if isinstance(size, int):
        shift = shift % size if size else 0
    if shift == 0:
        return x
    at = size - shift if shift > 0 else -shift
    return ops.cat(cut(x, dim, at, size), cut(x, dim, 0, at), dim=dim)


@adapter("constant_pad_nd.default")
def constant_pad(*, self, pad, value, out):
    """pad with a constant."""
    return ops.pad(self, pad=pad, value=float(value)) if any(p != 0 for p in pad) else self


@adapter("pad.default")
def pad(*, self, pad, mode, value, out):
    """No padding is no op."""
    if all(p == 0 for p in pad):
        return self
    if mode != "constant" and len(pad) // 2 > 3:
        return None
    return ops.pad(self, pad=pad, mode=mode, value=(value or 0.0) if mode == "constant" else None)


@adapter("reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default")
def reflection_pad(*, self, padding, out):
    """pad by reflection."""
    return ops.pad(self, pad=padding, mode="reflect")


@adapter("replication_pad1d.default", "replication_pad2d.default", "replication_pad3d.default")
def replication_pad(*, self, padding, out):
    """pad by repeating the edge."""
    return ops.pad(self, pad=padding, mode="replicate")


@adapter("slice_scatter.default", "select_scatter.default")
def scattered(*, self, src, dim, out, start=None, end=None, step=1, index=None):
    """self with a slice replaced: what is before it, src, what is after it."""
    if step != 1 or self.dtype is not src.dtype or not self.rank:
        return None
    dim = axis(dim, self.rank)
    size = self.shape[dim]
    if index is not None:
        first = index + size if isinstance(index, int) and index < 0 else index
        length = 1
        src = reshaped(src, (*self.shape[:dim], 1, *self.shape[dim + 1 :]))
    else:
        first = _place(start, size, 0)
        length = src.shape[dim]
        if maximum(_place(end, size, size) - first, 0) != length:
            return None
    parts = [cut(self, dim, 0, first), src, cut(self, dim, first + length, size)]
    parts = [x for x in parts if x.shape[dim] != 0]
    return ops.cat(*parts, dim=dim) if len(parts) > 1 else src


@adapter("pixel_shuffle.default")
def pixel_shuffle(*, self, upscale_factor, out):
    """Channels become a grid inside each pixel."""
    r, (*lead, c, h, w) = upscale_factor, self.shape
    n = len(lead)
    apart = reshaped(self, (*lead, c // (r * r), r, r, h, w))
    mixed = permuted(apart, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return reshaped(mixed, out[0].shape)


@adapter("pixel_unshuffle.default")
def pixel_unshuffle(*, self, downscale_factor, out):
    """The grid inside each pixel becomes channels."""
    r, (*lead, c, h, w) = downscale_factor, self.shape
    n = len(lead)
    apart = reshaped(self, (*lead, c, h // r, r, w // r, r))
    mixed = permuted(apart, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return reshaped(mixed, out[0].shape)


@adapter("channel_shuffle.default")
def channel_shuffle(*, self, groups, out):
    """Channels of all groups dealt out in turn."""
    b, c, *rest = self.shape
    apart = reshaped(self, (b, groups, c // groups, *rest))
    return reshaped(swapped(apart, 1, 2), self.shape)


@adapter("meshgrid.indexing", "meshgrid.default")
def meshgrid(*, tensors, out, indexing="ij"):
    """Each vector along its own axis, expanded to all."""
    rank, made = len(tensors), []
    place = [1, 0, *range(2, rank)] if indexing == "xy" and rank > 1 else list(range(rank))
    for i, (x, type) in enumerate(zip(tensors, out, strict=True)):
        column = [x.type.size if place[i] == a else 1 for a in range(rank)]
        made.append(expanded(reshaped(x, column), type.shape))
    return tuple(made)

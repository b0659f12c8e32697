"""Adapters that make tensors: constants expanded, ranges, random numbers; and indexing."""

from __future__ import annotations

from typing import Any

from ..ir.core import Value, fresh_key
from ..ir.dims import Poly
from ..ir.types import TensorType, bool_, i64
from .adapters import adapter, cast, ops
from .layout import expanded, reshaped


def number(value: Any, type: TensorType) -> Value | None:
    """A Python number, a dim or a 0-d value as a 0-d value of a dtype."""
    if isinstance(value, Poly):
        return ops.size(value=value, dtype=type.dtype)
    if isinstance(value, Value):
        return cast(value, type)
    if value is None or isinstance(value, (str, complex)) or type.dtype.kind in "cx":
        return None
    if type.dtype.kind in "ui":
        value = int(value)
    return ops.const(value=bool(value) if type.dtype is bool_ else value, dtype=type.dtype)


def filled(value: Any, type: TensorType) -> Value | None:
    """A tensor of one number: a constant, expanded."""
    scalar = number(value, type)
    return None if scalar is None else expanded(scalar, type.shape)


@adapter("full.default", "full_like.default", "new_full.default", "fill.Scalar", "fill.Tensor")
def full(*, out, fill_value=None, value=None, **_):
    """One number everywhere."""
    return filled(fill_value if value is None else value, out[0])


@adapter("zeros.default", "zeros_like.default", "new_zeros.default", "zero.default", "empty.memory_format",
         "empty_like.default", "new_empty.default", "empty_permuted.default", "empty_strided.default",
         "new_empty_strided.default")  # fmt: skip
def zeros(*, out, **_):
    """Zeros; also for memory that nobody has written, which may hold anything."""
    return filled(0, out[0])


@adapter("ones.default", "ones_like.default", "new_ones.default")
def ones(*, out, **_):
    """Ones."""
    return filled(1, out[0])


@adapter("scalar_tensor.default")
def scalar_tensor(*, s, out, **_):
    """A number as a tensor."""
    return number(s, out[0])


@adapter("arange.default", "arange.start", "arange.start_step")
def arange(*, out, end, start=0, step=1, **_):
    """A range; torch takes whole floats for whole numbers where the range is of whole numbers."""
    dtype = out[0].dtype
    if dtype.kind in "iu":
        whole = (int(x) if isinstance(x, float) and x.is_integer() else x for x in (start, end, step))
        start, end, step = whole
    return ops.arange(start=start, end=end, step=step, dtype=dtype)


@adapter("linspace.default")
def linspace(*, start, end, steps, out, **_):
    """Evenly spaced floats."""
    return ops.linspace(start=start, end=end, steps=steps, dtype=out[0].dtype)


@adapter("eye.default", "eye.m")
def eye(*, n, out, m=None, **_):
    """The identity."""
    return ops.eye(n=n, m=n if m is None else m, dtype=out[0].dtype)


@adapter("one_hot.default")
def one_hot(*, self, num_classes, out):
    """A comparison with a range; the number of classes must be known."""
    classes = out[0].shape[-1]
    if num_classes == -1 or isinstance(classes, Poly):
        return None
    places = ops.arange(start=0, end=classes, dtype=i64)
    return ops.cast(ops.eq(reshaped(self, (*self.shape, 1)), places), dtype=i64)


# ---- random --------------------------------------------------------------------------------------


@adapter("rand.default", "rand_like.default")
def rand(*, out, **given):
    """Uniform numbers, in whatever shape they were asked for."""
    if given.get("generator") is not None:
        return None
    return ops.rand(size=out[0].shape, dtype=out[0].dtype, key=fresh_key())


@adapter("randn.default", "randn_like.default")
def randn(*, out, **given):
    """Normal numbers, in whatever shape they were asked for."""
    if given.get("generator") is not None or not out[0].dtype.is_float:
        return None
    return ops.randn(size=out[0].shape, dtype=out[0].dtype, key=fresh_key())


@adapter("randint.default", "randint.low", "randint_like.default", "randint_like.low_dtype")
def randint(*, out, high, low=0, **_):
    """Whole numbers, in whatever shape they were asked for."""
    return ops.randint(low=low, high=high, size=out[0].shape, dtype=out[0].dtype, key=fresh_key())


# ---- indexing ------------------------------------------------------------------------------------


@adapter("embedding.default")
def embedding(*, weight, indices, padding_idx, out, **_):
    """Rows of a table; sparse gradients and their scaling are not in the IR."""
    if isinstance(padding_idx, int) and padding_idx < -1:
        return None
    return ops.embedding(weight, indices, padding_idx=padding_idx)


@adapter("gather.default")
def gather(*, self, dim, index, out, **_):
    """sparse_grad changes no value."""
    return ops.gather(self, index, dim=dim)


@adapter("index_select.default")
def index_select(*, self, dim, index, out):
    """Places along one axis."""
    return ops.index_select(self, index, dim=dim)


@adapter("index_put.default", "_unsafe_index_put.default")
def index_put(*, self, indices, values, accumulate, out):
    """Writing at places; a mask as index is data-dependent and stays opaque."""
    return ops.index_put(self, values, *indices, accumulate=accumulate)


@adapter("_unsafe_index.Tensor")
def unsafe_index(*, self, indices, out):
    """index without its bounds check."""
    return ops.index(self, *indices)


@adapter("scatter.src", "scatter.value")
def scatter(*, self, dim, index, out, src=None, value=None):
    """Writing along one axis; a number takes the dtype of self."""
    source = src if value is None else number(value, self.type)
    return None if source is None else ops.scatter(self, index, source, dim=dim)


@adapter("scatter_add.default")
def scatter_add(*, self, dim, index, src, out):
    """Adding along one axis."""
    return ops.scatter_add(self, index, src, dim=dim)

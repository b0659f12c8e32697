"""Overloads spelt unlike any op: small functions from the schema's arguments to values.

An adapter takes the overload's arguments by schema name and `out`, the observed result types. It
returns a value, a tuple of them, or None where it cannot say it. This file has arithmetic, reductions
and products; `layout` has the moving of elements, `creation` new tensors, indices and randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..ir.core import OPS, OpDef, Value
from ..ir.types import TensorType


class Vocabulary:
    """The ops as attributes, `ops.attention`; in the package `ir.ops` that name is a file."""

    def __getattr__(self, name: str) -> OpDef:
        return OPS[name]


ops = Vocabulary()

ADAPTERS: dict[str, Callable[..., Any]] = {}
"""Adapters by overload name."""


def adapter(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function for overloads of these names."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            ADAPTERS[name] = function
        return function

    return register


def cast(x: Value, type: TensorType) -> Value:
    """x in the dtype of `type`; x itself when it has it."""
    return x if x.dtype is type.dtype else ops.cast(x, dtype=type.dtype)


def times(x: Any, factor: Any) -> Any:
    """x * factor, or x itself for a factor of 1."""
    if isinstance(factor, (int, float)) and factor == 1:
        return x
    return x * factor if isinstance(x, (int, float)) else ops.mul(x, factor)


# ---- elementwise ---------------------------------------------------------------------------------


@adapter("clone.default", "contiguous.default", "alias.default", "positive.default", "conj.default",
         "lift_fresh_copy.default", "lift_fresh.default", "resolve_conj.default", "resolve_neg.default",
         "detach_copy.default", "alias_copy.default", "real.default")  # fmt: skip
def identity(*, self, out, **_):
    """Copies and storage orders mean nothing in an IR without storage."""
    return self if self.dtype.kind != "c" else None


@adapter("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "type_as.default", "to.other")
def convert(*, self, out, **_):
    """Devices and storage orders are not in the IR; what is left of `to` is the dtype."""
    return cast(self, out[0])


@adapter("copy.default")
def copy(*, self, src, out, **_):
    """src in the type of self."""
    return ops.expand(cast(src, out[0]), size=self.shape)


@adapter("add.Tensor", "add.Scalar")
def add(*, self, other, alpha, out):
    """self + alpha * other."""
    return ops.add(self, times(other, alpha))


@adapter("sub.Tensor", "sub.Scalar")
def sub(*, self, other, alpha, out):
    """self - alpha * other."""
    return ops.sub(self, times(other, alpha))


@adapter("rsub.Scalar", "rsub.Tensor")
def rsub(*, self, other, alpha, out):
    """other - alpha * self."""
    return ops.sub(other, times(self, alpha))


@adapter("square.default")
def square(*, self, out):
    """Written as a power, as models write it."""
    return ops.pow(self, 2)


@adapter("floor_divide.default", "floor_divide.Scalar")
def floor_divide(*, self, other, out):
    """Division rounded down."""
    return ops.div(self, other, rounding_mode="floor")


@adapter("true_divide.Tensor", "true_divide.Scalar", "divide.Tensor", "divide.Scalar")
def divide(*, self, other, out):
    """Other names of division."""
    return ops.div(self, other)


@adapter("multiply.Tensor", "multiply.Scalar")
def multiply(*, self, other, out):
    """Another name of mul."""
    return ops.mul(self, other)


@adapter("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(*, self, mask, value, out):
    """A value where the mask holds; it takes the dtype of self."""
    if isinstance(value, Value):
        fits = not value.rank and (value.dtype.kind != "c" or self.dtype.kind == "c")
        return ops.where(mask, cast(value, self.type), self) if fits else None
    return ops.where(mask, ops.const(value=value, dtype=self.dtype), self)


@adapter("clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def clamp(*, self, out, min=None, max=None):
    """Bounds that are tensors; the upper one wins where they cross."""
    x = self if min is None else ops.maximum(self, min)
    return x if max is None else ops.minimum(x, max)


@adapter("_prelu_kernel.default")
def prelu(*, self, weight, out):
    """prelu with a weight that broadcasts already."""
    return ops.where(ops.gt(self, 0), self, ops.mul(self, weight))


@adapter("rad2deg.default")
def rad2deg(*, self, out):
    """Radians in degrees."""
    return ops.mul(self, 180 / math.pi)


@adapter("deg2rad.default")
def deg2rad(*, self, out):
    """Degrees in radians."""
    return ops.mul(self, math.pi / 180)


@adapter("dropout.default", "feature_dropout.default")
def dropout(*, input, p, train, out):
    """Nothing outside training; feature dropout in training stays opaque."""
    return input if not train or p == 0 else None


@adapter("native_dropout.default")
def native_dropout(*, input, p, train, out):
    """Nothing outside training, and a mask of ones."""
    if train or train is None:
        return None
    return input, ops.expand(ops.const(value=True, dtype=out[1].dtype), size=out[1].shape)


# ---- reductions ----------------------------------------------------------------------------------


@adapter("mean.dim", "mean.default")
def mean(*, self, out, dim=None, keepdim=False, dtype=None):
    """The mean in a dtype is the mean of the cast."""
    return ops.mean(cast(self, out[0]), dim=dim or (), keepdim=keepdim)


@adapter("max.dim")
def max_dim(*, self, dim, keepdim, out):
    """The largest, and the place of the first of them."""
    return ops.amax(self, dim=dim, keepdim=keepdim), ops.argmax(self, dim=dim, keepdim=keepdim)


@adapter("min.dim")
def min_dim(*, self, dim, keepdim, out):
    """The smallest, and the place of the first of them."""
    return ops.amin(self, dim=dim, keepdim=keepdim), ops.argmin(self, dim=dim, keepdim=keepdim)


@adapter("var.default", "var.dim")
def var(*, self, out, unbiased, dim=None, keepdim=False):
    """unbiased=True is a correction of 1."""
    return ops.var(self, dim=dim or (), correction=int(unbiased), keepdim=keepdim)


@adapter("std.default", "std.dim")
def std(*, self, out, unbiased, dim=None, keepdim=False):
    """unbiased=True is a correction of 1."""
    return ops.std(self, dim=dim or (), correction=int(unbiased), keepdim=keepdim)


@adapter("var_mean.correction", "var_mean.default", "var_mean.dim")
def var_mean(*, self, out, dim=None, correction=None, keepdim=False, unbiased=True):
    """Variance and mean."""
    correction = int(unbiased) if correction is None else correction
    variance = ops.var(self, dim=dim or (), correction=correction, keepdim=keepdim)
    return variance, ops.mean(self, dim=dim or (), keepdim=keepdim)


@adapter("std_mean.correction", "std_mean.default", "std_mean.dim")
def std_mean(*, self, out, dim=None, correction=None, keepdim=False, unbiased=True):
    """Standard deviation and mean."""
    correction = int(unbiased) if correction is None else correction
    deviation = ops.std(self, dim=dim or (), correction=correction, keepdim=keepdim)
    return deviation, ops.mean(self, dim=dim or (), keepdim=keepdim)


@adapter("linalg_vector_norm.default")
def vector_norm(*, self, ord, dim, keepdim, dtype, out):
    """The norm in a dtype is the norm of the cast; that of complex numbers is real by itself."""
    x = self if self.dtype.kind == "c" else cast(self, out[0])
    return ops.vector_norm(x, ord=ord, dim=dim or (), keepdim=keepdim)


@adapter("norm.Scalar", "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype", "norm.ScalarOpt_dtype")
def norm(*, self, p, out, dim=(), keepdim=False, dtype=None):
    """The older spelling of vector_norm."""
    return vector_norm(self=self, ord=2 if p is None else p, dim=dim, keepdim=keepdim, dtype=dtype, out=out)


@adapter("count_nonzero.dim_IntList", "count_nonzero.default")
def count_nonzero(*, self, out, dim=None):
    """A sum of truths."""
    dim = () if dim is None else dim
    return ops.sum(ops.ne(self, 0), dim=dim)


@adapter("diff.default")
def diff(*, self, n, dim, prepend, append, out):
    """Differences of neighbours."""
    if n != 1 or self.dtype.kind == "b":
        return None
    parts = [x for x in (prepend, self, append) if x is not None]
    x = ops.cat(*parts, dim=dim) if len(parts) > 1 else self
    dim %= x.rank
    last = ops.slice(x, dim=dim, start=1, end=x.shape[dim])
    return ops.sub(last, ops.slice(x, dim=dim, start=0, end=x.shape[dim] - 1))


@adapter("argsort.default", "argsort.stable")
def argsort(*, self, out, dim, descending, stable=None):
    """The places that sort gives."""
    return ops.sort(self, dim=dim, descending=descending, stable=stable)[1]


@adapter("softmax.int", "_softmax.default")
def softmax(*, self, dim, out, dtype=None, half_to_float=False):
    """The softmax in a dtype is the softmax of the cast."""
    return ops.softmax(cast(self, out[0]), dim=dim)


@adapter("log_softmax.int", "_log_softmax.default")
def log_softmax(*, self, dim, out, dtype=None, half_to_float=False):
    """The log-softmax in a dtype is that of the cast."""
    return ops.log_softmax(cast(self, out[0]), dim=dim)


# ---- products ------------------------------------------------------------------------------------


@adapter("matmul.default", "linalg_matmul.default", "mv.default", "dot.default")
def matmul(*, out, self=None, other=None, input=None, vec=None, tensor=None, **_):
    """Operands of one axis get a second one, which the result loses again."""
    a = self if self is not None else input
    b = next(x for x in (other, vec, tensor) if x is not None)
    if 0 in (a.rank, b.rank):
        return None
    if b.rank == 1 and a.rank > 1 and a.shape[-1] == b.shape[0]:
        column = ops.matmul(a, ops.reshape(b, shape=(b.shape[0], 1)))
        return ops.reshape(column, shape=out[0].shape)
    row = ops.reshape(a, shape=(1, a.shape[0])) if a.rank == 1 else a
    column = ops.reshape(b, shape=(b.shape[0], 1)) if b.rank == 1 else b
    product = ops.matmul(row, column)
    return product if 1 not in (a.rank, b.rank) else ops.reshape(product, shape=out[0].shape)


@adapter("outer.default", "ger.default")
def outer(*, self, vec2, out):
    """A column times a row."""
    n, m = self.shape[0], vec2.shape[0]
    return ops.mul(ops.reshape(self, shape=(n, 1)), ops.reshape(vec2, shape=(1, m)))


@adapter("addmm.default", "baddbmm.default", "addmv.default", "addr.default")
def addmm(*, self, beta, alpha, out, mat1=None, mat2=None, batch1=None, batch2=None, mat=None, vec=None,
          vec1=None, vec2=None):  # fmt: skip
    """beta * self + alpha * (a @ b); a bias for each column makes it a linear layer."""
    if mat1 is not None and self.rank == 1 and alpha == beta == 1 and self.shape == mat2.shape[1:]:
        return ops.linear(mat1, ops.permute(mat2, dims=(1, 0)), self)
    if mat is not None:
        product = matmul(self=mat, other=vec, out=out)
    elif vec1 is not None:
        product = outer(self=vec1, vec2=vec2, out=out)
    else:
        a, b = (mat1, mat2) if batch1 is None else (batch1, batch2)
        product = ops.matmul(a, b)
    product = times(product, alpha)
    return product if beta == 0 else ops.add(product, times(self, beta))


@adapter("addbmm.default")
def addbmm(*, self, batch1, batch2, beta, alpha, out):
    """beta * self + alpha * (the sum of batch1 @ batch2), where that need not round in between."""
    if self.dtype.bits < 32:
        return None
    product = times(ops.sum(ops.matmul(batch1, batch2), dim=0), alpha)
    return product if beta == 0 else ops.add(product, times(self, beta))


@adapter("linear.default")
def linear(*, input, weight, bias, out):
    """A weight of one axis makes one feature."""
    if weight.rank == 1:
        return None
    return ops.linear(input, weight, bias)


from . import creation, layers, layout  # noqa: E402, F401  (they fill ADAPTERS)

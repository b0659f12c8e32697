"""Dtypes and tensor types: what is known about a value before any data exists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .dims import RESERVED, Dim
from .errors import IRError


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """An element type; `kind` is b(ool) u(nsigned) i(nteger) f(loat) c(omplex) or x (opaque)."""

    name: str
    kind: str
    bits: int

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a real floating-point type."""
        return self.kind == "f"

    @property
    def numpy(self) -> np.dtype:
        """The dtype of the float64 interpretation: floats widen, integers and bools stay."""
        if self.kind in "fc":
            return np.dtype(np.float64 if self.kind == "f" else np.complex128)
        if self.kind == "x":
            raise IRError(f"{self.name} has no numpy meaning")
        return np.dtype(np.bool_ if self.kind == "b" else f"{self.kind}{self.bits // 8}")

    @property
    def torch(self) -> str:
        """What torch calls it, `float32`; the rooms that import torch look it up there."""
        words = {"u": "uint", "i": "int", "f": "float", "c": "complex"}
        odd = {"bool": "bool", "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2"}
        return odd.get(self.name) or f"{words[self.kind]}{self.bits}"


bool_ = DType("bool", "b", 8)
u8, u16, u32, u64 = (DType(f"u{n}", "u", n) for n in (8, 16, 32, 64))
i8, i16, i32, i64 = (DType(f"i{n}", "i", n) for n in (8, 16, 32, 64))
f16, f32, f64 = (DType(f"f{n}", "f", n) for n in (16, 32, 64))
bf16 = DType("bf16", "f", 16)
f8e4m3, f8e5m2 = DType("f8e4m3", "x", 8), DType("f8e5m2", "x", 8)
c32, c64, c128 = (DType(f"c{n}", "c", n) for n in (32, 64, 128))

DTYPES: dict[str, DType] = {
    t.name: t
    for t in (bool_, u8, u16, u32, u64, i8, i16, i32, i64, f16, bf16, f32, f64, f8e4m3, f8e5m2,
              c32, c64, c128)
}  # fmt: skip
RESERVED.update(DTYPES)


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape; prints as `f32[b,h,n,64]`. Strides and devices belong to backends."""

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """The number of elements."""
        return product(self.shape)

    @property
    def bytes(self) -> Dim:
        """The number of bytes of a dense tensor of this type."""
        return self.size * (self.dtype.bits // 8)

    def with_(
        self, *, dtype: DType | None = None, shape: Sequence[Dim] | None = None
    ) -> TensorType:
        """This type with another dtype or shape."""
        return TensorType(dtype or self.dtype, self.shape if shape is None else tuple(shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    __repr__ = __str__


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 when there are none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def broadcast(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """The common shape after numpy broadcasting. Unknown dims are never taken to be equal or 1."""
    first = tuple(shapes[0]) if shapes else ()
    shapes = tuple([shape for shape in shapes[1:] if shape != first])  # most are all alike
    if not shapes:
        return first
    shapes = (first, *shapes)
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        dim: Dim = 1
        for shape in shapes:
            if len(shape) < -axis or shape[axis] == 1 or shape[axis] == dim:
                continue
            if dim != 1:
                listed = " and ".join(f"[{','.join(map(str, s))}]" for s in shapes)
                raise IRError(
                    f"shapes {listed} do not broadcast: {dim} against {shape[axis]} at axis {axis}"
                )
            dim = shape[axis]
        result.append(dim)
    return tuple(result)


_ORDER = {
    t: i for i, t in enumerate((bool_, u8, i8, i16, i32, i64, f16, bf16, f32, f64, c32, c64, c128))
}
_CATEGORY = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def promote(*types: TensorType) -> DType:
    """The result dtype of mixing `types`, by torch's rule: a 0-d operand widens a category only.

    Python numbers enter as 0-d `const` ops whose dtype `scalar_dtype` already chose.
    """
    first = types[0].dtype
    if all([t.dtype is first for t in types]):
        return first
    ranked = [t.dtype for t in types if t.rank]
    scalars = [t.dtype for t in types if not t.rank]
    if not ranked or not scalars:
        return _join(ranked or scalars)
    high, low = _join(ranked), _join(scalars)
    if _CATEGORY[low.kind] <= _CATEGORY[high.kind]:
        return high
    if low.kind == "c" and high.is_float:  # a complex number beside reals keeps their precision
        return {"f16": c32, "f64": c128}.get(high.name, c64)
    return _join([high, low])


def _join(dtypes: Sequence[DType]) -> DType:
    best = dtypes[0]
    for other in dtypes[1:]:
        best = _join_two(best, other)
    return best


def _join_two(a: DType, b: DType) -> DType:
    if a is b:
        return a
    if a not in _ORDER or b not in _ORDER:
        raise IRError(f"{a} and {b} have no common dtype; cast one of them")
    a, b = sorted((a, b), key=_ORDER.__getitem__)
    if {a, b} == {u8, i8}:
        return i16
    if {a, b} == {f16, bf16}:
        return f32
    if b.kind == "c" and a.kind == "f":
        return c128 if f64 in (a, b) or b is c128 else (c64 if a.bits == 32 or a is bf16 else b)
    return b


def scalar_dtype(value: bool | int | float, others: Iterable[DType]) -> DType:
    """The dtype a Python number takes beside tensors of dtypes `others`, as in torch."""
    kind = "b" if isinstance(value, bool) else "i" if isinstance(value, int) else "f"
    same = [t for t in others if t.kind in _CATEGORY and _CATEGORY[t.kind] >= _CATEGORY[kind]]
    if same:
        return _join(same)
    return {"b": bool_, "i": i64, "f": f32}[kind]

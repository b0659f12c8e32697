"""Normalisations, each defined by its body. Statistics are taken in f32 where x is narrower."""

from ..attributes import Shape
from ..core import Value
from ..declare import Float, composite
from ..dims import Dim
from ..errors import IRError
from . import elementwise as e
from . import reduce as r
from .activation import as_dtype, wide


def _last_axes(x: Value, shape: tuple[Dim, ...]) -> tuple[int, ...]:
    if not shape or x.shape[x.rank - len(shape) :] != shape:
        raise IRError(f"x ends in {x.shape[-len(shape) :]}, normalized_shape is {shape}")
    return tuple(range(x.rank - len(shape), x.rank))


def _scaled(x: Value, y: Value, w: Value | None, b: Value | None = None) -> Value:
    for name, factor in (("w", w), ("b", b)):
        if factor is not None and factor.rank > x.rank:
            raise IRError(f"{name} has {factor.rank} axes, x has {x.rank}")
    y = y if w is None else y * wide(w)
    y = y if b is None else y + wide(b)
    return as_dtype(y, x.dtype)


@composite(aten="layer_norm.default")
def layer_norm(
    x: Float, w: Float | None = None, b: Float | None = None, *, normalized_shape: Shape,
    eps: float = 1e-5,
):  # fmt: skip
    "x less its mean, over its standard deviation, along the last axes; times w, plus b."
    axes, y = _last_axes(x, normalized_shape), wide(x)
    centred = y - r.mean(y, dim=axes, keepdim=True)
    variance = r.mean(centred * centred, dim=axes, keepdim=True)
    return _scaled(x, centred * e.rsqrt(variance + eps), w, b)


@composite(aten="rms_norm.default")
def rms_norm(x: Float, w: Float | None = None, *, normalized_shape: Shape, eps: float):
    "x scaled to unit mean square along the last axes, times w (arXiv:1910.07467)."
    axes, y = _last_axes(x, normalized_shape), wide(x)
    mean_square = r.mean(y * y, dim=axes, keepdim=True)
    return _scaled(x, y * e.rsqrt(mean_square + eps), w)

"""Adapters of layers: convolution, pooling, normalisation, resampling, attention, einsum."""

from __future__ import annotations

import string
from typing import Any

from ..ir.core import Value
from ..ir.dims import Poly
from ..ir.types import product as size_of
from .adapters import adapter, cast, ops
from .layout import expanded, permuted, reshaped


def each(values: Any, n: int) -> tuple[Any, ...]:
    """One entry for each of n axes: a single one counts for all."""
    values = (values,) if not isinstance(values, (list, tuple)) else tuple(values)
    return values * n if len(values) == 1 else values


# ---- convolution ---------------------------------------------------------------------------------


@adapter("convolution.default", "conv1d.default", "conv2d.default", "conv3d.default",
         "conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")  # fmt: skip
def convolution(*, input, weight, bias, stride, padding, dilation, groups, out, output_padding=None,
                transposed=None):  # fmt: skip
    """Every convolution is one op; without a batch axis it gets one."""
    n = weight.rank - 2
    transposed = output_padding is not None if transposed is None else transposed
    x = input if input.rank == n + 2 else reshaped(input, (1, *input.shape))
    y = ops.convolution(
        x, weight, bias, stride=each(stride, n), padding=each(padding, n), dilation=each(dilation, n),
        transposed=transposed, output_padding=each(output_padding or 0, n), groups=groups,
    )  # fmt: skip
    return reshaped(y, out[0].shape)


@adapter("conv1d.padding", "conv2d.padding", "conv3d.padding")
def convolution_same(*, input, weight, bias, stride, padding, dilation, groups, out):
    """padding="same" puts the odd element behind."""
    n = weight.rank - 2
    dilation = each(dilation, n)
    around = [(0, 0)] * n
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        around = [(r // 2, r - r // 2) for r in reach]
    even = [min(a) for a in around]
    extra = [side for low, high in reversed(around) for side in (0, high - low)]
    x = ops.pad(input, pad=extra, value=0.0) if any(extra) else input
    return convolution(input=x, weight=weight, bias=bias, stride=stride, padding=even, dilation=dilation,
                       groups=groups, out=out)  # fmt: skip


# ---- pooling -------------------------------------------------------------------------------------


@adapter("max_pool1d.default", "max_pool1d_with_indices.default")
def max_pool1d(*, self, kernel_size, stride, padding, dilation, ceil_mode, out):
    """Two-dimensional pooling with a first axis of one."""
    wide = reshaped(self, (*self.shape[:-1], 1, self.shape[-1]))
    results = ops.max_pool2d(
        wide, kernel_size=(1, *each(kernel_size, 1)), stride=(1, *each(stride or kernel_size, 1)),
        padding=(0, *each(padding, 1)), dilation=(1, *each(dilation, 1)), ceil_mode=ceil_mode,
    )  # fmt: skip
    return tuple(reshaped(y, t.shape) for y, t in zip(results, out))


def _max_pool(n: int) -> Any:
    def pool(*, self, kernel_size, stride, padding, dilation, ceil_mode, out):
        results = (ops.max_pool2d if n == 2 else ops.max_pool3d)(
            self, kernel_size=each(kernel_size, n), stride=each(stride or kernel_size, n),
            padding=each(padding, n), dilation=each(dilation, n), ceil_mode=ceil_mode,
        )  # fmt: skip
        return results[: len(out)]

    return pool


adapter("max_pool2d.default", "max_pool2d_with_indices.default")(_max_pool(2))
adapter("max_pool3d.default", "max_pool3d_with_indices.default")(_max_pool(3))


def _avg_pool(n: int) -> Any:
    def pool(*, self, kernel_size, stride, padding, ceil_mode, count_include_pad, out, divisor_override=None):
        pooling = (ops.avg_pool1d, ops.avg_pool2d, ops.avg_pool3d)[n - 1]
        more = {} if n == 1 else {"divisor_override": divisor_override}
        return pooling(
            self, kernel_size=each(kernel_size, n), stride=each(stride or kernel_size, n),
            padding=each(padding, n), ceil_mode=ceil_mode, count_include_pad=count_include_pad, **more,
        )  # fmt: skip

    return pool


for _n in (1, 2, 3):
    adapter(f"avg_pool{_n}d.default")(_avg_pool(_n))


# ---- normalisation -------------------------------------------------------------------------------


@adapter("batch_norm.default", "_native_batch_norm_legit_no_training.default")
def batch_norm(*, input, weight, bias, running_mean, running_var, eps, out, training=False, **_):
    """With known statistics; in training it stays opaque."""
    if training or running_mean is None or running_var is None:
        return None
    y = ops.batch_norm(input, weight, bias, running_mean, running_var, eps=eps)
    if any(t.shape != (0,) for t in out[1:]):
        return None  # the statistics of a batch, where the device takes them
    return y, *(ops.expand(ops.const(value=0.0, dtype=t.dtype), size=(0,)) for t in out[1:])


@adapter("layer_norm.default")
def layer_norm(*, input, normalized_shape, weight, bias, eps, out, **_):
    """cudnn_enable changes no value."""
    return ops.layer_norm(input, weight, bias, normalized_shape=normalized_shape, eps=eps)


@adapter("native_layer_norm.default")
def native_layer_norm(*, input, normalized_shape, weight, bias, eps, out):
    """Layer norm, and the mean and reciprocal deviation that its backward pass uses."""
    y = ops.layer_norm(input, weight, bias, normalized_shape=normalized_shape, eps=eps)
    wide = cast(input, out[1])
    axes = range(input.rank - len(normalized_shape), input.rank)
    variance = ops.var(wide, dim=axes, correction=0, keepdim=True)
    return y, ops.mean(wide, dim=axes, keepdim=True), ops.rsqrt(variance + eps)


@adapter("rms_norm.default")
def rms_norm(*, input, normalized_shape, weight, eps, out):
    """Without eps it is the dtype's own, which torch chooses."""
    return None if eps is None else ops.rms_norm(input, weight, normalized_shape=normalized_shape, eps=eps)


@adapter("group_norm.default")
def group_norm(*, input, num_groups, weight, bias, eps, out, **_):
    """cudnn_enabled changes no value."""
    return ops.group_norm(input, weight, bias, num_groups=num_groups, eps=eps)


@adapter("instance_norm.default")
def instance_norm(*, input, weight, bias, running_mean, running_var, use_input_stats, eps, out, **_):
    """Group norm with a group for each channel; with known statistics, batch norm."""
    if not use_input_stats and running_mean is not None and running_var is not None:
        return ops.batch_norm(input, weight, bias, running_mean, running_var, eps=eps)
    if not use_input_stats or running_mean is not None or running_var is not None:
        return None
    return ops.group_norm(input, weight, bias, num_groups=input.shape[1], eps=eps)


@adapter("_weight_norm.default")
def weight_norm(*, v, g, dim, out):
    """v at length g along every axis but dim (all axes for -1)."""
    axes = [i for i in range(v.rank) if i != dim % v.rank] if dim != -1 else list(range(v.rank))
    norm = ops.vector_norm(v, ord=2, dim=axes, keepdim=True)
    return v * (g / norm)


# ---- attention -----------------------------------------------------------------------------------


@adapter("scaled_dot_product_attention.default")
def attention(*, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, out):
    """q, k and v as [b, h, n, d]: the axis before the tokens is that of heads, those before it batch.

    Without an axis of heads there is one head. With dropout it stays opaque.
    """
    width = query.shape[-1]
    if dropout_p or width == 0 or (scale is None and isinstance(width, Poly)):
        return None
    if any(x.rank < 2 for x in (query, key, value)) or value.dtype is not query.dtype:
        return None
    lead = out[0].shape[:-2]
    apart = len(lead) > 1 or enable_gqa
    batch = lead[:-1] if apart else lead
    if (enable_gqa and not lead) or (apart and key.shape[:-2][-1:] != value.shape[:-2][-1:]):
        return None  # groups of keys that are none of values

    def folded(x: Value) -> Value:
        x = reshaped(x, (*(1,) * (out[0].rank - x.rank), *x.shape))
        if not apart:
            x = reshaped(x, (*x.shape[:-2], 1, *x.shape[-2:]))
        x = expanded(x, (*batch, *x.shape[-3:]))
        return reshaped(x, (size_of(batch), *x.shape[-3:]))

    parts = [folded(x) for x in (query, key, value)]
    if not enable_gqa:  # heads broadcast: all of them, or one for all
        heads = lead[-1] if apart else 1
        parts[0] = expanded(parts[0], (parts[0].shape[0], heads, *parts[0].shape[2:]))
        if parts[1].shape[1] not in (1, heads):
            return None
    if attn_mask is not None and attn_mask.rank > 2:
        attn_mask = folded(attn_mask)
    scale = width**-0.5 if scale is None else scale
    y = ops.attention(*parts, attn_mask, scale=scale, causal=is_causal)
    return reshaped(y, out[0].shape)


# ---- resampling ----------------------------------------------------------------------------------


@adapter(*(f"upsample_nearest{n}d.{kind}" for n in (1, 2, 3) for kind in ("vec", "default")))
def upsample_nearest(*, out, input=None, self=None, **_):
    """By a whole factor each element is repeated in place; other factors stay opaque."""
    x = input if self is None else self
    apart, spread = list(x.shape[:2]), list(x.shape[:2])
    for size, wanted in zip(x.shape[2:], out[0].shape[2:]):
        factor = wanted // size
        if not isinstance(factor, int) or factor * size != wanted:
            return None
        apart += [size, 1]
        spread += [size, factor]
    return reshaped(expanded(reshaped(x, apart), spread), out[0].shape)


# ---- einsum --------------------------------------------------------------------------------------


@adapter("einsum.default")
def einsum(*, equation, tensors, path, out):
    """One or two operands as sums, permutes, reshapes and one matmul; others stay opaque."""
    equation = _lettered(equation.replace(" ", ""), tensors)
    if "." in equation or len(tensors) > 2 or len({x.dtype for x in tensors}) > 1:
        return None
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation:
        right = "".join(c for c in sorted(set(left) - {","}) if left.count(c) == 1)
    if any(c not in string.ascii_letters for c in "".join(terms) + right) or len(terms) != len(tensors):
        return None
    if any(len(set(t)) < len(t) for t in (*terms, right)):
        return None  # a repeated letter is a diagonal
    sizes: dict[str, Any] = {}
    for term, x in zip(terms, tensors):
        for letter, size in zip(term, x.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None  # broadcasting, or not known to be the same
    if len(tensors) == 1:
        return arranged(*_summed(tensors[0], terms[0], right), right)
    (x, a), (y, b) = (
        _summed(x, term, right + other) for x, term, other in zip(tensors, terms, reversed(terms))
    )
    batch = [c for c in a if c in b and c in right]
    inner = [c for c in a if c in b and c not in right]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]

    def grouped(x: Value, term: str, *groups: list[str]) -> Value:
        x = arranged(x, term, "".join(c for g in groups for c in g))
        return reshaped(x, [*(sizes[c] for c in groups[0]), *(_size(sizes, g) for g in groups[1:])])

    product = ops.matmul(grouped(x, a, batch, rows, inner), grouped(y, b, batch, inner, columns))
    letters = [*batch, *rows, *columns]
    return arranged(reshaped(product, [sizes[c] for c in letters]), "".join(letters), right)


def _lettered(equation: str, tensors: Any) -> str:
    """`equation` with letters for `...`, the same in every term; as it is where the terms differ."""
    left, arrow, _ = equation.partition("->")
    terms = left.split(",")
    hidden = {x.rank - len(t.replace("...", "")) if "..." in t else 0 for t, x in zip(terms, tensors)}
    free = "".join(c for c in string.ascii_letters if c not in equation)
    if not arrow or len(hidden) != 1 or not 0 <= min(hidden) <= len(free):
        return equation
    return equation.replace("...", free[: min(hidden)])


def _size(sizes: dict[str, Any], letters: list[str]) -> Any:
    total: Any = 1
    for letter in letters:
        total = total * sizes[letter]
    return total


def _summed(x: Value, term: str, kept: str) -> tuple[Value, str]:
    """x with the axes summed that nothing else names."""
    gone = [i for i, c in enumerate(term) if c not in kept]
    return (ops.sum(x, dim=gone), "".join(c for c in term if c in kept)) if gone else (x, term)


def arranged(x: Value, term: str, wanted: str) -> Value:
    """x, whose axes are the letters of `term`, with them in the order `wanted`."""
    return permuted(x, [term.index(c) for c in wanted])

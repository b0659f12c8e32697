"""The elementwise gated recurrence as the torch custom op ``subquad::linear_scan``.

    h_t = f_t h_(t-1) + x_t        x, f, h [..., n, d]

The state is one number for each channel (HGRN, Qin et al. 2023, arXiv:2311.04823; MLGRU, Zhu et al.
2024, arXiv:2406.02528). Tokens are cut into c blocks of s. All blocks run the recurrence from zero at
once, s steps; then what each block hands on is carried through, c steps; then every token gets its
share of what came in, by the product of decays since. So about 2 sqrt(n) steps, each over many
channels, instead of n. Products of decays only ever shrink to 0: no division, no logarithm, no
exponential of a sum, so decays of exactly 0 and 1 are as good as others.

The backward pass is the same recurrence the other way, so derivatives of any order exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = ["linear_scan"]

WIDE = 4096
"""Channels (batch x d) from which one step after another is as fast: tests/benchmarks/bench_scan.py."""
SPAN = 1 << 18
"""Elements taken at once, so that their products stay in the cache."""


def _accumulator(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of states: float32, or float64 where an operand is float64."""
    return (
        torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
    )


def _spans(n: int, channels: int, block: int | None, span: int | None) -> list[tuple[int, int, int]]:
    """Cut n tokens into (start, blocks, tokens a block): about as many blocks as tokens in each.

    span: elements taken at once, all of them where it is None.
    """
    tokens = n if span is None else min(n, max(64, span // channels))
    size = min(n, block or 1 << round(math.log2(tokens) / 2))
    whole, rest = divmod(n, size)
    step = max(1, tokens // size)
    spans = [(i * size, min(step, whole - i), size) for i in range(0, whole, step)]
    return spans + [(whole * size, 1, rest)] if rest else spans


def _forward(
    x: Tensor, decay: Tensor, initial: Tensor | None, log: bool, reverse: bool,
    block: int | None = None, span: int | None = None,
) -> Tensor:  # fmt: skip
    acc, (n, d) = _accumulator(x, decay, initial), x.shape[-2:]
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    y, f = x.reshape(-1, n, d).to(acc), decay.reshape(-1, n, d).to(acc)
    f = f.exp() if log else f
    carry = y.new_zeros(y.shape[0], d) if initial is None else initial.reshape(-1, d).to(acc)
    channels = y.shape[0] * d
    if x.device.type == "cpu" and block is None:  # elsewhere a launch costs more than a cache miss
        block, span = (n if channels >= WIDE else None), SPAN
    spans = _spans(n, channels, block, span)
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    for start, many, each in spans[::-1] if reverse else spans:
        xs, fs, hs = (t.narrow(1, start, many * each).unflatten(1, (many, each)) for t in (y, f, out))
        carry = _span(xs, fs, hs, carry, reverse)
    return out.reshape(x.shape).to(x.dtype)


def _span(x: Tensor, f: Tensor, h: Tensor, carry: Tensor, reverse: bool) -> Tensor:
    """Fill h [b, blocks, tokens, d] from x and f of that shape and the state before; the state after."""
    many, each = x.shape[1:3]
    blocks, steps = range(many)[:: -1 if reverse else 1], range(each)[:: -1 if reverse else 1]
    xs, fs, hs = x.unbind(2), f.unbind(2), h.unbind(2)
    last = steps[0]
    if many == 1:
        torch.addcmul(xs[last], fs[last], carry[:, None], out=hs[last])
        for t in steps[1:]:
            torch.addcmul(xs[t], fs[t], hs[last], out=hs[t])
            last = t
        return hs[last][:, 0].clone()
    product = torch.empty_like(h, memory_format=torch.contiguous_format)
    ps = product.unbind(2)
    hs[last].copy_(xs[last])
    ps[last].copy_(fs[last])
    for t in steps[1:]:
        torch.addcmul(xs[t], fs[t], hs[last], out=hs[t])
        torch.mul(fs[t], ps[last], out=ps[t])
        last = t
    come = torch.empty_like(hs[last])  # [b, blocks, d]: the state each block starts from
    for i in blocks:
        come[:, i] = carry
        carry = torch.addcmul(hs[last][:, i], ps[last][:, i], carry)
    h.addcmul_(product, come.unsqueeze(2))
    return carry


def _check(x: Tensor, decay: Tensor, initial: Tensor | None) -> None:
    given = f"x {list(x.shape)} {x.dtype}, decay {list(decay.shape)} {decay.dtype}"
    asked = f"linear_scan was given {given}, but"
    if x.ndim < 2 or decay.shape != x.shape:
        raise ValueError(
            f"{asked} every element has its own decay: both are [..., n, d]; expand one to the other."
        )
    for name, t in (("x", x), ("decay", decay), ("initial", initial)):
        if t is not None and not t.dtype.is_floating_point:
            raise ValueError(
                f"{asked} {name} is {t.dtype} and states need a floating dtype; convert it first."
            )
    if initial is not None and initial.shape != (*x.shape[:-2], x.shape[-1]):
        raise ValueError(
            f"{asked} initial is {list(initial.shape)} where a state is [..., d], x without its tokens; "
            f"give one of that shape, or None for zeros."
        )


@torch.library.custom_op("subquad::linear_scan", mutates_args=())
def linear_scan(
    x: Tensor, decay: Tensor, initial: Tensor | None = None, log: bool = False, reverse: bool = False
) -> Tensor:
    """h_t = f_t h_(t-1) + x_t for each channel of x [..., n, d]; in time and memory linear in the tokens.

    decay: f [..., n, d], or log f where log=True. initial: the state before [..., d], zero by default.
    reverse: from the last token to the first. Returns h [..., n, d], contiguous, in x's dtype; the
    last state is h[..., -1, :] (the first when reversed). States are float32, or float64 where an
    operand is. Decays are meant to lie within [-1, 1]: above, the product of a block's may overflow.
    Traced, compiled, exported, differentiated, vmapped and counted as one op.

    Source: Qin et al. 2023, arXiv:2311.04823.
    """
    _check(x, decay, initial)
    with torch.autocast(x.device.type, enabled=False):  # it would round states kept in float32
        return _forward(x, decay, initial, log, reverse)


@torch.library.register_fake("subquad::linear_scan", allow_override=True)
def _(x, decay, initial=None, log=False, reverse=False):
    _check(x, decay, initial)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    x, decay, initial, ctx.log, ctx.reverse = inputs
    ctx.dtypes = x.dtype, decay.dtype, None if initial is None else initial.dtype
    ctx.save_for_backward(decay, initial, output)


def _late(x: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """What the token before had of x [..., n, d], `first` [..., d] at the one that has none."""
    first = first.to(x.dtype).unsqueeze(-2)
    if reverse:
        return torch.cat([x[..., 1:, :], first], -2)
    return torch.cat([first, x[..., :-1, :]], -2)


def _differentiate(ctx, grad):
    decay, initial, h = ctx.saved_tensors
    acc, reverse = _accumulator(grad, decay, initial), ctx.reverse
    if grad.numel() == 0:
        zeros = None if initial is None else torch.zeros_like(initial)
        return torch.zeros_like(grad), torch.zeros_like(decay), zeros, None, None
    decay = decay.to(acc)
    zero = torch.zeros_like(decay[..., 0, :])
    dx = linear_scan(grad.to(acc), _late(decay, zero, not reverse), None, ctx.log, not reverse)
    factor = decay.exp() if ctx.log else decay
    before = _late(h.to(acc), zero if initial is None else initial, reverse)
    ddecay = dx * before * factor if ctx.log else dx * before
    start = (Ellipsis, -1 if reverse else 0, slice(None))
    dinitial = None if initial is None else (dx[start] * factor[start]).to(ctx.dtypes[2])
    return dx.to(ctx.dtypes[0]), ddecay.to(ctx.dtypes[1]), dinitial, None, None


linear_scan.register_autograd(_differentiate, setup_context=_save)


def _vmap(info, in_dims: Sequence[int | None], x, decay, initial=None, log=False, reverse=False):
    def mapped(t: Tensor | None, at: int | None) -> Tensor | None:
        if t is None:
            return None
        return t.expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0)

    operands = (mapped(t, at) for t, at in zip((x, decay, initial), in_dims))
    return linear_scan(*operands, log, reverse), 0


linear_scan.register_vmap(_vmap)


@register_flop_formula(torch.ops.subquad.linear_scan)
def _(x, decay, initial=None, log=False, reverse=False, *args, out_shape=None, **kwargs) -> int:
    return (2 + log) * math.prod(x)

"""Linear attention as the torch custom op ``subquad::linear_attention``.

    w_ij = q_i . k_j             causal: only j <= i
    o_i  = sum_j w_ij v_j        normalize: divided by (sum_j w_ij + eps)

Without a softmax the product reassociates, ``(q k^T) v = q (k^T v)``, so the cost is linear in
the number of tokens (Katharopoulos et al. 2020, "Transformers are RNNs", arXiv:2006.16236).
Feature maps are applied by the caller. Here there is only the recurrence

    S_i = S_{i-1} + k_i v_i^T    o_i = S_i^T q_i

computed in chunks: inside a chunk as a small masked product, across chunks through S. Nothing
of size [n, n] is ever made, forward or backward: the backward pass walks the chunks again.

How tensors are laid out inside. With g key heads and r = h // g query heads to each of them,
tokens are gathered as *blocks*: [m * b * g, r * c, d] is m consecutive chunks of c tokens, the
r query heads stacked as rows above the one key head they share. Keys and values are blocks
with r = 1, so grouped queries cost no copy of k and v, and gradients of k and v sum over the
group inside the matrix product. The normaliser is a last value column equal to one: its sums
travel in the last column of S.

A decay will enter in few places: the mask (`_tril`), the state each chunk adds and the carry from
one to the next (`_scan`), and the rows of q where they meet the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula

__all__ = ["linear_attention", "linear_attention_backward"]

# Tokens in a chunk, and rows of work (tokens x batch x key heads) taken at once. Chosen with
#     python tests/benchmarks/bench_linear_attention.py --chunks
# on two Zen 5 cores, f32: a chunk of 128 costs about a fifth more than 64 and 32 is within a
# tenth of it, either way. At 2048 rows of 64 a span's blocks still fit the second-level cache.
CHUNK = 64
ROWS = 2048


def _accumulator(*tensors: Tensor) -> torch.dtype:
    """The dtype of states and sums: float32, or float64 where an input is float64."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


# ---- blocks of tokens -------------------------------------------------------------------------


def _group(x: Tensor, g: int) -> Tensor:
    """[b, h, n, d] as [b, g, r, n, d], always a view: x may be a transposed [b, n, h, d]."""
    return x.unflatten(1, (g, x.shape[1] // g))


Span = tuple[int, int, int]


def _spans(x: Tensor, chunk: int, rows: int | None) -> list[Span]:
    """Cut the tokens of [b, g, r, n, d] into (start, chunks, tokens per chunk)."""
    groups, n = x.shape[0] * x.shape[1], x.shape[3]
    if rows is None:
        # Away from the CPU a launch costs more than a cache miss (this factor is not measured).
        rows = ROWS if x.device.type == "cpu" else 32 * ROWS
    whole, rest = divmod(n, chunk)
    step = max(1, rows // (chunk * groups))
    spans = [(i * chunk, min(step, whole - i), chunk) for i in range(0, whole, step)]
    return spans + [(whole * chunk, 1, rest)] if rest else spans


def _window(x: Tensor, span: Span) -> Tensor:
    """The tokens of a span, [b, g, r, n, d] -> a view [m, b, g, r, c, d]."""
    start, m, c = span
    return x.narrow(3, start, m * c).unflatten(3, (m, c)).permute(3, 0, 1, 2, 4, 5)


def _read(x: Tensor, span: Span, dtype: torch.dtype) -> Tensor:
    """The block [m * b * g, r * c, d] of a span."""
    w = _window(x, span).to(dtype)
    m, b, g, r, c, d = w.shape
    return w.reshape(m * b * g, r * c, d)


def _write(x: Tensor, span: Span, block: Tensor) -> None:
    """Put a block back where `_read` would find it, in x's dtype."""
    w = _window(x, span)
    w.copy_(block.reshape(w.shape))


def _tril(scores: Tensor) -> Tensor:
    """Zero the future, in place, in [blocks, r * c, c]."""
    scores.unflatten(1, (-1, scores.shape[2])).tril_()
    return scores


def _with_ones(v: Tensor, normalize: bool) -> Tensor:
    """v with a last column of ones where there is a normaliser to sum."""
    return pad(v, (0, 1), value=1.0) if normalize else v


def _scan(k: Tensor, v: Tensor, carry: Tensor, back: bool = False) -> tuple[Tensor, Tensor]:
    """Sum k^T v over the chunks of a span on top of carry [b * g, d, e]; back: from the last.

    Returns the state before each chunk, [m * b * g, d, e], and the carry after all of them.
    """
    m = k.shape[0] // carry.shape[0]
    states = carry.new_empty(m + 1, *carry.shape)
    first, added, before = (-1, states[:-1], states[1:]) if back else (0, states[1:], states[:-1])
    states[first] = carry
    torch.bmm(k.mT, v, out=added.flatten(0, 1))
    steps = states.unbind()[:: -1 if back else 1]
    for last, step in pairwise(steps):
        step += last
    return before.flatten(0, 1), steps[-1]


# ---- kernels ----------------------------------------------------------------------------------


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    normalize: bool,
    eps: float,
    chunk: int = CHUNK,
    rows: int | None = None,
) -> Tensor:
    acc, out = _accumulator(q, k, v), q.new_empty(*q.shape[:-1], v.shape[-1])
    if out.numel() == 0:
        return out
    q, k, v, o = (_group(x, k.shape[1]) for x in (q, k, v, out))

    def finish(x: Tensor) -> Tensor:
        return x[..., :-1] / (x[..., -1:] + eps) if normalize else x

    if not causal:
        qs, ks, vs = (_read(x, (0, 1, x.shape[3]), acc) for x in (q, k, v))
        _write(o, (0, 1, q.shape[3]), finish(qs @ (ks.mT @ _with_ones(vs, normalize))))
        return out

    b, g, _, _, d = k.shape
    carry = k.new_zeros(b * g, d, v.shape[-1] + normalize, dtype=acc)
    for span in _spans(k, chunk, rows):
        qs, ks, vs = (_read(x, span, acc) for x in (q, k, v))
        vs = _with_ones(vs, normalize)
        state, carry = _scan(ks, vs, carry)
        _write(o, span, finish((qs @ state).baddbmm_(_tril(qs @ ks.mT), vs)))
    return out


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    normalize: bool,
    eps: float,
    chunk: int = CHUNK,
    rows: int | None = None,
) -> tuple[Tensor, ...]:
    acc, e = _accumulator(grad, q, k, v), v.shape[-1]
    grads = tuple(x.new_empty(x.shape) for x in (q, k, v))
    if 0 in (grad.numel(), q.numel(), k.numel(), v.numel()):
        return tuple(x.zero_() for x in grads)
    (b, g, _, d), r = k.shape, q.shape[1] // k.shape[1]
    grad, q, k, v, dq, dk, dv = (_group(x, g) for x in (grad, q, k, v, *grads))

    if not causal:
        every, each = (0, 1, q.shape[3]), (0, 1, k.shape[3])
        gs, qs = _read(grad, every, acc), _read(q, every, acc)
        ks, vs = _read(k, each, acc), _with_ones(_read(v, each, acc), normalize)
        state = ks.mT @ vs
        dqs = gs @ state[..., :e].mT
        if normalize:
            dqs, gs = _through_normalizer(qs, dqs, state[..., e:].mT, gs, eps)
        dstate = qs.mT @ gs
        _write(dq, every, dqs)
        _write(dk, each, vs @ dstate.mT)
        _write(dv, each, ks @ dstate[..., :e])
        return grads

    # First to last: dq, and with it the gradient of [numerator, normaliser].
    spans = _spans(k, chunk, rows)
    full = grad.new_empty(*grad.shape[:-1], e + 1, dtype=acc) if normalize else grad
    carry = k.new_zeros(b * g, d, e + normalize, dtype=acc)
    for span in spans:
        gs, qs, ks, vs = (_read(x, span, acc) for x in (grad, q, k, v))
        state, carry = _scan(ks, _with_ones(vs, normalize), carry)
        dqs = (gs @ state[..., :e].mT).baddbmm_(_tril(gs @ vs.mT), ks)
        if normalize:
            z = (ks.cumsum(1) + state[..., e:].mT).repeat(1, r, 1)
            dqs, gs = _through_normalizer(qs, dqs, z, gs, eps)
            _write(full, span, gs)
        _write(dq, span, dqs)

    # Last to first: dk and dv, with the gradient of the state as the carry.
    carry = torch.zeros_like(carry)
    for span in reversed(spans):
        gs, qs, ks, vs = (_read(x, span, acc) for x in (full, q, k, v))
        vs = _with_ones(vs, normalize)
        dstate, carry = _scan(qs, gs, carry, back=True)
        _write(dk, span, (vs @ dstate.mT).baddbmm_(_tril(gs @ vs.mT).mT, qs))
        dvs = ks @ dstate[..., :e]
        _write(dv, span, dvs.baddbmm_(_tril(qs @ ks.mT).mT, gs[..., :e]))
    return grads


def _through_normalizer(
    q: Tensor, t: Tensor, z: Tensor, grad: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of q and of [numerator, normaliser] from the gradient of their quotient.

    t is dq were the normaliser constant and one, z the sum of the keys each query sees, so the
    normaliser is q . z + eps, and q . t is grad . numerator: nothing need be kept from forward.
    """
    down = (q * z).sum(-1, keepdim=True) + eps
    ddown = -(q * t).sum(-1, keepdim=True) / down.square()
    return t / down + ddown * z, torch.cat([grad / down, ddown], -1)


# ---- the ops ----------------------------------------------------------------------------------


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    given = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    asked = f"linear_attention was given {given}, but"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(
                f"{asked} {name} has {x.ndim} axes where q is [b, h, n, d], k is [b, g, m, d] and "
                f"v is [b, g, m, e]; add or fold axes so that each has four."
            )
        if not x.dtype.is_floating_point:
            raise ValueError(
                f"{asked} {name} is {x.dtype} and sums of products need a floating dtype; "
                f"convert {name} first, to float32 for example."
            )
    if q.shape[0] != k.shape[0] or q.shape[0] != v.shape[0]:
        raise ValueError(f"{asked} their batch sizes (axis 0) differ; expand them to one size.")
    if k.shape[1] != v.shape[1] or k.shape[2] != v.shape[2]:
        raise ValueError(
            f"{asked} each key needs its value, so heads and tokens (axes 1 and 2) of k and v "
            f"must agree; give k and v of one length and one number of heads."
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(
            f"{asked} q . k needs as many features (axis 3) in q, {q.shape[3]}, as in k, "
            f"{k.shape[3]}; apply the same feature map to both."
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1] != 0:
        raise ValueError(
            f"{asked} {q.shape[1]} query heads cannot be shared out evenly over {k.shape[1]} key "
            f"heads; make the number of query heads a multiple of the number of key heads."
        )
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"{asked} causal=True lines query i up with key i and needs as many queries as keys, "
            f"not {q.shape[2]} and {k.shape[2]}; pass equal lengths, or causal=False."
        )


@torch.library.custom_op("subquad::linear_attention", mutates_args=())
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, normalize: bool, eps: float
) -> Tensor:
    """Attention with weights q . k and no softmax, in time and memory linear in the tokens.

    q [b, h, n, d], k [b, g, m, d], v [b, g, m, e], any floating dtypes; h a multiple of g, query
    head i reads key head i // (h // g). Returns [b, h, n, e], contiguous, in q's dtype.

        w_ij = q_i . k_j                           causal: only j <= i, needs n == m
        o_i  = sum_j w_ij v_j                      normalize: divided by (sum_j w_ij + eps)

    States and sums are float32, or float64 where an input is. Feature maps are the caller's, and
    so is seeing to it that normalisers stay away from zero (a positive feature map does). Traced,
    compiled, exported, differentiated once, vmapped and counted as one op.

    Source: Katharopoulos et al. 2020, arXiv:2006.16236.
    """
    _check(q, k, v, causal)
    with torch.autocast(q.device.type, enabled=False):  # it would round sums kept in float32
        return _forward(q, k, v, causal, normalize, eps)


@torch.library.custom_op("subquad::linear_attention_backward", mutates_args=())
def linear_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, normalize: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `linear_attention` to q, k and v, from grad [b, h, n, e].

    Each comes contiguous, in the shape and dtype of its operand. The chunks are walked twice,
    first to last for dq and last to first for dk and dv; no state is kept from the forward pass.
    """
    _check(q, k, v, causal)
    with torch.autocast(q.device.type, enabled=False):
        dq, dk, dv = _backward(grad, q, k, v, causal, normalize, eps)
    return dq, dk, dv


@torch.library.register_fake("subquad::linear_attention", allow_override=True)
def _(q, k, v, causal, normalize, eps):
    _check(q, k, v, causal)
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.register_fake("subquad::linear_attention_backward", allow_override=True)
def _(grad, q, k, v, causal, normalize, eps):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output):
    *tensors, ctx.causal, ctx.normalize, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad):
    grads = linear_attention_backward(grad, *ctx.saved_tensors, ctx.causal, ctx.normalize, ctx.eps)
    return *grads, None, None, None


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "A second derivative of linear_attention was asked for, and only the first is written; "
        "differentiate once (create_graph=False), or write the attention as plain matmuls."
    )


linear_attention.register_autograd(_differentiate, setup_context=_save)
linear_attention_backward.register_autograd(_no_second_derivative)


def _vmap(op: Callable, tensors: int) -> Callable:
    """A vmap rule that folds the mapped axis of the first `tensors` arguments into the batch."""

    def rule(info, in_dims: Sequence[int | None], *args):
        many = info.batch_size
        mapped = [
            x.expand(many, *x.shape) if at is None else x.movedim(at, 0)
            for x, at in zip(args[:tensors], in_dims)
        ]
        b = mapped[0].shape[1]
        out = op(*(x.flatten(0, 1) for x in mapped), *args[tensors:])
        if isinstance(out, Tensor):
            return out.unflatten(0, (many, b)), 0
        return tuple(x.unflatten(0, (many, b)) for x in out), (0,) * len(out)

    return rule


linear_attention.register_vmap(_vmap(linear_attention, 3))
linear_attention_backward.register_vmap(_vmap(linear_attention_backward, 4))


def _pairs(n: int) -> int:
    """Scores computed for n tokens: each with its whole chunk, the masked half too."""
    whole, rest = divmod(n, CHUNK)
    return whole * CHUNK**2 + rest**2


@register_flop_formula(torch.ops.subquad.linear_attention)
def _(q, k, v, causal, normalize, eps, *args, out_shape=None, **kwargs) -> int:
    (b, h, n, d), (_, g, m, e) = q, v
    e += normalize
    inside = h * _pairs(n) * (d + e) if causal else 0
    return 2 * b * (inside + (h * n + g * m) * d * e)


@register_flop_formula(torch.ops.subquad.linear_attention_backward)
def _(grad, q, k, v, causal, normalize, eps, *args, out_shape=None, **kwargs) -> int:
    (b, h, n, d), (_, g, m, e) = q, v
    full = e + normalize
    inside = h * _pairs(n) * (3 * d + 2 * e + full) if causal else 0
    return 2 * b * (inside + h * n * d * (e + full) + g * m * d * (e + 2 * full))

"""The custom ops: what they refuse, their gradients, vmap and FLOPs. The work is in `kernels`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .check import check, heads
from .kernels import CHUNK, SMALL_CHUNK, backward, final_dtype, forward

__all__ = ["linear_attention", "linear_attention_backward", "linear_attention_final"]


@torch.library.custom_op("subquad::linear_attention", mutates_args=())
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, normalize: bool, eps: float = 0.0,
    decay: Tensor | None = None, beta: Tensor | None = None, state: Tensor | None = None,
    segments: Tensor | None = None, reverse: bool = False,
) -> Tensor:  # fmt: skip
    """One recurrence over tokens, in time and memory linear in their number.

        S_t = exp(decay_t) S_{t-1} + k_t u_t^T            o_t = S_t^T q_t
        u_t = v_t                                         or, with beta, the delta rule:
        u_t = beta_t (v_t - (exp(decay_t) S_{t-1})^T k_t)

    q [b, hq, n, d], k [b, hk, m, d], v [b, hv, m, e], of any floating dtypes. The result has H =
    max(hq, hk, hv) heads, each of which divides H: head i reads key head i // (H // hk). Returns
    [b, H, n, e], contiguous, in q's dtype. States and sums are float32, or float64 where an operand is.

    decay: log decay <= 0, where -inf forgets all: [H] a constant for each head (RetNet
    arXiv:2307.08621, Lightning arXiv:2401.04658), [b, H, n] (Mamba-2 arXiv:2405.21060), or [b, H, n, d]
    for each feature of the keys (GLA arXiv:2312.06635, KDA arXiv:2510.26692).
    beta: [b, H, n], the delta rule (arXiv:2406.06484, gated arXiv:2412.06464).
    normalize: each row divided by what the recurrence gives for v = 1, plus eps; not with beta.
    causal=False: all keys count for each query. Without decay and segments n may differ from m. With a
    decay, token j counts for token i with exp(decay_{j+1} + .. + decay_i) where j <= i, and with
    exp(decay_i + .. + decay_{j-1}) where j > i: the recurrence from the left plus that from the
    right, the token itself counted once. Not with beta, reverse or a state.
    reverse: from the last token to the first. state: [b, H, d, e], the state before the first token
    read (e + 1 columns with normalize; the last sums keys). segments: integers [b, n], equal for the
    tokens of one of several sequences laid end to end; nothing crosses from one to the next, and state
    is that of the first read. See `segments_of` for cu_seqlens. A padding token is neutral where its k, v,
    decay and beta are 0.

    Raises ValueError for what does not fit. Traced, compiled, exported, differentiated once, vmapped
    and counted as one op. Feature maps are the caller's, and so is keeping normalisers from zero.
    """
    given = decay, beta, state, segments
    check(q, k, v, causal, normalize, *given, reverse)
    with torch.autocast(q.device.type, enabled=False):  # it would round sums kept in float32
        return forward(q, k, v, causal, normalize, eps, *given, reverse)[0]


@torch.library.custom_op("subquad::linear_attention_final", mutates_args=())
def linear_attention_final(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, normalize: bool, eps: float = 0.0,
    decay: Tensor | None = None, beta: Tensor | None = None, state: Tensor | None = None,
    segments: Tensor | None = None, reverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`linear_attention` and the state after the last token read, float32 or float64 [b, H, d, e].

    With normalize the state has e + 1 columns. It is what `state` takes to go on. Needs causal=True.
    Raises ValueError for what does not fit.
    """
    given = decay, beta, state, segments
    check(q, k, v, causal, normalize, *given, reverse, final=True)
    with torch.autocast(q.device.type, enabled=False):
        out, last = forward(q, k, v, causal, normalize, eps, *given, reverse)
    h = out.shape[1] // max(last.shape[1], 1)
    return out, last.repeat_interleave(h, 1) if h != 1 else last.clone()


@torch.library.custom_op("subquad::linear_attention_backward", mutates_args=())
def linear_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, normalize: bool, eps: float = 0.0,
    decay: Tensor | None = None, beta: Tensor | None = None, state: Tensor | None = None,
    segments: Tensor | None = None, reverse: bool = False, grad_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, decay, beta and state, from those of the output and the final state.

    Each is contiguous, in the shape and dtype of its operand; empty for an operand that is absent.
    The chunks are walked forwards for the state before each, then backwards. States are kept for that
    long, of one head where it is worked on alone, and none from the forward pass.
    """
    given = decay, beta, state, segments
    check(q, k, v, causal, normalize, *given, reverse, final=grad_state is not None)
    if grad_state is not None and state is None and beta is None and decay is None and segments is None:
        shared = max(k.shape[1], v.shape[1])  # heads with one state: their gradients add up
        grad_state = grad_state.unflatten(1, (shared, -1)).sum(2)
    with torch.autocast(q.device.type, enabled=False):
        grads = backward(grad, q, k, v, causal, normalize, eps, *given, reverse, grad_state)
    dq, dk, dv, *rest = (q.new_empty(0) if x is None else x for x in grads)
    assert len(rest) == 3
    return dq, dk, dv, rest[0], rest[1], rest[2]


@torch.library.register_fake("subquad::linear_attention", allow_override=True)
def _(q, k, v, causal, normalize, eps=0.0, decay=None, beta=None, state=None, segments=None, reverse=False):
    check(q, k, v, causal, normalize, decay, beta, state, segments, reverse)
    return q.new_empty(q.shape[0], heads(q, k, v), q.shape[2], v.shape[3])


@torch.library.register_fake("subquad::linear_attention_final", allow_override=True)
def _(q, k, v, causal, normalize, eps=0.0, decay=None, beta=None, state=None, segments=None, reverse=False):
    check(q, k, v, causal, normalize, decay, beta, state, segments, reverse, final=True)
    b, h, e = q.shape[0], heads(q, k, v), v.shape[3]
    dtype = final_dtype(q, k, v, decay, beta, state)
    return q.new_empty(b, h, q.shape[2], e), q.new_empty(b, h, k.shape[3], e + normalize, dtype=dtype)


@torch.library.register_fake("subquad::linear_attention_backward", allow_override=True)
def _(grad, q, k, v, causal, normalize, eps=0.0, decay=None, beta=None, state=None, segments=None,
      reverse=False, grad_state=None):  # fmt: skip
    operands = (q, k, v, decay, beta, state)
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in operands)


def _save(ctx, inputs, output):
    q, k, v, ctx.causal, ctx.normalize, ctx.eps, decay, beta, state, segments, ctx.reverse = inputs
    ctx.save_for_backward(q, k, v, decay, beta, state, segments)


def _differentiate(ctx, grad, grad_state=None):
    q, k, v, *given = ctx.saved_tensors
    grads = linear_attention_backward(
        grad, q, k, v, ctx.causal, ctx.normalize, ctx.eps, *given, ctx.reverse, grad_state
    )
    ours = [x if like is not None else None for x, like in zip(grads, (q, k, v, *given[:3]))]
    return *ours[:3], None, None, None, *ours[3:], None, None


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "A second derivative of linear_attention was asked for, and only the first is written; "
        "differentiate once (create_graph=False), or write the attention as plain matmuls."
    )


linear_attention.register_autograd(_differentiate, setup_context=_save)
linear_attention_final.register_autograd(_differentiate, setup_context=_save)
linear_attention_backward.register_autograd(_no_second_derivative)


def _vmap(op: Callable, names: Sequence[str]) -> Callable:
    """A vmap rule that folds the mapped axis of the arguments into the batch.

    A constant decay becomes one of each token where something else is mapped: its gradient would be
    summed over the batch.
    """
    tensors = {"grad", "q", "k", "v", "decay", "beta", "state", "segments", "grad_state"}

    def rule(info, in_dims: Sequence[int | None], *args):
        many = info.batch_size
        args = (*args, *(None,) * (len(names) - len(args)))  # trailing defaults may be left out
        folded: list = []
        constant = False
        for name, x, at in zip(names, args, (*in_dims, *(None,) * len(names))):
            if name == "reverse":
                x = bool(x)
            if name not in tensors or x is None:
                folded.append(x)
                continue
            x = x.expand(many, *x.shape) if at is None else x.movedim(at, 0)
            if name == "decay" and x.ndim == 2:
                constant, q = True, folded[names.index("q")]
                b, n = q.shape[0] // many, q.shape[2]
                x = x[:, None, :, None].expand(many, b, x.shape[1], n)
            folded.append(x.flatten(0, 1))
        out = op(*folded)
        if isinstance(out, Tensor):
            return out.unflatten(0, (many, -1)), 0
        results = [x.unflatten(0, (many, -1)) if x.numel() or x.ndim > 1 else x for x in out]
        if constant and len(results) == 6:
            results[3] = results[3].sum((1, 3))
        return tuple(results), tuple(0 if x.ndim > 1 else None for x in results)

    return rule


FORWARD = ("q", "k", "v", "causal", "normalize", "eps", "decay", "beta", "state", "segments", "reverse")
linear_attention.register_vmap(_vmap(linear_attention, FORWARD))
linear_attention_final.register_vmap(_vmap(linear_attention_final, FORWARD))
linear_attention_backward.register_vmap(_vmap(linear_attention_backward, ("grad", *FORWARD, "grad_state")))


def _pairs(n: int, chunk: int) -> int:
    """Scores computed for n tokens: each with its whole chunk, the masked half too."""
    whole, rest = divmod(n, chunk)
    return whole * chunk**2 + rest**2


def _shape(q, k, v, normalize, decay, beta, state, segments):
    """Heads, heads with a state of their own, and pairs of tokens in one head's chunks."""
    h = max(x[1] for x in (q, k, v))
    plain = decay is None and beta is None and state is None and segments is None
    g = max(k[1], v[1]) if plain else h
    channel = decay is not None and len(decay) == 4 and decay[3] > 1
    return h, g, _pairs(q[2], SMALL_CHUNK if channel or beta is not None else CHUNK)


@register_flop_formula([torch.ops.subquad.linear_attention, torch.ops.subquad.linear_attention_final])
def _(q, k, v, causal, normalize, eps=0.0, decay=None, beta=None, state=None, segments=None, reverse=False,
      *args, out_shape=None, **kwargs) -> int:  # fmt: skip
    """Products; decays pair by pair count as the product that they replace, solving not at all."""
    (b, _, n, d), m, e = q, k[2], v[3] + normalize
    h, g, pairs = _shape(q, k, v, normalize, decay, beta, state, segments)
    if not causal and decay is None and segments is None:
        return 2 * b * (h * n + g * m) * d * e
    if causal and n == 1:
        return 2 * b * (h + g + (h if beta is not None else 0)) * d * e
    once = h * pairs * (d + e) + (h + g) * n * d * e
    if beta is not None:  # pairs of keys, U and W, and W S
        once += h * pairs * (2 * d + e) + h * n * d * e
    return 2 * b * once * (1 if causal else 2)


@register_flop_formula(torch.ops.subquad.linear_attention_backward)
def _(grad, q, k, v, causal, normalize, eps=0.0, decay=None, beta=None, state=None, segments=None,
      reverse=False, grad_state=None, *args, out_shape=None, **kwargs) -> int:  # fmt: skip
    (b, _, n, d), m, e = q, k[2], v[3] + normalize
    h, g, pairs = _shape(q, k, v, normalize, decay, beta, state, segments)
    if not causal and decay is None and segments is None:
        again = h * n if normalize else 0
        return 2 * b * (3 * g * m + 2 * h * n + again) * d * e
    # To the states, and to the output where it is normalised; scores; dq and dS, dk, dv.
    sweep = g * n * d * e + (h * (pairs * (d + e) + n * d * e) if normalize else 0)
    once = sweep + h * pairs * (3 * d + 2 * e) + (2 * h + 2 * g) * n * d * e
    if beta is not None:
        once += 2 * h * pairs * (2 * d + e) + h * n * d * e  # pairs, U and W again on the way back
        once += h * n * d * e * 2 + h * pairs * (d + e) * 2 + 2 * h * pairs * d
    return 2 * b * once * (1 if causal else 2)

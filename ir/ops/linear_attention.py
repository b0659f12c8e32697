"""One recurrence for every linear mixer: its shapes, its meaning token by token, its body in parallel."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import Value
from ..declare import Float, Integer, Real, composite
from ..dims import Dim, ceildiv
from ..errors import IRError
from ..types import TensorType, f32, f64, promote
from . import elementwise as e
from . import graph, index, linear, shape
from . import reduce as r
from .activation import as_dtype, wide
from .attention import band, swap

CHUNK = 64
"""Tokens that the recurrence takes at once, in a backend and so in the cost."""
SMALL_CHUNK = 32
"""The same with the delta rule or a decay of each feature, where pairs inside a chunk cost more."""
FLOOR = -800.0
"""A log decay that leaves nothing in float64; -inf would make inf - inf."""


def _text(x: TensorType | Value) -> str:
    return ",".join(map(str, x.shape))


def _heads(*xs: TensorType | Value) -> Dim:
    """The number of heads that each operand's divides."""
    counts = [x.shape[1] for x in xs]
    for most in counts:
        if all(h != 0 and (most // h) * h == most for h in counts):
            return most
    raise IRError(
        f"{', '.join(map(str, counts))} heads of q, k and v: one number has to be a multiple of each"
    )


def _fit(q, k, v, decay, beta, state, segments, causal, normalize, reverse, final) -> Dim:
    """The number of heads. Raises IRError where the operands do not go together."""
    if not q.rank == k.rank == v.rank == 4:
        raise IRError(f"q, k and v need four axes [b,h,n,d], given {q.rank}, {k.rank} and {v.rank}")
    if k.shape[2] != v.shape[2]:
        raise IRError(f"k [{_text(k)}] and v [{_text(v)}] differ in tokens, axis 2")
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise IRError(f"batch sizes differ: {q.shape[0]}, {k.shape[0]} and {v.shape[0]}")
    if q.shape[3] != k.shape[3]:
        raise IRError(f"q has {q.shape[3]} features a head, k has {k.shape[3]}")
    h, (b, _, n, d) = _heads(q, k, v), q.shape
    if (causal or decay is not None or segments is not None) and n != k.shape[2]:
        what = "causal=True" if causal else "a decay or segments"
        raise IRError(f"{what} requires as many queries as keys, not {n} and {k.shape[2]}")
    if not causal:
        for name, there in (("beta", beta), ("state", state), ("reverse", reverse), ("final", final)):
            if there is not None and there is not False:
                raise IRError(f"{name} is of a recurrence from one side: it requires causal=True")
    if beta is not None and normalize:
        raise IRError("the delta rule (beta) has no sum of weights to divide by; pass normalize=False")
    shapes: dict[str, tuple[Any, list[tuple[Dim, ...]]]] = {
        "decay": (decay, [(h,), (b, h, n), (b, h, n, d)]), "beta": (beta, [(b, h, n)]),
        "state": (state, [(b, h, d, v.shape[3] + int(normalize))]), "segments": (segments, [(b, n)]),
    }  # fmt: skip
    for name, (x, allowed) in shapes.items():
        if x is not None and x.shape not in allowed:
            forms = " or ".join("[" + ",".join(map(str, form)) + "]" for form in allowed)
            raise IRError(f"{name} [{_text(x)}] is not {forms}")
    return h


def _types(q, k, v, decay=None, beta=None, state=None, segments=None, *, causal, normalize, eps,
           reverse, final):  # fmt: skip
    h = _fit(q, k, v, decay, beta, state, segments, causal, normalize, reverse, final)
    out = q.with_(shape=(q.shape[0], h, q.shape[2], v.shape[3]))
    if not final:
        return out
    return out, _state(q, k, v, decay, beta, state, h, normalize)


def _state(q, k, v, decay, beta, state, heads, normalize) -> TensorType:
    """Of so many heads."""
    double = any(x is not None and x.dtype is f64 for x in (q, k, v, decay, beta, state))
    columns = v.shape[3] + int(normalize)
    return TensorType(f64 if double else f32, (q.shape[0], heads, q.shape[3], columns))


def _flops(q, k, v, decay=None, beta=None, state=None, segments=None, *, causal, normalize, eps,
           reverse, final) -> Dim:  # fmt: skip
    """Products of the recurrence in chunks, the masked halves included.

    A decay inside a chunk counts as the product that it takes part in, the inverse of the delta rule
    not at all. The last chunk of an open number of tokens counts as a whole one.
    """
    (b, _, n, d), m, width = q.shape, k.shape[2], v.shape[3] + int(normalize)
    h, g = _states(q, k, v, decay, beta, state, segments)
    total = (h * n + g * m) * d * width
    both = not causal and (decay is not None or segments is not None)
    if causal and n == 1:  # as in decoding: no chunk
        return 2 * b * (total + (0 if beta is None else h * d * width))
    if causal or both:
        total = total + h * _pairs(n, _chunk(decay, beta)) * (d + width)
    if beta is not None:
        total = total + h * (_pairs(n, SMALL_CHUNK) * (2 * d + width) + n * d * width)
    return 2 * b * total * (2 if both else 1)


def _bytes(q, k, v, decay=None, beta=None, state=None, segments=None, *, causal, normalize, eps,
           reverse, final) -> Dim:  # fmt: skip
    """Operands and result, once from each side; and each chunk reads a state and writes the next."""
    h, g = _states(q, k, v, decay, beta, state, segments)
    out = q.with_(shape=(q.shape[0], h, q.shape[2], v.shape[3]))
    tokens = sum(x.bytes for x in (q, k, v, decay, beta, segments, out) if x is not None)
    each = _state(q, k, v, decay, beta, state, g, normalize).bytes
    if not causal and decay is None and segments is None:  # one state of all keys
        return tokens + 2 * each
    return (tokens + 2 * ceildiv(q.shape[2], _chunk(decay, beta)) * each) * (1 if causal else 2)


def _states(q, k, v, decay, beta, state, segments) -> tuple[Dim, Dim]:
    """Heads, and heads with a state of their own: query heads share what nothing tells apart."""
    plain = decay is None and beta is None and state is None and segments is None
    return _heads(q, k, v), _heads(k, v) if plain else _heads(q, k, v)


def _chunk(decay, beta) -> int:
    """Tokens that are taken at once."""
    channel = decay is not None and decay.rank == 4 and decay.shape[3] != 1
    return SMALL_CHUNK if channel or beta is not None else CHUNK


def _pairs(n: Dim, chunk: int) -> Dim:
    """Pairs of tokens within the chunks of n."""
    if not isinstance(n, int):
        return n * chunk
    whole, rest = divmod(n, chunk)
    return whole * chunk**2 + rest**2


# ---- the meaning: token by token -----------------------------------------------------------------


def _recurrent(q, k, v, decay=None, beta=None, state=None, segments=None, *, causal, normalize, eps,
               reverse, final):  # fmt: skip
    h = max(x.shape[1] for x in (q, k, v))
    q, k, v = (np.repeat(x, h // x.shape[1], axis=1) for x in (q, k, v))
    v = np.concatenate([v, np.ones_like(v[..., :1])], axis=-1) if normalize else v
    (b, h, n, d), last = q.shape, None
    g = np.zeros((b, h, n, 1))
    if decay is not None:
        g = g + (decay[:, None, None] if decay.ndim == 1 else decay[..., None] if decay.ndim == 3 else decay)

    def run(order):
        S = np.zeros((b, h, d, v.shape[3])) if state is None else state
        out, before = np.empty((b, h, n, v.shape[3])), None
        for t in order:
            S = S * np.exp(g[:, :, t, :, None])
            if segments is not None and before is not None:
                S = np.where((segments[:, t] == segments[:, before])[:, None, None, None], S, 0.0)
            u = v[:, :, t]
            if beta is not None:
                u = beta[:, :, t, None] * (u - (k[:, :, t, None, :] @ S)[:, :, 0])
            S = S + k[:, :, t, :, None] * u[:, :, None, :]
            out[:, :, t] = (q[:, :, t, None, :] @ S)[:, :, 0]
            before = t
        return out, S

    if not causal and decay is None and segments is None:
        out = q @ (np.swapaxes(k, 2, 3) @ v)
    elif causal:
        out, last = run(range(n)[::-1] if reverse else range(n))
    else:
        own = (q * k).sum(-1, keepdims=True) * v
        out = run(range(n))[0] + run(range(n)[::-1])[0] - own
    out = out[..., :-1] / (out[..., -1:] + eps) if normalize else out
    return (out, last) if final else out


# ---- the body: in parallel -----------------------------------------------------------------------


def _body(q, k, v, decay=None, beta=None, state=None, segments=None, *, causal, normalize, eps,
          reverse, final):  # fmt: skip
    h = _fit(q, k, v, decay, beta, state, segments, causal, normalize, reverse, final)
    given, (b, _, n, _), m = q.dtype, q.shape, k.shape[2]
    dtype = promote(*(wide(x).type for x in (q, k, v, decay, beta, state) if x is not None))
    q, k, v = (_repeated(as_dtype(x, dtype), h) for x in (q, k, v))
    decay, beta, state = (x if x is None else as_dtype(x, dtype) for x in (decay, beta, state))
    if normalize:
        one = shape.expand(graph.const(value=1.0, dtype=dtype), size=(b, h, m, 1))
        v = shape.cat(v, one, dim=3)
    if reverse:
        q, k, v = (shape.flip(x, dims=(2,)) for x in (q, k, v))
        decay = decay if decay is None or decay.rank == 1 else shape.flip(decay, dims=(2,))
        beta = beta if beta is None else shape.flip(beta, dims=(2,))
        segments = segments if segments is None else shape.flip(segments, dims=(1,))
    sums, apart = _sums(decay, b, h, n), _same(segments, b, n)
    if sums is None and apart is None and not causal:
        out, last = linear.matmul(q, linear.matmul(swap(k), v)), None
    else:
        weigh = _weights(sums, apart, causal, n)
        lower = None if beta is None else shape.tril(weigh(k, k), diagonal=-1)
        u, met = v, None
        if state is not None:
            met = _from_first(sums, segments, b, h, n, dtype)
        if beta is not None:
            column = shape.reshape(beta, shape=(b, h, n, 1))
            old = v if state is None else v - linear.matmul(k if met is None else k * met, state)
            u = linear.matmul(_unit_inverse(lower * column, n), column * old)
        out = linear.matmul(weigh(q, k), u)
        if state is not None:
            out = out + linear.matmul(q if met is None else q * met, state)
        last = _last(k, u, sums, segments, state, met, n) if final else None
    if normalize:
        e_ = v.shape[3] - 1
        total = shape.slice_(out, dim=3, start=e_, end=e_ + 1)
        out = shape.slice_(out, dim=3, start=0, end=e_) / (total + eps)
    out = as_dtype(shape.flip(out, dims=(2,)) if reverse else out, given)
    return (out, last) if final else out


def _repeated(x: Value, h: Dim) -> Value:
    """[b,g,n,d] with each head repeated to h heads."""
    b, g, n, d = x.shape
    if g == h:
        return x
    x = shape.expand(shape.reshape(x, shape=(b, g, 1, n, d)), size=(b, g, h // g, n, d))
    return shape.reshape(x, shape=(b, h, n, d))


def _sums(decay: Value | None, b: Dim, h: Dim, n: Dim) -> tuple[Value, Value] | None:
    """Running sums [b,h,n,1 or d] of the log decay, and each token's own."""
    if decay is None:
        return None
    decay = e.maximum(decay, FLOOR)
    if decay.rank == 1:
        decay = shape.expand(shape.reshape(decay, shape=(1, h, 1, 1)), size=(b, h, n, 1))
    elif decay.rank == 3:
        decay = shape.reshape(decay, shape=(b, h, n, 1))
    return r.cumsum(decay, dim=2), decay


def _same(segments: Value | None, b: Dim, n: Dim) -> Value | None:
    """bool[b,1,n,n]: tokens of one sequence."""
    if segments is None:
        return None
    rows = shape.reshape(segments, shape=(b, 1, n, 1))
    return e.eq(rows, shape.reshape(segments, shape=(b, 1, 1, n)))


def _weights(sums, apart, causal, n):
    """The function of a and b [b,h,n,d] that gives their decayed scores [b,h,n,n]."""
    keep = band(n, n, causal=True) if causal else None
    if apart is not None:
        keep = apart if keep is None else e.logical_and(keep, apart)

    def weigh(a: Value, k: Value) -> Value:
        if sums is None:
            return e.where(keep, linear.matmul(a, swap(k)), 0.0)
        total, own = sums
        b, h, _, w = total.shape
        exponent = shape.reshape(total, shape=(b, h, n, 1, w)) - shape.reshape(total, shape=(b, h, 1, n, w))
        if not causal:  # from i to j - 1 where j > i
            past = total - own
            other = shape.reshape(past, shape=(b, h, 1, n, w)) - shape.reshape(past, shape=(b, h, n, 1, w))
            left = shape.reshape(band(n, n, causal=True), shape=(n, n, 1))
            exponent = e.where(left, exponent, other)
        if keep is not None:  # before exp, which could overflow
            exponent = e.where(shape.reshape(keep, shape=(*keep.shape, 1)), exponent, float("-inf"))
        weights = e.exp(exponent)
        if w == 1:
            return linear.matmul(a, swap(k)) * shape.reshape(weights, shape=(b, h, n, n))
        d = a.shape[3]
        pairs = shape.reshape(a, shape=(b, h, n, 1, d)) * shape.reshape(k, shape=(b, h, 1, n, d))
        return r.sum_(pairs * weights, dim=(4,))

    return weigh


def _from_first(sums, segments, b, h, n, dtype) -> Value | None:
    """What is left at each token of the state before all, [b,h or 1,n,1 or d]; None for all of it."""
    left = None if sums is None else e.exp(sums[0])
    if segments is None:
        return left
    first = e.eq(segments, shape.slice_(segments, dim=1, start=0, end=1))
    first = as_dtype(shape.reshape(first, shape=(b, 1, n, 1)), dtype)
    return first if left is None else left * first


def _last(k, u, sums, segments, state, met, n) -> Value:
    """The state after the last token."""
    if sums is not None:
        end = shape.slice_(sums[0], dim=2, start=n - 1, end=n)
        k = k * e.exp(end - sums[0])
    if segments is not None:
        b = segments.shape[0]
        inside = e.eq(segments, shape.slice_(segments, dim=1, start=n - 1, end=n))
        k = k * as_dtype(shape.reshape(inside, shape=(b, 1, n, 1)), k.dtype)
    last = linear.matmul(swap(k), u)
    if state is None:
        return last
    if met is None:
        return last + state
    return last + swap(shape.slice_(met, dim=2, start=n - 1, end=n)) * state


def _unit_inverse(lower: Value, n: Dim) -> Value:
    """(1 + lower)^-1 for strictly lower triangular [b,h,n,n], as a product: its n-th power is 0."""
    if not isinstance(n, int):
        raise IRError(
            f"the delta rule (beta) in parallel needs a number of tokens, not {n}: its inverse takes log2 n "
            f"products; give a size, or a backend that runs linear_attention itself"
        )
    power = -lower
    inverse, done = index.eye(n=n, m=n, dtype=lower.dtype) + power, 2
    while done < n:
        power = linear.matmul(power, power)
        inverse, done = inverse + linear.matmul(inverse, power), done * 2
    return inverse


@composite(flops=_flops, bytes=_bytes, numpy=_recurrent, infer=_types)
def linear_attention(
    q: Float, k: Float, v: Float, decay: Real | None = None, beta: Real | None = None,
    state: Real | None = None, segments: Integer | None = None, *, causal: bool, normalize: bool,
    eps: float = 0.0, reverse: bool = False, final: bool = False,
):  # fmt: skip
    """The recurrence S_t = exp(decay_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, for every linear mixer.

    q [b,hq,n,d], k [b,hk,m,d], v [b,hv,m,e]; the result has H = the most heads, [b,H,n,e], and fewer
    are repeated. Without decay: attention with weights q k^T and no softmax (arXiv:2006.16236).
    decay: log decay <= 0, -inf forgets: [H] (arXiv:2307.08621), [b,H,n] (arXiv:2405.21060), or
    [b,H,n,d] by feature of the keys (arXiv:2312.06635). beta: [b,H,n], the delta rule: v_t becomes
    beta_t (v_t - S'^T k_t), S' = exp(decay_t) S_{t-1} (arXiv:2406.06484, arXiv:2412.06464).
    causal=False: all keys count; with a decay token j counts for i by exp(decay_{j+1} + .. + decay_i)
    where j <= i and by exp(decay_i + .. + decay_{j-1}) where j > i. reverse: from last to first.
    normalize: each row divided by what it is for v = 1, plus eps. segments: integers [b,n], one
    number for each run of tokens that nothing leaves or enters. state, and with final=True a second result:
    what is before and after the tokens, [b,H,d,e], with normalize e + 1 columns. Padding is neutral
    where k, v, decay and beta are 0. The body is the parallel form (with beta for a known n); backends
    and the oracle run the recurrence, linear in tokens.
    """
    return _body(q, k, v, decay, beta, state, segments, causal=causal, normalize=normalize, eps=eps,
                 reverse=reverse, final=final)  # fmt: skip

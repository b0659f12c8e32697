"""The selective scan of Mamba: a recurrence of its own for each channel, steered by the tokens."""

from __future__ import annotations

from ....ir import OPS, Value
from ....ir.ops.activation import as_dtype
from ....ir.ops.elementwise import exp, log
from ....ir.ops.linear import matmul
from ....ir.ops.nonlinear import softplus
from ....ir.ops.scan import linear_scan
from ....ir.ops.shape import expand, reshape, slice_
from ....ir.types import i64
from ..recipe import Mixing
from .gates import filled, flat, from_tokens, heads_of, short_conv, step_start

LEARNS = {
    "read": "N(0, 1 / channels)", "dt": "N(0, 1 / rank)", "dt_bias": "steps log-uniform in 0.001 .. 0.1",
    "A_log": "ln 1, ln 2, .., ln state", "D": "1",
}  # fmt: skip
"""What one scan learns, and what that starts from."""


def selective(site: Mixing, x: Value, *, state: int, rank: int, name: str = "") -> Value:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t, y_t = C_t . h_t + D x_t, by channel of x [b, n, c].

    h has `state` numbers for each channel, A = -exp(A_log) [c, state]; B and C [b, n, state] and dt, of
    rank `rank`, are read off x: dt = softplus(W r + bias), [r, B, C] = x W. Padded tokens change no
    state. Mamba (arXiv:2312.00752). The same as linear_attention with a head for each channel, values of
    one feature and B as keys; as a scan it holds all states, [b, n, c * state], in half of the time.
    """
    b, n, c = x.shape
    parts = from_tokens(site, x, f"{name}read", rank + 2 * state, random=True)
    r, B, C = (
        slice_(parts, dim=2, start=start, end=end)
        for start, end in ((0, rank), (rank, rank + state), (rank + state, rank + 2 * state))
    )
    dt = softplus(from_tokens(site, r, f"{name}dt", c, bias=step_start(parts.dtype, c), random=True))
    dt = reshape(site.kept(reshape(dt, shape=(b, 1, n, c))), shape=(b, n, c, 1))
    place = as_dtype(OPS["arange"](start=1, end=state + 1, dtype=i64), parts.dtype)
    A_log = site.learn(f"{name}A_log", expand(reshape(log(place), shape=(1, state)), size=(c, state)))
    u = reshape(as_dtype(x, parts.dtype), shape=(b, n, c, 1))
    written = dt * u * reshape(B, shape=(b, n, 1, state))
    steps = dt * -exp(A_log)
    written, steps = (reshape(t, shape=(b, n, c * state)) for t in (written, steps))
    h = linear_scan(written, steps, log=True)
    y = matmul(reshape(h, shape=(b, n, c, state)), reshape(C, shape=(b, n, state, 1)))
    y = y + u * reshape(site.learn(f"{name}D", filled(1.0, u.dtype, c)), shape=(c, 1))
    return reshape(y, shape=(b, n, c))


def convolved(site: Mixing, x: Value, name: str, width: int) -> Value:
    """silu of a causal depthwise convolution of x [b, n, c], which starts as the identity."""
    return flat(short_conv(site, heads_of(x, 1), name, width))

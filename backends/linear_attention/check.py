"""What the op refuses, each with a sentence: what was given, why it cannot be, what to do."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check", "heads", "segments_of"]


def heads(q: Tensor, k: Tensor, v: Tensor) -> int:
    """The number of heads of the result: the most of any operand."""
    return max(q.shape[1], k.shape[1], v.shape[1])


def check(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, normalize: bool, decay: Tensor | None = None,
    beta: Tensor | None = None, state: Tensor | None = None, segments: Tensor | None = None,
    reverse: bool = False, final: bool = False,
) -> None:  # fmt: skip
    """Raise ValueError for operands that do not fit together."""
    given = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    asked = f"linear_attention was given {given}, but"
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(
                f"{asked} {name} has {x.ndim} axes where q is [b, h, n, d], k is [b, g, m, d] and "
                f"v is [b, g, m, e]; add or fold axes so that each has four."
            )
    more = (("decay", decay), ("beta", beta), ("state", state))
    for name, y in (("q", q), ("k", k), ("v", v), *more):
        if y is not None and not y.dtype.is_floating_point:
            raise ValueError(
                f"{asked} {name} is {y.dtype} and sums of products need a floating dtype; "
                f"convert {name} first, to float32 for example."
            )
    if q.shape[0] != k.shape[0] or q.shape[0] != v.shape[0]:
        raise ValueError(f"{asked} their batch sizes (axis 0) differ; expand them to one size.")
    if k.shape[2] != v.shape[2]:
        raise ValueError(
            f"{asked} each key needs its value, so tokens (axis 2) of k and v must agree; give k and v "
            f"of one length."
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(
            f"{asked} q . k needs as many features (axis 3) in q, {q.shape[3]}, as in k, "
            f"{k.shape[3]}; apply the same feature map to both."
        )
    h = heads(q, k, v)
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.shape[1] == 0 or h % x.shape[1] != 0:
            raise ValueError(
                f"{asked} {h} heads cannot be shared out evenly over {x.shape[1]} {name} heads; make the "
                f"most heads of any operand a multiple of each."
            )
    recurrent = causal or decay is not None or segments is not None
    if recurrent and q.shape[2] != k.shape[2]:
        what = "causal=True" if causal else "a decay or segments"
        raise ValueError(
            f"{asked} {what} lines query i up with key i and needs as many queries as keys, "
            f"not {q.shape[2]} and {k.shape[2]}; pass equal lengths, or causal=False without decay."
        )
    if not causal:
        one_sided = {"beta": beta is not None, "reverse": reverse, "state": state is not None, "final": final}
        for name, there in one_sided.items():
            if there:
                raise ValueError(
                    f"{asked} {name} belongs to a recurrence from one side, and causal=False looks to "
                    f"both; pass causal=True, or leave {name} out."
                )
    if beta is not None and normalize:
        raise ValueError(
            f"{asked} the delta rule (beta) corrects values and has no sum of weights to divide by; pass "
            f"normalize=False, and normalise the keys instead."
        )
    _check_more(asked, q, k, v, normalize, decay, beta, state, segments)


def _check_more(asked, q, k, v, normalize, decay, beta, state, segments) -> None:
    (b, _, n, d), h, e = q.shape, heads(q, k, v), v.shape[3] + normalize
    wanted: dict[str, tuple[Tensor | None, dict[int, tuple[int, ...]], str]] = {
        "decay": (decay, {1: (h,), 3: (b, h, n), 4: (b, h, n, d)}, "[H], [b, H, n] or [b, H, n, d]"),
        "beta": (beta, {3: (b, h, n)}, "[b, H, n]"),
        "state": (state, {4: (b, h, d, e)}, "[b, H, d, e], e counting one more with normalize"),
        "segments": (segments, {2: (b, n)}, "[b, n]"),
    }
    for name, (x, shapes, words) in wanted.items():
        if x is not None and (x.ndim not in shapes or tuple(x.shape) != shapes[x.ndim]):
            raise ValueError(
                f"{asked} {name} {list(x.shape)} is none of {words} with H = {h}; broadcast or reshape it."
            )
    if segments is not None and (segments.dtype.is_floating_point or segments.dtype == torch.bool):
        raise ValueError(
            f"{asked} segments is {segments.dtype}, and sequences are told apart by integers; number them, "
            f"as segments_of does."
        )


def segments_of(cu_seqlens: Tensor, n: int) -> Tensor:
    """The operand `segments`, int64 [1, n], of cumulative lengths [0, n1, n1 + n2, .., n].

    What lies after the last length, if n is more, is a sequence of its own. Raises ValueError where
    cu_seqlens is not one axis of integers.
    """
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype.is_floating_point or cu_seqlens.numel() == 0:
        raise ValueError(
            f"segments_of was given {cu_seqlens.dtype} {list(cu_seqlens.shape)}, but cumulative lengths are "
            f"integers along one axis, beginning with 0; pass those, as attention kernels take them."
        )
    tokens = torch.arange(n, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:].contiguous().to(tokens.dtype), tokens, right=True)[None]

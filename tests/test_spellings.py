"""Attention by meaning: the ways people write it, each found; what only looks like it, each refused."""

import functools
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subquad
from subquad.ir import No, evaluate
from subquad.passes.attention import examine, softmaxes
from subquad.passes.masks import classify_op
from subquad.reference import in_float64

SIZES = {"b": 2, "h": 4, "g": 2, "n": 7, "m": 5, "d": 8, "e": 6}
OPEN = "bnm"
LOW = torch.finfo(torch.float32).min


class Spelled(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


@dataclass(frozen=True)
class Spelling:
    """How attention is written, for inputs whose axes are named, and what it has to be found as."""

    function: object
    axes: str = "b h n d, b h n d, b h n d"
    mask: str = "none"
    kv_heads: int = 4
    sites: int = 1
    kept: str = ""

    def args(self, seed=0):
        """Inputs at the sizes of this file; an axis list that ends in ? is bool."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for text in self.axes.split(","):
            shape = [SIZES.get(a) or int(a) for a in text.rstrip("?").split()]
            x = torch.randn(shape, generator=generator)
            if text.endswith("?"):
                x = x > -0.3
                x[..., 0] = True
            found.append(x)
        return tuple(found)

    def dynamic(self):
        """The sizes that stay open, by name."""
        dims = {a: torch.export.Dim(a, min=2, max=512) for a in OPEN}
        shapes = [t.rstrip("?").split() for t in self.axes.split(",")]
        return {"args": tuple({i: dims[a] for i, a in enumerate(s) if a in dims} for s in shapes)}


def causal_mask(n, m=None):
    return torch.ones(n, m or n, dtype=torch.bool).tril()


def repeat_kv(x, r=2):
    b, g, n, d = x.shape
    return x[:, :, None].expand(b, g, r, n, d).reshape(b, g * r, n, d)


def attend(q, k, v, mask=None, scale=8**-0.5):
    scores = q @ k.transpose(-2, -1) * scale
    return (scores if mask is None else scores + mask).softmax(-1) @ v


def bthd(q, k, v, scale=lambda s: s / 8**0.5, mask=None):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = scale(q @ k.transpose(-2, -1))
    scores = scores if mask is None else mask(scores)
    return (scores.softmax(-1) @ v).transpose(1, 2).contiguous()


def windowed(q, k, v):
    n = q.shape[2]
    i, j = torch.arange(n)[:, None], torch.arange(n)
    keep = (j <= i) & (i - j < 3)
    return (q @ k.mT / 8**0.5).masked_fill(~keep, -torch.inf).softmax(-1) @ v


def alibi(q, k, v):
    n = q.shape[2]
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None]
    i, j = torch.arange(n)[:, None], torch.arange(n)
    bias = -slopes * (i - j).abs()
    return attend(q, k, v, bias)


def eager_hf(q, k, v, mask):
    k, v = repeat_kv(k), repeat_kv(v)
    w = torch.matmul(q, k.transpose(2, 3)) * 8**-0.5 + mask
    w = F.softmax(w, dim=-1, dtype=torch.float32).to(q.dtype)
    w = F.dropout(w, p=0.1, training=False)
    return torch.matmul(w, v).transpose(1, 2).contiguous()


def sunk(q, k, v, sinks):
    w = q @ k.mT * 8**-0.5
    drain = sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    both = torch.cat([w, drain], dim=-1)
    both = both - both.max(dim=-1, keepdim=True).values
    return both.softmax(-1)[..., :-1] @ v


def by_hand(q, k, v):
    s = q @ k.mT / 8**0.5
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


def capped_by_hand(q, k, v):
    e = torch.exp(30.0 * torch.tanh(q @ k.mT / (8**0.5 * 30.0)))
    return (e / e.sum(-1, keepdim=True)) @ v


def off_by_one(q, k, v):
    s = q @ k.mT / 8**0.5
    top = s.amax(-1, keepdim=True).clamp(min=0)
    e = torch.exp(s - top)
    return (e / (e.sum(-1, keepdim=True) + torch.exp(-top))) @ v


def logits_and_normaliser(q, k, v):
    s = q @ k.mT / 8**0.5
    return torch.exp(s - torch.logsumexp(s, dim=-1, keepdim=True)) @ v


def einsums(q, k, v):
    w = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5
    return torch.einsum("bhts,bshd->bthd", w.softmax(-1), v)


def grouped_einsums(q, k, v):
    b, h, n, d = q.shape
    w = torch.einsum("bgrnd,bgmd->bgrnm", q.reshape(b, 2, 2, n, d), k) / 8**0.5
    return torch.einsum("bgrnm,bgmd->bgrnd", w.softmax(-1), v).reshape(b, h, n, d)


def bmm_folded(q, k, v):
    b, h, n, d = q.shape
    q, k, v = (x.reshape(b * h, x.shape[2], d) for x in (q, k, v))
    return torch.bmm(torch.bmm(q * d**-0.5, k.transpose(1, 2)).softmax(-1), v).view(b, h, n, d)


def baddbmm(q, k, v, bias):
    b, h, n, d = q.shape
    q, k, v = (x.reshape(b * h, x.shape[2], d) for x in (q, k, v))
    bias = bias.reshape(1, h, n, n).expand(b, h, n, n).reshape(b * h, n, n)
    w = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=d**-0.5)
    return torch.bmm(w.softmax(-1), v).view(b, h, n, d)


def packed(qkv):
    b, n, _ = qkv.shape
    q, k, v = qkv.view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
    return attend(q, k, v).transpose(1, 2).reshape(b, n, 32)


def packed_last(qkv):
    b, n, _ = qkv.shape
    q, k, v = qkv.view(b, n, 4, 24).chunk(3, dim=-1)
    return bthd(q, k, v).reshape(b, n, 32)


def transposed_scores(q, k, v):
    w = (k @ q.mT * 8**-0.5).softmax(dim=-2)
    return (v.mT @ w).mT


def channels_first(q, k, v):
    """Non-local blocks, SAGAN: features before positions."""
    w = torch.bmm(q.transpose(1, 2), k).softmax(-1)
    return torch.bmm(v, w.transpose(1, 2))


def swin(q, k, v, bias, mask):
    """Windows [b * nw, h, n, d]; the mask of each window is added in a view of five axes."""
    w = (q * 8**-0.5) @ k.mT + bias
    w = w.view(-1, 3, 4, 9, 9) + mask.unsqueeze(1).unsqueeze(0)
    return w.view(-1, 4, 9, 9).softmax(-1) @ v


def cosine(q, k, v, logit_scale):
    w = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    return (w * torch.clamp(logit_scale, max=math.log(100.0)).exp()).softmax(-1) @ v


def decomposed_positions(q, k, v, rows, columns):
    """SAM: a bias for the row and one for the column of a key, computed from the queries."""
    b = q.shape[0]
    w = (q * 8**-0.5) @ k.mT
    r = q.reshape(b, 3, 4, 8)
    by_row = torch.einsum("bhwc,hkc->bhwk", r, rows)
    by_column = torch.einsum("bhwc,wkc->bhwk", r, columns)
    w = w.view(b, 3, 4, 3, 4) + by_row[:, :, :, :, None] + by_column[:, :, :, None, :]
    return w.view(b, 12, 12).softmax(-1) @ v


def twice_masked(q, k, v, keep):
    n = q.shape[2]
    w = (q @ k.mT / 8**0.5).masked_fill(~causal_mask(n), -torch.inf)
    return w.masked_fill(~keep[:, None, None, :], -torch.inf).softmax(-1) @ v


def relative_part(q, k, v, r):
    """Two products: of contents and of positions, as LiLT and Transformer-XL without its shift."""
    return ((q @ k.mT) * 0.3 + (q @ r.mT) * 0.2).softmax(-1) @ v


SPELLINGS = {
    # the 23 that Inductor's matcher was measured on
    "divided": Spelling(lambda q, k, v: (q @ k.mT / math.sqrt(8)).softmax(-1) @ v),
    "multiplied": Spelling(attend),
    "additive mask, divided": Spelling(
        lambda q, k, v, mask: (q @ k.mT / 8**0.5 + mask).softmax(-1) @ v,
        "b h n d, b h m d, b h m d, b 1 n m", "dense"),
    "additive mask, multiplied": Spelling(
        attend, "b h n d, b h m d, b h m d, b 1 n m", "dense"),
    "qk-norm": Spelling(
        lambda q, k, v: attend(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, scale=10.0)),
    "bthd, divided": Spelling(bthd, "b n h d, b n h d, b n h d"),
    "bthd, multiplied": Spelling(
        functools.partial(bthd, scale=lambda s: s * 8**-0.5), "b n h d, b n h d, b n h d"),
    "softmax in float32": Spelling(
        lambda q, k, v: F.softmax(q @ k.mT * 8**-0.5, -1, dtype=torch.float32).to(q.dtype) @ v),
    "repeat_interleave": Spelling(
        lambda q, k, v: attend(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)),
        "b h n d, b g m d, b g m d", kv_heads=2),
    "scaled queries": Spelling(lambda q, k, v: (q * 8**-0.5 @ k.mT).softmax(-1) @ v),
    "no scale": Spelling(lambda q, k, v: (q @ k.mT).softmax(-1) @ v),
    "einsum": Spelling(einsums, "b n h d, b m h d, b m h d"),
    "masked_fill, causal": Spelling(
        lambda q, k, v: (q @ k.mT / 8**0.5)
        .masked_fill(~causal_mask(q.shape[2]), -torch.inf).softmax(-1) @ v, mask="causal"),
    "where(min), causal": Spelling(
        lambda q, k, v: torch.where(causal_mask(q.shape[2]), q @ k.mT / 8**0.5, LOW).softmax(-1) @ v,
        mask="causal"),
    "sliding window": Spelling(windowed, mask="causal+window"),
    "alibi": Spelling(alibi, mask="alibi"),
    "soft-cap": Spelling(
        lambda q, k, v: (torch.tanh(q @ k.mT * 8**-0.5 / 50.0) * 50.0).softmax(-1) @ v),
    "Hugging Face, eager": Spelling(eager_hf, "b h n d, b g m d, b g m d, b 1 n m", "dense", 2),
    "dropout in training": Spelling(
        lambda q, k, v: F.dropout(attend(q, k, torch.eye(7)), 0.5) @ v,
        kept="dropout"),
    "a sink": Spelling(sunk, "b h n d, b h m d, b h m d, h"),
    "weights too": Spelling(
        lambda q, k, v: ((w := (q @ k.mT / 8**0.5).softmax(-1)) @ v, w),
        kept="its weights are used elsewhere too"),
    "exp and sum": Spelling(by_hand),
    "bthd, masked_fill": Spelling(
        functools.partial(bthd, mask=lambda s: s.masked_fill(~causal_mask(s.shape[-1]), -torch.inf)),
        "b n h d, b n h d, b n h d", "causal"),
}  # fmt: skip
del SPELLINGS["dropout in training"]  # below, where the module trains

MORE = {
    "scaled keys": Spelling(lambda q, k, v: (q @ (k * 8**-0.5).mT).softmax(-1) @ v),
    "both scaled": Spelling(lambda q, k, v: ((q * 8**-0.25) @ (k * 8**-0.25).mT).softmax(-1) @ v),
    "scaled by a tensor": Spelling(
        lambda q, k, v, t: (q @ k.mT * t).softmax(-1) @ v, "b h n d, b h m d, b h m d, h 1 1"),
    "divided by a number in a tensor": Spelling(
        lambda q, k, v: (q @ k.mT / torch.tensor(8.0).sqrt()).softmax(-1) @ v),
    "the mask before the scale": Spelling(
        lambda q, k, v, mask: ((q @ k.mT + mask) * 8**-0.5).softmax(-1) @ v,
        "b h n d, b h m d, b h m d, b 1 n m", "dense"),
    "the mask subtracted": Spelling(
        lambda q, k, v, keep: (q @ k.mT - 1e30 * (1.0 - keep[:, None, None].float())).softmax(-1) @ v,
        "b h n d, b h m d, b h m d, b m?", "padding"),
    "grouped einsum": Spelling(grouped_einsums, "b h n d, b g m d, b g m d", kv_heads=2),
    "repeat_kv": Spelling(
        lambda q, k, v: attend(q, repeat_kv(k), repeat_kv(v)), "b h n d, b g m d, b g m d", kv_heads=2),
    "heads tiled": Spelling(
        lambda q, k, v: attend(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)),
        "b h n d, b g m d, b g m d", kv_heads=2),
    "heads joined": Spelling(
        lambda q, k, v: attend(q, torch.cat([k, k], 1), torch.cat([v, v], 1)),
        "b h n d, b g m d, b g m d", kv_heads=2),
    "one key head": Spelling(attend, "b h n d, b 1 m d, b 1 m d", kv_heads=1),
    "one key head, three axes": Spelling(
        lambda q, k, v: torch.einsum(
            "bhnm,bme->bhne", torch.einsum("bhnd,bmd->bhnm", q, k).softmax(-1), v),
        "b h n d, b m d, b m e", kv_heads=1),
    "keys by two, values by four": Spelling(
        lambda q, k, v: attend(q, repeat_kv(k), repeat_kv(v, 4)), "b h n d, b g m d, b 1 m d", kv_heads=2),
    "bmm": Spelling(bmm_folded, "b h n d, b h m d, b h m d"),
    "baddbmm": Spelling(baddbmm, "b h n d, b h n d, b h n d, h n n", "dense"),
    "qkv in one": Spelling(packed, "b n 96"),
    "qkv in one, heads first": Spelling(packed_last, "b n 96"),
    "keys by queries": Spelling(transposed_scores, "b h n d, b h m d, b h m d"),
    "channels first": Spelling(channels_first, "b d n, b d m, b e m", kv_heads=1),
    "rank 3": Spelling(attend, "b n d, b m d, b m e", kv_heads=1),
    "rank 2": Spelling(attend, "n d, m d, m e", kv_heads=1),
    "rank 5": Spelling(attend, "b 3 h n d, b 3 h m d, b 3 h m e"),
    "Swin": Spelling(swin, "6 h 9 d, 6 h 9 d, 6 h 9 d, h 9 9, 3 9 9", "dense"),
    "cosine": Spelling(cosine, "b h n d, b h m d, b h m d, h 1 1"),
    "decomposed positions": Spelling(
        decomposed_positions, "b 12 d, b 12 d, b 12 d, 3 3 d, 4 4 d", "dense", 1),
    "soft-cap and causal": Spelling(
        lambda q, k, v: (torch.tanh(q @ k.mT * 8**-0.5 / 50.0) * 50.0)
        .masked_fill(~causal_mask(q.shape[2]), LOW).softmax(-1) @ v, mask="causal"),
    "off by one": Spelling(off_by_one),
    "exp of a bounded score": Spelling(capped_by_hand),
    "exp less logsumexp": Spelling(logits_and_normaliser),
    "masked twice": Spelling(twice_masked, "b h n d, b h n d, b h n d, b n?", "causal+padding"),
    "zeroed where masked": Spelling(
        lambda q, k, v, keep: (q @ k.mT).masked_fill(~keep, -torch.inf).softmax(-1)
        .masked_fill(~keep, 0.0) @ v,
        "b h n d, b h m d, b h m d, b 1 n m?", "dense"),
    "NaN made zero": Spelling(
        lambda q, k, v, keep: (q @ k.mT).masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0.0) @ v,
        "b h n d, b h m d, b h m d, b 1 n m?", "dense"),
    "two products": Spelling(relative_part, "b h n d, b h m d, b h m d, b h m d"),
    "a query alone": Spelling(attend, "b h 1 d, b h m d, b h m d"),
    "sdpa": Spelling(F.scaled_dot_product_attention, "b h n d, b h m d, b h m e"),
    "sdpa, causal": Spelling(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), mask="causal"),
    "sdpa, grouped": Spelling(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "b h n d, b g m d, b g m d", kv_heads=2),
    "sdpa, one key head": Spelling(
        F.scaled_dot_product_attention, "b h n d, b 1 m d, b 1 m d", kv_heads=1),
    "sdpa, rank 3 and a mask": Spelling(
        F.scaled_dot_product_attention, "b n d, b m d, b m d, b n m?", "dense", 1),
    "sdpa, rank 5 and a mask": Spelling(
        F.scaled_dot_product_attention, "b 3 h n d, b 3 h m d, b 3 h m d, b 1 1 n m?", "dense"),
}  # fmt: skip


def optimized(spelling, dynamic=False, seed=0, training=False):
    """The model, its inputs, and what it is optimised to."""
    model, args = Spelled(spelling.function).train(training), spelling.args(seed)
    shapes = spelling.dynamic() if dynamic else None
    return model, args, subquad.optimize(model, args, dynamic_shapes=shapes, backend="eager", check=False)


def attentions(graph):
    return [op for op in graph.ops() if op.name == "attention"]


def equal(model, fast, args):
    """Both backends hold to the float64 run of the original: eager torch, and the oracle."""
    wanted = in_float64(model, args, {})
    wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    found = fast(*args)
    found = found if isinstance(found, (tuple, list)) else (found,)
    weights = {name: x.numpy() for name, x in fast.captured.tensors.items()}
    oracle, _ = evaluate(fast.graph, [x.numpy() for x in args], weights)
    for right, eager, exact in zip(wanted, found, oracle, strict=True):
        right = right.numpy()
        assert np.abs(right - eager.double().numpy()).max() <= 1e-5
        assert np.abs(right - exact).max() <= 1e-10


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", [*SPELLINGS, *MORE])
def test_found(name, dynamic):
    """One attention, its heads un-repeated, its mask proved, and the numbers what they were."""
    spelling = {**SPELLINGS, **MORE}[name]
    model, args, fast = optimized(spelling, dynamic)
    equal(model, fast, args)
    assert not [step.undone for step in fast.log.steps if step.undone]
    if spelling.kept:
        (start,) = softmaxes(fast.graph)
        found = examine(start, fast.graph)
        assert not isinstance(found, No) and spelling.kept in found.kept.reason
        return
    (op,) = attentions(fast.graph)
    assert not list(softmaxes(fast.graph))
    assert op.args[1].shape[1] == spelling.kv_heads
    assert classify_op(op).kind == spelling.mask, classify_op(op).reason

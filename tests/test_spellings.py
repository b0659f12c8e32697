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
    # what Inductor's matcher was measured on, but for dropout in training: that is below
    "divided": Spelling(lambda q, k, v: (q @ k.mT / math.sqrt(8)).softmax(-1) @ v),
    "multiplied": Spelling(attend),
    "additive mask, divided": Spelling(
        lambda q, k, v, mask: (q @ k.mT / 8**0.5 + mask).softmax(-1) @ v,
        "b h n d, b h m d, b h m d, b 1 n m", "bias"),
    "additive mask, multiplied": Spelling(
        attend, "b h n d, b h m d, b h m d, b 1 n m", "bias"),
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
    "Hugging Face, eager": Spelling(eager_hf, "b h n d, b g m d, b g m d, b 1 n m", "bias", 2),
    "a sink": Spelling(sunk, "b h n d, b h m d, b h m d, h"),
    "weights too": Spelling(
        lambda q, k, v: ((w := (q @ k.mT / 8**0.5).softmax(-1)) @ v, w),
        kept="its weights are used elsewhere too"),
    "exp and sum": Spelling(by_hand),
    "bthd, masked_fill": Spelling(
        functools.partial(bthd, mask=lambda s: s.masked_fill(~causal_mask(s.shape[-1]), -torch.inf)),
        "b n h d, b n h d, b n h d", "causal"),
}  # fmt: skip

MORE = {
    "scaled keys": Spelling(lambda q, k, v: (q @ (k * 8**-0.5).mT).softmax(-1) @ v),
    "both scaled": Spelling(lambda q, k, v: ((q * 8**-0.25) @ (k * 8**-0.25).mT).softmax(-1) @ v),
    "scaled by a tensor": Spelling(
        lambda q, k, v, t: (q @ k.mT * t).softmax(-1) @ v, "b h n d, b h m d, b h m d, h 1 1"),
    "divided by a number in a tensor": Spelling(
        lambda q, k, v: (q @ k.mT / torch.tensor(8.0).sqrt()).softmax(-1) @ v),
    "the mask before the scale": Spelling(
        lambda q, k, v, mask: ((q @ k.mT + mask) * 8**-0.5).softmax(-1) @ v,
        "b h n d, b h m d, b h m d, b 1 n m", "bias"),
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
    "baddbmm": Spelling(baddbmm, "b h n d, b h n d, b h n d, h n n", "bias"),
    "qkv in one": Spelling(packed, "b n 96"),
    "qkv in one, heads first": Spelling(packed_last, "b n 96"),
    "keys by queries": Spelling(transposed_scores, "b h n d, b h m d, b h m d"),
    "channels first": Spelling(channels_first, "b d n, b d m, b e m", kv_heads=1),
    "rank 3": Spelling(attend, "b n d, b m d, b m e", kv_heads=1),
    "rank 2": Spelling(attend, "n d, m d, m e", kv_heads=1),
    "rank 5": Spelling(attend, "b 3 h n d, b 3 h m d, b 3 h m e"),
    "Swin": Spelling(swin, "6 h 9 d, 6 h 9 d, 6 h 9 d, h 9 9, 3 9 9", "bias"),
    "cosine": Spelling(cosine, "b h n d, b h m d, b h m d, h 1 1"),
    "decomposed positions": Spelling(
        decomposed_positions, "b 12 d, b 12 d, b 12 d, 3 3 d, 4 4 d", "bias", 1),
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
    "biased, and zeroed where masked": Spelling(
        lambda q, k, v, keep, bias: (q @ k.mT + bias.tanh()).masked_fill(~keep, -torch.inf).softmax(-1)
        .masked_fill(~keep, 0.0) @ v,
        "b h n d, b h m d, b h m d, b 1 n m?, b h n m", "dense"),
    "NaN made zero": Spelling(
        lambda q, k, v, keep: (q @ k.mT).masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0.0) @ v,
        "b h n d, b h m d, b h m d, b 1 n m?", "dense"),
    "two products": Spelling(relative_part, "b h n d, b h m d, b h m d, b h m d"),
    "positions of each query": Spelling(
        lambda q, k, v, r: (q @ k.mT * 0.3 + torch.einsum("bhld,lrd->bhlr", q, r) * 0.3).softmax(-1) @ v,
        "b h n d, b h m d, b h m d, n m d", "bias"),
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


def optimized(spelling, dynamic=False, seed=0):
    """The model, its inputs, and what it is optimised to."""
    model, args = Spelled(spelling.function).eval(), spelling.args(seed)
    shapes = spelling.dynamic() if dynamic else None
    return model, args, subquad.optimize(model, args, dynamic_shapes=shapes, backend="eager", check=False)


def attentions(graph):
    return [op for op in graph.ops() if op.name == "attention"]


def equal(model, fast, args):
    """Both backends hold to the float64 run of the original: eager torch, and the oracle."""
    close(in_float64(model, args, {}), fast(*args), in_oracle(fast, args))


def close(wanted, found, oracle):
    """Results of float64, of eager torch, and of the oracle."""
    for right, eager, exact in zip(leaves(wanted), leaves(found), oracle, strict=True):
        right = right.detach().numpy()
        np.testing.assert_allclose(eager.detach().double().numpy(), right, rtol=0, atol=1e-5)
        np.testing.assert_allclose(exact, right, rtol=0, atol=1e-10)


def in_oracle(fast, inputs):
    """What the graph gives in the oracle, for inputs as float64."""
    wide = [(x.double() if x.is_floating_point() else x).numpy() for x in inputs]
    return evaluate(fast.graph, wide, {n: x.detach().numpy() for n, x in fast.captured.tensors.items()})[0]


def leaves(x):
    """One result or several, as a list."""
    return list(x) if isinstance(x, (tuple, list)) else [x]


WRITTEN = {**SPELLINGS, **MORE}


class Together(nn.Module):
    """Every spelling, each on inputs of its own: one capture, most of whose cost is torch's and fixed."""

    def __init__(self):
        super().__init__()
        self.each = nn.ModuleList(Spelled(spelling.function) for spelling in WRITTEN.values())

    def forward(self, inputs):
        return [function(*args) for function, args in zip(self.each, inputs, strict=True)]


@pytest.fixture(scope="module")
def together():
    """The graph of all spellings, and for each its results: float64, eager, oracle."""
    model, args = Together().eval(), ([spelling.args() for spelling in WRITTEN.values()],)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    assert not [step.undone for step in fast.log.steps if step.undone]
    wanted, rest = in_float64(model, args, {}), iter(in_oracle(fast, [x for part in args[0] for x in part]))
    oracle = [[next(rest) for _ in leaves(part)] for part in wanted]
    return fast.graph, dict(zip(WRITTEN, zip(wanted, fast(*args), oracle, strict=True), strict=True))


@pytest.mark.parametrize("name", WRITTEN)
def test_found(name, together):
    """One attention, its heads un-repeated, its mask proved, and the numbers what they were."""
    graph, results = together
    close(*results[name])
    is_found(WRITTEN[name], graph, f"each.{[*WRITTEN].index(name)}")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_found_alone(name, dynamic):
    """The same in a model of its own, with open sizes too."""
    model, args, fast = optimized(WRITTEN[name], dynamic)
    equal(model, fast, args)
    assert not [step.undone for step in fast.log.steps if step.undone]
    is_found(WRITTEN[name], fast.graph)


def is_found(spelling, graph, path=""):
    """Hold the one softmax of a module against what it has to be found as."""
    ops, starts = (
        [op for op in found if op.source.split(" (")[0] == path or not path]
        for found in (attentions(graph), softmaxes(graph))
    )
    if spelling.kept:
        (start,) = starts
        found = examine(start, graph)
        assert not isinstance(found, No) and spelling.kept in found.kept.reason
        return
    (op,) = ops
    assert not starts
    assert op.args[1].shape[1] == spelling.kv_heads
    assert classify_op(op).kind == spelling.mask, classify_op(op).reason


# ---- modules of torch, other dtypes --------------------------------------------------------------


class Attended(nn.Module):
    """nn.MultiheadAttention of one input with itself."""

    def __init__(self, weights, first):
        super().__init__()
        self.mha, self.weights = nn.MultiheadAttention(16, 2, batch_first=first), weights

    def forward(self, x):
        out, weights = self.mha(x, x, x, need_weights=self.weights)
        return (out, weights) if self.weights else out


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_multihead_attention(weights, first):
    """With its weights asked for it is recognised and kept, with its heads apart; else it is raised."""
    torch.manual_seed(0)
    model = Attended(weights, first).eval()
    args = (torch.randn(3, 7, 16),)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    equal(model, fast, args)
    if weights:
        (start,) = softmaxes(fast.graph)
        found = examine(start, fast.graph)
        assert "used elsewhere" in found.kept.reason
        op = found.value.op
    else:
        (op,) = attentions(fast.graph)
    b, n = (3, 7) if first else (7, 3)
    assert [x.shape for x in op.args[:3]] == [(b, 2, n, 8)] * 3


def test_weights_that_nobody_reads_are_dropped():
    model = Spelled(lambda q, k, v: F.multi_head_attention_forward(
        q, k, v, 16, 2, torch.ones(48, 16), torch.zeros(48), None, None, False, 0.0,
        torch.eye(16), torch.zeros(16), training=False, need_weights=True)[0])  # fmt: skip
    args = tuple(torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(s)) for s in range(3))
    fast = subquad.optimize(model, args, backend="eager", check=False)
    equal(model, fast, args)
    (op,) = attentions(fast.graph)
    assert op.args[0].shape == (2, 2, 5, 8)


def test_encoder_layer():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    args = (torch.randn(2, 7, 16),)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    equal(model, fast, args)
    assert len(attentions(fast.graph)) == 1 and not list(softmaxes(fast.graph))


@pytest.mark.parametrize(
    "outer, inner",
    [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float32"), ("float32", "float64")],
)
def test_softmax_in_another_dtype(outer, inner):
    """Up and back, and down and back: the weights of a narrower model are computed wide."""
    outer, inner = getattr(torch, outer), getattr(torch, inner)
    model = Spelled(lambda q, k, v: (q @ k.mT * 8**-0.5).softmax(-1, dtype=inner).to(outer) @ v)
    args = tuple(x.to(outer) for x in Spelling(None).args())
    fast = subquad.optimize(model, args, backend="eager", check=False)
    (op,) = attentions(fast.graph)
    assert op.types[0].dtype.torch == str(outer).removeprefix("torch.")
    bound = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(outer, 1e-5)
    wanted = in_float64(model, args, {})
    assert (fast(*args).double() - wanted).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_replaced_by_the_least_number(dtype):
    """A row of only masked keys is the mean of all values, in every dtype."""
    low = torch.finfo(dtype).min
    model = Spelled(lambda q, k, v, keep: (q @ k.mT).masked_fill(~keep, low).softmax(-1) @ v)
    q, k, v = (x.to(dtype) for x in Spelling(None, "b h n d, b h m d, b h m d").args())
    keep = torch.rand(2, 1, 7, 5, generator=torch.Generator().manual_seed(3)) > 0.5
    keep[0, 0, 2] = False
    fast = subquad.optimize(model, (q, k, v, keep), backend="eager", check=False)
    (op,) = attentions(fast.graph)
    assert op.attrs["empty"] == "uniform" and op.args[3].dtype.kind == "b"
    bound = {torch.bfloat16: 3e-2, torch.float16: 3e-3}.get(dtype, 1e-5)
    wanted, found = in_float64(model, (q, k, v, keep), {}), fast(q, k, v, keep)
    assert (found.double() - wanted).abs().max() <= bound
    assert (wanted[0, :, 2] - v[0].double().mean(1)).abs().max() < 1e-12


def test_an_additive_least_number_of_float16_is_no_infinity():
    """-65504 added to a score moves it, and does not swallow it: the mask stays an operand."""
    low = torch.finfo(torch.float16).min
    model = Spelled(lambda q, k, v, keep: (q @ k.mT + torch.where(keep, 0.0, low).half()).softmax(-1) @ v)
    q, k, v = (x.half() for x in Spelling(None, "b h n d, b h m d, b h m d").args())
    keep = torch.zeros(2, 1, 7, 5, dtype=torch.bool)
    fast = subquad.optimize(model, (q, k, v, keep), backend="eager", check=False)
    (op,) = attentions(fast.graph)
    assert op.args[3].dtype.is_float
    oracle, _ = evaluate(fast.graph, [x.numpy() for x in (q, k, v, keep)])
    wanted = in_float64(model, (q, k, v, keep), {}).numpy()
    assert np.abs(oracle[0] - wanted).max() < 1e-9


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("how", ["nan", "uniform", "zero", "nan to num"])
def test_a_row_without_keys_means_what_it_meant(how, biased):
    """NaN after -inf, the mean after a finite number, 0 where weights are cleared afterwards."""
    low = -1e9 if how == "uniform" else -torch.inf

    def masked(q, k, v, keep, bias):
        s = q @ k.mT + bias.tanh() if biased else q @ k.mT
        w = s.masked_fill(~keep, low).softmax(-1)
        w = w.masked_fill(~keep, 0.0) if how == "zero" else w
        return (w.nan_to_num(0.0) if how == "nan to num" else w) @ v

    q, k, v, bias = Spelling(None, "b h n d, b h m d, b h m d, b h n m").args()
    keep = torch.rand(2, 1, 7, 5, generator=torch.Generator().manual_seed(5)) > 0.4
    keep[1, 0, 3] = False
    model, args = Spelled(masked), (q, k, v, keep, bias)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    equal(model, fast, args)
    if biased and how == "uniform":  # -1e9 and a bias are no one operand that says this
        (start,) = softmaxes(fast.graph)
        assert "a row of only masked keys would show" in examine(start, fast.graph).reason
    else:
        (op,) = attentions(fast.graph)
        assert op.attrs["empty"] == {"zero": "zero", "nan to num": "zero"}.get(how, how)


@pytest.mark.parametrize("dropout", ["by hand", "sdpa", "layer"])
def test_dropout_in_training_is_kept(dropout):
    """Recognised, not rewritten, and the reason says what to do."""
    if dropout == "layer":
        model = nn.TransformerEncoderLayer(16, 2, 32, 0.5, batch_first=True).train()
        args = (torch.randn(2, 7, 16),)
    else:
        model = Spelled(
            (lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.5) @ v)
            if dropout == "by hand"
            else (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
        ).train()
        args = Spelling(None).args()
    fast = subquad.optimize(model, args, backend="eager", check=False)
    assert not attentions(fast.graph)
    (start,) = softmaxes(fast.graph)
    found = examine(start, fast.graph)
    assert not isinstance(found, No) and "dropout of 0.5" in found.kept.reason
    assert found.value.op.name == "attention"


def test_a_narrow_mask_is_widened_before_it_is_scaled():
    """As the scores that it was added to are: its own dtype would round the product."""
    model = Spelled(lambda q, k, v, bias: ((q @ k.mT + bias) / 8**0.5).softmax(-1) @ v)
    q, k, v, bias = Spelling(None, "b h n d, b h m d, b h m d, b h n m").args()
    args = (q, k, v, (bias * 20).bfloat16())
    equal(model, subquad.optimize(model, args, backend="eager", check=False), args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_query_is_widened_before_it_is_scaled_by_a_tensor(dtype):
    """The product was wide when the tensor scaled it."""

    def scaled(q, k, v, t):
        s = (q.float() @ k.float().mT) * t
        return (s.softmax(-1) @ v.float()).to(v.dtype)

    q, k, v, t = Spelling(None, "b h n d, b h m d, b h m d, h 1 1").args()
    args = (*(x.to(dtype) for x in (q * 4, k * 4, v)), t.to(dtype))
    model = Spelled(scaled)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    (op,) = attentions(fast.graph)
    assert op.args[0].dtype.torch == "float32"
    wanted = in_float64(model, args, {})
    own = (model(*args).double() - wanted).abs().max()
    assert (fast(*args).double() - wanted).abs().max() <= 1.01 * own


# ---- what only looks like attention --------------------------------------------------------------


def differential(q, k, v):
    a = (q[..., :4] @ k[..., :4].mT).softmax(-1)
    b = (q[..., 4:] @ k[..., 4:].mT).softmax(-1)
    return (a - 0.3 * b) @ v


def by_chunks_of_keys(q, k, v):
    """An online softmax over two blocks of keys."""
    top = total = out = None
    for part in (slice(0, 4), slice(4, None)):
        s = q @ k[:, :, part].mT
        peak = s.amax(-1, keepdim=True) if top is None else torch.maximum(top, s.amax(-1, keepdim=True))
        e = torch.exp(s - peak)
        fade = 0.0 if top is None else torch.exp(top - peak)
        total = e.sum(-1, keepdim=True) + (0.0 if total is None else total * fade)
        out = e @ v[:, :, part] + (0.0 if out is None else out * fade)
        top = peak
    return out / total


LOOKALIKES = {
    "softmax over queries": (lambda q, k, v: (q @ k.mT).softmax(-2) @ v, "axis 2 of 4, not over the keys"),
    "softmax over heads": (lambda q, k, v: (q @ k.mT).softmax(1) @ v, "axis 1 of 4, not over the keys"),
    "talking heads": (
        lambda q, k, v: torch.einsum("bhnm,hg->bgnm", (q @ k.mT).softmax(-1), q[0, :, 0, :4]) @ v,
        "talking heads",
    ),
    "weights multiplied": (
        lambda q, k, v: ((q @ k.mT).softmax(-1) * torch.sigmoid(k @ q.mT)) @ v,
        "multiplied after the softmax",
    ),
    "weights renormalised": (
        lambda q, k, v: ((w := (q @ k.mT).softmax(-1)) / (w.sum(-2, keepdim=True) + 1e-3)) @ v,
        "divided after the softmax",
    ),
    "top-k": (
        lambda q, k, v: (s := q @ k.mT)
        .masked_fill(s < s.topk(3, dim=-1).values[..., -1:], -torch.inf).softmax(-1) @ v,
        "depends on the scores themselves",
    ),
    "clamped": (lambda q, k, v: (q @ k.mT).clamp(-5, 5).softmax(-1) @ v, "clamped"),
    "squared": (lambda q, k, v: ((q @ k.mT) ** 2).softmax(-1) @ v, "varies over the keys"),
    "gated": (
        lambda q, k, v: ((q @ k.mT) * torch.sigmoid(v @ q.mT)).softmax(-1) @ v, "varies over the keys"),
    "sine": (lambda q, k, v: torch.sin(q @ torch.ones(8, 7)).softmax(-1) @ v, "stands sin"),
    "mild mask": (
        lambda q, k, v: (q @ k.mT).masked_fill(~causal_mask(7), -20.0).softmax(-1) @ v, "some weight"),
    "tanh of masked scores": (
        lambda q, k, v: torch.tanh((q @ k.mT).masked_fill(~causal_mask(7), LOW)).softmax(-1) @ v,
        "masked before they are capped",
    ),
    "negative scale of -inf": (
        lambda q, k, v: ((q @ k.mT).masked_fill(~causal_mask(7), -torch.inf) * -0.5).softmax(-1) @ v,
        "scale of -0.5",
    ),
    "scores of two blocks joined": (
        lambda q, k, v: torch.cat([q @ k.mT, q @ v.mT], -1).softmax(-1) @ torch.cat([v, v], 2), "joined"),
    "a sink that is not dropped": (
        lambda q, k, v: torch.cat([q @ k.mT, q[..., :1]], -1).softmax(-1) @ torch.cat([v, v[:, :, :1]], 2),
        "its weight is not dropped",
    ),
    "a sink of each query": (
        lambda q, k, v: torch.cat([q @ k.mT, q[..., :1]], -1).softmax(-1)[..., :-1] @ v,
        "not one score for each head",
    ),
    "exp that may overflow": (
        lambda q, k, v: ((e := torch.exp(q @ k.mT * 0.3)) / e.sum(-1, keepdim=True)) @ v, "overflows"),
    "eps in the sum": (
        lambda q, k, v: ((e := torch.exp(torch.tanh(q @ k.mT))) / (e.sum(-1, keepdim=True) + 1e-3)) @ v,
        "no score of a sink",
    ),
    "router": (lambda q, k, v: q.softmax(-1).topk(2).values + v.sum(), "meet no matrix product"),
    "gate": (lambda q, k, v: q.softmax(-1) * k + v, "meet no matrix product"),
    "classifier": (lambda q, k, v: q.softmax(-1) + 0 * (k + v), "meet no matrix product"),
    "keys that are weights": (
        lambda q, k, v: F.linear(q, torch.ones(7, 8)).softmax(-1) @ v, "before the softmax"),
    "values of each query": (
        lambda q, k, v: torch.einsum(
            "bhnm,bhnmd->bhnd", (q @ k.mT).softmax(-1), v[:, :, None] * q[:, :, :, None]),
        "values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKALIKES)
def test_refused(name):
    """Left as it is, with the first precondition that fails."""
    function, reason = LOOKALIKES[name]
    model, args, fast = optimized(Spelling(function))
    assert not attentions(fast.graph)
    (start,) = softmaxes(fast.graph)
    found = examine(start, fast.graph)
    refusal = found if isinstance(found, No) else found.kept
    assert reason in refusal.reason and refusal.at is not None
    equal(model, fast, args)


def test_differential_attention_is_two_sites():
    _, _, fast = optimized(Spelling(differential))
    found = [examine(op, fast.graph) for op in softmaxes(fast.graph)]
    assert len(found) == 2 and all("added to others" in no.reason for no in found)


def test_an_online_softmax_is_no_site_of_its_own():
    """Neither block of keys is attention by itself."""
    model, args, fast = optimized(Spelling(by_chunks_of_keys))
    assert not attentions(fast.graph)
    equal(model, fast, args)


def test_blocks_of_queries_are_attentions_each():
    """A query does not see the others: a loop over blocks of them is as many attentions."""
    model, args, fast = optimized(
        Spelling(lambda q, k, v: torch.cat([attend(q[:, :, :4], k, v), attend(q[:, :, 4:], k, v)], 2))
    )
    assert [op.types[0].shape[2] for op in attentions(fast.graph)] == [4, 3]
    equal(model, fast, args)


# ---- at random -----------------------------------------------------------------------------------


def composed(seed):
    """A spelling put together at random, and the mask and key heads that it should be found with."""
    pick = random.Random(seed)
    layout = pick.choice(["bhtd", "bthd", "einsum", "bmm", "packed heads"])
    groups = pick.choice([4, 2, 1])
    repeat = pick.choice(["interleave", "expand", "tile"])
    scale = pick.choice(["mul", "div", "q", "k", "both", "none", "tensor"])
    cap, upcast, sink = pick.random() < 0.3, pick.random() < 0.3, pick.random() < 0.25
    masking = pick.choice(["none", "causal where", "causal add", "padding", "causal+padding", "bias"])
    if layout == "einsum":
        text = "b n h d, b n G d, b n G d".replace("G", str(groups))
    else:
        text = "b h n d, b G n d, b G n d".replace("G", str(groups))

    def function(q, k, v, keep, bias, drain):
        if layout == "einsum":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        b, h, n, d = q.shape
        r = h // groups
        if r > 1:
            ways = {
                "interleave": lambda x: x.repeat_interleave(r, 1), "expand": lambda x: repeat_kv(x, r),
                "tile": lambda x: x.repeat(1, r, 1, 1),
            }  # fmt: skip
            k, v = ways[repeat](k), ways[repeat](v)
        if layout == "bthd":
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
        if layout == "packed heads":
            q, k, v = (
                x.transpose(1, 2).reshape(b, n, -1).view(b, n, h, d).transpose(1, 2) for x in (q, k, v)
            )
        root = d**-0.5
        q = q * {"q": root, "both": root**0.5}.get(scale, 1.0)
        k = k / {"k": 1 / root, "both": root**-0.5}.get(scale, 1.0)
        if layout == "einsum":
            s = torch.einsum("bqhd,bkhd->bhqk", q.transpose(1, 2), k.transpose(1, 2))
        elif layout == "bmm":
            s = torch.bmm(q.reshape(b * h, n, d), k.reshape(b * h, n, d).transpose(1, 2)).view(b, h, n, n)
        else:
            s = q @ k.transpose(-2, -1)
        if scale == "tensor":
            s = s * drain.exp()[:, None, None]
        elif scale in ("mul", "div"):
            s = s * root if scale == "mul" else s / d**0.5
        s = 20.0 * torch.tanh(s / 20.0) if cap else s
        causal = causal_mask(n)
        if masking == "causal where":
            s = torch.where(causal, s, LOW)
        elif masking == "causal add":
            s = s + torch.where(causal, 0.0, -torch.inf)
        elif masking == "padding":
            s = s.masked_fill(~keep[:, None, None], LOW)
        elif masking == "causal+padding":
            s = s + torch.where(causal & keep[:, None, None], 0.0, LOW)
        elif masking == "bias":
            s = s + bias
        if sink:
            s = torch.cat([s, drain[None, :, None, None].expand(b, h, n, 1)], -1)
        w = s.softmax(-1, dtype=torch.float64 if upcast else None).to(v.dtype)
        w = w[..., :-1] if sink else w
        if layout == "einsum":
            return torch.einsum("bhqk,bkhd->bqhd", w, v.transpose(1, 2))
        if layout == "bmm":
            return torch.bmm(w.reshape(b * h, n, n), v.reshape(b * h, n, d)).view(b, h, n, d)
        return (w @ v).transpose(1, 2) if layout == "bthd" else w @ v

    mask = {"causal where": "causal", "causal add": "causal"}.get(masking, masking)
    return Spelling(function, f"{text}, b n?, b 1 n n, h", mask, groups), cap, sink


@pytest.mark.parametrize(
    "seed", [*range(12), *(pytest.param(s, marks=pytest.mark.slow) for s in range(12, 60))]
)
def test_spellings_at_random(seed):
    """Layout, scale, cap, mask, repeated heads, wide softmax and sink, in any combination."""
    spelling, cap, sink = composed(seed)
    model, args, fast = optimized(spelling, dynamic=seed % 3 == 0, seed=seed)
    equal(model, fast, args)
    (op,) = attentions(fast.graph)
    assert not list(softmaxes(fast.graph))
    assert op.args[1].shape[1] == spelling.kv_heads
    assert (op.attrs["softcap"] == pytest.approx(20.0)) if cap else op.attrs["softcap"] is None
    assert sink == (len(op.inputs) > 4 and op.inputs[4] is not None)
    assert classify_op(op).kind == spelling.mask, classify_op(op).reason

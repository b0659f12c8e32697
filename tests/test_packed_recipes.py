"""Several sequences packed in one row: a recurrence starts anew at each, where their numbers count up."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subquad
from subquad.ir import OPS, RecipeError, TensorType, building, evaluate
from subquad.ir.ops.reduce import cumsum
from subquad.ir.ops.shape import reshape
from subquad.ir.types import bool_, f32, i64
from subquad.passes import RECIPES
from subquad.passes.masks import Mask
from subquad.passes.recipes import Mixing
from subquad.passes.recipes.pieces import token_conv
from subquad.trial import Trial

PACKED = sorted(name for name, recipe in RECIPES.items() if "causal+packed" in recipe.masks)
B, N, HEADS, WIDTH = 2, 24, 2, 16


class Packed(nn.Module):
    """Two layers of attention over rows in which a sequence starts wherever positions do not go on by one."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2)])

    def forward(self, x, positions):
        before = torch.cat([positions[:, :1] - 1, positions[:, :-1]], 1)
        segments = (positions - before != 1).cumsum(-1)
        place = torch.arange(x.shape[1])
        keep = (place[:, None] >= place) & (segments[:, :, None] == segments[:, None, :])
        for qkv in self.qkv:
            q, k, v = qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None])
            x = x + y.transpose(1, 2).flatten(2)
        return x


class Given(Packed):
    """The same of numbers that a caller gives, in whatever order."""

    def forward(self, x, segments):
        place = torch.arange(x.shape[1])
        keep = (place[:, None] >= place) & (segments[:, :, None] == segments[:, None, :])
        q, k, v = self.qkv[0](x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None])


POSITIONS = torch.tensor([[*range(9), *range(4), *range(11)], [*range(2), *range(22)]])


@functools.cache
def captured():
    torch.manual_seed(0)
    x = torch.randn(B, N, WIDTH, dtype=torch.float64)
    return Trial(Packed().double().eval(), (x, POSITIONS)), x


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_are_their_sequences_one_by_one(name):
    """In a model: what a sequence gives in its row it gives at the start of a row, whatever follows."""
    trial, x = captured()
    fast, sites = trial.put(name)
    assert [(site.mask, site.decision) for site in sites] == [("causal+packed", name)] * 2, sites[0].reason
    whole = fast(x, POSITIONS)
    for row, starts in ((0, (0, 9, 13, N)), (1, (0, 2, N))):
        for start, end in itertools.pairwise(starts):
            alone = fast(x.roll(-start, 1), torch.arange(N).expand(B, N))
            close = dict(atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(whole[row, start:end], alone[row, : end - start], **close)


def test_numbers_that_may_come_back_are_refused():
    """With what to do; the attention stays, and is right."""
    model, x = Given().eval(), torch.randn(B, N, WIDTH)
    segments = torch.tensor([[0] * 9 + [1] * 4 + [0] * 11, [3] * N])
    fast = subquad.optimize(model, (x, segments), attention="elu1")
    (site,) = fast.sites
    assert (site.mask, site.decision) == ("causal+packed", "attention")
    assert "count where they start: cumsum(starts, dim=-1)" in site.reason
    torch.testing.assert_close(fast(x, segments), model(x, segments))


def value(name, *shape, dtype=f32):
    return OPS["input"](name=name, type=TensorType(dtype, shape))


SIDES = ("sums of integers", "counted along rows", "of two counts", "of two signs", "narrow")


@pytest.mark.parametrize("sides", SIDES)
def test_what_is_no_running_count(sides):
    """Sums that may fall, counts of other axes, queries and keys counted apart, sums that start over."""
    with building():
        starts, other = value("starts", 3, 4, dtype=bool_), value("other", 3, 4, dtype=bool_)
        counted = cumsum(starts, dim=1)
        found = {
            "sums of integers": (cumsum(value("steps", 3, 4, dtype=i64), dim=1),) * 2,
            "counted along rows": (cumsum(starts, dim=0),) * 2,
            "of two counts": (counted, cumsum(other, dim=1)),
            "of two signs": (counted, counted * -1),
            "narrow": (cumsum(OPS["cast"](starts, dtype=i64) * 1, dim=1),) * 2,
        }[sides]
        q = value("q", 3, 2, 4, 8)
        mask = Mask("causal+packed", causal=True, segments=found)
        with pytest.raises(RecipeError, match="not proved to count up"):
            RECIPES["elu1"](q, q, q, Mixing(1.0, True, mask=mask))
        again = reshape(counted, shape=(3, 4))
        for sides in ((counted, again), (counted * -1, again * -1)):
            mask = Mask("causal+packed", causal=True, segments=sides)
            assert RECIPES["elu1"](q, q, q, Mixing(1.0, True, mask=mask)).type == q.type


def test_a_convolution_along_packed_tokens():
    """Causal: each sequence by itself. Both ways it says that it cannot."""
    rng = np.random.default_rng(0)
    x, w, starts = rng.standard_normal((2, 3, 9, 4)), rng.standard_normal((3, 4, 3)), rng.random((2, 9)) > 0.6

    def run(x, w, starts):
        with building():
            inputs = [value("x", *x.shape), value("w", *w.shape), value("s", *starts.shape, dtype=bool_)]
            out = token_conv(*inputs[:2], causal=True, segments=cumsum(inputs[2], dim=1))
            plain = token_conv(*inputs[:2], causal=True)
        return [evaluate(subquad.ir.Graph("g", inputs, (y,)), [x, w, starts])[0][0] for y in (out, plain)]

    packed, _ = run(x, w, starts)
    for row in range(2):
        ends = [0, *(np.flatnonzero(starts[row, 1:]) + 1), 9]
        for start, end in itertools.pairwise(ends):
            part = x[row : row + 1, :, start:end]
            _, plain = run(part, w, starts[row : row + 1, start:end])
            np.testing.assert_allclose(packed[row : row + 1, :, start:end], plain, atol=1e-12)
    with building(), pytest.raises(subquad.ir.IRError, match="by a causal convolution"):
        y = value("x", 2, 3, 9, 4)
        token_conv(y, value("w", 3, 4, 3), segments=cumsum(value("s", 2, 9, dtype=bool_), dim=1))

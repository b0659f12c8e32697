"""Keys from before the first query, as of a learned prefix or a cache: their sum is the first state."""

import numpy as np
import pytest
import torch
from conformance import SCALE
from restatements import RESTATED, Site
from torch import nn
from torch.nn import functional as F

import subquad
from subquad.ir import OPS, Graph, RecipeError, TensorType, building, evaluate, symbol
from subquad.ir.ops.attention import attention
from subquad.ir.types import bool_, f32
from subquad.learned import initial
from subquad.passes import RECIPES, linearize, recipe_named
from subquad.passes.masks import Mask
from subquad.passes.recipes import Mixing

TAKE = sorted(spec for spec in RESTATED if "past" in recipe_named(spec).honours)
B, H, G, D, E, PAST = 2, 4, 2, 4, 5, 3


@pytest.mark.parametrize("mask", ["causal", "causal+padding"])
@pytest.mark.parametrize("spec", TAKE)
def test_what_is_before_all_queries_is_seen_by_all(spec, mask):
    """As the restatement over all tokens, where the first ones ask nothing."""
    n, size = symbol("n"), {"q": (H, D), "k": (G, D), "v": (G, E)}
    length = {"q": n, "k": n + PAST, "v": n + PAST}
    with building():
        types = {name: TensorType(f32, (B, h, length[name], d)) for name, (h, d) in size.items()}
        if "padding" in mask:
            types["keep"] = TensorType(bool_, (B, 1, 1, n + PAST))
        x = {name: OPS["input"](name=name, type=t) for name, t in types.items()}
        proved = Mask(mask, causal=True, offset=PAST, padding=x.get("keep"))
        place = Mixing(SCALE, True, x.get("keep"), "layer", 1, 3, mask=proved)
        out = recipe_named(spec)(x["q"], x["k"], x["v"], place)
        graph = Graph("site", tuple(x.values()), (out,))
    learned = {name: w.detach().double().numpy() for name, w in initial(graph, {}).items()}
    rng = np.random.default_rng(0)
    for many in (1, 9, 40):
        q, k, v = (
            rng.standard_normal((B, h, many + PAST, d)) for h, d in ((H, D), (G, D), (G, E))
        )
        keep = rng.random((B, many + PAST)) > 0.3 if "padding" in mask else np.ones((B, many + PAST), bool)
        keep[:, 1] = True
        given = [q[:, :, PAST:], k, v, keep[:, None, None]][: 4 if "padding" in mask else 3]
        (actual,), _ = evaluate(graph, given, learned)
        k, v = (np.where(keep[:, None, :, None], t, 0.0).repeat(H // G, 1) for t in (k, v))
        named = {name.removeprefix("layer."): w for name, w in learned.items()}
        case = RESTATED[spec]
        with np.errstate(all="ignore"):
            whole = case.function(Site(q, k, v, keep, True, SCALE, named, None, (), 0, 1, 3), **case.options)
        np.testing.assert_allclose(actual, whole[:, :, PAST:], atol=1e-10 * max(1.0, np.abs(whole).max()))


class Prefixed(nn.Module):
    """Causal attention with keys and values that are learned and stand before all tokens."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.keys, self.values = (nn.Parameter(torch.randn(1, 2, PAST, 8)) for _ in range(2))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        both = ((self.keys, k), (self.values, v))
        k, v = (torch.cat([y.expand(x.shape[0], -1, -1, -1), z], 2) for y, z in both)
        keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(PAST)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


def test_prefix_tuning():
    """In a model: the recipe goes in, and gradients reach the prefix."""
    torch.manual_seed(0)
    model, x = Prefixed().eval(), torch.randn(2, 12, 16)
    fast = subquad.optimize(model, (x,), attention="elu1")
    (site,) = fast.sites
    assert (site.mask, site.decision) == ("causal", "elu1"), site.reason
    q, k, v = model.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    k, v = (torch.cat([y.expand(2, -1, -1, -1), z], 2) for y, z in ((model.keys, k), (model.values, v)))
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril(PAST)
    torch.testing.assert_close(fast(x), weights @ v / (weights.sum(-1, keepdim=True) + 1e-6))
    fast(x).square().sum().backward()
    grads = [p.grad for name, p in fast.named_parameters() if name in ("keys", "values")]
    assert len(grads) == 2 and all(g.abs().max() > 0 for g in grads)


def placed(n, m, offset, spec):
    """The reason of a site of so many queries and keys, or None where the recipe goes in."""
    with building():
        q, k = (OPS["input"](name=x, type=TensorType(f32, (2, 2, t, 8))) for x, t in (("q", n), ("k", m)))
        graph = Graph("g", (q, k), (attention(q, k, k, scale=1.0, causal=True, offset=offset),))
    with subquad.ir.journal() as events:
        after = linearize(graph, recipes={"*": spec})
    left = any(op.name == "attention" for op in after.ops())
    return next(e.result.reason for e in events.events if e.rule.startswith("linearize")) if left else None


def test_what_is_no_past():
    """Offsets that leave a key between; and recipes with a decay, which would have to know how far back."""
    assert placed(5, 8, 3, "elu1") is None
    assert "honours no offset" in placed(5, 8, 2, "elu1")
    assert "honours no offset" in placed(5, 8, 4, "elu1")
    assert "honours no past" in placed(5, 8, 3, "window")
    with building(), pytest.raises((RecipeError, subquad.ir.IRError)):
        q, k = (OPS["input"](name=x, type=TensorType(f32, (2, 2, t, 8))) for x, t in (("q", 5), ("k", 8)))
        x = OPS["input"](name="x", type=TensorType(f32, (2, 5, 16)))
        RECIPES["retnet"](q, k, k, Mixing(1.0, True, tokens=x))

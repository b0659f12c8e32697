"""Every recipe by name in whole models: it runs and learns, or it says why not; nothing else happens."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from subquad.ir import OPS, No, RecipeError, TensorType, building, symbol
from subquad.ir.dims import evaluate
from subquad.ir.ops.attention import attention
from subquad.ir.types import f32
from subquad.passes import RECIPES, compare_costs, recipe_named
from subquad.passes.prices import HEAD_DIM, price
from subquad.passes.prices import HEADS as TWELVE
from subquad.trial import Trial

D, HEADS = 32, 2
OWN = tuple(name for name, recipe in RECIPES.items() if recipe.function.__module__.startswith("subquad."))

SPELT = {"activator": "activator(accept_no_mixing=true)"}
"""Recipes that refuse every site by name alone, and what they ask to be told."""


class Block(nn.Module):
    """A pre-norm block; mask: bool [b, n] of tokens that count, "causal", or None."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        causal = isinstance(mask, str)
        keep = None if causal or mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=causal)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Two blocks over token states."""

    def __init__(self, causal=False):
        super().__init__()
        self.layers, self.causal = nn.ModuleList([Block(), Block()]), causal

    def forward(self, x, mask=None):
        for layer in self.layers:
            x = layer(x, "causal" if self.causal else mask)
        return x


class Vision(nn.Module):
    """Patches of a picture or a video, a class token or none, two blocks."""

    def __init__(self, patch, tokens, classes):
        super().__init__()
        self.patch, self.classes = patch, classes
        self.cls = nn.Parameter(torch.randn(1, classes, D))
        self.places = nn.Parameter(torch.randn(1, classes + tokens, D))
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.classes:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.places
        for layer in self.layers:
            x = layer(x)
        return x


def padded(b, n):
    mask = torch.ones(b, n, dtype=torch.bool)
    mask[1, n // 2 :] = False
    return mask


MODELS = {
    "encoder": lambda: (Encoder(), (torch.randn(2, 24, D),)),
    "encoder with padding": lambda: (Encoder(), (torch.randn(2, 24, D), padded(2, 24))),
    "decoder": lambda: (Encoder(causal=True), (torch.randn(2, 24, D),)),
    "vision": lambda: (Vision(nn.Conv2d(3, D, 4, 4), 64, 1), (torch.randn(2, 3, 32, 32),)),
    "video": lambda: (Vision(nn.Conv3d(3, D, (1, 4, 4), (1, 4, 4)), 64, 0), (torch.randn(2, 3, 4, 16, 16),)),
}


@functools.cache
def tried(name):
    torch.manual_seed(0)
    model, args = MODELS[name]()
    return Trial(model.eval(), args), args


def put(spec, name):
    """Whether a recipe went in at any site of a model; what is wrong with it fails the test."""
    trial, args = tried(name)
    try:
        fast, sites = trial.put(spec)
    except RecipeError as error:
        assert str(error)
        return False
    assert len(sites) == 2
    replaced = [site for site in sites if site.decision == spec]
    for site in sites:
        assert site in replaced or (site.decision == "attention" and spec.partition("(")[0] in site.reason)
    given = dict(trial.model.named_parameters())
    added = {n: p for n, p in fast.named_parameters() if n not in given}
    assert bool(added) == bool(replaced and RECIPES[spec.partition("(")[0]].learns)
    out = fast(*args)
    assert out.shape == trial.model(*args).shape and out.isfinite().all()
    if added:
        grads = torch.autograd.grad((out * torch.randn_like(out)).sum(), [*added.values()])
        assert all(grad.isfinite().all() for grad in grads)
    return bool(replaced)


@pytest.mark.parametrize("name", OWN)
def test_it_goes_into_models_or_says_why_not(name):
    """Into at least one of them, at what it asks to be told."""
    assert any([put(name, model) for model in MODELS]) == (name not in SPELT)
    if name in SPELT:
        assert any([put(SPELT[name], model) for model in MODELS])


@pytest.mark.parametrize("spec", ["elu1", "window", "window(size=200)", "taylor2", "liger", "nystrom"])
def test_a_crossover_is_where_the_costs_cross(spec):
    """By the costs that linearize itself weighs: not fewer FLOPs one token below, fewer from there on.

    An open number of tokens, which prices are of, costs no less than a known one.
    """
    recipe = recipe_named(spec)
    crossover = price(recipe).crossover
    open_ = weighed(recipe, symbol("n"))
    for n in (crossover - 1, *range(crossover, crossover + 300, 7), 4 * crossover):
        before, after = known = weighed(recipe, n)
        if open_ is not None:
            before, after = (evaluate(flops, {"n": n}) for flops in open_)
            assert known[0] == before and known[1] <= after
        assert (after < before) == (n >= crossover), n


def weighed(recipe, n):
    """FLOPs at n tokens as they are and under a recipe; None where it must know how many there are."""
    with building():
        q, k, v = (OPS["input"](name=x, type=TensorType(f32, (1, TWELVE, n, HEAD_DIM))) for x in "qkv")
        op = attention(q, k, v, scale=HEAD_DIM**-0.5, causal="none" not in recipe.masks).op
    found = compare_costs(op, recipe)
    if isinstance(found, No):
        assert not isinstance(n, int), found.reason
        return None
    return [cost.flops for cost in found]


@pytest.mark.parametrize("spec, exponent", [("elu1", 1), ("lamamba", 1), ("linformer", 1), ("zeroi2v", 2)])
def test_exponents_are_what_the_papers_say(spec, exponent):
    assert math.isclose(price(recipe_named(spec)).exponent, exponent, abs_tol=0.01)


def test_what_refuses_by_name_has_no_price():
    with pytest.raises(RecipeError, match="accept_no_mixing"):
        price(recipe_named("activator"))

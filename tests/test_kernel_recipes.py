"""Options of the kernel recipes that the contract cannot reach: what they refuse, what they start as."""

import numpy as np
import pytest
from conformance import SCALE, site_graph
from restatements import Site
from restatements.cosformer import cosformer

from subquad.ir import IRError, RecipeError, evaluate
from subquad.learned import initial

REFUSED = {
    "cosformer": ("causal", "pass length="),
    "cosformer(length=8)": ("none", "beyond length=8"),
    "performer(kernel=gelu)": ("none", "'softmax' or 'relu'"),
    "ecoformer(offset=both)": ("none", "'self' or 'sum'"),
    "polynomial(order=3)": ("none", "an even one"),
    "polynomial(limit=3)": ("none", "a smaller limit or a higher order"),
}


@pytest.mark.parametrize("spec", REFUSED)
def test_what_it_cannot_do_is_refused(spec):
    mask, reason = REFUSED[spec]
    with pytest.raises((IRError, RecipeError), match=reason):
        site_graph(spec, mask, n=9)


def test_inline_wants_channels_that_heads_divide():
    with pytest.raises(RecipeError, match="4 heads do not divide 6 channels"):
        site_graph("inline", n=6, grid=(2, 3))


def given(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def test_cosformer_takes_the_longer_side_where_no_length_is_given():
    q, k, v = given((1, 4, 9, 4), (1, 2, 9, 4), (1, 2, 9, 5))
    (found,), _ = evaluate(site_graph("cosformer"), [q, k, v], {})
    k, v = (x.repeat(2, 1) for x in (k, v))
    expected = cosformer(Site(q, k, v, np.ones((1, 9), bool), False, SCALE, {}), length=9)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("spec, plain, sizes", [
    ("inline", "taylor1", {"c": 8}), ("tensor_attention", "polynomial", {}),
])  # fmt: skip
def test_it_starts_as_the_recipe_it_adds_to(spec, plain, sizes):
    """What it learns changes nothing at the start."""
    graph = site_graph(spec, n=6, b=2, grid=(2, 3), **sizes)
    inputs = given(*(x.shape for x in graph.inputs))
    (found,), _ = evaluate(
        graph, inputs, {n: x.double().detach().numpy() for n, x in initial(graph, {}).items()}
    )
    (expected,), _ = evaluate(site_graph(plain, n=6, b=2), inputs[:3], {})
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_random_features_come_to_the_softmax_kernel():
    """With very many directions the attention is near softmax."""
    graph = site_graph("performer(features=4096)", n=9, b=1)
    inputs = given(*(x.shape for x in graph.inputs))
    (found,), _ = evaluate(graph, inputs, {n: x.double().numpy() for n, x in initial(graph, {}).items()})
    q, k, v = inputs[0], inputs[1].repeat(2, 1), inputs[2].repeat(2, 1)
    weights = np.exp(SCALE * q @ k.swapaxes(2, 3))
    expected = weights @ v / weights.sum(-1, keepdims=True)
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)

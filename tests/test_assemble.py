"""assembled: a rewritten graph as a module, with the weights that the caller gives."""

import pytest
import torch
import zoo
from torch import nn

from subquad.api import captured_at, linearizing, recipes_of
from subquad.assemble import assembled
from subquad.ir import SubquadError
from subquad.passes import EXACT, Pipeline, canonicalize


class Attends(nn.Module):
    """One head of attention, small enough to read."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.fixture(scope="module")
def learning():
    """A model, its capture, and its graph with a recipe that learns weights."""
    torch.manual_seed(0)
    model = Attends().eval()
    captured, _, _ = captured_at(model, (torch.randn(2, 6, 8),), {}, None)
    passes = Pipeline(EXACT, linearizing(recipes_of("hedgehog")), canonicalize)
    return model, captured, passes.run(captured.graph)[0]


def test_weights_of_a_recipe(learning):
    """Given tensors take the place of initial values: copies, parameters still."""
    model, captured, graph = learning
    start = assembled(model, captured, graph)
    names = graph.params.keys() - captured.tensors.keys()
    assert names
    fitted = {name: start.get_parameter(name).detach() + 0.5 for name in names}
    fast = assembled(model, captured, graph, weights=fitted)
    for name, tensor in fitted.items():
        held = fast.get_parameter(name)
        assert held.requires_grad and torch.equal(held, tensor) and held.data_ptr() != tensor.data_ptr()
    x = torch.randn(2, 6, 8)
    start.load_state_dict(fitted, strict=False)
    assert torch.equal(fast(x), start(x))
    fast(x).sum().backward()
    assert all(fast.get_parameter(name).grad is not None for name in names)


def test_weights_of_the_model_leave_it_alone(learning):
    """The model's own weight under its name, also where the rest is shared with the model."""
    model, captured, graph = learning
    before = model.qkv.bias.detach().clone()
    fast = assembled(model, captured, graph, weights={"qkv.bias": before + 1}, share_weights=True)
    assert fast.qkv.weight is model.qkv.weight and fast.qkv.bias is not model.qkv.bias
    assert torch.equal(fast.qkv.bias, before + 1) and torch.equal(model.qkv.bias, before)
    x = torch.randn(2, 6, 8)
    assert not torch.equal(fast(x), assembled(model, captured, graph)(x))


def test_tied_weights_stay_tied():
    """One of two names given: both are the new tensor, and the graph reads it."""
    model, ids = zoo.Tied(), torch.randint(0, 11, (2, 5))
    captured, _, _ = captured_at(model, (ids,), {}, None)
    new = torch.randn_like(model.embed.weight)
    for name in ("embed.weight", "head.weight"):
        fast = assembled(model, captured, captured.graph, weights={name: new})
        assert fast.embed.weight is fast.head.weight and torch.equal(fast.embed.weight, new)
        model.load_state_dict({"embed.weight": new, "head.weight": new})
        torch.testing.assert_close(fast(ids), model(ids))


def test_weights_that_do_not_fit(learning):
    """A name that is none, another shape, another dtype."""
    model, captured, graph = learning
    for weights, why in (
        ({"qvk.bias": torch.zeros(24)}, "no weight of the module is called that"),
        ({"qkv.bias": torch.zeros(23)}, r"of shape \(24,\), and cannot be given float32 of shape \(23,\)"),
        ({"qkv.bias": torch.zeros(24).double()}, r"cannot be given float64"),
    ):
        with pytest.raises(SubquadError, match=why):
            assembled(model, captured, graph, weights=weights)


def test_constants_in_the_graph_are_refused():
    """A buffer that the graph holds as ops cannot be given another value."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(6, 6).tril() == 0, persistent=False)

        def forward(self, x):
            return x.masked_fill(self.mask, 0.0)

    model = Masked()
    captured, _, _ = captured_at(model, (torch.randn(6, 6),), {}, None)
    assert captured.literals == {"mask"}
    with pytest.raises(SubquadError, match="computed inside the graph"):
        assembled(model, captured, captured.graph, weights={"mask": torch.zeros(6, 6).bool()})

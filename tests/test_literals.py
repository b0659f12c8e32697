"""Constant tensors of a model as ops: exactly the tensor, and only what is no state."""

import numpy as np
import pytest
import torch
from torch import nn

import subquad
from subquad.frontend.fx import tensor_type
from subquad.frontend.literals import literal
from subquad.frontend.symbols import Names
from subquad.ir import CaptureError, Graph, building, evaluate

ONES = torch.ones(5, 7)
FOUND = {
    "number": torch.tensor(-1e9),
    "filled": torch.full((2, 3), float("-inf")),
    "true": torch.ones(4, dtype=torch.bool),
    "positions": torch.arange(6)[None],
    "backwards": torch.arange(9, 0, -2),
    "past": ONES.tril().bool()[None, None],
    "past as floats": ONES.tril(2),
    "future": ONES.triu(1).bool(),
    "window": ONES.tril(1).triu(-2).bool(),
    "eye": torch.eye(4),
    "local": torch.bitwise_xor(ONES.tril().bool(), ONES.tril(-3).bool()),
}
OTHER = {
    "nan": torch.tensor(float("nan")),
    "negative zero": torch.tensor(-0.0),
    "noise": torch.randn(3, 3, generator=torch.Generator().manual_seed(0)),
    "one hole": ONES.tril().index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(0.0)),
    "squares": torch.tensor([0, 1, 4, 9]),
    "positions as floats": torch.arange(6.0),
    "two triangles": ONES.tril().expand(2, 5, 7),
    "empty": torch.zeros(0),
    "complex": torch.tensor(1j),
    "trained": torch.zeros(3, requires_grad=True),
}


@pytest.mark.parametrize("name", FOUND)
def test_tensors_that_are_ops(name):
    """Every element, the dtype and the shape."""
    tensor = FOUND[name]
    with building():
        value = literal(tensor, tensor_type(tensor, Names({})))
        (found,), _ = evaluate(Graph("literal", (), (value,)), ())
    assert value.type == tensor_type(tensor, Names({}))
    np.testing.assert_array_equal(found, tensor.numpy())


@pytest.mark.parametrize("name", OTHER)
def test_tensors_that_are_not(name):
    """One element off, signs of zero, NaN, and what could change."""
    assert literal(OTHER[name], tensor_type(OTHER[name], Names({}))) is None


class Kept(nn.Module):
    """Attention whose causal mask is a slice of a buffer, as GPT-Neo has it."""

    def __init__(self, persistent=False, counts=False):
        super().__init__()
        past = torch.ones(32, 32, dtype=torch.bool).tril()
        self.register_buffer("past", past, persistent=persistent)
        self.register_buffer("low", torch.tensor(-1e38), persistent=False)
        self.counts = counts

    def forward(self, q, k, v):
        n = q.shape[2]
        if self.counts:
            self.low.sub_(1e37)
        scores = torch.where(self.past[:n, :n], q @ k.mT, self.low)
        return scores.softmax(-1) @ v


def optimised(model):
    inputs = torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0)).unbind()
    return subquad.optimize(model, inputs, attention="exact", backend="eager"), inputs


def test_a_mask_in_a_buffer_is_proved():
    """A buffer outside the state_dict; once it is written to, a call is refused."""
    model = Kept()
    fast, inputs = optimised(model)
    assert [site.mask for site in fast.sites] == ["causal"] and not fast.graph.params
    torch.testing.assert_close(fast(*inputs), model(*inputs))
    assert dict(fast.named_buffers()).keys() == dict(model.named_buffers()).keys()
    fast.past.fill_(True)
    with pytest.raises(CaptureError, match="old values of past"):
        fast(*inputs)


def test_state_stays_a_weight():
    """What load_state_dict changes, and what a call writes, is read when it runs."""
    fast, _ = optimised(Kept(persistent=True))
    assert list(fast.graph.params) == ["past"] and "param 'past'" in fast.sites[0].reason
    fast, _ = optimised(Kept(counts=True))
    assert "low" in fast.graph.params and "low" in fast.graph.updates

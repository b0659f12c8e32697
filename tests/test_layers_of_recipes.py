"""Recipes that differ from layer to layer: slopes, bounds, walks and shifts, in every layer of a model."""

import pytest
import test_recipe_contract as contract
from restatements import RESTATED

LAYERED = (
    "lightning",
    "lightning(rule=paper)",
    "mlgru",
    "lamamba(window=3,state=2)",
    "lingen(window=2,frames=2,pool=2)",
    "lion(window=3,group=8,state=2)",
    "lion_retnet(window=3,group=8)",
    "lion_rwkv(window=3,group=8,rank=3)",
)


@pytest.mark.parametrize("index", [0, 2, 3])
@pytest.mark.parametrize("spec", LAYERED)
def test_it_is_its_formula_in_every_layer(spec, index, monkeypatch):
    """The contract tries layer 1 of 3."""
    monkeypatch.setattr(contract, "INDEX", index)
    monkeypatch.setattr(contract, "COUNT", 4)
    case = RESTATED[spec]
    contract.test_it_is_its_formula(case, min(contract.recipe_named(spec).masks))

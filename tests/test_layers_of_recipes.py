"""Recipes that differ from layer to layer: slopes, bounds, walks and shifts, in every layer of a model."""

import conformance as contract
import pytest
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
    assert contract.error(case, min(contract.recipe_named(spec).masks)) < 1e-10


@pytest.mark.parametrize(
    ("spec", "place", "why"),
    [
        ("lightning(slopes=1)", {}, "1 slopes for 4 heads"),
        ("lightning(rule=linear)", {}, "'alibi' or 'paper'"),
        ("gla(source=values)", {}, "'tokens' or 'keys'"),
        ("mamba2(conv=0)", {}, "convolution of 0 tokens"),
        ("gated_deltanet(half_life=0)", {}, "half_life=0"),
        ("rwkv6(half_life=-1)", {}, "half_life=-1"),
        ("mom(chosen=5)", {}, "chosen=5 of memories=4"),
        ("mlgru", {}, "5 features a head, not 4"),
        ("lamamba", {"n": 8, "grid": (2, 2, 2)}, "height, width"),
        ("lingen(pool=0)", {"n": 8, "grid": (2, 2, 2)}, "pool=0"),
        ("lion(group=0)", {"n": 4, "grid": (2, 2)}, "group=0"),
        ("lion", {"n": contract.symbol("n"), "grid": (contract.symbol("n"), 1)}, "have to be numbers"),
    ],
)
def test_what_recurrences_refuse(spec, place, why):
    """Options and places that have no meaning, each with a reason."""
    with pytest.raises(contract.RecipeError, match=why):
        contract.site_graph(spec, min(contract.recipe_named(spec).masks), **place)

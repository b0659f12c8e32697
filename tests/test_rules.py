"""Every rule of the library is proved on random instances of its own `before`.

What an exact rule promises: the type of the value it replaces; the same numbers to 1e-10 in
float64; the same NaN places, signed infinities and signed zeros, whatever the inputs; that the
driver finds it; that it settles together with every other rule. A rule that is not exact promises
its type and that it settles. Nobody writes a test for a rule here: rules are collected from the
library.
"""

import numpy as np
import pytest
from fuzz import Maker, difference, library_rules, run

from subquad.ir import DTYPES, Graph, IRError, No, building, journal, ops, rewrite, rule
from subquad.ir.rule import Rule

INSTANCES, TRIES = 50, 4000
RULES = library_rules()


def instances(tested: Rule, count: int):
    """Graphs that are an instance of the rule's `before`, at which the rule fires, and the result.

    Raises AssertionError when the rule breaks a promise, or never gets to fire.
    """
    found, built, refusals = 0, 0, set()
    for seed in range(TRIES * max(1, count // INSTANCES)):
        with building():
            kind = {"special": seed % 4 == 1, "famous": seed % 4 == 3}
            maker = Maker(seed, reuse=0.1, sources=0.3, **kind)
            value = maker.plant(tested, tries=1)
            if value is None:
                continue
            built += 1
            before = maker.graph([value])
            result = tested.apply(value)
            if result is None or isinstance(result, No):
                refusals.add(None if result is None else result.reason)
                continue
            if result is value:
                continue
            assert result.type == value.type, f"changes a type: {value.type} became {result.type}"
            after = maker.graph([result])
        yield seed, before, after
        found += 1
        if found == count:
            return
    assert built, "its `before` never instantiates"
    if tested.doc.startswith("Refused") and None not in refusals:
        return  # a rule that is there to give its reason
    assert found, f"never fires on {built} instances of its `before`: {refusals}"


def prove(tested: Rule, count: int = INSTANCES) -> None:
    """Raise AssertionError, with the instance, unless the rule keeps its promises."""
    for seed, before, after in instances(tested, count):
        problem = compare(tested, before, after, seed) or settles(tested, before)
        assert problem is None, f"rule {tested.name!r}: {problem}\n{before}\nbecame\n{after}"


def compare(tested: Rule, before: Graph, after: Graph, seed: int) -> str | None:
    """What differs between the two graphs, on ordinary and on special inputs."""
    for special in (False, True):
        try:
            (a,) = run(before, seed, special=special)
        except IRError:  # an index out of range: nothing is promised
            continue
        (b,) = run(after, seed, special=special)
        if not tested.exact:
            a, b = np.zeros_like(a), np.zeros_like(b)
        problem = difference(a, b)
        if problem:
            return f"{problem} on {'special' if special else 'ordinary'} inputs"
    return None


def settles(tested: Rule, before: Graph) -> str | None:
    """Whether the driver finds the rule by itself, and comes to an end, alone and in company."""
    with journal() as log:
        rewrite(before, [tested])
    if not any(event.applied and event.rule == tested.name for event in log.events):
        return "the driver does not find it"
    everything = {**RULES, tested.name: tested}
    rewrite(before, list(everything.values()))
    return None


@pytest.mark.parametrize(
    "name", RULES or [pytest.param("", marks=pytest.mark.skip("no rules yet"))]
)
def test_rule_is_true(name):
    """50 instances of every rule."""
    prove(RULES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_rule_is_true_at_length(name):
    """500 instances of every rule."""
    prove(RULES[name], 500)


# ---- the prover itself ---------------------------------------------------------------------------


@rule(lambda x, *, a, b: ops.permute(ops.permute(x, dims=a), dims=b))
def wrong_order(x, *, a, b):
    """The two orders composed the wrong way round."""
    return ops.permute(x, dims=tuple(b[i] for i in a))


@rule(lambda x: x * 0.0)
def times_zero(x):
    """NaN and infinity times zero are NaN."""
    return ops.expand(ops.const(value=0.0, dtype=x.dtype), size=x.shape)


@rule(lambda x, y: ops.relu(x) * ops.relu(y))
def relu_of_product(x, y):
    """Wrong where both are negative."""
    return ops.relu(x * y)


@rule(lambda x: ops.exp(x))
def to_half(x):
    """Another type than the value it replaces."""
    return ops.cast(ops.exp(x), dtype=DTYPES["f16"])


@rule(lambda x, y: ops.maximum(x, y))
def swap_maximum(x, y):
    """Right, and never done."""
    return ops.maximum(y, x)


@rule(lambda x, *, dim: ops.softmax(x, dim=dim))
def softmax_without_max(x, *, dim):
    """Right on ordinary numbers, and overflows on huge ones."""
    e = ops.exp(x)
    return e / ops.sum(e, dim=(dim,), keepdim=True)


@rule(lambda x, *, a, b: (x + a) + b)
def drop_second(x, *, a, b):
    """Wrong unless b is zero."""
    return x + a


@rule(lambda x: ops.where(x, ops.exp(x), x))
def impossible(x):
    """Its `before` has no types: a condition has no exponential."""
    return x


@rule(lambda x: ops.neg(ops.neg(x)))
def shy(x):
    """Always refuses."""
    return No("not today")


@pytest.mark.parametrize(
    ("seeded", "complaint"),
    [
        (wrong_order, "changes a type|off by"),
        (times_zero, "NaN at other places|sign of a zero"),
        (relu_of_product, "off by|NaN|sign"),
        (to_half, "changes a type"),
        (swap_maximum, "does not settle"),
        (softmax_without_max, "NaN at other places"),
        (drop_second, "off by|infinities|NaN|differ"),
        (impossible, "never instantiates"),
        (shy, "never fires .*not today"),
    ],
    ids=lambda item: getattr(item, "name", ""),
)
def test_the_prover_catches(seeded, complaint):
    """Wrong rules die, each of what is wrong with it."""
    with pytest.raises((AssertionError, IRError), match=complaint):
        prove(seeded)


@rule(lambda x, *, a, b: ops.permute(ops.permute(x, dims=a), dims=b))
def right_order(x, *, a, b):
    """One permute does the work of two."""
    return ops.permute(x, dims=tuple(a[i] for i in b))


@rule(
    lambda x, y, z: ops.matmul(x, z) + ops.matmul(y, z),
    lambda x, y, z: ops.matmul(x, z) - ops.matmul(ops.neg(y), z),
    exact=False,
)
def factor(x, y, z):
    """Two spellings of a sum of products, and a guard."""
    if x.type != y.type or not x.dtype is y.dtype is z.dtype:
        return No("not alike")
    return ops.matmul(x + y, z)


def test_the_prover_accepts():
    """Right rules live: guards, several spellings, attributes."""
    prove(right_order)
    prove(factor)

"""Dims are a ring, divide exactly where that is provable, and are equal only if always equal."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from subquad.ir import IRError, Poly, TensorType, parse, symbol
from subquad.ir.dims import (
    at_least,
    ceildiv,
    evaluate,
    floordiv,
    maximum,
    minimum,
    substitute,
    symbols,
)
from subquad.ir.types import DTYPES

NAMES = ("a", "b", "n")
a, b, n = map(symbol, NAMES)
ENVS = [
    dict(zip(NAMES, values, strict=True)) for values in itertools.product((0, 1, 2, 5), repeat=3)
]


def combined(children):
    """Sums, differences, products, quotients and extrema of dims."""
    pairs = st.tuples(children, children)
    small = st.integers(1, 6)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] - p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: minimum(*p)),
        pairs.map(lambda p: maximum(*p)),
        st.tuples(children, small).map(lambda p: floordiv(*p)),
        st.tuples(children, small).map(lambda p: p[0] % p[1] if isinstance(p[0], Poly) else p[0]),
    )


ATOMS = st.one_of(st.integers(-4, 6), st.sampled_from((a, b, n)))
DIMS = st.recursive(ATOMS, combined, max_leaves=6)
SUMS = st.recursive(ATOMS, lambda c: st.tuples(c, c).flatmap(
    lambda p: st.sampled_from((p[0] + p[1], p[0] - p[1], p[0] * p[1]))), max_leaves=6)  # fmt: skip


def value(dim, env):
    """A dim as an integer."""
    return evaluate(dim, env)


@given(DIMS, DIMS, DIMS)
def test_ring_laws(x, y, z):
    """Commutative, associative, distributive, with 0 and 1; canonical, so == decides."""
    assert x + y == y + x and x * y == y * x
    assert (x + y) + z == x + (y + z) and (x * y) * z == x * (y * z)
    assert x * (y + z) == x * y + x * z
    assert x + 0 == x and x * 1 == x and x * 0 == 0 and x - x == 0 and 0 - (0 - x) == x
    assert hash((x + y) + z) == hash(x + (y + z))


@given(DIMS, DIMS)
def test_operations_commute_with_values(x, y):
    """Computing on dims and then choosing sizes is choosing sizes and then computing."""
    for env in ENVS[::7]:
        p, q = value(x, env), value(y, env)
        assert value(x + y, env) == p + q and value(x * y, env) == p * q
        assert value(minimum(x, y), env) == min(p, q) and value(maximum(x, y), env) == max(p, q)


@given(DIMS, st.integers(1, 7))
def test_division_rounds_down(x, k):
    """`//`, `%` and `ceildiv` by a positive integer are Python's, whatever simplified."""
    for env in ENVS[::5]:
        p = value(x, env)
        assert value(floordiv(x, k), env) == p // k
        assert value(ceildiv(x, k), env) == (p + k - 1) // k
        if isinstance(x, Poly):
            assert value(x % k, env) == p % k
    assert floordiv(x * k, k) == x


@given(SUMS, SUMS)
def test_division_by_dims(x, y):
    """Division by a polynomial is floor division where defined, and exact on products."""
    assume(y != 0)
    quotient = floordiv(x, y)
    for env in ENVS[::3]:
        if value(y, env) != 0:
            assert value(quotient, env) == value(x, env) // value(y, env)
    assert floordiv(x * y, y) == x


@given(DIMS, DIMS)
def test_equal_means_always_equal(x, y):
    """Equal dims have equal values everywhere; dims with equal values everywhere may differ."""
    if x == y:
        assert all(value(x, env) == value(y, env) for env in ENVS[::7]) and str(x) == str(y)


@given(SUMS, SUMS)
def test_polynomials_are_canonical(x, y):
    """Without division, dims that agree at enough places are the same object of thought."""
    grid = [dict(zip(NAMES, v, strict=True)) for v in itertools.product(range(8), repeat=3)]
    if all(value(x, env) == value(y, env) for env in grid):
        assert x == y  # degree < 8 in each symbol


@given(DIMS, st.integers(-3, 9))
def test_at_least_is_never_wrong(x, bound):
    """What is proved holds; nothing is said of the rest."""
    if at_least(x, bound):
        assert all(value(x, env) >= bound for env in ENVS[::3])


@given(DIMS)
def test_text_comes_back(x):
    """A dim in a type prints and parses to itself, also as an attribute."""
    type = TensorType(DTYPES["f32"], (x, 1))
    text = f"graph g(%x: {type}) {{\n  %0 = reshape(%x, shape=({x}, 1)) : {type}\n  return %0\n}}"
    graph = parse(text)
    assert graph.inputs[0].type == type and str(graph.inputs[0].type) == str(type)
    assert graph.outputs[0].op.attrs["shape"] == (x, 1)


@given(DIMS, DIMS)
def test_substitution(x, y):
    """Substituting a dim and then evaluating is evaluating with its value."""
    replaced = substitute(x, {"n": y})
    for env in ENVS[::11]:
        inner = value(y, env)
        if inner >= 0:
            assert value(replaced, env) == value(x, {**env, "n": inner})


def test_what_simplifies():
    """The identities that shapes of models live by."""
    assert floordiv(12 * n, 4) == 3 * n and floordiv(a * b * n, b) == a * n
    assert floordiv(2 * n + 3, 2) == n + 1 and (2 * n) % 2 == 0
    assert floordiv((n + 1) * (n + 2), n + 1) == n + 2
    assert floordiv(n, 2) * 2 != n and n % 2 != 0
    assert minimum(n, n + 1) == n and maximum(n, 0) == n and minimum(n, b) == minimum(b, n)
    assert str(2 * n * n - 3 * b + 1) == "2*n*n - 3*b + 1"
    assert list(symbols((n * b, floordiv(a, 2)))) == ["b", "n", "a"]


def test_what_is_refused():
    """Truth of an unknown, division by nothing, too many terms, missing values."""
    with pytest.raises(IRError, match="truth"):
        bool(n)
    for zero in (lambda: floordiv(3, 0), lambda: floordiv(n, 0), lambda: n % 0):
        with pytest.raises(IRError, match="divided by zero"):
            zero()
    with pytest.raises(IRError, match="terms; the limit is 64"):
        big = sum((symbol(f"s{i}") for i in range(40)), start=0)
        big * big
    with pytest.raises(IRError, match="needs a value for b"):
        evaluate(n + b, {"n": 1})
    with pytest.raises(TypeError):
        n + 1.5


def test_unknown_is_not_equal():
    """Symbols are equal to themselves only, and to no number."""
    assert n != b and n != 4 and n + 0 == n and len({n, symbol("n"), n + 0}) == 1
    assert (n == 4) is False

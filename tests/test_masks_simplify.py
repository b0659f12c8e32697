"""The split of a mask into attributes of `attention` and a smaller operand gives what the mask gave."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spelt_masks import KEEPS, LOW, SIZES, TOGETHER, B, H, M, N, Scores, joined, random_input

from subquad.ir import OPS, Graph, building, evaluate
from subquad.ir.ops.attention import attention
from subquad.ir.ops.elementwise import le, logical_and, where
from subquad.ir.types import f32, i64
from subquad.passes.masks import simplify


@given(st.data())
def test_simplify_changes_no_result(data):
    """The split mask in `attention` gives what the mask gave, fully masked rows included."""
    draw = lambda options: data.draw(st.sampled_from(list(options)))  # noqa: E731
    keeps = draw([k for k in TOGETHER if k])
    empty = draw(["zero", "nan", "uniform"])
    own = draw([{}, {"causal": True}, {"causal": True, "offset": 1, "window": 3}])
    with building():
        s = Scores(draw, m=N if "packed" in keeps else M)
        conditions = [
            KEEPS[name](s, data.draw(st.integers(0, 4)), data.draw(st.integers(1, 4))) for name in keeps
        ]
        mask = joined(draw, conditions, draw([[], [], [s.learned()]]))
        shapes = (B, H, N, 4), (B, H, s.m, 4), (B, H, s.m, 2)
        q, k, v = (s.input(x, f32, *shape) for x, shape in zip("qkv", shapes, strict=True))
        found = simplify(mask, own.get("causal", False), own.get("offset", 0), own.get("window"), empty)
        if found is None:
            return
        operand, causal, offset, window, empties = found
        before = attention(q, k, v, mask, scale=0.5, empty=empty, **own)
        after = attention(
            q, k, v, operand, scale=0.5, causal=causal, offset=offset, window=window, empty=empties
        )  # fmt: skip
        graph = Graph("both", list(s.inputs.values()), (before, after))
    for size in SIZES:
        size = {**size, "m": size["n"]} if s.m == N else size
        rng = np.random.default_rng(1)
        (a, b), _ = evaluate(graph, [random_input(v, size, rng) for v in graph.inputs], dims=size)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "build, attrs, operand",
    [
        (lambda s: s.causal(), (True, 0, None, "zero"), False),
        (lambda s: le(s.j, s.i + OPS["size"](value=M - N, dtype=i64)), (True, M - N, None, "zero"), False),
        (lambda s: s.past(4), (True, 0, 4, "zero"), False),
        (lambda s: s.near(3), (False, 0, 3, "zero"), False),
        (lambda s: logical_and(s.causal(), s.padding()), (True, 0, None, "zero"), True),
        (lambda s: where(s.causal(), 0.0, float("-inf")), (True, 0, None, "zero"), False),
        (lambda s: where(s.causal(), 0.0, LOW), (True, 0, None, "uniform"), False),
        (lambda s: where(s.padding(), 0.0, LOW), (False, 0, None, "uniform"), True),
        (lambda s: where(s.causal(), s.learned(), float("-inf")), (True, 0, None, "zero"), True),
    ],
)  # fmt: skip
def test_simplify(build, attrs, operand):
    """What is by position becomes attributes; what is two-valued becomes bool."""
    with building():
        found = simplify(build(Scores()))
    assert found is not None and found[1:] == attrs and (found[0] is not None) == operand


@pytest.mark.parametrize(
    "build",
    [
        lambda s: s.padding(),
        lambda s: s.learned(),
        lambda s: where(s.causal(), 0.0, -1e4),
        lambda s: where(s.causal(), s.learned(), LOW),
        lambda s: where(s.causal(), 0.0, LOW) + where(s.padding(), 0.0, LOW),
        lambda s: where(s.causal(), 0.0, LOW) + s.learned(),
    ],
)
def test_simplify_leaves(build):
    """What has nothing by position, and finite minus infinities whose sums or biases show."""
    with building():
        assert simplify(build(Scores())) is None

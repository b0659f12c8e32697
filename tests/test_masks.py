"""Masks: whatever is claimed of one is what it computes; known spellings are named; near misses are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spelt_masks import ADDS, KEEPS, LOW, SIZES, TOGETHER, B, H, M, N, Scores, agrees, joined

from subquad.ir import OPS, building
from subquad.ir.ops.attention import attention
from subquad.ir.ops.elementwise import (
    cast,
    div,
    eq,
    ge,
    gt,
    le,
    logical_and,
    logical_not,
    logical_or,
    ne,
    where,
)
from subquad.ir.ops.index import arange
from subquad.ir.ops.reduce import cumsum
from subquad.ir.ops.shape import cat, expand, permute, reshape, slice_, tril, triu
from subquad.ir.types import bool_, f32, i64
from subquad.passes import RECIPES, compare_costs
from subquad.passes.linearize import substitute
from subquad.passes.masks import PARTS, classify, counterexample


def proved(build, kind, m=M, sizes=SIZES):
    """The mask that `build(scores)` writes, its kind and what it computes checked."""
    with building():
        scores = Scores(m=m)
        mask = build(scores)
        found = classify(mask)
        assert found.kind == kind, found.reason
        for size in sizes:
            agrees(mask, found, list(scores.inputs.values()), size)
    return found


# ---- any combination, in any spelling ------------------------------------------------------------


def parts_of(names):
    there = {part for name in names for part in name.split("+")}
    return "+".join(part for part in PARTS if part in there) or "none"


@given(st.data())
def test_what_is_written_is_named(data):
    """Every kind and combination in every spelling, bool and additive: named, and what it computes."""
    draw = lambda options: data.draw(st.sampled_from(list(options)))  # noqa: E731
    keeps = draw(TOGETHER)
    adds = draw([(), (), ("alibi",), ("relative",), ("bias",), ("relative", "bias")])
    a, b = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 4))
    with building():
        scores = Scores(draw, m=N if "packed" in keeps else M)
        conditions = [KEEPS[name](scores, a, b) for name in data.draw(st.permutations(keeps))]
        terms = [ADDS[name](scores) for name in adds]
        mask = joined(draw, conditions, terms)
        if mask is None:
            return
        found = classify(mask)
        for size in SIZES:
            size = {**size, "m": size["n"]} if scores.m == N else size
            agrees(mask, found, list(scores.inputs.values()), size, a)
    assert found.kind == parts_of((*keeps, *adds)), found.reason


@given(st.data())
def test_no_near_miss_is_misnamed(data):
    """Shifted, flipped, transposed, negated: whatever is said of it is what it computes."""
    draw = lambda options: data.draw(st.sampled_from(list(options)))  # noqa: E731
    with building():
        s = Scores(draw, m=N)
        mask = draw(KEEPS.values())(s, data.draw(st.integers(0, 4)), data.draw(st.integers(1, 4)))
        mask = expand(mask, size=(1,) * (4 - mask.rank) + mask.shape)
        for _ in range(data.draw(st.integers(1, 2))):
            mask = draw(MUTANTS)(draw, s, mask)
        found = classify(mask)
        for size in SIZES:
            agrees(
                mask, found, list(s.inputs.values()), {**size, "m": size["n"]}
            ) if found.kind != "dense" else None


def transposed(draw, s, x):
    return permute(x, dims=(0, 1, 3, 2))


def shifted(draw, s, x):
    """Every key, or query, masked as the one before it; the first as itself."""
    axis = draw([2, 3])
    if x.shape[axis] == 1:
        return x
    first = slice_(x, dim=axis, start=0, end=1)
    return cat(first, slice_(x, dim=axis, start=0, end=N - 1), dim=axis)


def flipped(draw, s, x):
    return OPS["flip"](x, dims=(draw([2, 3]),))


def either(draw, s, x):
    return logical_or(x, draw([s.causal, s.padding, lambda: s.near(2)])())


def both(draw, s, x):
    return logical_and(x, logical_not(draw([s.causal, s.padding, s.packed, lambda: s.past(2)])()))


def queries_padded(draw, s, x):
    return logical_and(x, reshape(s.input("keep", bool_, B, N), shape=(B, 1, N, 1)))


MUTANTS = [transposed, shifted, flipped, either, both, queries_padded, lambda d, s, x: logical_not(x)]


# ---- kinds that need words of their own ----------------------------------------------------------


def test_positions_that_count_within_segments():
    """Hugging Face's packed sequences: comparisons of position_ids are comparisons of indices."""

    def build(s):
        ids = s.input("position_ids", i64, B, N)
        jumps = ne(
            ids - slice_(cat(slice_(ids, dim=1, start=0, end=1) - 1, ids, dim=1), dim=1, start=0, end=N), 1
        )
        segments = cumsum(jumps, dim=1)
        a, b = (reshape(segments, shape=shape) for shape in ((B, 1, N, 1), (B, 1, 1, N)))
        i, j = (reshape(ids, shape=shape) for shape in ((B, 1, N, 1), (B, 1, 1, N)))
        return logical_and(logical_and(gt(j, i - 3), le(j, i)), eq(a, b))

    found = proved(build, "causal+window+packed", N, [{"b": 2, "n": n, "m": n} for n in (1, 5, 9)])
    assert found.window == 3
    plain = lambda s: le(s.ids()[1], s.ids()[0])  # noqa: E731
    with building():
        assert "input 'ids'" in classify(plain(Scores(m=N))).reason


def test_chunks_counted_from_where_a_sequence_starts():
    """Llama 4 with padding on the left: chunks of each row start at its own first token."""

    def build(s):
        left = reshape(s.input("left", i64, B), shape=(B, 1, 1, 1))
        i = reshape(arange(end=N, dtype=i64), shape=(1, 1, N, 1)) - left
        j = reshape(arange(end=M, dtype=i64), shape=(1, 1, 1, M)) - left
        same = eq(div(j, 3, rounding_mode="floor"), div(i, 3, rounding_mode="floor"))
        return logical_and(same, le(j, i))

    found = proved(build, "causal+chunked")
    assert found.chunk == 3 and found.starts.shape == (B,)


def test_alibi_of_padded_positions():
    """Bloom: positions count the kept tokens."""

    def build(s):
        kept = s.input("kept", i64, B, M)
        positions = reshape((cumsum(kept, dim=1) - 1) * kept, shape=(B, 1, M))
        bias = reshape(s.input("slopes", f32, H), shape=(H, 1)) * positions
        return reshape(bias, shape=(B, H, 1, M)) + where(s.causal(), 0.0, LOW)

    found = proved(build, "causal+alibi")
    assert found.positions.shape == (B, M) and found.slopes.shape == (H,)


def test_alibi_both_ways():
    """-slopes * |i - j| is linear in j where only the past is seen, and not where the future is."""
    assert proved(lambda s: s.distance(), "alibi").symmetric
    assert not proved(lambda s: where(s.causal(), s.distance(), LOW), "causal+alibi").symmetric
    assert proved(lambda s: where(s.near(3), s.distance(), LOW), "window+alibi").symmetric


def test_what_is_zero_where_it_is_not_masked():
    """inverted.masked_fill(inverted.bool(), low): where it is not masked, what is left is 0."""
    for dtype in (i64, f32):

        def build(s, dtype=dtype):
            inverted = 1.0 - cast(reshape(s.input("kept", dtype, B, M), shape=(B, 1, 1, M)), dtype=f32)
            return where(cast(inverted, dtype=bool_), LOW, inverted)

        proved(build, "padding")


def test_an_integer_mask_times_a_low_number_is_a_bias():
    """(1 - mask) * low is padding only if the mask holds 0 and 1, which no integer input proves."""
    build = lambda s: (1.0 - cast(s.input("kept", i64, B, 1, 1, M), dtype=f32)) * LOW  # noqa: E731
    with building():
        found = classify(build(Scores()))
    assert (found.kind, found.bias.shape) == ("bias", (B, 1, 1, M)) and "input 'kept'" in found.reason


@pytest.mark.parametrize("w", [1, 2, 5])
def test_windows_as_differences_of_triangles(w):
    """xor of two triangles, and bounds that others imply."""
    both = lambda s: OPS["logical_xor"](tril(s.ones()), tril(s.ones(), diagonal=-w))  # noqa: E731
    assert proved(both, "causal+window").window == w
    assert proved(lambda s: logical_or(s.causal(1), s.causal(-w)), "causal").offset == 1
    assert proved(lambda s: logical_or(s.causal(w), triu(s.ones(), diagonal=w + 1)), "none").kind == "none"


def test_keys_before_and_after_padding():
    """Bias keys and global tokens: a padding mask made longer by keys that are kept, or are not."""

    def padded(s, value=0.0):
        keep = reshape(s.input("keep", bool_, B, M - 3), shape=(B, 1, 1, M - 3))
        return OPS["pad"](where(keep, 0.0, LOW), pad=(2, 1), value=value)

    def joined(s):
        ones = expand(OPS["const"](value=True, dtype=bool_), size=(B, 3))
        keep = cat(ones, s.input("keep", bool_, B, M - 3), dim=1)
        return logical_and(s.causal(), reshape(keep, shape=(B, 1, 1, M)))

    proved(padded, "padding")
    proved(lambda s: padded(s, -1e9), "padding")
    proved(joined, "causal+padding")


def test_shifted_windows():
    """Swin: tokens of one window see each other if they were neighbours before the shift."""

    def build(s):
        x = arange(end=8, dtype=i64)
        part = cast(ge(x, 4), dtype=i64) + cast(ge(x, 6), dtype=i64)
        ids = cast(reshape(part, shape=(8, 1)) * 3 + part, dtype=f32)
        ids = reshape(permute(reshape(ids, shape=(2, 4, 2, 4)), dims=(0, 2, 1, 3)), shape=(4, 16))
        gap = reshape(ids, shape=(4, 1, 16)) - reshape(ids, shape=(4, 16, 1))
        masked = where(eq(gap, 0.0), 0.0, where(ne(gap, 0.0), -100.0, gap))
        return reshape(masked, shape=(4, 1, 16, 16))

    found = proved(build, "packed", sizes=[{"b": 4, "n": 16, "m": 16}])
    assert not found.hard


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda s: s.input("mask", bool_, B, 1, N, M), "depends on the query through input 'mask'"),
        (lambda s: s.input("mask", bool_, H, 1, M), "depends on the head through input 'mask'"),
        (lambda s: s.input("keep", bool_, B, 1, N, 1), "masks whole queries through input 'keep'"),
        (lambda s: triu(s.ones()), "masks the past and keeps the future"),
        (lambda s: le(s.j * 2, s.i), "not j <= i"),
        (lambda s: le(s.j, s.i * s.i), "not j <= i"),
        (lambda s: expand(OPS["const"](value=False, dtype=bool_), size=(N, M)), "keeps nothing"),
    ],
)  # fmt: skip
def test_dense_masks_have_a_reason(build, reason):
    """What is not proved is dense, with what stands in the way."""
    with building():
        found = classify(build(Scores()))
    assert found.kind == "dense" and reason in found.reason and found.at is not None


def test_attributes_and_mask_together():
    """A mask in force together with the attributes of `attention`."""
    with building():
        s = Scores()
        assert classify(None).kind == "none" and classify(None, True).kind == "causal"
        both_ways = classify(None, False, 2, 3)
        assert (both_ways.kind, both_ways.offset, both_ways.window) == ("window", 2, 3)
        narrower = classify(s.past(4), True, 0, 2)
        assert (narrower.kind, narrower.window) == ("causal+window", 2)
        assert classify(s.padding(), True, 1).kind == "causal+padding"
        assert classify(s.causal(1), True, -1).offset == -1


def test_a_long_formula_is_left():
    """What is used many times over is not written out: time stays linear in the ops."""

    def build(s):
        x = s.input("x", f32, B, 1, N, M)
        for _ in range(60):
            x = x * cast(x, dtype=f32) * 0.1 + x * 0.5
        return x + where(s.causal(), 0.0, LOW)

    proved(build, "causal+bias", sizes=SIZES[:1])


@pytest.mark.parametrize(
    "attrs, words",
    [
        ({"causal": True, "window": 4}, "this mask is causal+window"),
        ({"causal": True, "offset": 1}, "honours no offset"),
        ({"softcap": 30.0}, "honours no softcap"),
        ({"sink": True}, "honours no sink"),
    ],
)
def test_recipes_refuse_what_they_do_not_honour(attrs, words):
    """A window is not the past, and what else an attention does is not passed over."""
    with building():
        s = Scores(m=N)
        q, k, v = (s.input(name, f32, B, H, N, 4) for name in "qkv")
        sink = s.input("sink", f32, H) if attrs.pop("sink", False) else None
        op = attention(q, k, v, None, sink, scale=0.5, **attrs).op
        for name in ("elu1", "taylor1", "window"):
            assert words in substitute(op, op.inputs, RECIPES[name]).reason
            assert words in compare_costs(op, RECIPES[name]).reason


# ---- counterexamples -----------------------------------------------------------------------------


def test_counterexamples():
    """One index at which a dense mask is not the nearest named one."""
    with building():
        s = Scores()
        later = le(s.j, s.i + 1)
        assert counterexample(later) == (
            "keeps key 1 for query 0 (batch 0, head 0), which causal does not, at n=8, m=8"
        ).replace(", m=8", "")
        assert counterexample(s.causal()) == ""
        assert counterexample(triu(s.ones())).startswith(
            "masks key 0 for query 1 (batch 0, head 0), which no mask"
        )
        assert "adds" in counterexample(s.learned())
        unknown = OPS["opaque"](later, target="x", args=(), types=(later.type,))
        assert counterexample(unknown) == ""

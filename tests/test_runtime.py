"""Predicted times: the roofline of an op by hand, graphs by phase, crossovers, and the models of serving."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from subquad import machine as machines
from subquad.backends import backend
from subquad.backends.linear_attention import kernels
from subquad.ir import OPS, Graph, IRError, No, RecipeError, SubquadError, TensorType, building, cost, symbol
from subquad.ir.dims import evaluate
from subquad.ir.ops.activation import gelu, softmax
from subquad.ir.ops.attention import attention
from subquad.ir.ops.elementwise import exp, where
from subquad.ir.ops.linear import matmul
from subquad.ir.ops.linear_attention import linear_attention
from subquad.ir.ops.shape import expand, permute, reshape, slice_, unfold
from subquad.ir.types import bool_, f32
from subquad.machine import Machine, machine_named
from subquad.passes import RECIPES, recipe_named
from subquad.roofline import Roofline, launches, pairs_seen, recurrence_kind
from subquad.runtime import LENGTHS, Site, crossover, grids, idealised, parts, seconds, site
from subquad.serving import Decoder, Idealised, critical_intensity, eflops
from subquad.speeds import graph_seconds, recurrence, runnable

LAUNCH, VIEW, BANDWIDTH, EXP = 1e-6, 1e-7, 1e9, 1e8
SHARES = {name: 2.0**-i for i, name in enumerate(machines.SHARES, start=1)}
PLAIN = Machine(
    "plain", "cpu", {"f32": 1e9, "bf16": 4e9}, ((8.0, 0.25), (64.0, 1.0)), SHARES, ((1.0, BANDWIDTH),),
    {"exp": EXP}, LAUNCH, VIEW, 1e9,
)  # fmt: skip
"""A machine to count on: 1 GFLOP/s, 1 GB/s, 0.1 G exponentials a second, shares of a half, a quarter, ..."""


N = symbol("n")


def inputs(*shapes, dtype=f32):
    """An input for each shape."""
    return [OPS["input"](name=f"x{i}", type=TensorType(dtype, shape)) for i, shape in enumerate(shapes)]


def attends(n=N, h=4, g=None, d=64, **attrs):
    """An `attention` op of one sequence."""
    with building():
        q, k, v = inputs((1, h, n, d), (1, g or h, n, d), (1, g or h, n, d))
        return attention(q, k, v, **{"scale": d**-0.5, **attrs}).op


# ---- one op --------------------------------------------------------------------------------------


def test_elementwise_work_is_its_bytes_or_its_exponentials():
    """Addition reads two and writes one; an exponential takes longer than its 8 bytes here."""
    with building():
        x, y = inputs((100, 1000), (100, 1000))
        added, grown = (x + y).op, exp(x).op
    assert seconds(added, {}, PLAIN) == pytest.approx(LAUNCH + 12e5 / BANDWIDTH)
    assert seconds(grown, {}, PLAIN) == pytest.approx(LAUNCH + 1e5 / EXP)
    (part,) = parts(grown, {}, PLAIN)
    assert (part.bound, part.bytes, part.flops) == ("elements", 800_000, 0)
    assert parts(added, {}, PLAIN)[0].bound == "memory"


def test_small_work_is_its_launch():
    """And constants are not read."""
    with building():
        (x,) = inputs((4,))
        (part,) = parts((x + 1.0).op, {}, PLAIN)
    assert part.bound == "launch" and part.bytes == 32


def test_memory_is_faster_in_cache():
    """Where the bandwidth says so: a hundred times the bytes take a thousand times the time."""
    cached = replace(PLAIN, bandwidth=((12e3, 1e10), (12e5, 1e9)), launch=1e-12)
    with building():
        (x, y), (a, b) = inputs((1000,), (1000,)), inputs((100_000,), (100_000,))
        little, much = (x + y).op, (a + b).op
    assert seconds(much, {}, cached) / seconds(little, {}, cached) == pytest.approx(1000, rel=1e-3)


def test_products_by_their_least_side():
    """A product is as fast as its shortest side allows, in the dtype that it is computed in."""
    with building():
        a, b, thin = inputs((100, 64), (64, 100), (64, 8))
        wide, narrow = matmul(a, b).op, matmul(a, thin).op
    slow = replace(PLAIN, bandwidth=((1.0, 1e15),))
    assert seconds(wide, {}, slow) == pytest.approx(LAUNCH + 2 * 100 * 64 * 100 / 1e9)
    assert seconds(narrow, {}, slow) == pytest.approx(LAUNCH + 2 * 100 * 64 * 8 / 0.25e9)
    assert seconds(wide, {}, slow, dtype="bf16") == pytest.approx(LAUNCH + 2 * 100 * 64 * 100 / 4e9)
    (part,) = parts(wide, {}, slow, dtype="bf16")
    assert part.bytes == 2 * (6400 + 6400 + 10_000) and part.flops == 1_280_000


@pytest.mark.parametrize(
    "shapes", [((2, 3, 5, 7), (2, 3, 7, 11)), ((3, 5, 7), (7, 11)), ((5, 7), (4, 7, 11))]
)
def test_products_count_what_the_cost_counts(shapes):
    """Whichever operand has the batch."""
    with building():
        op = matmul(*inputs(*shapes)).op
    assert parts(op, {}, PLAIN)[0].flops == cost(op).flops


def test_one_call_of_torch_is_one_kernel_and_other_composites_are_their_bodies():
    """softmax and gelu are calls; rope is not."""
    with building():
        (x, c) = inputs((10, 64), (10, 64))
        assert [part.op.name for part in parts(softmax(x, dim=1).op, {}, PLAIN)] == ["softmax"]
        assert [part.op.name for part in parts(gelu(x).op, {}, PLAIN)] == ["gelu"]
        names = [part.op.name for part in parts(OPS["rope"](x, c, c).op, {}, PLAIN) if part.bytes]
    assert names == ["mul", "neg", "cat", "mul", "add"]


def test_a_kernel_without_a_rate_of_its_own_has_that_of_its_body():
    """gelu by erf, which counts as an exponential; with a rate, by that."""
    with building():
        op = gelu(*inputs((100, 100))).op
    assert seconds(op, {}, PLAIN) == pytest.approx(LAUNCH + 1e4 / EXP)
    known = replace(PLAIN, elements={"exp": EXP, "gelu": 1e7})
    assert seconds(op, {}, known) == pytest.approx(LAUNCH + 1e4 / 1e7)


def test_exponentials_of_masked_scores():
    """On a machine that knows that they take longer."""
    slow = replace(PLAIN, elements={"exp": EXP, "masked_exp": EXP / 4})
    with building():
        x, m = inputs((100, 100))[0], OPS["input"](name="m", type=TensorType(bool_, (100, 100)))
        plain, masked = exp(x - 1.0).op, exp(where(m, x, float("-inf")) - 1.0).op
    assert seconds(plain, {}, slow) == pytest.approx(LAUNCH + 1e4 / EXP)
    assert Roofline(slow, {}).op(masked)[0].seconds == pytest.approx(LAUNCH + 4e4 / EXP)


def test_views_cost_their_start_and_copies_their_bytes():
    """A reshape that no strides can say is a copy."""
    with building():
        (x,) = inputs((10, 20, 30))
        turned = permute(x, dims=(1, 0, 2))
        graph = Graph("g", (x,), (reshape(turned, shape=(200, 30)),))
        viewed = Graph("g", (x,), (reshape(turned, shape=(20, 10, 5, 6)),))
    assert seconds(viewed, {}, PLAIN) == pytest.approx(2 * VIEW)
    assert seconds(graph, {}, PLAIN) == pytest.approx(VIEW + LAUNCH + 2 * 24_000 / BANDWIDTH)


@pytest.mark.parametrize("seed", range(30))
def test_strides_are_torch_s(seed):
    """Chains of views on random shapes: the same strides, and a copy exactly where torch copies."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 5, size=4))
    tensor = torch.zeros(shape)
    with building():
        (value,) = inputs(shape)
        roof = Roofline(PLAIN, {})
        for _ in range(6):
            kind = rng.integers(4)
            if kind == 0:
                order = tuple(int(i) for i in rng.permutation(tensor.ndim))
                value, tensor, before = permute(value, dims=order), tensor.permute(order), None
            elif kind == 1:
                axis = int(rng.integers(tensor.ndim))
                end = int(rng.integers(1, tensor.shape[axis] + 1))
                value = slice_(value, dim=axis, start=0, end=end)
                tensor, before = tensor.narrow(axis, 0, end), None
            elif kind == 2:
                size = tuple(3 if n == 1 else n for n in tensor.shape)
                value, tensor, before = expand(value, size=size), tensor.expand(size), None
            else:
                factors = [p for n in tensor.shape for p in (1,) * (n == 1) or factored(n)]
                rng.shuffle(factors)
                size = tuple(int(np.prod(part)) for part in np.array_split(factors, rng.integers(1, 5)))
                value, before = reshape(value, shape=size), tensor
                tensor = tensor.reshape(size)
            priced = roof.op(value.op)
            copied = sum(part.bytes for part in priced) > 0
            if value.op.name == "reshape" and before is not None:
                assert copied == (tensor.data_ptr() != before.data_ptr()), (
                    before.shape,
                    before.stride(),
                    size,
                )
            else:
                assert not copied
            ours = roof._strides(value)
            assert all(a == b for a, b, n in zip(ours, tensor.stride(), tensor.shape) if n > 1)


def factored(n):
    """The prime factors of a small number."""
    return next(([p, *factored(n // p)] for p in range(2, n + 1) if n % p == 0), [])


def test_windows_overlap():
    """As torch's unfold, which moves nothing."""
    with building():
        (x,) = inputs((2, 10))
        roof, value = Roofline(PLAIN, {}), unfold(x, dimension=1, size=4, step=3)
        roof.op(value.op)
    assert roof._strides(value) == torch.zeros(2, 10).unfold(1, 4, 3).stride()


def test_operands_that_lie_otherwise_cost_more():
    """Elementwise work on two layouts, and kernels that want the last axis dense."""
    turned = replace(PLAIN, elements={"exp": EXP, "mixed": 1e6, "transposed": 1e5})
    with building():
        x, y = inputs((20, 10), (10, 20))
        flipped = permute(x, dims=(1, 0))
        both, same = flipped + y, flipped + permute(x + 1.0, dims=(1, 0))
        dense = softmax(flipped, dim=1)
        fast = [seconds(Graph("g", (x, y), (out,)), {}, PLAIN) for out in (both, same, dense)]
        slow = [seconds(Graph("g", (x, y), (out,)), {}, turned) for out in (both, same, dense)]
    assert [b - a for a, b in zip(fast, slow)] == pytest.approx([200 / 1e6, 0, 200 / 1e5])


# ---- attention and recurrences -------------------------------------------------------------------


def test_attention_is_one_kernel_where_torch_has_one():
    """Else its body is run, with its [n, n] scores."""
    n = 512
    (part,) = parts(attends(n), {}, PLAIN)
    assert part.flops == 4 * 4 * n * n * 64 and part.op.name == "attention"
    assert part.seconds == pytest.approx(LAUNCH + part.flops / (SHARES["attention"] * 1e9))
    (part,) = parts(attends(n, causal=True), {}, PLAIN)
    assert part.flops == 4 * 4 * pairs_seen(n, n) * 64
    assert part.seconds == pytest.approx(LAUNCH + part.flops / (SHARES["causal"] * 1e9))
    capped = parts(attends(n, softcap=20.0), {}, PLAIN)
    assert {"matmul", "tanh", "softmax"} <= {part.op.name for part in capped}


def test_a_window_is_a_mask_beside_the_kernel():
    """As the backend lowers it: made by position, then one call."""
    names = [part.op.name for part in parts(attends(512, causal=True, window=32), {}, PLAIN)]
    assert names[-1] == "attention" and {"arange", "lt", "logical_and"} <= set(names)
    roof = Roofline(PLAIN, {})  # as an op of a graph that was not made legal
    assert [part.op.name for part in roof.op(attends(512, causal=True, window=32))] == names


@pytest.mark.parametrize("n", [1, 31, 100, 192, 700, 768, 1000, 4096])
def test_pairs_that_a_causal_kernel_sees(n):
    """At least those below the diagonal, at most all, and about half of many."""
    assert n * (n + 1) // 2 <= pairs_seen(n, n) <= n * n
    if n >= 4096:
        assert pairs_seen(n, n) == n * (n + 256) // 2


@pytest.mark.parametrize("kind", ["none", "head", "token", "channel", "delta"])
def test_recurrences_have_rates_by_kind(kind):
    """And FLOPs as the cost counts them."""
    op, tensors = recurrence(kind)
    assert recurrence_kind(op) == kind and tensors["q"].shape == op.args[0].shape
    (part,) = parts(op, {}, PLAIN)
    assert part.flops == evaluate(cost(op).flops, {})
    starts = launches(op, {}, "cpu") * LAUNCH
    assert part.seconds == pytest.approx(starts + part.flops / (SHARES[kind] * 1e9))


def test_the_chunks_of_a_recurrence_are_launches():
    """More of them on a CPU, whose spans are short; none without order."""
    op, _ = recurrence("token")
    few, many = launches(op, {}, "cuda"), launches(op, {}, "cpu")
    spans = math.ceil(2048 / kernels.CHUNK / (kernels.ROWS // (kernels.CHUNK * 4)))
    assert many - few == (spans - 1) * 26
    with building():
        q, k, v = inputs(*[(1, 4, 100, 64)] * 3)
        free = linear_attention(q, k, v, causal=False, normalize=True).op
    assert launches(free, {}, "cpu") == 12


def test_sizes_that_are_missing_are_named():
    """The one that is open and was not given."""
    with pytest.raises(IRError, match="not of n"):
        seconds(attends(), {"m": 3}, PLAIN)
    with pytest.raises(SubquadError, match="phase='training'"):
        seconds(attends(), {"n": 3}, PLAIN, phase="training")


# ---- phases --------------------------------------------------------------------------------------


def test_decoding_reads_keys_and_values_once():
    """One query: 2 n d h FLOPs twice and n keys and values of g heads."""
    (part,) = parts(attends(h=8, g=2), {"n": 1000}, PLAIN, phase="decode")
    assert part.flops == 4 * 8 * 1000 * 64
    assert part.bytes == 4 * (8 * 128 + 2 * 1000 * 128)
    (part,) = parts(attends(h=8, g=2, causal=True, window=100), {"n": 1000}, PLAIN, phase="decode")
    assert part.flops == 4 * 8 * 100 * 64  # a window's worth


def test_decoding_by_a_recurrence_does_not_grow():
    """The state is read and written, whatever the context."""
    times = []
    for n in (1000, 1_000_000):
        found = site(attends(causal=True), "elu1", symbol("n"))
        assert isinstance(found, Graph)
        times.append(parts(found, {"n": n}, PLAIN, phase="decode"))
    state = next(part for part in times[0] if part.op.name == "linear_attention")
    assert state.flops == 4 * 4 * 64 * 65 and state.bytes == 8 * 4 * 64 * 65 + 4 * 4 * 4 * 64
    assert [part.seconds for part in times[0]] == [part.seconds for part in times[1]]


def test_what_is_not_causal_cannot_decode():
    """Nor what has no open number of tokens."""
    found = site(attends(), "elu1", symbol("n"))
    with pytest.raises(IRError, match="not causal reads all tokens"):
        seconds(found, {"n": 8}, PLAIN, phase="decode")
    with pytest.raises(IRError, match="name the open size"):
        seconds(attends(8), {"n": 8}, PLAIN, phase="decode")


def test_a_layer_in_both_phases():
    """Projections for one token beside attention over all: what the first token takes, and a later one."""
    graph = layer()
    runs = idealised(graph, (128, 256), PLAIN)
    assert runs.first[128] == pytest.approx(seconds(graph, {"n": 128}, PLAIN))
    assert runs.each == pytest.approx(seconds(graph, {"n": 256}, PLAIN, phase="decode"))
    by_name = {part.op.name: part for part in parts(graph, {"n": 256}, PLAIN, phase="decode")}
    assert by_name["linear"].flops == 2 * 64 * 64 and by_name["attention"].flops == 4 * 4 * 256 * 16


def layer():
    """Heads of one projection, attending to themselves."""
    n = symbol("n")
    with building():
        (x,) = inputs((1, n, 64))
        w = OPS["param"](name="w", type=TensorType(f32, (64, 64)))
        heads = permute(reshape(OPS["linear"](x, w), shape=(1, n, 4, 16)), dims=(0, 2, 1, 3))
        return Graph("layer", (x,), (attention(heads, heads, heads, scale=0.25, causal=True),))


# ---- crossovers ----------------------------------------------------------------------------------


def brute(op, recipe, machine, most, **how):
    """The crossover by looking at every length."""
    place, recipe = Site(op), recipe_named(recipe)

    def slower(n):
        return place.seconds(recipe, n, machine, **how) >= place.seconds(None, n, machine, **how)

    return max(filter(slower, range(16, most + 1)), default=15) + 1


@pytest.mark.parametrize("spec", ["elu1", "window(size=16)", "linformer(size=16,length=512)"])
def test_the_crossover_is_where_times_cross(spec):
    """To within a step of the search; a recipe with blocks may step back a little below it."""
    masked = "none" not in recipe_named(spec).masks
    op = attends(causal=masked)
    found, true = crossover(op, spec, PLAIN, most=512), brute(op, spec, PLAIN, 512)
    assert found == pytest.approx(true, rel=0.05, abs=2)


def test_never_is_none():
    """A recipe of the work of attention, and exact attention where it costs nothing."""
    free = replace(PLAIN, shares={**SHARES, "attention": 1e9}, bandwidth=((1.0, 1e18),))
    assert crossover(attends(), "elu1", free) is None


def test_decoding_has_a_crossover_of_its_own():
    """Where keys and values are more than a state: about as many tokens as it has features."""
    fast = replace(PLAIN, launch=1e-12, view=0.0, elements={}, products={"f32": 1e18})
    found = crossover(attends(causal=True), "elu1", fast, phase="decode")
    assert found == pytest.approx(brute(attends(causal=True), "elu1", fast, 512, phase="decode"), rel=0.05)
    assert 32 <= found <= 256


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_crossover_or_says_why_not(name):
    """At 12 heads of 64 on a data sheet."""
    recipe = RECIPES[name]
    op = attends(128, h=12, causal="none" not in recipe.masks)
    try:
        found = crossover(op, recipe, machine_named("epyc"))
    except RecipeError as error:
        assert f"{name} does not fit: it " in str(error) and name == "activator"
        return
    assert found is None or 16 <= found <= 1 << 20


def test_what_does_not_decode_has_no_crossover_there():
    """Queries that see later keys."""
    with pytest.raises(RecipeError, match="not causal does not decode"):
        crossover(attends(), "nystrom", PLAIN, phase="decode")


def test_grids():
    """As nearly square as it goes, then with frames."""
    assert grids(64) == [(8, 8), (4, 4, 4)] and grids(12) == [(3, 4), (4, 1, 3)] and grids(7) == [(1, 7)]


def test_refusals_are_told():
    """By the recipe, and where a mask's other lengths are not known."""
    with pytest.raises(RecipeError, match="nystrom has no crossover here.*this mask is causal"):
        crossover(attends(128, causal=True), "nystrom", PLAIN)
    with building():
        q, k, v = inputs(*[(1, 4, 8, 16)] * 3)
        added = OPS["input"](name="bias", type=TensorType(f32, (8, 8)))
        biased = attention(q, k, v, added, scale=1.0).op
    found = site(biased, "elu1", 16)
    assert isinstance(found, No) and "at other lengths is not known" in found.reason


@pytest.mark.parametrize("attrs", [{}, {"causal": True}, {"causal": True, "window": 8}, {"g": 2}])
@pytest.mark.parametrize("recipe", [None, "elu1", "mamba2", "window(size=8)"])
def test_a_site_computes_what_its_attention_does(attrs, recipe):
    """The exact one equals the op; under a recipe it runs and has its shape."""
    op = attends(24, d=16, **attrs)
    found = site(op, recipe, symbol("n"))
    if (recipe == "mamba2" and "causal" not in attrs) or (recipe and "window" in attrs):
        assert isinstance(found, No)
        return
    run, given = runnable(found, 24)
    with torch.no_grad():
        (out,), _ = run(given)
    assert out.shape == (1, 4, 24, 16)
    if recipe is None:
        whole = backend("eager").compile(Graph("g", [x for x in op.inputs if x is not None], op.results))
        torch.testing.assert_close(out, whole(given, {})[0][0], rtol=0, atol=0)


def test_measured_crossovers_correct_the_prediction(tmp_path, monkeypatch):
    """By a clock that says the recipe takes ten times as long as predicted."""
    monkeypatch.setenv("SUBQUAD_CACHE", str(tmp_path))
    op, asked = attends(), []
    place = Site(op)

    def clock(graph, n):
        asked.append((graph.name, n))
        exact = graph.name == "exact"
        return place.seconds(None if exact else recipe_named("elu1"), n, PLAIN) * (1 if exact else 10)

    told, found = crossover(op, "elu1", PLAIN), crossover(op, "elu1", PLAIN, measured=True, clock=clock)
    slow = replace(PLAIN, shares={**SHARES, "attention": 10 * SHARES["attention"]})
    assert found > 3 * told and {n for _, n in asked} <= set(LENGTHS)
    assert found == pytest.approx(crossover(op, "elu1", slow), rel=0.2)
    assert not list(tmp_path.iterdir())  # another's clock is not kept
    with pytest.raises(SubquadError, match="decode crossover is predicted only"):
        crossover(op, "elu1", PLAIN, measured=True, phase="decode", clock=clock)


def test_measured_times_are_kept(tmp_path, monkeypatch):
    """A second question times nothing, and a broken entry is timed again."""
    from subquad import speeds

    monkeypatch.setenv("SUBQUAD_CACHE", str(tmp_path))
    calls = itertools.count()

    def timed(graph, n, *, device, dtype):
        next(calls)
        return n * (n if graph.name == "exact" else 300.0) * 1e-10

    monkeypatch.setattr(speeds, "graph_seconds", timed)
    first = crossover(attends(), "elu1", PLAIN, measured=True)
    assert next(calls) == 2 * len(LENGTHS)
    assert first == pytest.approx(300, rel=0.2)
    assert crossover(attends(), "elu1", PLAIN, measured=True) == first
    assert next(calls) == 2 * len(LENGTHS) + 1
    kept = [*tmp_path.iterdir()]
    assert len(kept) == 2  # that of exact attention serves every recipe
    kept[0].write_text(kept[0].read_text()[:50])
    assert crossover(attends(), "elu1", PLAIN, measured=True) == first
    assert next(calls) == 3 * len(LENGTHS) + 2
    crossover(attends(), "window", PLAIN, measured=True)
    assert next(calls) == 4 * len(LENGTHS) + 3


def test_no_long_call_is_waited_for_twice():
    """Measuring stops at the first length that takes long; what is longer is predicted."""
    asked = []

    def clock(graph, n):
        asked.append(n)
        return n * n * 1e-7

    crossover(attends(), "elu1", PLAIN, measured=True, clock=clock)
    assert asked == [256, 512, 1024, 2048] * 2


def test_a_graph_is_timed_through_the_eager_backend():
    """The clock is given a call that computes the graph."""
    found = site(attends(causal=True, d=16), "mamba2", symbol("n"))
    results = []

    def timer(call):
        results.append(call())
        return 0.25

    assert graph_seconds(found, 10, timer=timer) == 0.25
    ((out,), _) = results[0]
    assert out.shape == (1, 4, 10, 16) and out.isfinite().all()


# ---- serving -------------------------------------------------------------------------------------

YI = Decoder(layers=60, kv_heads=8, head_dim=128, width=7168, weights=34e9)
HBM, PEAK, MEMORY, LINK = 80e9, 312e12, 2e12, 20e9


def test_idealised_runtime():
    """HELM's: F(p) + g (o - 1), here its fit of ada."""
    ada = Idealised({1: 0.021, 1920: 0.041}, 0.019)
    assert ada.seconds(1920, 100) == pytest.approx(0.041 + 99 * 0.019)
    assert ada.seconds(1, 1) == 0.021 and ada.seconds(500, 0) == 0
    assert ada.prompt(960) == pytest.approx(0.021 + 0.02 * 959 / 1919)
    assert ada.prompt(3840) == pytest.approx(0.082)


def test_idealised_runtime_is_fitted():
    """Exactly where the runs follow it, with each prompt its own intercept."""
    true = Idealised({10: 0.3, 1000: 0.7}, 0.02)
    runs = {p: [(o, true.seconds(p, o)) for o in (1, 2, 64)] for p in true.first}
    fitted = Idealised.fit(runs)
    assert fitted.each == pytest.approx(0.02) and fitted.first == pytest.approx(true.first)
    with pytest.raises(SubquadError, match="run a second one"):
        Idealised.fit({10: [(5, 1.0), (5, 1.1)]})


def test_serving_a_long_context():
    """Yi-34B on an A100 at 50,000 and 4,096 tokens (arXiv:2405.08944)."""
    assert YI.cache(50_000) == pytest.approx(12.288e9) and YI.cache(4096) == pytest.approx(1.0066e9, rel=1e-4)
    assert YI.cache(100_000) / 2**30 == pytest.approx(22.9, abs=0.05)
    assert YI.users(4096, HBM) == 11
    assert (HBM - 68e9) / YI.cache(50_000) == pytest.approx(0.98, abs=0.005)  # not quite one
    assert YI.users(50_000, HBM) == 0
    assert YI.prefill(50_000, PEAK, causal=False) == pytest.approx(17.8, abs=0.05)
    assert YI.prefill(50_000, PEAK) == pytest.approx(14.3, abs=0.05)
    assert YI.prefill(4096, PEAK, causal=False) == pytest.approx(0.94, abs=0.005)
    assert 250 * YI.token(50_000, MEMORY) == pytest.approx(10.0, abs=0.05)
    assert 250 * YI.token(4096, MEMORY) == pytest.approx(8.6, abs=0.05)
    assert YI.switch(50_000, LINK) == pytest.approx(1.2, abs=0.05)
    assert YI.switch(4096, LINK) == pytest.approx(0.1, abs=0.005)
    assert critical_intensity(PEAK, MEMORY) == 156


def test_serving_with_a_state():
    """A state of 128 x 128 for each of 480 heads: as much as 64 tokens, at any context."""
    linear = YI.linear()
    assert linear.cache(4096) == linear.cache(1_000_000) == 60 * 8 * 128 * 128 * 4
    assert YI.cache(128) == linear.cache(1)
    assert linear.users(1_000_000, HBM) == int(12e9 // linear.cache(1)) > 300
    assert linear.prefill(100_000, PEAK) == pytest.approx(2 * linear.prefill(50_000, PEAK))
    features = (
        linear.prefill(1, PEAK) * PEAK - 2 * YI.weights
    )  # q S and k v^T: 4 d d a head, 56 heads a layer
    assert features == pytest.approx(60 * 56 * 4 * 128 * 128)


def test_sessions():
    """One user waits for its own prompt and answers; more than fit are fetched in every round."""
    room = dict(peak=PEAK, bandwidth=MEMORY, link=LINK)
    alone = YI.sessions(4096, 5, 250, users=1, memory=HBM, **room)
    assert 1 / alone == pytest.approx(YI.prefill(4096, PEAK) + 5 * 250 * YI.token(4096, MEMORY))
    eleven, twelve = (YI.sessions(4096, 5, 250, users=n, memory=HBM, **room) for n in (11, 12))
    assert eleven > 8 * alone  # a batch shares the weights
    assert twelve < eleven  # a twelfth user needs a second batch, and everybody's context the link
    assert YI.sessions(50_000, 5, 250, users=4, memory=HBM, **room) == 0
    assert YI.linear().sessions(50_000, 5, 250, users=11, memory=HBM, **room) > 0


def test_eflops():
    """Kinetics' sums, token by token."""
    shape = dict(heads=6, kv_heads=2, head_dim=8)
    c, g, p = 100, 40, 1e6
    keys = 2 * sum(c + t for t in range(g)) + g  # (2 c + g) g: each token at the middle of its step
    by_hand = 2 * p * g + 2 * keys * 6 * 8 + 562.5 * 2 * keys * 2 * 8
    assert eflops(p, c, g, **shape) == pytest.approx(by_hand)
    assert eflops(p, c, g, intensity=0, **shape) == pytest.approx(2 * p * g + 2 * keys * 48)
    read = (2 * c + g * 3) * g
    many = 3 * (2 * p * g + 2 * keys * 48) + 562.5 * 2 * read * 16
    assert eflops(p, c, g, trials=3, **shape) == pytest.approx(many)


@pytest.mark.parametrize("budget", [10, 100, 120, 140, 1000])
def test_eflops_under_a_budget(budget):
    """Keys read are the budget, or all where there are fewer; a budget of everything changes nothing."""
    shape = dict(heads=6, kv_heads=2, head_dim=8)
    c, g = 100, 40
    steps = np.linspace(c, c + g, 100_001)
    keys = 2 * g * np.minimum(budget, steps).mean()
    by_hand = 2 * 1e6 * g + 2 * keys * 48 + 562.5 * 2 * keys * 16
    assert eflops(1e6, c, g, budget=budget, **shape) == pytest.approx(by_hand, rel=1e-4)
    if budget >= c + g:
        assert eflops(1e6, c, g, budget=budget, **shape) == pytest.approx(eflops(1e6, c, g, **shape))

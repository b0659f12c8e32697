"""Several graphs in one module: the guard on the sizes decides, and everything else is as with one."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from subquad.api import captured_at, linearizing, recipes_of
from subquad.assemble import assembled
from subquad.backends import BACKENDS, backend
from subquad.frontend import LazyModule
from subquad.frontend.versions import Guard, Versions, ladder, reachable
from subquad.ir import BackendError, IRError, parse
from subquad.ir.text import parse_dim
from subquad.passes import EXACT, Pipeline, canonicalize

SIZES = (1, 7, 8, 9, 15, 16, 40)
OPEN = {"x": {1: Dim("n", min=1, max=4096)}}


class Attention(nn.Module):
    """Attention of two heads over [b, n, 8]."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Two(nn.Module):
    """Two sites, first and second."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(), Attention()

    def forward(self, x):
        return self.second(self.first(x))


def tokens(n, seed=0):
    """[2, n, 8], the same each time."""
    return torch.randn(2, n, 8, generator=torch.Generator().manual_seed(seed))


class Made:
    """A model, its capture, and what each set of sites gives."""

    def __init__(self, model, args, shapes, recipe="hedgehog"):
        self.model, self.recipe = model, recipe
        self.captured, _, _ = captured_at(model, args, {}, shapes)
        self.exact = EXACT.run(self.captured.graph)[0]

    def graph(self, paths):
        """The graph with these sites replaced."""
        if not paths:
            return self.exact
        recipes = recipes_of(dict.fromkeys(paths, self.recipe))
        return Pipeline(linearizing(recipes), canonicalize).run(self.exact)[0]

    def module(self, thresholds, size="n", **options):
        """The module of a ladder."""
        (_, paths), *others = ladder(thresholds)
        versions = [(Guard(size, least), self.graph(paths)) for least, paths in others]
        return assembled(self.model, self.captured, self.graph(paths), versions=versions, **options)


@pytest.fixture(scope="module")
def made():
    """Two sites, the number of tokens open."""
    torch.manual_seed(0)
    return Made(Two().eval(), (tokens(12),), OPEN)


@pytest.fixture(scope="module")
def fast(made):
    """Exact below 8 tokens, the first site linear from there, both from 16."""
    return made.module({"first": 8, "second": 16})


def alone(made, paths, fast):
    """The module of one version with the weights of `fast`."""
    graph = made.graph(paths)
    weights = {name: tensor for name, tensor in fast.state_dict().items() if name in graph.params}
    return assembled(made.model, made.captured, graph, weights=weights)


# ---- the data ------------------------------------------------------------------------------------


def test_guards_are_text():
    """They print, are read back, go through JSON, and are equal where they mean the same."""
    for text in ("n >= 1024", "2*n + 1 >= 7", "h*w >= 196", "(n//4) >= 16", "n >= -3"):
        guard = Guard.parse(text)
        assert Guard.parse(str(guard)) == guard == Guard(**json.loads(json.dumps(asdict(guard))))
    assert str(Guard("n", 1024)) == "n >= 1024"
    assert Guard("n+n", 4) == Guard("2*n", 4) and hash(Guard("n+n", 4)) == hash(Guard("2*n", 4))


@pytest.mark.parametrize(
    "text", ["n", "n >= m", "n >=", ">= 3", "n ) >= 3", "n >= 3; import os", "n > 3", "n m >= 2"]
)
def test_texts_that_are_no_guard(text):
    """Nothing else is read."""
    with pytest.raises(IRError):
        Guard.parse(text)


@pytest.mark.parametrize(
    "text, facts, holds",
    [
        ("7 >= 7", (), True),
        ("7 >= 8", (), False),
        ("n >= 0", (), True),
        ("n >= 1", (), None),
        ("n >= 16", (("n", 16, None),), True),
        ("2*n >= 32", (("n", 16, None),), True),
        ("n >= 17", (("n", 16, 17),), None),
        ("n >= 18", (("n", 16, 17),), False),
        ("n - m >= 1", (("n", 4, 9), ("m", 4, 9)), None),
        ("n + m >= 19", (("n", 0, 9), ("m", 0, 9)), False),
        ("n + m >= 19", (("n", 0, 9),), None),
    ],
)
def test_what_is_known_of_a_guard(text, facts, holds):
    """From ranges of symbols; unknown is None."""
    assert Guard.parse(text).known(facts) is holds


@given(st.dictionaries(st.text("ab.", min_size=1, max_size=3), st.none() | st.integers(0, 6), max_size=5))
def test_ladder(thresholds):
    """At every size the step in force replaces just the sites whose threshold is reached."""
    steps = ladder(thresholds)
    assert steps[0][0] == 0 and len({paths for _, paths in steps}) == len(steps)
    assert [least for least, _ in steps] == sorted({least for least, _ in steps})
    for n in range(1, 8):
        in_force = [paths for least, paths in steps if n >= least][-1]
        assert in_force == {path for path, at in thresholds.items() if at is not None and n >= at}


def test_dims_are_read_as_they_print():
    """Division too, which is a comment outside brackets."""
    for text in ("n", "7", "2*n + 1", "(n//4)", "min(n, 128)", "h*w - 3"):
        assert str(parse_dim(str(parse_dim(text)))) == str(parse_dim(text))
    assert parse_dim("(n//4)") == parse_dim("n//4") != parse_dim("n")


# ---- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_the_sizes_decide(made, fast, n):
    """Bit for bit what the one graph for these sizes gives; exact is the model's own result."""
    paths = ["first", "second"][: (n >= 8) + (n >= 16)]
    x = tokens(n)
    assert torch.equal(fast(x), alone(made, paths, fast)(x))
    off = (fast(x) - made.model(x)).abs().max()
    exact = copy.deepcopy(made.model).double()(x.double())
    if paths:
        assert off > 1e-3 or n == 1
    else:
        bound = 8 * (made.model(x) - exact).abs().max() + 1e-6
        assert (fast(x) - exact).abs().max() <= bound


def test_what_the_module_tells(made, fast):
    """graph is that of the largest sizes; versions lists all; printing counts the ops of each."""
    assert [str(guard) for guard, _ in fast.versions] == ["None", "n >= 8", "n >= 16"]
    assert fast.graph is fast.versions[-1][1]
    (_, exact), (_, one), (_, both) = fast.versions
    assert [len([op for op in g.ops() if op.name == "attention"]) for g in (exact, one, both)] == [2, 1, 0]
    assert f"{len(exact.ops())} ops, {len(one.ops())} where n >= 8, {len(both.ops())} where n >= 16" in repr(
        fast
    )
    single = assembled(made.model, made.captured, made.exact)
    assert single.versions == ((None, made.exact),) and "where" not in repr(single)


def test_state_is_that_of_every_version(made, fast):
    """The model's own names and what any version learns; weights are loaded for all of them."""
    learned = set(fast.versions[-1][1].params) - set(made.captured.tensors)
    assert {name.split(".")[0] for name in learned} == {"first", "second"}
    assert set(fast.state_dict()) == set(made.model.state_dict()) | learned
    other = made.module({"first": 16, "second": 8})
    assert set(other.state_dict()) == set(fast.state_dict())  # though its versions are others
    state = {name: tensor + 0.1 for name, tensor in fast.state_dict().items()}
    other.load_state_dict(state)
    for n in (4, 20):
        assert not torch.equal(other(tokens(n)), fast(tokens(n)))
    again = copy.deepcopy(fast)
    again.load_state_dict(state)
    for n in (4, 20):
        torch.testing.assert_close(again(tokens(n)), other(tokens(n)))


def test_gradients_are_those_of_the_version(made, fast):
    """At each size the weights that its graph reads, as with that graph alone."""
    for n, paths in ((4, []), (12, ["first"]), (20, ["first", "second"])):
        whole, single = copy.deepcopy(fast), alone(made, paths, fast)
        for module in (whole, single):
            module(tokens(n)).square().sum().backward()
        grads = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
        assert grads.keys() == made.graph(paths).params.keys()
        for name, grad in grads.items():
            assert torch.equal(grad, single.get_parameter(name).grad)


def test_copies_stand_alone(fast):
    """deepcopy keeps the versions and takes the weights along."""
    twin = copy.deepcopy(fast)
    assert twin.versions is fast.versions and twin.graph is fast.graph
    before = [fast(tokens(n)) for n in SIZES]
    assert all(torch.equal(twin(tokens(n)), y) for n, y in zip(SIZES, before))
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    assert all(torch.equal(fast(tokens(n)), y) for n, y in zip(SIZES, before))
    assert not any(torch.equal(twin(tokens(n)), y) for n, y in zip(SIZES, before))


def test_threads(fast):
    """Calls of many sizes at once."""
    expected = {n: fast(tokens(n)) for n in SIZES}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: (n, fast(tokens(n))), SIZES * 8))
    assert all(torch.equal(y, expected[n]) for n, y in results)


def test_guards_on_more_than_one_axis():
    """A product of sizes, read through the symbols, and an axis that is twice a symbol."""
    torch.manual_seed(0)
    model = Two().eval()
    shapes = {"x": {0: Dim("b", max=64), 1: Dim("n", max=4096)}}
    both = Made(model, (tokens(12),), shapes, "elu1")
    fast = both.module({"first": 24, "second": 24}, size="b*n")
    linear = alone(both, ["first", "second"], fast)
    for b, n in ((1, 23), (2, 11), (1, 24), (3, 8), (12, 2)):
        x = tokens(n)[:1].repeat(b, 1, 1)
        assert torch.equal(fast(x), linear(x)) is (b * n >= 24)
    half = Dim("half", min=1, max=2048)
    twice = Made(model, (tokens(12),), {"x": {1: 2 * half}}, "elu1")
    fast = twice.module({"first": 9, "second": 9}, size="half")
    linear = alone(twice, ["first", "second"], fast)
    for n in (16, 18):
        assert torch.equal(fast(tokens(n)), linear(tokens(n))) is (n >= 18)


def test_what_the_model_writes():
    """A counter among the buffers and an input are written at every size, whichever graph runs."""

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Attention()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, total):
            self.calls += 1
            total += x.sum()
            return self.inner(x), total

    torch.manual_seed(0)
    model = Writes().eval()
    both = Made(model, (tokens(12), torch.zeros(())), {**OPEN, "total": None}, "elu1")
    fast = both.module({"inner": 8})
    totals = torch.zeros(()), torch.zeros(())
    for i, n in enumerate((4, 20, 7, 8)):
        (_, mine), (_, its) = fast(tokens(n), totals[0]), model(tokens(n), totals[1])
        assert mine is totals[0] and torch.equal(mine, its) and fast.calls == model.calls == i + 1
    assert len(fast.versions) == 2


# ---- one version is left -------------------------------------------------------------------------


def test_fixed_sizes_decide_once(made):
    """Captured with fixed sizes a module has the one graph for them, and no weights of others."""
    fixed = Made(made.model, (tokens(12),), None)
    for thresholds, paths in (
        ({"first": 13, "second": 13}, []),
        ({"first": 12, "second": 13}, ["first"]),
        ({"first": 3, "second": 12}, ["first", "second"]),
    ):
        fast = fixed.module(thresholds, size="12")
        assert fast.versions == ((None, fast.graph),) and not isinstance(fast._executable, Versions)
        graph = fixed.graph(paths)
        assert fast.graph.digest() == graph.digest()
        assert set(fast.state_dict()) == set(made.model.state_dict()) | graph.params.keys()


def test_ranges_decide(made):
    """What the bounds of a size rule out is not compiled."""
    low = Made(made.model, (tokens(12),), {"x": {1: Dim("n", min=8, max=15)}})
    fast = low.module({"first": 8, "second": 16})
    assert len(fast.versions) == 1 and fast.graph.digest() == low.graph(["first"]).digest()
    assert reachable(low.exact, [(Guard("n", 9), low.exact)])[1:] == ((Guard("n", 9), low.exact),)


# ---- torch's compilers ---------------------------------------------------------------------------


def test_dynamo_compiles_the_versions_that_it_meets(fast):
    """Sizes open, no break: one compilation for each version, and none for another size of one."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(fast, backend=counter, fullgraph=True, dynamic=True)
    met = []
    for n in (4, 5, 7, 40, 50, 33, 6, 9, 15, 100):
        torch.testing.assert_close(compiled(tokens(n)), fast(tokens(n)))
        met.append(counter.frame_count)
    assert met == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    found = [{str(node.target) for node in gm.graph.nodes} for gm in counter.graphs]
    exact = ["scaled_dot_product" in " ".join(targets) for targets in found]
    assert exact == [True, False, True]


def test_dynamo_on_a_product(made):
    """A guard that is computed from the symbols is one of Dynamo's too."""
    torch._dynamo.reset()
    shapes = {"x": {0: Dim("b", max=64), 1: Dim("n", max=4096)}}
    fast = Made(made.model, (tokens(12),), shapes, "elu1").module({"*": 24}, size="b*n")
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(fast, backend=counter, fullgraph=True, dynamic=True)
    for n, frames in ((4, 1), (11, 1), (12, 2), (40, 2), (5, 2)):
        torch.testing.assert_close(compiled(tokens(n)), fast(tokens(n)))
        assert counter.frame_count == frames


def test_export_with_fixed_sizes(fast):
    """torch.export of the module takes the version of the example's sizes."""
    for n in (4, 20):
        program = torch.export.export(fast, (tokens(n),))
        assert torch.equal(program.module()(tokens(n)), fast(tokens(n)))
        attends = "scaled_dot_product" in str(program.graph)
        assert attends is (n == 4)


def test_export_with_open_sizes(fast):
    """Inside the range of one version; across two torch.export says where the range ends."""
    for low, high in ((3, 7), (16, 4096)):
        open_ = {"x": {1: Dim("n", min=low, max=high)}}
        program = torch.export.export(fast, (tokens(low + 1),), dynamic_shapes=open_)
        for n in (low, low + 2):
            torch.testing.assert_close(program.module()(tokens(n)), fast(tokens(n)))
    with pytest.raises(torch._dynamo.exc.UserError, match=r"min=16, max=4096"):
        torch.export.export(fast, (tokens(20),), dynamic_shapes=OPEN)


@pytest.mark.skipif(BACKENDS["inductor"].unavailable() is not None, reason="no C++ compiler")
def test_inductor(made):
    """Each version is compiled at its first call."""
    torch._dynamo.reset()
    both = made.module({"first": 8, "second": 8}, backend="inductor")
    eager = made.module({"first": 8, "second": 8})
    eager.load_state_dict(both.state_dict())
    for n in (4, 20):
        torch.testing.assert_close(both(tokens(n)), eager(tokens(n)))


def test_captured_at_the_first_call(made, fast):
    """A lazy module becomes one of several versions, and keeps its parameters."""
    lazy = LazyModule(made.model, lambda args, kwargs: copy.deepcopy(fast))
    weight = lazy.first.qkv.weight
    for n in SIZES:
        assert torch.equal(lazy(tokens(n)), fast(tokens(n)))
    assert lazy.first.qkv.weight is weight and lazy.versions == fast.versions
    assert set(lazy.state_dict()) == set(fast.state_dict())


# ---- what is refused -----------------------------------------------------------------------------


def read(text):
    """A graph, and its executable."""
    graph = parse(text)
    return graph, backend("eager").compile(graph)


def test_versions_that_do_not_fit():
    """Another face, two defaults, a size that is none, a weight of two types."""
    base, run = read("graph g(%x: f32[n,4]) {\n  %0 = neg(%x) : f32[n,4]\n  return %0\n}")
    wide, other = read("graph g(%x: f32[n,5]) {\n  %0 = neg(%x) : f32[n,5]\n  return %0\n}")
    always, small, large = (None, base), (Guard("n", 2), base), (Guard("n", 4), wide)
    for versions, why in (
        ([always, large], "differ in inputs"),
        ([always, always], "where no guard holds"),
        ([small, small], "where no guard holds"),
    ):
        with pytest.raises(BackendError, match=why):
            Versions(versions, [run, other])
    with pytest.raises(IRError, match=r"asks for m, which is no size of an input; there are n"):
        Versions([always, (Guard("n*m", 4), base)], [run, run])
    scaled = [
        read(
            f'graph g(%x: f32[n,4]) {{\n  %w = param(name="w", type=f32[{shape}]) : f32[{shape}]\n'
            "  %0 = mul(%x, %w) : f32[n,4]\n  return %0\n}"
        )
        for shape in ("4", "1,4")
    ]
    (one, _), (row, _) = scaled
    with pytest.raises(BackendError, match=r"'w' is f32\[4\] in one version and f32\[1,4\] in another"):
        Versions([(None, one), (Guard("n", 2), row)], [run for _, run in scaled])

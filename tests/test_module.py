"""OptimizedModule stands in for the original: signature, state, gradients, moves, copies, refusals."""

import copy
import gc
import inspect
import threading
import weakref
from dataclasses import dataclass

import pytest
import torch
import zoo
from torch import nn
from zoo import assert_same, optimized

import subquad
from subquad.backends.base import backend
from subquad.frontend import LazyModule, OptimizedModule, capture
from subquad.ir import CaptureError

X = torch.randn(3, 8)


@pytest.fixture
def pair():
    """A model and its stand-in."""
    torch.manual_seed(0)
    model = zoo.Mlp().eval()
    return model, optimized(model, (X,))


def test_signature(pair):
    """inspect sees forward's own parameters, on the module and on forward."""
    model, fast = pair
    assert inspect.signature(fast) == inspect.signature(model.forward)
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)
    assert isinstance(fast, OptimizedModule) and isinstance(fast, nn.Module)


def test_state_dict(pair):
    """The same names, load_state_dict both ways, weights of its own."""
    model, fast = pair
    assert_same(dict(model.state_dict()), dict(fast.state_dict()))
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in model.named_parameters()]
    other = zoo.Mlp()
    fast.load_state_dict(other.state_dict())
    assert_same(other(X), fast(X))
    assert not torch.equal(model(X), fast(X))
    model.load_state_dict(fast.state_dict())
    assert_same(model(X), fast(X))
    fast.load_state_dict(zoo.Mlp().state_dict(), assign=True)
    assert not torch.equal(model(X), fast(X))


def test_tied_weights():
    """Both names in the state_dict, one parameter, one name in the graph."""
    model, ids = zoo.Tied(), torch.randint(0, 11, (2, 5))
    fast = optimized(model, (ids,))
    assert list(fast.state_dict()) == ["embed.weight", "head.weight"]
    assert fast.embed.weight is fast.head.weight and fast.embed.weight is not model.embed.weight
    assert list(fast.graph.params) == ["embed.weight"] and len(list(fast.parameters())) == 1
    model(ids).square().sum().backward()
    fast(ids).square().sum().backward()
    assert_same(model.embed.weight.grad, fast.embed.weight.grad)


def test_shared_submodules():
    """One module under two names stays one."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.again = self.first

        def forward(self, x):
            return self.again(self.first(x))

    model = Model()
    fast = optimized(model, (X,))
    assert fast.first is fast.again and list(fast.state_dict()) == list(model.state_dict())
    assert_same(model(X), fast(X))


def test_training(pair):
    """An optimiser on the stand-in does what it does on the original."""
    model, fast = pair
    for net in (model, fast):
        steps = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(3):
            steps.zero_grad()
            net(X).square().mean().backward()
            steps.step()
    assert_same(dict(model.state_dict()), dict(fast.state_dict()), atol=1e-5)
    assert fast(X.requires_grad_()).grad_fn is not None
    X.requires_grad_(False)


def test_frozen_parameters_stay_frozen():
    """requires_grad is copied."""
    model = zoo.Mlp()
    model.up.weight.requires_grad_(False)
    fast = optimized(model, (X,))
    assert not fast.up.weight.requires_grad and fast.down.weight.requires_grad


def test_other_dtypes_are_refused_before_anything_moves(pair):
    """The graph is typed: half() says what to call instead, and leaves the weights alone."""
    model, fast = pair
    for move in (fast.half, fast.double, lambda: fast.to(torch.bfloat16)):
        with pytest.raises(CaptureError, match=r"optimize\(model\.to\(torch\."):
            move()
    assert_same(model(X), fast(X))
    assert fast.float() is fast and fast.to("cpu") is fast and fast.cpu() is fast


def test_modes(pair):
    """The captured mode can be asked for again, the other is refused."""
    _, fast = pair
    assert fast.eval() is fast and not fast.training
    with pytest.raises(CaptureError, match=r"optimize\(model\.train\(\)"):
        fast.train()
    training = optimized(zoo.Norm(), (torch.randn(2, 3, 4, 4),))
    assert training.train() is training and training.training
    with pytest.raises(CaptureError, match=r"optimize\(model\.eval\(\)"):
        training.eval()


def test_copies(pair):
    """deepcopy gives an independent module; pickling is refused with advice."""
    import io

    model, fast = pair
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        fast.up.weight.zero_()
    assert_same(model(X), twin(X))
    assert twin.up.weight is not fast.up.weight and type(twin) is type(fast)
    tied = optimized(zoo.Tied(), (torch.randint(0, 11, (2, 5)),))
    assert (other := copy.deepcopy(tied)).embed.weight is other.head.weight
    counter = optimized(zoo.Counter(), (torch.randn(2, 4),))
    second = copy.deepcopy(counter)
    counter(torch.randn(2, 4))
    assert int(counter.count) == 1 and int(second.count) == 0
    with pytest.raises(CaptureError, match="state_dict"):
        torch.save(fast, io.BytesIO())


def test_sharing_weights():
    """share_weights=True keeps the model's own tensors: training one trains both."""
    model = zoo.Mlp()
    captured = capture(model, (X,))
    run = backend("eager").compile(captured.graph, captured.modules)
    fast = OptimizedModule(model, captured, captured.graph, run, share_weights=True)
    assert fast.up.weight is model.up.weight
    assert OptimizedModule(model, captured, captured.graph, run).up.weight is not model.up.weight


def test_folded_weights():
    """What a pass computed ahead of time may not change any more, whichever way."""
    model = zoo.Mlp()
    captured = capture(model, (X,))
    run = backend("eager").compile(captured.graph, captured.modules)
    fast = OptimizedModule(model, captured, captured.graph, run, folded=frozenset({"up.weight"}))
    assert_same(model(X), fast(X))
    with pytest.raises(CaptureError, match="up.weight"):
        fast.load_state_dict(model.state_dict())
    fast.load_state_dict({"down.bias": torch.zeros(8)}, strict=False)
    fast(X)
    with torch.no_grad():
        fast.up.weight.mul_(2)
    with pytest.raises(CaptureError, match="call optimize again"):
        fast(X)


def test_names_that_clash():
    """A model may have a submodule called log, a buffer called like an input."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.sites, self.log = nn.Linear(8, 8), nn.Linear(8, 8)
            self.register_buffer("x", torch.ones(8))

        def forward(self, x):
            self.x.add_(1)
            return self.log(self.sites(x * 2)) + self.x

    model = Model()
    fast = optimized(model, (X,))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert_same(model(X), fast(X))
    assert fast.graph.name == "Model" and fast.log is None


def test_calls_that_differ_from_capture():
    """Each refusal names the input and what to do."""
    model = zoo.Mlp()
    fast = optimized(model, (X,))
    for args, kwargs, text in [
        ((X.double(),), {}, "'x' has dtype float64"),
        ((X[0],), {}, "'x' has 1 axes"),
        ((X[:2],), {}, r"size 2 on axis 0, captured as fixed 3.*dynamic_shapes=\{'x': \{0:"),
        ((X, torch.ones(3, 1)), {}, "'scale' was not given at capture"),
        ((None,), {}, "'x' was a tensor at capture and is None"),
        ((), {}, "missing a required argument: 'x'"),
        ((X, None, 3), {}, "too many positional"),
        ((X.to_sparse(),), {}, "to_dense"),
        ((X.to("meta"),), {}, "meta device"),
    ]:
        with pytest.raises(CaptureError, match=text):
            fast(*args, **kwargs)
    assert_same(model(X), fast(X, None))
    assert_same(model(X), fast(x=X, scale=None))


def test_calls_outside_the_sizes():
    """Bounds, equal sizes and decisions on sizes."""

    class Model(nn.Module):
        def forward(self, query, key):
            return query * 2 if query.shape[0] > key.shape[0] else key

    fast = optimized(
        Model(), (torch.ones(5, 2), torch.ones(3, 2)),
        dynamic_shapes={"query": {0: torch.export.Dim.AUTO}, "key": {0: torch.export.Dim("few", max=9)}},
    )  # fmt: skip
    assert fast(torch.ones(9, 2), torch.ones(8, 2)).shape == (9, 2)
    with pytest.raises(CaptureError, match=r"few.*axis 0 of 'key'.*is 10, captured for.*9"):
        fast(torch.ones(11, 2), torch.ones(10, 2))
    with pytest.raises(CaptureError, match=r"s0 > few \(decided at test_module.py:\d+\)"):
        fast(torch.ones(3, 2), torch.ones(3, 2))
    same = optimized(zoo.Tied(), (torch.zeros(2, 5, dtype=torch.int64),), dynamic_shapes=True)
    assert same(torch.zeros(1, 7, dtype=torch.int64)).shape == (1, 7, 11)


def test_plain_values_are_fixed():
    """A flag or number of the call is part of the graph."""

    class Model(nn.Module):
        def forward(self, x, flag=True, power=1):
            return x**power if flag else -x

    fast = optimized(Model(), (X,), {"power": 2})
    assert_same(X**2, fast(X, True, 2))
    with pytest.raises(CaptureError, match="'power' was 2 at capture and is 3 now"):
        fast(X, power=3)
    with pytest.raises(CaptureError, match="'flag' was not given at capture and is False now"):
        fast(X, False, 2)


def test_aliases_of_written_inputs():
    """Two inputs in one memory, one of them written to: refused, unless they do not overlap."""
    fast = optimized(zoo.Writer(), (torch.ones(2, 3), torch.ones(2, 3)))
    both = torch.ones(4, 3)
    fast(both[:2], both[2:])
    with pytest.raises(CaptureError, match=r"'x' and 'y' share memory"):
        fast(both[:2], both[1:3])
    with pytest.raises(CaptureError, match="expanded"):
        fast(torch.ones(1, 3).expand(2, 3), torch.ones(2, 3))


def test_threads(pair):
    """One module, eight threads."""
    model, fast = pair
    inputs = [torch.randn(3, 8) for _ in range(8)]
    wrong = []

    def work(x):
        for _ in range(50):
            if not torch.allclose(fast(x), model(x), atol=1e-6):
                wrong.append(x)

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_repr_and_release(pair):
    """repr is two lines; dropping the module frees it without the cycle collector."""
    _, fast = pair
    assert repr(fast).startswith("OptimizedMlp(x: f32[3,8])\n") and repr(fast).count("\n") == 1
    gc.disable()
    try:
        small = optimized(zoo.Mlp(), (X,))
        gone = weakref.ref(small)
        del small
        assert gone() is None
    finally:
        gc.enable()


def test_hooks_and_functional_call(pair):
    """Forward hooks run; torch.func sees the parameters."""
    model, fast = pair
    seen = []
    fast.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    fast(X)
    assert seen == [(3, 8)]
    zeros = {name: torch.zeros_like(p) for name, p in fast.named_parameters()}
    assert not torch.func.functional_call(fast, zeros, (X,)).any()
    assert_same(model(X), fast(X))


# ---- captured at the first call ------------------------------------------------------------------


def lazily(model, **options):
    """A LazyModule over `model`, counting its captures."""
    calls = []

    def build(args, kwargs):
        calls.append(args)
        return optimized(model, args, kwargs, **options)

    return LazyModule(model, build), calls


def test_exporting_it_leaves_it_as_it_was(pair):
    """torch.export takes it like any module, weights by name, and it runs afterwards."""
    model, fast = pair
    for strict in (False, True):
        program = torch.export.export(fast, (X,), strict=strict)
        assert set(program.state_dict) == set(model.state_dict())
        assert_same(model(X), program.module()(X))
        assert type(fast(X)) is torch.Tensor
        assert_same(model(X), fast(X))


def test_lazy():
    """The first call captures; the object becomes the result and keeps its parameters."""
    model = zoo.Mlp().eval()
    lazy, calls = lazily(model)
    assert inspect.signature(lazy) == inspect.signature(model.forward)
    assert list(lazy.state_dict()) == list(model.state_dict())
    weight = lazy.up.weight
    steps = torch.optim.SGD(lazy.parameters(), lr=0.1)
    with pytest.raises(AttributeError, match="first call"):
        lazy.graph
    assert_same(model(X), lazy(X))
    assert isinstance(lazy, OptimizedModule) and lazy.graph.name == "Mlp" and len(calls) == 1
    assert lazy.up.weight is weight
    lazy(X).sum().backward()
    steps.step()
    assert not torch.equal(model(X), lazy(X))
    assert len(calls) == 1


def test_lazy_state():
    """Weights loaded before the first call are the ones that run; buffers count on."""
    model = zoo.Mlp().eval()
    lazy, _ = lazily(model)
    other = zoo.Mlp()
    lazy.load_state_dict(other.state_dict())
    assert_same(other(X), lazy(X))
    counting, _ = lazily(zoo.Counter())
    counting(torch.randn(2, 4))
    counting(torch.randn(2, 4))
    assert int(counting.count) == 2


def test_lazy_refusals_and_copies():
    """A failed capture leaves it lazy; modes follow the model; a copy is lazy too."""
    model = zoo.Mlp().eval()
    lazy, _ = lazily(model)
    with pytest.raises(CaptureError):
        lazy(X.to("meta"))
    assert isinstance(lazy, LazyModule)
    with pytest.raises(CaptureError, match=r"\.train\(\) on the model"):
        lazy.train()
    twin = copy.deepcopy(lazy.eval())
    assert_same(model(X), twin(X))
    assert isinstance(lazy, LazyModule) and "first call" in repr(lazy)
    assert_same(model(X), copy.deepcopy(twin)(X))


def test_lazy_from_threads():
    """Eight first calls, one capture."""
    model = zoo.Mlp().eval()
    lazy, calls = lazily(model)
    results = []
    threads = [threading.Thread(target=lambda: results.append(lazy(X))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and len(calls) == 1
    for result in results:
        assert_same(model(X), result, atol=1e-6)


class Named(nn.Module):
    """A layer whose arguments come in many ways."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, mask=None, *, scale=1.0):
        y = self.layer(x["x"] if isinstance(x, dict) else getattr(x, "x", x)) * scale
        return {"y": y if mask is None else y * mask, "n": y.shape[0]}


@dataclass
class Batch:
    """What dataloaders give."""

    x: torch.Tensor
    n: int


def test_lazy_captures_again_for_other_sizes():
    """The sizes that changed are open from then on, each axis once; weights and optimisers stay."""
    model = Named()
    fast = subquad.optimize(model)
    steps = torch.optim.SGD(fast.parameters(), lr=0.1)
    for shape in [(2, 5, 8), (2, 7, 8), (2, 1, 8), (3, 9, 8), (1, 4, 8)]:
        x, mask = torch.randn(shape), torch.rand(*shape[:2], 1)
        assert_same(model(x=x, mask=mask), fast(x=x, mask=mask), atol=1e-5)
        for net in (model, fast):
            net(x, mask)["y"].square().mean().backward()
        steps.step()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        assert_same([p.grad for p in model.parameters()], [p.grad for p in fast.parameters()], atol=1e-5)
    assert str(fast.graph.inputs[0].type) == "f32[s0,s1,8]" and fast.captured.signature.opened
    assert_same(model(x, mask), copy.deepcopy(fast)(x, mask), atol=1e-5)
    with pytest.raises(CaptureError, match="axis 2 of 'x' is 9, was 8"):
        fast(torch.randn(1, 4, 9), mask)
    with pytest.raises(CaptureError, match="'mask' was a tensor at capture and is None"):
        fast(x)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": x}, lambda x: Batch(x, 3)])
def test_lazy_arguments(wrap):
    """Tensors, dicts, dataclasses; their sizes open too."""
    model = Named()
    fast = subquad.optimize(model)
    for length in (3, 4, 6):
        x = wrap(torch.randn(length, 8))
        assert_same(model(x), fast(x))


def test_lazy_leaves_given_sizes_alone():
    """Who says which sizes are open has said it."""
    fast = subquad.optimize(Named(), dynamic_shapes={"x": {0: "length"}})
    fast(torch.randn(3, 8)), fast(torch.randn(5, 8))
    with pytest.raises(CaptureError, match="has 1 axes"):
        fast(torch.randn(8))


def test_lazy_keeps_what_cannot_be_open():
    """A size that the model cannot do without is refused, after one more capture, by name."""

    class Table(nn.Module):
        def forward(self, x):
            return x + torch.arange(5.0)

    fast = subquad.optimize(Table())
    fast(torch.zeros(2, 5))
    with pytest.raises(CaptureError, match="axis 1 of 'x' is 6, was 5"):
        fast(torch.zeros(2, 6))
    assert fast(torch.zeros(2, 5)).shape == (2, 5) and fast(torch.zeros(3, 5)).shape == (3, 5)


def test_lazy_opens_from_threads():
    """Eight lengths at once on one module."""
    model = Named().eval()
    fast = subquad.optimize(model)
    fast(torch.randn(2, 8))
    wrong = []

    def work(length):
        for _ in range(5):
            x = torch.randn(length, 8)
            if not torch.allclose(fast(x)["y"], model(x)["y"], atol=1e-6):
                wrong.append(length)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

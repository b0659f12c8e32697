"""The fault matrix: whatever a model or a call does, the result is right or the refusal has a name.

Each entry is one of the thirty kinds by its number. `R` cases compare with the model; `N` cases end
in a SubquadError whose text says what was wrong. Nothing else may escape.
"""

import copy
import warnings

import pytest
import torch
import zoo
from torch import nn
from zoo import assert_same, copied, optimized

from subquad.backends.base import backend
from subquad.frontend import OptimizedModule, capture
from subquad.ir import SubquadError

torch.manual_seed(0)


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        """function(*args)."""
        return self.function(*args)


def right(model, args, *calls, kwargs=None, atol=0.0, **options):
    """R: captured on `args`, equal on them and on each of `calls`, inputs written alike."""
    fast = optimized(model, copied(args), kwargs, **options)
    for call in (args, *calls):
        mine, theirs = copied(call), copied(call)
        assert_same((model(*theirs, **(kwargs or {})), theirs),
                    (fast(*mine, **(kwargs or {})), mine), atol=atol)  # fmt: skip
    return fast


def refused(text, function):
    """N: a SubquadError whose message matches."""
    with pytest.raises(SubquadError, match=text) as info:
        function()
    assert "\n" not in str(info.value).strip() or len(str(info.value).splitlines()) <= 4
    return str(info.value)


CASES = []


def fault(number):
    """Register a case under the number of its fault kind."""

    def register(case):
        CASES.append(pytest.param(case, id=f"{number:02d} {case.__name__.replace('_', ' ')}"))
        return case

    return register


@pytest.mark.parametrize("case", CASES)
def test_fault(case):
    """One case of the matrix."""
    case()


NAN, INF = float("nan"), float("inf")
SPECIAL = torch.tensor([[NAN, INF, -INF, 1e38, -1e38, 1e-40, -0.0, 0.0]])


@fault(1)
def nan_and_inf():
    right(zoo.Mlp(), (torch.randn(1, 8),), (SPECIAL,))
    right(Fn(lambda x: (x.softmax(-1), x.amax(-1), x.relu(), x.clamp(-1, 1))), (SPECIAL,))


@fault(2)
def huge_tiny_and_minus_zero():
    fast = right(Fn(lambda x: (x * 2 / 2, x + 1 - 1, x * x, -x)), (SPECIAL,))
    zero = fast(torch.full((1, 8), -0.0))[3]
    assert not torch.signbit(zero).any()


@fault(3)
def zero_length():
    right(zoo.Mlp(), (torch.randn(0, 8),))
    right(zoo.Attention(), (torch.randn(2, 0, 16),))
    right(zoo.Mlp(), (torch.randn(3, 8),), (torch.randn(0, 8),), dynamic_shapes=True)


@fault(4)
def size_one():
    right(zoo.Mlp(), (torch.randn(1, 8),))
    right(zoo.Mlp(), (torch.randn(4, 8),), (torch.randn(1, 8),), dynamic_shapes=True)
    one = Fn(lambda x: x + 1 if x.shape[0] == 1 else x * 3)
    fast = right(one, (torch.ones(4, 2),), (torch.ones(2, 2),), dynamic_shapes=(({0: "n"},),))
    refused(r"not \(n == 1\).*test_faults", lambda: fast(torch.ones(1, 2)))


@fault(4)
def size_one_broadcasts():
    fast = optimized(Fn(lambda x, y: x + y), (torch.ones(4, 3), torch.ones(4, 3)), dynamic_shapes=True)
    assert_same(torch.full((1, 3), 2.0), fast(torch.ones(1, 3), torch.ones(1, 3)))
    refused("axis 0", lambda: fast(torch.ones(1, 3), torch.ones(4, 3)))


@fault(5)
def not_contiguous():
    x = torch.randn(8, 6).t()
    assert not x.is_contiguous()
    right(zoo.Mlp(), (x,), (torch.randn(6, 16)[:, ::2],), atol=1e-6)
    right(Fn(lambda x: x.contiguous().view(-1)), (x,), (torch.randn(6, 8),))
    right(Fn(lambda x: x.reshape(-1)), (torch.randn(6, 8),), (x,))


@fault(5)
def layout_is_asked_for():
    """A model that reads strides is held to the layout of the example."""
    fast = optimized(Fn(lambda x: x + 1 if x.is_contiguous() else x - 1), (torch.ones(2, 3),))
    assert_same(torch.full((2, 3), 2.0), fast(torch.ones(2, 3)))
    refused("strides at test_faults.py", lambda: fast(torch.ones(3, 2).t()))
    x = torch.randn(4, 6)
    right(Fn(lambda x: x.t().contiguous().as_strided((2, 3), (3, 1))), (x,))
    right(Fn(lambda x: x.t().contiguous().view(torch.int16)), (x,))
    right(Fn(lambda x: torch.view_as_complex(x.t().contiguous().view(-1, 2)).abs()), (x,))
    refused("as_strided", lambda: optimized(Fn(lambda x: x.t().as_strided((2, 3), (3, 1))), (x,)))


@fault(6)
def overlapping_memory():
    base = torch.randn(8)
    right(zoo.Mlp(), (base.expand(3, 8),))
    right(zoo.Mlp(), (torch.as_strided(base, (3, 4), (1, 1)).repeat(1, 2),))
    window = torch.as_strided(torch.randn(10), (3, 8), (1, 1))
    assert_same(zoo.Mlp()(window).shape, optimized(zoo.Mlp(), (window.clone(),))(window).shape)
    fast = optimized(zoo.Writer(), (torch.ones(2, 3), torch.ones(2, 3)))
    refused("expanded", lambda: fast(torch.ones(3).expand(2, 3), torch.ones(2, 3)))
    refused("memory", lambda: fast(torch.as_strided(torch.ones(6), (2, 3), (1, 1)), torch.ones(2, 3)))


@fault(7)
def input_written():
    right(Fn(lambda x: x.mul_(2).sum()), (torch.randn(3),))


@fault(8)
def input_written_through_a_view():
    right(Fn(lambda x: x.view(-1)[1:3].add_(5).sum()), (torch.randn(2, 3),))


@fault(9)
def inputs_alias():
    x = torch.randn(4, 3)
    fast = optimized(zoo.Writer(), (torch.ones(4, 3), torch.ones(4, 3)))
    refused("share memory", lambda: fast(x, x))
    right(Fn(lambda x, y: x + y), (x, x))


@fault(10)
def output_is_an_input():
    model = Fn(lambda x: (x, x[0], x.view(-1), x * 1))
    x = torch.randn(2, 3)
    fast = right(model, (x,))
    assert fast(x)[0] is x


@fault(11)
def in_place_inside():
    right(zoo.InPlace(), (torch.randn(3, 4), torch.tensor([2, 0, 1])))

    def mixed(x):
        y = x.clone()
        y[:, 0] = 1
        y[0].add_(y[1])
        y[y > 1] = 0
        y.index_add_(0, torch.tensor([0, 0]), y[:2].clone())
        return y.t().sub_(1)

    right(Fn(mixed), (torch.randn(3, 4),))


@fault(12)
def dropout_in_training():
    model = Fn(lambda x: (nn.functional.dropout(x, 0.5), nn.functional.dropout(x, 0.5))).train()
    fast = optimized(model, (torch.ones(64, 64),))
    a, b = fast(torch.ones(64, 64))
    assert set(a.unique().tolist()) == {0.0, 2.0} and 0.4 < a.bool().float().mean() < 0.6
    assert not torch.equal(a, b) and not torch.equal(a, fast(torch.ones(64, 64))[0])
    right(nn.Dropout(0.5).eval(), (torch.randn(4, 4),))


@fault(13)
def batch_norm_in_training():
    model = zoo.Norm().train()
    fast = optimized(model, (torch.randn(2, 3, 4, 4),))
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4)
        assert_same(model(x), fast(x))
    assert_same(dict(model.state_dict()), dict(fast.state_dict()))


@fault(14)
def mode_switched():
    fast = optimized(zoo.Norm().eval(), (torch.randn(2, 3, 4, 4),))
    refused("eval mode", fast.train)
    refused("training mode", optimized(zoo.Norm(), (torch.randn(2, 3, 4, 4),)).eval)


@fault(15)
def tied_weights():
    ids = torch.randint(0, 11, (2, 5))
    fast = right(zoo.Tied(), (ids,))
    assert fast.embed.weight is fast.head.weight


@fault(16)
def weights_changed():
    model, x = zoo.Mlp(), torch.randn(3, 8)
    fast = optimized(model, (x,))
    other = zoo.Mlp()
    fast.load_state_dict(other.state_dict())
    assert_same(other(x), fast(x))
    captured = capture(model, (x,))
    run = backend("eager").compile(captured.graph, captured.modules)
    fast = OptimizedModule(model, captured, captured.graph, run, folded=frozenset({"up.bias"}))
    refused("up.bias", lambda: fast.load_state_dict(other.state_dict()))


@fault(17)
def data_dependent_if():
    def forward(x):
        if x.sum() > 0:
            return x
        return -x

    text = refused("torch.cond", lambda: optimized(Fn(forward), (torch.randn(3),)))
    assert "test_faults.py" in text and "if x.sum() > 0" in text


@fault(18)
def data_dependent_size():
    right(Fn(torch.nonzero), (torch.tensor([1.0, 0.0]),), (torch.tensor([0.0, 0.0]),))
    right(Fn(lambda n: torch.arange(n.item())), (torch.tensor(3),), (torch.tensor(5),))
    right(Fn(lambda x: x[x > 0].sum()), (torch.randn(5),), (-torch.ones(5),))
    refused("item", lambda: optimized(Fn(lambda x, s: x * s.item()), (torch.ones(2), torch.tensor(0.5))))


@fault(19)
def shape_dependent_if():
    model = Fn(lambda x: x + 1 if x.shape[0] > 4 else x - 1)
    fast = right(model, (torch.ones(6, 2),), (torch.ones(5, 2),), dynamic_shapes=True)
    refused("captured for at least 5", lambda: fast(torch.ones(4, 2)))


@fault(20)
def complex_numbers():
    right(Fn(lambda x: torch.fft.fft(x).abs()), (torch.randn(4, 8),))
    right(Fn(lambda x: torch.view_as_real(torch.polar(x.abs(), x) * 2)), (torch.randn(4),))
    right(Fn(lambda z: z * z.conj()), (torch.randn(3, dtype=torch.complex64),))


@fault(21)
def narrow_formats():
    x = torch.randn(4, 8)
    right(Fn(lambda x: x.to(torch.float8_e4m3fn).to(torch.float32)), (x,))
    right(Fn(lambda q: q.to(torch.float32) * 2), (x.to(torch.float8_e5m2),))
    quantised = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
    refused("quanti", lambda: optimized(Fn(lambda q: q.dequantize()), (quantised,)))


@fault(22)
def wrong_dtype_or_device():
    fast = optimized(zoo.Mlp(), (torch.randn(3, 8),))
    refused("'x' has dtype float64.*float32", lambda: fast(torch.randn(3, 8).double()))
    refused("'x' has dtype int64", lambda: fast(torch.ones(3, 8, dtype=torch.int64)))
    refused("meta", lambda: fast(torch.ones(3, 8, device="meta")))


@fault(23)
def wrong_rank_or_size():
    fast = optimized(zoo.Mlp(), (torch.randn(3, 8),), dynamic_shapes=({0: "rows"},))
    refused(r"'x' has 3 axes.*f32\[rows,8\]", lambda: fast(torch.randn(1, 3, 8)))
    refused(r"size 9 on axis 1, captured as fixed 8: f32\[rows,8\]", lambda: fast(torch.randn(3, 9)))


@fault(24)
def random_ops():
    model = Fn(lambda x: (torch.randn_like(x), torch.rand_like(x), torch.randn_like(x)))
    fast = optimized(model, (torch.ones(2000),))
    a, b, c = fast(torch.ones(2000))
    assert abs(a.mean()) < 0.1 and abs(a.std() - 1) < 0.1 and 0.45 < b.mean() < 0.55
    assert not torch.equal(a, c)
    torch.manual_seed(3)
    first = fast(torch.ones(2000))
    torch.manual_seed(3)
    assert_same(first, fast(torch.ones(2000)))


@fault(25)
def printing_and_counting():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            print("called")
            return x + 1

    model = Model()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fast = optimized(model, (torch.ones(2),))
    said = [str(w.message) for w in seen]
    assert any("print in Model.forward happens once" in text for text in said)
    assert any("self.calls" in text and "test_faults.py" in text for text in said)
    assert model.calls == 0
    assert_same(torch.full((2,), 2.0), fast(torch.ones(2)))


@fault(26)
def ops_outside_the_vocabulary():
    @torch.library.custom_op("subquad_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    right(Fn(lambda x: twice(x) + 1), (torch.randn(3),))
    right(Fn(lambda x: torch.special.bessel_j0(x) + torch.linalg.svdvals(x)[0]), (torch.randn(3, 3),))


@fault(27)
def deep_and_wide():
    def deep(x):
        for _ in range(1000):
            x = x * 1.0009765625
        return x

    right(Fn(deep), (torch.randn(3),))
    wide = tuple(torch.randn(2) for _ in range(200))
    right(Fn(lambda *xs: torch.cat(xs).sum()), wide)


@fault(28)
def structures():
    batch = zoo.Batch(torch.randn(3, 4), torch.ones(3))
    right(zoo.Structured(), (batch, torch.randn(3, 4)), kwargs={"bias": torch.randn(4), "factor": 3})
    x = torch.randn(2)
    right(Fn(lambda a, b: {"same": a, "again": a, "list": [b, (a, None, "text", 2.5)]}), (x, x))
    right(Fn(lambda tree: tree["a"][0] + tree["b"]["c"]), ({"a": [x], "b": {"c": x + 1}},))
    fast = optimized(Fn(lambda tree: tree["a"] - tree["b"]), ({"a": x, "b": x + 1},))
    assert_same(x - (x + 1), fast({"b": x + 1, "a": x}))
    refused("built differently|at capture", lambda: fast({"a": x, "c": x}))


@fault(29)
def tensors_that_are_no_plain_tensors():
    class Tagged(torch.Tensor):
        pass

    from torch._subclasses.fake_tensor import FakeTensorMode

    x = torch.randn(3, 8)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    model = zoo.Mlp()
    fast = optimized(model, (x,))
    for value, text in [
        (x.to_sparse(), "layout sparse"), (x.to("meta"), "meta"), (fake, "FakeTensor"),
        (x.as_subclass(Tagged), "Tagged"), (x.to_sparse_csr(), "layout sparse"),
    ]:  # fmt: skip
        refused(text, lambda value=value: optimized(model, (value,)))
        refused(text, lambda value=value: fast(value))
    refused("meta", lambda: optimized(copy.deepcopy(model).to("meta"), (x,)))
    refused("lazy", lambda: optimized(nn.LazyLinear(3), (x,)))


@fault(30)
def backends_that_are_missing():
    refused("inductr.*inductor", lambda: backend("inductr"))


# ---- what is asked of capture itself -------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "args", "kwargs", "text"),
    [
        (lambda x: x, (torch.ones(2),), None, "nn.Module.*function.*forward"),
        (nn.Linear, (torch.ones(2),), None, "instance"),
        (zoo.Mlp(), torch.ones(2, 8), None, r"tuple.*\(x,\)"),
        (zoo.Mlp(), [torch.ones(2, 8)], None, "tuple.*not a list"),
        (zoo.Mlp(), (), None, "missing a required argument: 'x'"),
        (zoo.Mlp(), (torch.ones(2, 8),), {"sale": 1}, "unexpected keyword argument 'sale'"),
        (zoo.Mlp(), (torch.ones(2, 7),), None, "torch.export could not capture Mlp"),
        (nn.DataParallel(zoo.Mlp()), (torch.ones(2, 8),), None, "model.module"),
        (torch.jit.trace(zoo.Mlp(), torch.ones(2, 8)), (torch.ones(2, 8),), None, "TorchScript"),
        (Fn(lambda x: object()), (torch.ones(2),), None, "container"),
    ],
)  # fmt: skip
def test_what_cannot_be_captured(model, args, kwargs, text):
    """One sentence, in our words, with torch's reason where there is one."""
    refused(text, lambda: capture(model, args, kwargs))


def test_several_devices():
    """A model in two places is refused, with one weight of each named."""
    model = zoo.Mlp()
    model.down.to("meta")
    refused("meta", lambda: capture(model, (torch.ones(2, 8),)))


def test_dynamic_shapes_that_the_model_does_not_keep():
    """A size that the model fixes is named, with what to do."""
    model = Fn(lambda x: x.view(2, 3) + 1)
    shapes = (({0: "rows"},),)
    refused("Dim.AUTO", lambda: capture(model, (torch.ones(2, 3),), dynamic_shapes=shapes))


def test_one_tensor_for_two_inputs():
    """A tensor passed twice, or a weight passed as input, is two inputs all the same."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, a, b, c):
            return a * 10 + b["b"] * self.weight + c

    model, (x, y, z) = Model(), torch.randn(3, 3)
    for args in ((x, {"b": x}, x), (x, {"b": y}, model.weight)):
        fast = optimized(model, args)
        assert_same(model(*args), fast(*args))
        assert_same(model(z, {"b": x}, y), fast(z, {"b": x}, y))

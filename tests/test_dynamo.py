"""torch.compile(model, backend="subquad"): results, gradients, memory and sizes are those of the model."""

import contextlib
import copy
import logging
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import subquad
from subquad import dynamo
from subquad.ir import SubquadError
from subquad.passes.recipes.pieces.parts import zeros
from subquad.passes.recipes.recipe import ALL, Recipe


@pytest.fixture(autouse=True)
def fresh():
    """Nothing compiled, and every warning an error unless a test wants it."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="subquad runs graph")
        yield
    torch._dynamo.reset()


class Model(nn.Module):
    """Two layers and a buffer, with a function for forward."""

    def __init__(self, function):
        super().__init__()
        self.function, self.up, self.out = function, nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *args):
        return self.function(self, *args)


def attend(model, x):
    """One attention [n, 8] -> [1, 1, n, 8]."""
    x = model.up(x)[None, None]
    return F.scaled_dot_product_attention(x, x, x)


def rows(*counts):
    """One call for each count, x [count, 8]."""
    return [(torch.randn(count, 8),) for count in counts]


def agree(model, calls, around=contextlib.nullcontext, tolerance=1e-5, **options):
    """Compile a model; hold every call and its gradients, writes, strides and aliases against it."""
    ours, theirs = model, copy.deepcopy(model)
    fast = torch.compile(ours, backend="subquad", **options)
    for args in calls:
        first, second = copy.deepcopy(args), copy.deepcopy(args)
        with around():
            torch.manual_seed(1)
            got = fast(*first)
            torch.manual_seed(1)
            wanted = theirs(*second)
        assert type(got) is type(wanted)
        got, wanted = pytree.tree_leaves((got, first)), pytree.tree_leaves((wanted, second))
        same(got, wanted, tolerance)
        for x, y in pairs(got, wanted):
            assert (x.stride(), x.requires_grad) == (y.stride(), y.requires_grad)
        assert aliases(got) == aliases(wanted)
        for results, net in ((got, ours), (wanted, theirs)):
            grown = [x for x in results if isinstance(x, torch.Tensor) and x.requires_grad]
            if grown:
                sum(x.float().square().sum() for x in grown).backward()
            for p in net.parameters():
                if p.grad is not None:
                    p.data.sub_(p.grad, alpha=0.01)  # what an optimiser does: in place, unseen
        same(
            [p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()], 10 * tolerance
        )  # fmt: skip
        same(list(ours.buffers()), list(theirs.buffers()), tolerance)
        ours.zero_grad(), theirs.zero_grad()


def pairs(got, wanted):
    return [(x, y) for x, y in zip(got, wanted, strict=True) if isinstance(y, torch.Tensor)]


def same(got, wanted, tolerance):
    assert [x is None for x in got] == [x is None for x in wanted]
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=10 * tolerance, atol=tolerance)


def aliases(leaves):
    """Which tensors lie in one memory."""
    memory = [x.untyped_storage()._cdata for x in leaves if isinstance(x, torch.Tensor)]
    return [memory.index(place) for place in memory]


def refused():
    return [graph.refused for graph in dynamo.graphs]


# ---- what is compiled ----------------------------------------------------------------------------


@dataclass
class Pair:
    """Something a model may return."""

    a: torch.Tensor
    n: int


pytree.register_dataclass(Pair, field_names=["a", "n"])


def frozen_part(model, x):
    with torch.no_grad():
        a, b = model.up(x).softmax(-1).chunk(2, -1)
    return model.out(x)[:, :4] * a, b


def narrow(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.up(x)
    return model.out(y.float()), y


def counting(model, x):
    x.mul_(2)
    model.count.add_(1)
    return model.up(x * 1), x[0]


def filled(model, x):
    new = torch.zeros(3, 8)
    new[:, :4] = model.up(x)[:, :4]
    return new


def broken(model, x):
    y = attend(model, x)
    torch._dynamo.graph_break()
    return model.out(y) * 2


CASES = {
    "linear": lambda m, x: m.out(m.up(x).relu()),
    "attention": attend,
    "dict": lambda m, x: {"a": m.up(x), "n": x.shape[0], "none": None},
    "dataclass": lambda m, x: Pair(m.up(x), x.shape[0]),
    "constant": lambda m, x: m.up(x) + torch.tensor([1.0, 2.0] * 4),
    "views of an input": lambda m, x: (x.view(-1), x[1:], x, m.up(x)),
    "views of an output": lambda m, x: (lambda y: (y, y.t(), y[1:], y.detach()))(m.up(x)),
    "parts": lambda m, x: m.up(x).chunk(2, -1),
    "one twice": lambda m, x: (lambda y: (y, y))(m.up(x)),
    "weights out": lambda m, x: (m.up.weight, m.up.weight.t(), m.up(x)),
    "strides": lambda m, x: (m.up(x) + 1).view(3, 2, 4).transpose(1, 2) + 1,
    "written input": lambda m, x: x.add_(1),
    "written buffer": counting,
    "written part": filled,
    "overwritten": lambda m, x: (m.up(x.clone()), x.fill_(3.0))[0],
    "in place": lambda m, x: F.relu(m.up(x), inplace=True),
    "no_grad": frozen_part,
    "detach": lambda m, x: m.up(x) * m.out(x).detach(),
    "dropout": lambda m, x: F.dropout(m.up(x), 0.5),
    "item": lambda m, x: m.up(x) * x.sum().item(),
    "values": lambda m, x: m.up(x) if x.sum() > 0 else m.out(x),
    "break": broken,
}


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_model_is_the_model(name):
    """Twice, with the parameters changed in place between."""
    agree(Model(CASES[name]), rows(3, 3))
    assert dynamo.graphs and set(refused()) == {""}


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_without_gradients(around):
    agree(Model(counting), rows(3, 3), around)
    assert refused() == [""]


def test_batch_norm_counts_and_trains():
    """Its running figures are written after the graph, and the backward pass does not mind."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    agree(model, [(torch.randn(2, 3, 6, 6),) for _ in range(3)])
    assert int(model[1].num_batches_tracked) == 3


def test_batch_norm_trains_when_optimized_too():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    (x,) = rows(5)[0]
    fast = subquad.optimize(model, (x,))
    fast(x).square().sum().backward()
    model(x).square().sum().backward()
    same([p.grad for p in fast.parameters()], [p.grad for p in model.parameters()], 1e-5)
    same(list(fast.buffers()), list(model.buffers()), 1e-5)


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside):
    """Inside forward and around the call; held against float64, as two roundings differ."""
    model = Model(narrow if inside else lambda m, x: (m.up(x).softmax(-1), m.out(x)))
    around = contextlib.nullcontext if inside else lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    (x,) = rows(3)[0]
    exact = copy.deepcopy(model).double()
    fast = torch.compile(copy.deepcopy(model), backend="subquad")
    with around():
        got, wanted = fast(x), model(x)
    with torch.autocast("cpu", enabled=False):
        truth = (
            (exact.out(exact.up(x.double())), exact.up(x.double()))
            if inside
            else (exact.up(x.double()).softmax(-1), exact.out(x.double()))
        )
    for ours, theirs, true in zip(got, wanted, truth, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - true).abs().max() <= max(3 * (theirs - true).abs().max(), 1e-5)
    assert refused() == [""]


def test_dropout_draws_anew():
    fast = torch.compile(Model(lambda m, x: (F.dropout(x, 0.5), F.dropout(x, 0.5))), backend="subquad")
    first, second = fast(torch.ones(64, 8))
    assert not torch.equal(first, second) and not torch.equal(first, fast(torch.ones(64, 8))[0])
    assert 0.3 < (first == 0).float().mean() < 0.7


def test_an_optimiser_trains_the_users_own_parameters():
    model = Model(attend)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="subquad")
    (x,) = rows(5)[0]
    for net, call in ((model, fast), (twin, twin)):
        steps = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(4):
            steps.zero_grad()
            call(x).square().mean().backward()
            steps.step()
    same(list(model.parameters()), list(twin.parameters()), 1e-4)
    assert len(dynamo.graphs) == 1


def test_a_compiled_optimiser_step():
    """Its parameters and state are tensors of the graph, not arguments, and are written."""
    model = nn.Linear(4, 4)
    twin = copy.deepcopy(model)
    ours, theirs = (torch.optim.AdamW(net.parameters(), lr=0.1) for net in (model, twin))
    step = torch.compile(ours.step, backend="subquad")
    for _ in range(3):
        x = torch.randn(2, 4)
        for net, take in ((model, step), (twin, theirs.step)):
            net.zero_grad()
            net(x).square().sum().backward()
            take()
    same(list(model.parameters()), list(twin.parameters()), 1e-5)
    assert set(refused()) == {""}


def test_gradients_of_gradients():
    model, x = Model(lambda m, x: m.up(x).sin()), torch.randn(3, 8, requires_grad=True)
    fast = torch.compile(model, backend="subquad")
    seconds = []
    for call in (fast, model):
        (first,) = torch.autograd.grad(call(x).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*seconds)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dynamic", "graphs"), [(None, 2), (True, 1), pytest.param(False, 4, marks=pytest.mark.slow)]
)
def test_one_graph_serves_many_lengths(dynamic, graphs):
    agree(
        Model(lambda m, x: (attend(m, x), 2 * x.shape[0], torch.arange(x.shape[0]))),
        rows(5, 6, 9, 7), dynamic=dynamic,
    )  # fmt: skip
    assert refused() == [""] * graphs


def test_marked_dynamic():
    model, calls = Model(attend), rows(5, 6, 9)
    torch._dynamo.mark_dynamic(calls[0][0], 0)
    fast = torch.compile(model, backend="subquad")
    for (x,) in calls:
        torch.testing.assert_close(fast(x), model(x))
    assert refused() == [""]


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
def test_branches_on_a_length_and_length_one(dynamic):
    model = Model(lambda m, x: m.up(x) if x.shape[0] > 4 else attend(m, x))
    agree(model, rows(3, 4, 6, 9, 1), dynamic=dynamic)
    assert set(refused()) == {""}


def test_numbers_that_change():
    """Integers become sizes; where one is negative the graph stays. Floats are fixed in a graph each."""
    calls = [(torch.randn(3, 8), n, n + 0.5) for n in (2, 3)]
    agree(Model(lambda m, x, n, a: m.up(x) * n + a + torch.arange(n).sum()), calls, dynamic=True)
    assert set(refused()) == {""}
    with pytest.warns(UserWarning, match=r"as it was: the integer .* is -2, and no size is negative"):
        agree(Model(lambda m, x, n: m.up(x) * n), [(torch.randn(3, 8), n) for n in (2, -2)], dynamic=True)


# ---- what is not ---------------------------------------------------------------------------------


class Tripled(torch.autograd.Function):
    """A backward pass of its own."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def past_autograd(model, x):
    y = model.up(x)
    with torch.no_grad():
        y.mul_(2)
    return y.square()


def through_data(model, x):
    model.up.weight.data.mul_(0.5)
    return model.up(x)


REFUSED = {
    "checkpoint": (lambda m, x: checkpoint(m.up, x, use_reentrant=False), "tag_activation_checkpoint"),
    "autograd.Function": (lambda m, x: Tripled.apply(m.up(x)), "autograd_function_apply"),
    "write under no_grad": (past_autograd, r"past autograd .*test_dynamo.py:\d+"),
    "write through data": (through_data, "past autograd"),
    "functorch": (lambda m, x: torch.func.vmap(m.up)(x), "functorch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_runs_as_it_was_and_says_why(name):
    """Never silently: a warning with the reason, kept in the record; results and gradients right."""
    function, reason = REFUSED[name]
    with pytest.warns(UserWarning, match=f"subquad runs graph .* as it was: .*{reason}"):
        agree(Model(function), rows(3, 3))
    assert any(refused()) and "runs as it was" in str(dynamo.graphs[-1])


def test_written_inputs_that_share_memory():
    """Dynamo has no guard for it, so each call looks."""
    model = Model(lambda m, x, y: x.mul_(2) + y)
    fast = torch.compile(model, backend="subquad")
    assert torch.equal(fast(torch.ones(2), torch.ones(2)), torch.tensor([3.0, 3.0]))
    both = torch.ones(3)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = fast(both[:2], both[1:])
    again = torch.ones(3)
    assert torch.equal(result, model(again[:2], again[1:])) and torch.equal(both, again)
    assert any("memory" in str(w.message) or "alias" in str(w.message) for w in found)


def test_a_graph_that_writes_to_aliases_after_a_break():
    def aliased(model, x):
        y = model.up(x)
        part = y.view(-1, 2, 4)
        torch._dynamo.graph_break()
        y.add_(1)
        return part * 2

    with pytest.warns(UserWarning, match="aliased inputs"):
        agree(Model(aliased), rows(3, 3))


# ---- options -------------------------------------------------------------------------------------


def test_the_backend_is_known_without_importing_subquad():
    assert "subquad" in torch._dynamo.list_backends()


def test_a_recipe_by_name_and_by_place():
    """A glob may lie in one graph of several."""
    layers = nn.ModuleDict({"a": Model(attend), "b": Model(attend)})

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            x = self.layers["a"](x)[0, 0]
            torch._dynamo.graph_break()
            return self.layers["b"](x)

    model, (x,) = Two(), rows(16)[0]
    exact = model(x)
    fast = torch.compile(model, backend="subquad", options={"attention": {"layers.a": "elu1"}})
    assert not torch.allclose(fast(x), exact, atol=1e-4)
    decisions = {site.path: site.decision for graph in dynamo.graphs for site in graph.sites}
    assert decisions == {"layers.a": "elu1", "layers.b": "attention"}
    assert "linearize" in str(dynamo.graphs[0].log)
    fast(x).sum().backward()
    assert layers["a"].up.weight.grad is not None


def gated(q, k, v, site):
    """No mixing at all, and a gate that is learned."""
    return v * site.learn("gate", zeros(q.dtype, 1))


def test_a_recipe_that_learns_is_an_error():
    """torch.compile has no module to keep the weights in; a lazily captured one has."""
    recipe = Recipe("gated", gated, "none", "needs training", ALL)
    fast = torch.compile(Model(attend), backend="subquad", options={"attention": recipe})
    with pytest.raises(Exception, match=r"learns .*gate, and torch.compile has no module") as raised:
        fast(*rows(3)[0])
    assert isinstance(raised.value.inner_exception, SubquadError)
    lazy = subquad.optimize(Model(attend), attention=recipe, check=False)
    for (x,) in rows(3, 5):
        assert lazy(x).shape == (1, 1, len(x), 8)
    (gate,) = (p for name, p in lazy.named_parameters() if name.endswith("gate"))
    lazy(x).sum().backward()
    assert gate.grad is not None and len(list(lazy.parameters())) == 5


def test_options_reach_the_passes():
    options = {"pipeline": "canonicalize,attention", "check": True, "backend": "eager"}
    agree(Model(attend), rows(5, 5), options=options)
    (graph,) = dynamo.graphs
    assert [step.name for step in graph.log.steps] == ["canonicalize", "attention"]
    assert graph.log.error < 1e-12 and graph.sites[0].decision == "attention"
    assert "up.weight" in graph.graph.params


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"options": {"atention": "elu1"}}, "no option 'atention'; did you mean 'attention'"),
        ({"options": {"attention": "elu"}}, "did you mean 'elu1'"),
        ({"options": {"backend": "eagr"}}, "did you mean 'eager'"),
        ({"mode": "max-autotun"}, "no mode 'max-autotun'; did you mean 'max-autotune'"),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(options, words):
    """Raised, not fallen back from: it is a mistake, and no graph would be right."""
    fast = torch.compile(Model(attend), backend="subquad", **options)
    with pytest.raises(Exception, match=words) as raised:
        fast(*rows(3)[0])
    assert isinstance(raised.value.inner_exception, SubquadError)


def test_modes_are_inductors():
    from subquad.backends import BACKENDS

    chosen = dynamo.chosen(None, "default")
    assert chosen["backend"].name == "eager" and not chosen["check"]
    if BACKENDS["inductor"].unavailable() is None:
        tuned = dynamo.chosen(None, "max-autotune")["backend"]
        assert (tuned.name, tuned.mode) == ("inductor", "max-autotune")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{"options": {"backend": "inductor"}}, {"mode": "max-autotune"}])
def test_inductor_runs_the_graphs(chosen):
    agree(Model(attend), rows(5, 6, 9), tolerance=1e-4, **chosen)
    assert set(refused()) == {""}


def test_the_log_goes_to_the_logger_and_reset_forgets(caplog):
    with caplog.at_level(logging.DEBUG, logger="subquad"):
        torch.compile(Model(attend), backend="subquad")(*rows(5)[0])
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "graph 0/0" in text and "canonicalize" in text and "attention(" in text
    assert len(dynamo.graphs) == 1
    torch._dynamo.reset()
    assert not dynamo.graphs


# ---- models of others ----------------------------------------------------------------------------

TINY = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=64,
)  # fmt: skip


def bert(transformers):
    config = transformers.BertConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertModel(config), {}


def llama(transformers):
    config = transformers.LlamaConfig(**TINY, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config), {"use_cache": False}


def gpt2(transformers):
    """With a graph break before its last norm, as a hook that prints would make."""
    sizes = dict(vocab_size=99, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    config = transformers.GPT2Config(**sizes, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
    model = transformers.GPT2Model(config)
    model.ln_f.register_forward_hook(lambda *call: torch._dynamo.graph_break())
    return model, {"use_cache": False}


@pytest.mark.parametrize("make", [llama, *(pytest.param(f, marks=pytest.mark.slow) for f in (bert, gpt2))])
def test_a_transformer_trains(make):
    """Three lengths in training, padded: two captures, gradients, attention recognised in each."""
    transformers = pytest.importorskip("transformers")
    model, options = make(transformers)
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="subquad")
    for n in (7, 9, 12):
        ids = torch.randint(0, 99, (2, n))
        given = {"input_ids": ids, "attention_mask": (torch.arange(n) < torch.tensor([[n], [n - 2]])).long()}
        got, wanted = fast(**given, **options), twin(**given, **options)
        assert type(got) is type(wanted) and got.keys() == wanted.keys()
        torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-5)
        got[0].square().mean().backward()
        wanted[0].square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert set(refused()) == {""}
    sites = [site for graph in dynamo.graphs for site in graph.sites]
    assert {site.decision for site in sites} == {"attention"} and len(sites) == 2
    assert {site.mask for site in sites} == {"padding" if make is bert else "causal+padding"}

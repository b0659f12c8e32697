"""Capture changes nothing: the graph, run by eager torch, gives what the model gives."""

import re
import threading

import pytest
import torch
import zoo
from torch import nn
from torch.export import Dim
from zoo import assert_same, copied, optimized

from subquad.frontend import capture
from subquad.frontend.fx import import_nodes, tensor_type
from subquad.frontend.symbols import Names
from subquad.ir import CaptureError, SubquadError, evaluate, parse
from subquad.ir.core import OPS
from subquad.reference import seeded

torch.manual_seed(0)
X = torch.randn(3, 5, 16)
IMAGE = torch.randn(2, 3, 6, 6)

CASES = {
    "mlp": (zoo.Mlp(), (torch.randn(3, 8),), {}),
    "mlp keyword": (zoo.Mlp(), (torch.randn(3, 8),), {"scale": torch.randn(3, 1)}),
    "attention": (zoo.Attention(), (X,), {}),
    "multihead": (nn.MultiheadAttention(16, 4, batch_first=True), (X, X + 1, X + 2), {}),
    "multihead no weights": (
        nn.MultiheadAttention(16, 4, batch_first=True), (X, X, X), {"need_weights": False},
    ),
    "encoder": (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (X,), {}),
    "conv and norm": (zoo.Norm(), (IMAGE,), {}),
    "lstm": (zoo.Recurrent(), (torch.randn(2, 5, 8),), {}),
    "tied": (zoo.Tied(), (torch.randint(0, 11, (2, 5)),), {}),
    "in place": (zoo.InPlace(), (torch.randn(3, 4), torch.tensor([2, 0, 1])), {}),
    "dataclass": (
        zoo.Structured(), (zoo.Batch(torch.randn(3, 4), torch.ones(3)), X[:, 0, :4], X[:, 1, :4]),
        {"factor": 3.0, "bias": torch.randn(4)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_model(name):
    """Bit for bit, under gradients and without."""
    model, args, kwargs = CASES[name]
    model.eval()
    fast = optimized(model, args, kwargs)
    assert_same(model(*args, **kwargs), fast(*args, **kwargs))
    assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ["mlp", "attention", "encoder", "conv and norm", "tied"])
def test_other_sizes(name):
    """dynamic_shapes=True opens every axis that the model can leave open."""
    model, args, kwargs = CASES[name]
    model.eval()
    fast = optimized(model, args, kwargs, dynamic_shapes=True)
    batch = torch.cat([*args, *args])[:4]
    for x in (batch, batch[:1], batch[:0]):
        assert_same(model(x), fast(x), atol=1e-6)


def test_symbols_have_the_users_names():
    """Named Dims, strings and AUTO."""
    model, x = zoo.Mlp(), torch.randn(3, 8)
    assert str(capture(model, (x,), dynamic_shapes={"x": {0: Dim("rows")}}).graph.inputs[0].type) == (
        "f32[rows,8]"
    )
    assert str(capture(model, (x,), dynamic_shapes=({0: "rows"},)).graph.inputs[0].type) == "f32[rows,8]"
    graph = capture(model, (x,), dynamic_shapes={"x": {0: Dim("rows", max=64)}}).graph
    assert graph.facts == (("rows", 0, 64),)
    assert str(capture(model, (x,), dynamic_shapes=True).graph.inputs[0].type) == "f32[s0,8]"


def test_size_arithmetic():
    """Sizes computed in the model are dims, numbers made from them 0-d values."""

    class Model(nn.Module):
        def forward(self, x):
            n = x.shape[0]
            y = x.view(n // 2, 2, -1).transpose(0, 1)
            return y * n, y.sum() / n**0.5, torch.arange(n * 2 + 1), max(n, 5)

    model = Model()
    fast = optimized(model, (torch.randn(6, 4),), dynamic_shapes={"x": {0: 2 * Dim("half", max=20)}})
    for n in (6, 8, 20):
        x = torch.randn(n, 4)
        assert_same(model(x), fast(x), atol=1e-6)


def test_sizes_of_float_ranges():
    """arange(0.5, n) is the middle of n cells: ceil(n - 0.5) elements, which is n."""

    class Model(nn.Module):
        def forward(self, x):
            n = x.shape[0] // 2
            return torch.arange(0.5, n), torch.arange(-1.25, n + 1), torch.arange(0.0, n)

    model = Model()
    fast = optimized(model, (torch.ones(6),), dynamic_shapes={"x": {0: Dim.AUTO}})
    for n in (6, 7, 4, 20):
        assert_same(model(torch.ones(n)), fast(torch.ones(n)))


def test_numbers_are_drawn_in_the_models_order():
    """What the first output needs is drawn second: the same seed still gives the same numbers."""

    class Model(nn.Module):
        def forward(self, x):
            first, second = torch.rand(3), torch.randn(3)
            return x * second, x + first

    model, x = Model(), torch.randn(3)
    fast = optimized(model, (x,))
    with seeded():
        expected = model(x)
    with seeded():
        assert_same(expected, fast(x))


def test_steps_of_whole_floats():
    """arange(a, b, 2.0, dtype=int64) is a range of whole numbers; a broken bound is left to torch."""
    steps = [(12, -12, -1.0), (0, 7, 2.0), (0.0, 6.0, 1), (0, 6.5, 1)]

    class Model(nn.Module):
        def forward(self, x):
            return [x + torch.arange(*s, dtype=torch.int64).sum() for s in steps]

    x = torch.ones(2)
    assert_same(Model()(x), optimized(Model(), (x,))(x))
    ops = [op.name for op in capture(Model(), (x,)).graph.ops()]
    assert ops.count("arange") == 3 and ops.count("opaque") == 1


def test_data_dependent_sizes():
    """nonzero makes a size; .item() makes one too, and the rest waits for it."""

    class Model(nn.Module):
        def forward(self, x, n):
            found = torch.nonzero(x > 0)
            return found, x[found[:, 0], found[:, 1]].sum(), torch.arange(n.item()) * 2

    model = Model()
    fast = optimized(model, (torch.randn(4, 4), torch.tensor(3)))
    for n in (3, 0, 9):
        x = torch.randn(4, 4)
        assert_same(model(x, torch.tensor(n)), fast(x, torch.tensor(n)))


def test_assertions_are_kept():
    """torch._check about sizes is asked of each call."""

    class Model(nn.Module):
        def forward(self, x, n):
            size = n.item()
            torch._check(size <= 5)
            return x + torch.arange(size).sum()

    model = Model()
    fast = optimized(model, (torch.randn(2), torch.tensor(3)))
    assert_same(model(torch.ones(2), torch.tensor(5)), fast(torch.ones(2), torch.tensor(5)))
    with pytest.raises(Exception, match="5"):
        fast(torch.ones(2), torch.tensor(6))


def test_assertions_about_values():
    """A truth value may be read out of a tensor for an assertion: vision language models count places."""

    class Model(nn.Module):
        def forward(self, x, places):
            torch._check_tensor_all(places.sum() == 2)
            torch._check((x[0, 0] < 5).item())
            return x.masked_fill(places[:, None], 1.0)

    model, places = Model(), torch.tensor([True, False, True, False])
    fast = optimized(model, (torch.zeros(4, 3), places))
    assert_same(model(torch.ones(4, 3), ~places), fast(torch.ones(4, 3), ~places))
    with pytest.raises(SubquadError):
        fast(torch.ones(4, 3), places | True)
    with pytest.raises(SubquadError, match=r"test_capture.py:\d+"):
        fast(torch.ones(4, 3) * 6, places)


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_in_both_modes(train):
    """In training the running statistics move, three calls in a row."""
    model = zoo.Norm().train(train)
    fast = optimized(model, (IMAGE,))
    for _ in range(3):
        x = torch.randn(2, 3, 6, 6)
        assert_same(model(x), fast(x))
    assert_same(dict(model.state_dict()), dict(fast.state_dict()))
    assert (int(fast.norm.num_batches_tracked) == 3) is train


def test_buffers_are_updated():
    """Also the ones that state_dict leaves out; constants keep their values."""
    model = zoo.Counter()
    fast = optimized(model, (torch.randn(2, 4),))
    for _ in range(2):
        x = torch.randn(2, 4)
        assert_same(model(x), fast(x))
    assert_same((model.count, model.mean), (fast.count, fast.mean))
    assert list(fast.state_dict()) == ["count"]


def test_inputs_are_written_to():
    """Directly and through a view; an output that is an input stays that input."""
    model, args = zoo.Writer(), (torch.randn(2, 3), torch.randn(2, 3))
    fast = optimized(model, copied(args))
    mine, theirs = copied(args), copied(args)
    expected, given = model(*theirs), fast(*mine)
    assert_same((expected, theirs), (given, mine))
    assert given[0] is mine[0]


def test_gradients_stop_where_they_stopped():
    """detach and no_grad survive capture; the straight-through estimator keeps its gradient."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                target = self.inner(x) * 2
            y = self.outer(x)
            y = y + (y.round() - y).detach()
            return ((y - target) ** 2).sum()

    model, x = Model(), torch.randn(2, 4)
    fast = optimized(model, (x,))
    model(x).backward()
    fast(x).backward()
    assert fast.inner.weight.grad is None and model.inner.weight.grad is None
    assert_same(model.outer.weight.grad, fast.outer.weight.grad)
    sources = {op.name: op.source for op in fast.graph.ops() if op.source}
    assert any(re.search(r"inner \(test_capture\.py:\d+\)", source) for source in sources.values())


def test_cond():
    """torch.cond: both branches are kept as modules."""

    class Model(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    model = Model()
    fast = optimized(model, (torch.ones(3),))
    for x in (torch.ones(3), -torch.ones(3)):
        assert_same(model(x), fast(x))


def test_sources():
    """Every op that computes says which module and line it comes from."""
    model = nn.Sequential(zoo.Attention(), nn.Linear(16, 4))
    graph = capture(model, (X,)).graph
    ops = [op for op in graph.ops() if op.name not in ("input", "param", "const")]
    assert all(re.fullmatch(r"(\S+ )?\(?\w+\.py:\d+\)?", op.source) for op in ops if "(" in op.source)
    assert {"0.qkv (zoo.py:", "0.out (zoo.py:"} <= {re.sub(r"\d+\)$", "", op.source) for op in ops}
    assert all(op.source for op in ops)


def test_exported_programs_and_graph_modules():
    """An ExportedProgram object brings its own arguments; a GraphModule is a module."""
    model, x = zoo.Mlp().eval(), torch.randn(3, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim.AUTO},))
    before = str(program.graph)
    fast = optimized(program)
    assert_same(model(x), fast(x))
    assert_same(model(x[:2]), fast(x=x[:2]))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert str(program.graph) == before
    assert_same(model(x), optimized(program.module(), (x,))(x))
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    assert_same(traced(x), optimized(traced, (x,))(x))


def test_the_same_graph_every_time():
    """Text and digest do not depend on what was captured before; the text reads back."""
    first = capture(zoo.Attention(), (X,), dynamic_shapes=True).graph
    capture(zoo.Norm(), (IMAGE,))
    second = capture(zoo.Attention(), (X,), dynamic_shapes=True).graph
    assert str(first) == str(second) and first.digest() == second.digest()
    assert str(parse(str(first))) == str(first)


def test_the_oracle_agrees():
    """The float64 meaning of the graph is what the model computes."""
    model = zoo.Mlp().double().eval()
    captured = capture(model, (torch.randn(3, 8, dtype=torch.float64),))
    x = torch.randn(3, 8, dtype=torch.float64)
    weights = {k: t.detach().numpy() for k, t in captured.tensors.items()}
    (y,), _ = evaluate(captured.graph, [x.numpy()], weights)
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-12, atol=1e-12)


def test_capture_from_threads():
    """torch.export is not thread-safe; capture is."""
    wrong = []

    def work():
        try:
            model = zoo.Mlp()
            x = torch.randn(3, 8)
            assert_same(model(x), optimized(model, (x,))(x), atol=1e-6)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_view_that_no_dims_explain():
    """A view whose sizes torch cannot relate becomes a reshape: its operand may lie otherwise."""
    mixer = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    model = torch.nn.Module()
    model.mixer, model.forward = mixer, lambda x, y: mixer(x, y, y)
    args = torch.randn(2, 6, 16), torch.randn(2, 9, 16)
    fast = optimized(model, args, dynamic_shapes=True)
    assert_same(model(*args), fast(*args), atol=1e-6)


def test_the_model_is_not_changed():
    """Weights, modes, attributes and hooks are as before; forward's caches hold no fake tensors."""

    class Model(zoo.Counter):
        def forward(self, x):
            self.last = x * 2
            return super().forward(x)

    model = Model()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        capture(model, (torch.randn(2, 4),))
    except Exception as error:
        assert "last" in str(error)
    assert_same(state, dict(model.state_dict()))
    assert type(getattr(model, "last", None)) in (type(None), torch.Tensor)


def test_conversion_takes_every_node():
    """The part that is ours, from nodes to ops: one value a node, in a model of 180."""
    model = nn.Sequential(*(zoo.Mlp() for _ in range(60))).eval()
    program = torch.export.export(model, (torch.randn(2, 8),)).run_decompositions({})
    names = Names()
    inputs = {
        node.name: OPS["input"](name=node.name, type=tensor_type(node.meta["val"], names))
        for node in program.graph.nodes if node.op == "placeholder"
    }  # fmt: skip
    imported = import_nodes(program.graph_module, inputs, names)
    assert len(imported.values) == 180 + len(inputs)


# ---- Hugging Face --------------------------------------------------------------------------------


def hugging_face(name):
    """A tiny random model and its keyword inputs, the first rows padded on the left."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    ids = torch.randint(0, 99, (2, 10))
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, :3] = 0
    text = dict(input_ids=ids, attention_mask=mask)
    if name.startswith("bert"):
        config = transformers.BertConfig(**sizes, vocab_size=99, attn_implementation=name[5:] or "sdpa")
        return transformers.BertModel(config), text
    if name == "llama":
        config = transformers.LlamaConfig(**sizes, vocab_size=99, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config), text | {"use_cache": False}
    if name == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        return transformers.GPT2LMHeadModel(config), text | {"use_cache": False}
    if name == "vit":
        config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
        return transformers.ViTModel(config), dict(pixel_values=torch.randn(2, 3, 32, 32))
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=99
    )
    return transformers.T5ForConditionalGeneration(config), text | {
        "decoder_input_ids": ids[:, :6], "use_cache": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "bert eager", "llama", "gpt2", "vit", "t5"])
def test_hugging_face(name):
    """Captured once with open sizes: equal at the captured size and at others, ModelOutput kept."""
    model, kwargs = hugging_face(name)
    model.eval()
    fast = optimized(model, (), kwargs, dynamic_shapes=True)
    with torch.no_grad():
        assert_same(model(**kwargs), fast(**kwargs), atol=2e-6)
        assert type(model(**kwargs)) is type(fast(**kwargs))
        for batch, length in ((3, 7), (1, 12)):
            other = dict(kwargs)
            for key, value in kwargs.items():
                if isinstance(value, torch.Tensor) and value.dim() == 2:
                    other[key] = value[:1, :1].expand(batch, length).clone()
                    if "mask" in key:
                        other[key][:, : length // 2] = 0
                        other[key][:, length // 2 :] = 1
                elif isinstance(value, torch.Tensor):
                    other[key] = torch.randn(batch, *value.shape[1:])
            assert_same(model(**other), fast(**other), atol=2e-6)
    assert list(fast.state_dict()) == list(model.state_dict())


def test_hugging_face_static_is_bit_equal():
    """Without open sizes, exactly the same numbers."""
    model, kwargs = hugging_face("bert")
    model.eval()
    fast = optimized(model, (), kwargs)
    with torch.no_grad():
        assert_same(model(**kwargs), fast(**kwargs))


def test_hugging_face_cache():
    """A cache among the results is rebuilt, tensors and all; one among the inputs is refused."""
    model, kwargs = hugging_face("gpt2")
    model.eval()
    kwargs = {"input_ids": kwargs["input_ids"]}
    fast = optimized(model, (), kwargs)
    with torch.no_grad():
        expected, given = model(**kwargs), fast(**kwargs)
        assert_same(expected.logits, given.logits)
        caches = expected.past_key_values, given.past_key_values
        assert type(caches[0]) is type(caches[1])
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == 10
        for a, b in zip(caches[0].layers, caches[1].layers, strict=True):
            assert type(a) is type(b)
            assert_same((a.keys, a.values), (b.keys, b.values))
        step = kwargs["input_ids"][:, :1]
        assert_same(*(model(input_ids=step, past_key_values=cache).logits for cache in caches))
        with pytest.raises(CaptureError, match="past_key_values"):
            capture(model, (), {"input_ids": step, "past_key_values": caches[0]})


def test_sizes_are_never_called_what_the_text_reads_otherwise():
    class Finder(nn.Module):
        def forward(self, x, y):
            return [*(torch.nonzero(x > i / 10) for i in range(10)), y * 2]

    dynamic = (None, {0: torch.export.Dim("f32")})  # u8 is a dtype too, and the tenth late size
    captured = capture(Finder().eval(), (torch.rand(5), torch.rand(3, 2)), dynamic_shapes=dynamic)
    assert str(parse(str(captured.graph))) == str(captured.graph)

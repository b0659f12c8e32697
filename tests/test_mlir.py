"""The MLIR backend against the numpy meaning of every op: a second opinion without torch's kernels."""

import sys

import fuzz
import numpy as np
import pytest
import torch
from fuzz import data, difference, specimen
from hypothesis import given
from hypothesis import strategies as st
from instances import SOURCES, OneDtype, graph_of, instances, tensor, together
from torch import nn

import subquad
from subquad.backends import backend
from subquad.backends.base import TORCH_DTYPE
from subquad.backends.mlir import MLIRExecutable, emit
from subquad.frontend import capture
from subquad.ir import DTYPES, OPS, Graph, IRError, building, evaluate, symbol
from subquad.ir.errors import BackendError

pytest.importorskip("torch_mlir")

NOT_COVERED = {
    "opaque": "outside the vocabulary: there is no meaning to compare with",
    "dropout": "random", "rand": "random", "randn": "random", "randint": "random",
    "bernoulli": "random", "bernoulli_p": "random",
}  # fmt: skip
"""Ops that MLIR refuses, and why. This may shrink."""

INFINITE = {
    "attention": "sums of infinities", "linear_attention": "sums of infinities",
    "linear_scan": "decays that are infinite",
    "convolution": "whether padding is multiplied or skipped", "max_pool2d": "torch-mlir skips NaN",
    "sign": "torch and torch-mlir give 0 for NaN, numpy NaN",
    "sort": "torch-mlir has no place for NaN", "topk": "torch-mlir has no place for NaN",
}  # fmt: skip
"""Ops whose results on infinities and NaN are not promised, and why. This may shrink."""

INDEXED = {"embedding", "gather", "index_select", "index", "index_put", "scatter", "scatter_add"}
FLOATS = ("f64", "f32", "bf16")
TOLERANCE = {16: 3e-2, 32: 3e-5, 64: 1e-9}


# ---- every op ------------------------------------------------------------------------------------


def arrays(graph: Graph, seed: int, special: bool) -> list[np.ndarray]:
    """Numbers for the inputs of an instance; in range where they are indices."""
    found = data([v.type for v in graph.inputs], seed, special=special)
    if any(op.name in INDEXED for op in graph.ops()):
        most = min([3, *(d for v in graph.inputs for d in v.shape or (1,))])
        found = [x % most if x.dtype.kind in "iu" else x for x in found]
    return found


def check(graphs: list[Graph], special: bool = False) -> list[str]:
    """Run instances through MLIR; what disagrees with their numpy meaning."""
    kept, inputs, wanted = [], [], []
    for seed, graph in enumerate(graphs):
        given = tensors(graph, arrays(graph, seed, special))
        try:
            exact, _ = evaluate(graph, [wide(x) for x in given])
        except IRError:  # an index out of range
            continue
        kept.append(graph)
        inputs += given
        wanted += [(graph, v, x) for v, x in zip(graph.outputs, exact, strict=True)]
    got, _ = MLIRExecutable(together(kept), opt_level=0)(inputs, {})
    wrong = []
    for (graph, value, expected), found in zip(wanted, got, strict=True):
        assert found.dtype is TORCH_DTYPE[value.dtype]
        said = difference(expected, wide(found), tolerance(graph))
        if said and "sign of a zero" not in said:
            wrong.append(f"{said}\n{graph}")
    return wrong


def tensors(graph: Graph, given: list[np.ndarray]) -> list[torch.Tensor]:
    """Arrays in the dtypes of the inputs."""
    return [torch.tensor(a).to(TORCH_DTYPE[v.dtype]) for a, v in zip(given, graph.inputs)]


def tolerance(graph: Graph) -> float:
    """What the narrowest float of a graph can tell apart."""
    floats = [v.dtype.bits for op in graph.ops() for v in op.results if v.dtype.is_float]
    return TOLERANCE[min(floats, default=64)]


def wide(x: torch.Tensor) -> np.ndarray:
    """As the numpy meaning wants it."""
    return (x.double() if x.is_floating_point() else x).numpy()


NAMES = sorted(set(OPS) - SOURCES - set(NOT_COVERED))
BATCHES = [NAMES[i : i + 4] for i in range(0, len(NAMES), 4)]


@pytest.mark.parametrize("names", BATCHES, ids="-".join)
def test_every_op_means_in_mlir_what_it_means_in_numpy(names):
    """Four ops at a time, three dtypes: one module of each dtype would cost more."""
    for dtype in FLOATS:
        graphs = []
        for name in names:
            found = instances(name, dtype, 2 if dtype == "f64" else 1)
            assert found or dtype != "f64", f"{name}: no instance; add one to by_hand"
            graphs += found
        wrong = check(graphs)
        assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("names", BATCHES, ids="-".join)
def test_special_numbers(names):
    """Zeros, infinities, NaN and huge numbers, in float64 so that nothing overflows in one alone."""
    graphs = [g for name in names if name not in INFINITE for g in instances(name, "f64", 2)]
    wrong = check(graphs, special=True) if graphs else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(NOT_COVERED))
def test_what_is_not_covered_is_refused_by_name(name):
    if name == "opaque":
        pytest.skip("see test_opaque_is_refused")
    for seed in range(50):
        maker = OneDtype(seed, "f32")
        try:
            with building():
                graph = maker.graph(maker.op(OPS[name]))
            break
        except IRError:
            continue
    with pytest.raises(BackendError, match=name):
        emit(graph)


# ---- whole graphs --------------------------------------------------------------------------------


def parse_mlir(text: str) -> str:
    """The text as MLIR's own parser and verifier understand it."""
    from torch_mlir import ir
    from torch_mlir.dialects import torch as dialect

    with ir.Context() as context:
        dialect.register_dialect(context)
        module = ir.Module.parse(text)
        assert module.operation.verify()
        return module.operation.get_asm(enable_debug_info=True)


@pytest.mark.parametrize("seed", range(40))
def test_fuzzed_graphs_are_written_and_verified(seed):
    graph = specimen(seed)
    try:
        text = emit(graph)
    except BackendError as error:
        pytest.skip(str(error))
    parse_mlir(text)
    assert emit(specimen(seed)) == text  # no memory, no hash order


class Encoder(nn.Module):
    """Two layers of torch's own, with a buffer that counts calls."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.embed = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, ids):
        """ids i64[b,n] -> f32[b,n,32]."""
        self.calls.add_(1)
        return self.encoder(self.embed(ids))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder().eval()


def test_an_encoder_gives_what_eager_torch_gives(encoder):
    ids = torch.randint(0, 50, (2, 7))
    fast = subquad.optimize(encoder, (ids,), backend="mlir")
    with torch.no_grad():
        torch.testing.assert_close(fast(ids), encoder(ids), rtol=0, atol=1e-5)
    assert fast.calls == 1
    parse_mlir(fast.graph.to_mlir())


def test_open_sizes_are_compiled_when_they_come(encoder):
    ids = torch.randint(0, 50, (2, 7))
    shapes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    captured = capture(encoder, (ids,), dynamic_shapes=shapes)
    run = backend("mlir").compile(captured.graph, captured.modules)
    with torch.no_grad():
        for shape in ((2, 7), (3, 5), (2, 7)):
            ids = torch.randint(0, 50, shape)
            (out,), updates = run([ids], captured.tensors)
            torch.testing.assert_close(out, encoder(ids), rtol=0, atol=1e-5)
            assert set(updates) == {"calls"}
    assert len(run._compiled) == 2


def test_halves_are_summed_in_single_precision():
    types = [tensor("bf16", 2, 4096), tensor("f16", 2, 4096)]

    def several(x, y):
        norm = OPS["layer_norm"](x, normalized_shape=(4096,))
        mean, total = OPS["mean"](x, dim=(1,)), OPS["sum"](y, dim=(1,))
        return mean, total, norm, OPS["softmax"](y, dim=1), OPS["vector_norm"](x, dim=(1,))

    graph = graph_of(several, *types)
    assert not check([graph])
    x, y = torch.ones(2, 4096, dtype=torch.bfloat16), torch.full((2, 4096), 0.5, dtype=torch.float16)
    (mean, total, *_), _ = MLIRExecutable(graph, 0)([x, y], {})
    assert (mean == 1).all() and (total == 2048).all()


# ---- the text ------------------------------------------------------------------------------------


def test_the_text_of_a_small_graph():
    graph = graph_of(lambda x: OPS["softmax"](x * 2.0, dim=-1), tensor("f32", 2, 3))
    expected = """\
func.func @main(%arg0: !torch.vtensor<[2,3],f32> loc("x0")) -> (!torch.vtensor<[2,3],f32>) {
  %0 = torch.vtensor.literal(dense<2.00000000000000000e+00> : tensor<f32>) : !torch.vtensor<[],f32>
  %1 = torch.aten.mul.Tensor %arg0, %0 : !torch.vtensor<[2,3],f32>, !torch.vtensor<[],f32> -> !torch.vtensor<[2,3],f32>
  %2 = torch.constant.int 1
  %3 = torch.constant.none
  %4 = torch.aten.softmax.int %1, %2, %3 : !torch.vtensor<[2,3],f32>, !torch.int, !torch.none -> !torch.vtensor<[2,3],f32>
  return %4 : !torch.vtensor<[2,3],f32>
}
"""  # noqa: E501
    assert graph.to_mlir() == expected


def test_sizes_fill_the_symbols():
    n = symbol("n")
    graph = graph_of(lambda x: OPS["reshape"](x, shape=(n * 2,)) / OPS["size"](value=n, dtype=DTYPES["f32"]),
                     tensor("f32", n, 2))  # fmt: skip
    assert "<[10],f32>" in graph.to_mlir({"n": 5})
    assert "<[10],f32>" in graph.to_mlir(sizes={"n": 5, "unused": 1})
    with pytest.raises(BackendError, match=r"fixed sizes: given no sizes, pass sizes=\{'n': \.\.\.\}"):
        graph.to_mlir()


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_name_or_source_gets_out_of_its_quotes(name, source):
    with building() as builder:
        builder.source = source
        x = OPS["input"](name="x", type=tensor("f32", 2))
        y = x + OPS["param"](name=name, type=tensor("f32", 2))
    graph = Graph("g", [x], [y])
    text = emit(graph)
    assert text.isascii() and text.count("\n") == 6
    assert parse_mlir(text).count("torch.aten.add.Tensor") == 1


def test_numbers_are_written_in_full():
    values = [0.1, -0.0, float("inf"), float("-inf"), float("nan"), 1e-310, 2**-149, 1e308]
    graph = graph_of(lambda x: tuple(x * 0.0 + OPS["const"](value=v, dtype=DTYPES["f64"]) for v in values),
                     tensor("f64", 1))  # fmt: skip
    got, _ = MLIRExecutable(graph, 0)([torch.zeros(1, dtype=torch.float64)], {})
    np.testing.assert_array_equal(np.concatenate(got), values)
    # a f32 constant beside f64 counts as the number it is
    graph = graph_of(lambda x: x * OPS["const"](value=0.1, dtype=DTYPES["f32"]), tensor("f64", 1))
    ((got,), _) = MLIRExecutable(graph, 0)([torch.ones(1, dtype=torch.float64)], {})
    assert got.item() == 0.1


# ---- errors --------------------------------------------------------------------------------------


def test_opaque_is_refused():
    with building() as builder:
        x = OPS["input"](name="x", type=tensor("f32", 4))
        builder.source = "model.fft (fft.py:7)"
        y = OPS["opaque"](x, target="aten.fft_fft.default", args=(), types=(tensor("c64", 4),))
    with pytest.raises(
        BackendError, match=r"aten\.fft_fft\.default.*outside the vocabulary\n    at model\.fft"
    ):
        backend("mlir").compile(Graph("g", [x], [y]))


@pytest.mark.parametrize("dtype", ["f8e4m3", "u16", "c32"])
def test_a_dtype_without_a_word_is_refused(dtype):
    graph = graph_of(lambda x: OPS["reshape"](x, shape=(4,)), tensor(dtype, 2, 2))
    with pytest.raises(BackendError, match=f"'x0' is {dtype}.*MLIR has no {dtype}"):
        emit(graph)


@pytest.mark.parametrize("name, shape", [("embedding", (5, 2)), ("gather", (5,)), ("index_select", (5, 2)),
                                         ("index", (5, 2))])  # fmt: skip
def test_an_index_out_of_range_is_an_error_not_the_end(name, shape):
    attrs = {} if name in ("index", "embedding") else {"dim": 0}
    graph = graph_of(lambda x, i: OPS[name](x, i, **attrs), tensor("f32", *shape), tensor("i64", 3))
    x, run = torch.randn(shape), MLIRExecutable(graph, 0)
    last = [-5 if name == "index" else 0, 1, 4]
    (out,), _ = run([x, torch.tensor(last)], {})
    torch.testing.assert_close(out, x[last])
    for bad in ([0, 5, 1], [0, 1, -6], [2**62, 0, 0]) + (() if name == "index" else ([-1, 0, 0],)):
        with pytest.raises(BackendError, match=f"{name}.*out of range for an axis of size 5"):
            run([x, torch.tensor(bad)], {})


def test_gradients_are_refused(encoder):
    ids = torch.randint(0, 50, (2, 7))
    fast = subquad.optimize(encoder, (ids,), backend="mlir")
    with pytest.raises(BackendError, match=r"no gradients.*torch\.no_grad\(\)"):
        fast(ids)


def test_other_inputs_are_refused():
    run = MLIRExecutable(graph_of(lambda x: x * 2, tensor("f32", 3)), 0)
    with pytest.raises(BackendError, match=r"wants f32\[3\], given torch\.float64"):
        run([torch.zeros(3, dtype=torch.float64)], {})
    with pytest.raises(IRError, match="axis 0 is 3, given 4"):
        run([torch.zeros(4)], {})
    with pytest.raises(BackendError, match="takes 1 inputs, not 2"):
        run([torch.zeros(3)] * 2, {})


def test_without_torch_mlir_the_pip_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_mlir", None)
    with pytest.raises(BackendError, match=r"torch-mlir is not installed: pip install 'subquad\[mlir\]'"):
        backend("mlir")
    assert "torch.aten.mul" in graph_of(lambda x: x * 2, tensor("f32", 3)).to_mlir()  # text needs none


def test_without_the_backends_to_mlir_says_what_to_import(monkeypatch):
    monkeypatch.setattr(Graph, "exporters", {})
    with pytest.raises(BackendError, match=r"import subquad\.backends"):
        graph_of(lambda x: x * 2, tensor("f32", 3)).to_mlir()


def test_any_strides_and_no_writing():
    run = MLIRExecutable(graph_of(lambda x, y: (x, x + y), tensor("f32", 3, 2), tensor("u8", 2)), 0)
    x, y = torch.randn(2, 3).T, torch.tensor([200, 255], dtype=torch.uint8)
    (same, total), _ = run([x, y], {})
    torch.testing.assert_close(same, x)
    torch.testing.assert_close(total, x + y)
    assert same.data_ptr() != x.data_ptr()


def test_graphs_of_the_fuzzer_run(monkeypatch):
    """Whole graphs in float64, where neither rounding nor overflow explains a difference."""
    monkeypatch.setattr(fuzz, "FLOATS", ("f64",))
    compared = 0
    for seed in range(32):
        graph = specimen(seed)
        floats = {v.dtype.name for op in graph.ops() for v in op.results if v.dtype.is_float}
        if graph.params or floats != {"f64"}:
            continue
        given = tensors(graph, arrays(graph, seed, False))
        try:
            wanted, _ = evaluate(graph, [wide(x) for x in given])
        except IRError:  # an index out of range
            continue
        try:
            got, _ = MLIRExecutable(graph, 0)(given, {})
        except BackendError as error:
            assert "unimplemented" in str(error), error  # torch-mlir lacks pow of integers, and says so
            continue
        for a, b in zip(wanted, got, strict=True):
            said = difference(a, wide(b), 1e-8)
            assert said is None or "sign of a zero" in said, f"{said}\n{graph}"
        compared += 1
    assert compared >= 6

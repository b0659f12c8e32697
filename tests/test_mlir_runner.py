"""The runner of the MLIR backend: hand-written torch-dialect text against numpy."""

import subprocess
import sys

import numpy as np
import pytest

from subquad.backends.mlir import MLIRError, compile_cpu, lower_to_linalg, runner

pytest.importorskip("torch_mlir")

DTYPES = {"float64": "f64", "float32": "f32", "float16": "f16", "int64": "si64", "int32": "si32",
          "int8": "si8", "uint8": "ui8", "bool": "i1"}
RNG = np.random.default_rng(0)


def tensor(dtype, *shape) -> str:
    """A tensor type of the torch dialect."""
    return f"!torch.vtensor<[{','.join(map(str, shape))}],{DTYPES.get(str(dtype), dtype)}>"


def function(arguments: list[str], body: str, *results: str) -> str:
    """A module of one function; its arguments are %0, %1, ... and `body` ends in a return."""
    named = ", ".join(f"%arg{i}: {t}" for i, t in enumerate(arguments))
    return f"func.func @main({named}) -> ({', '.join(results)}) {{\n{body}\n}}"


def run(text: str, *arrays: np.ndarray) -> list[np.ndarray]:
    """All the way from text to results."""
    return compile_cpu(lower_to_linalg(text), opt_level=0)(arrays)


def add(dtype, *shape) -> str:
    """x + 2 y."""
    t = tensor(dtype, *shape)
    return function([t, t], f"""
        %two = torch.constant.int 2
        %r = torch.aten.add.Tensor %arg0, %arg1, %two : {t}, {t}, !torch.int -> {t}
        return %r : {t}""", t)


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "int8"])
def test_add(dtype):
    x, y = (RNG.integers(-20, 20, (2, 3)).astype(dtype) for _ in range(2))
    (r,) = run(add(dtype, 2, 3), x, y)
    assert r.dtype == x.dtype
    np.testing.assert_array_equal(r, x + 2 * y)


def test_bfloat16_travels_as_float32():
    x = np.array([1.0, 1.0 + 2**-9, np.pi, np.inf, np.nan, -0.0], "float32")
    (r,) = run(add("bf16", 6), x, np.zeros_like(x))
    assert r.dtype == np.float32
    np.testing.assert_array_equal(r, np.array([1, 1, 3.140625, np.inf, np.nan, 0], "float32"))


def test_unsigned_bytes_share_the_bits_of_signed_ones():
    x = np.array([1, 200], "uint8")
    (r,) = run(add("uint8", 2), x, x)
    np.testing.assert_array_equal(r.view(np.uint8), x + 2 * x)


def test_strided_and_empty_arguments():
    x, y = RNG.normal(size=(3, 2)).T, RNG.normal(size=(2, 6))[:, ::2]
    np.testing.assert_allclose(run(add("float64", 2, 3), x, y)[0], x + 2 * y)
    empty = np.zeros((0, 3))
    assert run(add("float64", 0, 3), empty, empty)[0].shape == (0, 3)


def test_matmul():
    a, b, c = tensor("float32", 2, 3, 4), tensor("float32", 4, 5), tensor("float32", 2, 3, 5)
    text = function([a, b], f"""
        %r = torch.aten.matmul %arg0, %arg1 : {a}, {b} -> {c}
        return %r : {c}""", c)
    x, y = RNG.normal(size=(2, 3, 4)).astype("f4"), RNG.normal(size=(4, 5)).astype("f4")
    np.testing.assert_allclose(run(text, x, y)[0], x @ y, rtol=1e-5, atol=1e-6)


def test_sizes_may_be_left_open():
    t = tensor("float32", "?", "?")
    compiled = compile_cpu(lower_to_linalg(function([t, t], f"""
        %last = torch.constant.int -1
        %none = torch.constant.none
        %s = torch.aten.mm %arg0, %arg1 : {t}, {t} -> {t}
        %r = torch.aten.softmax.int %s, %last, %none : {t}, !torch.int, !torch.none -> {t}
        return %r : {t}""", t)))
    for n, m in (3, 5), (1, 2):
        x, y = RNG.normal(size=(n, 4)).astype("f4"), RNG.normal(size=(4, m)).astype("f4")
        np.testing.assert_allclose(compiled([x, y])[0], softmax(x @ y), rtol=1e-5)


def test_attention():
    q, k = tensor("float64", 2, 5, 4), tensor("float64", 2, 7, 4)
    kt, s = tensor("float64", 2, 4, 7), tensor("float64", 2, 5, 7)
    text = function([q, k, k], f"""
        %one = torch.constant.int 1
        %last = torch.constant.int -1
        %none = torch.constant.none
        %scale = torch.constant.float 5.000000e-01
        %kt = torch.aten.transpose.int %arg1, %one, %last : {k}, !torch.int, !torch.int -> {kt}
        %s = torch.aten.matmul %arg0, %kt : {q}, {kt} -> {s}
        %t = torch.aten.mul.Scalar %s, %scale : {s}, !torch.float -> {s}
        %p = torch.aten.softmax.int %t, %last, %none : {s}, !torch.int, !torch.none -> {s}
        %r = torch.aten.matmul %p, %arg2 : {s}, {k} -> {q}
        return %r : {q}""", q)
    x, y, z = RNG.normal(size=(2, 5, 4)), RNG.normal(size=(2, 7, 4)), RNG.normal(size=(2, 7, 4))
    expected = softmax(x @ y.swapaxes(1, 2) / 2) @ z
    np.testing.assert_allclose(run(text, x, y, z)[0], expected, rtol=1e-12)


def test_several_results_of_several_dtypes():
    t, i, b, s = (tensor("float32", 2, 3), tensor("int64", 2), tensor("bool", 2, 3),
                  tensor("float32"))
    text = function([t], f"""
        %zero = torch.constant.int 0
        %last = torch.constant.int -1
        %false = torch.constant.bool false
        %none = torch.constant.none
        %i = torch.aten.argmax %arg0, %last, %false : {t}, !torch.int, !torch.bool -> {i}
        %b = torch.aten.gt.Scalar %arg0, %zero : {t}, !torch.int -> {b}
        %s = torch.aten.sum %arg0, %none : {t}, !torch.none -> {s}
        return %i, %b, %s : {i}, {b}, {s}""", i, b, s)
    x = RNG.normal(size=(2, 3)).astype("f4")
    index, positive, total = run(text, x)
    assert (index.dtype, positive.dtype, total.shape) == (np.int64, np.bool_, ())
    np.testing.assert_array_equal(index, x.argmax(-1))
    np.testing.assert_array_equal(positive, x > 0)
    np.testing.assert_allclose(total, x.sum(), rtol=1e-5)


def test_results_own_their_memory():
    """An argument, a constant, one value twice and as a view: copies all, and freed once."""
    t, flat = tensor("float32", 2, 3), tensor("float32", 6)
    text = function([t], f"""
        %n = torch.constant.int 6
        %l = torch.prim.ListConstruct %n : (!torch.int) -> !torch.list<int>
        %c = torch.vtensor.literal(dense<1.5> : tensor<2x3xf32>) : {t}
        %e = torch.aten.neg %arg0 : {t} -> {t}
        %v = torch.aten.view %e, %l : {t}, !torch.list<int> -> {flat}
        return %arg0, %c, %e, %e, %v : {t}, {t}, {t}, {t}, {flat}""", t, t, t, t, flat)
    x = RNG.normal(size=(2, 3)).astype("f4")
    compiled = compile_cpu(lower_to_linalg(text))
    for _ in range(50):
        results = compiled([x])
    for got, expected in zip(results, (x, np.full_like(x, 1.5), -x, -x, -x.ravel())):
        np.testing.assert_array_equal(got, expected)
        assert not np.shares_memory(got, x)


def test_arguments_are_not_written_to():
    t, row, index = tensor("float32", 3, 2), tensor("float32", 1, 2), tensor("int64", 1)
    text = function([t, row, index], f"""
        %false = torch.constant.bool false
        %l = torch.prim.ListConstruct %arg2 : ({index}) -> !torch.list<optional<vtensor>>
        %r = torch.aten.index_put %arg0, %l, %arg1, %false : {t}, """
        f"""!torch.list<optional<vtensor>>, {row}, !torch.bool -> {t}
        return %r : {t}""", t)
    x = np.zeros((3, 2), "f4")
    (r,) = run(text, x, np.ones((1, 2), "f4"), np.array([1]))
    np.testing.assert_array_equal(r, [[0, 0], [1, 1], [0, 0]])
    assert not x.any()


def test_double_precision_is_rounded_to_half():
    wide, half = tensor("float64", 3), tensor("float16", 3)
    text = function([wide], f"""
        %code = torch.constant.int 5
        %no = torch.constant.bool false
        %none = torch.constant.none
        %r = torch.aten.to.dtype %arg0, %code, %no, %no, %none : {wide}, !torch.int, """
        f"""!torch.bool, !torch.bool, !torch.none -> {half}
        return %r : {half}""", half)
    x = np.array([1.0, np.pi, -1e-3])
    np.testing.assert_array_equal(run(text, x)[0], x.astype(np.float16))


def test_the_linalg_module_stays_as_it_was():
    module = lower_to_linalg(add("float32", 2, 3))
    before = str(module)
    compile_cpu(module)
    assert "linalg.generic" in before and str(module) == before


def test_wrong_arguments_are_refused():
    compiled = compile_cpu(lower_to_linalg(add("float32", 2, 3)))
    x = np.zeros((2, 3), "float32")
    with pytest.raises(TypeError, match="expected 2 arrays, got 1"):
        compiled([x])
    with pytest.raises(TypeError, match=r"expected tensor<2x3xf32>, got float64\[2, 3\]"):
        compiled([x, x.astype("float64")])
    with pytest.raises(TypeError, match=r"got float32\[3, 2\]"):
        compiled([x, x.T])


T = tensor("float32", 2)


@pytest.mark.parametrize("stage, op, body", [
    ("parsing", "torch.aten.nope", f"%r = torch.aten.nope %arg0 : {T} -> {T}\nreturn %r : {T}"),
    ("parsing", None, f"return %nothing : {T}"),
    ("lowering to linalg", "torch.aten.nope",
     f'%r = torch.operator "torch.aten.nope"(%arg0) : ({T}) -> {T}\nreturn %r : {T}'),
    ("lowering to linalg", "torch.aten.fmod.Scalar",
     f"%c = torch.constant.float 1.5\n%r = torch.aten.fmod.Scalar %arg0, %c : {T}, !torch.float "
     f"-> {T}\nreturn %r : {T}"),
], ids=["unknown", "undefined", "operator", "no lowering"])
def test_errors_name_the_operation(stage, op, body, capfd):
    with pytest.raises(MLIRError, match=op) as caught:
        lower_to_linalg(function([T], body, T))
    assert (caught.value.stage, caught.value.op) == (stage, op)
    assert caught.value.messages
    assert capfd.readouterr() == ("", "")


def test_one_public_function():
    with pytest.raises(MLIRError, match="found 2"):
        compile_cpu(lower_to_linalg(add("float32", 2) + add("float32", 2).replace("main", "other")))


def test_does_without_torch():
    """The second opinion shares nothing with torch: not even the process needs it."""
    text = add("float32", 2, 3)
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("mlir", {runner.__file__!r})
mlir = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mlir)
mlir.compile_cpu(mlir.lower_to_linalg({text!r}))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_missing_torch_mlir_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_mlir", None)
    with pytest.raises(ImportError, match=r'pip install "subquad\[mlir\]"'):
        lower_to_linalg("")

"""Every op against torch, on torch's own samples. Nobody adds a case by hand.

For each overload that the vocabulary supports: the call is imported; its types must be torch's, its
numpy meaning must agree with torch in float64, its eager lowering must give what torch gave, its text
must parse back to itself, and its type rule on symbolic shapes, instantiated, must be the concrete one.
Samples come from `opinfo`; for how they become calls of overloads, and why, see there.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache

import numpy as np
import opinfo
import pytest
import torch

from subquad.backends import backend
from subquad.backends.spellings import CUSTOM
from subquad.frontend.aten import (
    DTYPE_OF,
    SUPPORTED,
    by_schema,
    declared,
    find_overload,
    import_call,
    spellings,
)
from subquad.ir import OPS, Graph, IRError, TensorType, Value, build, building, evaluate, parse
from subquad.ir.attributes import attr_key
from subquad.ir.core import Op
from subquad.ir.declare import placeholder
from subquad.ir.dims import substitute, symbol
from subquad.ir.interpret import body_graph, evaluate_body, meaning

MAIN = (torch.float64, torch.int64, torch.bool)
OTHER = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.complex64)
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
CLOSE = {torch.float64: 1e-12, torch.complex64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2,
         torch.bfloat16: 5e-2}  # fmt: skip
"""How near eager lowering comes to torch: some calls are lowered to two, which rounds twice."""
TIES = {"sort.default", "sort.stable", "argsort.default", "argsort.stable", "topk.default"}
"""Overloads that may take either of two equal elements."""
PLAIN = {"input", "param", "const", "size", "opaque"}
"""Ops that no overload means; the text, capture and backend tests are about them."""

TALLY: Counter[str] = Counter()
pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def samples(dtype: torch.dtype, limit: int | None) -> dict[str, list[opinfo.Call]]:
    """Calls by overload; the same ones in every run."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return opinfo.calls(dtype, limit)


# ---- from a call to a graph ----------------------------------------------------------------------


def type_of(x: torch.Tensor) -> TensorType:
    """The IR's type of a tensor."""
    return TensorType(DTYPE_OF[x.dtype], tuple(x.shape))


class Imported:
    """A call as a graph whose inputs are its tensors."""

    def __init__(self, call: opinfo.Call):
        self.call, self.tensors = call, []
        self.types = tuple(map(type_of, call.results))
        self.inputs: list[Value] = []
        with building():
            args, kwargs = self.values(call.args), self.values(call.kwargs)
            self.ways = list(spellings(call.overload, args, kwargs, self.types))
            outputs = import_call(call.overload, args, kwargs, self.types)
        self.graph = Graph("g", self.inputs, outputs)
        self.ops = [op for op in self.graph.ops() if op.name != "input"]
        self.is_opaque = any(op.name == "opaque" for op in self.ops)
        self.is_random = any(op.defn.random or op.attrs.get("key") for op in self.ops)
        self.has_values = not self.is_random and "empty" not in str(call.overload)

    def values(self, item):
        """Tensors replaced by graph inputs."""
        if isinstance(item, torch.Tensor):
            self.tensors.append(item)
            value = OPS["input"](name=f"x{len(self.inputs)}", type=type_of(item))
            self.inputs.append(value)
            return value
        if isinstance(item, (list, tuple)):
            return type(item)(self.values(x) for x in item)
        if isinstance(item, dict):
            return {k: self.values(v) for k, v in item.items()}
        return item


# ---- what must hold for each call ----------------------------------------------------------------


def check_types(it: Imported) -> None:
    """Inferred types are torch's. A call left opaque is one the vocabulary refused, not mistook."""
    wrong = [[str(v.type) for v in way] for way in it.ways]
    floats = all(t.dtype in FLOATS for t in it.tensors if not t.dtype.is_complex)
    assert not it.is_opaque or not wrong or not floats, f"inferred {wrong}, torch has {it.types}"


def check_meaning(it: Imported) -> None:
    """numpy, in float64, gives what torch gave."""
    arrays = [t.resolve_conj().resolve_neg().numpy() for t in it.tensors]
    outputs, _ = evaluate(it.graph, arrays)
    for ours, theirs in zip(outputs, expected(it, outputs), strict=True):
        theirs = theirs.resolve_conj().resolve_neg().numpy()
        near = 1e-5 if theirs.dtype in (np.float32, np.complex64) else 1e-9
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=near, atol=near)


def expected(it: Imported, outputs) -> tuple[torch.Tensor, ...]:
    """torch's results; where the order of equal elements is open, indices are traded for values."""
    results = it.call.results
    name = str(it.call.overload).removeprefix("aten.")
    if name in TIES and it.tensors[0].ndim:
        dim = it.call.kwargs.get("dim", -1)
        dim = next((a for a in it.call.args[1:] if type(a) is int), dim) if "topk" not in name else dim
        if "topk" in name and len(it.call.args) > 2:
            dim = it.call.args[2]
        x, theirs, ours = it.tensors[0], results[-1], torch.as_tensor(outputs[-1])
        assert torch.equal(x.gather(dim, ours), x.gather(dim, theirs)), "other elements were taken"
        results = (*results[:-1], ours)
    return results


def check_eager(it: Imported) -> None:
    """The eager backend gives what torch gave."""
    outputs, _ = backend("eager").compile(it.graph)(it.tensors, {})
    for ours, theirs in zip(outputs, it.call.results, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if it.has_values:
            near = CLOSE.get(theirs.dtype, 0)
            torch.testing.assert_close(ours, theirs, rtol=near, atol=near, equal_nan=True)


def check_text(it: Imported) -> None:
    """The text parses back to the same text."""
    assert str(parse(str(it.graph))) == str(it.graph)


def check_symbolic(op: Op) -> None:
    """Type rules on symbolic sizes, instantiated, are those on the sizes themselves."""
    sizes = sorted({d for v in op.operands for d in v.shape if d > 1})
    names = {size: symbol(f"s{size}") for size in sizes}

    def unknown(value):
        if isinstance(value, tuple):
            return tuple(map(unknown, value))
        return names.get(value, value) if type(value) is int else value

    shapes = {a.name for a in op.defn.attrs if a.kind in ("shape", "dim")}
    attrs = {k: unknown(v) if k in shapes else v for k, v in op.attrs.items()}
    inputs = [v and placeholder(v.type.with_(shape=unknown(v.shape))) for v in op.inputs]
    TALLY["symbolic rules"] += 1
    try:
        types = build(op.defn, inputs, attrs).types
    except IRError:
        TALLY["symbolic rules that say no"] += 1
        return
    env = {f"s{size}": size for size in sizes}
    found = tuple(t.with_(shape=[substitute(d, env) for d in t.shape]) for t in types)
    assert found == op.types, f"{op.name}: symbolic rule says {types}, which is {found}"


def check(call: opinfo.Call, dtype: torch.dtype) -> str:
    """Everything that must hold for one call; "opaque" where the vocabulary refused it."""
    it = Imported(call)
    try:
        check_types(it)
        check_eager(it)
        check_text(it)
        if it.is_opaque:
            return "opaque"
        if dtype in MAIN and it.has_values:
            check_meaning(it)
        for op in it.ops if dtype is torch.float64 else ():
            check_symbolic(op)
    except Exception as error:
        error.add_note(f"in {call}\n{it.graph}")
        raise
    return "equal"


@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_overload(name):
    """A few samples of every dtype."""
    run(name, {dtype: 5 for dtype in MAIN} | {dtype: 1 for dtype in OTHER})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SUPPORTED))
def test_overload_on_every_sample(name):
    """All samples of every dtype."""
    TALLY["at length"] = 1
    run(name, dict.fromkeys((*MAIN, *OTHER)))


def run(name: str, limits: dict[torch.dtype, int | None]) -> None:
    """Check the samples of an overload; at least one must import into the vocabulary."""
    assert find_overload(name) is not None, f"torch has no {name}"
    outcomes: Counter[str] = Counter()
    for dtype, limit in limits.items():
        outcomes += Counter(check(call, dtype) for call in samples(dtype, limit).get(name, ()))
    TALLY.update(outcomes)
    TALLY["overloads"] += bool(outcomes)
    if not outcomes:
        pytest.skip("torch has no sample of it")
    assert outcomes["equal"], f"no sample of {name} imports into the vocabulary"


# ---- what torch refuses --------------------------------------------------------------------------


def test_error_inputs_are_refused():
    """Calls that torch refuses are refused, with IRError; but not for what depends on data."""
    wrong = []
    for overload, args, kwargs in opinfo.error_calls():
        call = opinfo.Call(overload, args, kwargs, ())
        for op in declared().get(str(overload).removeprefix("aten."), ()):
            TALLY["error inputs"] += 1
            it = Imported.__new__(Imported)
            it.tensors, it.inputs = [], []
            bound = {a.name: a.default_value for a in overload._schema.arguments}
            bound |= dict(zip(bound, it.values(args))) | it.values(kwargs)
            try:
                by_schema(OPS[op], overload)(out=(), **bound)
            except IRError:
                continue
            with pytest.raises((RuntimeError, IndexError, ValueError, TypeError)) as refusal:
                overload(*args, **kwargs)
            if not any(text in str(refusal.value) for text in ("out of bounds", "64 dims")):
                wrong.append(f"{call}: {refusal.value}")
    assert not wrong, "\n".join(wrong)


# ---- composites ----------------------------------------------------------------------------------

COMPOSITES = """
graph swiglu(%x: f64[2,6], %y: f64[2,6]) { %0 = swiglu(%x, %y) : f64[2,6] return %0 }
graph geglu(%x: f64[2,6], %y: f64[2,6]) {
  %0 = geglu(%x, %y, approximate="none") : f64[2,6]
  %1 = geglu(%x, %y, approximate="tanh") : f64[2,6]
  return %0, %1
}
graph rope(%x: f64[2,3,5,8], %c: f64[5,8]) { %0 = rope(%x, %c, %c) : f64[2,3,5,8] return %0 }
graph attention(%q: f64[2,6,5,4], %k: f64[2,3,5,4], %v: f64[2,3,5,7], %m: bool[5,5], %b: f64[2,1,5,5]) {
  %0 = attention(%q, %k, %v, scale=0.5, causal=False) : f64[2,6,5,7]
  %1 = attention(%q, %k, %v, scale=0.5, causal=True, empty="nan") : f64[2,6,5,7]
  %2 = attention(%q, %k, %v, %m, scale=0.5, causal=True) : f64[2,6,5,7]
  %3 = attention(%q, %k, %v, %b, scale=0.5, causal=True) : f64[2,6,5,7]
  %4 = attention(%q, %k, %v, %b, scale=0.5, causal=False, empty="nan") : f64[2,6,5,7]
  return %0, %1, %2, %3, %4
}
graph attention_more(%q: f64[2,6,5,4], %k: f64[2,3,7,4], %v: f64[2,3,7,4], %m: bool[2,1,1,7], %s: f64[6]) {
  %0 = attention(%q, %k, %v, none, %s, scale=0.5, softcap=2.0) : f64[2,6,5,4]
  %1 = attention(%q, %k, %v, %m, scale=0.5, causal=True, offset=2, empty="uniform") : f64[2,6,5,4]
  %2 = attention(%q, %k, %v, %m, scale=0.5, window=2, empty="nan") : f64[2,6,5,4]
  %3 = attention(%q, %k, %v, %m, %s, scale=0.5, causal=True, offset=-1, window=2) : f64[2,6,5,4]
  return %0, %1, %2, %3
}
graph linear_attention(%q: f64[2,6,5,4], %k: f64[2,3,5,4], %v: f64[2,3,5,7]) {
  %0 = linear_attention(%q, %k, %v, causal=True, normalize=True, eps=0.001) : f64[2,6,5,7]
  %1 = linear_attention(%q, %k, %v, causal=False, normalize=False, eps=0.0) : f64[2,6,5,7]
  return %0, %1
}
graph linear_scan(%x: f64[2,5,4], %f: f64[2,5,4], %h: f64[2,4]) {
  %0 = linear_scan(%x, %f) : f64[2,5,4]
  %1 = linear_scan(%x, %f, %h, reverse=True) : f64[2,5,4]
  %2 = linear_scan(%x, %f, %h, log=True) : f64[2,5,4]
  return %0, %1, %2
}
"""
"""Composites that no overload means, as text."""


@cache
def seen() -> dict[str, list[Op]]:
    """Some uses of every op that samples, or the texts above, exercise."""
    found: dict[str, dict[object, Op]] = {}
    graphs = [parse(f"graph{text}") for text in COMPOSITES.split("graph")[1:]]
    for calls in samples(torch.float64, 5).values():
        graphs += [Imported(call).graph for call in calls]
    graphs += [Imported(c).graph for d in MAIN[1:] for cs in samples(d, 5).values() for c in cs[:1]]
    for graph in graphs:
        for op in graph.ops():
            key = (tuple(v and v.type for v in op.inputs), attr_key(op.attrs))
            found.setdefault(op.name, {}).setdefault(key, op)
    return {name: list(ops.values()) for name, ops in found.items()}


def test_every_op_is_exercised():
    """An op that no sample reaches needs an aten name, or a line in COMPOSITES."""
    missing = sorted(set(OPS) - set(seen()) - PLAIN)
    assert not missing, f"no sample reaches {missing}"


def operand(type: TensorType, random: np.random.Generator) -> np.ndarray:
    """Some array of a type; floats in (0, 1)."""
    if type.dtype.kind == "f":
        return random.uniform(0.05, 0.95, type.shape)
    return random.integers(0, 2, type.shape).astype(type.dtype.numpy)


@pytest.mark.parametrize("name", sorted(n for n, d in OPS.items() if d.body is not None))
def test_composite(name):
    """The body, the second meaning and every lowering of a composite give the same."""
    random = np.random.default_rng(0)
    uses = [op for op in seen().get(name, ()) if all(v.dtype.kind in "bf" for v in op.operands)][:8]
    assert uses, f"no sample reaches {name}"
    for op in uses:
        arrays = [v and operand(v.type, random) for v in op.inputs]
        given = [a for a in arrays if a is not None]
        body = evaluate_body(op, arrays)
        tensors = [torch.from_numpy(np.asarray(a)) for a in given]
        inputs = [OPS["input"](name=f"x{i}", type=v.type) for i, v in enumerate(op.operands)]
        left = iter(inputs)
        whole = build(op.defn, [v and next(left) for v in op.inputs], op.attrs)
        ways = [meaning(op, arrays, {})]
        for graph in (Graph("whole", inputs, whole.results), body_graph(op)):
            ways.append([t.numpy() for t in backend("eager").compile(graph)(tensors, {})[0]])
        for way in ways:
            for ours, theirs in zip(way, body if isinstance(body, tuple) else (body,), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11, err_msg=str(graph))
        TALLY["composites"] += 1


def test_spellings_have_ops():
    """Custom lowerings are of ops that exist."""
    assert set(CUSTOM) <= set(OPS)


def test_summary(capsys):
    """What the tests above did, in one line."""
    share = TALLY["equal"] / max(1, TALLY["equal"] + TALLY["opaque"])
    with capsys.disabled():
        print(f"\n{TALLY['overloads']} overloads, {TALLY['equal']} samples, all equal; "
              f"{TALLY['opaque']} left opaque ({share:.1%} import); "
              f"{TALLY['error inputs']} error inputs refused; "
              f"{TALLY['symbolic rules']} symbolic rules, {TALLY['symbolic rules that say no']} said no; "
              f"{TALLY['composites']} uses of composites")  # fmt: skip
    # Of all dtypes alike, more are complex numbers, most of which stay opaque.
    assert share > (0.85 if TALLY["at length"] else 0.9) or not TALLY["overloads"]

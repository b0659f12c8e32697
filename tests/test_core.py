"""Building: interning and its traps, operands and attributes, graphs deep and wide, evaluation."""

import itertools
import math

import numpy as np
import pytest

from subquad.ir import (
    DTYPES,
    OPS,
    Graph,
    IRError,
    TensorType,
    Value,
    build,
    building,
    cost,
    evaluate,
    isomorphic,
    op,
    ops,
    parse,
    rebuild,
    rewrite,
    rule,
    symbol,
)
from subquad.ir.attributes import attr_key
from subquad.ir.dims import floordiv

F32, F64, I64, BOOL = (DTYPES[name] for name in ("f32", "f64", "i64", "bool"))
b, n = symbol("b"), symbol("n")


def source(name="x", shape=(2, 3), dtype=F64):
    """A graph input."""
    return ops.input(name=name, type=TensorType(dtype, tuple(shape)))


def opaque(x, **attrs):
    """An op outside the vocabulary."""
    return build(OPS["opaque"], [x], {"target": "t", **attrs}).results


# ---- interning -----------------------------------------------------------------------------------

ALIKE = [1, 1.0, True, 0, 0.0, -0.0, False, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(("x", "y"), itertools.combinations(ALIKE, 2), ids=str)
def test_constants_that_look_alike_stay_apart(x, y):
    """1, 1.0 and True hash alike, 0.0 equals -0.0: different constants all the same."""
    with building():
        assert ops.const(value=x, dtype=F64) is not ops.const(value=y, dtype=F64)


@pytest.mark.parametrize("x", ALIKE, ids=str)
def test_equal_constants_are_one(x):
    """NaN too; and a dtype is part of what a constant is."""
    with building():
        one = ops.const(value=x, dtype=F64)
        assert ops.const(value=x, dtype=F64) is one
        assert ops.const(value=x, dtype=F32) is not one
        assert type(one.number) is type(x)


def test_attribute_keys():
    """No two attribute values that differ share a key."""
    values = [1, 1.0, True, "1", "1.0", (1,), (1.0,), (True,), ("float", "1.0"), ("1.0",), None, (),
              ((),), 0.0, -0.0, (0.0,), (-0.0,), math.nan, "nan", "bool", F32, "f32", n, "n",
              TensorType(F32, ()), "f32[]", TensorType(F32, (n,)), (F32, n)]  # fmt: skip
    keys = [attr_key({"a": value}) for value in values]
    assert len(set(keys)) == len(values)


def test_interning():
    """Equal ops are one inside a block, and two outside; random draws are never one."""
    with building():
        x = source()
        assert ops.neg(x) is ops.neg(x) and x + 1 is x + 1 and x + 1 is not 1 + x
        assert ops.softmax(x, dim=-1) is ops.softmax(x, dim=1)
        assert ops.permute(x, dims=(1, 0)) is ops.permute(x, dims=[-1, 0])
        assert build(OPS["neg"], [x], {}) is build(OPS["neg"], [x, None], {})
    assert ops.neg(x) is not ops.neg(x)


def test_source_and_via_do_not_matter():
    """Provenance is stamped, and takes no part in equality, text or digest."""
    with building() as builder:
        x = source()
        builder.source, builder.via = "here", "some_rule"
        y = ops.neg(x)
        builder.source, builder.via = "there", ""
        assert ops.neg(x) is y and (y.op.source, y.op.via) == ("here", "some_rule")
    assert Graph("g", [x], [y]).digest() == Graph("g", [x], [ops.neg(x)]).digest()


# ---- operands and attributes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: ops.neg(), r"takes operands \(x\), given 0"),
        (lambda x: ops.neg(x, x), "given 2"),
        (lambda x: ops.add(x, None), "given 1"),
        (lambda x: ops.where(None, x, x), "operand 'condition' is missing"),
        (lambda x: ops.neg("x"), "is a str, not a Value"),
        (lambda x: ops.where(x, x, x), "operand 'condition' cannot be f64"),
        (lambda x: ops.softmax(x, dim="1"), "attribute dim='1' is not an axis"),
        (lambda x: ops.softmax(x, dim=True), "axis out of range"),
        (lambda x: ops.softmax(x, dim=2), "axis out of range for rank 2"),
        (lambda x: ops.mean(x, dim=(1, -1)), "an axis appears twice"),
        (lambda x: ops.permute(x, dims=(0,)), "not an order of the 2 axes"),
        (lambda x: ops.cast(x, dtype="f32"), "is not a dtype"),
        (lambda x: ops.reshape(x, shape=(7,)), "6 elements cannot take shape"),
        (lambda x: ops.reshape(x, shape=(2.0, 3)), "is not a shape"),
        (lambda x: ops.const(value="1", dtype=F32), "is not a number"),
        (lambda x: ops.const(value=1.5, dtype=I64), "1.5 is no i64"),
        (lambda x: ops.matmul(x, x), "inner dims differ: 3 and 2"),
        (lambda x: x + source("y", (n, 3)), "do not broadcast: 2 against n"),
        (lambda x: ops.neg(x, dmi=1), "unknown attribute 'dmi'; it has none"),
        (lambda x: opaque(x, args=(), types=(1,)), "no tensor"),
        (lambda x: opaque(x, args=object(), types=()), "object"),
    ],
)  # fmt: skip
def test_what_build_refuses(make, message):
    """IRError, naming the op and its operand types, the reason, and the source line."""
    with building() as builder:
        x = source()
        builder.source = "layers.3 (model.py:7)"
        with pytest.raises(IRError, match=message) as caught:
            make(x)
    assert "\n    at layers.3 (model.py:7)" in str(caught.value)


def test_attributes_are_stored_in_one_form():
    """Negative axes, lists, numpy numbers and integers for floats."""
    x = source()
    assert ops.mean(x, dim=-1).op.attrs["dim"] == (1,)
    assert ops.mean(x, dim=[1, 0]).op.attrs["dim"] == (0, 1)
    assert ops.mean(source(shape=()), dim=0).op.attrs["dim"] == ()
    assert type(ops.softmax(x, dim=np.int64(-1)).op.attrs["dim"]) is int
    number = ops.const(value=np.float64(1.5), dtype=F64).op.attrs["value"]
    assert type(number) is float and "1.5" in str(
        Graph("g", [], [ops.const(value=number, dtype=F64)])
    )
    with pytest.raises(TypeError):
        x.op.attrs["a"] = 1


def test_numbers_become_constants_of_torchs_dtype():
    """A float beside integers is the default float; an integer beside floats is a float."""
    cases = [(I64, 2.5, F32), (I64, 2, I64), (F32, 2, F32), (BOOL, 2, I64), (BOOL, True, BOOL)]
    for dtype, number, wanted in [*cases, (F64, True, F64), (BOOL, 0.5, F32)]:
        assert (source(dtype=dtype) * number).dtype is wanted
        assert (number * source(dtype=dtype)).dtype is wanted


def test_a_declaration_is_checked():
    """Names are taken once, and every attribute has a kind."""
    with pytest.raises(IRError, match="'neg' is declared twice"):

        @op(aten="neg.default")
        def neg(x):
            return x

    with pytest.raises(IRError, match="attribute 'a' has no known kind"):

        @op(aten="nothing.default")
        def nothing_at_all(x, *, a: list):
            return x

    assert "nothing_at_all" not in OPS


# ---- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: Graph("g", [x, x], [x]), "two inputs of one name: x, x"),
        (lambda x, y: Graph("g", [x], [y]), "uses input 'y' but does not declare it"),
        (lambda x, y: Graph("g", [x], ["x"]), "a str is no Value"),
        (lambda x, y: Graph("g", [ops.neg(x)], [x]), "no name of a graph or an input"),
        (lambda x, y: Graph("g", [], [ops.param(name="w", type=x.type) + ops.param(
            name="w", type=TensorType(F32, ()))]), "param 'w' is both"),
    ],
)  # fmt: skip
def test_what_a_graph_refuses(make, message):
    """What could not be printed, or has two meanings."""
    with pytest.raises(IRError, match=message):
        make(source("x"), source("y"))


def test_graph_queries():
    """Order, uses, params, symbols, schedule, networkx."""
    with building():
        x = source(shape=(b, n))
        w = ops.param(name="w", type=TensorType(F64, (n, 4)))
        y = ops.matmul(x, w)
        graph = Graph("g", [x], [y * y], {"w": w})
    assert [o.name for o in graph.ops()] == ["input", "param", "matmul", "mul"]
    assert [o.name for o in graph.uses(y)] == ["mul", "mul"] and graph.uses(graph.outputs[0]) == ()
    assert graph.params == {"w": w.type} and graph.symbols() == ("b", "n")
    dead = {o.name: [v.op.name for v in values] for o, values in graph.schedule}
    assert dead == {"input": [], "param": [], "matmul": ["input"], "mul": ["matmul"]}
    assert graph.with_(outputs=graph.outputs) is graph
    nx = pytest.importorskip("networkx")
    assert nx.is_directed_acyclic_graph(graph.to_networkx()) and len(graph.to_networkx()) == 4


def chain(length: int) -> Graph:
    """A graph as deep as it is long."""
    with building():
        x = y = source(shape=(2,))
        for i in range(length // 2):
            y = ops.neg(y) + float(i % 7)
    return Graph("deep", [x], [y])


def everywhere(graph: Graph, arrays) -> None:
    """Everything that walks a graph."""

    @rule(lambda x, c: x + c)
    def constant_first(x, c):
        return c + x if c.number is not None else None

    again = parse(str(graph))
    assert isomorphic(graph, again) and again.digest() == graph.digest()
    assert isomorphic(rewrite(graph, [constant_first]), graph)
    evaluate(graph, arrays)
    assert cost(graph).bytes
    graph.to_networkx()
    assert len(graph.schedule) == len(graph.ops()) and repr(graph)


def test_depth():
    """Ten thousand ops in a row: nothing recurses over depth."""
    everywhere(chain(10_000), [np.ones(2)])


def test_width():
    """A thousand inputs, a thousand outputs, one op that takes them all."""
    with building():
        xs = [source(f"x{i}", (2,)) for i in range(1000)]
        graph = Graph("wide", xs, [ops.cat(*xs, dim=0), *(x + 1.0 for x in xs)])
    everywhere(graph, [np.full(2, i) for i in range(1000)])


def test_rebuild_keeps_what_did_not_change():
    """The same operands give the same op; others give a new one that says where it comes from."""
    with building() as builder:
        builder.source, builder.via = "here", "r"
        x, y = source(), source("y")
        old = ops.neg(x).op
        builder.source = builder.via = ""
        assert rebuild(old, (x,)) is old
        new = rebuild(old, (y,))
    assert new.inputs == (y,) and new.source == "here" and isinstance(new.results[0], Value)


# ---- evaluation ----------------------------------------------------------------------------------


def test_dims_are_bound_from_shapes():
    """Also where a symbol stands in a sum or a product; a body knows the dims around it."""
    x, y = source("x", (2 * n + 1, 3)), source("y", (n, b))
    graph = Graph(
        "g", [x, y], [ops.reshape(y, shape=(n * b,)), ops.expand(x, size=(2, 2 * n + 1, 3))]
    )
    (flat, wide), _ = evaluate(graph, [np.ones((7, 3)), np.ones((3, 2))])
    assert flat.shape == (6,) and wide.shape == (2, 7, 3)
    flat = ops.reshape(y, shape=(n * b,))
    (result,), _ = evaluate(Graph("g", [y], [ops.silu(flat)]), [np.ones((3, 2))])
    assert result.shape == (6,)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(7, 3), (4, 2)], "input 'y' is .*: axis 0 is n = 3, given 4"),
        ([(6, 3), (3, 2)], "axis 0 is 2\\*n \\+ 1 = 7, given 6"),
        ([(7, 4), (3, 2)], "axis 1 is 3, given 4"),
        ([(7,), (3, 2)], r"given shape \(7,\)"),
        ([(7, 3)], "takes 2 inputs, given 1"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(shapes, message):
    """A sentence with the input, the axis, the dim, its value and what was given."""
    x, y = source("x", (2 * n + 1, 3)), source("y", (n, b))
    with pytest.raises(IRError, match=message):
        evaluate(Graph("g", [x, y], [x]), [np.ones(shape) for shape in shapes])


def test_minima_are_not_solved():
    """min(n, 5) = 5 says nothing about n: another input does."""
    from subquad.ir.dims import minimum

    x, y = source("x", (minimum(n, 5),)), source("y", (n,))
    (result,), _ = evaluate(Graph("g", [x, y], [y]), [np.ones(5), np.ones(7)])
    assert result.shape == (7,)
    with pytest.raises(IRError):
        evaluate(Graph("g", [x], [x]), [np.ones(5)])
    with pytest.raises(IRError):  # n would be -1
        evaluate(Graph("g", [source("z", (n + 1,))], []), [np.ones(0)])


def test_a_meaning_that_lies_about_its_shape_is_caught():
    """The shape that an op's numpy function returns is held against its type."""
    x = source(shape=(4,))
    lying = build(OPS["opaque"], [x], {"target": "t", "args": (), "types": (x.type,)}).results[0]
    from subquad.ir import interpret

    with pytest.raises(IRError, match="a result of opaque is"):
        interpret(Graph("g", [x], [lying]), [np.ones(4)], lambda op, operands, dims: [np.ones(3)])


def test_params_and_updates():
    """Weights by name; updates come back by name."""
    w = ops.param(name="w", type=TensorType(F32, (2,)))
    x = source(shape=(2,))
    graph = Graph("g", [x], [x * w], {"w": w + 1.0, "x": x})
    outputs, updates = evaluate(graph, [np.ones(2)], {"w": np.array([1.0, 2.0])})
    assert outputs[0].tolist() == [1, 2] and updates["w"].tolist() == [2, 3]
    with pytest.raises(IRError, match="reads param 'w', which was not given"):
        evaluate(graph, [np.ones(2)])


def test_cost_is_symbolic():
    """FLOPs and bytes as polynomials of the dims."""
    x = source(shape=(b, n, 64), dtype=F32)
    w = ops.param(name="w", type=TensorType(F32, (64, 128)))
    total = cost(Graph("g", [x], [ops.matmul(x, w)]))
    assert total.flops == 2 * b * n * 64 * 128
    assert total.bytes == 4 * (b * n * 64 + 64 * 128 + b * n * 128)
    assert cost(Graph("g", [x], [ops.permute(x, dims=(0, 2, 1))])).bytes == 0
    assert floordiv(cost(ops.silu(x).op).flops, b * n * 64) >= 1

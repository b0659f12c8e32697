"""How compile time grows with the graph.

    python -m pytest tests/benchmarks -k compile -s

Best of three, in processor time of this thread, so that a busy machine distorts little. The last
column is the exponent of growth between the smallest and the largest size: 1 is linear. Goals on two
cores: 2,500 rewrites in 10,000 ops in 0.3 s, 10,000 ops parsed in 0.5 s, the exact passes over 2,000
ops in 1 s.
"""

import functools
import math
import time

import pytest

from subquad.ir import (
    DTYPES,
    Graph,
    TensorType,
    building,
    isomorphic,
    journal,
    ops,
    parse,
    print_graph,
    rewrite,
    rule,
    symbol,
)
from subquad.passes import EXACT

SIZES = (2_500, 5_000, 10_000, 20_000, 40_000)
LAYERS = (500, 1_000, 2_000, 4_000, 8_000)


@rule(lambda x: ops.neg(ops.neg(x)))
def negated_twice(x):
    """The one rule of the benchmark: it fires once every four ops."""
    return x


def chain(size: int) -> Graph:
    """Four ops a link: neg, neg, mul by its own constant, add."""
    with building():
        x = y = ops.input(name="x", type=TensorType(DTYPES["f32"], (symbol("b"), 64)))
        for i in range(size // 4):
            y = ops.neg(ops.neg(y)) * float(i + 2) + x
        return Graph("chain", [x], [y])


def transformer(size: int) -> Graph:
    """Layers as an export spells them: about 30 ops each, with norms and softmax written out."""
    b, n, f32 = symbol("b"), symbol("n"), DTYPES["f32"]

    def weight(name, *shape):
        return ops.param(name=name, type=TensorType(f32, shape))

    def norm(x, name):
        scale = ops.rsqrt(ops.mean(x**2, dim=-1, keepdim=True) + 1e-6)
        return x * scale * weight(name, 64)

    def heads(x, w):
        y = ops.matmul(x, ops.permute(w, dims=(1, 0)))
        return ops.permute(ops.reshape(y, shape=(b, n, 4, 16)), dims=(0, 2, 1, 3))

    with building():
        x = y = ops.input(name="x", type=TensorType(f32, (b, n, 64)))
        for i in range(max(1, size // 34)):
            z = norm(y, f"l{i}.norm")
            q, k, v = (heads(z, weight(f"l{i}.{part}", 64, 64)) for part in "qkv")
            scores = ops.matmul(q, ops.permute(k, dims=(0, 1, 3, 2))) / 4.0
            mixed = ops.matmul(ops.softmax(scores, dim=-1), v)
            mixed = ops.reshape(ops.permute(mixed, dims=(0, 2, 1, 3)), shape=(b, n, 64))
            y = y + ops.matmul(mixed, ops.permute(weight(f"l{i}.o", 64, 64), dims=(1, 0)))
            up = ops.matmul(norm(y, f"l{i}.norm2"), weight(f"l{i}.up", 64, 256))
            y = y + ops.matmul(up * ops.sigmoid(up), weight(f"l{i}.down", 256, 64))
        return Graph("transformer", [x], [y])


def exact_passes(graph: Graph) -> Graph:
    """The exact pipeline."""
    for pass_ in EXACT.passes:
        graph = pass_(graph)
    return graph


def best(make, repeats: int = 3) -> float:
    """The least processor time of this thread, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        make()
        times.append(time.thread_time() - start)
    return min(times)


def row(name: str, sizes, times) -> str:
    """One line of the table."""
    growth = math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])
    return f"{name:16}" + "".join(f"{t:9.3f}" for t in times) + f"{growth:9.2f}"


def measured(size: int) -> dict[str, float]:
    """Seconds of every step on a chain of this size; asserts that the graphs come out right."""
    graph = chain(size)
    with journal() as log:
        rewrite(graph, [negated_twice])
    assert log.applied == size // 4
    text = print_graph(graph)
    again = parse(text)
    assert isomorphic(graph, again)
    return {
        "build": best(lambda: chain(size)),
        "rewrite": best(lambda: rewrite(graph, [negated_twice])),
        "print": best(lambda: print_graph(graph)),
        "parse": best(lambda: parse(text)),
        "digest": best(lambda: Graph("g", graph.inputs, graph.outputs).digest()),
        "isomorphic": best(lambda: isomorphic(graph, again)),
    }


def piped(size: int) -> dict[str, float]:
    """Seconds of the exact passes on layers of a transformer, together and each alone."""
    graph = transformer(size)
    seconds = {"ops": float(len(graph.ops())), "exact passes": best(lambda: exact_passes(graph))}
    for pass_ in dict.fromkeys(EXACT.passes):
        seconds[f"  {pass_.name}"] = best(functools.partial(pass_, graph))
    return seconds


@pytest.mark.benchmark
def test_compile():
    """Two tables of seconds."""
    exact_passes(transformer(100))  # what is made once is made now
    columns = [measured(size) for size in SIZES]
    print(f"\n{'ops':16}" + "".join(f"{size:9,}" for size in SIZES) + "   growth")
    for name in columns[0]:
        print(row(name, SIZES, [column[name] for column in columns]))
    columns = [piped(size) for size in LAYERS]
    counts = [int(column.pop("ops")) for column in columns]
    print(f"\n{'ops':16}" + "".join(f"{count:9,}" for count in counts) + "   growth")
    for name in columns[0]:
        print(row(name, counts, [column[name] for column in columns]))

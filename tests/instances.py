"""Small graphs of each op: by hand where chance would not find any, else from the fuzzer's maker."""

from functools import cache

from fuzz import Maker

from subquad.ir import DTYPES, OPS, Graph, IRError, TensorType, building
from subquad.ir.core import rebuild

SOURCES = {"input", "param", "const", "size"}
"""Ops that are no op of their own."""


def graph_of(function, *types: TensorType) -> Graph:
    """The graph of a function over values."""
    with building():
        inputs = [OPS["input"](name=f"x{i}", type=t) for i, t in enumerate(types)]
        results = function(*inputs)
    return Graph("g", inputs, results if isinstance(results, tuple) else (results,))


def tensor(dtype: str, *shape) -> TensorType:
    """`tensor("f32", 2, 3)`."""
    return TensorType(DTYPES[dtype], shape)


def pools(n: int, dtype: str):
    """Pooling over n axes: with and without a batch, sizes rounded up or down, padding counted or not."""
    sizes = (7, 6, 5)[:n]
    window = dict(kernel_size=(3, 2, 3)[:n], stride=(2,) * n, padding=(1,) * n)
    for ceil_mode in (False, True):
        for lead in ((2, 3), (3,)):
            x = tensor(dtype, *lead, *sizes)
            rest = dict(window, ceil_mode=ceil_mode)
            if n > 1:
                dilation = (1, 2, 1)[:n]
                yield graph_of(lambda x, r=rest, d=dilation: OPS[f"max_pool{n}d"](x, dilation=d, **r), x)
            for counted in (False, True):
                rest["count_include_pad"] = counted
                yield graph_of(lambda x, r=dict(rest): OPS[f"avg_pool{n}d"](x, **r), x)
    yield graph_of(lambda x: OPS[f"adaptive_avg_pool{n}d"](x, output_size=(3, 2, 5)[:n]), x)


def convolutions(dtype: str):
    """Strided, grouped, dilated, transposed, over one to three axes."""

    def case(x, w, b=True, **attrs):
        n = len(x) - 2
        attrs = {"stride": (1,) * n, "padding": (0,) * n, "dilation": (1,) * n, "output_padding": (0,) * n,
                 **attrs}  # fmt: skip
        out = w[0] if not attrs.get("transposed") else w[1] * attrs.get("groups", 1)
        types = [tensor(dtype, *s) for s in ((x, w, (out,)) if b else (x, w))]
        return graph_of(lambda *values: OPS["convolution"](*values, **attrs), *types)

    yield case((2, 4, 7, 8), (6, 4, 3, 3), stride=(1, 2), padding=(1, 0))
    yield case((2, 4, 9), (6, 2, 3), False, stride=(2,), padding=(1,), dilation=(2,), groups=2)
    yield case((1, 2, 4, 4, 4), (3, 2, 2, 2, 2))
    yield case((2, 4, 5, 5), (4, 1, 3, 3), padding=(1, 1), groups=4)
    yield case(
        (2, 4, 5, 6), (4, 3, 3, 3), stride=(2, 2), padding=(1, 1), transposed=True, output_padding=(1, 0)
    )
    yield case((2, 4, 5), (4, 3, 3), stride=(2,), padding=(1,), transposed=True, groups=2)


def by_hand(dtype: str):
    """Instances that the random maker is unlikely to find."""
    t = tensor
    yield from convolutions(dtype)
    for n in (1, 2, 3):
        yield from pools(n, dtype)
    yield graph_of(lambda x, w, b, m, v: OPS["batch_norm"](x, w, b, m, OPS["abs"](v), eps=1e-3),
                   t(dtype, 2, 4, 3, 3), *[t(dtype, 4)] * 4)  # fmt: skip
    for start, end, step in ((1, 8, 2), (0.5, 2.25, 0.5)):
        bounds = dict(start=start, end=end, step=step, dtype=DTYPES[dtype])
        yield graph_of(lambda x, k=bounds: x + OPS["arange"](**k), t(dtype, 4))
    for mode in ("constant", "reflect", "replicate", "circular"):
        yield graph_of(lambda x, m=mode: OPS["pad"](x, pad=(1, 2, 2, 0), mode=m), t(dtype, 2, 3, 4, 5))
    for mask in (t("bool", 2, 1, 5, 5), t(dtype, 5, 5)):
        for causal in (False, True):
            yield graph_of(lambda *x, c=causal: OPS["attention"](*x, scale=0.3, causal=c),
                           *[t(dtype, 2, *s) for s in ((4, 5, 8), (2, 5, 8), (2, 5, 6))], mask)  # fmt: skip
    yield graph_of(
        lambda x, i, j: OPS["index"](x, i, None, j), t(dtype, 3, 4, 5), t("i64", 2, 1), t("i32", 3)
    )
    yield graph_of(lambda x: OPS["pow"](x, 5), t("i64", 3))
    yield graph_of(lambda x: OPS["pow"](x, 0.5), t("i64", 3))
    yield graph_of(lambda c, a: OPS["where"](c, a, a), t("bool", 1, 3), t(dtype, 2, 1))
    yield graph_of(lambda a, b: OPS["copysign"](a, b), t(dtype), t("f64"))
    yield graph_of(lambda x: OPS["size"](value=3, dtype=DTYPES["f32"]) * x, t(dtype, 3))


@cache
def hand_made(dtype: str) -> dict[str, list[Graph]]:
    """`by_hand`, by the name of the op."""
    found: dict[str, list[Graph]] = {}
    for graph in by_hand(dtype):
        for name in {op.name for op in graph.ops()} - SOURCES:
            found.setdefault(name, []).append(graph)
    return found


def instances(name: str, dtype: str, count: int) -> list[Graph]:
    """Small graphs of this op, `dtype` where it takes floats; their inputs hold small numbers."""
    found = list(hand_made(dtype).get(name, ()))
    for seed in range(count):
        maker = OneDtype(seed, dtype)
        for _ in range(300):
            maker.inputs, maker.values = [], []
            try:
                with building():
                    found.append(maker.graph(maker.op(OPS[name])))
                break
            except IRError:
                continue
    return found


class OneDtype(Maker):
    """A maker whose floats are of one dtype, that reads no params."""

    def __init__(self, seed: int, dtype: str):
        super().__init__(seed, sources=0.0)
        self.floats = DTYPES[dtype]

    def type(self, kinds, near=()):
        """A type of this maker's floats, or of integers or bools."""
        type = super().type(kinds, near)
        return type.with_(dtype=self.floats) if type.dtype.kind in "fc" else type

    def attribute(self, attr, operands):
        """A dtype is never another float."""
        value = super().attribute(attr, operands)
        return self.floats if getattr(value, "kind", "") == "f" else value


def together(graphs: list[Graph]) -> Graph:
    """One graph of several: compiling one large module is many times as fast as many small ones."""
    inputs, outputs = [], []
    with building():
        for i, graph in enumerate(graphs):
            new = {}
            for v in graph.inputs:
                new[v] = OPS["input"](name=f"g{i}.{v.op.attrs['name']}", type=v.type)
                inputs.append(new[v])
            for op in graph.ops():
                if op.name != "input":
                    made = rebuild(op, tuple(None if v is None else new[v] for v in op.inputs))
                    new.update(zip(op.results, made.results, strict=True))
            outputs += [new[v] for v in graph.outputs]
    return Graph("all", inputs, outputs)

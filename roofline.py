"""The predicted time of one op: a launch, and the longest of its products, its memory and its exponentials.

    t = launches * launch + max(FLOPs / rate, bytes / bandwidth, elements / rate)

(Williams et al. 2009, doi:10.1145/1498765.1498785.) Ops are priced as eager torch runs them: what it has one
kernel for is one kernel, other composites are their bodies; views and constants move nothing, but for a
`reshape` that no strides can say, which copies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .backends.legalise import legalise
from .backends.linear_attention.kernels import ROWS
from .ir import OPS, Graph, IRError, Op, TensorType, Value, building, cost
from .ir.cost import FREE
from .ir.dims import Dim, evaluate
from .ir.interpret import body_graph
from .ir.ops.linear_attention import CHUNK, SMALL_CHUNK
from .ir.types import bool_
from .machine import Machine
from .strides import contiguous, viewed

LIKE = {
    "exp2": "exp", "expm1": "exp", "log1p": "log", "log2": "log", "log10": "log", "sinh": "tanh",
    "cosh": "tanh", "tan": "sin", "erfc": "erf", "logaddexp": "log_sigmoid", "log_softmax": "softmax",
    "lt": "gt", "le": "gt", "ge": "gt", "eq": "gt", "ne": "gt", "asin": "atan", "acos": "atan",
    "atan2": "atan", "cumprod": "cumsum", "logcumsumexp": "cumsum", "group_norm": "layer_norm",
    "batch_norm": "layer_norm", "argmax": "topk", "argmin": "topk", "scatter": "gather",
    "scatter_add": "gather", "index_put": "gather", "index": "gather", "embedding": "index_select",
    "triu": "tril", "randn": "log", "std": "var", "adaptive_avg_pool1d": "mean", "mish": "softplus",
    "selu": "elu", "celu": "elu", "asinh": "log", "acosh": "log", "atanh": "log",
}  # fmt: skip
"""Ops that are not measured, by one that takes about as long."""

EXPONENTIAL = frozenset({
    "exp", "tanh", "sigmoid", "erf", "log", "sin", "cos", "atan", "pow", "silu", "gelu", "elu", "softplus",
    "log_sigmoid", "softmax",
})  # fmt: skip
"""What costs an exponential an element where the machine says no more than the rate of those."""

READS_ALL = frozenset({
    "mean", "sum", "amax", "amin", "prod", "any", "all", "argmax", "argmin", "var", "std", "sort", "topk",
    "logsumexp", "vector_norm",
})  # fmt: skip
"""Ops whose work is that of their operand, not of their result."""

COPIES = frozenset({
    "pad", "cat", "softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm", "convolution", "linear",
    "linear_attention", "attention", "flip", "gather", "index_select", "linear_scan", "cumsum",
})  # fmt: skip
"""Ops that first copy an operand whose last axis does not lie densely, or are as slow as if they did."""

SMALL = 1 << 21
"""Multiply-adds of one product of a batch up to which it is no large one."""
LANES = 16
"""Channels that a depthwise convolution on a CPU works on at once, used or not."""

SPAN_OPS = {"none": 12, "head": 22, "token": 26, "channel": 90, "delta": 60}
"""Kernels that the recurrence starts for each span of chunks; counted in a profile."""


@dataclass(frozen=True)
class Priced:
    """One op: its predicted seconds, what they are from, and which bounds them.

    flops of matrix products; bytes moved. bound: "compute", "memory", "elements" or "launch".
    """

    op: Op
    seconds: float
    flops: int = 0
    bytes: int = 0
    bound: str = "launch"


class Roofline:
    """Prices ops on a machine at sizes of the symbolic dims.

    dtype: what f32 is computed in instead, such as "bf16"; None for what the graph says. context: keys that
    an attention reads and states it carries on when it decodes: one query, whatever the sizes say.
    """

    def __init__(
        self, machine: Machine, sizes: Mapping[str, int], dtype: str | None = None, context: int | None = None
    ):
        self.machine, self.sizes, self.dtype, self.context = machine, sizes, dtype, context
        self.strides: dict[Value, tuple[int, ...]] = {}

    def graph(self, graph: Graph) -> Iterator[Priced]:
        """The ops of a graph that take time, in order."""
        for op in graph.ops():
            yield from self.op(op)

    def op(self, op: Op) -> list[Priced]:
        """The kernels of one op; none for what is free."""
        if op.name in FREE and op.name != "opaque":
            return []
        if op.defn.view:
            return self._view(op)
        if op.defn.body is not None and not self._one_kernel(op):
            inner = legal(alone(op)) if op.name == "attention" else body_graph(op)
            if any(part.name == "attention" and not fused(part) for part in inner.ops()):
                inner = body_graph(op)
            return [part for each in inner.ops() for part in self.op(each)]
        self._keep_layout(op)
        return [self._priced(op)]

    # ---- sizes ----

    def at(self, dim: Dim) -> int:
        """A dim as a number. Raises IRError naming a symbol without a size."""
        return evaluate(dim, self.sizes)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The sizes of a value's axes."""
        return tuple(self.at(dim) for dim in value.shape)

    def bytes(self, type: TensorType, size: int | None = None) -> int:
        """Bytes of so many elements of a type, or of all of it."""
        width = self._width(type)
        return (self.at(type.size) if size is None else size) * width

    def _width(self, type: TensorType) -> int:
        if self.dtype is not None and type.dtype.name == "f32":
            return 2 if self.dtype in ("bf16", "f16") else 1 if self.dtype.startswith("f8") else 4
        return max(1, type.dtype.bits // 8)

    def _dtype(self, op: Op) -> str:
        names = [v.dtype.name for v in op.operands if v.dtype.is_float] or ["f32"]
        return self.dtype if self.dtype is not None and names[0] == "f32" else names[0]

    def _read(self, value: Value) -> int:
        """Bytes that reading a value touches: an expanded one is read once."""
        while value.op.name == "expand" and value.op.inputs[0] is not None:
            value = value.op.inputs[0]
        return 0 if value.op.name in ("const", "size") else self.bytes(value.type)

    # ---- one kernel ----

    def _one_kernel(self, op: Op) -> bool:
        """Whether eager torch has one call for a composite; see `backends.spellings`."""
        if op.name == "attention":
            return fused(op) or self.context is not None
        return op.name == "linear_attention" or bool(op.defn.aten) or op.name == "batch_norm"

    def _priced(self, op: Op) -> Priced:
        machine, flops, launches, elements = self.machine, 0, 1, 0.0
        result = sum(self.bytes(type) for type in op.types)
        touched = result + sum(map(self._read, op.operands))
        compute = 0.0
        if op.name in ("matmul", "linear"):
            flops, compute = self._product(op)
        elif op.name == "attention":
            flops, compute, touched = self._attention(op, touched)
        elif op.name == "linear_attention":
            flops, compute, touched, launches = self._recurrence(op)
        elif op.name == "convolution":
            flops, compute = self._convolution(op)
        else:
            elements = self._elements(op)
        times = {"compute": compute, "memory": machine.moving(touched, result), "elements": elements}
        bound = max(times, key=lambda name: times[name])
        start = launches * machine.launch
        name = bound if times[bound] > start else "launch"
        return Priced(op, start + times[bound] + self._strided(op), flops, touched, name)

    def _elements(self, op: Op) -> float:
        """Seconds that the arithmetic of an op takes, where the machine knows that of its kind."""
        known = self.machine.elements
        name = op.name if op.name in known else LIKE.get(op.name, op.name)
        name = "masked_exp" if op.name == "exp" and "masked_exp" in known and _masked(op.args[0]) else name
        types = [v.type for v in op.operands] if op.name in READS_ALL else [op.types[0]]
        size = max((self.at(type.size) for type in types), default=0)
        if (
            op.name == "pow"
            and isinstance(op.args[1].number, (int, float))
            and op.args[1].number in (0.5, 1, 2, 3)
        ):
            return 0.0  # torch multiplies
        if name in known:
            return size / known[name]
        if op.defn.body is not None:
            return sum(self._elements(inner) for inner in body_graph(op).ops() if not inner.defn.view)
        return size / known["exp"] if name in EXPONENTIAL and "exp" in known else 0.0

    def _product(self, op: Op) -> tuple[int, float]:
        a, b = (self.shape(x) for x in op.args[:2])
        inner = a[-1]
        columns = b[0] if op.name == "linear" else b[-1]
        batched = op.name == "matmul" and len(b) > 2 and math.prod(b[:-2]) > 1
        lead = math.prod(self.at(d) for d in op.types[0].shape[:-2]) if len(op.types[0].shape) > 2 else 1
        rows = a[-2] if batched or len(a) < 2 else math.prod(a[:-1])
        flops = 2 * (lead * a[-2] if op.name == "matmul" else math.prod(a[:-1])) * inner * columns
        small = batched and rows * inner * columns <= SMALL
        rate = self.machine.product(self._dtype(op), min(rows, inner, columns) or 1, small)
        return flops, flops / rate

    def _attention(self, op: Op, touched: int) -> tuple[int, float, int]:
        (b, h, n, d), (_, _, m, e) = self.shape(op.args[0]), self.shape(op.args[2])
        rate, pairs = "attention", n * m
        if self.context is not None:  # one query: keys and values are read once
            if op.args[0].shape[2] == op.args[1].shape[2]:
                m = self.context
            if op.attrs["window"] is not None:
                m = min(m, self.at(op.attrs["window"]))
            pairs, width, g = m, self._width(op.types[0]), self.shape(op.args[1])[1]
            touched = width * b * (h * (d + e) + g * m * (d + e))
        elif op.attrs["causal"]:
            rate, pairs = "causal", pairs_seen(n, m)
        flops = 2 * b * h * pairs * (d + e)
        return flops, flops / self.machine.kernel(rate, self._dtype(op)), touched

    def _recurrence(self, op: Op) -> tuple[int, float, int, int]:
        counted, kind = cost(op), recurrence_kind(op)
        rate = self.machine.kernel(kind, self._dtype(op))
        if self.context is None:
            flops, touched = self.at(counted.flops), self.at(counted.bytes)
            touched = touched * self._width(op.types[0]) // max(1, op.types[0].dtype.bits // 8)
            return flops, flops / rate, touched, launches(op, self.sizes, self.machine.kind)
        if not op.attrs["causal"]:
            raise IRError(
                "a linear_attention that is not causal reads all tokens: it cannot decode one by one"
            )
        q, k, v = (self.shape(x) for x in op.args[:3])  # a token: the state in float32 is read and written
        state = q[0] * max(q[1], k[1], v[1]) * q[3] * (v[3] + int(op.attrs["normalize"]))
        flops, tokens = (4 + 2 * (kind == "delta")) * state, sum(map(self._read, op.operands))
        return flops, flops / rate, tokens + self.bytes(op.types[0]) + 8 * state, 8

    def _convolution(self, op: Op) -> tuple[int, float]:
        flops, dtype = self.at(cost(op).flops), self._dtype(op)
        shape = self.shape(op.args[1])
        if op.attrs["groups"] == 1 or shape[1] != 1:
            return flops, flops / self.machine.product(dtype, min(math.prod(shape[1:]), shape[0]))
        channels, waste, seconds = shape[0], 1.0, 0.0
        if self.machine.kind == "cpu":
            waste = math.ceil(channels / LANES) * LANES / channels
        if "convolution" in self.machine.elements:  # to the layout it works in and back
            seconds = waste * self.at(op.types[0].size) / self.machine.elements["convolution"]
        return flops, seconds + waste * flops / self.machine.kernel("convolution", dtype)

    def _strided(self, op: Op) -> float:
        """Seconds that operands cost whose elements do not lie in the order in which they are read."""
        known = self.machine.elements
        if op.name in COPIES:
            apart = [x for x in op.operands if x in self.strides and self._turned(x)]
            return sum(self.at(x.type.size) for x in apart) / known.get("transposed", math.inf)
        if op.defn.flops is not None:
            return 0.0
        whole = {x: self._strides(x) for x in op.operands if x.shape == op.types[0].shape}
        turned = {self._turned(x) for x, strides in whole.items() if 0 not in strides}
        return self.at(op.types[0].size) / known.get("mixed", math.inf) if len(turned) > 1 else 0.0

    def _turned(self, value: Value) -> bool:
        """Whether neighbours along the last axis lie apart."""
        sizes = [(size, step) for size, step in zip(self.shape(value), self._strides(value)) if size > 1]
        return bool(sizes) and sizes[-1][1] > 1

    # ---- how values lie in memory ----

    def _view(self, op: Op) -> list[Priced]:
        """Nothing but the start of a view, or a copy where a reshape has no strides for it."""
        (x,) = op.args[:1]
        if x.number is not None:  # a constant expanded is a tensor filled
            size = self.bytes(op.types[0])
            return [Priced(op, self.machine.launch + self.machine.moving(size, size), 0, size, "memory")]
        strides, shape = self._strides(x), self.shape(x)
        size, seconds = self.bytes(op.types[0]), self.machine.view
        found = viewed(op, shape, strides, self.at)
        if found is None:  # contiguous again
            rate = self.machine.elements.get("transposed", math.inf)
            slow = self.at(op.types[0].size) / rate if self._turned(x) else 0.0
            seconds = self.machine.launch + max(self.machine.moving(2 * size, size), slow)
            return [Priced(op, seconds, 0, 2 * size, "memory")]
        self.strides[op.results[0]] = found
        return [Priced(op, seconds)] if seconds else []

    def _strides(self, value: Value) -> tuple[int, ...]:
        return self.strides.get(value) or contiguous(self.shape(value))

    def _keep_layout(self, op: Op) -> None:
        """Elementwise work leaves its result in the order of its operand's axes."""
        for x in op.operands:
            dense = x.type.shape == op.types[0].shape and x in self.strides and op.defn.flops is None
            if dense and 0 not in self.strides[x] and op.name not in ("linear_attention", "attention"):
                shape, order = self.shape(x), self.strides[x]
                axes = sorted(range(len(shape)), key=lambda i: -order[i])
                packed = contiguous([shape[i] for i in axes])
                self.strides[op.results[0]] = tuple(packed[axes.index(i)] for i in range(len(shape)))
                return


@functools.lru_cache(256)
def legal(graph: Graph) -> Graph:
    """The graph as `backends.legalise` hands it to torch, with masks by position written out."""
    return legalise(graph)


def _masked(value: Value) -> bool:
    """Whether some elements are so low that their exponential is none, which a CPU takes longer for."""
    for _ in range(4):
        if value.op.name == "where":
            return any(x.number is not None and x.number < -100 for x in value.op.args[1:])
        if value.op.name not in ("sub", "mul", "add", "div", "reshape") or not value.op.args:
            return False
        value = value.op.args[0]
    return False


def alone(op: Op) -> Graph:
    """An op as a graph of its own, its operands inputs but for constants."""
    with building():
        inputs = [None if x is None else OPS["input"](name=f"x{i}", type=x.type) if x.number is None else x
                  for i, x in enumerate(op.inputs)]  # fmt: skip
        new = op.defn(*inputs, **op.attrs)
    results = new if isinstance(new, tuple) else (new,)
    return Graph(op.name, [x for x in inputs if x is not None and x.op.name == "input"], results)


def fused(op: Op) -> bool:
    """Whether an `attention` is one call of scaled_dot_product_attention, and that one kernel."""
    q, k, v, mask, sink = (*op.inputs, None, None)[:5]
    attrs = op.attrs
    if q is None or k is None or v is None or sink is not None or attrs["softcap"] is not None:
        return False
    if attrs["offset"] != 0 or attrs["window"] is not None or q.shape[3] != v.shape[3]:
        return False
    if mask is None:
        return True
    return mask.dtype in (bool_, q.dtype) and not attrs["causal"] and attrs["empty"] == "zero"


def pairs_seen(n: int, m: int) -> int:
    """Pairs that a causal kernel looks at: rows in blocks of 256, 64 or 32 see up to the block's last key."""
    block = 256 if n >= 768 else 64 if n >= 192 else 32
    return sum(min(block, n - i) * min(m, i + block) for i in range(0, n, block))


def launches(op: Op, sizes: Mapping[str, int], device: str) -> int:
    """Kernels that a `linear_attention` starts: for each span, and for each chunk its step."""
    q, kind = op.args[0], recurrence_kind(op)
    b, n = evaluate(q.shape[0], sizes), evaluate(q.shape[2], sizes)
    if not op.attrs["causal"] and len(op.inputs) == 3:
        return SPAN_OPS["none"]
    chunk = SMALL_CHUNK if kind in ("channel", "delta") else CHUNK
    heads = max(evaluate(x.shape[1], sizes) for x in op.args[:3])
    rows = ROWS * (1 if device == "cpu" else 32)
    chunks = -(-n // chunk)
    spans = -(-chunks // max(1, rows // max(1, chunk * b * heads)))
    sides = 1 if op.attrs["causal"] else 2
    return sides * (spans * SPAN_OPS[kind] + chunks * (6 if kind == "delta" else 2))


def recurrence_kind(op: Op) -> str:
    """Which of `machine.SHARES` a `linear_attention` is."""
    decay, beta = (*op.inputs, None, None)[3:5]
    if beta is not None:
        return "delta"
    if decay is None:
        return "none"
    if decay.rank < 4:
        return "head" if decay.rank == 1 else "token"
    return "token" if decay.shape[3] == 1 else "channel"

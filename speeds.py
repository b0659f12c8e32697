"""The constants of this machine, measured: every kernel that predictions need, each for a moment.

Kept is the least time of a few calls: other work on the machine only ever adds.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends.base import TORCH_DTYPE, backend
from .ir import OPS, Graph, Op, TensorType, building, cost
from .ir.dims import evaluate
from .ir.ops.linear_attention import linear_attention
from .ir.types import f32
from .learned import initial
from .machine import Machine, processor
from .roofline import launches, pairs_seen

Timer = Callable[[Callable[[], object]], float]
"""Seconds of one call of a function."""

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
SIDES = (8, 32, 64, 128, 512)
SIZES = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
"""Elements of each of three tensors whose sum is timed."""
HEADS, HEAD_DIM, TOKENS = 4, 64, 2048
ENOUGH = 4e-3
"""Seconds from which on a call is long enough for a rate; until then problems are doubled."""


def settle(device: str) -> None:
    """Let the allocator be as in a process that has worked for a while: glibc keeps what is freed up to the
    largest size that it has seen freed, 32 MiB at most, and gives back and fetches again what is larger."""
    if device == "cpu":
        torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)


class Stopwatch:
    """Calls timed: the least time of calls for so many seconds, of two at least after one that warms up.

    total: seconds from which on a call is timed once, for machines so slow or busy that all would take too
    long. ratios: of each timed call, the median time over the least; far above one on a busy machine.
    """

    def __init__(self, device: str = "cpu", seconds: float = 0.04, total: float = math.inf):
        self.device, self.seconds, self.total = device, seconds, total
        self.start, self.ratios = time.perf_counter(), list[float]()

    def __call__(self, call: Callable[[], object]) -> float:
        first = self._once(call)
        if time.perf_counter() - self.start > self.total:
            return first
        taken, end = list[float](), time.perf_counter() + self.seconds
        while len(taken) < 2 or time.perf_counter() < end:
            taken.append(self._once(call))
        self.ratios.append(median(taken) / max(min(taken), 1e-12))
        return min(taken)

    def _once(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def _after(seconds: float, start: float) -> float:
    """Seconds without those of a start, which cannot have been more than half of them."""
    return max(seconds - start, seconds / 2)


@torch.no_grad()
def measured(device: str = "cpu", timer: Timer | None = None) -> Machine:
    """The machine's constants, in under ten seconds. timer: the clock, for tests."""
    timer = timer or Stopwatch(device, total=4.5)
    settle(device)
    few = torch.randn(16, device=device)
    aten: Any = torch.ops.aten  # as the eager backend calls it
    launch = timer(lambda: _times(100, lambda: aten.add.Tensor(few, few))) / 100
    view = timer(lambda: _times(100, lambda: aten.reshape.default(few, [4, 4]))) / 100
    view = view if device == "cpu" else 0.0
    products = {name: _product(dtype, device, timer) for name, dtype in DTYPES.items()}
    sides = _sides(device, timer, launch)
    bandwidth, fresh = _bandwidth(device, timer, launch)
    elements = {name: size / _after(timer(call), launch) for name, size, call in _elementwise(device)}
    kernels = {name: flops / _after(timer(call), starts * launch)
               for name, flops, starts, call in _kernels(device, timer)}  # fmt: skip
    # on a busy machine a large product waits for a core more than others do: it is no slower than they are
    peak = products["f32"] = max(products["f32"], *sides.values(), *kernels.values())
    curve = tuple((float(side), rate / peak) for side, rate in sides.items())
    shares = {name: rate / peak for name, rate in kernels.items()}
    name, memory = processor(), _memory()
    link = None
    if device == "cuda":
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        there, here = (
            torch.empty(1 << 26, dtype=torch.uint8, device=device),
            torch.empty(1 << 26, dtype=torch.uint8),
        )
        here = here.pin_memory()
        link = (1 << 26) / timer(lambda: here.copy_(there, non_blocking=True))
    else:
        name = f"{name}, {torch.get_num_threads()} threads"
    spread = median(timer.ratios) if isinstance(timer, Stopwatch) and timer.ratios else 1.0
    return Machine(
        name, device, products, curve, shares, bandwidth, elements, launch, view, float(memory), link, fresh,
        spread,
    )  # fmt: skip


def _times(count: int, call: Callable[[], object]) -> None:
    for _ in range(count):
        call()


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return float(1 << 33)


def _product(dtype: torch.dtype, device: str, timer: Timer) -> float:
    """FLOP/s of a square product, large enough to take a while."""
    side, best = 256, 0.0
    while True:
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = timer(lambda: a @ a)  # noqa: B023 - called at once
        best = max(best, 2 * side**3 / seconds)
        if (seconds > ENOUGH and side > 256) or seconds > 5 * ENOUGH or side >= 8192:
            return best
        side *= 2


def _sides(device: str, timer: Timer, launch: float) -> dict[int, float]:
    """FLOP/s of products by their least side."""
    rates = {}
    for side in SIDES:
        a, b = torch.randn(4096, side, device=device), torch.randn(side, side, device=device)
        rates[side] = 2 * 4096 * side**2 / _after(timer(lambda: a @ b), launch)  # noqa: B023
    return rates


def _bandwidth(
    device: str, timer: Timer, launch: float
) -> tuple[tuple[tuple[float, float], ...], tuple[float, float] | None]:
    """Bytes/s by bytes touched in a chain of additions, each of whose results is new and read once; and what
    memory costs that the system has to provide."""
    points = []
    for size in SIZES:
        terms = [torch.ones(size, device=device) for _ in range(4 if size < SIZES[-1] else 2)]
        chain = functools.partial(functools.reduce, torch.add, terms)
        seconds = _after(timer(chain) / (len(terms) - 1), launch)
        points.append((12.0 * size, 12.0 * size / seconds))
    into = torch.empty_like(terms[0])
    there = _after(timer(lambda: torch.add(*terms, out=into)), launch)
    points[-1] = (12.0 * size, 12.0 * size / there)
    extra, new = seconds - there, 4.0 * size
    # glibc gives back at once what is larger than 32 MiB (mallopt(3)), so that it comes page by page
    fresh = (float(1 << 25), new / extra) if extra > 0.25 * there else None
    return tuple(points), fresh


def _elementwise(device: str) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(op, elements, a call) of what memory does not bound, on tensors that fit in a cache."""
    size = 1 << 18
    x = torch.rand(4096, 64, device=device) + 0.5
    wide, index = torch.randn(1024, 256, device=device), torch.randint(4096, (4096,), device=device)
    signed = x - 1
    keep = torch.ones(64, 64, dtype=torch.bool, device=device).tril().repeat(64, 1)
    row, weight = index[:, None].expand(-1, 64), torch.ones(64, device=device)
    for name in ("exp", "tanh", "sigmoid", "erf", "log", "sin", "cos", "atan", "sqrt", "rsqrt"):
        yield name, size, functools.partial(getattr(torch, name), x)
    for name in ("silu", "gelu", "elu", "softplus"):
        yield name, size, functools.partial(getattr(F, name), signed)
    yield "log_sigmoid", size, lambda: F.logsigmoid(signed)
    yield "pow", size, lambda: x**1.7
    yield "where", size, lambda: torch.where(keep, x, 0.0)
    yield "gt", size, lambda: x > 1
    yield "floor", size, lambda: x.floor()
    yield "cumsum", size, lambda: x.cumsum(0)
    yield "softmax", size, lambda: x.softmax(-1)
    yield "layer_norm", size, lambda: F.layer_norm(x, (64,), weight, weight)
    yield "rms_norm", size, lambda: F.rms_norm(x, (64,), weight)
    yield "sum", size, lambda: x.sum(-1)
    yield "mean", size, lambda: x.mean(-1)
    yield "amax", size, lambda: x.amax(-1)
    yield "var", size, lambda: x.var(-1)
    yield "sort", size, lambda: wide.sort(-1)
    yield "topk", size, lambda: wide.topk(16, -1)
    yield "gather", size, lambda: x.gather(0, row)
    yield "index_select", size, lambda: x.index_select(0, index)
    turned, straight = x.view(4, 64, 1024).mT, x.view(4, 1024, 64)
    yield "transposed", size, turned.contiguous
    yield "mixed", size, lambda: turned + straight
    masked = x.masked_fill(~keep, -1e30)
    yield "masked_exp", size, masked.exp
    picture, taps = x.view(1, 256, 1024), torch.ones(256, 1, 4, device=device)
    yield "convolution", size, lambda: F.conv1d(picture, taps, groups=256)
    yield "cat", size, lambda: torch.cat([x, x[:, :1]], -1)
    yield "pad", size, lambda: F.pad(x, (0, 0, 3, 0))
    yield "flip", size, lambda: x.flip(0)
    yield "tril", size, lambda: wide.tril()
    scanned = x.view(1, 4096, 64)
    yield "linear_scan", size, lambda: torch.ops.subquad.linear_scan(scanned, scanned * 0.5)


def _kernels(device: str, timer: Timer) -> Iterator[tuple[str, int, int, Callable[[], object]]]:
    """(share, FLOPs, launches, a call) of the products that are no plain ones."""
    a, b = torch.randn(256, 64, 64, device=device), torch.randn(256, 64, 64, device=device)
    yield "batched", 2 * 256 * 64**3, 1, lambda: a @ b
    n = TOKENS // 2
    while True:
        q = torch.randn(1, HEADS, n, HEAD_DIM, device=device)
        if timer(lambda: F.scaled_dot_product_attention(q, q, q)) > ENOUGH or n >= 1 << 14:  # noqa: B023
            break
        n *= 2
    for name, causal, pairs in (("attention", False, n * n), ("causal", True, pairs_seen(n, n))):
        yield (
            name,
            4 * HEADS * HEAD_DIM * pairs,
            1,
            (
                lambda causal=causal: F.scaled_dot_product_attention(q, q, q, is_causal=causal)  # type: ignore[misc]
            ),
        )
    for kind in ("none", "head", "token", "channel", "delta"):
        op, tensors = recurrence(kind, device)
        run = functools.partial(_run, tensors)
        yield kind, evaluate(cost(op).flops, {}), launches(op, {}, device), run
    x, w = torch.randn(1, 256, TOKENS, device=device), torch.randn(256, 1, 33, device=device)
    yield "convolution", 2 * 256 * (TOKENS - 32) * 33, 1, lambda: F.conv1d(x, w, groups=256)


def recurrence(kind: str, device: str = "cpu") -> tuple[Op, dict[str, Any]]:
    """The `linear_attention` that stands for a kind, and tensors for it."""
    shapes = {"head": (HEADS,), "token": (1, HEADS, TOKENS), "channel": (1, HEADS, TOKENS, HEAD_DIM)}
    heads, row = (1, HEADS, TOKENS, HEAD_DIM), (1, HEADS, TOKENS)
    with building():
        q, k, v = (OPS["input"](name=name, type=TensorType(f32, heads)) for name in "qkv")
        rest = {}
        if kind in shapes:
            rest["decay"] = OPS["input"](name="decay", type=TensorType(f32, shapes[kind]))
        if kind == "delta":
            rest["beta"] = OPS["input"](name="beta", type=TensorType(f32, row))
        op = linear_attention(
            q, k, v, rest.get("decay"), rest.get("beta"), causal=True, normalize=kind == "none"
        ).op
    x = F.normalize(torch.randn(heads, device=device), dim=-1)
    tensors: dict[str, Any] = {"q": x, "k": x, "v": x}
    if kind in shapes:
        tensors["decay"] = -torch.rand(shapes[kind], device=device)
    if kind == "delta":
        tensors["beta"] = torch.rand(row, device=device)
    return op, tensors


def _run(tensors: dict[str, Any]) -> object:
    given = {name: x for name, x in tensors.items() if name not in ("q", "k", "v")}
    q, k, v = (tensors[name] for name in "qkv")
    return torch.ops.subquad.linear_attention(q, k, v, True, not given, 0.0, **given)


# ---- a graph, timed ------------------------------------------------------------------------------


@torch.no_grad()
def graph_seconds(graph: Graph, n: int, *, device: str = "cpu", dtype: str | None = None,
                  timer: Timer | None = None) -> float:  # fmt: skip
    """Seconds of a graph through the eager backend on random inputs; "n" is the size of its open dim.

    dtype: what f32 inputs and weights are turned into. Weights that a recipe learns start as it says.
    """
    settle(device)
    run, tensors = runnable(graph, n, device, dtype)
    return (timer or Stopwatch(device, 0.1))(lambda: run(tensors))


def runnable(graph: Graph, n: int, device: str = "cpu", dtype: str | None = None) -> tuple[Any, list[Tensor]]:
    """(a function of inputs, random inputs): the graph compiled by the eager backend with its weights."""
    generator = torch.Generator(device).manual_seed(0)

    def random(type: TensorType) -> Tensor:
        shape = [evaluate(dim, {"n": n}) for dim in type.shape]
        wanted = TORCH_DTYPE[type.dtype]
        if wanted is torch.bool:
            return torch.ones(shape, dtype=torch.bool, device=device)
        if not wanted.is_floating_point:
            return torch.randint(0, 100, shape, generator=generator, device=device).to(wanted)
        return _as(torch.randn(shape, generator=generator, device=device).to(wanted), dtype)

    weights = {name: _as(x.to(device), dtype) for name, x in initial(graph, {}).items()}
    executable = backend("eager").compile(graph)
    return lambda inputs: executable(inputs, weights), [random(x.type) for x in graph.inputs]


def _as(x: Tensor, dtype: str | None) -> Tensor:
    return x.to(DTYPES[dtype]) if dtype is not None and x.dtype is torch.float32 else x

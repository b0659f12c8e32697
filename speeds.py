"""The constants of this machine, measured: every kernel that predictions need, each for a moment.

Kept is the least time of a few calls: other work on the machine only ever adds.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
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
from .roofline import Roofline, pairs_seen

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


def clock(device: str, seconds: float = 0.04) -> Timer:
    """The least time of calls for so many seconds, of two calls at least after one that warms up."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def time_of(call: Callable[[], object]) -> float:
        call()
        wait()
        least, calls, end = float("inf"), 0, time.perf_counter() + seconds
        while calls < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            wait()
            least, calls = min(least, time.perf_counter() - start), calls + 1
        return least

    return time_of


@torch.no_grad()
def measured(device: str = "cpu", timer: Timer | None = None) -> Machine:
    """The machine's constants, in under ten seconds. timer: the clock, for tests."""
    timer = timer or clock(device)
    settle(device)
    few = torch.randn(16, device=device)
    aten: Any = torch.ops.aten  # as the eager backend calls it
    launch = timer(lambda: _times(100, lambda: aten.add.Tensor(few, few))) / 100
    view = timer(lambda: _times(100, lambda: aten.reshape.default(few, [4, 4]))) / 100
    view = view if device == "cpu" else 0.0
    products = {name: _product(dtype, device, timer) for name, dtype in DTYPES.items()}
    sides = _sides(products["f32"], device, timer, launch)
    bandwidth, fresh = _bandwidth(device, timer, launch)
    elements = {name: size / max(timer(call) - launch, 1e-9) for name, size, call in _elementwise(device)}
    bare = Machine(
        "", device, products, sides, {}, bandwidth, elements, launch, view, 1.0, fresh=fresh
    )  # what is known so far, to tell launches from work
    shares = {name: flops / max(timer(call) - start, 1e-9) / products["f32"]
              for name, flops, start, call in _kernels(device, bare, timer)}  # fmt: skip
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
    return Machine(
        name, device, products, sides, shares, bandwidth, elements, launch, view, float(memory), link, fresh
    )


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
        if seconds > ENOUGH or side >= 8192:
            return best
        side *= 2


def _sides(peak: float, device: str, timer: Timer, launch: float) -> tuple[tuple[float, float], ...]:
    points = []
    for side in SIDES:
        a, b = torch.randn(4096, side, device=device), torch.randn(side, side, device=device)
        seconds = timer(lambda: a @ b) - launch  # noqa: B023
        points.append((float(side), min(1.0, 2 * 4096 * side**2 / max(seconds, 1e-9) / peak)))
    return tuple(points)


def _bandwidth(
    device: str, timer: Timer, launch: float
) -> tuple[tuple[tuple[float, float], ...], tuple[float, float] | None]:
    """Bytes/s by bytes touched in a chain of additions, each of whose results is new and read once; and what
    memory costs that the system has to provide."""
    points = []
    for size in SIZES:
        terms = [torch.ones(size, device=device) for _ in range(4 if size < SIZES[-1] else 2)]
        chain = functools.partial(functools.reduce, torch.add, terms)
        seconds = timer(chain) / (len(terms) - 1) - launch
        points.append((12.0 * size, 12.0 * size / max(seconds, 1e-9)))
    into = torch.empty_like(terms[0])
    there = timer(lambda: torch.add(*terms, out=into)) - launch
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


def _kernels(
    device: str, machine: Machine, timer: Timer
) -> Iterator[tuple[str, int, float, Callable[[], object]]]:
    """(share, FLOPs, seconds of launches, a call) of the products that are no plain ones."""
    a, b = torch.randn(256, 64, 64, device=device), torch.randn(256, 64, 64, device=device)
    yield "batched", 2 * 256 * 64**3, machine.launch, lambda: a @ b
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
            machine.launch,
            (
                lambda causal=causal: F.scaled_dot_product_attention(q, q, q, is_causal=causal)  # type: ignore[misc]
            ),
        )
    for kind in ("none", "head", "token", "channel", "delta"):
        op, tensors = recurrence(kind, device)
        start = Roofline(machine, {}).launches(op) * machine.launch
        yield kind, evaluate(cost(op).flops, {}), start, lambda tensors=tensors: _run(tensors)  # type: ignore[misc]
    x, w = torch.randn(1, 256, TOKENS, device=device), torch.randn(256, 1, 33, device=device)
    yield "convolution", 2 * 256 * (TOKENS - 32) * 33, machine.launch, lambda: F.conv1d(x, w, groups=256)


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
    return (timer or clock(device, 0.1))(lambda: run(tensors))


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

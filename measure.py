"""Measuring a call honestly: paired times, peak memory, FLOPs, and what the machine can do.

Times of two callables are taken in turns within one run, so that a busy neighbour slows both.
Shown are the smallest time of each (a neighbour only ever adds) and the ratio of each pair.

Memory is what torch's own allocator hands out. On a CPU every allocation and release is recorded
by the profiler, also those inside a kernel; the peak is the largest sum of the live ones, and
weights and inputs, which exist before the call, do not count. Scratch space that a library asks
the operating system for by itself (MKL, oneDNN) is not seen. On CUDA it is the allocator's peak.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one thing: median, and between what and what."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    def __str__(self) -> str:
        low, middle, high = map(_figures, (min(self.values), self.median, max(self.values)))
        return middle if low == high else f"{middle} ({low}..{high})"


def _figures(x: float) -> str:
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"


@dataclass(frozen=True, slots=True)
class Paired:
    """One quantity of two calls, taken in turns: before[i] and after[i] are neighbours."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def ratio(self) -> Spread:
        """before / after of each pair: how many times less the second one needs."""
        return Spread(tuple(a / b if b else math.inf for a, b in zip(self.before, self.after)))


def times(
    before: Call, after: Call, *, repeats: int | None = None, seconds: float = 3.0, least: int = 3
) -> Paired:
    """Seconds of two calls, in turns and in alternating order.

    repeats: pairs to take after one that warms up; None for as many as fit in `seconds`, from
    `least` to 50. A first pair that alone takes longer than `seconds` counts as one of them.
    """
    calls = (before, after)
    first = [_seconds(call) for call in calls]
    taken: tuple[list[float], list[float]] = ([], [])
    if repeats is None:
        if sum(first) > seconds:
            taken[0].append(first[0])
            taken[1].append(first[1])
            repeats = max(least, 1) - 1
        else:
            pair = sum(map(_seconds, calls))
            repeats = max(least, 1, min(50, int(seconds / max(pair, 1e-9))))
    for i in range(repeats):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            taken[which].append(_seconds(calls[which]))
    return Paired(tuple(taken[0]), tuple(taken[1]))


def _seconds(call: Call) -> float:
    _wait()
    start = time.perf_counter()
    result = call()
    _wait()
    took = time.perf_counter() - start
    del result
    return took


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_memory(call: Call) -> int | None:
    """The most bytes that were alive at once because of `call`, its results included.

    None where it cannot be known: a profiler is already running.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        _wait()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        result = call()
        _wait()
        del result
        return torch.cuda.max_memory_allocated() - start
    try:
        with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = call()
            del result
    except RuntimeError:
        return None
    inner = getattr(profiler, "profiler", None)
    results = getattr(inner, "kineto_results", None)
    if results is None:
        return None
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    live = peak = 0
    for _, size in sorted(changes):
        live += size
        peak = max(peak, live)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's C++ half writes to file descriptor 2 what nobody asked for."""
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError, AttributeError):
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _sdpa_on_cpu(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


# torch's counter knows the GPU kernels of scaled_dot_product_attention and not the CPU one.
_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_on_cpu}


def flops(call: Call) -> int | None:
    """FLOPs of the matrix products and attentions in `call`, as torch's FlopCounterMode counts
    them (elementwise work is not counted); None where it counted nothing."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        call()
    return counter.get_total_flops() or None


@functools.cache
def matmul_rate(dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 1024) -> float:
    """FLOP/s of this machine in a square matrix product: the best of several, measured once."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = min(_seconds(lambda: a @ a) for _ in range(8))
    return 2 * size**3 / best


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """p of the least-squares fit values ~ sizes ** p in log-log; None for fewer than two points."""
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, values) if x > 0 and y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    above = sum((x - middle_x) * (y - middle_y) for x, y in points)
    return above / sum((x - middle_x) ** 2 for x, _ in points)

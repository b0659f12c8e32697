"""Causal linear attention beside causal softmax attention, as the sequence grows.

    python tests/benchmarks/bench_linear_attention.py             # forward
    python tests/benchmarks/bench_linear_attention.py --backward  # forward and backward
    python tests/benchmarks/bench_linear_attention.py --chunks    # how the chunk size was chosen

The two are timed in turn, pair by pair, so that a busy machine slows both; the ratio is taken
within each pair. Beside the rate at which linear attention does its own FLOPs (masked halves of
chunks included) stands the rate of a plain float32 matrix product timed in the same pairs. What
memory each adds at its peak is the process's own high-water mark, where Linux tells it.

Read the spread first. Linear attention is thousands of short parallel regions, and on a machine
with other work each may wait for a thread that is not running: the greatest times are then tens
of times the least. OMP_WAIT_POLICY=passive is slower when all is quiet and steady when not.
"""

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from subquad.backends import linear_attention as la

EPS = 1e-6
GEMM = 2048


def seconds(f: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def spread(xs: Sequence[float], form: str) -> str:
    """Median [least, greatest]."""
    low, mid, high = (format(x, form) for x in (min(xs), statistics.median(xs), max(xs)))
    return f"{mid} [{low}, {high}]"


def exponent(lengths: Sequence[int], times: Sequence[float]) -> float:
    """p in time ~ n^p, by least squares on logarithms."""
    return statistics.linear_regression(
        [math.log(n) for n in lengths], [math.log(t) for t in times]
    ).slope


def peak_mib(f: Callable[[], object]) -> float:
    """MiB of resident memory that a call adds at its peak; nan where the system does not say."""

    def field(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(x.split()[1]) for x in lines if x.startswith(name)) / 1024

    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory freed earlier would be used again, unseen
        Path("/proc/self/clear_refs").write_text("5")  # set the high-water mark to what is held
        before = field("VmRSS")
        f()
        return field("VmHWM") - before
    except (OSError, AttributeError):
        return math.nan


def operands(n: int, heads: int, dim: int, device: str = "cpu") -> list[torch.Tensor]:
    """q, k, v [1, heads, n, dim], positive as after a feature map; nothing rests on the values."""
    return [torch.rand(1, heads, n, dim, device=device) / dim for _ in range(3)]


def call(f: Callable, tensors: list[torch.Tensor], backward: bool) -> object:
    """One forward call, or one forward and backward call."""
    if not backward:
        with torch.no_grad():
            return f(*tensors)
    tensors = [x.detach().requires_grad_() for x in tensors]
    out = f(*tensors)
    return torch.autograd.grad(out, tensors, torch.ones_like(out))


def linear(q, k, v):
    """What is measured."""
    return la.linear_attention(q, k, v, True, True, EPS)


def softmax(q, k, v):
    """What it is measured against."""
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def compare(lengths: Sequence[int], heads: int, dim: int, pairs: int, backward: bool) -> None:
    """One line for each length."""
    titles = ("linear ms", "softmax ms", "softmax / linear", "linear GFLOP/s", "matmul GFLOP/s")
    print(f"{'n':>6}" + "".join(f"{t:>24}" for t in titles) + "    MiB added: linear, softmax")
    a = torch.rand(GEMM, GEMM)
    medians = []
    for n in lengths:
        tensors = operands(n, heads, dim)
        with FlopCounterMode(display=False) as counter:
            call(linear, operands(n, heads, dim, "meta"), backward)

        def ours(tensors=tensors):
            return call(linear, tensors, backward)

        def theirs(tensors=tensors):
            return call(softmax, tensors, backward)

        if n == lengths[0]:  # what is set up once belongs to neither
            ours(), theirs(), a @ a
        memory = peak_mib(ours), peak_mib(theirs)
        times = [(seconds(ours), seconds(theirs), seconds(lambda: a @ a)) for _ in range(pairs)]
        t_linear, t_softmax, t_gemm = zip(*times)
        medians.append((statistics.median(t_linear), statistics.median(t_softmax)))
        flops = counter.get_total_flops()
        cells = (
            spread([1e3 * t for t in t_linear], ".1f"),
            spread([1e3 * t for t in t_softmax], ".0f"),
            spread([s / t for t, s, _ in times], ".1f"),
            spread([flops / t / 1e9 for t in t_linear], ".0f"),
            spread([2 * GEMM**3 / t / 1e9 for t in t_gemm], ".0f"),
        )
        line = "".join(f"{c:>24}" for c in cells)
        print(f"{n:6d}{line}{memory[0]:>14.0f}, {memory[1]:.0f}", flush=True)
    if len(lengths) > 1:
        p, s = (exponent(lengths, ts) for ts in zip(*medians))
        print(f"time grows as n^{p:.2f} (linear) and n^{s:.2f} (softmax)")


def chunks(pairs: int) -> None:
    """Forward and backward ms for each chunk size and number of rows at once, in turn."""
    choices = [(c, r) for c in (32, 64, 128) for r in (1024, 2048, 4096)]
    header = "".join(f"{f'{c}/{r}':>10}" for c, r in choices)
    print(f"{'median ms, chunk/rows':30}{header}")
    for heads, n, dim in [(2, 16384, 64), (8, 16384, 64), (32, 4096, 128)]:
        q, k, v = operands(n, heads, dim)
        grad = torch.ones_like(v)
        for name in ("forward", "backward"):
            times: list[list[float]] = [[] for _ in choices]
            for _ in range(pairs):
                for (chunk, rows), ts in zip(choices, times):
                    args = (q, k, v, True, True, EPS, chunk, rows)
                    kernel = la._forward if name == "forward" else la._backward
                    given = args if name == "forward" else (grad, *args)
                    ts.append(1e3 * seconds(lambda kernel=kernel, given=given: kernel(*given)))
            cells = "".join(f"{statistics.median(ts):10.1f}" for ts in times)
            print(f"{f'h={heads} n={n} d={dim} {name}':30}{cells}", flush=True)


def main() -> None:
    """Parse the options and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**i for i in range(12, 17)])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs for each length")
    parser.add_argument("--backward", action="store_true", help="time forward and backward")
    parser.add_argument("--chunks", action="store_true", help="compare chunk sizes instead")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, median [least,"
        f" greatest] of {args.pairs}"
    )
    if args.chunks:
        chunks(args.pairs)
    else:
        compare(args.lengths, args.heads, args.dim, args.pairs, args.backward)


if __name__ == "__main__":
    main()

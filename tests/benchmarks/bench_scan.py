"""The elementwise gated scan in blocks beside one token after another, and beside a copy of its operands.

    python tests/benchmarks/bench_scan.py              # forward
    python tests/benchmarks/bench_scan.py --backward   # forward and backward

The three are timed in turn, so that a busy machine slows all; ratios are taken within each turn. A copy
reads and writes what no scan can avoid. From scan.WIDE channels on the op itself takes one token after
another, so that its two times should agree: that is how the number was chosen.
"""

import argparse
import statistics
import time

import torch

from subquad.backends import scan

SHAPES = ((1, 1024, 64), (1, 16384, 64), (1, 65536, 64), (1, 4096, 1024), (2, 4096, 2048), (8, 1024, 2048))


def seconds(f) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def step_by_step(x, decay):
    """The recurrence as a loop over tokens, each one call."""
    h, out = torch.zeros_like(x[:, 0]), []
    for a, f in zip(x.unbind(1), decay.unbind(1)):
        h = torch.addcmul(a, f, h)
        out.append(h)
    return torch.stack(out, 1)


def compare(shape, pairs: int, backward: bool) -> None:
    """One line."""
    x, decay = torch.randn(shape), torch.rand(shape)

    def call(f):
        if not backward:
            with torch.no_grad():
                return f(x, decay)
        leaves = [t.detach().requires_grad_() for t in (x, decay)]
        out = f(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    def kernels():
        return [
            seconds(lambda: call(scan.linear_scan)),
            seconds(lambda: call(step_by_step)),
            seconds(lambda: (x.clone(), decay.clone())),
        ]

    kernels()
    times = [kernels() for _ in range(pairs)]
    blocked, steps, copy = (1e3 * statistics.median(t) for t in zip(*times))
    ratio = statistics.median(b / a for a, b, _ in times)
    print(f"{'x'.join(map(str, shape)):>16}{blocked:12.2f}{steps:12.2f}{ratio:10.1f}{copy:10.2f}", flush=True)


def main() -> None:
    """Parse the options and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="timed turns for each shape")
    parser.add_argument("--backward", action="store_true", help="time forward and backward")
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, medians of {args.pairs}, ms"
    )
    print(f"{'b x n x d':>16}{'blocks':>12}{'steps':>12}{'ratio':>10}{'copy':>10}")
    for shape in SHAPES:
        compare(shape, args.pairs, args.backward)


if __name__ == "__main__":
    main()

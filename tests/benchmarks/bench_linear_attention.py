"""The recurrence beside causal softmax attention: every decay, every direction, as the sequence grows.

    python tests/benchmarks/bench_linear_attention.py             # all forms at one length, then exponents
    python tests/benchmarks/bench_linear_attention.py --chunks    # how the chunk sizes were chosen
    python tests/benchmarks/bench_linear_attention.py --no-peers  # without what torch.compile makes

Each form is timed in turn with softmax attention and two plain matrix products, round by round, so that
a busy machine slows all; ratios are taken within a round. Rates are of the algorithm's own FLOPs (masked
halves of chunks included). sgemm is `a @ a`, the best product of float32 the machine has is oneDNN's,
and bandwidth is that of a copy too large for any cache. What memory a call adds at its peak is the
process's own high-water mark, where Linux tells it.

The peer is the textbook formula in chunks (`plain_chunks`), written here without a look at the kernels, as
torch.compile (Inductor) runs it, for the causal forms in which it is a few lines. Its decays are products of
exp(sum) and exp(-sum) of differences, so it is for mild ones. The kernels of flash-linear-attention are
Triton's and run on no CPU; its `naive` functions, loops over tokens, do, and tests hold ours against them.

Read the spread first. Parallel regions are short, and on a machine with other work each may wait for a
thread that is not running: the greatest times are then tens of times the least. --clock cpu with
OMP_NUM_THREADS=1 counts the seconds that one core worked, which other work disturbs far less.
"""

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from subquad.backends.linear_attention import kernels, linear_attention

GEMM = 1024
FORMS = {
    "none": (None, False), "head": ("head", False), "token": ("token", False), "channel": ("channel", False),
    "delta": (None, True), "token delta": ("token", True), "channel delta": ("channel", True),
}  # fmt: skip
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = time.perf_counter


def seconds(f: Callable[[], object]) -> float:
    """How long one call takes."""
    start = clock()
    f()
    return clock() - start


def spread(xs: Sequence[float], form: str) -> str:
    """Median [least, greatest]."""
    low, mid, high = (format(x, form) for x in (min(xs), statistics.median(xs), max(xs)))
    return f"{mid} [{low}, {high}]"


def exponent(lengths: Sequence[int], times: Sequence[float]) -> float:
    """p in time ~ n^p, by least squares on logarithms."""
    return statistics.linear_regression([math.log(n) for n in lengths], [math.log(t) for t in times]).slope


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


def operands(form: str, n: int, heads: int, dim: int, device: str = "cpu", dtype=torch.float32) -> list:
    """q, k, v, decay, beta; the keys of the delta rule have unit length."""
    kind, delta = FORMS[form]
    shape = {None: None, "head": (heads,), "token": (1, heads, n), "channel": (1, heads, n, dim)}[kind]

    def rand(*size):
        return torch.rand(*size, device=device).to(dtype)

    q, k, v = (rand(1, heads, n, dim) / dim for _ in range(3))
    decay = None if shape is None else -rand(*shape)
    return [q, normalize(k, dim=-1) if delta else k, v, decay, rand(1, heads, n) if delta else None]


def call(tensors: list, causal: bool, backward: bool) -> object:
    """One forward call, or one forward and backward call."""
    if not backward:
        with torch.no_grad():
            q, k, v, decay, beta = tensors
            return linear_attention(q, k, v, causal, False, decay=decay, beta=beta)
    q, k, v, decay, beta = (x if x is None else x.detach().requires_grad_() for x in tensors)
    out = linear_attention(q, k, v, causal, False, decay=decay, beta=beta)
    there = [x for x in (q, k, v, decay, beta) if x is not None]
    return torch.autograd.grad(out, there, torch.ones_like(out))


def plain_chunks(q, k, v, decay, size: int = 64):
    """Causal linear attention in chunks with a decay of each head or token, or none; all chunks at once."""
    b, h, n, _ = q.shape
    q, k, v = (x.reshape(b, h, n // size, size, -1) for x in (q, k, v))
    g = (
        q.new_zeros(1, h, n)
        if decay is None
        else decay[None, :, None].expand(1, h, n)
        if decay.ndim == 1
        else decay
    )
    sums = g.reshape(-1, h, n // size, size).cumsum(-1)
    weights = (sums[..., :, None] - sums[..., None, :]).exp().tril()
    end = sums[..., -1:]
    added = (k * (end - sums).exp()[..., None]).mT @ v
    state, states = torch.zeros_like(added[:, :, 0]), []
    for now, gone in zip(added.unbind(2), end.exp().unbind(2)):
        states.append(state)
        state = state * gone[..., None] + now
    met = (q * sums.exp()[..., None]) @ torch.stack(states, 2)
    return (met + (q @ k.mT * weights) @ v).reshape(b, h, n, -1)


def peer(form: str, causal: bool, tensors: list) -> Callable[[], object] | None:
    """`plain_chunks` through Inductor, held against ours; None for the forms that it has not."""
    q, k, v, decay, _ = tensors
    if not causal or form not in ("none", "head", "token") or q.shape[2] % 64:
        return None
    torch._dynamo.reset()
    compiled = torch.compile(plain_chunks)
    with torch.no_grad():
        theirs = compiled(q, k, v, decay).float()
    ours = call(tensors, True, False)
    assert isinstance(ours, torch.Tensor)
    gap = (theirs - ours.float()).abs().max() / theirs.abs().max()
    assert gap < (1e-4 if q.dtype == torch.float32 else 0.05), f"{form}: the peer differs by {gap}"

    def run() -> object:
        with torch.no_grad():
            return compiled(q, k, v, decay)

    return run


def machine() -> tuple[Callable[[], object], Callable[[], object]]:
    """sgemm and the best float32 product of GEMM x GEMM matrices."""
    a = torch.rand(GEMM, GEMM)
    best = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return lambda: a @ a, (lambda: best(a, a, None, "none", [], "")) if best else (lambda: a @ a)


def table(n: int, heads: int, dim: int, rounds: int, dtype: torch.dtype, peers: bool) -> None:
    """One line for each form and direction."""
    sgemm, best = machine()
    source, target = torch.rand(2**25), torch.empty(2**25)
    rate = 2 * GEMM**3 / 1e9
    fastest = [min(seconds(f) for _ in range(8)) for f in (sgemm, best, lambda: target.copy_(source))]
    print(
        f"n={n} heads={heads} dim={dim} {dtype}: sgemm {rate / fastest[0]:.0f} GFLOP/s, best float32 product"
        f" {rate / fastest[1]:.0f}, copy {2 * source.nbytes / fastest[2] / 1e9:.0f} GB/s"
    )
    print(
        f"{'decay':14}{'side':8}{'forward ms':>24}{'GFLOP/s':>9}{'/ sgemm':>9}{'/ best':>8}"
        f"{'softmax / it':>20}{'peer / it':>11}{'+backward':>11}{'MiB':>7}{'own MiB':>9}"
    )
    for form in FORMS:
        for causal in (True, False) if not FORMS[form][1] else (True,):
            tensors = operands(form, n, heads, dim, dtype=dtype)
            q, k, v = tensors[:3]
            with FlopCounterMode(display=False) as counter:
                call(operands(form, n, heads, dim, "meta"), causal, False)

            def softmax(q=q, k=k, v=v, causal=causal):
                return scaled_dot_product_attention(q, k, v, is_causal=causal)

            def ours(backward=False, tensors=tensors, causal=causal):
                return call(tensors, causal, backward)

            ours(True)
            memory = peak_mib(ours)
            compiled = peer(form, causal, tensors) if peers else None
            fs = (ours, softmax, sgemm, best, lambda: ours(True), compiled or sgemm)
            times = list(zip(*([seconds(f) for f in fs] for _ in range(rounds))))
            least = [min(ts) for ts in times]
            flops = counter.get_total_flops() / 1e9
            own = sum(x.nbytes for x in (*tensors, v) if x is not None) / 2**20
            print(
                f"{form:14}{'causal' if causal else 'both':8}{spread([1e3 * t for t in times[0]], '.0f'):>24}"
                f"{flops / least[0]:9.0f}{flops / least[0] / (rate / least[2]):9.0%}"
                f"{flops / least[0] / (rate / least[3]):8.0%}"
                f"{spread([s / t for t, s in zip(*times[:2])], '.0f'):>20}"
                f"{format(least[5] / least[0], '.1f') if compiled else '-':>11}"
                f"{least[4] / least[0]:10.1f}x{memory:7.0f}{own:9.0f}",
                flush=True,
            )


def growth(lengths: Sequence[int], heads: int, dim: int, rounds: int) -> None:
    """The exponent of time in the length, of each form."""
    print("least ms at n = " + ", ".join(map(str, lengths)) + "; time grows as n^p")
    for form in FORMS:
        times = []
        for n in lengths:
            tensors = operands(form, n, heads, dim)
            times.append(min(seconds(lambda x=tensors: call(x, True, False)) for _ in range(rounds)))
        cells = " ".join(f"{1e3 * t:.0f}" for t in times)
        print(f"{form:14} {cells}   p = {exponent(lengths, times):.2f}", flush=True)


def chunks(n: int, heads: int, dim: int, rounds: int) -> None:
    """Least forward and backward ms of each form for each chunk size and number of rows at once."""
    choices = [(c, r) for c in (16, 32, 64, 128) for r in (1024, 2048, 8192)]
    print(f"{'least ms, chunk/rows':24}" + "".join(f"{f'{c}/{r}':>10}" for c, r in choices))
    for form in FORMS:
        q, k, v, decay, beta = operands(form, n, heads, dim)
        for kernel, grad in ((kernels.forward, ()), (kernels.backward, (torch.ones_like(v),))):
            times: list[list[float]] = [[] for _ in choices]
            for _ in range(rounds):
                for (chunk, rows), ts in zip(choices, times):
                    cut = dict(chunk=chunk, rows=rows)
                    args = (*grad, q, k, v, True, False, 0.0, decay, beta)
                    ts.append(1e3 * seconds(lambda f=kernel, args=args, cut=cut: f(*args, **cut)))
            print(
                f"{f'{form} {kernel.__name__}':24}" + "".join(f"{min(ts):10.0f}" for ts in times), flush=True
            )


def main() -> None:
    """Parse the options and print."""
    global clock
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=16384, help="tokens, for the table")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2**i for i in range(12, 18)])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--chunks", action="store_true", help="compare chunk sizes instead")
    parser.add_argument("--no-peers", action="store_true", help="without the formula that Inductor compiles")
    args = parser.parse_args()
    clock = CLOCKS[args.clock]
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {args.clock} time, {args.rounds} rounds")
    sizes = args.heads, args.dim, args.rounds
    if args.chunks:
        chunks(args.n, *sizes)
    else:
        table(args.n, *sizes, getattr(torch, args.dtype), not args.no_peers)
        if len(args.lengths) > 1:
            growth(args.lengths, *sizes)


if __name__ == "__main__":
    main()

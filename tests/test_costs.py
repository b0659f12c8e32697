"""What ops are said to cost: nothing for moving elements, and a recurrence what its kernels do."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from subquad.backends.linear_attention import kernels
from subquad.ir import OPS, TensorType, building, cost, symbol
from subquad.ir.dims import evaluate, substitute
from subquad.ir.types import f32, i64

B, G, H, D, E = 2, 2, 4, 8, 6
CHUNK, SMALL = kernels.CHUNK, kernels.SMALL_CHUNK


def value(*shape, dtype=f32, name="x"):
    return OPS["input"](name=name, type=TensorType(dtype, shape))


def flops(name, *operands, **attrs):
    return cost(OPS[name](*operands, **attrs).op).flops


MOVED = {
    "cat": (2, {"dim": 1}),
    "flip": (1, {"dims": (1,)}),
    "pad": (1, {"pad": (1, 2)}),
    "tril": (1, {}),
    "triu": (1, {}),
}


@pytest.mark.parametrize("name", MOVED)
def test_moving_elements_is_no_computation(name):
    """No FLOPs; the bytes are those that move."""
    many, attrs = MOVED[name]
    with building():
        x = value(symbol("n"), 8)
        op = OPS[name](*[x] * many, **attrs).op
        assert cost(op).flops == 0
        read = many * x.type.bytes
        assert cost(op).bytes == read + op.types[0].bytes


def test_reading_and_writing_by_position():
    """Nothing is computed, but where what is written is added to what is there."""
    with building():
        x, rows, at = value(5, 8), value(3, 8, name="rows"), value(3, dtype=i64, name="at")
        every = value(3, 8, dtype=i64, name="every")
        assert flops("embedding", x, at) == 0
        assert flops("index_select", x, at, dim=0) == 0
        assert flops("index", x, at) == 0
        assert flops("gather", x, every, dim=0) == 0
        assert flops("scatter", x, every, rows, dim=0) == 0
        assert flops("index_put", x, rows, at) == 0
        assert flops("index_put", x, rows, at, accumulate=True) == 3 * 8
        assert flops("index_put", x, value(name="one"), at, accumulate=True) == 3 * 8
        assert flops("scatter_add", x, every, rows, dim=0) == 3 * 8


# ---- the recurrence ------------------------------------------------------------------------------

KINDS = {
    "all keys": (),
    "all keys, normalised": ("normalize",),
    "causal": ("causal",),
    "causal, normalised": ("causal", "normalize"),
    "decay by head": ("causal", (H,)),
    "decay by token": ("causal", "normalize", (B, H, "n")),
    "decay by feature": ("causal", (B, H, "n", D)),
    "delta rule": ("causal", "beta"),
    "delta rule with a decay": ("causal", "beta", (B, H, "n")),
    "delta rule with a decay by feature": ("causal", "beta", (B, H, "n", D)),
    "both ways": ((B, H, "n"),),
    "both ways by feature": ("normalize", (B, H, "n", D)),
    "segments": ("causal", "segments"),
    "segments both ways": ("segments",),
    "state": ("causal", "state"),
}


def shapes(kind, n):
    """Shapes by operand, of the op linear_attention, and its attributes."""
    parts = KINDS[kind]
    decay = next((part for part in parts if isinstance(part, tuple)), None)
    found = {
        "q": (B, H, n, D), "k": (B, G, n, D), "v": (B, G, n, E),
        "decay": None if decay is None else tuple(n if d == "n" else d for d in decay),
        "beta": (B, H, n) if "beta" in parts else None,
        "state": (B, H, D, E) if "state" in parts else None,
        "segments": (B, n) if "segments" in parts else None,
    }  # fmt: skip
    return found, {"causal": "causal" in parts, "normalize": "normalize" in parts}


def cost_of(kind, n, dtype=f32):
    given, attrs = shapes(kind, n)
    with building():
        operands = [
            s and value(*s, dtype=i64 if name == "segments" else dtype, name=name)
            for name, s in given.items()
        ]
        return cost(OPS["linear_attention"](*operands, **attrs).op)


@pytest.mark.parametrize("n", [1, CHUNK, 3 * CHUNK, 3 * CHUNK + 10])
@pytest.mark.parametrize("kind", KINDS)
def test_the_flops_of_a_recurrence_are_its_kernels_flops(kind, n):
    """One formula in the language, the other beside the kernels, which tests hold to what they run."""
    given, attrs = shapes(kind, n)
    x = {
        name: s and torch.empty(s, device="meta", dtype=torch.int64 if name == "segments" else None)
        for name, s in given.items()
    }
    rest = (x["decay"], x["beta"], x["state"], x["segments"])
    with FlopCounterMode(display=False) as counter:
        torch.ops.subquad.linear_attention(x["q"], x["k"], x["v"], *attrs.values(), 0.0, *rest)
    assert cost_of(kind, n).flops == counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_number_of_tokens_costs_what_whole_chunks_do(kind):
    """The polynomial is the formula at every multiple of a chunk, and never less in between."""
    open_ = cost_of(kind, symbol("n"))
    for n in (CHUNK, 5 * CHUNK):
        assert evaluate(open_.flops, {"n": n}) == cost_of(kind, n).flops
        assert substitute(open_.bytes, {"n": n}) == cost_of(kind, n).bytes
    for n in (2, CHUNK - 1, CHUNK + 1):
        assert evaluate(open_.flops, {"n": n}) >= cost_of(kind, n).flops
        assert substitute(open_.bytes, {"n": n}) == cost_of(kind, n).bytes


def test_small_chunks_are_taken_where_kernels_take_them():
    """With the delta rule, and with a decay of each feature: what a token costs in its chunk tells."""
    n = 4 * CHUNK
    for kind, chunk in (("decay by head", CHUNK), ("decay by feature", SMALL), ("delta rule", SMALL)):
        given, _ = shapes(kind, n)
        q, k, v, decay, beta = (s and torch.zeros(s) for s in [*given.values()][:5])
        assert kernels.Problem(q, k, v, True, False, 0.0, decay, beta, None, None, False).chunk == chunk
        inside = 2 * B * H * n * chunk * (D + E)
        across = 2 * B * 2 * H * n * D * E
        delta = 2 * B * H * n * (chunk * (2 * D + E) + D * E) if kind == "delta rule" else 0
        assert cost_of(kind, n).flops == inside + across + delta


def test_the_bytes_of_a_recurrence():
    """Operands and result once from each side, and from chunk to chunk a state, written and read."""
    n, four = 3 * CHUNK + 10, 4
    tokens = B * n * (H * D + G * D + G * E + H * E)
    assert cost_of("all keys", n).bytes == four * (tokens + 2 * B * G * D * E)
    assert cost_of("causal", n).bytes == four * (tokens + 2 * 4 * B * G * D * E)
    assert cost_of("causal, normalised", n).bytes == four * (tokens + 2 * 4 * B * G * D * (E + 1))
    decayed = tokens + B * H * n
    assert cost_of("both ways", n).bytes == 2 * four * (decayed + 2 * 4 * B * H * D * E)
    decayed = tokens + B * H * n * D
    assert cost_of("decay by feature", n).bytes == four * (decayed + 2 * 7 * B * H * D * E)
    assert cost_of("segments", n).bytes == four * (tokens + 2 * 4 * B * H * D * E) + 8 * B * n
    # a state that is given is the one that the first chunk reads
    assert cost_of("state", n).bytes == four * (tokens + 2 * 4 * B * H * D * E)

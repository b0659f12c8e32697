"""Masks in the spellings of models, and what a `Mask` says in numpy, for tests of both."""

import numpy as np

from subquad.ir import OPS, Graph, TensorType, evaluate, symbol
from subquad.ir.dims import evaluate as evaluate_dim
from subquad.ir.ops.elementwise import (
    abs_,
    cast,
    div,
    eq,
    ge,
    gt,
    le,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    ne,
    where,
)  # fmt: skip
from subquad.ir.ops.index import arange, embedding, index
from subquad.ir.ops.shape import expand, permute, reshape, tril, triu
from subquad.ir.types import bool_, f32, f64, i32, i64

B, H, N, M = symbol("b"), 3, symbol("n"), symbol("m")
LOW = -3.4028234663852886e38
SIZES = (
    {"b": 2, "n": 6, "m": 6},
    {"b": 1, "n": 1, "m": 4},
    {"b": 3, "n": 7, "m": 4},
    {"b": 2, "n": 3, "m": 8},
)


class Scores:
    """Where masks are written: the indices of [b, h, n, m] in some spelling, and inputs made on demand."""

    def __init__(self, draw=lambda options: options[0], m=M):
        self.draw, self.m = draw, m
        self.inputs, self.kinds = {}, {}

    def input(self, name, dtype, *shape):
        """An input of the mask, the same for the same name."""
        if name not in self.inputs:
            self.inputs[name] = OPS["input"](name=name, type=TensorType(dtype, shape))
        return self.inputs[name]

    def _axis(self, size, shape):
        dtype = self.draw([i64, i32, f32])
        x = arange(end=size, dtype=dtype)
        if self.draw([False, True]):
            x = arange(start=2, end=size + 2, dtype=dtype) - 2
        return reshape(x, shape=shape)

    @property
    def i(self):
        """The query of each score, broadcastable to [n, m] or [b, h, n, m]."""
        x = self._axis(N, self.draw([(N, 1), (1, N, 1), (1, 1, N, 1)]))
        return expand(x, size=(*x.shape[:-1], self.m)) if self.draw([False, True]) else x

    @property
    def j(self):
        """The key of each score."""
        return self._axis(self.m, self.draw([(self.m,), (1, self.m), (1, 1, 1, self.m)]))

    def ones(self, dtype=bool_):
        """A matrix [n, m] of ones."""
        return expand(OPS["const"](value={"b": True, "f": 1.0}[dtype.kind], dtype=dtype), size=(N, self.m))

    # ---- what keeps, each in several spellings ----

    def causal(self, o=0):
        return self.draw([
            lambda: le(self.j, self.i + o),
            lambda: ge(self.i + o, self.j),
            lambda: lt(self.j, self.i + (o + 1)),
            lambda: logical_not(gt(self.j, self.i + o)),
            lambda: le(self.j - self.i, o),
            lambda: ge(self.i - self.j, -o),
            lambda: tril(self.ones(), diagonal=o),
            lambda: logical_not(triu(self.ones(), diagonal=o + 1)),
            lambda: ne(tril(self.ones(f32), diagonal=o), 0.0),
            lambda: cast(tril(self.ones(f32), diagonal=o), dtype=bool_),
            lambda: eq(triu(self.ones(f32), diagonal=o + 1), 0.0),
        ])()  # fmt: skip

    def past(self, w):
        """The last w keys, the query's own among them."""
        return self.draw([
            lambda: logical_and(self.causal(), gt(self.j, self.i - w)),
            lambda: logical_and(lt(self.i - self.j, w), self.causal()),
            lambda: logical_xor(tril(self.ones()), tril(self.ones(), diagonal=-w)),
            lambda: triu(tril(self.ones()), diagonal=1 - w),
            lambda: logical_and(le(0, self.i - self.j), lt(self.i - self.j, w)),
        ])()  # fmt: skip

    def near(self, w):
        """Less than w away."""
        return self.draw([
            lambda: lt(abs_(self.i - self.j), w),
            lambda: le(abs_(self.j - self.i), w - 1),
            lambda: logical_not(ge(abs_(self.i - self.j), w)),
            lambda: triu(tril(self.ones(), diagonal=w - 1), diagonal=1 - w),
            lambda: logical_and(gt(self.j, self.i - w), lt(self.j, self.i + w)),
        ])()  # fmt: skip

    def chunks(self, c):
        i, j = (cast(x, dtype=i64) for x in (self.i, self.j))
        return eq(div(i, c, rounding_mode="floor"), div(j, c, rounding_mode="floor"))

    def ids(self, name="ids", dtype=i64):
        """Segment numbers at queries and at keys."""
        x = self.input(name, dtype, B, N)
        return reshape(x, shape=(B, 1, N, 1)), reshape(x, shape=(B, 1, 1, N))

    def packed(self):
        a, b = self.ids()
        return self.draw([
            lambda: eq(a, b), lambda: logical_not(ne(a, b)), lambda: eq(a - b, 0), lambda: eq(b, a),
        ])()  # fmt: skip

    def padding(self):
        flag, number = ((name, t) for name, t in (("keep", bool_), ("kept", i64)))
        four = (B, 1, 1, self.m)
        return self.draw([
            lambda: reshape(self.input(*flag, B, self.m), shape=four),
            lambda: ne(reshape(self.input(*number, B, self.m), shape=four), 0),
            lambda: cast(reshape(self.input(*number, B, self.m), shape=four), dtype=bool_),
            lambda: index(
                self.input(*flag, B, self.m),
                reshape(arange(end=B, dtype=i64), shape=(B, 1, 1, 1)),
                reshape(arange(end=self.m, dtype=i64), shape=(1, 1, 1, self.m)),
            ),
            lambda: lt(reshape(arange(end=self.m, dtype=i64), shape=(1, 1, 1, self.m)),
                       reshape(self.input("lengths", i64, B), shape=(B, 1, 1, 1))),
            lambda: expand(reshape(self.input(*flag, B, self.m), shape=four), size=(B, 1, N, self.m)),
        ])()  # fmt: skip

    def prefix(self, p):
        key = reshape(arange(end=self.m, dtype=i64), shape=(1, 1, 1, self.m))
        per_batch = reshape(self.input("prefixes", i64, B), shape=(B, 1, 1, 1))
        return logical_or(self.causal(), lt(key, self.draw([p, per_batch])))

    # ---- what is added ----

    def alibi(self):
        slopes = reshape(self.input("slopes", f32, H), shape=(H, 1, 1))
        i, j = (cast(x, dtype=f32) for x in (self.i, self.j))
        return self.draw([lambda: slopes * j, lambda: slopes * (j - i), lambda: (j - i + 3) * slopes * 0.5])()

    def distance(self):
        slopes = reshape(self.input("slopes", f32, H), shape=(H, 1, 1))
        return -slopes * cast(abs_(self.i - self.j), dtype=f32)

    def relative(self):
        table = self.input("table", f32, 9, H)
        i = reshape(arange(end=N, dtype=i64), shape=(N, 1))
        far = arange(end=self.m, dtype=i64) - i
        buckets = OPS["clamp"](far, min=-4, max=4) + 4
        return permute(embedding(table, buckets), dims=(2, 0, 1))

    def learned(self):
        return self.input("bias", f32, H, N, self.m)


# ---- what a Mask says, in numpy ------------------------------------------------------------------


def random_input(value, sizes, rng):
    """Flags, small integers, and floats."""
    shape = [evaluate_dim(d, sizes) for d in value.shape]
    if value.dtype.is_float:
        return rng.standard_normal(shape)
    return rng.random(shape) > 0.3 if value.dtype.kind == "b" else np.sort(rng.integers(0, 4, shape), axis=-1)


def agrees(mask, found, inputs, sizes, seed=0):
    """Whether what is said of a mask is what it computes at these sizes, and what it computes."""
    rng = np.random.default_rng(seed)
    data = [random_input(v, sizes, rng) for v in inputs]
    names = ("starts", "padding", "slopes", "positions", "relative", "bias")
    values = {name: getattr(found, name) for name in names if getattr(found, name) is not None}
    if not isinstance(found.prefix, int) and hasattr(found.prefix, "op"):
        values["prefix"] = found.prefix
    if found.segments is not None:
        values["queries"], values["keys"] = found.segments
    graph = Graph("claim", inputs, (mask, *values.values()))
    (actual, *arrays), _ = evaluate(graph, data, dims=sizes)
    told = dict(zip(values, arrays, strict=True))
    n, m = sizes["n"], actual.shape[-1] if actual.shape[-1] != 1 else sizes["m"]
    actual = np.broadcast_to(actual, np.broadcast_shapes(actual.shape, (sizes["b"], H, n, m)))
    keep, added = (np.broadcast_to(x, actual.shape) for x in said(found, told, sizes, n, m))
    if actual.dtype == bool:
        assert (actual == keep).all(), f"{found.kind} keeps other keys at {sizes}"
        return actual
    rest = np.where(keep, actual - added, np.nan)
    rows = keep.any(-1)
    spread = np.nanmax(rest[rows], -1) - np.nanmin(rest[rows], -1)
    assert (spread < 1e-9).all(), f"{found.kind} adds something else at {sizes}"
    masked = (actual - np.nanmin(rest, -1, keepdims=True, initial=np.inf, where=keep))[
        ~keep & rows[..., None]
    ]
    assert (masked < -50).all(), f"{found.kind} masks what is kept at {sizes}"
    return actual


def said(found, told, sizes, n, m):
    """What is kept and added, by the docstring of `Mask`."""
    b = sizes["b"]
    number = lambda x: x if x is None else evaluate_dim(x, sizes)  # noqa: E731
    i, j = np.arange(n)[:, None], np.arange(m)
    o, window, chunk = number(found.offset), number(found.window), number(found.chunk)
    keep = np.ones((b, 1, n, m), bool)
    if found.causal:
        keep &= j <= i + o
    if window is not None:
        keep &= abs(i + o - j) < window
    if chunk is not None:
        starts = told.get("starts", np.zeros(1, int))[:, None, None, None]
        keep &= (i + o - starts) // chunk == (j - starts) // chunk
    if "prefix" in told:
        p = told["prefix"]
        keep |= p if p.dtype == bool else j < p[:, None, None, None]
    elif found.prefix is not None:
        keep |= j < number(found.prefix)
    if found.segments is not None:
        keep &= told["queries"][:, None, :, None] == told["keys"][:, None, None, :]
    if found.padding is not None:
        keep &= told["padding"]
    added = np.zeros((1, 1, n, m))
    if found.slopes is not None:
        slopes = told["slopes"][None, :, None, None]
        where_ = told["positions"][:, None, None, :] if "positions" in told else j
        added = added + slopes * (-abs(i + o - j) if found.symmetric else where_)
    if found.relative is not None:
        added = added + told["relative"][:, :, j - i + n - 1]
    if found.bias is not None:
        added = added + told["bias"]
    return keep, added


# ---- combinations ---------------------------------------------------------------------------------

KEEPS = {
    "causal": lambda s, a, b: s.causal(a - 2),
    "causal+window": lambda s, a, b: s.past(b),
    "window": lambda s, a, b: s.near(b + 1),
    "chunked": lambda s, a, b: s.chunks(b + 1),
    "causal+prefix": lambda s, a, b: s.prefix(a + 1),
    "packed": lambda s, a, b: s.packed(),
    "padding": lambda s, a, b: s.padding(),
}
ADDS = {
    "alibi": lambda s: s.alibi(), "relative": lambda s: s.relative(), "bias": lambda s: s.learned(),
}  # fmt: skip
TOGETHER = [
    (), ("causal",), ("causal+window",), ("window",), ("chunked",), ("causal+prefix",), ("packed",),
    ("padding",), ("causal", "padding"), ("causal+window", "padding"), ("window", "padding"),
    ("causal", "packed"), ("causal", "packed", "padding"), ("causal+prefix", "padding"),
    ("packed", "padding"), ("window", "packed"), ("chunked", "padding"), ("causal+prefix", "packed"),
    ("causal+window", "packed", "padding"),
]  # fmt: skip


def joined(draw, conditions, terms):
    """Conditions and terms as one mask, in one of the ways in which models write it."""
    if not terms and (not conditions or draw([True, False])):
        total = None
        for c in conditions:
            total = c if total is None else logical_and(total, c)
        return total
    low = draw([LOW, -1e9, -1e4, float("-inf")])
    if conditions and draw([True, False]):
        total = conditions[0]
        for c in conditions[1:]:
            total = logical_and(total, c)
        conditions = [total]
    spelt = []
    for c in conditions:
        ways = [lambda c=c: where(c, 0.0, low), lambda c=c: where(logical_not(c), low, 0.0)]
        if low != float("-inf"):
            ways += [
                lambda c=c: (1.0 - cast(c, dtype=f32)) * low,
                lambda c=c: cast(logical_not(c), dtype=f32) * low,
            ]
        spelt.append(draw(ways)())
    if len(conditions) == 1 and terms and draw([True, False]):
        return where(conditions[0], sum_of(terms), low)
    total = sum_of([*spelt, *terms])
    return cast(total, dtype=f64) if draw([True, False]) else total


def sum_of(terms):
    total = terms[0]
    for x in terms[1:]:
        total = total + x
    return total

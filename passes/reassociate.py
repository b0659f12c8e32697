"""`(A B) C` or `A (B C)`, whichever costs less: quadratic products become linear, exactly.

Attention without a softmax is `(Q K^T) V`, two products of size n^2; `Q (K^T V)` is the same with
none. What may stand between the products is what acts on rows: constants, one number a row, a
normaliser `sum_j (A B)_ij + eps`, and a causal mask, which makes it `linear_attention`; and a decay
with the distance (`decays.py`), which that op has too: retention and state space duals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..ir import Dim, Graph, No, Op, Value, cost, replace
from ..ir.core import build
from ..ir.ops.activation import as_dtype
from ..ir.ops.attention import swap
from ..ir.ops.elementwise import mul
from ..ir.ops.linear import linear, matmul
from ..ir.ops.linear_attention import linear_attention
from ..ir.ops.reduce import sum_
from ..ir.ops.shape import expand, reshape
from ..ir.rewrite import current_journal
from .attention import transposed
from .decays import Decay, decay_of
from .fold import constant
from .masks import classify, uniform
from .pipeline import pass_
from .running import running_product
from .weighing import cheaper, flops

BETWEEN = frozenset({"matmul", "mul", "div", "neg", "tril", "where"})
"""What a factor of scores is looked for behind."""


@pass_
def reassociate(graph: Graph, *, sizes: Mapping[str, int] = {}) -> Graph:
    """Regroup products of three matrices by their cost; changes no result.

    sizes: values of symbolic dims to compare at, best those of the example inputs. The result is
    the same either way, so where the cheaper order is not provable, comparing at a guess is sound.
    """
    record = current_journal()
    search = _Search(graph, sizes)

    def make(op: Op, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        search.now.update((a, b) for a, b in zip(op.args, inputs, strict=True) if a and b)
        if record.spent:
            return None
        for rule, attempt in search.attempts.get(op.name, {}).items():
            result = attempt(op)
            if result is not None:
                record.record(rule, op, result)
            if isinstance(result, Value):
                return (result,)
        return None

    return replace(graph, make, via="reassociate")


@dataclass(frozen=True)
class _Step:
    """What is done to the rows of a product: the op, a factor [.., n, 1], a mask, a decay."""

    op: Op
    inner: Value
    other: Value | None = None
    causal: bool = False
    decay: Decay | None = None

    @property
    def moves(self) -> bool:
        """Whether it is done to the rows of the result instead."""
        return not self.causal and self.decay is None


@dataclass
class _Chain:
    """What happens to the product A B, row by row, before it meets C; all in the old graph."""

    product: Op
    steps: list[_Step] = field(default_factory=list)  # innermost first
    values: list[Value] = field(default_factory=list)  # the product, then the result of each step
    sums: list[Op] = field(default_factory=list)


class _Search:
    def __init__(self, graph: Graph, sizes: Mapping[str, int]):
        self.graph, self.sizes = graph, sizes
        self.kept = {*graph.outputs, *graph.updates.values()}
        self.now: dict[Value, Value] = {}
        """New values of the operands of every op met so far."""
        self.decays: dict[Value, Decay | No | None] = {}
        self.attempts: dict[str, dict[str, Callable[[Op], Value | No | None]]] = {
            "matmul": {
                "running_product": self.running, "product_first": self.right,
                "product_last": self.left, "layer_last": self.inside,
            },
            "sum": {"running_product": self.running},
            "linear": {"layer_first": self.outside},
        }  # fmt: skip
        """What is tried at an op, by the name of the rule."""

    def running(self, op: Op) -> Value | No | None:
        """Queries times running sums of outer products."""
        return running_product(op, self.now, self.graph, self.sizes)

    def left(self, op: Op) -> Value | No | None:
        """A (B C) as (A B) C."""
        a, inner = op.args
        if a is None or inner is None or inner.op.name != "matmul" or not self.single(inner):
            return None
        b, c = (self.now[x] for x in inner.op.args if x is not None)
        if c.rank > b.rank or self.now[a].rank > b.rank:
            return None
        result = matmul(matmul(self.now[a], b), c)
        before = cost(op).flops + cost(inner.op).flops
        after = cost(result.op).flops + cost(result.op.args[0].op).flops
        less = result.type == op.types[0] and cheaper(self.graph, before, after, self.sizes)
        return result if less else None

    def outside(self, op: Op) -> Value | None:
        """(C h) W + bias as C (h W) + bias, where W is of a linear layer."""
        mixed, w, *bias = op.args
        if mixed.op.name != "matmul" or not self.single(mixed):
            return None
        c, h = (self.now[x] for x in mixed.op.args)
        result = matmul(c, linear(h, self.now[w]))
        for b in bias:
            result = result + self.now[b]
        return self.less(op, mixed.op, result)

    def inside(self, op: Op) -> Value | None:
        """C (h W) as (C h) W, where W is of a linear layer."""
        c, layer = op.args
        if layer.op.name != "linear" or len(layer.op.args) > 2 or not self.single(layer):
            return None
        h, w = (self.now[x] for x in layer.op.args)
        return self.less(op, layer.op, linear(matmul(self.now[c], h), w)) if h.rank >= 2 else None

    def less(self, op: Op, inner: Op, result: Value) -> Value | None:
        """The result in place of two ops, if it is of the same type and costs less."""
        before, after = flops({op, inner}), flops(result, set(self.now.values()))
        typed = result.type == op.types[0]
        return result if typed and cheaper(self.graph, before, after, self.sizes) else None

    def right(self, op: Op) -> Value | No | None:
        """(A B) C as A (B C), through what acts on the rows of A B."""
        weights, c = op.args
        if weights is None or c is None:
            return None
        chain = self.chain(weights)
        if chain is None or isinstance(chain, No):
            return chain
        result = self.rebuilt(chain, self.now[c])
        if result is None or isinstance(result, No):
            return result
        old = {op, chain.product, *chain.sums, *(step.op for step in chain.steps)}
        before, after = flops(old), flops(result, set(self.now.values()))
        if result.type != op.types[0]:
            return No(f"regrouped it is {result.type}, not {op.types[0]}", op.results[0])
        return result if cheaper(self.graph, before, after, self.sizes) else None

    def single(self, x: Value) -> bool:
        return len(self.graph.uses(x)) == 1 and x not in self.kept

    def chain(self, x: Value) -> _Chain | No | None:
        """The steps from a product of two matrices to x."""
        steps: list[_Step] = []
        while x.op.name != "matmul":
            step = self.step(x)
            if not isinstance(step, _Step):
                return step
            steps.append(step)
            x = step.inner
        steps.reverse()
        chain = _Chain(x.op, steps, [x, *(step.op.results[0] for step in steps)])
        for at, value in enumerate(chain.values):
            follows = chain.steps[at].op if at < len(chain.steps) else None
            for user in self.graph.uses(value):
                if user.name == "sum" and _over_rows(user):
                    chain.sums.append(user)
                elif user is not follows and follows is not None:
                    return No("the product of queries and keys is used elsewhere too", value)
            if value in self.kept or (follows is None and not self.once(value, chain)):
                return No("the product of queries and keys is used elsewhere too", value)
        if not self.closed(chain):
            return No("a sum over the product is used elsewhere too, which keeps it", x)
        return chain

    def closed(self, chain: _Chain) -> bool:
        """Whether sums over the product's rows go into the factors of its rows and nowhere else."""
        inside = {step.op for step in chain.steps}
        stack = [step.other for step in chain.steps if step.other is not None]
        factors: set[Op] = set()
        while stack:
            value = stack.pop()
            if value.op not in factors and value not in chain.values and self.depends(value, chain, 8):
                factors.add(value.op)
                stack.extend(value.op.operands)
        made = [value for op in {*factors, *chain.sums} for value in op.results]
        inside |= factors
        return not any(v in self.kept or set(self.graph.uses(v)) - inside for v in made)

    def once(self, value: Value, chain: _Chain) -> bool:
        return len([u for u in self.graph.uses(value) if u not in chain.sums]) == 1

    def rebuilt(self, chain: _Chain, c: Value) -> Value | No | None:
        a, b = (self.now[x] for x in chain.product.args if x is not None)
        fused = self.normaliser(chain)
        if fused is not None:
            result = self.causal_product(a, b, c, chain.steps[:1], True, fused)
            if result is not None:
                return result
        result = self.through(chain, len(chain.steps), a, b, c)
        if result is None and any(s.decay for s in chain.steps) and not any(s.causal for s in chain.steps):
            return No(
                "its scores decay with the distance, but no mask of the future is over them", chain.values[-1]
            )
        if result is None:
            return No("a factor of its rows depends on the product itself", chain.values[0])
        return result

    def normaliser(self, chain: _Chain) -> float | None:
        """eps, when all that happens is a causal mask and a division by the sum of the row + eps."""
        if [step.op.name for step in chain.steps[1:]] != ["div"] or not chain.steps[0].causal:
            return None
        divisor, eps = chain.steps[1].other, 0.0
        if divisor is not None and divisor.op.name == "add":
            eps, divisor = uniform(divisor.op.args[1]), divisor.op.args[0]  # type: ignore[assignment]
        if divisor is None or divisor.op not in chain.sums or not divisor.op.attrs["keepdim"]:
            return None
        return eps if divisor.op.args[0] is chain.values[1] else None

    def through(self, chain: _Chain, count: int, a: Value, b: Value, c: Value) -> Value | None:
        """The first `count` steps on (a b) c."""
        inner = [step for step in chain.steps[:count] if not step.moves]
        if any(step.causal for step in inner):
            result = self.causal_product(a, b, c, inner)
        elif any(step.decay is not None and step.decay.log is not None for step in inner):
            return None
        else:
            weighed = b
            for step in inner:  # weights of keys
                assert step.other is not None
                weighed = mul(weighed, self.now[step.other])
            result = matmul(a, matmul(weighed, c))
        return None if result is None else self.stepped(chain, count, result, a, b)

    def stepped(self, chain: _Chain, count: int, result: Value, a: Value, b: Value) -> Value | None:
        """The first `count` steps, but masks and decays, on `result`."""
        for step in chain.steps[:count]:
            if not step.moves:
                continue
            op, other = step.op, step.other
            operands: list[Value | None] = [result]
            if other is not None:
                factor = self.row(other, chain, a, b)
                if factor is None:
                    return None
                operands.append(factor)
            result = build(op.defn, operands, op.attrs).results[0]
        return result

    def row(self, x: Value, chain: _Chain, a: Value, b: Value, depth: int = 8) -> Value | None:
        """A factor of rows [.., n, 1] where sums over the product's rows are regrouped too."""
        if x.op.name == "reshape" and x.op.args[0].op in chain.sums:
            x = x.op.args[0]  # sum(-1).unsqueeze(-1)
        if x.op in chain.sums:
            at = chain.values.index(x.op.args[0])
            if not all(step.moves for step in chain.steps[:at]):
                column = build_ones(transposed(b))
                return self.through(chain, at, a, b, column)
            total = matmul(a, sum_(b, dim=(b.rank - 1,), keepdim=True))
            return self.stepped(chain, at, total, a, b)
        if not self.depends(x, chain, depth):
            return self.now.get(x)
        if x.op.name not in ("add", "sub", "mul", "maximum", "clamp", "reciprocal") or not depth:
            return None
        parts = [None if v is None else self.row(v, chain, a, b, depth - 1) for v in x.op.args]
        if any(p is None and v is not None for p, v in zip(parts, x.op.args, strict=True)):
            return None
        return build(x.op.defn, parts, x.op.attrs).results[0]

    def depends(self, x: Value, chain: _Chain, depth: int) -> bool:
        if x in chain.values or depth == 0:
            return True
        return any(self.depends(v, chain, depth - 1) for v in x.op.operands)

    def causal_product(
        self, q: Value, kt: Value, v: Value, steps: Sequence[_Step], normalize: bool = False, eps: float = 0.0
    ) -> Value | None:
        """Rows of (q kt) v under masks and decays, perhaps normalised, in linear time."""
        k, batch = transposed(kt), q.shape[:-2]
        same = k.shape[:-2] == v.shape[:-2] == batch and q.shape[-2] == k.shape[-2]
        if not same or not 3 <= q.rank <= 4 or not q.dtype.is_float or not any(s.causal for s in steps):
            return None
        lead = batch if q.rank == 4 else (*batch, 1)
        q, k, v = (_folded(x, (*lead, *x.shape[-2:])) for x in (q, k, v))
        decays = [step.decay for step in steps if step.decay is not None]
        if q.rank != 4 or (len(batch) == 1 and not all(d.shared for d in decays)):
            return None
        (b, h, n, _), given = q.shape, q.dtype
        logs = [log for decay in decays if (log := decay.of(b, h, n)) is not None]
        for decay in decays:
            k = k if decay.columns is None else as_dtype(k * swap(decay.columns), given)
        if normalize and any(decay.rows is not None for decay in decays):
            return None
        log = logs[0] if len(logs) == 1 else None
        if len(logs) > 1:
            whole = [expand(_tokens(x), size=(b, h, n)) for x in logs]
            log = functools.reduce(lambda x, y: x + y, whole)
        out = linear_attention(q, k, v, log, causal=True, normalize=normalize, eps=eps)
        for decay in decays:
            out = out if decay.rows is None else as_dtype(out * decay.rows, given)
        return _folded(out, (*batch, *out.shape[-2:]))

    def step(self, x: Value) -> _Step | No | None:
        """What x does to the rows of a product, or why it is nothing that rows can bear."""
        op = x.op
        if op.name == "neg":
            return _Step(op, op.args[0])
        if op.name == "tril" and op.attrs["diagonal"] == 0:
            return _Step(op, op.args[0], causal=True)
        if op.name == "where" and uniform(op.args[2]) == 0 and op.args[1].type == x.type:
            return _Step(op, op.args[1], causal=True) if _is_causal(op.args[0]) else None
        if op.name not in ("mul", "div"):
            return None
        why: No | None = None
        for inner, other in (op.args, op.args[::-1])[: 2 if op.name == "mul" else 1]:
            if inner.type != x.type or inner.op.name == "const":
                continue
            if other.rank == 0 or other.shape[-1] == 1:
                return _Step(op, inner, other)
            if op.name == "mul" and _is_causal_factor(other):
                return _Step(op, inner, causal=True)
            if op.name == "mul" and (other.rank == 1 or other.shape[-2] == 1) and other in self.now:
                weights = self.now[other]  # of keys
                weights = reshape(weights, shape=(*(1,) * (4 - other.rank), *other.shape))
                return _Step(op, inner, other, decay=Decay(None, None, weights, False))
            if op.name == "mul" and other in self.now and inner.op.name in BETWEEN:
                if other not in self.decays:
                    self.decays[other] = decay_of(self.now[other])
                found = self.decays[other]
                if isinstance(found, Decay):
                    return _Step(op, inner, causal=found.causal, decay=found)
                why = found if why is None else why
        return None if why is None else No(why.reason, x)


def _is_causal(condition: Value) -> bool:
    found = classify(condition) if 2 <= condition.rank <= 4 else None
    return found is not None and found.kind == "causal" and found.offset == 0


def _is_causal_factor(x: Value) -> bool:
    """Whether x is 1 where j <= i and 0 elsewhere."""
    while x.op.name == "reshape" or (x.op.name == "cast" and x.op.args[0].dtype.kind != "b"):
        x = x.op.args[0]
    if x.op.name == "cast":
        return _is_causal(x.op.args[0])
    return x.op.name == "tril" and x.op.attrs["diagonal"] == 0 and uniform(x.op.args[0]) == 1


def _over_rows(op: Op) -> bool:
    x = op.args[0]
    return x is not None and op.attrs["dim"] == (x.rank - 1,) and op.attrs["dtype"] in (None, x.dtype)


def _tokens(log: Value) -> Value:
    return log if log.rank == 3 else reshape(log, shape=(1, log.shape[0], 1))


def _folded(x: Value, shape: tuple[Dim, ...]) -> Value:
    number = uniform(x)
    if x.shape == shape:
        return x
    return reshape(x, shape=shape) if number is None else constant(number, x.type.with_(shape=shape))


def build_ones(k: Value) -> Value:
    """A column of ones beside keys [.., m, d]: [.., m, 1]."""
    return constant(1.0, k.type.with_(shape=(*k.shape[:-1], 1)))

"""Pipelines and their text, undoing and bisection, recognition from spellings, sites, regrouping."""

import math

import numpy as np
import pytest

from subquad.ir import (
    OPS,
    Graph,
    IRError,
    No,
    RecipeError,
    TensorType,
    building,
    cost,
    evaluate,
    isomorphic,
    parse,
    replace,
    rewrite,
    rule,
    symbol,
)  # fmt: skip
from subquad.ir.dims import evaluate as evaluate_dim
from subquad.ir.ops.activation import softmax
from subquad.ir.ops.attention import attention as attention_op
from subquad.ir.ops.attention import band
from subquad.ir.ops.elementwise import (
    cast,
    erf,
    exp,
    ge,
    le,
    log,
    logical_and,
    logical_not,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    reciprocal,
    relu,
    rsqrt,
    sigmoid,
    sqrt,
    tanh,
    where,
)  # fmt: skip
from subquad.ir.ops.index import arange
from subquad.ir.ops.linear import matmul
from subquad.ir.ops.reduce import amax, mean, sum_
from subquad.ir.ops.shape import cat, expand, permute, reshape, slice_, tril, triu
from subquad.ir.types import bf16, bool_, f32, i64
from subquad.passes import (
    EXACT,
    PASSES,
    Pipeline,
    attention,
    canonicalize,
    find_sites,
    fold,
    possible_gains,
    reassociate,
    recognize,
)  # fmt: skip
from subquad.passes.options import options_of
from subquad.passes.pipeline import Pass, difference, pass_

B, N, M = symbol("b"), symbol("n"), symbol("m")
SIZES = {"b": 2, "n": 7, "m": 5}
LOW = -3.4028234663852886e38
HEADS = (B, 4, N, 8)


def build(function, *types):
    """`function` of inputs of these types (shapes are f32) as a graph."""
    types = [t if isinstance(t, TensorType) else TensorType(f32, t) for t in types]
    with building():
        inputs = [OPS["input"](name=f"x{i}", type=t) for i, t in enumerate(types)]
        out = function(*inputs)
        return Graph("g", inputs, out if isinstance(out, tuple) else (out,))


def data(graph, sizes=SIZES, seed=0):
    """Inputs of the graph's types at these sizes."""
    rng = np.random.default_rng(seed)
    arrays = []
    for value in graph.inputs:
        shape = [evaluate_dim(d, sizes) for d in value.shape]
        kind = value.dtype.kind
        arrays.append(rng.standard_normal(shape) if kind == "f" else rng.random(shape) > 0.4)
    return arrays


def checker(graph, **options):
    """What a pipeline calls to compare graphs: their outputs on fixed inputs, in float64."""
    arrays = data(graph, **options)
    return lambda candidate: evaluate(candidate, arrays)[0]


def run(graph, pipeline=EXACT, **options):
    """The graph after a checked pipeline in which nothing had to be undone; and idempotent."""
    after, steps = pipeline.run(graph, checker(graph, **options))
    assert [step.undone for step in steps if step.undone] == []
    assert all(step.error is not None and step.error < 1e-12 for step in steps)
    again, _ = pipeline.run(after)
    assert again is after
    return after


def names(graph):
    """Names of the ops that compute, sorted."""
    return sorted(op.name for op in graph.ops() if op.name not in ("input", "const", "param"))


# ---- pipelines and their text --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "canonicalize",
        "canonicalize,fold,recognize,attention,reassociate,canonicalize",
        "recognize{only=recognize_rope,recognize_silu}",
        'linearize{recipes=layers.0:elu1,"*":"window(size=32)"}',
        "reassociate{sizes=b:1,n:4096},canonicalize;limit=12",
    ],
)
def test_text_round_trips(text):
    """A pipeline prints what it was parsed from, up to needless quotes."""
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text.replace('"*"', "*") and Pipeline.parse(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected a name"),
        ("canonicalise", "did you mean 'canonicalize'"),
        ("canonicalize,", "expected a name"),
        ("canonicalize recognize", "expected ',' or ';'"),
        ("canonicalize{", "expected a name"),
        ("canonicalize{onyl=a}", "no option 'onyl'; did you mean 'only'"),
        ("canonicalize{only=permute_of_permut}", "did you mean 'permute_of_permute'"),
        ("canonicalize{only=a:b}", "a list"),
        ("canonicalize{only=cat_of_one only=cat_of_one}", "given twice"),
        ("linearize{recipes=elu1}", "a mapping"),
        ("reassociate{sizes=n:many}", "an integer"),
        ("canonicalize;limit=-1", "limit=<a number>"),
        ("canonicalize;limit=1x", "limit=<a number>"),
        ('canonicalize{only="}', "cannot read"),
        ('canonicalize{only="\\q"}', "malformed string"),
    ],
)
def test_malformed_text_points_at_the_place(text, message):
    """Every failure is an IRError with a caret under the place."""
    with pytest.raises(IRError) as caught:
        Pipeline.parse(text)
    assert message in str(caught.value) and str(caught.value).splitlines()[-1].strip() == "^"


def test_options_come_from_signatures():
    """Kinds are read off annotations; others are refused where the pass is written."""

    def options(graph, *, a: bool = False, b: int = 1, c: float | None = None, d: str = ""):
        pass

    found = options_of(options)
    assert {name: option.item for name, option in found.items()} == {
        "a": bool, "b": int, "c": float, "d": str
    }  # fmt: skip
    made = Pass("p", options, found)
    assert str(made.with_(a=True, b=3, c=0.5, d="x y")) == 'p{a=true b=3 c=0.5 d="x y"}'
    assert made.with_(b=1) == made
    for wrong in ({"a": 1}, {"b": "1"}, {"b": True}, {"c": [1]}, {"e": 1}):
        with pytest.raises(IRError):
            made.with_(**wrong)
    with pytest.raises(IRError, match="cannot be an option"):
        options_of(lambda graph, *, a: a)
    with pytest.raises(IRError, match="declared twice"):
        pass_(PASSES["canonicalize"].function)


def test_pipelines_nest_and_compare():
    """A pipeline inside another is its passes; equal passes are equal."""
    inner = Pipeline(canonicalize, fold)
    assert Pipeline(inner, recognize).passes == (canonicalize, fold, recognize)
    assert Pipeline.parse("canonicalize,fold") == inner and hash(inner.passes[0]) == hash(canonicalize)


def test_limit_counts_over_the_whole_run():
    """The n-th application is the last, whichever pass it falls into."""
    graph = build(lambda x: neg(neg(neg(neg(pow(x, 2))))) * sigmoid(pow(x, 2)), (N, 4))
    everything = Pipeline(canonicalize, recognize)
    _, steps = everything.run(graph)
    total = sum(sum(step.applied.values()) for step in steps)
    assert total >= 3
    for limit in range(total + 2):
        after, steps = Pipeline(everything, limit=limit).run(graph)
        assert sum(sum(step.applied.values()) for step in steps) == min(limit, total)
        assert (after is graph) == (limit == 0)


def test_steps_tell_what_happened():
    """Graphs, events, counts, refusals, times."""
    graph = build(lambda x: exp(x) / sum_(exp(x), dim=1, keepdim=True) + neg(neg(x)), (N, 4))
    after, steps = Pipeline(canonicalize, recognize).run(graph, checker(graph))
    first, second = steps
    assert first.before is graph and second.after is after and first.after is second.before
    assert first.applied == {"negated_twice": 1} and first.seconds >= 0 and first.error == 0
    (refused,) = second.refused
    assert refused.rule == "softmax_without_maximum" and "overflows" in refused.result.reason
    assert {op.name for op in first.diff.removed} == {"neg", "add"}
    assert (first.name, Pipeline.parse("canonicalize{only=cat_of_one}").run(graph)[1][0].text) == (
        "canonicalize", "canonicalize{only=cat_of_one}"
    )  # fmt: skip


# ---- undoing -------------------------------------------------------------------------------------


def planted(rules, name="planted", exact=True):
    """A pass outside the registry."""
    rules = tuple(rules)
    return Pass(name, lambda graph: rewrite(graph, rules), {}, exact=exact, rules=rules)


@rule(lambda x: exp(x), exact=False)
def exp_once_wrong(x):
    return relu(x) if x.op.name == "tanh" else None


@rule(lambda x: sigmoid(x))
def sigmoid_as_silu(x):
    return x * reciprocal(x) * sigmoid(x) if x.op.name == "input" else None


@rule(lambda x: log(x))
def log_raises(x):
    raise KeyError("no such weight")


def chain(x):
    for _ in range(6):
        x = neg(neg(x)) + sigmoid(x)
    return exp(tanh(x)) + x


def test_a_wrong_rule_is_found_and_undone():
    """Bisection ends at the one application that breaks the result, among many that do not."""
    with building() as builder:
        x = OPS["input"](name="x", type=TensorType(f32, (N, 4)))
        builder.source = "layers.0.mlp (model.py:7)"
        graph = Graph("g", (x,), (chain(x),))
    rules = (*PASSES["canonicalize"].rules, exp_once_wrong)
    after, steps = Pipeline(canonicalize, planted(rules), recognize).run(graph, checker(graph))
    assert [bool(step.undone) for step in steps] == [False, True, False]
    bad = steps[1]
    assert bad.after is bad.before and bad.error > 1e-3
    place = "layers.0.mlp (model.py:7)"
    for words in ("'exp_once_wrong' is guilty", "exp(f32[n,4])", place, "over the bound"):
        assert words in bad.undone
    good, _ = Pipeline(canonicalize, recognize).run(graph)
    assert isomorphic(after, good)


def test_the_guilty_application_is_counted():
    """It is the third of five here; an application that cancels out is not guilty."""

    @rule(lambda x, c: x + c)
    def nudge(x, c):
        return x + (c.number + (1e-3 if c.number == 3 else 0)) * 1.0 if c.number < 9 else None

    @rule(lambda x, c: x * c)
    def halve(x, c):
        return (x * 0.5) * (c.number * 2) if c.number == 3 else None

    graph = build(lambda x: (((x + 1.0) * 3.0 + 2.0) + 3.0) + 9.0, (N,))
    once = Pass("once", lambda g: rewrite_once(g, (nudge, halve)), {})
    _, (step,) = Pipeline(once).run(graph, checker(graph))
    assert "rule 'nudge' is guilty" in step.undone and "application 4 of 4" in step.undone


def rewrite_once(graph, rules):
    """Each rule at most once an op, so that rules that feed themselves can be tested."""
    from subquad.ir.rewrite import current_journal

    record = current_journal()

    def make(op, inputs):
        from subquad.ir import rebuild

        new = rebuild(op, inputs).results[0]
        for tried in rules:
            result = None if record.spent else tried.apply(new)
            if result is not None:
                record.record(tried.name, op, result)
                return (result,)
        return None

    return replace(graph, make)


def test_a_pass_that_raises_is_undone_and_named():
    """With the rule, the op and the error; the passes after it run."""
    graph = build(lambda x: neg(neg(log(x))), (N,))
    after, steps = Pipeline(planted([log_raises]), canonicalize).run(graph)
    assert "rule 'log_raises' raised at log(f32[n])" in steps[0].undone
    assert "KeyError" in steps[0].undone and steps[0].after is graph
    assert names(after) == ["log"]
    with pytest.raises(IRError, match="log_raises"):
        Pipeline(planted([log_raises]))(graph)


def test_a_pass_that_is_no_rules_is_named_itself():
    """No application is to blame: the pass is."""
    zero = Pass("zero", lambda g: g.with_([v * 0.0 for v in g.outputs]), {})
    broken = Pass("broken", lambda g: 1 / 0, {})
    graph = build(lambda x: x + 1.0, (N,))
    after, steps = Pipeline(zero, broken).run(graph, checker(graph))
    assert after is graph and "the pass itself is guilty: zero" in steps[0].undone
    assert "ZeroDivisionError" in steps[1].undone


def test_a_result_that_does_not_run_is_undone():
    """The checker may raise: the message is kept."""
    graph = build(lambda x: x + 1.0, (N,))
    calls = []

    def check(candidate):
        calls.append(candidate)
        if len(calls) > 1:
            raise RuntimeError("no kernel")
        return checker(graph)(candidate)

    _, (step,) = Pipeline(planted([nan_rule])).run(graph, check)
    assert "the result does not run: RuntimeError: no kernel" in step.undone


@rule(lambda x, c: x + c)
def nan_rule(x, c):
    return x + float("nan") if c.number == 1 else None


def test_nan_and_infinity_count_as_wrong():
    """Wherever they were not before, or were."""
    graph = build(lambda x: x + 1.0, (N,))
    _, (step,) = Pipeline(planted([nan_rule])).run(graph, checker(graph))
    assert step.error == math.inf and "nan_rule" in step.undone
    nan, inf = np.array([np.nan, 1.0]), np.array([np.inf, 1.0])
    assert difference([nan], [nan]) == 0 and difference([inf], [-inf]) == math.inf
    assert difference([nan], [inf]) == math.inf and difference([inf], [inf]) == 0
    assert difference([np.ones(2)], [np.ones(3)]) == math.inf
    assert difference([np.array([True])], [np.array([False])]) == math.inf
    assert difference([], [np.ones(1)]) == math.inf
    assert difference([np.array([1.0, 100.0])], [np.array([2.0, 100.0])]) == pytest.approx(0.01)


def test_approximate_passes_stay_and_move_the_reference():
    """Their error is told; later exact passes are held against what they made."""
    rough = planted([exp_once_wrong], "rough", exact=False)
    graph = build(lambda x: neg(neg(exp(tanh(x)))), (N,))
    after, steps = Pipeline(rough, canonicalize).run(graph, checker(graph))
    assert steps[0].error > 0.01 and steps[0].undone is None and steps[1].undone is None
    assert names(after) == ["relu", "tanh"]


def test_interrupts_say_what_had_run():
    """Only errors in what was asked for, and interrupts, escape; both carry the passes run."""

    def stop(graph):
        raise KeyboardInterrupt

    graph = build(lambda x: x + 1.0, (N,))
    with pytest.raises(KeyboardInterrupt) as caught:
        Pipeline(canonicalize, fold, Pass("stop", stop, {})).run(graph)
    assert caught.value.__notes__ == ["passes already run: canonicalize, fold"]
    with pytest.raises(RecipeError):
        Pipeline.parse("linearize{recipes=a:b}").run(graph)


# ---- recognition ---------------------------------------------------------------------------------


def llama_norm(x, w):
    h = cast(x, dtype=f32)
    h = h * rsqrt(mean(pow(h, 2), dim=-1, keepdim=True) + 1e-6)
    return w * cast(h, dtype=x.dtype)


def gemma_norm(x, w):
    h = cast(x, dtype=f32)
    h = h * pow(mean(pow(h, 2), dim=-1, keepdim=True) + 1e-6, -0.5)
    return cast(h * (1.0 + cast(w, dtype=f32)), dtype=x.dtype)


def spelled_layer_norm(x, w, b):
    u = mean(x, dim=-1, keepdim=True)
    s = mean(pow(x - u, 2), dim=-1, keepdim=True)
    return (x - u) / sqrt(s + 1e-5) * w + b


def spelled_softmax(x):
    e = exp(x - amax(x, dim=-1, keepdim=True))
    return e / sum_(e, dim=-1, keepdim=True)


def spelled_rope(x, cos, sin):
    first, second = slice_(x, dim=3, start=0, end=4), slice_(x, dim=3, start=4, end=8)
    return (x * cos) + (cat(-second, first, dim=3) * sin)


X, W = (B, N, 8), (8,)
ROOT, TWO = math.sqrt(2 / math.pi), math.sqrt(2)
narrow = TensorType(bf16, X), TensorType(bf16, W)


@pytest.mark.parametrize(
    "function, types, expected",
    [
        (llama_norm, (X, W), ["rms_norm"]),
        (llama_norm, narrow, ["rms_norm"]),
        (gemma_norm, (X, W), ["add", "rms_norm"]),
        (gemma_norm, narrow, ["add", "cast", "cast", "cast", "rms_norm"]),
        (lambda x: x / sqrt(mean(x * x, dim=-1, keepdim=True) + 1e-6), (X,), ["rms_norm"]),
        (spelled_layer_norm, (X, W, W), ["layer_norm"]),
        (lambda x: 0.5 * x * (1.0 + tanh(ROOT * (x + 0.044715 * pow(x, 3.0)))), (X,), ["gelu"]),
        (lambda x: 0.5 * (x * (1.0 + tanh(ROOT * (x + 0.044715 * x * x * x)))), (X,), ["gelu"]),
        (lambda x: 0.5 * x * (1.0 + tanh(x * ROOT * (1.0 + 0.044715 * x * x))), (X,), ["gelu"]),
        (lambda x: x * 0.5 * (1.0 + erf(x / TWO)), (X,), ["gelu"]),
        (lambda x: x * (0.5 * (1.0 + erf(x * (1 / TWO)))), (X,), ["gelu"]),
        (lambda x: x * sigmoid(x), (X,), ["silu"]),
        (lambda x: x * (1.0 / (1.0 + exp(-x))), (X,), ["silu"]),
        (lambda x, y: y * (x / (1.0 + exp(-x))), (X, X), ["swiglu"]),
        (lambda x, y: (x * 0.5 * (1.0 + erf(x / TWO))) * y, (X, X), ["geglu"]),
        (spelled_softmax, (X,), ["softmax"]),
        (lambda x: log(sum_(exp(x - amax(x, dim=2, keepdim=True)), dim=2, keepdim=True)), (X,),
         ["amax", "exp", "log", "sub", "sum"]),
        (spelled_rope, (HEADS, (1, 1, N, 8), (1, 1, N, 8)), ["rope"]),
    ],
)  # fmt: skip
def test_spellings_are_recognised(function, types, expected):
    """Hugging Face's spellings end as one op, equal on data."""
    assert names(run(build(function, *types))) == expected


@pytest.mark.parametrize(
    "function, shapes, reason",
    [
        (lambda x: x * rsqrt(mean(x * x, dim=1, keepdim=True) + 1e-6), (X,), "not the last"),
        (lambda x: 0.5 * x * (1.0 + tanh(0.8 * (x + 0.044715 * pow(x, 3.0)))), (X,), "constants"),
        (lambda x: x * 0.5 * (1.0 + erf(x / 1.5)), (X,), "not gelu"),
        (lambda x: exp(x) / sum_(exp(x), dim=-1, keepdim=True), (X,), "overflows"),
        (
            lambda x, c, s: (
                x * c + cat(-slice_(x, dim=3, start=2, end=8), slice_(x, dim=3, start=0, end=2), dim=3) * s
            ),
            (HEADS, HEADS, HEADS),
            "not the halves",
        ),
    ],
)
def test_near_misses_are_refused_with_a_reason(function, shapes, reason):
    """One condition broken each."""
    graph = build(function, *shapes)
    _, (_, step) = Pipeline(canonicalize, recognize).run(graph)
    assert any(reason in event.result.reason for event in step.refused)


# ---- attention -----------------------------------------------------------------------------------


def swap(x):
    return permute(x, dims=(*range(x.rank - 2), x.rank - 1, x.rank - 2))


def causal(n=N, m=N, low=LOW):
    return where(band(n, m, causal=True), 0.0, low)


def eager(q, k, v, mask=None, scale=0.35):
    """eager_attention_forward of Hugging Face."""
    w = matmul(q, swap(k)) * scale
    w = w if mask is None else w + mask
    return matmul(cast(softmax(cast(w, dtype=f32), dim=-1), dtype=q.dtype), v)


def repeated(x, r=2):
    """repeat_kv."""
    b, g, n, d = x.shape
    wide = expand(reshape(x, shape=(b, g, 1, n, d)), size=(b, g, r, n, d))
    return reshape(wide, shape=(b, g * r, n, d))


def folded(q, k, v):
    """torch.baddbmm on [b*h, n, d], as GPT-NeoX, Bloom and nn.MultiheadAttention fold heads."""
    b, h, n, d = q.shape
    q3, k3, v3 = (reshape(x, shape=(b * h, n, d)) for x in (q, k, v))
    w = softmax(matmul(q3 * 0.35, swap(k3)), dim=-1)
    return reshape(matmul(w, v3), shape=(b, h, n, d))


KV2 = (B, 2, N, 8)
OPEN = ("none", False, 4)
SPELLINGS = {
    "scaled": (lambda q, k, v: eager(q, k, v), (HEADS,) * 3, OPEN),
    "divided": (lambda q, k, v: softmax(q @ swap(k) / math.sqrt(8), dim=-1) @ v, (HEADS,) * 3, OPEN),
    "prescaled": (lambda q, k, v: softmax((q * 0.3) @ swap(k), dim=-1) @ v, (HEADS,) * 3, OPEN),
    "both scaled": (lambda q, k, v: softmax((q * 0.6) @ swap(k * 0.6), dim=-1) @ v, (HEADS,) * 3, OPEN),
    "unscaled": (lambda q, k, v: softmax(q @ swap(k), dim=-1) @ v, (HEADS,) * 3, OPEN),
    "by exp and sum": (lambda q, k, v: spelled_softmax(q @ swap(k)) @ v, (HEADS,) * 3, OPEN),
    "folded": (folded, (HEADS,) * 3, OPEN),
    "three axes": (eager, ((B, N, 8), (B, M, 8), (B, M, 6)), ("none", False, 1)),
    "two axes": (eager, ((N, 8), (M, 8), (M, 6)), ("none", False, 1)),
    "grouped": (lambda q, k, v: eager(q, repeated(k), repeated(v)), (HEADS, KV2, KV2), ("none", False, 2)),
    "causal": (lambda q, k, v: eager(q, k, v, causal()), (HEADS,) * 3, ("causal", True, 4)),
    "causal, grouped": (
        lambda q, k, v: eager(q, repeated(k), repeated(v), causal()),
        (HEADS, KV2, KV2),
        ("causal", True, 2),
    ),
    "masked_fill": (
        lambda q, k, v: softmax(where(band(N, N, causal=True), q @ swap(k), LOW), dim=-1) @ v,
        (HEADS,) * 3,
        ("causal", True, 4),
    ),
    "masked_fill of triu": (
        lambda q, k, v: softmax(
            where(triu(expand(OPS["const"](value=True, dtype=bool_), size=(N, N)), diagonal=1),
                  float("-inf"), q @ swap(k)), dim=-1) @ v,
        (HEADS,) * 3,
        ("causal", True, 4),
    ),
    "masked_fill of tril == 0": (
        lambda q, k, v: softmax(
            where(logical_not(OPS["eq"](tril(expand(OPS["const"](value=1.0, dtype=f32), size=(N, N))), 0.0)),
                  q @ swap(k), float("-inf")), dim=-1) @ v,
        (HEADS,) * 3,
        ("causal", True, 4),
    ),
    "padded": (
        lambda q, k, v, keep: eager(q, k, v, where(reshape(keep, shape=(B, 1, 1, N)), 0.0, LOW)),
        (HEADS, HEADS, HEADS, TensorType(bool_, (B, N))),
        ("padding", False, 4),
    ),
    "padded and causal": (
        lambda q, k, v, keep: eager(
            q, k, v,
            where(logical_and(band(N, N, causal=True), reshape(keep, shape=(B, 1, 1, N))), 0.0, LOW)),
        (HEADS, HEADS, HEADS, TensorType(bool_, (B, N))),
        ("causal+padding", True, 4),
    ),
    "old BERT": (
        lambda q, k, v, keep: eager(
            q, k, v, (1.0 - cast(reshape(keep, shape=(B, 1, 1, N)), dtype=f32)) * LOW),
        (HEADS, HEADS, HEADS, TensorType(bool_, (B, N))),
        ("padding", False, 4),
    ),
    "soft-capped": (lambda q, k, v: softmax(tanh(q @ swap(k)), dim=-1) @ v, (HEADS,) * 3, OPEN),
    "mask before scale": (
        lambda q, k, v: softmax((q @ swap(k) + causal()) * 0.5, dim=-1) @ v,
        (HEADS,) * 3,
        ("causal", True, 4),
    ),
    "biased": (
        lambda q, k, v, bias: eager(q, k, v, bias),
        (HEADS, HEADS, HEADS, (1, 4, N, N)),
        ("bias", False, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_attention_is_raised(spelling):
    """Every spelling ends as one `attention`, with its mask proved and k and v un-expanded."""
    function, types, (kind, is_causal, kv_heads) = SPELLINGS[spelling]
    after = run(build(function, *types))
    (site,) = find_sites(after)
    assert (site.mask, site.kv_heads, site.decision) == (kind, kv_heads, "attention"), site.reason
    assert site.op.attrs["causal"] == is_causal
    assert (len(site.op.inputs) == 3) == (kind in ("none", "causal"))
    assert not {"softmax", "exp", "matmul"} & {op.name for op in after.ops()}


def test_masked_rows_keep_their_meaning():
    """A row whose keys are all masked is NaN after a softmax and 0 after SDPA: so it stays."""
    types = (HEADS, HEADS, HEADS, TensorType(bool_, (B, 1, 1, N)))
    spelled = lambda q, k, v, keep: softmax(where(keep, q @ swap(k), float("-inf")), dim=-1) @ v  # noqa: E731
    called = lambda q, k, v, keep: attention_op(q, k, v, keep, scale=1.0)  # noqa: E731
    for function, empty in ((spelled, "nan"), (called, "zero")):
        graph = build(function, *types)
        arrays = data(graph)
        arrays[3][0] = False
        after, _ = EXACT.run(graph)
        assert [op.attrs["empty"] for op in after.ops() if op.name == "attention"] == [empty]
        before, result = (evaluate(g, arrays)[0][0] for g in (graph, after))
        assert difference([before], [result]) < 1e-12
        assert np.isnan(result[0]).all() == (empty == "nan") and np.isfinite(result[1]).all()


def test_swin_bias_and_cross_lengths():
    """An additive bias per head, other numbers of keys, other widths of values."""
    shapes = ((B, 4, N, 8), (B, 4, M, 8), (B, 4, M, 6), (4, N, M))
    after = run(build(lambda q, k, v, bias: eager(q, k, v, bias), *shapes))
    (site,) = find_sites(after)
    assert (site.q_len, site.k_len, site.mask) == (N, M, "bias") and "proved" in site.reason


REFUSED = {
    "wrong axis": (lambda q, k, v: softmax(q @ swap(k), dim=-2) @ v, "axis 2 of 4, not over the keys"),
    "heads axis": (lambda q, k, v: softmax(q @ swap(k), dim=1) @ v, "axis 1 of 4, not over the keys"),
    "used elsewhere": (
        lambda q, k, v: (softmax(q @ swap(k), dim=-1) @ v, mean(softmax(q @ swap(k), dim=-1), dim=1)),
        "its weights are used elsewhere too",
    ),
    "returned": (
        lambda q, k, v: (softmax(q @ swap(k), dim=-1) @ v, softmax(q @ swap(k), dim=-1)),
        "its weights are used elsewhere too",
    ),
    "squared": (lambda q, k, v: softmax(pow(q @ swap(k), 2.0), dim=-1) @ v, "the scores are multiplied"),
    "mild masking": (
        lambda q, k, v: softmax(where(band(N, N, causal=True), q @ swap(k), -100.0), dim=-1) @ v,
        "still leaves them some weight",
    ),
    "classifier": (lambda q, k, v: softmax(q, dim=-1) + k + v, "meet no matrix product with values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_attention_stays(case):
    """Left as it was, listed as a site with the first reason."""
    function, reason = REFUSED[case]
    graph = build(function, HEADS, HEADS, HEADS)
    after = run(graph)
    assert "attention" not in {op.name for op in after.ops()}
    (site,) = find_sites(after)
    assert site.decision == "kept" and reason in site.reason
    assert (site.status, site.mask) == (("kept", "none") if "elsewhere" in reason else ("not attention", "?"))


MASKS = {
    "one key later": (lambda i, j: le(j, i + 1), "causal", {"offset": 1}),
    "own key masked": (lambda i, j: OPS["lt"](j, i), "causal", {"offset": -1, "empty": "zero"}),
    "the future": (lambda i, j: le(i, j), "dense", {"causal": False}),
    "past keys": (lambda i, j: logical_and(le(j, i), OPS["lt"](i, j + 4)), "causal+window", {"window": 4}),
    "every second key": (lambda i, j: le(j * 2, i), "dense", {"causal": False}),
    "itself only": (lambda i, j: OPS["eq"](i, j), "causal+window", {"window": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_only_look_causal(case):
    """Off by one, flipped, windowed: what they are, by the attributes of `attention`, or dense."""
    function, kind, attrs = MASKS[case]

    def masked(q, k, v):
        i = reshape(arange(end=N, dtype=i64), shape=(N, 1))
        return attention_op(q, k, v, function(i, arange(end=N, dtype=i64)), scale=1.0)

    graph = run(build(masked, HEADS, HEADS, HEADS), Pipeline(canonicalize, fold, attention))
    (site,) = find_sites(graph)
    assert site.mask == kind and attrs.items() <= dict(site.op.attrs).items()
    assert (len(site.op.inputs) == 4) == (kind == "dense") == bool(site.reason)


def test_masks_are_proved_through_index_arithmetic():
    """Offsets that cancel, redundant conditions, and padding that depends on keys only."""

    def masked(q, k, v, keep):
        i = reshape(arange(start=3, end=N + 3, dtype=i64), shape=(1, 1, N, 1))
        j = reshape(arange(end=N, dtype=i64) + 3, shape=(1, 1, 1, N))
        both = logical_and(ge(i, j), logical_and(ge(j, 0), reshape(keep, shape=(B, 1, 1, N))))
        return attention_op(q, k, v, expand(both, size=(B, 1, N, N)), scale=1.0)

    graph = build(masked, HEADS, HEADS, HEADS, TensorType(bool_, (B, N)))
    (site,) = find_sites(run(graph))
    assert site.mask == "causal+padding"
    gains = {str(r): r for _, r, _, _ in possible_gains(graph, {"b": 1, "n": 4096})}
    assert {"elu1", "taylor1", "window"} <= gains.keys()
    assert all("causal+padding" in r.masks and not r.needs for r in gains.values())
    assert list(possible_gains(graph, {"b": 1, "n": 2})) == []


# ---- regrouping ----------------------------------------------------------------------------------


def phi(x):
    return relu(x) + exp(minimum(x, 0.0))


def normalised(q, k, v, eps=1e-6, shape=None, mask=None, scale=1.0):
    """Linear attention written quadratically."""
    p = (phi(q) @ swap(phi(k))) * scale
    p = p if mask is None else mask(p)
    total = sum_(p, dim=-1, keepdim=shape is None)
    total = total if shape is None else reshape(total, shape=shape)
    return (p / (total + eps)) @ v


def lower(p):
    return where(band(N, N, causal=True), p, 0.0)


def lower_by_ones(p):
    return p * tril(expand(OPS["const"](value=1.0, dtype=f32), size=(N, N)))


QUADRATIC = {
    "plain": lambda q, k, v: (q @ swap(k)) @ v,
    "scaled": lambda q, k, v: ((q @ swap(k)) * 0.3) @ v,
    "divided": lambda q, k, v: ((q @ swap(k)) / 37.7) @ v,
    "normalised": normalised,
    "normalised, unsqueezed": lambda q, k, v: normalised(q, k, v, shape=(B, 4, N, 1)),
    "normalised, scaled": lambda q, k, v: normalised(q, k, v, scale=0.5),
    "by a reciprocal": lambda q, k, v: (
        (
            (phi(q) @ swap(phi(k)))
            * reciprocal(maximum(sum_(phi(q) @ swap(phi(k)), dim=-1, keepdim=True), 1e-3))
        )
        @ v
    ),
    "causal": lambda q, k, v: lower(q @ swap(k)) @ v,
    "causal, tril": lambda q, k, v: tril(q @ swap(k)) @ v,
    "causal, normalised": lambda q, k, v: normalised(q, k, v, mask=lower),
    "causal, times tril(ones)": lambda q, k, v: normalised(q, k, v, mask=lower_by_ones, scale=0.2),
}


def growth(graph):
    """How FLOPs grow when n doubles."""
    small, large = (evaluate_dim(cost(graph).flops, {"b": 1, "n": n, "m": n}) for n in (8192, 16384))
    return large / small


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("case", QUADRATIC)
def test_quadratic_products_become_linear(case, rank):
    """Exactly, with row factors, normalisers and causal masks between the products."""
    shape = HEADS if rank == 4 else (B, N, 8)
    if rank == 3 and "unsqueezed" in case:
        pytest.skip("its shape is written out")
    graph = build(QUADRATIC[case], shape, shape, shape)
    after = run(graph)
    assert growth(graph) > 3.9 and growth(after) < 2.01
    assert cost(after).flops != cost(graph).flops


def test_causal_normalised_is_one_op():
    """Mask, normaliser and eps are what linear_attention has."""
    after = run(build(QUADRATIC["causal, normalised"], HEADS, HEADS, HEADS))
    (op,) = [op for op in after.ops() if op.name == "linear_attention"]
    assert dict(op.attrs).items() >= {"causal": True, "normalize": True, "eps": 1e-6}.items()
    assert names(after) == sorted(["linear_attention", *2 * ["relu", "minimum", "exp", "add"]])


def test_products_that_are_used_elsewhere_stay():
    """The n^2 product is computed anyway: nothing is gained by computing around it."""
    graph = build(lambda q, k, v: (q @ swap(k)) @ v + tanh(q @ swap(k)) @ k, *3 * [HEADS])
    after, (step,) = Pipeline(reassociate).run(graph)
    assert after is graph
    assert any("used elsewhere" in event.result.reason for event in step.refused)


def test_grouping_is_chosen_by_cost():
    """Short sequences with wide heads keep the quadratic form; both directions; sizes decide."""
    wide, short = (B, 4, 16, 64), (B, 4, 128, 64)
    for shape, regrouped in ((wide, False), (short, True)):
        graph = build(QUADRATIC["plain"], shape, shape, shape)
        assert (Pipeline(reassociate)(graph) is graph) != regrouped
    open_ = build(QUADRATIC["plain"], HEADS, HEADS, HEADS)
    assert reassociate(open_, sizes={"n": 4}) is open_
    assert reassociate(open_, sizes={"n": 400}) is not open_
    chain = build(lambda a, b, c: a @ (b @ c), (3, 64), (64, 64), (64, 64))
    assert isomorphic(run(chain), build(lambda a, b, c: (a @ b) @ c, (3, 64), (64, 64), (64, 64)))


def test_softmax_is_never_regrouped():
    """It is no factor of rows."""
    graph = build(lambda q, k, v: softmax(q @ swap(k), dim=-1) @ v, *3 * [HEADS])
    assert reassociate(graph) is graph


# ---- folding -------------------------------------------------------------------------------------


def test_constants_are_computed():
    """Elementwise, through views, and where they neutralise or absorb."""
    one = lambda: expand(OPS["const"](value=1.0, dtype=f32), size=(N, 1))  # noqa: E731
    graph = build(lambda x: mul(x, (one() + 1.0) * 3.0) + where(ge(one(), 2.0), x, 0.0), (N, 4))
    expected = build(lambda x: x * 6.0 + expand(OPS["const"](value=0.0, dtype=f32), size=(N, 4)), (N, 4))
    assert isomorphic(fold(graph), fold(expected))
    assert difference(checker(graph)(graph), checker(graph)(fold(graph))) == 0


def test_a_number_that_a_narrow_dtype_would_round_is_not_folded():
    """0.1 + 0.2 in bf16 is what the backend makes of it."""
    narrow = lambda number: OPS["const"](value=number, dtype=bf16)  # noqa: E731
    x = TensorType(bf16, (N,))
    rounded = build(lambda x: x + (narrow(0.1) + narrow(0.2)), x)
    exact = build(lambda x: x + (narrow(0.5) + narrow(0.25)), x)
    assert fold(rounded) is rounded and names(fold(exact)) == ["add"]


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_of_positions(name):
    """Whatever is decided is so for every position; what is not provable stays."""
    for offset in (-2, -1, 0, 1, 2):
        for function in (
            lambda i, j, o=offset: OPS[name](i, o),
            lambda i, j, o=offset: OPS[name](i, j + o),
            lambda i, j, o=offset: OPS[name](i + o, i),
            lambda i, j, o=offset: OPS[name](i + j, o),
        ):

            def compared(x, function=function):
                i = reshape(arange(end=N, dtype=i64), shape=(N, 1))
                return where(function(i, arange(end=M, dtype=i64)), x, 0.0)

            graph = build(compared, (N, M))
            assert difference(checker(graph)(graph), checker(graph)(fold(graph))) == 0


def test_indexing_by_every_position_is_a_view():
    """x[arange(b)[:, None], arange(n)], perhaps transposed; not when a part is taken."""

    def indexed(x, *, rows=B, shift=0):
        i = reshape(arange(start=shift, end=rows + shift, dtype=i64), shape=(1, 1, rows))
        j = reshape(arange(end=N, dtype=i64), shape=(N, 1, 1))
        return OPS["index"](x, i, j)

    after = run(build(indexed, (B, N)))
    assert names(after) == ["permute", "reshape"] or names(after) == ["reshape", "permute"]
    for part in ({"rows": 1}, {"rows": M}):
        assert "index" in names(Pipeline(fold)(build(lambda x, p=part: indexed(x, **p), (B, N))))


# ---- everything together -------------------------------------------------------------------------


def encoder_layer(x, wq, wk, wv, keep):
    """One layer of attention in Hugging Face's spelling."""
    q, k, v = (
        permute(reshape(OPS["linear"](x, w), shape=(B, N, 4, 8)), dims=(0, 2, 1, 3)) for w in (wq, wk, wv)
    )
    mask = where(reshape(keep, shape=(B, 1, 1, N)), 0.0, LOW)
    out = permute(eager(q, k, v, mask, scale=8**-0.5), dims=(0, 2, 1, 3))
    return x + reshape(out, shape=(B, N, 32))


def test_the_default_pipeline():
    """Changes no result, is idempotent, keeps provenance, and its text reads back."""
    types = ((B, N, 32), (32, 32), (32, 32), (32, 32), TensorType(bool_, (B, N)))
    graph = build(encoder_layer, *types)
    after = run(graph)
    assert names(after).count("attention") == 1
    assert isomorphic(parse(str(after)), after)
    assert Pipeline.parse(str(EXACT)) == EXACT and all(p.exact for p in EXACT.passes)
    (op,) = [op for op in after.ops() if op.name == "attention"]
    assert op.via == "attention"


def test_every_pass_leaves_a_settled_graph_alone():
    """Not one op of a graph that has nothing to rewrite is made anew."""
    graph = run(build(lambda x, w: OPS["linear"](relu(x), w), (B, N, 8), (8, 8)))
    for each in (canonicalize, fold, recognize, attention, reassociate):
        assert each(graph) is graph


def test_refusals_are_values():
    """A No is falsy and carries where it happened."""
    graph = build(lambda q, k, v: softmax(q @ swap(k), dim=1) @ v, *3 * [HEADS])
    _, (step,) = Pipeline(attention).run(graph)
    (event,) = step.refused
    assert isinstance(event.result, No) and not event.result and event.result.at is not None

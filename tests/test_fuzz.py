"""The exact passes on thousands of random graphs, with every oracle we have.

2,000 graphs by default. The long run, which prints a summary:
    python -m pytest tests/test_fuzz.py -m slow -s -k at_length
A failure is reduced and written to tests/ir/found with its seed; `SUBQUAD_SEED=123` starts there.
"""

import functools
import os
from collections import Counter

import numpy as np
import pytest
from fuzz import at_sizes, data, difference, library_rules, run, specimen, weights
from reduce import keep, reduce

from subquad.ir import (
    OPS,
    Graph,
    IRError,
    build,
    building,
    diff,
    evaluate,
    isomorphic,
    journal,
    mismatch,
    ops,
    parse,
    rewrite,
    rule,
)
from subquad.passes import EXACT

FIRST = int(os.environ.get("SUBQUAD_SEED", "0"))
GRAPHS, MANY = 2000, 20000
SIZES = ({"n": 0, "b": 2}, {"n": 1, "b": 1}, {"n": 5, "b": 3})
RULES = list(library_rules().values())


@functools.lru_cache(maxsize=8)
def exact_passes(graph: Graph) -> Graph:
    """The exact pipeline, pass by pass: running it as a pipeline would undo a pass that raises."""
    for pass_ in EXACT.passes:
        graph = pass_(graph)
    return graph


def compare(before: Graph, after: Graph, seed: int, env=None, **kind) -> str | None:
    """How results differ, unless the graph itself is too sensitive for this data to say."""
    env = env or {}
    try:
        wanted = run(before, seed, env, **kind)
    except IRError:
        return None  # an index out of range: nothing is promised
    given = run(after, seed, env, **kind)
    problems = [difference(a, b, 1e-9) for a, b in zip(wanted, given, strict=True)]
    if not any(problems):
        return None
    if undefined(before) or sensitive(before, seed, env, wanted, **kind):
        return None
    return "; ".join(filter(None, problems))


def undefined(graph: Graph) -> bool:
    """Whether an op makes of NaN what is not defined: its sign, or an integer."""
    return any(
        op.name in ("signbit", "copysign")
        or (op.types[0].dtype.kind in "ui" and any(v.dtype.kind in "fc" for v in op.operands))
        for op in graph.ops()
    )


def sensitive(graph: Graph, seed: int, env, wanted, **kind) -> bool:
    """Whether results change as much when inputs change in the 13th digit: no oracle there."""
    rng = np.random.default_rng(seed)

    def shaken(a):
        return a * (1 + 1e-13 * rng.standard_normal(a.shape)) if a.dtype.kind == "f" else a

    for _ in range(3):
        inputs = map(shaken, data([v.type for v in graph.inputs], seed, env, **kind))
        params = {k: shaken(a) for k, a in weights(graph, seed, env, **kind).items()}
        outputs, updates = evaluate(graph, list(inputs), params)
        if any(map(difference, wanted, [*outputs, *updates.values()])):
            return True
    return False


# ---- the oracles, each `(graph, seed) -> what is wrong | None` -----------------------------------


def same_numbers(graph, seed):
    """The passes change no result, special values included."""
    after = exact_passes(graph)
    return compare(graph, after, seed) or compare(graph, after, seed, special=True)


def idempotent(graph, seed):
    """A pass run again at once changes nothing."""
    for pass_ in EXACT.passes:
        graph = pass_(graph)
        twice = pass_(graph)
        if twice is not graph:
            return f"a second run of {pass_.name} changes {diff(graph, twice)}"
    return None


def prints(graph, seed):
    """The text of the graph before and after, parsed, is the graph."""
    for stage in (graph, exact_passes(graph)):
        again = parse(str(stage))
        if mismatch(stage, again):
            return f"parsed text differs: {mismatch(stage, again)}"
        if str(again) != str(stage) or again.digest() != stage.digest():
            return "the text of the parsed text differs"
    return None


def renamed(graph, seed):
    """Names of inputs change nothing but names."""
    with building():
        new = {}
        for op in graph.ops():
            attrs = dict(op.attrs)
            if op.name == "input":
                attrs["name"] = f"y_{attrs['name']}"
            inputs = [None if v is None else new[v] for v in op.inputs]
            new.update(zip(op.results, build(op.defn, inputs, attrs).results, strict=True))
    other = Graph("other", [new[v] for v in graph.inputs], [new[v] for v in graph.outputs])
    return mismatch(exact_passes(graph), exact_passes(other))


def duplicated(graph, seed):
    """A graph with every op twice is the graph: duplicates merge."""
    copies = []
    inputs = {v: v for v in graph.inputs}
    for _ in range(2):
        new = dict(inputs)
        with building():  # its own table: nothing merges with the other copy
            for op in graph.ops():
                if op.name != "input":
                    operands = [None if v is None else new[v] for v in op.inputs]
                    made = build(op.defn, operands, op.attrs)
                    new.update(zip(op.results, made.results, strict=True))
        copies.append([new[v] for v in graph.outputs])
    both = exact_passes(Graph("twice", graph.inputs, copies[0] + copies[1]))
    half = len(graph.outputs)
    if both.outputs[:half] != both.outputs[half:]:
        return "copies of an output did not merge"
    one = Graph("once", both.inputs, both.outputs[:half])
    return mismatch(exact_passes(graph), one)


def padded(graph, seed):
    """Negating the outputs twice, or permuting them back and forth, changes no result."""
    with building():
        outputs = []
        for i, value in enumerate(graph.outputs):
            if i % 2 and value.dtype.kind in "if":
                value = ops.neg(ops.neg(value))
            elif value.rank > 1:
                order = tuple(range(1, value.rank)) + (0,)
                back = (value.rank - 1, *range(value.rank - 1))
                value = ops.permute(ops.permute(value, dims=order), dims=back)
            outputs.append(value)
    other = graph.with_(outputs=outputs)
    if any({0, 1} & {*type.shape} for op in graph.ops() for type in op.types):
        return compare(graph, exact_passes(other), seed)  # moving such axes has many forms
    return mismatch(exact_passes(graph), exact_passes(other))


def any_size(graph, seed):
    """Optimised with symbols, then run at a size, is what the graph gives at that size."""
    after = exact_passes(graph)
    for env in SIZES:
        try:
            fixed = at_sizes(graph, env)
        except IRError:
            continue  # the graph has no meaning at this size
        problem = compare(fixed, after, seed, env) or compare(fixed, graph, seed, env)
        problem = problem or compare(fixed, exact_passes(fixed), seed)
        if problem:
            return f"{problem} at {env}"
    return None


ALWAYS = (same_numbers, prints)
INTURN = (idempotent, renamed, duplicated, padded, any_size)


def fuzz(seeds, count=None) -> None:
    """Run the oracles on the graphs of these seeds; a failure is reduced, written and raised."""
    for seed in seeds:
        graph = specimen(seed, RULES)
        if count is not None:
            with journal() as log:
                exact_passes.__wrapped__(graph)
            count.update({"graphs": 1, "ops": len(graph.ops()), "applications": log.applied})
            count.update(event.rule for event in log.events if event.applied)
        for oracle in (*ALWAYS, INTURN[seed % len(INTURN)]):
            if oracle is any_size:
                graph = specimen(seed, RULES, symbols=("n", "b"))
            why = complaint(oracle, graph, seed)
            if why is not None:
                report(oracle, graph, seed, why)


def complaint(oracle, graph, seed) -> str | None:
    """What the oracle says; an exception is a complaint too."""
    try:
        return oracle(graph, seed)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def report(oracle, graph, seed, why) -> None:
    """Reduce, keep and raise."""
    graph = reduce(graph, lambda smaller: complaint(oracle, smaller, seed) is not None)
    why = complaint(oracle, graph, seed) or why
    path = keep(graph, seed, f"{oracle.__name__}: {why}")
    raise AssertionError(f"seed {seed}, {oracle.__name__}: {why}\n{graph}\nkept in {path}")


@pytest.mark.parametrize("part", range(10))
def test_graphs(part):
    """2,000 graphs, in ten parts that can run side by side."""
    size = GRAPHS // 10
    fuzz(range(FIRST + part * size, FIRST + (part + 1) * size))


@pytest.mark.slow
def test_graphs_at_length():
    """20,000 graphs, and how often each rule fired."""
    count = Counter()
    fuzz(range(FIRST, FIRST + MANY), count)
    graphs, applications = count.pop("graphs"), count.pop("applications")
    fired = f"applications a graph {applications / graphs:.2f}"
    print(f"\ngraphs {graphs}, ops {count.pop('ops')}, {fired}, all equal\n{count}")
    silent = [r.name for r in RULES if count[r.name] == 0 and not r.doc.startswith("Refused")]
    print(f"never fired (test_rules.py makes them): {silent}")


# ---- the fuzzer itself ---------------------------------------------------------------------------


def test_the_fuzzer_reaches_the_vocabulary():
    """Nine in ten ops with a numpy meaning turn up in 1,000 graphs; the rest (convolutions, pools)
    ask for operands that luck seldom finds."""
    seen = {op.name for seed in range(1000) for op in specimen(seed, RULES).ops()}
    meant = {n for n, d in OPS.items() if (d.numpy or d.body) and not d.random}
    assert len(meant & seen) >= 0.9 * len(meant), f"never seen: {sorted(meant - seen)}"


def test_planting_makes_rules_fire():
    """At least two applications a graph."""
    fired = Counter()
    for seed in range(300):
        with journal() as log:
            exact_passes.__wrapped__(specimen(seed, RULES))
        fired["all"] += log.applied
    assert fired["all"] >= 600, fired


@rule(lambda x, y: ops.maximum(ops.relu(x), ops.relu(y)))
def wrong_maximum(x, y):
    """Wrong: the smaller of the two."""
    return ops.minimum(ops.relu(x), ops.relu(y))


def test_a_failure_is_found_and_reduced(tmp_path):
    """A seeded wrong rule is found in a few graphs and reduced to the few ops that show it."""

    def wrong(graph, seed):
        after = rewrite(graph, [wrong_maximum])
        return None if after is graph else compare(graph, after, seed)

    for seed in range(200):
        graph = specimen(seed, [wrong_maximum])
        if complaint(wrong, graph, seed):
            break
    small = reduce(graph, lambda g: complaint(wrong, g, seed) is not None)
    assert len([op for op in small.ops() if op.name != "input"]) <= 4, str(small)
    path = keep(small, seed, "why", tmp_path)
    assert isomorphic(parse(path.read_text()), small)


def test_eager_is_numpy():
    """The eager backend and the float64 meaning agree, before and after the exact passes."""
    torch = pytest.importorskip("torch")
    eager = pytest.importorskip("subquad.backends").backend("eager")
    ran = 0
    for seed in range(FIRST, FIRST + 400):
        graph = specimen(seed, RULES)
        types = [t for op in graph.ops() for t in op.types]
        if any(t.dtype.kind in "fc" and t.dtype.bits != 64 for t in types) or undefined(graph):
            continue  # only f64 rounds as numpy does
        try:
            wanted = run(graph, seed)
        except IRError:
            continue
        tensors = {k: torch.as_tensor(a) for k, a in weights(graph, seed).items()}
        inputs = [torch.as_tensor(a) for a in data([v.type for v in graph.inputs], seed)]
        for stage in (graph, exact_passes(graph)):
            try:
                outputs, _ = eager.compile(stage)(inputs, tensors)
            except RuntimeError:
                break  # a kernel that torch lacks, or operands that only our type rule lets through
            for a, t, value in zip(wanted, outputs, graph.outputs, strict=True):
                b = t.detach().numpy().astype(a.dtype)
                problem = None if sensitive(graph, seed, {}, wanted) else agree(a, b)
                assert not problem, f"seed {seed}, {value}: {problem}\n{graph}"
        ran += 1
    assert ran >= 10


def agree(a, b) -> str | None:
    """As `difference`, without signs of zeros: torch's kernels do not keep them."""
    return difference(a + 0.0, b + 0.0, 1e-9) if a.dtype.kind == "f" else difference(a, b)

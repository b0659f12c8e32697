"""The driver: what it finds, leaves alone and refuses; matching; the journal; diffs."""

import pytest
from fuzz import run, specimen

from subquad.ir import (
    DTYPES,
    OPS,
    Graph,
    IRError,
    No,
    TensorType,
    build,
    building,
    diff,
    isomorphic,
    journal,
    mismatch,
    op,
    ops,
    parse,
    replace,
    rewrite,
    rule,
)

F32, F64 = DTYPES["f32"], DTYPES["f64"]


def source(name="x", shape=(2, 3)):
    """A graph input."""
    return ops.input(name=name, type=TensorType(F64, shape))


def names(graph):
    """The ops that compute, in order."""
    return [o.name for o in graph.ops() if o.name not in ("input", "const", "param")]


@rule(lambda x: ops.neg(ops.neg(x)))
def negated_twice(x):
    return x


@rule(lambda x, *, a, b: ops.permute(ops.permute(x, dims=a), dims=b))
def permute_of_permute(x, *, a, b):
    dims = tuple(a[i] for i in b)
    return x if dims == tuple(range(x.rank)) else ops.permute(x, dims=dims)


def test_what_no_rule_touches_is_the_same_object():
    """A graph without a match comes back itself; beside a match, untouched ops stay themselves."""
    with building():
        x = source()
        kept = ops.exp(x)
        graph = Graph("g", [x], [kept, ops.neg(ops.neg(ops.log(x)))])
    assert rewrite(graph, []) is graph
    after = rewrite(graph, [negated_twice])
    assert after.outputs[0] is kept and names(after) == ["exp", "log"]
    assert rewrite(after, [negated_twice]) is after
    change = diff(graph, after)
    assert [o.name for o in change.removed] == ["neg", "neg"] and change.added == ()


def test_several_users_need_no_guard():
    """The inner op stays for its other user; updates are rewritten too."""
    with building():
        x = source()
        inner = ops.neg(x)
        graph = Graph("g", [x], [ops.neg(inner), inner], {"x": ops.neg(inner)})
    after = rewrite(graph, [negated_twice])
    assert after.outputs == (x, inner) and after.updates == {"x": x}


def test_rules_meet_what_rules_make():
    """A chain collapses in one run, also where operands were settled before."""
    with building():
        x = y = source(shape=(2, 3, 4))
        for _ in range(7):
            y = ops.permute(y, dims=(1, 2, 0))
        graph = Graph("g", [x], [ops.neg(ops.neg(y))])
    with journal() as log:
        after = rewrite(graph, [negated_twice, permute_of_permute])
    assert names(after) == ["permute"] and after.outputs[0].op.attrs["dims"] == (1, 2, 0)
    assert log.applied >= 3


def test_rewriting_merges_duplicates():
    """Common subexpressions built apart are one afterwards."""
    x = source()
    graph = Graph("g", [x], [ops.exp(x), ops.exp(x)])
    after = rewrite(graph, [])
    assert after.outputs[0] is after.outputs[1]


def test_a_rule_that_does_not_settle_is_named():
    """In place, growing, and by turns."""

    @rule(lambda x, y: ops.maximum(x, y))
    def swap(x, y):
        return ops.maximum(y, x)

    @rule(lambda x: ops.relu(x))
    def grow(x):
        return ops.relu(ops.relu(x) + 1.0)

    @rule(lambda x: ops.exp(x))
    def there(x):
        return ops.log(x)

    @rule(lambda x: ops.log(x))
    def back(x):
        return ops.exp(x)

    x, y = source(), source("y")
    for value, rules, name in (
        (ops.maximum(x, y), [swap], "swap"),
        (ops.relu(x), [grow], "grow"),
        (ops.exp(x), [there, back], "there|back"),
    ):
        graph = Graph("g", [x, y], [value])
        with pytest.raises(IRError, match=f"rule '({name})' does not settle"):
            rewrite(graph, rules)


def test_a_rule_that_changes_a_type_is_named():
    """The one thing a rule may never do."""

    @rule(lambda x: ops.exp(x))
    def narrow(x):
        return ops.cast(ops.exp(x), dtype=F32)

    x = source()
    with pytest.raises(IRError, match="rule 'narrow' changes a type: f64.* became f32"):
        rewrite(Graph("g", [x], [ops.exp(x)]), [narrow])


def test_a_rule_that_raises_is_named():
    """A mistake in a rule, with the op and where in the model."""

    @rule(lambda x: ops.exp(x))
    def mistaken(x):
        return x.nothing

    with building() as builder:
        x = source()
        builder.source = "layers.3 (model.py:7)"
        graph = Graph("g", [x], [ops.exp(x)])
    with pytest.raises(IRError, match="rule 'mistaken' raised at exp.*AttributeError") as caught:
        rewrite(graph, [mistaken])
    assert "layers.3 (model.py:7)" in str(caught.value)


def test_refusals_are_kept_once_with_their_reason():
    """`No` is an event; so is a result that the type rules refuse; None is silence."""

    @rule(lambda x: ops.exp(x))
    def refuses(x):
        return No("not today", x)

    @rule(lambda x: ops.exp(x))
    def impossible(x):
        return ops.permute(x, dims=(0,))

    @rule(lambda x: ops.exp(x))
    def silent(x):
        return None

    x = source()
    graph = Graph("g", [x], [ops.exp(x), ops.exp(x) + 1.0])
    with journal() as log:
        assert (
            rewrite(rewrite(graph, []), [refuses, impossible, silent]).outputs[0].op.name == "exp"
        )
    reasons = [(event.rule, event.result.reason.split(":")[0]) for event in log.events]
    assert reasons == [("refuses", "not today"), ("impossible", "permute(f64[2,3])")]
    assert not log.applied and not log.events[0].applied


def test_limit_counts_applications():
    """`journal(limit=k)` stops after k, over all rewrites in the block: what bisection needs."""
    with building():
        x = source()
        graph = Graph("g", [x], [ops.neg(ops.neg(f(x))) for f in (ops.exp, ops.log, ops.sin)])
    for limit in range(5):
        with journal(limit) as log:
            after = rewrite(graph, [negated_twice])
            rewrite(graph, [negated_twice])
        assert log.applied == limit if limit < 5 else 3
        assert names(after).count("neg") == 2 * max(0, 3 - limit)


def test_provenance():
    """What a rule makes says which rule, and where in the model the old op stood."""

    @rule(lambda x: ops.exp(x) * 2.0)
    def doubled(x):
        return ops.exp(x) + ops.exp(x)

    with building() as builder:
        x = source()
        builder.source = "mlp (model.py:1)"
        graph = Graph("g", [x], [ops.exp(x) * 2.0])
    made = rewrite(graph, [doubled]).outputs[0].op
    assert (made.source, made.via) == ("mlp (model.py:1)", "doubled")


# ---- matching ------------------------------------------------------------------------------------


def fires(tested, value) -> bool:
    """Whether the rule applies at the value."""
    return tested.apply(value) is not None


def test_commutative_operands_match_in_both_orders():
    """At every level, with holes bound consistently."""

    @rule(lambda x, y, *, c: (x * c + y) * x)
    def nested(x, y, *, c):
        return x

    x, y = source(), source("y")
    for value in ((x * 2.0 + y) * x, x * (y + 2.0 * x), (y + x * 2.0) * x):
        assert nested.match(value) == {"x": x, "y": y, "c": 2.0}
    assert nested.match((x * 2.0 + y) * y) is None
    assert nested.match((x - y) * x) is None


def test_holes_bind_one_value_and_one_attribute():
    """The same name twice means the same thing twice, to the type of a number."""

    @rule(lambda x, *, d: ops.mean(ops.sum(x, dim=d, keepdim=True), dim=d, keepdim=True))
    def same_axes(x, *, d):
        return x

    @rule(lambda x, *, c: ops.exp(x + c) + c)
    def same_number(x, *, c):
        return x

    x = source()
    total = ops.sum(x, dim=1, keepdim=True)
    assert fires(same_axes, ops.mean(total, dim=-1, keepdim=True))
    assert not fires(same_axes, ops.mean(total, dim=0, keepdim=True))
    assert not fires(same_axes, ops.mean(total, dim=1))  # an unmentioned attribute is its default
    assert fires(same_number, ops.exp(x + 1.0) + 1.0)
    assert not fires(same_number, ops.exp(x + 1.0) + 1)


def test_numbers_and_items_in_patterns():
    """Numbers match constants by value, items of a tuple one by one, `None` an absent operand."""

    @rule(lambda x: x * 2)
    def twice(x):
        return x + x

    @rule(lambda x, *, i: ops.permute(x, dims=(i, 0)))
    def to_front(x, *, i):
        return No(f"axis {i}")

    @rule(lambda x, w: ops.linear(x, w, None))
    def no_bias(x, w):
        return No("seen")

    x = source(shape=(3, 3))
    assert fires(twice, x * 2) and fires(twice, 2.0 * x) and not fires(twice, x * 3)
    assert not fires(twice, x * source("y", (3, 3)))
    assert to_front.apply(ops.permute(x, dims=(1, 0))).reason == "axis 1"
    assert not fires(to_front, ops.permute(x, dims=(0, 1)))
    assert fires(no_bias, ops.linear(x, x)) and not fires(
        no_bias, ops.linear(x, x, source("b", (3,)))
    )


def test_every_spelling_is_tried():
    """A refused spelling does not hide the next one."""

    @rule(lambda x, c: x + c, lambda c, x: x + c)
    def constant_last(x, c):
        return x if c.number is not None else No("no constant")

    x = source()
    assert constant_last.apply(x + 1.0) is x
    assert constant_last.apply(x + source("y")).reason == "no constant"


def test_a_pattern_means_the_first_result():
    """A rule about an op of several results does not fire at its second."""
    if "two_results" not in OPS:

        @op(numpy=lambda x: (x, x))
        def two_results(x):
            return x, x

    try:

        @rule(lambda x: OPS["two_results"](x))
        def first_only(x):
            return ops.exp(x)

        x = source()
        first, second = build(OPS["two_results"], [x], {}).results
        after = rewrite(Graph("g", [x], [first, second]), [first_only])
        assert [v.op.name for v in after.outputs] == ["exp", "two_results"]
    finally:
        del OPS["two_results"]


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (lambda x: x, "must be an op applied"),
        (lambda x: ops.neg(x.shape[0]), "cannot read .shape"),
        (lambda x: ops.softmax(x), "must give attribute 'dim'"),
        (lambda x: ops.neg(x, dim=1), "no attribute 'dim'"),
        (lambda y: ops.neg(y), r"never binds \['x'\]"),
    ],
    ids=["no op", "types", "missing", "unknown", "unbound"],
)
def test_what_a_rule_may_not_say(before, message):
    """Mistakes in a `before` are told when the rule is declared."""
    with pytest.raises(IRError, match=message):

        @rule(before)
        def some_rule(x):
            return x


# ---- replace, isomorphic -------------------------------------------------------------------------


def test_replace():
    """For passes that are not rules; a type may not change."""
    graph = specimen(3)
    assert replace(graph, lambda o, inputs: None) is rewrite(graph, [])
    x = source()
    graph = Graph("g", [x], [ops.exp(ops.neg(x))])
    after = replace(graph, lambda o, inputs: [ops.log(inputs[0])] if o.name == "neg" else None)
    assert names(after) == ["log", "exp"]
    with pytest.raises(IRError, match="cannot become"):
        replace(graph, lambda o, i: [ops.cast(i[0], dtype=F32)] if o.name == "neg" else None)


PAIRS = [
    ("%0 = add(%x, %y) : f64[2]", "%0 = add(%y, %x) : f64[2]", True),
    ("%0 = sub(%x, %y) : f64[2]", "%0 = sub(%y, %x) : f64[2]", False),
    ("%0 = softmax(%x, dim=0) : f64[2]", "%0 = softmax(%x, dim=-1) : f64[2]", True),
    ("%0 = sum(%x, keepdim=True) : f64[1]", "%0 = sum(%x, dim=(0,), keepdim=True) : f64[1]", False),
    ("%1 = neg(%x) : f64[2] %0 = add(%1, %1) : f64[2]",
     "%1 = neg(%x) : f64[2] %2 = neg(%x) : f64[2] %0 = add(%2, %1) : f64[2]", True),
    ("%1 = const(value=1, dtype=f64) : f64[] %0 = mul(%x, %1) : f64[2]",
     "%1 = const(value=1.0, dtype=f64) : f64[] %0 = mul(%x, %1) : f64[2]", False),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right", "same"), PAIRS)
def test_isomorphic(left, right, same):
    """Names, order and the order of commutative operands do not matter; everything else does."""
    a, b = (parse(f"graph g(%x: f64[2], %y: f64[2]) {{ {t} return %0 }}") for t in (left, right))
    assert isomorphic(a, b) is same and (mismatch(a, b) is None) is same


def test_mismatch_names_the_first_difference():
    """The op and what differs, not the output it ends in."""
    x = source()
    a = Graph("g", [x], [ops.exp(ops.neg(ops.softmax(x, dim=0)))])
    b = Graph("g", [x], [ops.exp(ops.neg(ops.softmax(x, dim=1)))])
    assert mismatch(a, b) == (
        "output 0 differs at <softmax(f64[2,3])> against <softmax(f64[2,3])> with dim=0 / 1"
    )
    assert "inputs differ" in mismatch(a, Graph("g", [source(shape=(2,))], []))
    assert mismatch(a, Graph("g", [x], [])) == "1 and 0 outputs"
    assert mismatch(a, a.with_(updates={"x": x})) == "updates differ: [] and ['x']"


def test_rewriting_keeps_numbers():
    """The driver with no rules, and with a right one, on graphs of the fuzzer."""
    for seed in range(50):
        graph = specimen(seed, [negated_twice, permute_of_permute])
        after = rewrite(graph, [negated_twice, permute_of_permute])
        try:
            wanted = run(graph, seed)
        except IRError:
            continue
        assert [a.tobytes() for a in wanted] == [a.tobytes() for a in run(after, seed)]

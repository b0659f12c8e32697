"""Printing and parsing are inverse, and whatever the text, only IRError escapes.

Two thousand mutants by default; twenty thousand:
    python -m pytest tests/test_text.py -m slow
"""

import random
import re

import pytest
from fuzz import library_rules, specimen

from subquad.ir import (
    DTYPES,
    OPS,
    Graph,
    IRError,
    TensorType,
    build,
    building,
    isomorphic,
    mismatch,
    ops,
    parse,
    parse_many,
    print_graph,
    symbol,
)
from subquad.ir.attributes import Slot
from subquad.ir.dims import floordiv, maximum, minimum

F32, I64 = DTYPES["f32"], DTYPES["i64"]
b, n = symbol("b"), symbol("n")

EXAMPLE = """\
graph layer(%x: f32[b,n,64]) where b >= 1, 2 <= n <= 512 {
  %0 = param(name="w") : f32[64,64]
  %1 = matmul(%x, %0) : f32[b,n,64]
  %2 = const(value=2.0, dtype=f32) : f32[]
  %3 = mul(%1, %2) : f32[b,n,64]
  update "cache" = %1
  return %3
}"""
EXAMPLE = EXAMPLE.replace('"w")', '"w", type=f32[64,64])')


def source(type=None):
    """A graph input called x."""
    return ops.input(name="x", type=type or TensorType(F32, (b, n)))


def everything() -> Graph:
    """Every kind of attribute value in one graph, deep dims, two results, updates, facts."""
    with building():
        x = source()
        half, deep = floordiv(n, 2), minimum(maximum(n - 3, 0) + 1, floordiv(b * n + 1, 3))
        inner = Graph("inner", [source()], [ops.neg(source())])
        types = (TensorType(F32, (half, deep)), TensorType(I64, ()))
        args = (Slot(0), (1, 1.0, True, None, -0.0, 1e-30, float("inf"), float("-inf"), (), (n,)))
        kwargs = (("name", 'say "hi"\n\\ é \ud800'), ("dim", 2 * n * n - half), ("t", types[0]))
        calls = build(
            OPS["opaque"],
            [x, x],
            {"target": "a.b", "args": args, "kwargs": (*kwargs, ("g", inner)), "types": types},
        )
        nan = ops.const(value=float("nan"), dtype=F32)
        y = x * nan + ops.const(value=-0.0, dtype=F32)
        facts = [("b", 1, None), ("n", 2, 1 << 40)]
        return Graph("g", [x], [y, *calls.results, x], {"x": y, "a b": x}, facts)


def test_example_is_its_own_text():
    """The text of the module's docstring, to the letter."""
    assert str(parse(EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize(
    "make", [everything, lambda: parse(EXAMPLE)], ids=["everything", "example"]
)
def test_round_trip(make):
    """Same text, same digest, isomorphic, attributes of the same types."""
    graph = make()
    again = parse(str(graph))
    assert mismatch(graph, again) is None
    assert str(again) == str(graph)
    assert again.digest() == graph.digest()
    assert again.facts == graph.facts and list(again.updates) == list(graph.updates)
    for a, c in zip(graph.ops(), again.ops(), strict=True):
        assert repr(dict(a.attrs)) == repr(dict(c.attrs))


def test_comments_spaces_and_order():
    """Comments, blank lines and spaces say nothing; several graphs stand in one text."""
    text = "// one\n" + EXAMPLE.replace(") : ", ")   :\t").replace("\n  %", "\n\n %") + "  // end\n"
    assert str(parse(text)) == EXAMPLE
    assert len(parse_many(text * 3)) == 3
    assert parse_many("// nothing\n\n") == []


def test_sources_are_comments():
    """`sources=True` shows provenance and changes nothing that is read."""
    with building() as builder:
        x = source()
        builder.source, builder.via = "layers.3.attn (model.py:178)", "some_rule"
        graph = Graph("g", [x], [ops.neg(x)])
    text = print_graph(graph, sources=True)
    assert "// layers.3.attn (model.py:178); via some_rule" in text
    assert str(parse(text)) == str(graph)


def test_slash_slash_divides_in_brackets_only():
    """`n//2` in a type or a tuple is a floor division, elsewhere a comment."""
    graph = parse(
        'graph g(%x: f32[n]) { // first\n %0 = opaque(%x, target="t", args=(n//2,), '
        "key=0, types=(f32[n//2],)) : f32[n//2] // second\n return %0 // third\n}"
    )
    assert graph.outputs[0].shape == (floordiv(n, 2),)


ERRORS = [
    ("%4 = negg(%x) : f32[n]", "unknown op 'negg'; did you mean 'neg'?", "negg"),
    ("%4 = neg(%xs) : f32[n]", "%xs is not defined above; did you mean '%x'?", "%xs"),
    ("%4 = neg(%x) : f33[n]", "unknown dtype 'f33'; did you mean 'f32'?", "f33"),
    ("%4 = neg(%x) : f32[b]", "%4 is f32[n], not f32[b]", "f32"),
    ("%4 = neg(%x, dim=1) : f32[n]", "unknown attribute 'dim'; it has none", "neg"),
    ("%4 = softmax(%x, dmi=1) : f32[n]", "unknown attribute 'dmi'", "softmax"),
    ("%4 = softmax(%x) : f32[n]", "attribute 'dim' is missing", "softmax"),
    ("%4 = softmax(%x, dim=0, dim=0) : f32[n]", "attribute 'dim' is given twice", "dim"),
    ("%4 = softmax(%x, dim=3) : f32[n]", "axis out of range for rank 1", "softmax"),
    ("%4, %5 = neg(%x) : f32[n], f32[n]", "neg has 1 results, not 2", "%4"),
    ("%x = neg(%x) : f32[n]", "%x is defined twice", "%x"),
    ("%4 = neg(%x) f32[n]", "expected ':', found 'f32'", "f32"),
    ("%4 = neg(%x) : f32[n//0]", "divided by zero", "//"),
    ("%4 = neg(%x) : f32[f32]", "cannot name a dimension", "f32"),
    ("%4 = cast(%x, dtype=9223372036854775808) : f32[n]", "64 bits", "9223372036854775808"),
    ("%4 = softmax(%x, dim=(1)) : f32[n]", "axis out of range", "softmax"),
    ("%4 = neg(%x, a=(True)) : f32[n]", "a tuple of one is written (x,)", "("),
    ("%4 = neg(%x, a=$99999999) : f32[n]", "an operand number of more than 7 digits", "$99999999"),
    ("?", "cannot read '?'", "?"),
    ('%4 = neg(%x, a="\\q") : f32[n]', "malformed string", '"\\q"'),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message", "marked"), ERRORS, ids=lambda v: str(v)[:30])
def test_errors_point_at_the_place(line, message, marked):
    """The line's number, the sentence, the line, and carets under what is wrong."""
    with pytest.raises(IRError) as caught:
        parse(f"graph g(%x: f32[n]) {{\n  {line}\n  return %x\n}}")
    first, *rest = str(caught.value).split("\n")
    shown, carets = rest[-2], rest[-1]
    assert first.startswith("line 2: ") and message in str(caught.value), str(caught.value)
    place = carets.index("^")
    assert shown[place : place + carets.count("^")] == marked, str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "graph", "graph g", "graph g(", "graph g() {", "graph g() { return", "\x00",
     "graph g() { return }}", "graph 1() { return }", "graph g.() { return %0 }",
     "graph g(%x: f32[n], %x: f32[n]) { return %x }", 'graph g() { update "a" = %0 return }',
     "graph g() where n { return }", "graph g() where 1 <= n { return }",
     "graph g(%x: f32[n,]) { return %x", "graph g(\n// )"],
)  # fmt: skip
def test_broken_texts(text):
    """Texts that end too early, or go on."""
    with pytest.raises(IRError):
        parse(text)


def test_limits():
    """Nesting, integers and size have limits, and within them everything works."""
    with pytest.raises(IRError, match="expected text"):
        parse(b"graph g() { return }")
    call = 'graph g() {{ %0 = opaque(target="t", args={}, types=(f32[],)) : f32[] return %0 }}'
    parse(call.format("(" * 12 + "1," * 1 + ")," * 11 + ")"))
    with pytest.raises(IRError, match="nested deeper than 16"):
        parse(call.format("(" * 17 + ")" * 17))
    for deep in ("(" * 5000, "-(" * 5000, "min(" * 5000, "graph g(" * 5000, "(1+" * 5000):
        with pytest.raises(IRError):
            parse(call.format(deep))
    assert parse(call.format(f"({2**63 - 1}, -{2**63 - 1})")).ops()[0].attrs["args"][0] == 2**63 - 1
    with pytest.raises(IRError, match="64 bits"):
        parse(call.format(str(2**63)))
    with pytest.raises(IRError, match="64 bits"):
        parse(call.format("(" + "*".join(["4294967296"] * 3) + ", 1)"))


def test_nested_graphs():
    """Graphs inside attributes, seven deep, print with indentation and come back."""
    with building():
        graph = Graph("g0", [source()], [ops.neg(source())])
        for i in range(1, 7):
            x = source()
            attrs = {"target": "cond", "args": (Slot(0), graph), "types": (x.type,)}
            graph = Graph(f"g{i}", [x], build(OPS["opaque"], [x], attrs).results)
    again = parse(str(graph))
    assert isomorphic(graph, again) and str(again) == str(graph)


@pytest.mark.parametrize("name", ["", "a b", "x-1", 'x"); import os', "é", "%x", "a\nb"])
def test_names_that_no_text_can_say(name):
    """Graphs, inputs and symbols refuse names that would not come back."""
    x = ops.input(name=name, type=TensorType(F32, ()))
    with pytest.raises(IRError):
        Graph("g", [x], [x])
    with pytest.raises(IRError):
        Graph(name, [], [])
    with pytest.raises(IRError):
        symbol(name)


@pytest.mark.parametrize("name", ["f32", "bool", "min", "max", "True", "inf", "nan", "graph", "1a"])
def test_reserved_symbols(name):
    """Words that the text form reads otherwise are no symbols."""
    with pytest.raises(IRError, match="cannot name a dimension"):
        symbol(name)


def test_a_hostile_name_stays_a_string():
    """Names of params and updates may be anything: they are strings."""
    name = '"); import os; os.system("true") // \n\u2028 %x'
    w = ops.param(name=name, type=TensorType(F32, ()))
    graph = Graph("g", [], [w], {name: w})
    assert isomorphic(parse(str(graph)), graph) and list(parse(str(graph)).updates) == [name]


# ---- mutants -------------------------------------------------------------------------------------

MARKS = "%0 %x0 $0 $9 ( ) [ ] { } , : = // - + * <= >= min( max( f32[ f8e4m3[2] bool[0] n//2 n*n"
WORDS = "graph return update where none None True nan inf f32 0 -1 1e308 1e999 0.0 n"
CALLS = "opaque( const(value= dtype= type= dims=( shape=( size=( cat( reshape( permute( attention("
PIECES = [
    "9223372036854775807",
    "9" * 30,
    *f"{MARKS} {WORDS} {CALLS}".split(),
    '"',
    '"\\u0000"',
    "\n",
    "\0",
    "é",
    "(" * 26,
    "-" * 40,
    "9" * 30,
]
WORD = re.compile(r"\w+|\s+|[^\w\s]")


def mutant(rng: random.Random, text: str) -> str:
    """The text with one to four accidents."""
    words = WORD.findall(text)
    for _ in range(rng.randint(1, 4)):
        at, other = rng.randrange(len(words)), rng.randrange(len(words))
        match rng.randrange(8):
            case 0:
                del words[at : at + rng.randint(1, 4)]
            case 1:
                words.insert(at, words[other])
            case 2:
                words[at], words[other] = words[other], words[at]
            case 3:
                words[at] = rng.choice(PIECES)
            case 4:
                words.insert(at, rng.choice(PIECES))
            case 5:
                words[at] = words[other]
            case 6:
                words[at] = "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x3000))))
                                    for _ in range(3))  # fmt: skip
            case 7:
                words = words[: max(1, at)]
        words = words or ["x"]
    return "".join(words)


def survive(seeds) -> int:
    """Parse mutants of printed graphs; returns how many parsed. Only IRError may escape."""
    rules, parsed = list(library_rules().values()), 0
    texts = [str(specimen(seed, rules, symbols=("n", "b"))) for seed in range(60)]
    texts += [str(everything()), EXAMPLE]
    for seed in seeds:
        rng = random.Random(seed)
        text = mutant(rng, rng.choice(texts))
        try:
            graph = parse(text)
            again = parse(str(graph))
        except IRError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{text}") from error
        else:
            parsed += 1
            assert str(again) == str(graph), f"seed {seed}\n{text}"
    return parsed


def test_mutants():
    """Two thousand mutants, of which some still parse, and then print and parse."""
    assert survive(range(2000)) > 20


@pytest.mark.slow
def test_mutants_at_length():
    """Twenty thousand mutants."""
    survive(range(2000, 22000))


def test_random_characters():
    """Texts that are no texts at all."""
    rng = random.Random(0)
    alphabet = 'graph%x:f32[]{}(),="0123456789n//-+*.$ \n\\\x00é'
    for _ in range(2000):
        with pytest.raises(IRError):
            parse("graph g" + "".join(rng.choices(alphabet, k=rng.randint(1, 60))))


MEGABYTES = ["(" * 10**6, "%x" * 500000, '"' * 10**6, "1" * 10**6, "graph " * 170000,
             "// " * 330000, "-" * 10**6, "\n" * 10**6, "a.b" * 330000]  # fmt: skip


@pytest.mark.parametrize("text", MEGABYTES, ids=lambda text: repr(text[:6]))
def test_a_megabyte_of_nonsense(text):
    """One megabyte of anything is refused; a search that backtracks would not come back from it."""
    with pytest.raises(IRError):
        parse(text)

"""Golden files: what a pipeline makes of a graph, text before and text after.

A file of tests/ir starts with `// RUN: <pipeline>`. Then come pairs `graph ... // ---- graph ...`,
or `graph ... // ---- unchanged`. Compared as graphs, so names, spaces and order do not matter.
`python -m pytest tests/test_golden.py --accept` rewrites what is expected.
Files of tests/ir/found have no expectation: they are old failures, kept so that they stay repaired.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from fuzz import at_sizes, difference, run
from test_fuzz import ALWAYS, idempotent

from subquad.ir import Graph, IRError, isomorphic, mismatch, parse, parse_many
from subquad.passes import Pipeline

FOLDER = Path(__file__).parent / "ir"
RULER = re.compile(r"^// ----(?P<same> unchanged)?[ ]*$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One pair of a golden file, with the comment above it; `after` None means unchanged."""

    comment: str
    before: str
    after: str | None

    @property
    def graph(self) -> Graph:
        """The graph before."""
        return parse(self.before)

    def text(self) -> str:
        """The case as it stands in a file."""
        rest = "// ---- unchanged" if self.after is None else f"// ----\n{self.after}"
        return "\n".join(part for part in (self.comment, self.before, rest) if part)


def read(text: str) -> tuple[str, list[Case]]:
    """The pipeline of a golden file, and its cases. Raises IRError when it is malformed."""
    first, _, rest = text.partition("\n")
    if not first.startswith("// RUN: "):
        raise IRError("a golden file starts with `// RUN: <pipeline>`")
    cases: list[Case] = []
    befores: list[str] = []
    for part in re.split(r"(?m)^(?=// ----)", rest):
        ruler = RULER.match(part)
        graphs = _blocks(part[ruler.end() :] if ruler else part)
        if ruler:
            if len(befores) != 1:
                raise IRError(f"`{ruler[0]}` stands below {len(befores)} graphs, not one")
            comment, before = _split(befores.pop())
            after = None if ruler["same"] else _split(graphs.pop(0))[1]
            cases.append(Case(comment, before, after))
        befores += graphs
    if befores:
        raise IRError(f"the last graph has no `// ----` below it:\n{befores[0]}")
    return first.removeprefix("// RUN: ").strip(), cases


def _blocks(text: str) -> list[str]:
    """Pieces that end with a line that closes a graph."""
    return [piece.strip("\n") for piece in re.findall(r"(?s).*?^\}[^\n]*$", text, re.MULTILINE)]


def _split(block: str) -> tuple[str, str]:
    at = block.index("graph ") if block.startswith("graph ") else block.index("\ngraph ") + 1
    return block[:at].strip("\n"), block[at:]


def write(pipeline: str, cases: list[Case]) -> str:
    """The text of a golden file."""
    return "\n\n".join([f"// RUN: {pipeline}", *(case.text() for case in cases)]) + "\n"


def check(pipeline: Pipeline, case: Case) -> str | None:
    """What is wrong with a case, both texts and the first difference; None when it holds."""
    before = case.graph
    result, steps = pipeline.run(before)
    for step in steps:
        if step.undone:
            return f"{step.name} was undone: {step.undone}"
    expected = before if case.after is None else parse(case.after)
    wrong = mismatch(expected, result)
    return wrong and f"{case.comment}\n{wrong}\n--- expected\n{expected}\n--- got\n{result}"


def accepted(pipeline: Pipeline, case: Case) -> Case:
    """The case with what comes out now."""
    before = case.graph
    result, _ = pipeline.run(before)
    return Case(case.comment, case.before, None if isomorphic(before, result) else str(result))


FILES = sorted(FOLDER.glob("*.ir"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path, accept):
    """Every case of the file."""
    text, cases = read(path.read_text(encoding="utf-8"))
    pipeline = Pipeline.parse(text)
    if accept:
        cases = [accepted(pipeline, case) for case in cases]
        path.write_text(write(text, cases), encoding="utf-8")
    wrong = [problem for case in cases if (problem := check(pipeline, case))]
    assert cases and not wrong, "\n\n".join(wrong)


SIZES = {"a": 2, "b": 3, "c": 4, "h": 2, "n": 5, "m": 4}
"""What the symbols of golden graphs stand for when they are evaluated."""

TRUE_OF_ALL_NUMBERS = {"canonicalize", "fold", "recognize"}
"""Passes held to equality on zeros, infinities and NaN too, not on ordinary numbers only."""


def unequal(case: Case, special: bool) -> str | None:
    """How the numbers of the two graphs of a case differ, in float64; None when they do not."""
    after = case.graph if case.after is None else parse(case.after)
    before, result = (run(at_sizes(g, SIZES), 0, special=special) for g in (case.graph, after))
    problems = (difference(a, b) for a, b in zip(before, result, strict=True))
    return next((f"{case.comment}: {p}\n{case.text()}" for p in problems if p), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_numbers(path):
    """What is expected of exact passes computes the same numbers, whatever the passes do."""
    text, cases = read(path.read_text(encoding="utf-8"))
    passes = Pipeline.parse(text).passes
    if not all(p.exact for p in passes):
        pytest.skip("an approximate pass")
    kinds = (False, True) if {p.name for p in passes} <= TRUE_OF_ALL_NUMBERS else (False,)
    changed = [case for case in cases if case.after is not None]
    wrong = [problem for case in changed for special in kinds if (problem := unequal(case, special))]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize(
    "path", sorted((FOLDER / "found").glob("*.ir")), ids=lambda path: path.stem
)
def test_old_failures(path):
    """What once failed and was kept: numbers, text, idempotence."""
    for graph in parse_many(path.read_text(encoding="utf-8")):
        for oracle in (*ALWAYS, idempotent):
            assert oracle(graph, 0) is None


# ---- the runner itself ---------------------------------------------------------------------------

EXAMPLE = """\
// RUN: canonicalize{only=negated_twice}

// two negations go
graph two(%x: f32[n]) {
  %0 = neg(%x) : f32[n]
  %1 = neg(%0) : f32[n]
  return %1
}
// ----
graph two(%x: f32[n]) {
  return %x
}

// one stays
graph one(%x: f32[n]) {
  %0 = neg(%x) : f32[n]
  return %0
}
// ---- unchanged
"""


def test_the_runner_reads_and_writes():
    """A file comes back to the letter; its cases hold."""
    text, cases = read(EXAMPLE)
    assert [case.comment for case in cases] == ["// two negations go", "// one stays"]
    assert [case.after is None for case in cases] == [False, True]
    assert write(text, cases) == EXAMPLE
    assert [check(Pipeline.parse(text), case) for case in cases] == [None, None]
    assert [accepted(Pipeline.parse(text), case) for case in cases] == cases


def test_the_runner_complains():
    """Wrong expectations are told with the place and both texts; --accept repairs them."""
    text, (two, one) = read(EXAMPLE)
    pipeline = Pipeline.parse(text)
    wrong = [Case(two.comment, two.before, None), Case(one.comment, one.before, two.after)]
    for case, right in zip(wrong, (two, one), strict=True):
        told = check(pipeline, case)
        assert (
            "output 0 differs at" in told and "--- expected\ngraph" in told and case.comment in told
        )
        assert accepted(pipeline, case) == right


def test_the_numbers_complain():
    """An expectation that computes something else is told with its comment and its text."""
    _, (two, one) = read(EXAMPLE)
    wrong = Case(one.comment, one.before, two.after)
    assert unequal(two, special=True) is None
    told = unequal(wrong, special=False)
    assert told is not None and one.comment in told and "off by" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graph g() {\n}", "starts with"),
        ("// RUN: a\ngraph g() {\n}", "the last graph has no"),
        ("// RUN: a\n// ---- unchanged\n", "below 0 graphs"),
        ("// RUN: a\ngraph g() {\n}\ngraph g() {\n}\n// ---- unchanged\n", "below 2 graphs"),
    ],
)
def test_malformed_files(text, message):
    """A golden file that tests nothing is an error."""
    with pytest.raises(IRError, match=message):
        read(text)

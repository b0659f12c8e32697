"""Models of every family: captured, optimised exactly, held to float64, and no worse than expected."""

import pytest

pytest.importorskip("transformers")

from . import page
from .case import Case, cases
from .run import Call
from .serve import Server
from .table import Row, expected

CASES = cases()


@pytest.fixture(scope="module")
def server():
    """The process that every model's own is forked from."""
    with Server() as server:
        yield server


def check(server, id, accept, record_property, once=False):
    """Run one model in a process of its own and compare it with its line of expected.txt."""
    result = server.run(CASES[id], once)
    record_property("zoo", result.to_json())
    row = Row.of(result)
    if not accept:
        assert id in expected(), f"no line for {id} in expected.txt: run with --accept"
        assert row.worse_than(expected()[id]) == [], f"\n{row}\n{expected()[id]}"
    assert result.first.status != "differs" and not result.first.undone
    assert result.second is None or (result.second.status != "differs" and not result.second.undone)


@pytest.mark.parametrize("id", [id for id, case in CASES.items() if case.fast])
def test_fast(server, id, record_property):
    """The few of every test run; one capture serves both shapes."""
    check(server, id, False, record_property, once=True)


def test_a_process_that_dies_is_a_result(server):
    """And the next model has a process again."""
    ghost = Case("ghost", "encoder", lambda: None)
    for _ in range(2):
        assert server.run(ghost).first == Call("crashed", "its process ended with 1")


@pytest.mark.zoo
@pytest.mark.parametrize("id", CASES)
def test_zoo(server, id, accept, record_property):
    """All of them."""
    check(server, id, accept, record_property)


def test_every_line_has_a_model():
    """The table has no ghosts; a model without a line fails by itself."""
    assert set(expected()) - set(CASES) == set()


def test_the_page_shows_what_is_expected():
    """The second table of docs/models.md is that of expected.txt."""
    assert page.block("peers") == page.peers(expected())

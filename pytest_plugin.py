"""The pytest plugin: a fixture that optimises a model and holds it against the original.

    def test_my_model(compile_and_compare):
        fast, comparison = compile_and_compare(model, (x,))
        assert all(site.decision != "exact" for site in fast.sites)

Installed with subquad (entry point `pytest11`); nothing of torch is loaded until it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest


@pytest.fixture
def compile_and_compare() -> Callable[..., Any]:
    """`run(model, args, kwargs=None, *, bound=None, repeats=0, **options) -> (fast, comparison)`.

    Optimises `model` (options go to `subquad.optimize`), compares every output of both against a
    float64 run of the original, and fails naming the output and its figures where the optimised
    one is off by more than `bound`, or by more than its dtype allows.
    """

    def run(
        model: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        bound: float | None = None,
        repeats: int | None = 0,
        **options: Any,
    ) -> tuple[Any, Any]:
        from .api import optimize
        from .harness import compare

        keywords = dict(kwargs or {})
        fast = optimize(model, tuple(args), keywords, **options)
        comparison = compare(model, fast, args, keywords, repeats=repeats)
        comparison.assert_close(bound)
        return fast, comparison

    return run

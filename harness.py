"""Holding an optimised model against the original: errors, time, memory, FLOPs, scaling.

    comparison = subquad.compare(model, fast, (x,))
    print(comparison)
    comparison.assert_close()

    comparison = subquad.compare(model, fast, (x,), lengths=[1024, 2048, 4096], make_args=make)
    comparison.plot("scaling.png")

Errors of both models are measured against a float64 run of the original: an optimised model may
be a little less exact than the original, or a little more, and only float64 can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from .comparison import Comparison, Difference, Output, Row, SiteError, leaves
from .ir import Graph, SubquadError
from .measure import Paired, flops, matmul_rate, peak_memory, times
from .passes.sites import LINEARIZE
from .reference import double, in_float64, seeded
from .reproduce import bisect
from .verify import Verifier

__all__ = ["FLOORS", "Comparison", "bisect", "compare"]

FLOORS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Errors that are always allowed, by dtype, for outputs of size one; smaller outputs get less."""

FACTOR = 3
"""How many times the original's own error an optimised model may have."""

KEPT = frozenset({"attention", "kept"})
"""Decisions at an attention site that replaced nothing."""


def compare(
    original: Callable[..., Any],
    optimized: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    lengths: Sequence[int] | None = None,
    make_args: Callable[[int], Sequence[Any]] | None = None,
    repeats: int | None = None,
    seconds: float = 3.0,
    limit: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Error, time, peak memory and FLOPs of two models on the same inputs.

    Both run without gradients, on clones of the inputs where they are checked, and on the inputs
    themselves where they are timed. Times are taken in turns (see `subquad.measure`).

    original, optimized: modules with one signature. The error reference is a float64 copy of
        `original` (casts to narrower dtypes inside it are widened too).
    lengths, make_args: also measure at each length, on `make_args(n)`; both models must accept
        every length. `comparison.rows` and `comparison.exponents()` hold the result.
    repeats: pairs of timed calls; None for what fits in `seconds`, 0 for no timing at all.
    limit: in the scaling part, a model whose next call would take longer than this is left out.
    progress: called with a line of text before each thing that takes long.

    Raises SubquadError when the outputs have different structure.
    """
    if lengths and make_args is None:
        raise SubquadError(
            "compare(lengths=[...]) also needs make_args=, a function that returns the arguments\n"
            "    for one length, such as make_args=lambda n: (torch.randn(1, n, 64),)"
        )
    say = progress or (lambda text: None)
    args, kwargs = tuple(args), dict(kwargs or {})

    say("float64 reference")
    outputs, reference = _errors(original, optimized, args, kwargs)
    sites = _site_errors(optimized, args, kwargs)
    exact = not sites and _is_exact(optimized)
    result = Comparison(outputs=outputs, reference=reference, exact=exact, sites=sites)
    if repeats != 0:
        say("time and memory")
        row = _measure(original, optimized, args, kwargs, repeats, seconds, least=3)
        counted = tuple(flops(_call(model, args, kwargs)) for model in (original, optimized))
        device = next((x.device.type for x in _tensors((args, kwargs))), "cpu")
        dtype = outputs[0].dtype if outputs else torch.float32
        rate = matmul_rate(dtype if dtype in FLOORS else torch.float32, device)
        result = replace(
            result, time=row.time, memory=row.memory, flops=(counted[0], counted[1]), rate=rate
        )
    if lengths and make_args:
        rows: list[Row] = []
        for n in lengths:
            say(f"length {n}")
            calls = _within(original, optimized, rows, n, limit)
            row = _measure(*calls, tuple(make_args(n)), {}, repeats or None, seconds, least=2)
            rows.append(replace(row, length=n))
        result = replace(result, rows=tuple(rows))
    return result


# ---- errors -----------------------------------------------------------------------------------


def _errors(
    original: Callable[..., Any], optimized: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[tuple[Output, ...], str]:
    ours = leaves(_run(optimized, args, kwargs))
    theirs = leaves(_run(original, args, kwargs))
    if list(ours) != list(theirs):
        raise SubquadError(
            "the two models return different structures, so they cannot be compared\n"
            f"    original:  {', '.join(theirs) or 'nothing'}\n"
            f"    optimized: {', '.join(ours) or 'nothing'}"
        )
    try:
        truth, reference = leaves(in_float64(original, args, kwargs)), "float64"
    except Exception as error:  # whatever a model does when it meets another dtype
        truth = {name: double(x) for name, x in theirs.items()}
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reference = f"the original itself, because it does not run in float64: {reason}"
    outputs = []
    for name, x in theirs.items():
        if not isinstance(x, torch.Tensor):
            continue
        a, b = Difference.of(x, truth[name]), Difference.of(ours[name], truth[name])
        floor = FLOORS.get(ours[name].dtype, 0.0) * min(1.0, max(b.rms, 1e-3))
        bound = max(FACTOR * a.max_abs, floor)
        outputs.append(Output(name, tuple(x.shape), x.dtype, a, b, bound))
    return tuple(outputs), reference


def _run(model: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    args, kwargs = tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    with torch.no_grad(), seeded():
        return model(*args, **kwargs)


def _site_errors(optimized: Any, args: Any, kwargs: Any) -> tuple[SiteError, ...]:
    """Of every attention that a recipe replaced: its result against the exact one, in float64."""
    log, captured = getattr(optimized, "log", None), getattr(optimized, "captured", None)
    found = []
    for step in getattr(log, "steps", ()):
        events = [e for e in step.events if e.applied and e.rule.startswith(LINEARIZE)]
        if not events or captured is None or step.undone:
            continue
        inputs = captured.signature.flatten(args, kwargs)
        verifier = Verifier(inputs, captured.tensors, captured.modules)
        pairs = [value for e in events for value in (e.at.results[0], e.result)]
        graph = Graph(step.before.name, step.before.inputs, pairs, facts=step.before.facts)
        results = [torch.as_tensor(x) for x in verifier(graph)]
        for event, exact, linear in zip(events, results[::2], results[1::2]):
            path = event.at.source.split(" (")[0] or "the model"
            recipe = event.rule.removeprefix(LINEARIZE)
            found.append(SiteError(path, recipe, Difference.of(linear, exact)))
    return tuple(found)


def _is_exact(optimized: Any) -> bool:
    """Whether no attention of it was replaced."""
    return all(site.decision in KEPT for site in getattr(optimized, "sites", ()))


# ---- time, memory, work -----------------------------------------------------------------------


def _measure(
    original: Callable[..., Any] | None,
    optimized: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    repeats: int | None,
    seconds: float,
    least: int,
) -> Row:
    with torch.no_grad():
        after = _call(optimized, args, kwargs)
        before = _call(original, args, kwargs) if original is not None else None
        both = times(before or after, after, repeats=repeats, seconds=seconds, least=least)
        memory = (peak_memory(before) if before else None, peak_memory(after))
    return Row(0, both if before else Paired((), both.after), memory)


def _call(model: Callable[..., Any], args: Any, kwargs: Any) -> Callable[[], Any]:
    return lambda: model(*args, **kwargs)


def _within(
    original: Callable[..., Any],
    optimized: Callable[..., Any],
    rows: list[Row],
    n: int,
    limit: float,
) -> tuple[Callable[..., Any] | None, Callable[..., Any]]:
    """The original only while a call of it, growing as n^2, stays under the limit."""
    if rows:
        last = rows[-1]
        if not last.time.before:
            return None, optimized
        if min(last.time.before) * (n / max(last.length, 1)) ** 2 > limit:
            return None, optimized
    return original, optimized


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]

"""The attentions of a graph: what each is, what computes it, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import Dim, Event, Graph, No, Op
from .attention import PASSING, raised
from .masks import Mask, classify
from .pipeline import Step

LINEARIZE = "linearize:"
"""What the rule of an event is called where a recipe was applied, before the recipe's name."""


@dataclass(frozen=True)
class Site:
    """One attention, or one softmax that was not recognised as one.

    path, source: where in the model. mask: none, causal, padding, causal+padding, dense, or ? when
    not recognised. Sizes are dims, None when not recognised. decision: what computes it:
    "attention", "kept" (not recognised) or a recipe's name. reason: why it is so.
    """

    path: str
    source: str
    mask: str
    q_heads: Dim | None
    kv_heads: Dim | None
    head_dim: Dim | None
    q_len: Dim | None
    k_len: Dim | None
    op: Op
    decision: str
    reason: str = ""


def find_sites(graph: Graph, steps: Sequence[Step] = ()) -> tuple[Site, ...]:
    """Every attention of the graph, and every softmax that is not one, with the reason.

    steps: of the run that ended in `graph`. Where one of them put recipes in the place of
    attentions, the sites are those it met, with its decisions.
    """
    decided: dict[Op, Event] = {}
    for step in steps:
        events = [e for e in step.events if e.rule.startswith(LINEARIZE)]
        if events and not step.undone:
            graph = graph if decided else step.before
            decided.update((event.at, event) for event in events)
    found = []
    for op in graph.ops():
        if op.name == "attention":
            found.append(_site(op, decided.get(op)))
        elif op.name == "softmax":
            path, source = _place(op)
            why = _why_not(op, graph)
            unknown = (None,) * 5
            found.append(Site(path, source, "?", *unknown, op=op, decision="kept", reason=why))
    return tuple(found)


def _place(op: Op) -> tuple[str, str]:
    return op.source.split(" (")[0], op.source


def site_mask(op: Op) -> Mask:
    """What the mask of an `attention` op is."""
    return classify(op.args[3] if len(op.args) > 3 else None, op.attrs["causal"])


def _site(op: Op, event: Event | None) -> Site:
    q, k = op.args[:2]
    mask = site_mask(op)
    decision, reason = "attention", mask.reason
    if event is not None and isinstance(event.result, No):
        reason = event.result.reason
    elif event is not None:
        decision, reason = event.rule.removeprefix(LINEARIZE), ""
    (_, h, n, d), (_, g, m, _) = q.shape, k.shape
    return Site(*_place(op), mask.kind, h, g, d, n, m, op, decision, reason)


def _why_not(op: Op, graph: Graph) -> str:
    weights = op.results[0]
    while len(users := graph.uses(weights)) == 1 and users[0].name in PASSING:
        weights = users[0].results[0]
    for user in users:
        if user.name == "matmul" and user.inputs[0] is weights:
            found = raised(user, user.inputs, graph)
            if isinstance(found, No):
                return found.reason
    names = sorted({user.name for user in users})
    return f"no matrix product reads it, but {', '.join(names) or 'an output'}"

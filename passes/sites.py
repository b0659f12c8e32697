"""The softmaxes of a graph: which are attention, with what mask, what computes each, and why."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..ir import Dim, Event, Graph, IRError, No, Op, Value
from ..ir.interpret import evaluate
from .attention import Attention, examine, softmaxes
from .masks import Mask, classify_op, counterexample
from .pipeline import Step
from .remedies import remedy
from .roles import called, is_opaque_softmax, origin, role, why_opaque

LINEARIZE = "linearize:"
"""What the rule of an event is called where a recipe was applied, before the recipe's name."""

STATUSES = ("attention", "kept", "not attention")
"""What a softmax may be, as `Site.status` says it."""


@dataclass(frozen=True)
class Site:
    """One softmax of a model, whether it is attention or not.

    path, source: module, and the user's line, "layers.3.attn (model.py:178)". status: "attention";
    "kept", attention that stays as it is written; "not attention". mask: the kind that was proved,
    "dense" where none was, "?" where there is no attention. Sizes are dims: q is
    [b, q_heads, q_len, head_dim], k [b, kv_heads, k_len, head_dim], v [b, kv_heads, k_len, v_dim];
    None where unknown. sink: whether every query also sees a key without a value. empty: what a row
    without any key gives, "zero", "nan" or "uniform". decision: what computes it: "attention", "kept"
    or a recipe's name. reason: why, the first precondition that failed. at: the line where it failed.
    remedy: what would have to change. proof: all that is known of the mask.
    """

    path: str
    source: str
    status: str
    op: Op = field(repr=False)
    decision: str
    mask: str = "?"
    q_heads: Dim | None = None
    kv_heads: Dim | None = None
    head_dim: Dim | None = None
    v_dim: Dim | None = None
    q_len: Dim | None = None
    k_len: Dim | None = None
    scale: float | None = None
    softcap: float | None = None
    sink: bool = False
    empty: str | None = None
    reason: str = ""
    at: str = ""
    remedy: str = ""
    proof: Mask | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def parameters(self) -> dict[str, Any]:
        """What the mask is made of, by name: window, offset, slopes, ...; tensors by their origin."""
        return {} if self.proof is None else _parameters(self.proof)

    @functools.cached_property
    def counterexample(self) -> str:
        """A query and a key that a dense mask treats unlike what it resembles; "" for a proved one.

        The mask is evaluated in the oracle when this is first asked for.
        """
        if self.proof is None or self.proof.kind != "dense" or self.proof.at is None:
            return ""
        return counterexample(self.proof.at)

    def to_dict(self) -> dict[str, Any]:
        """Every field as numbers, strings and None, ready for json.dumps; dims that are open are text."""
        sizes = ("q_heads", "kv_heads", "head_dim", "v_dim", "q_len", "k_len")
        return {
            "path": self.path, "source": self.source, "status": self.status,
            "decision": self.decision, "mask": self.mask, "parameters": self.parameters,
            **{name: plain(getattr(self, name)) for name in sizes},
            "scale": self.scale, "softcap": self.softcap, "sink": self.sink, "empty": self.empty,
            "reason": self.reason, "at": self.at, "remedy": self.remedy,
        }  # fmt: skip


def lies(path: str, index: int, glob: str) -> bool:
    """Whether the site of a path and an index lies at a glob: of paths, or of one site, "layers.3.attn#7"."""
    return fnmatchcase(path, glob) or fnmatchcase(f"{path}#{index}", glob)


def plain(value: Any) -> Any:
    """A dim as JSON has it: a number, or the text of a polynomial."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def find_sites(graph: Graph, steps: Sequence[Step] = ()) -> tuple[Site, ...]:
    """Every softmax of the graph in its order: attention or not, with the reason.

    steps: of the run that ended in `graph`. Where one of them put recipes in the place of
    attentions, the sites are those it met, with its decisions; else those from before they were cut
    into blocks.
    """
    decided: dict[Op, Event] = {}
    for step in steps:
        if step.name == "local" and not step.undone:
            graph = step.before
        events = [e for e in step.events if e.rule.startswith(LINEARIZE)]
        if events and not step.undone:
            graph = graph if decided else step.before
            decided.update((event.at, event) for event in events)
    starts, found = set(softmaxes(graph)), []
    for op in graph.ops():
        if op.name == "attention":
            found.append(_attention(op, decided.get(op)))
        elif op in starts:
            found.append(_softmax(op, graph))
        elif is_opaque_softmax(op):
            no = No(f"{op.attrs['target']} was imported as one opaque call")
            found.append(_refused(op, "not attention", no))
    return tuple(found)


def _place(op: Op) -> tuple[str, str]:
    return op.source.split(" (")[0], op.source


def _attention(op: Op, event: Event | None) -> Site:
    """The site of an `attention` op, and what a recipe that was asked for said."""
    facts = _facts(op)
    decision, reason = "attention", facts["proof"].reason
    if event is not None and isinstance(event.result, No):
        reason = event.result.reason
    elif event is not None:
        decision, reason = event.rule.removeprefix(LINEARIZE), ""
    at = facts["proof"].at
    line = at.op.source if at is not None and reason else ""
    return Site(
        *_place(op), "attention", op, decision, reason=reason, at=line, remedy=remedy(reason), **facts
    )


def _facts(op: Op) -> dict[str, Any]:
    """What an `attention` op says of itself, as fields of a Site."""
    q, k, v = op.args[:3]
    (_, h, n, d), (_, g, m, _) = q.shape, k.shape
    proof = classify_op(op)
    return dict(
        mask=proof.kind, q_heads=h, kv_heads=g, head_dim=d, v_dim=v.shape[3], q_len=n, k_len=m,
        scale=op.attrs["scale"], softcap=op.attrs["softcap"],
        sink=len(op.args) > 4 and op.args[4] is not None, empty=op.attrs["empty"], proof=proof,
    )  # fmt: skip


def _softmax(op: Op, graph: Graph) -> Site:
    """The site of a softmax that no pass took."""
    found = examine(op, graph)
    if isinstance(found, Attention):
        own = found.value.op
        while own.name != "attention":  # behind views that put its heads in order
            own = own.args[0].op
        kept = found.kept if found.kept is not None else No("no pass has put attention in its place")
        return _refused(op, "kept", kept, **_facts(own))
    if op.name == "opaque":
        return _refused(op, "kept", why_opaque(op))
    what = role(op, graph) if "meet no matrix product" in found.reason else None
    if what is not None:
        found = No(f"it is {what}. Its weights meet no matrix product with values", op.results[0])
    return _refused(op, "not attention", called(found))


def _refused(op: Op, status: str, no: No, **facts: Any) -> Site:
    at = no.at.op.source if no.at is not None else ""
    return Site(
        *_place(op), status, op, "kept", reason=no.reason, at=at or op.source,
        remedy=remedy(no.reason), **facts,
    )  # fmt: skip


# ---- what a mask is made of ----------------------------------------------------------------------


def _parameters(proof: Mask) -> dict[str, Any]:
    """The fields of a mask that say something, ready for JSON."""
    found: dict[str, Any] = {}
    for name in ("window", "chunk", "prefix"):
        value = getattr(proof, name)
        if value is not None:
            found[name] = origin(value) if isinstance(value, Value) else plain(value)
    if proof.offset != 0:
        found["offset"] = plain(proof.offset)
    if proof.kind == "dense":
        return found | ({"causal": True} if proof.causal else {})
    if proof.segments is not None:
        found["segments"] = origin(*proof.segments)
    if proof.slopes is not None:
        found["slopes"] = _numbers(proof.slopes) or origin(proof.slopes)
        found["symmetric"] = proof.symmetric
    for name in ("starts", "positions", "padding", "relative", "bias"):
        value = getattr(proof, name)
        if value is not None:
            found[name] = origin(value)
    return found | ({} if proof.hard else {"hard": False})


def _numbers(value: Value) -> list[float] | None:
    """What a value holds that is computed from constants alone."""
    try:
        (numbers,), _ = evaluate(Graph("constants", (), (value,)), ())
    except IRError:
        return None
    return [float(x) for x in np.ravel(numbers)]

"""What an optimised model must keep: a `Budget` of errors, time and memory, and how errors are measured.

    Budget(cosine=0.99)                          outputs keep their direction
    Budget(kl=0.05, speedup=2)                   a language model's next tokens, at half of the time
    Budget(metric=accuracy, max_drop=0.01)       what you measure yourself, on the module

An error is a number that is 0 for equal outputs and smaller for better ones, by a name of `ERRORS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .comparison import leaves
from .ir import SubquadError

ERRORS = ("relative_error", "cosine", "kl", "drop")
"""Names of errors: norm of the difference over the norm; 1 - mean cosine; mean KL in nats; what the
metric lost."""

PREFER = ("time", "linear")
"""What `Budget(prefer=)` takes."""

CHUNK = 2**22
"""Elements of an output that are held in float64 at once."""

Errors = Mapping[str, float]
"""Errors by name of `ERRORS`, each at least 0; a name that could not be measured is absent."""


def unsaved(module: nn.Module) -> float:
    """In the place of the metric of a budget read from a file. Raises SubquadError."""
    raise SubquadError(
        "this budget was read from a file, and a metric is a function, which is not saved\n"
        "    give it again: Budget(metric=your_function, max_drop=...)"
    )


@dataclass(frozen=True)
class Budget:
    """What must hold of the optimised model against the original. At least one must be given.

    relative_error: ||y' - y|| / ||y|| over all float outputs, at most. cosine: mean cosine of output
    vectors (last axis), at least, in (-1, 1]. kl: mean KL(softmax(y) || softmax(y')) over the last axis
    in nats, at most. metric, max_drop: fn(module) -> float, higher is better, may fall by at most
    max_drop. speedup: predicted time of the original over that of the result, whole model, at the
    lengths, at least. memory: peak extra memory as a share of the original's, at most. prefer: among what
    fits, "time", the least predicted time, or "linear", the most sites linear, ties by time.
    Raises SubquadError for nothing given, and for a value that cannot be met or means nothing.
    """

    relative_error: float | None = None
    cosine: float | None = None
    kl: float | None = None
    metric: Callable[[nn.Module], float] | None = None
    max_drop: float | None = None
    speedup: float | None = None
    memory: float | None = None
    prefer: str = "time"

    def __post_init__(self) -> None:
        for name in ("relative_error", "cosine", "kl", "max_drop", "speedup", "memory"):
            given = getattr(self, name)
            if given is None:
                continue
            value = math.nan if isinstance(given, bool | str) else _number(given)
            if not math.isfinite(value):
                raise SubquadError(f"Budget({name}={given!r}): a finite number is wanted")
            low, rule = _LEAST.get(name, (0.0, "at least 0"))
            if value < low or (value == low and name in _LEAST) or (name == "cosine" and value > 1):
                raise SubquadError(f"Budget({name}={given!r}): must be {rule}")
        if self.metric is not None and not callable(self.metric):
            raise SubquadError(
                f"Budget(metric={self.metric!r}): a function of the module is wanted that returns a\n"
                "    float, higher for better, such as metric=lambda module: accuracy(module, data)"
            )
        if (self.metric is None) != (self.max_drop is None):
            given, other = ("max_drop", "metric") if self.metric is None else ("metric", "max_drop")
            raise SubquadError(
                f"Budget({given}=...) without {other}=: a metric is a function of the module, max_drop\n"
                "    how much it may fall; give both, such as Budget(metric=accuracy, max_drop=0.01)"
            )
        if self.prefer not in PREFER:
            raise SubquadError(f"Budget(prefer={self.prefer!r}): one of {', '.join(map(repr, PREFER))}")
        if not self.limits() and self.speedup is None and self.memory is None:
            raise SubquadError(
                "Budget() without anything that must hold: give one or more of relative_error, cosine,\n"
                "    kl, metric and max_drop, speedup, memory, such as Budget(cosine=0.99)"
            )

    def limits(self) -> dict[str, float]:
        """The largest error allowed, by name of `ERRORS`; the limit of cosine is on 1 - cosine."""
        cosine = None if self.cosine is None else 1 - self.cosine
        most = dict(zip(ERRORS, (self.relative_error, cosine, self.kl, self.max_drop)))
        return {name: float(limit) for name, limit in most.items() if limit is not None}

    def holds(self, errors: Errors) -> list[str]:
        """What of the budget `errors` break, in words with figures; nothing where all of it holds.

        A limited error that is absent or NaN breaks it. "speedup" and "memory" are looked at where
        `errors` has them.
        """
        broken = []
        for name, limit in self.limits().items():
            if name not in errors:
                broken.append(f"{said(name)} is limited to {limit:.4g}, and was not measured")
            elif not errors[name] <= limit:
                broken.append(f"{figure(name, errors[name])}, {figure(name, limit, bound=True)}")
        if self.speedup is not None and not errors.get("speedup", self.speedup) >= self.speedup:
            broken.append(f"speedup {errors['speedup']:.4g}, at least {self.speedup:.4g} was asked")
        if self.memory is not None and not errors.get("memory", self.memory) <= self.memory:
            broken.append(f"memory {errors['memory']:.4g} of the original's, at most {self.memory:.4g}")
        return broken

    def __str__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [f"{name}={_name(v)}" for name, v in given.items() if v is not None and v != "time"]
        return f"Budget({', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """The fields that were given, ready for json.dumps; of the metric, that there is one."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given["metric"] = True if self.metric is not None else None
        kept = {name: value for name, value in given.items() if value is not None}
        return {name: v if isinstance(v, bool | str) else float(v) for name, v in kept.items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any], metric: Callable[[nn.Module], float] | None = None) -> Budget:
        """The budget of a `to_dict`; metric: the function, where it had one (`unsaved` otherwise).

        Raises SubquadError for unknown fields, and for values that no budget has.
        """
        unknown = sorted(set(data) - {f.name for f in fields(Budget)})
        if unknown:
            raise SubquadError(f"a budget has no {', '.join(unknown)}: it was written by another version")
        given = dict(data)
        if given.pop("metric", None):
            given["metric"] = metric or unsaved
        return Budget(**given)


_LEAST = {
    "cosine": (-1.0, "in (-1, 1]"), "speedup": (0.0, "above 0"), "memory": (0.0, "above 0"),
}  # fmt: skip
_SAID = {"relative_error": "relative error", "cosine": "1 - cosine", "kl": "KL", "drop": "drop of the metric"}


def said(name: str) -> str:
    """An error's name as people read it."""
    return _SAID.get(name, name)


def figure(name: str, value: float, bound: bool = False) -> str:
    """An error as people read it, "cosine 0.99", "KL 0.02"; as a bound, "at least 0.99"."""
    if name == "cosine":  # as it was asked for, not as 1 - cosine
        return f"at least {1 - value:.6g}" if bound else f"cosine {1 - value:.6g}"
    return f"at most {value:.4g}" if bound else f"{said(name)} {value:.4g}"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _name(value: Any) -> str:
    return getattr(value, "__name__", "metric") if callable(value) else repr(value)


# ---- how errors add --------------------------------------------------------------------------------


def additive(name: str, value: float) -> float:
    """An error as what adds over sites: a relative error as its square (independent errors add in
    squares), the others as they are, at least 0; NaN as infinity."""
    if math.isnan(value):
        return math.inf
    value = max(value, 0.0)
    return value * value if name == "relative_error" else value


def total(name: str, sum: float) -> float:
    """The error whose `additive` is `sum`."""
    return math.sqrt(sum) if name == "relative_error" else sum


def drop(before: float, after: float) -> float:
    """The error "drop" of a metric: how much it fell, 0 where it rose, infinity where it is NaN."""
    return additive("drop", float(before) - float(after))


# ---- errors of outputs -----------------------------------------------------------------------------


class Tally:
    """Errors of outputs, summed over batches in float64; each item of axis 0 of a batch is one sample.

    All float tensors of nested outputs count, each element of them alike in the relative error, each
    vector of two or more elements (last axis) alike in the cosine and in the KL. NaN, and an infinity
    where the original has another number, make every error that sees them infinite. No metric is
    measured here: "drop" is never among the errors.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[float, float]]] = {}  # by error, (numerator, denominator) a sample
        self.samples = 0

    @torch.no_grad()
    def add(self, before: Any, after: Any, weights: Tensor | None = None) -> None:
        """One batch: outputs of the original and of the other model, of one structure.

        weights: [b] or [b, n], at least 0, of samples or of their tokens (0 for padding, whatever stands
        there); those of tokens apply to outputs [b, n, ..., d]. Outputs whose axis 0 is not the batch are
        shared equally by its samples. Raises SubquadError for different structures or shapes, and where
        nothing is a float tensor.
        """
        pairs = list(_pairs(before, after))
        sizes = [x.shape[0] for x, _ in pairs if x.ndim]
        b = len(weights) if weights is not None else sizes[0] if sizes else 1
        found: dict[str, Tensor] = {}
        for x, y in pairs:
            w = _weights(x, weights)
            for name, sums in _sums(x, y, w).items():  # [axis 0 or 1, 2]
                if len(sums) != b:
                    sums = sums.sum(0, keepdim=True).expand(b, 2) / b
                found[name] = found[name] + sums if name in found else sums
        for name, sums in found.items():
            clean = sums.nan_to_num(nan=math.inf, posinf=math.inf)
            self._rows.setdefault(name, []).extend((float(a), float(d)) for a, d in clean.tolist())
        self.samples += b

    def errors(self) -> dict[str, float]:
        """The errors over everything added, by name; without vectors in the outputs, no cosine and no KL."""
        return {name: total(name, _ratio(*np.array(rows).sum(0))) for name, rows in self._rows.items()}

    def bounds(self, confidence: float = 0.99) -> dict[str, float]:
        """One-sided upper confidence bounds of the errors, by name: with this confidence the error over
        inputs like these is at most so much.

        Each error is a ratio of sums over samples (the square of the relative error). Its standard error
        is the delete-one jackknife's, and Student's t with samples - 1 degrees of freedom gives the
        quantile: for samples of equal weight, the usual bound on a mean. Few samples give wide bounds (two
        at 0.99: 31.8 standard errors), one sample gives infinity: nothing is known of how inputs differ.
        Samples are taken to be independent; the t bound is approximate where few samples hold most of the
        error. Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 11.
        """
        from scipy.special import stdtrit

        if not 0.5 <= confidence < 1:
            raise SubquadError(f"bounds(confidence={confidence!r}): a number in [0.5, 1), such as 0.99")
        found = {}
        for name, rows in self._rows.items():
            n, sums = len(rows), np.array(rows)
            if n < 2 or not np.isfinite(sums).all():
                found[name] = math.inf
                continue
            whole = sums.sum(0)
            # summed again without each sample: subtracting it would leave rounding where it holds most
            left = np.array([_ratio(*np.delete(sums, i, 0).sum(0)) for i in range(n)])
            if not np.isfinite(left).all():
                found[name] = math.inf
                continue
            spread = math.sqrt((n - 1) / n * float(np.square(left - left.mean()).sum()))
            found[name] = total(name, _ratio(*whole) + float(stdtrit(n - 1, confidence)) * spread)
        return found


def errors(before: Any, after: Any, weights: Tensor | None = None) -> dict[str, float]:
    """The errors of one batch of outputs, by name of `ERRORS`; see `Tally.add`."""
    tally = Tally()
    tally.add(before, after, weights)
    return tally.errors()


def _pairs(before: Any, after: Any) -> list[tuple[Tensor, Tensor]]:
    """The float tensors of two outputs side by side."""
    ours, theirs = leaves(before), leaves(after)
    if list(ours) != list(theirs):
        raise SubquadError(
            "the two models return different structures, so their errors cannot be measured\n"
            f"    original: {', '.join(ours)}\n    other:    {', '.join(theirs)}"
        )
    found = []
    for name, x in ours.items():
        y = theirs[name]
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            continue
        if not isinstance(y, Tensor) or x.shape != y.shape:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise SubquadError(f"output {name} has shape {got}, that of the original {tuple(x.shape)}")
        if x.is_complex():
            x, y = (torch.view_as_real(t.to(torch.complex128)).flatten(-2) for t in (x, y))
        if x.numel():
            found.append((x.detach(), y.detach().to(x.device)))
    if not found:
        raise SubquadError(f"no output is a tensor of floats, there is nothing to measure: {', '.join(ours)}")
    return found


def _weights(x: Tensor, weights: Tensor | None) -> Tensor:
    """[b or 1, n or 1]: the weights of what lies at the first axes of an output."""
    one = torch.ones((x.shape[0] if x.ndim else 1, 1), dtype=torch.float64, device=x.device)
    if weights is None:
        return one
    if weights.ndim not in (1, 2) or not bool((weights >= 0).all()):
        raise SubquadError(f"weights are [b] or [b, n] and at least 0, not {tuple(weights.shape)}")
    w = weights.to(x.device, torch.float64)
    if x.ndim < (3 if w.ndim == 2 else 1) or x.shape[: w.ndim] != w.shape:
        return one
    return w if w.ndim == 2 else w[:, None]


def _sums(x: Tensor, y: Tensor, w: Tensor) -> dict[str, Tensor]:
    """By error, [axis 0, (numerator, denominator)] of one output against another."""
    d = x.shape[-1] if x.ndim > 1 else 1
    rows = max(1, CHUNK // d)
    parts = [_vectors(*pair) for pair in zip(x.reshape(-1, d).split(rows), y.reshape(-1, d).split(rows))]
    found = {}
    for name in parts[0]:
        of = torch.cat([part[name] for part in parts]).reshape(*w.shape, -1, 2)
        weight = w[:, :, None, None]
        found[name] = torch.where(weight > 0, of * weight, 0.0).sum((1, 2))
    return found


def _vectors(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By error, [vectors, (numerator, denominator)] of vectors [vectors, d], in float64."""
    x, y = x.double(), y.double()
    same = (x == y) & x.isinf()  # such as scores of tokens that are ruled out
    a, b = (t.masked_fill(same, 0.0) for t in (x, y))
    found = {"relative_error": ((a - b).square().sum(-1), a.square().sum(-1))}
    if x.shape[-1] > 1:
        one = torch.ones_like(a[:, 0])
        found |= {"cosine": (_turned(a, b), one), "kl": (_kl(x, y), one)}
    return {name: torch.stack(parts, -1) for name, parts in found.items()}


def _turned(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of vectors, as half of the squared distance of their directions: exact near 0."""
    norms = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    u, v = (t / torch.where(norm == 0, 1.0, norm) for t, norm in zip((a, b), norms))
    apart = (u - v).square().sum(-1) / 2
    lost = ((norms[0] == 0) != (norms[1] == 0)).squeeze(-1)  # one of them has no direction
    return torch.where(lost & apart.isfinite(), 1.0, apart)


def _kl(x: Tensor, y: Tensor) -> Tensor:
    p, q = x.log_softmax(-1), y.log_softmax(-1)
    gone = (p == -math.inf) & ~y.isnan()  # 0 log 0 = 0
    return (p.exp() * (p - q)).masked_fill(gone, 0.0).sum(-1).clamp(min=0.0)


def _ratio(above: float, below: float) -> float:
    if above == 0:
        return 0.0
    return float(above / below) if below > 0 and math.isfinite(below) else math.inf

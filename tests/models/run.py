"""One model of the zoo: build, capture, optimise by all exact passes, hold to float64.

    result = run(case)          # here

Nothing raises: what goes wrong is the status of the result, and its reason.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import subquad
from subquad.comparison import leaves
from subquad.ir import CaptureError
from subquad.reference import seeded
from subquad.report import size

from .case import Case, NotBuiltError

STATUS = ("equal", "differs", "uncaptured", "unbuilt", "crashed")
"""From good to bad. equal: within max(3 x the original's own error, 1e-5) of float64. crashed: an
error of subquad that is none of its own family, or the end of the process."""

SECONDS = 30.0
"""Seconds of the processor that one capture with its passes may take."""


@dataclass
class Call:
    """One capture and one call. Errors are largest differences to the float64 run of the original.

    bits: equal to the original bit for bit. sites: path, mask, q_heads, kv_heads, status, reason.
    ops: before and after the passes. seconds: capture, and each pass by name. undone: what passes
    raised.
    """

    status: str
    reason: str = ""
    error: float | None = None
    own: float | None = None
    bits: bool = False
    reference: str = ""
    ops: tuple[int, int] = (0, 0)
    sites: list[tuple[str, str, str, str, str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)

    @property
    def recognised(self) -> int:
        """Sites that are attention."""
        return self._sites("attention")

    @property
    def kept(self) -> int:
        """Sites that are attention in a spelling that stays as it is, with the reason."""
        return self._sites("kept")

    @property
    def others(self) -> int:
        """Softmaxes that are no attention, with the reason: routers, mixtures."""
        return self._sites("not attention")

    def _sites(self, wanted: str) -> int:
        return sum(s == wanted and (wanted == "attention" or bool(why)) for *_, s, why in self.sites)

    @property
    def passes(self) -> float:
        """Seconds of all passes."""
        return sum(seconds for name, seconds in self.seconds.items() if name != "capture")

    @property
    def masks(self) -> dict[str, int]:
        """How many attentions have each kind of mask."""
        return dict(sorted(Counter(mask for _, mask, *_, d, _ in self.sites if d == "attention").items()))

    @property
    def heads(self) -> str:
        """Query and key heads, 4/2; several where layers differ."""
        pairs = {f"{h}/{g}": None for _, _, h, g, d, _ in self.sites if d == "attention"}
        return ",".join(pairs)


@dataclass
class Result:
    """What a model of the zoo came to.

    softmaxes: how many the original ran, in attention kernels or by themselves; each should be a
    site of `first`. second: the call at the second shape, from a capture with open dims.
    """

    name: str
    family: str
    first: Call
    second: Call | None = None
    softmaxes: int = 0

    @property
    def id(self) -> str:
        """That of its case, family/name."""
        return f"{self.family}/{self.name}"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Result:
        """The result of `to_json`."""
        data = json.loads(text)
        for key in ("first", "second"):
            if data[key] is not None:
                data[key]["sites"] = [tuple(site) for site in data[key]["sites"]]
                data[key]["ops"] = tuple(data[key]["ops"])
                data[key] = Call(**data[key])
        return Result(**data)


class Softmaxes(TorchDispatchMode):
    """Counts the softmaxes that run inside it, those of attention kernels too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.count += name in ("aten::_softmax", "aten::_safe_softmax") or "attention_for_cpu" in name
        return func(*args, **(kwargs or {}))


def run(case: Case, once: bool = False) -> Result:
    """The result of a case, in this process; with `once` both calls are of one capture, the open one."""
    result = Result(case.name, case.family, Call("unbuilt"))
    try:
        model, kwargs = case.build()
        with Softmaxes() as softmaxes:
            outputs = leaves(_call(model, kwargs))
        for name, x in outputs.items():
            if isinstance(x, torch.Tensor) and x.numel() and not x.isfinite().any():
                raise NotBuiltError(f"nothing in {name} is finite: there is nothing to compare")
    except Exception as error:
        result.first.reason = _told(error)
        return result
    result.softmaxes = softmaxes.count
    if once and case.second is not None:
        result.first, result.second = _attempt(model, kwargs, case.dynamic_shapes, kwargs, case.second())
        return result
    (result.first,) = _attempt(model, kwargs, None, kwargs)
    if case.second is not None:
        (result.second,) = _attempt(model, kwargs, case.dynamic_shapes, case.second())
    return result


def _attempt(model: Any, example: Any, dynamic_shapes: Any, *calls: Any) -> list[Call]:
    """One capture from `example`, and what came of each call."""
    start = time.perf_counter()
    try:
        with at_most(SECONDS):
            fast = subquad.optimize(
                model, (), example, attention="exact", check=False, backend="eager",
                dynamic_shapes=dynamic_shapes,
            )  # fmt: skip
    except TooLongError:
        return [Call("uncaptured", f"it takes over {SECONDS:g} s of the processor") for _ in calls]
    except CaptureError as error:
        return [Call("uncaptured", _told(error)) for _ in calls]
    except Exception as error:
        return [Call("crashed", _told(error, at=True)) for _ in calls]
    total = time.perf_counter() - start
    steps = fast.log.steps
    spent = Counter[str]()
    for step in steps:
        spent[step.name] += step.seconds
    call = Call(
        "differs",
        ops=(size(steps[0].before), size(fast.graph)),
        sites=[_site(site) for site in fast.sites],
        seconds={"capture": total - sum(spent.values()), **spent},
        undone=[f"{step.name}: {step.undone}" for step in steps if step.undone],
    )
    return [_held(model, fast, replace(call), kwargs) for kwargs in calls]


def _held(model: Any, fast: Any, call: Call, kwargs: Any) -> Call:
    """`call` with the errors of both models on `kwargs`."""
    try:
        compared = subquad.compare(model, fast, (), kwargs, repeats=0)
        theirs, ours = (leaves(_call(m, kwargs)) for m in (model, fast))
    except CaptureError as error:  # sizes that the model fixed while it was captured
        call.status, call.reason = "uncaptured", _told(error)
        return call
    except Exception as error:
        call.status, call.reason = "crashed", _told(error, at=True)
        return call
    call.error, call.reference = compared.max_error, compared.reference
    call.own = max((o.original.max_abs for o in compared.outputs), default=0.0)
    call.bits = all(_same(x, ours[name]) for name, x in theirs.items())
    wrong = [f"{o.name} is off by {o.optimized.max_abs:.2g}" for o in compared.outputs if not o.within()]
    call.status, call.reason = ("differs", "; ".join(wrong)) if wrong else ("equal", "")
    return call


class TooLongError(BaseException):
    """Time is up. No Exception, so that no retry on the way takes it for one."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """A block that raises TooLongError after this much time of the processor. Main thread only."""

    def stop(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _call(model: Any, kwargs: Any) -> Any:
    kwargs = tree_map_only(torch.Tensor, torch.clone, kwargs)
    with torch.no_grad(), seeded():
        return model(**kwargs)


def _same(x: Any, y: Any) -> bool:
    if not isinstance(x, torch.Tensor):
        return type(x) is type(y)
    return x.dtype is y.dtype and x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


def _site(site: Any) -> tuple[str, str, str, str, str, str]:
    return (site.path, site.mask, str(site.q_heads), str(site.kv_heads), site.status, site.reason)


def _told(error: BaseException, at: bool = False) -> str:
    """An error on one line; with `at`, the innermost frame too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3])[:300]
    if not isinstance(error, (NotBuiltError, CaptureError)):
        text = f"{type(error).__name__}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if at and frames else ""
    return f"{text}{where}"

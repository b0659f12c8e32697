"""What a machine does in a second: measured here and kept, or taken from a data sheet.

    here = this_machine()             # measured in a few seconds at the first call, then read from the cache
    there = machine_named("h100")     # from backends/targets.py, to plan for a machine that is not at hand

The cache is a folder of JSON files: $SUBQUAD_CACHE, else $XDG_CACHE_HOME/subquad, else ~/.cache/subquad. An
entry belongs to one processor, version of torch and number of threads; one that cannot be read, or is
about something else, is measured again, and where nothing can be written everything works without.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .ir import SubquadError

FORMAT = 2
"""Of the cache; entries of another format are measured again."""

BUSY = 2.0
"""A spread of times from which on a machine has too much else to do to be measured well."""

Curve = tuple[tuple[float, float], ...]
"""Points (x, y), x rising; between them y is interpolated in log-log, beyond them it stays."""


@dataclass(frozen=True)
class Machine:
    """The constants that times are predicted from; rates are a second's.

    kind: "cpu" or "cuda". products: FLOP/s of a large square matrix product, by dtype (`f32`). sides: the
    share of that, by the least side of a product. shares: the share that other kernels reach: "batched"
    products of 64 features, "attention" and "causal" (scaled_dot_product_attention), `linear_attention`
    with no decay ("none"), one a "head", "token" or "channel", or the "delta" rule, and depthwise
    "convolution". bandwidth: bytes/s of elementwise work by the bytes it touches: high in cache. fresh:
    (bytes, bytes/s): a result of at least so many bytes is memory that the system has to provide, at that
    rate; None where it costs nothing. elements: elements/s of ops that memory does not bound, by op.
    launch, view: seconds to start an op, and a view. memory: bytes. link: bytes/s from and to the host.
    spread: the typical median over the least of the times that were taken.
    """

    name: str
    kind: str
    products: Mapping[str, float]
    sides: Curve
    shares: Mapping[str, float]
    bandwidth: Curve
    elements: Mapping[str, float]
    launch: float
    view: float
    memory: float
    link: float | None = None
    fresh: tuple[float, float] | None = None
    spread: float = 1.0

    def product(self, dtype: str, least: float = math.inf, batched: bool = False) -> float:
        """FLOP/s of a matrix product whose least side is `least`; of f32 where the dtype is not known."""
        rate = self.products.get(dtype, self.products["f32"]) * between(self.sides, least)
        return rate * self.shares["batched"] / between(self.sides, 64) if batched else rate

    def kernel(self, name: str, dtype: str) -> float:
        """FLOP/s of one of `shares`."""
        return self.products.get(dtype, self.products["f32"]) * self.shares[name]

    def moving(self, touched: float, result: float = 0) -> float:
        """Seconds to read and write `touched` bytes, of which `result` are new."""
        seconds = touched / between(self.bandwidth, touched) if touched else 0.0
        if self.fresh is not None and result >= self.fresh[0]:
            seconds += result / self.fresh[1]
        return seconds

    @property
    def busy(self) -> bool:
        """Whether other work was measured too: equal times differed, or threads waited for a core that others
        had, so that on a CPU elementwise work in cache took as long as far beyond it."""
        waited = 50 * min(rate for _, rate in self.bandwidth) < self.bandwidth[-1][1]
        return self.spread > BUSY or (self.kind == "cpu" and waited)

    def text(self, width: int = 110) -> str:
        """The constants as a table."""
        from .tables import count, grid, plain

        table = grid("what", "rate>", "of")
        for dtype, rate in self.products.items():
            table.add_row(f"product {dtype}", f"{count(rate)}FLOP/s", "a large matrix product")
        for side, share in self.sides:
            table.add_row(f"  least side {side:.0f}", f"{share:.0%}", "of that")
        for name, share in self.shares.items():
            table.add_row(f"  {name}", f"{share:.1%}", SHARES.get(name, "of that"))
        for size, rate in self.bandwidth:
            table.add_row("elementwise", f"{count(rate)}B/s", f"touching {count(size)}B")
        if self.fresh is not None:
            table.add_row("new memory", f"{count(self.fresh[1])}B/s", f"results of {count(self.fresh[0])}B")
        for name, rate in self.elements.items():
            table.add_row(name, f"{count(rate)}/s", "elements, in cache")
        table.add_row("launch", f"{self.launch * 1e6:.2f} us", "an op")
        table.add_row("view", f"{self.view * 1e6:.2f} us", "an op that moves nothing")
        table.add_row("memory", f"{count(self.memory)}B", "")
        if self.link is not None:
            table.add_row("link", f"{count(self.link)}B/s", "to the host")
        busy = ""
        if self.busy:
            busy = "\n\nThe machine was busy, and this is not what it can do: measure again when it is not."
        return f"{self.name} ({self.kind})\n\n{plain(table, width=width)}{busy}"


SHARES = {
    "batched": "batched products of 64 features",
    "attention": "scaled_dot_product_attention",
    "causal": "the same, causal, of the pairs it has to look at",
    "none": "linear_attention without a decay",
    "head": "with a decay for each head",
    "token": "with a decay for each token",
    "channel": "with a decay for each feature",
    "delta": "with the delta rule",
    "convolution": "depthwise convolution",
}
"""What the shares are of."""


def between(points: Curve, x: float) -> float:
    """The curve at x, linear in log-log between its points and constant beyond them."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return float(y0 * (y1 / y0) ** (math.log(x / x0) / math.log(x1 / x0)))
    return points[-1][1]


def machine_named(name: str) -> Machine:
    """A machine of backends/targets.py. Raises SubquadError with the nearest name."""
    from .backends.targets import TARGETS

    key = name.lower().replace(" ", "").replace("-", "").replace("_", "")
    if key not in TARGETS:
        close = difflib.get_close_matches(key, TARGETS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SubquadError(f"no machine is called {name!r}; there are {', '.join(sorted(TARGETS))}{hint}")
    return machine_of(TARGETS[key])


def machine_of(data: Any) -> Machine:
    """A machine from plain data, as JSON gives it. Raises SubquadError where it is none."""
    try:
        known = {field.name for field in fields(Machine)}
        if not set(data) <= known:
            raise ValueError(f"it has {', '.join(sorted(set(data) - known))}")
        found = Machine(
            str(data["name"]), str(data["kind"]), _rates(data["products"]), _curve(data["sides"]),
            _rates(data["shares"]), _curve(data["bandwidth"]), _rates(data["elements"]),
            _above(data["launch"]), float(data["view"]), _above(data["memory"]),
            None if data.get("link") is None else _above(data["link"]),
            None if data.get("fresh") is None else _curve([data["fresh"]])[0],
            _above(data.get("spread", 1.0)),
        )  # fmt: skip
        if "f32" not in found.products or not SHARES.keys() <= found.shares.keys():
            raise ValueError("a rate is missing")
        return found
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise SubquadError(f"these are no constants of a machine: {error!r}") from error


def _above(x: Any) -> float:
    number = float(x)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{number} is not above 0")
    return number


def _rates(table: Any) -> dict[str, float]:
    return {str(name): _above(rate) for name, rate in table.items()}


def _curve(points: Any) -> Curve:
    curve = tuple((_above(x), _above(y)) for x, y in points)
    if not curve or any(a[0] >= b[0] for a, b in itertools.pairwise(curve)):
        raise ValueError(f"{points} do not rise")
    return curve


# ---- this machine, and the cache -----------------------------------------------------------------


def this_machine(device: str | None = None, *, force: bool = False) -> Machine:
    """What this machine does: from the cache, or measured in a few seconds and kept there.

    device: "cpu" or "cuda"; None for CUDA where there is some. force: measure again.
    """
    import torch

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if where == "cuda" and not torch.cuda.is_available():
        raise SubquadError("device='cuda' was asked for, but torch sees no CUDA device here; use 'cpu'")
    if where not in ("cpu", "cuda"):
        raise SubquadError(f"device={where!r}: what can be measured is 'cpu' and 'cuda'")
    key = identity(where)
    if force or key not in _known:
        _known[key] = _machine(where, key, force)
    return _known[key]


_known: dict[str, Machine] = {}
"""Machines of this process by identity: measured once also where nothing can be kept."""


def _machine(where: str, key: str, force: bool) -> Machine:
    if not force:
        try:
            return machine_of(recall("machine", key))
        except SubquadError:
            pass
    from .speeds import measured

    found = measured(where)
    if not found.busy:  # else it serves this process, and the next one tries again
        keep("machine", key, asdict(found))
    return found


def identity(device: str) -> str:
    """What the constants depend on, as one text: processor, torch, threads."""
    import torch

    if device == "cuda":
        what = f"{torch.cuda.get_device_name()}; CUDA {torch.version.cuda}"
    else:
        what = f"{processor()}; {torch.get_num_threads()} threads"
    return f"{what}; torch {torch.__version__}; format {FORMAT}"


@functools.cache
def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = [line.partition(":") for line in text.split("\n\n")[0].splitlines()]
        known = {name.strip(): value.strip() for name, _, value in lines}
        parts = [known[name] for name in ("model name", "cpu family", "model") if name in known]
        if "model name" in known:
            return " ".join(parts)
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def cache_folder() -> Path:
    """Where measurements are kept; it need not exist."""
    given = os.environ.get("SUBQUAD_CACHE")
    if given:
        return Path(os.path.expanduser(given))
    base = (
        os.environ.get("XDG_CACHE_HOME") or ""
    )  # what is not absolute is to be ignored, says its specification
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "subquad"


def entry(kind: str, key: str) -> Path:
    """The file of an entry of the cache."""
    return cache_folder() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def where_kept(found: Machine) -> str:
    """Words about where this machine's constants lie."""
    path = entry("machine", identity(found.kind))
    if found.busy:
        return "not kept: it serves this process only"
    return f"kept in {path}" if path.exists() else f"not kept: {path.parent} cannot be written"


def recall(kind: str, key: str) -> Any:
    """What was kept under a key, or None: nothing there, unreadable, or about something else."""
    try:
        data = json.loads(entry(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data.get("value") if isinstance(data, dict) and data.get("key") == key else None


def keep(kind: str, key: str, value: Any) -> Path | None:
    """Write an entry, whole or not at all; the file, or None where nothing can be written."""
    from .store import write

    path = entry(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps({"key": key, "value": value}, indent=1) + "\n")
    except OSError:
        return None
    return path

"""The result of `subquad.compare`: figures, tables, a verdict, a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from .extras import extra
from .ir import SubquadError
from .measure import Paired, Spread, exponent
from .tables import WIDTH, count, error, grid, plain

ADVICE_EXACT = (
    "    every attention was kept exact, so a rewrite or a kernel is wrong:",
    "    subquad.bisect(model, args) names the rule and writes a file that shows it",
)
ADVICE_APPROXIMATE = (
    "    a recipe you named replaced attention by an approximation: say what you accept with",
    '    assert_close(bound=...), or keep attention as it is with optimize(..., attention="exact")',
)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a tensor is from the reference, over the places where both are finite.

    max_abs: infinity where one is finite and the other is not, or they are different infinities.
    relative: max_abs over the reference's root mean square. cosine: 1.0 for the same direction.
    """

    max_abs: float
    relative: float
    cosine: float
    rms: float

    @staticmethod
    def of(x: torch.Tensor, truth: torch.Tensor) -> Difference:
        """The difference of two tensors of one shape."""
        if x.shape != truth.shape:
            raise SubquadError(f"an output has shape {tuple(x.shape)}, not {tuple(truth.shape)}")
        a, b = (t.detach().to("cpu").reshape(-1) for t in (x, truth))
        if a.is_complex() or b.is_complex():
            a, b = (torch.view_as_real(t.to(torch.complex128)).reshape(-1) for t in (a, b))
        a, b = a.double(), b.double()
        if not a.numel():
            return Difference(0.0, 0.0, 1.0, 0.0)
        strange = ~(a.isfinite() & b.isfinite())
        same = (a == b) | (a.isnan() & b.isnan())
        fits = bool(same[strange].all())
        a, b = a[~strange], b[~strange]
        top = float((a - b).abs().max()) if a.numel() else 0.0
        rms = float(b.square().mean().sqrt()) if b.numel() else 0.0
        norms = float(a.norm() * b.norm())
        cosine = float(a @ b) / norms if norms else float(top == 0.0)
        top = top if fits else float("inf")
        relative = top / rms if rms else 0.0 if top == 0.0 else float("inf")
        return Difference(top, relative, cosine, rms)


@dataclass(frozen=True, slots=True)
class Output:
    """One output of both models: their errors, and what the optimised one was allowed."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    original: Difference
    optimized: Difference
    bound: float

    def within(self, bound: float | None = None) -> bool:
        """Whether the optimised model's largest error is at most `bound` (its own by default)."""
        return self.optimized.max_abs <= (self.bound if bound is None else bound)


@dataclass(frozen=True, slots=True)
class SiteError:
    """How far a recipe is from the exact attention on the same q, k and v, at one site."""

    path: str
    recipe: str
    difference: Difference


@dataclass(frozen=True, slots=True)
class Row:
    """Time and peak extra memory of both models at one length; before = original."""

    length: int
    time: Paired
    memory: tuple[int | None, int | None]


@dataclass(frozen=True)
class Comparison:
    """Errors of two models on the same inputs, and what each of them costs. `str()` is tables.

    outputs: one entry for each tensor returned. reference: what errors are measured against.
    exact: whether the optimised model kept every attention exact. sites: where it did not, what
    the recipe there does to its own attention alone, in float64. time: seconds, in pairs.
    memory: peak extra bytes (original, optimised). flops: of matrix products and attention, by
    torch's counter. rate: the machine's own matrix product, FLOP/s. rows: one for each length.
    """

    outputs: tuple[Output, ...]
    reference: str = "float64"
    exact: bool = True
    sites: tuple[SiteError, ...] = ()
    time: Paired | None = None
    memory: tuple[int | None, int | None] = (None, None)
    flops: tuple[int | None, int | None] = (None, None)
    rate: float | None = None
    rows: tuple[Row, ...] = ()

    # ---- figures ---------------------------------------------------------------------------

    @property
    def speedup(self) -> Spread | None:
        """How many times faster the optimised model is."""
        return self.time.ratio if self.time else None

    @property
    def max_error(self) -> float:
        """The optimised model's largest error over all outputs."""
        return max((o.optimized.max_abs for o in self.outputs), default=0.0)

    def exponents(self, start: int = 0) -> dict[str, float | None]:
        """p in cost ~ length ** p, least squares in log-log over lengths >= start.

        Keys: "time original", "time optimized", "memory original", "memory optimized"; None
        where fewer than two lengths were measured.
        """
        rows = [r for r in self.rows if r.length >= start]
        found: dict[str, float | None] = {}
        for side, name in enumerate(("original", "optimized")):
            timed = [r for r in rows if _seconds(r, side) is not None]
            found[f"time {name}"] = exponent(
                [r.length for r in timed], [_seconds(r, side) or 0.0 for r in timed]
            )
            found[f"memory {name}"] = exponent(
                [r.length for r in rows], [float(r.memory[side] or 0) for r in rows]
            )
        return found

    # ---- the verdict -----------------------------------------------------------------------

    def assert_close(self, bound: float | None = None) -> None:
        """Raise AssertionError unless every output is within its bound.

        The bound of an output is max(3 x the original's own error, a floor by dtype: 1e-5 for
        float32, 2e-3 for float16, 2e-2 for bfloat16), or `bound` where you give one.
        """
        wrong = [o for o in self.outputs if not o.within(bound)]
        if not wrong:
            return
        lines = [f"{len(wrong)} of {len(self.outputs)} outputs differ from the original"]
        for o in wrong:
            allowed = o.bound if bound is None else bound
            lines.append(
                f"    {o.name} {_type(o)}: max error {o.optimized.max_abs:.3g}, allowed"
                f" {allowed:.3g} (the original's own error is {o.original.max_abs:.3g}, cosine"
                f" {o.optimized.cosine:.6f}, reference: {self.reference})"
            )
        lines += ADVICE_EXACT if self.exact else ADVICE_APPROXIMATE
        raise AssertionError("\n".join(lines))

    # ---- printing --------------------------------------------------------------------------

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """Every table as plain text of `width` columns."""
        return plain(*self._parts(), width=width)

    def scaling(self, width: int = WIDTH) -> str:
        """The table over lengths and the fitted exponents, as plain text."""
        return plain(self._scaling(), *self._fits(), width=width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts()

    def _parts(self) -> Iterator[RenderableType]:
        table = grid("output", "type", "original's error>", "optimised>", "relative>", "cosine>",
                     "allowed>", "")  # fmt: skip
        for o in self.outputs:
            table.add_row(
                o.name, _type(o), error(o.original.max_abs), error(o.optimized.max_abs),
                error(o.optimized.relative), f"{o.optimized.cosine:.6f}", error(o.bound),
                "ok" if o.within() else "above" if not self.exact else "WRONG",
            )  # fmt: skip
        yield table
        yield Text(f"errors are against {self.reference}; relative is to the root mean square")
        if self.sites:
            yield Text("")
            places = grid("attention at", "recipe", "max error>", "relative>", "cosine>")
            for site in self.sites:
                d = site.difference
                figures = (error(d.max_abs), error(d.relative), f"{d.cosine:.4f}")
                places.add_row(site.path, site.recipe, *figures)
            yield places
            yield Text("recipe against exact attention on the same q, k and v, in float64")
        if self.time is not None:
            yield Text("")
            yield self._costs()
        if self.rows:
            yield Text("")
            yield self._scaling()
            yield from self._fits()

    def _costs(self) -> RenderableType:
        assert self.time is not None
        table = grid("", "original>", "optimised>", "times less (min..max)")
        before, after = min(self.time.before), min(self.time.after)
        best = f"time, best of {len(self.time.before)}"
        table.add_row(best, _time(before), _time(after), str(self.time.ratio))
        table.add_row("peak extra memory", *map(_bytes, self.memory), _times(*self.memory))
        table.add_row("FLOPs (matrix products)", *map(_flops, self.flops), _times(*self.flops))
        if self.rate:
            floors = [f / self.rate if f else None for f in self.flops]
            table.add_row(
                "floor: FLOPs at matmul rate", *map(_time, floors), f"{count(self.rate)}FLOP/s here"
            )
        return table

    def _scaling(self) -> RenderableType:
        table = grid(
            "length>", "time>", "optimised>", "times faster>", "memory>", "optimised>",
            "times less>",
        )  # fmt: skip
        for r in self.rows:
            ratio = str(r.time.ratio) if r.time.before else "-"
            table.add_row(
                str(r.length), _time(_seconds(r, 0)), _time(_seconds(r, 1)), ratio,
                *map(_bytes, r.memory), _times(*r.memory),
            )  # fmt: skip
        return table

    def _fits(self) -> Iterator[RenderableType]:
        starts = [0] + [2048] * (sum(r.length >= 2048 for r in self.rows) >= 2)
        for start in starts:
            fit = {k: "-" if v is None else f"{v:.2f}" for k, v in self.exponents(start).items()}
            where = f"from {start} up" if start else "all lengths"
            time, memory = (
                f"{what} {fit[f'{what} original']} -> {fit[f'{what} optimized']}"
                for what in ("time", "memory")
            )
            yield Text(f"exponent p of length^p, {where}: {time}, {memory}")

    def plot(self, path: str | Path) -> Path:
        """Write the scaling table as a picture (PNG, or what the suffix says); returns the path.

        Raises SubquadError without lengths, or without matplotlib.
        """
        if not self.rows:
            raise SubquadError("nothing to plot: call compare(..., lengths=[...], make_args=...)")
        extra("matplotlib", "plot", "drawing a plot")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for side, (name, mark) in enumerate((("original", "o-"), ("optimised", "s-"))):
            long = sum(r.length >= 2048 for r in self.rows) > 1
            fit = self.exponents(2048 if long else 0)
            for axes, what in ((left, "time"), (right, "memory")):
                values = [_seconds(r, side) if axes is left else r.memory[side] for r in self.rows]
                points = [(r.length, v) for r, v in zip(self.rows, values) if v]
                p = fit[f"{what} {'optimized' if side else 'original'}"]
                label = name if p is None else f"{name}: length^{p:.2f}"
                if points:
                    axes.loglog(*zip(*points), mark, label=label)
        for axes, what in ((left, "seconds"), (right, "peak extra bytes")):
            axes.set_xlabel("length")
            axes.set_ylabel(what)
            axes.grid(True, which="both", alpha=0.3)
            axes.legend()
        path = Path(path)
        figure.savefig(path, dpi=120)
        return path


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested outputs by name: `last_hidden_state`, `[0]`, `past[2].key`."""
    if isinstance(tree, torch.Tensor) or tree is None:
        return {name or "output": tree}
    if isinstance(tree, Mapping):
        items = [(f"{name}.{k}" if name else str(k), v) for k, v in tree.items()]
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        items = [(f"{name}.{k}" if name else k, v) for k, v in zip(tree._fields, tree)]
    elif isinstance(tree, Sequence) and not isinstance(tree, (str, bytes)):
        items = [(f"{name}[{i}]", v) for i, v in enumerate(tree)]
    elif is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in fields(tree)]
        items = [(f"{name}.{k}" if name else k, getattr(tree, k)) for k in names]
    else:
        return {name or "output": tree}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= leaves(value, key)
    return found


def _seconds(row: Row, side: int) -> float | None:
    values = row.time.after if side else row.time.before
    return min(values) if values else None


def _type(o: Output) -> str:
    return f"{str(o.dtype).removeprefix('torch.')}[{','.join(map(str, o.shape))}]"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _bytes(n: int | None) -> str:
    return "-" if n is None else f"{count(n, 1024).strip()}{'i' if n >= 1024 else ' '}B"


def _flops(n: int | None) -> str:
    return "-" if n is None else count(n).strip()


def _times(before: float | None, after: float | None) -> str:
    return f"{before / after:.3g}" if before and after else "-"

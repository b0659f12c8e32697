"""What a recipe is: one linear-complexity replacement for a recognised attention, as plain code.

    @recipe(paper="arXiv:2006.16236", kind="needs training", masks=ALL)
    def elu1(q, k, v, site):
        "phi(x) = elu(x) + 1 instead of the exponential."
        k = site.kept(phi(k))
        return linear_attention(phi(q), k, v, causal=site.causal, normalize=True, eps=1e-6)

`q` is [b, h, n, d], `k` [b, g, m, d], `v` [b, g, m, e] with h a multiple of g; the result is
[b, h, n, e]. Keyword-only parameters after `site` are the recipe's options. What a recipe learns it
asks the site for, with a value to start from:

    gate = site.learn("gate", zeros(q.dtype, h))
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ...ir import OPS, Dim, Graph, IRError, RecipeError, Value
from ...ir.ops.elementwise import where
from ...ir.ops.shape import expand
from ...ir.types import bool_, i64
from ..masks import Mask, over_keys, uniform
from ..options import Option, Reader, options_of, suggest

ALL = frozenset({"none", "causal", "padding", "causal+padding"})
"""The masks that a sum over keys, running or not, can honour."""

SEVERAL = {
    "none": "packed", "causal": "causal+packed", "padding": "packed+padding",
    "causal+padding": "causal+packed+padding",
}  # fmt: skip
"""The masks of `ALL` where several sequences stand in one row, packed, and do not see each other."""

MASKS = ALL | frozenset(SEVERAL.values())
"""All that a recipe may honour. What a recurrence forgets between sequences honours all of them."""

CAUSAL = frozenset(mask for mask in MASKS if "causal" in mask)
"""Those under which no token sees a later one."""

HONOURED = {
    "softcap": "caps its scores by a tanh",
    "sink": "has a sink that takes a share of every row",
    "past": "has keys from before its first query",
    "offset": "counts its queries from another position than its keys",
}
"""What else an attention may do that a recipe must say it honours, and how that is said."""

KINDS = ("exact", "approximate", "needs training")

NEEDS = {
    "grid": "the grid its tokens lie on, which is not known here: pass grid=(height, width)",
    "tokens": "the tokens that queries, keys and values are projected from, and these are not of one source",
}
"""What a recipe may need of a site, and how its absence is said."""


OPEN = Mask("none")
"""The mask that keeps every key."""


@dataclass(frozen=True)
class Mixing:
    """How an attention mixes tokens, and what is known of where it stands.

    scale: of the scores. causal: only keys j <= i (+ mask.offset, where that is honoured). padding: bool
    [b or 1, 1, 1, m], True for keys that count, or None. name: what names of its learned weights start
    with. index: which attention of the model it is, from 0, of `count`. tokens: x [b, n, c] that q, k and
    v are projected from, or None. grid: the sizes of the token grid, (H, W) or (T, H, W), or (); `before`:
    how many class and register tokens stand before the grid. mask: all that was proved of it. softcap,
    sink: as of `attention`.
    """

    scale: float
    causal: bool
    padding: Value | None = None
    name: str = "site"
    index: int = 0
    count: int = 1
    tokens: Value | None = None
    grid: tuple[Dim, ...] = ()
    before: int = 0
    mask: Mask = OPEN
    softcap: float | None = None
    sink: Value | None = None

    def learn(self, name: str, init: Value) -> Value:
        """A new weight of the model that starts as `init`, which reads no input of the graph."""
        start = Graph("init", (), (init,))
        return OPS["param"](name=f"{self.name}.{name}", type=init.type, init=start)

    def fixed(self, name: str, init: Value) -> Value:
        """As `learn`, for what is drawn once and not trained: random features, permutations."""
        start = Graph("init", (), (init,))
        return OPS["param"](name=f"{self.name}.{name}", type=init.type, init=start, fixed=True)

    def segments(self, b: Dim) -> Value | None:
        """i64 [b, n], which of several sequences packed in a row each token is of; None for one sequence.

        Raises RecipeError where the tokens of a sequence are not proved to stand together.
        """
        if self.mask.segments is None:
            return None
        found = _runs(*self.mask.segments)
        if found is None:
            raise RecipeError(
                "its mask tells sequences apart by numbers that are not proved to count up along the tokens, "
                "and a recurrence returns to none; count where they start: cumsum(starts, dim=-1) of a bool"
            )
        return expand(found, size=(b, found.shape[1]))

    def kept(self, x: Value) -> Value:
        """x [b, g, m, d] with zeros at padded keys, so that sums over keys pass them by."""
        if self.padding is None:
            return x
        return where(over_keys(self.padding, x.shape[0], x.shape[2]), x, 0.0)


def _runs(queries: Value, keys: Value) -> Value | None:
    """The segments [b or 1, n] of queries and of keys, if both are one running count; else None."""
    sides = []
    for x in (queries, keys):
        sign = 1  # an equality holds of what is less than 0 as well
        while x.op.name == "reshape" or (x.op.name == "mul" and uniform(x.op.args[1]) in (1, -1)):
            sign = -sign if x.op.name == "mul" and uniform(x.op.args[1]) == -1 else sign
            x = x.op.args[0]
        sides.append((x, sign))
    (count, _), n = sides[0], queries.shape[1]
    if sides[0] != sides[1] or count.op.name != "cumsum" or count.op.attrs["dim"] != count.rank - 1:
        return None
    starts = count.op.args[0]
    return queries if count.shape[-1] == n and count.dtype is i64 and starts.dtype is bool_ else None


@dataclass(frozen=True)
class Recipe:
    """A replacement for attention: where it comes from, where it applies, and its code.

    kind: "exact", "approximate" (usable as it is, at a measured damage) or "needs training".
    masks: the masks it honours. square: whether it needs as many queries as keys. needs: what of a
    site it cannot do without: "grid", "tokens". honours: which of `HONOURED` it takes into account.
    learns: the weights it adds, and what they start from.
    """

    name: str
    function: Callable[..., Value]
    paper: str
    kind: str
    masks: frozenset[str]
    square: bool = False
    needs: frozenset[str] = frozenset()
    honours: frozenset[str] = frozenset()
    learns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    doc: str = ""

    def __call__(self, q: Value, k: Value, v: Value, site: Mixing) -> Value:
        """The replacement on these operands. Raises RecipeError where the site lacks what it needs."""
        for need in sorted(self.needs):
            if not getattr(site, need):
                raise RecipeError(f"it needs {NEEDS[need]}")
        return self.function(q, k, v, site, **self.given)

    def with_(self, **options: Any) -> Recipe:
        """This recipe with other options. Raises RecipeError for an unknown one or a wrong kind."""
        given = dict(self.given)
        for name, value in options.items():
            if name not in self.options:
                hint = suggest(name, self.options)
                raise RecipeError(f"recipe {self.name!r} has no option {name!r}{hint}")
            try:
                given[name] = self.options[name].check(value)
            except IRError as error:
                raise RecipeError(f"recipe {self.name!r}: {error}") from None
            if given[name] == self.options[name].default:
                del given[name]
        return dataclasses.replace(self, given=MappingProxyType(given))

    def refusal(
        self, kind: str, causal: bool, square: bool, reason: str, does: Iterable[str] = ()
    ) -> str | None:
        """Why it cannot stand in for an attention with this mask and these lengths, or None.

        square: as many queries as keys. does: which of `HONOURED` the attention does.
        """
        if kind not in self.masks:
            why, whole = f" ({reason})" if reason else "", sorted(self.masks & ALL)
            several = [SEVERAL[m] for m in whole if SEVERAL[m] in self.masks]
            known = f"{', '.join(whole)}, each also packed" if len(several) == len(whole) else ""
            return f"{self.name} honours {known or ', '.join(sorted(self.masks))}; this mask is {kind}{why}"
        for name in does:
            if name not in self.honours:
                return f"{self.name} honours no {name}, and this attention {HONOURED[name]}"
        if not square and (causal or self.square) and not ("past" in does and causal):
            need = "a causal recipe" if causal else self.name
            return f"{need} needs as many queries as keys, and that is not proved here"
        return None

    def __str__(self) -> str:
        shown = ",".join(f"{k}={self.options[k].text(v)}" for k, v in self.given.items())
        return f"{self.name}({shown})" if shown else self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


RECIPES: dict[str, Recipe] = {}
"""Every recipe by name; importing `subquad.passes` fills it."""


def recipe(
    *,
    paper: str,
    kind: str,
    masks: Iterable[str],
    square: bool = False,
    needs: Iterable[str] = (),
    honours: Iterable[str] = (),
    learns: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Callable[..., Value]], Recipe]:
    """Make a recipe of a function `(q, k, v, site, *, options) -> value` and register it."""

    def make(function: Callable[..., Value]) -> Recipe:
        name = function.__name__
        if name in RECIPES:
            raise RecipeError(f"recipe {name!r} is declared twice")
        known = set(masks) <= MASKS and set(needs) <= NEEDS.keys() and set(honours) <= HONOURED.keys()
        if kind not in KINDS or not known:
            raise RecipeError(
                f"recipe {name!r}: kind is one of {KINDS}, masks of {sorted(MASKS)}, "
                f"needs of {sorted(NEEDS)}, honours of {sorted(HONOURED)}"
            )
        doc = (function.__doc__ or "").strip()
        options = options_of(function)
        found = Recipe(
            name, function, paper, kind, frozenset(masks), square, frozenset(needs),
            frozenset(honours), dict(learns), options, {}, doc,
        )  # fmt: skip
        RECIPES[name] = found
        return found

    return make


def recipe_named(spec: str | Recipe) -> Recipe:
    """The recipe a spec names: `"window"`, `"window(size=32)"`, or a Recipe itself.

    Raises RecipeError with the nearest name.
    """
    if isinstance(spec, Recipe):
        return spec
    if not isinstance(spec, str):
        raise RecipeError(f"a recipe is a name or a Recipe, not a {type(spec).__name__}")
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", spec)
    name = match[1] if match else spec
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}{suggest(name, RECIPES)}")
    found = RECIPES[name]
    for part in filter(None, ((match and match[2]) or "").split(",")):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or key not in found.options:
            hint = suggest(key, found.options)
            raise RecipeError(f"recipe {name!r} has no option {key!r}{hint}")
        try:
            found = found.with_(**{key: found.options[key].parse(Reader(text).pairs())})
        except IRError as error:
            raise RecipeError(f"recipe {name!r}: {error}") from None
    return found

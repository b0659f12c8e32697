"""The recipes as tables: what `subquad recipes` prints and docs/recipes.md holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .ir import RecipeError
from .passes.prices import price
from .passes.recipes import Recipe
from .passes.recipes.recipe import KINDS, SEVERAL
from .tables import WIDTH, count, grid, plain

MEANING = {
    "exact": "computes the same function",
    "approximate": "usable as it is, at a measured damage",
    "needs training": "another function; fit or train it",
}
"""What the kinds of recipes promise."""

COLUMNS = ("recipe", "masks", "needs", "n^", "FLOPs", "fewer from", "paper")

LEGEND = """\
n^: the power of the number of tokens that FLOPs grow with. FLOPs: of one token and head, at 16,384 tokens
and 12 heads of 64, with all that the recipe computes from the tokens; exact attention takes 4.3 M.
fewer from: the number of tokens from which on FLOPs are fewer than exact attention's. A dash: by name
alone the recipe refuses, and says what it must be told; or it is not cheaper up to a million tokens."""
"""What the columns mean."""


def recipe_text(recipes: Mapping[str, Recipe], width: int = WIDTH) -> str:
    """The recipes by kind: figures, then what each does, what it learns and from which start."""
    parts = []
    for kind, chosen in by_kind(recipes):
        figures, words = (
            grid("recipe", "masks", "needs", "n^>", "FLOPs>", "fewer from>", "paper"),
            grid("", ""),
        )
        words.show_header = False
        for recipe in chosen:
            figures.add_row(recipe.name, masks(recipe), needs(recipe), *figures_of(recipe), paper(recipe))
            words.add_row(recipe.name, what(recipe))
            for start in starts(recipe):
                words.add_row("", f"  {start}")
        parts += [
            f"{kind}: {MEANING[kind]}\n",
            plain(figures, width=width),
            "",
            plain(words, width=width),
            "",
        ]
    return "\n".join([*parts, LEGEND])


def recipe_markdown(recipes: Mapping[str, Recipe]) -> str:
    """The same for docs/recipes.md: for each kind a table of figures and one of words."""
    lines: list[str] = []
    for kind, chosen in by_kind(recipes):
        lines += [f"### {kind}: {MEANING[kind]}", ""]
        rows = ((f"`{r.name}`", masks(r), needs(r), *figures_of(r), paper(r)) for r in chosen)
        lines += [*_table(COLUMNS, rows), ""]
        told = ((f"`{r.name}`", what(r), "; ".join(starts(r)) or "-") for r in chosen)
        lines += [*_table(("recipe", "what it does", "what it learns: from which start"), told), ""]
    return "\n".join(lines).rstrip()


def by_kind(recipes: Mapping[str, Recipe]) -> Iterator[tuple[str, list[Recipe]]]:
    """The kinds that there are, each with its recipes in the order of their names."""
    for kind in KINDS:
        chosen = sorted((r for r in recipes.values() if r.kind == kind), key=lambda r: r.name)
        if chosen:
            yield kind, chosen


def masks(recipe: Recipe) -> str:
    """The masks that it honours: `none or causal (+padding, +packed)` for all; and what else it takes."""
    found: dict[str, list[str]] = {}
    for plain_, padded in (("none", "padding"), ("causal", "causal+padding")):
        whole = [m for m in (plain_, padded) if m in recipe.masks]
        more = ["+padding"] if len(whole) == 2 else []
        more += ["+packed"] if whole and all(SEVERAL[m] in recipe.masks for m in whole) else []
        for mask in whole[: 1 if len(whole) == 2 else 2]:
            found.setdefault(f" ({', '.join(more)})" if more else "", []).append(mask)
    told = [f"{' or '.join(names)}{more}" if more else ", ".join(names) for more, names in found.items()]
    return ", ".join([*told, *sorted(recipe.honours)])


def needs(recipe: Recipe) -> str:
    """What of a site it cannot do without."""
    return ", ".join(sorted(recipe.needs)) or "-"


def figures_of(recipe: Recipe) -> tuple[str, str, str]:
    """Exponent, FLOPs a token and head, and crossover; dashes where it refuses by name alone."""
    try:
        found = price(recipe)
    except RecipeError:
        return "-", "-", "-"
    crossover = "-" if found.crossover is None else f"{found.crossover:,}"
    return f"{round(found.exponent, 1):g}", count(found.each).strip(), crossover


def what(recipe: Recipe) -> str:
    """The first sentence of what it says of itself."""
    text = " ".join(recipe.doc.split("\n\n")[0].split())
    return re.split(r"(?<=[^\s.])\.(?= [A-Z]|$)", text)[0] + "."


def starts(recipe: Recipe) -> list[str]:
    """What it learns, `gate, bias: 0`, weights of one start together."""
    alike: dict[str, list[str]] = {}
    for name, start in recipe.learns.items():
        alike.setdefault(start, []).append(name)
    return [f"{', '.join(names)}: {start}" for start, names in alike.items()]


def paper(recipe: Recipe) -> str:
    """Where it is from."""
    return recipe.paper or "-"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

"""Kinetics: each block of queries attends to the blocks of keys that it scores highest."""

from __future__ import annotations

from ...ir import RecipeError
from .pieces import normalised, selected
from .recipe import ALL, recipe


@recipe(paper="arXiv:2506.05333", kind="approximate", masks=ALL, square=True)
def kinetics(q, k, v, site, *, size: int = 16, pages: int = 64, sinks: int = 1, skip: int = 1,
             rest: str = "none"):  # fmt: skip
    """Block top-k attention: exact softmax over the `pages` best of all pages of `size` keys.

    A page's score is its mean key times the mean query of a block of queries, all query heads of a
    key head together; causal, it is the first query of the block that scores the earlier pages, and the
    own page is always taken. The first `sinks` pages are always taken. The first `skip` attentions of
    a model that has more stay exact. rest: what becomes of the other pages: "none", they are dropped, as
    in the paper; "pooled", one key and value stand for all of them; "zeroth", one for each page.

    The paper selects for one query at a time while it generates; here `size` queries choose together.
    The exact part costs n pages size (d + e) and choosing n^2 d / size^2, so that it is linear only
    where n is far below pages size^3; "zeroth" costs n^2 (d + e) / size.
    """
    if rest not in ("none", "pooled", "zeroth"):
        raise RecipeError(f"rest={rest!r}: it is 'none', 'pooled' or 'zeroth'")
    if site.index < skip < site.count:
        raise RecipeError(f"the first skip={skip} attentions stay exact, and this is number {site.index + 1}")
    part = selected(
        q, k, v, size=size, count=pages, scale=site.scale, causal=site.causal, rest=rest, sinks=sinks,
        padding=site.padding,
    )  # fmt: skip
    return normalised(part, q.dtype)

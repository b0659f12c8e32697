"""Attention that was once rewritten into something else: rows without keys, narrow dtypes, odd maxima."""

import pytest
import torch
from test_spellings import Spelled, Spelling, attentions, causal_mask, equal
from torch.nn import functional as F

import subquad

LEAST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("first", [-torch.inf, LEAST, -1e30])
@pytest.mark.parametrize("then", [-torch.inf, LEAST, -1e30])
@pytest.mark.parametrize("how", ["add, fill", "fill, add", "fill, fill"])
def test_masks_apply_in_their_order(first, then, how):
    """A score that is replaced has lost what was added or masked before: it shows in a row without keys."""

    def masked(q, k, v, keep):
        s, causal = q @ k.mT, causal_mask(7)
        for low, kept, way in zip((first, then), (keep, causal), how.split(", "), strict=True):
            s = s.masked_fill(~kept, low) if way == "fill" else s + torch.where(kept, 0.0, low)
        return s.softmax(-1) @ v

    keep = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    keep[0, ..., :3] = False
    model, args = Spelled(masked), (*Spelling(None).args(), keep)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    assert attentions(fast.graph)
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args), equal_nan=True)


@pytest.mark.parametrize("off", [lambda s: s.amax(-1), lambda s: s.amax(-1)[:, :, None]])
def test_a_maximum_along_the_keys_is_no_maximum_of_a_row(off):
    """Without keepdim it lines up with the keys: each key loses the maximum of another row."""
    shape = "b h n d" if off(torch.ones(2, 2, 2, 2)).dim() == 4 else "n d"
    model = Spelled(lambda q, k, v: ((s := q @ k.mT) - off(s)).softmax(-1) @ v)
    args = Spelling(None, ", ".join([shape] * 3)).args()
    equal(model, subquad.optimize(model, args, backend="eager", check=False), args)


def test_a_score_of_minus_ten_thousand_is_a_score():
    """Where all that a query sees is further below, the masked keys win."""
    model = Spelled(lambda q, k, v: (q @ k.mT).masked_fill(~causal_mask(7), -1e4).softmax(-1) @ v)
    args = Spelling(None).args()
    fast = subquad.optimize(model, args, backend="eager", check=False)
    assert not attentions(fast.graph)
    equal(model, fast, (100 * args[0], 100 * args[1], args[2]))


def test_weights_cleared_beside_infinities_that_are_added():
    """What the clearing does not clear is NaN in a row that both mask: no attention says so."""

    def masked(q, k, v, keep, more):
        return (q @ k.mT + more).masked_fill(~keep, -torch.inf).softmax(-1).masked_fill(~keep, 0.0) @ v

    keep, more = torch.ones(2, 1, 1, 7, dtype=torch.bool), torch.zeros(2, 1, 7, 7)
    more[1, 0, 2] = -torch.inf
    model, args = Spelled(masked), (*Spelling(None).args(), keep, more)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args), equal_nan=True)


@pytest.mark.parametrize("call", [False, True])
def test_a_number_that_float16_rounds_to_infinity(call):
    """-1e30 in float16 is -inf, and a row of it is NaN, or 0 for the call; not the mean."""

    def masked(q, k, v, keep):
        mask = torch.where(keep, 0.0, -1e30).to(q.dtype)
        if call:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return (q @ k.mT + mask).softmax(-1) @ v

    keep = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    keep[0] = False
    model, args = Spelled(masked), (*(x.half() for x in Spelling(None).args()), keep)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args), equal_nan=True, atol=1e-2, rtol=0)


def test_scores_scaled_beyond_float32():
    """The least number times 3 is -inf."""
    model = Spelled(lambda q, k, v, keep: ((q @ k.mT).masked_fill(~keep, LEAST) * 3).softmax(-1) @ v)
    args = (*Spelling(None).args(), torch.zeros(2, 1, 1, 7, dtype=torch.bool))
    fast = subquad.optimize(model, args, backend="eager", check=False)
    assert fast(*args).isnan().all()


def test_float16_products_do_not_overflow():
    """Queries scaled beforehand: the scores are 10182, the products without the scale 115200."""
    model = Spelled(
        lambda q, k, v, keep: (q * 128**-0.5 @ k.mT).masked_fill(~keep, -torch.inf).softmax(-1) @ v
    )
    x = torch.full((1, 2, 5, 128), 30.0, dtype=torch.float16)
    keep = torch.tensor([True, True, False, True, True])
    args = (x, x, torch.randn(1, 2, 5, 8).half(), keep)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    assert attentions(fast.graph)
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args), atol=5e-3, rtol=0)


@pytest.mark.parametrize("ids", ["float", "int", "int8 sum"])
def test_ids_that_are_rounded_or_wrapped(ids):
    """Distinct ids that become equal in a narrower dtype are one sequence."""

    def masked(q, k, v, x):
        if ids == "int8 sum":
            starts = F.pad(x[:, 1:] - x[:, :-1] != 1, (1, 0))
            i = starts.cumsum(-1, dtype=torch.int8)
        else:
            i = getattr(x, ids)()
        keep = i[:, None, :, None] == i[:, None, None, :]
        keep = keep & (x[:, None, None, :] <= x[:, None, :, None])
        return (q @ k.mT + (1.0 - keep.float()) * -1e30).softmax(-1) @ v

    n = 600 if ids == "int8 sum" else 6
    start = {"float": torch.arange(n) + 2**25, "int": torch.arange(n) // 2 + torch.arange(n) % 2 * 2**32}
    x = start.get(ids, torch.arange(n) % 2)[None]
    model = Spelled(masked)
    args = (*(torch.randn(1, 1, n, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)), x)
    fast = subquad.optimize(model, args, backend="eager", check=False)
    with torch.no_grad():
        torch.testing.assert_close(fast(*args), model(*args))


@pytest.mark.parametrize("recipe", ["exact", "based", "taylor1", "elu1"])
def test_a_scale_below_zero(recipe):
    """Every gain is weighed, and a recipe has what it has of the negated queries."""

    def attended(sign):
        return Spelled(lambda q, k, v: F.scaled_dot_product_attention(sign * q, k, v, scale=-0.3 * sign))

    args = Spelling(None).args()
    below, above = (subquad.optimize(attended(s), args, attention=recipe, check=False) for s in (1.0, -1.0))
    with torch.no_grad():
        torch.testing.assert_close(below(*args), above(*args))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mask_of_few_axes(rank):
    """torch's kernel wants two at least."""
    model = Spelled(lambda q, k, v, x: (q @ k.mT).masked_fill(~x, -torch.inf).softmax(-1).nan_to_num(0.0) @ v)
    args = (*Spelling(None).args(), torch.arange(7) != 3 if rank else torch.tensor(True))
    fast = subquad.optimize(model, args, backend="eager", check=False)
    assert attentions(fast.graph)
    equal(model, fast, args)


def test_an_open_size_of_features_has_no_recipe():
    """torch.compile(dynamic=True) leaves them open: the graph runs, and no gain is weighed."""
    torch._dynamo.reset()
    args = Spelling(None).args()
    model = Spelled(lambda q, k, v: (q @ k.mT).softmax(-1) @ v)
    fast = torch.compile(model, backend="subquad", dynamic=True)
    torch.testing.assert_close(fast(*args), model(*args))
    (graph,) = subquad.dynamo.graphs
    assert not graph.refused and [site.status for site in graph.sites] == ["attention"]


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_a_row_without_keys(dtype, heads):
    """Such a row is the mean of all values: each has the same share of its gradient, and no query has any."""

    def masked(q, k, v, keep):
        k, v = (x.repeat_interleave(4 // heads, 1) for x in (k, v))
        return (q @ k.mT).masked_fill(~keep, torch.finfo(q.dtype).min).softmax(-1) @ v

    torch._dynamo.reset()
    q, k, v = Spelling(None, f"b h n d, b {heads} n d, b {heads} n d").args()
    keep = causal_mask(7)
    keep[2] = False
    plain, quick = ([x.to(dtype).requires_grad_() for x in (q, k, v)] for _ in range(2))
    masked(*plain, keep)[..., 1:4, :].sum().backward()
    torch.compile(Spelled(masked), backend="subquad")(*quick, keep)[..., 1:4, :].sum().backward()
    (graph,) = subquad.dynamo.graphs
    assert attentions(graph.graph)[0].attrs["empty"] == "uniform"
    bound = {torch.bfloat16: 1e-1, torch.float16: 2e-2}.get(dtype, 1e-5)
    for a, b in zip(plain, quick, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=bound, rtol=bound)

"""The pieces of recipes against plain numpy: neighbourhoods, parts, landmarks, chosen blocks, routing."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import N, assert_linear, close, compiled, flags, gradients, graph_of, run

from subquad.ir import OPS, IRError, TensorType, evaluate, symbol
from subquad.ir.types import bf16, f32
from subquad.passes.recipes import features as F
from subquad.passes.recipes import pieces as P

B, H, G, D, E, SIZE = 2, 4, 2, 3, 5, 4
LENGTHS = (1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE + 2)
TYPES = ((B, H, N, D), (B, G, N, D), (B, G, N, E))
BOTH = pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
KINDS = pytest.mark.parametrize("kind", ["terraced", "sliding"])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def operands(n, m=None, seed=0):
    m = n if m is None else m
    return draw(B, H, n, D, seed=seed), draw(B, G, m, D, seed=seed + 1), draw(B, G, m, E, seed=seed + 2)


def padding(n):
    """The first sequence whole, of the second every third token padding; and poison for the operands."""
    keep = np.ones((B, 1, 1, n), bool)
    keep[1, ..., 1::3] = False
    return keep


def poisoned(x, keep, poison):
    """x [b, g, n, d] with `poison` where padding is."""
    return np.where(keep.swapaxes(2, 3), x, poison)


def scores(q, k, scale=0.6):
    return scale * q @ k.repeat(H // G, 1).swapaxes(2, 3)


def seen(n, causal, kind=None):
    """bool [n, n]: what a query may see, or what lies in its neighbourhood."""
    i, j = np.arange(n)[:, None], np.arange(n)
    near = {None: i == i, "terraced": abs(i // SIZE - j // SIZE) <= 1, "sliding": abs(i - j) < SIZE}[kind]
    return near & ((j <= i) | (not causal))


def weighted(w, v):
    """sum_j w_ij v_j / sum_j w_ij, 0 for rows without weight."""
    total = w.sum(-1, keepdims=True)
    return np.where(total > 0, w @ v.repeat(H // G, 1) / np.where(total > 0, total, 1), 0)


# ---- neighbourhoods and parts --------------------------------------------------------------------


@KINDS
@BOTH
def test_neighbourhood_and_its_tail_under_one_normaliser(causal, kind):
    """Exact near by, Taylor's weights far off; alone, and together."""

    def near(q, k, v, p=None):
        return P.windowed(q, k, v, size=SIZE, scale=0.6, causal=causal, kind=kind, padding=p)

    def rest(q, k, v, p=None):
        phi_q, phi_k = F.taylor(q, scale=0.6), F.taylor(k, scale=0.6)
        return P.far(phi_q, phi_k, v, size=SIZE, causal=causal, kind=kind, padding=p)

    def all_(q, k, v, p=None):
        return P.merge(near(q, k, v, p), P.linear_part(*rest(q, k, v, p)))

    alone, together = graph_of(lambda *x: P.normalised(near(*x)), *TYPES), graph_of(all_, *TYPES)
    padded = graph_of(all_, *TYPES, flags(B, 1, 1, N))
    sums = graph_of(rest, *TYPES)
    for n in LENGTHS:
        q, k, v = operands(n)
        s, local, may = scores(q, k), seen(n, causal, kind), seen(n, causal)
        far = (1 + s + s * s / 2) * (may & ~local)
        close(run(alone, q, k, v), weighted(np.exp(s) * local, v))
        numerator, total = run(sums, q, k, v)
        close(numerator, far @ v.repeat(H // G, 1))
        close(total, far.sum(-1, keepdims=True))
        close(run(together, q, k, v), weighted(np.exp(s) * local + far, v))
        keep = padding(n)
        k, v = poisoned(k, keep, 1e30), poisoned(v, keep, np.nan)
        w = np.where(keep, np.exp(np.where(keep, s, 0)) * local + far, 0)
        close(run(padded, q, k, v, keep), weighted(w, np.nan_to_num(v)))
    for graph in (alone, together, padded):
        assert_linear(graph)
    gradients(graph_of(all_, (1, 2, 6, D), (1, 1, 6, D), (1, 1, 6, E)), *(x[:1, : 2 if i == 0 else 1]
              for i, x in enumerate(operands(6))))  # fmt: skip


@KINDS
def test_no_neighbourhood_sees_the_future(kind):
    def all_(q, k, v):
        near = P.windowed(q, k, v, size=SIZE, scale=0.6, causal=True, kind=kind)
        rest = P.far(F.elu1(q), F.elu1(k), v, size=SIZE, causal=True, kind=kind)
        return P.merge(near, P.linear_part(*rest))

    graph, whole = graph_of(all_, *TYPES), operands(3 * SIZE + 2)
    out = run(graph, *whole)
    for n in LENGTHS:
        close(run(graph, *(x[:, :, :n] for x in whole)), out[:, :, :n])


@KINDS
def test_the_rest_is_no_difference_of_large_sums(kind):
    """In f32 great weights near by leave no rounding in the small ones far off."""
    n = 6 * SIZE
    types = [TensorType(f32, (1, 1, N, d)) for d in (1, 1, 1)]
    graph = graph_of(lambda *x: P.far(*x, size=SIZE, causal=False, kind=kind)[1], *types)
    weights = np.ones((1, 1, n, 1), np.float32)
    weights[:, :, 2 * SIZE : 3 * SIZE] = 1e9
    one = torch.ones(1, 1, n, 1)
    found = compiled(graph)([one, torch.from_numpy(weights), one], {})[0][0].double().numpy()[0, 0, :, 0]
    expected = (~seen(n, False, kind) * weights.astype(float).ravel()).sum(-1)
    assert (np.abs(found / expected - 1) < 1e-6).all()


def test_any_split_of_the_keys_merges_to_softmax():
    """At levels far apart, with parts that have no key; and a factor counts as so many keys."""

    def split(q, k, v, p, r):
        one = P.few(q, k, v, scale=0.6, padding=p)
        two = P.few(q, k, v, scale=0.6, padding=r)
        return P.merge(one, two), P.merge(two, one), P.normalised(one), P.merge(one, P.scaled(two, 3.0))

    graph = graph_of(split, *TYPES, flags(B, 1, 1, N), flags(B, 1, 1, N))
    for n, scale in ((1, 1), (7, 1), (7, 300)):
        q, k, v = operands(n)
        q = q * scale
        half = np.zeros((B, 1, 1, n), bool)
        half[1, ..., ::2] = True  # nothing of the first sequence
        s = scores(q, k)
        w = np.exp(s - s.max(-1, keepdims=True))
        there, back, first, more = run(graph, q, k, v, half, ~half)
        close(there, weighted(w, v))
        close(back, weighted(w, v))
        only = np.where(half, s, -1e300).max(-1, keepdims=True)
        close(first, weighted(np.where(half, np.exp(np.minimum(s - only, 0)), 0), v))
        close(more, weighted(w * np.where(half, 1, 3), v))


def test_few_keys_with_padding_and_a_bias():
    """Cross-attention to landmarks; padded ones may hold anything; a row without keys gives 0."""
    m = 5
    types = ((B, H, N, D), (B, G, m, D), (B, G, m, E), flags(B, 1, 1, m), (1, H, 1, m))
    graph = graph_of(lambda q, k, v, p, b: P.normalised(P.few(q, k, v, scale=0.6, padding=p, bias=b)), *types)
    keep = np.zeros((B, 1, 1, m), bool)
    keep[1, ..., 1:4] = True
    (q, k, v), bias = operands(7, m), draw(1, H, 1, m, seed=8)
    w = np.where(keep, np.exp(scores(q, k) + bias), 0)
    k, v = poisoned(k, keep, 1e30), poisoned(v, keep, np.nan)
    out = run(graph, q, k, v, keep, bias)
    close(out, weighted(w, np.nan_to_num(v)))
    assert not out[0].any() and out[1].any()
    assert_linear(graph)
    small = operands(2, 3)
    plain = graph_of(lambda q, k, v: P.normalised(P.few(q, k, v, scale=0.6)), *(x.shape for x in small))
    gradients(plain, *small)


def test_a_linear_part_stands_on_the_level_it_is_given():
    """LoLCATs' mixing, gamma e^(s - m) beside phi . phi; rows of no weight count for nothing."""

    def mixed(q, k, v, gamma):
        near = P.windowed(q, k, v, size=SIZE, scale=0.6, causal=True)
        rest = P.far(F.softmax(q), F.softmax(k), v, size=SIZE, causal=True)
        return P.merge(P.scaled(near, gamma), P.linear_part(*rest, level=near.level))

    graph, n = graph_of(mixed, *TYPES, (H, 1, 1)), 3 * SIZE + 2
    (q, k, v), gamma = operands(n), np.abs(draw(H, 1, 1, seed=7))

    def phi(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    s, local, may = scores(q, k), seen(n, True, "terraced"), seen(n, True)
    m = np.where(local, s, -np.inf).max(-1, keepdims=True)
    w = gamma * np.exp(s - m) * local + phi(q) @ phi(k).repeat(H // G, 1).swapaxes(2, 3) * (may & ~local)
    close(run(graph, q, k, v, gamma), weighted(w, v))


def test_rows_without_keys_have_gradients():
    """0 where nothing is seen, of either kind of part; not what 0 / 0 leaves."""

    def empty(q, k, v, p):
        rest = P.linear_part(*P.far(F.relu(q), F.relu(k), v, size=2, causal=True, padding=p))
        near = P.windowed(q, k, v, size=2, scale=0.6, causal=True, padding=p)
        return P.normalised(rest), P.merge(near, rest)

    graph, keep = graph_of(empty, *TYPES, flags(B, 1, 1, N)), np.ones((B, 1, 1, 7), bool)
    keep[0] = False
    leaves = [torch.from_numpy(x).requires_grad_() for x in operands(7)]
    for out in compiled(graph)([*leaves, torch.from_numpy(keep)], {})[0]:
        assert not out[0].any() and out[1].any()
        for grad in torch.autograd.grad(out.square().sum(), leaves, retain_graph=True):
            assert grad.isfinite().all() and not grad[0].any() and grad[1].any()


def test_narrow_operands_sum_in_f32():
    """Parts are f32 whatever the operands are, and the result takes the dtype asked for."""
    types = [TensorType(bf16, (1, 2, N, D))] * 3
    graph = graph_of(lambda q, k, v: P.windowed(q, k, v, size=2, scale=1.0, causal=True), *types)
    assert [x.dtype for x in graph.outputs] == [f32] * 3
    graph = graph_of(lambda q, k, v: P.merge(P.few(q, k, v, scale=1.0), dtype=q.dtype), *types)
    assert graph.outputs[0].dtype is bf16


NARROW = {
    "windowed": lambda q, k, v, p: P.normalised(
        P.windowed(q, k, v, size=SIZE, scale=0.6, causal=True, padding=p)),
    "far": lambda q, k, v, p: P.far(
        F.elu1(q), F.elu1(k), v, size=SIZE, causal=False, kind="sliding", padding=p)[0],
    "few": lambda q, k, v, p: P.normalised(P.few(q, k, v, scale=0.6, padding=p)),
    "selected": lambda q, k, v, p: P.normalised(
        P.selected(q, k, v, size=SIZE, count=2, scale=0.6, causal=True, padding=p)),
    "segment_means": lambda q, k, v, p: P.segment_means(v, 3, p)[0],
    "affinity": lambda q, k, v, p: P.affinity(q, k, scale=0.6, padding=p),
    "filtered": lambda q, k, v, p: P.filtered(k, v, E - 1),
    "hedgehog": lambda q, k, v, p: F.hedgehog(q, P.zeros(q.dtype, D, E) + 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", NARROW)
def test_narrow_operands_and_an_open_batch(name):
    """In bf16 torch is as near to the oracle as bf16 is; batch and length are told by the operands."""
    b = symbol("b")
    types = [TensorType(bf16, (b, heads, N, d)) for heads, d in ((H, D), (G, D), (G, E))]
    graph = graph_of(NARROW[name], *types, flags(b, 1, 1, N))
    keep = padding(9)
    arrays = [np.round(x * 8) / 8 for x in operands(9)]  # what bf16 holds exactly
    (expected,), _ = evaluate(graph, [*arrays, keep])
    tensors = [torch.from_numpy(x).bfloat16() for x in arrays] + [torch.from_numpy(keep)]
    actual = compiled(graph)(tensors, {})[0][0]
    close(actual.double().numpy(), expected, 2**-6)


# ---- landmarks -----------------------------------------------------------------------------------


def np_segments(x, count, keep=None):
    n = x.shape[2]
    out, some = np.zeros((*x.shape[:2], count, x.shape[3])), np.zeros((x.shape[0], count), bool)
    for b, i in np.ndindex(x.shape[0], count):
        at = np.arange(i * n // count, -(-(i + 1) * n // count))
        at = at if keep is None else at[keep[b, 0, 0, at]]
        some[b, i] = len(at) > 0
        if len(at):
            out[b, :, i] = x[b][:, at].mean(1)
    return out, some


def test_segment_means_pass_padding_by():
    """At lengths below, at and beside multiples of the count."""
    plain = graph_of(lambda x: P.segment_means(x, 4), (B, H, N, D))
    padded = graph_of(lambda x, p: P.segment_means(x, 4, p), (B, H, N, D), flags(B, 1, 1, N))
    for n in (1, 3, 4, 5, 12, 18):
        x, keep = draw(B, H, n, D), padding(n)
        keep[0, ..., : n // 2] = False
        close(run(plain, x), np_segments(x, 4)[0])
        means, some = run(padded, poisoned(x, keep, np.nan), keep)
        expected, alive = np_segments(x, 4, keep)
        close(means, expected)
        assert (some[:, 0, 0] == alive).all()
    gradients(graph_of(lambda x: P.segment_means(x, 3), (1, 1, 5, 2)), draw(1, 1, 5, 2))


def test_iterated_inverse_of_softmax_matrices():
    """The formula step by step, and what it converges to; each matrix by itself."""
    a = np.exp(draw(B, H, 6, 6) + 2 * np.eye(6))  # as landmarks are, each nearest to itself
    a = a / a.sum(-1, keepdims=True)

    def iterate(a, times):
        z, unit = a.T / (np.abs(a).sum(0).max() * np.abs(a).sum(1).max()), np.eye(len(a))
        for _ in range(times):
            az = a @ z
            z = z @ (13 * unit - az @ (15 * unit - az @ (7 * unit - az))) / 4
        return z

    found = run(graph_of(lambda a: P.pseudo_inverse(a), (B, H, 6, 6)), a)
    for at in np.ndindex(B, H):
        close(found[at], iterate(a[at], 6))
    more = run(graph_of(lambda a: P.pseudo_inverse(a, iterations=24), (B, H, 6, 6)), a)
    close(more, np.linalg.inv(a), 1e-8)
    alive = np.ones((B, 1, 1, 6), bool)
    alive[1, ..., 2] = False
    rest = [0, 1, 3, 4, 5]
    masked = graph_of(lambda a, p: P.pseudo_inverse(a, alive=p, iterations=24), a.shape, flags(B, 1, 1, 6))
    found = run(masked, np.where(alive, a, np.nan), alive)
    for h in range(H):
        close(found[1, h][np.ix_(rest, rest)], np.linalg.inv(a[1, h][np.ix_(rest, rest)]), 1e-8)
    gradients(graph_of(lambda a: P.pseudo_inverse(a, iterations=3), (1, 1, 3, 3)), a[:1, :1, :3, :3])


def test_nystrom_from_its_pieces():
    """softmax(q kl) pinv(softmax(ql kl)) softmax(ql k) v, exact when every token is a landmark."""

    def nystrom(q, k, v, p=None):
        (ql, _), (kl, alive) = P.segment_means(q, 4, p), P.segment_means(k, 4, p)
        middle = P.pseudo_inverse(P.affinity(ql, kl, scale=0.6, padding=alive), iterations=30, alive=alive)
        read = P.normalised(P.few(ql, k, v, scale=0.6, padding=p))
        return (P.affinity(q, kl, scale=0.6, padding=alive) @ middle) @ read

    graph = graph_of(nystrom, *TYPES)
    q, k, v = operands(4)
    close(run(graph, q, k, v), weighted(np.exp(scores(q, k)), v), 1e-6)
    assert_linear(graph)
    padded = graph_of(nystrom, *TYPES, flags(B, 1, 1, N))
    (q, k, v), keep = operands(13), padding(13)
    keep[1, ..., :4] = False  # a segment of nothing
    one = run(padded, *(poisoned(x, keep, 1e30) for x in (q, k)), poisoned(v, keep, np.nan), keep)
    two = run(padded, q, k, v, keep)
    close(*(x[:, :, keep[1, 0, 0]] for x in (one, two)))
    assert np.isfinite(two).all()


# ---- chosen blocks -------------------------------------------------------------------------------


def np_selected(q, k, v, keep, causal, rest, count=2, scale=0.6, sinks=0):
    """Block by block, from the cards of Kinetics and PISA."""
    n, c, each = q.shape[2], -(-q.shape[2] // SIZE), H // G
    out = np.zeros((*q.shape[:3], v.shape[3]))
    members = [np.arange(j * SIZE, min((j + 1) * SIZE, n)) for j in range(c)]
    for b, g in np.ndindex(B, G):
        real = [at[keep[b, 0, 0, at]] for at in members]
        queries = q[b, g * each : (g + 1) * each]
        for i in range(c):
            asked = real[i][:1] if causal else real[i]  # a later query has no say in what an earlier one sees
            mean_q = sum(queries[:, asked].reshape(-1, D)) if len(asked) else np.zeros(D)
            open_ = [j for j in range(c) if len(real[j]) and (j < i or not causal)]
            best = sorted(open_, key=lambda j: (j >= sinks, -(mean_q @ k[b, g, real[j]].mean(0))))[:count]
            others = [j for j in open_ if j not in best]
            before = [j for j in range(c) if len(real[j]) and (j < i or not causal)]
            spread = sum(((k[b, g, real[j]] - k[b, g, real[j]].mean(0)).T @ v[b, g, real[j]] for j in before),
                         np.zeros((D, E)))  # fmt: skip
            length = max(1, sum(len(real[j]) for j in before))
            for r, t in np.ndindex(each, len(members[i])):
                t = members[i][t]
                x = scale * queries[r, t]
                w, values = [], []
                own = [s for s in real[i] if s <= t] if causal else []
                for s in [*own, *(s for j in best for s in real[j])]:
                    w.append(np.exp(x @ k[b, g, s]))
                    values.append(v[b, g, s])
                extra = 0
                if others and rest == "pooled":
                    at = np.concatenate([real[j] for j in others])
                    w.append(len(at) * np.exp(x @ k[b, g, at].mean(0)))
                    values.append(v[b, g, at].mean(0))
                elif rest in ("zeroth", "first"):
                    a = [len(real[j]) * np.exp(x @ k[b, g, real[j]].mean(0)) for j in others]
                    w += a
                    values += [v[b, g, real[j]].mean(0) for j in others]
                    extra = (x @ spread) * sum(a) / length if rest == "first" else 0
                if w:
                    out[b, g * each + r, t] = (np.array(w) @ np.array(values) + extra) / sum(w)
    return out


@BOTH
@pytest.mark.parametrize("rest", ["none", "pooled", "zeroth", "first"])
def test_selected_blocks(rest, causal):
    """Exact where chosen, in outline elsewhere; padding changes nothing, nor does the future."""

    def choose(q, k, v, p=None):
        return P.normalised(
            P.selected(q, k, v, size=SIZE, count=2, scale=0.6, causal=causal, rest=rest, padding=p)
        )

    graph, padded = graph_of(choose, *TYPES), graph_of(choose, *TYPES, flags(B, 1, 1, N))
    for n in (*LENGTHS, 6 * SIZE - 1):
        (q, k, v), keep = operands(n), padding(n)
        close(run(graph, q, k, v), np_selected(q, k, v, np.ones_like(keep), causal, rest))
        q, k, v = poisoned(q, keep, 77.0), poisoned(k, keep, 1e30), poisoned(v, keep, np.nan)
        found, expected = run(padded, q, k, v, keep), np_selected(q, k, v, keep, causal, rest)
        for b in range(B):
            at = keep[b, 0, 0]
            close(found[b][:, at], expected[b][:, at])
    if causal:
        whole = operands(6 * SIZE)
        out = run(graph, *whole)
        for n in (SIZE, 3 * SIZE + 1, 4 * SIZE):
            close(run(graph, *(x[:, :, :n] for x in whole)), out[:, :, :n])
    types = ((1, 1, 9, D), (1, 1, 9, D), (1, 1, 9, E))
    gradients(graph_of(choose, *types), *(x[:1, :1] for x in operands(9)))


@BOTH
def test_sinks_are_always_among_the_selected(causal):
    """The first block takes one of the places."""
    how = dict(size=SIZE, count=2, scale=0.6, causal=causal, rest="pooled", sinks=1)
    graph = graph_of(lambda *x: P.normalised(P.selected(*x, **how)), *TYPES)
    for n in (1, 6 * SIZE - 1):
        (q, k, v), keep = operands(n), np.ones((B, 1, 1, n), bool)
        close(run(graph, q, k, v), np_selected(q, k, v, keep, causal, "pooled", sinks=1))


# ---- routing -------------------------------------------------------------------------------------


def test_tokens_routed_to_memories():
    """Linear attention in each memory over its own tokens, weighted: by masks, and by gathering."""
    many, count = 4, 2

    def mix(logits, q, k, v):
        weights, chosen = P.routing(logits, count)
        mixer = OPS["linear_attention"]
        out = mixer(P.to_memories(q, None, many), P.to_memories(k, chosen, many),
                               P.to_memories(v, chosen, many), causal=True, normalize=False)  # fmt: skip
        return P.from_memories(out, weights), weights, P.load_balance(logits, chosen)

    graph = graph_of(mix, (B, N, many), (B, H, N, D), (B, H, N, D), (B, H, N, E))
    for n in (1, 6, 13):
        logits, q, k, v = (
            draw(B, n, many, seed=3),
            draw(B, H, n, D),
            draw(B, H, n, D, seed=1),
            draw(B, H, n, E),
        )
        out, weights, loss = run(graph, logits, q, k, v)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected, picks = np.zeros((B, H, n, E)), np.zeros(many)
        for b in range(B):
            chosen = [np.argsort(-p[b, t])[:count] for t in range(n)]
            for m in range(many):
                at = [t for t in range(n) if m in chosen[t]]
                picks[m] += len(at)
                state = np.zeros((H, D, E))
                for t in at:
                    state += k[b, :, t, :, None] * v[b, :, t, None, :]
                    w = p[b, t, m] / p[b, t, chosen[t]].sum()
                    assert abs(weights[b, m, t, 0] - w) < 1e-12
                    expected[b, :, t] += w * np.einsum("hd,hde->he", q[b, :, t], state)
        close(out, expected)
        assert abs(loss - many * (picks / picks.sum()) @ p.mean((0, 1))) < 1e-12
    assert_linear(graph)
    gradients(graph, draw(B, 3, many, seed=3), draw(B, H, 3, D), draw(B, H, 3, D, seed=1), draw(B, H, 3, E))


def test_padded_tokens_choose_no_memory():
    keep = padding(6)
    graph = graph_of(lambda x, p: P.routing(x, 2, padding=p), (B, N, 4), flags(B, 1, 1, N))
    weights, chosen = run(graph, draw(B, 6, 4), keep)
    assert not chosen[1, :, ~keep[1, 0, 0]].any() and (chosen.sum(1)[0] == 2).all()
    close(weights.sum(1)[..., 0], keep[:, 0, 0].astype(float))


# ---- what is written about them ------------------------------------------------------------------


def test_the_page_on_recipes_names_every_piece():
    """And nothing else."""
    page = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text("utf-8")
    named = {}
    for home, names in re.findall(r"^\| `(features|pieces\.\w+)` \| ([^|]+) \|", page, re.MULTILINE):
        module = F if home == "features" else getattr(P, home.removeprefix("pieces."))
        named[home] = re.findall(r"`(\w+)`", names)
        assert all(callable(getattr(module, name)) for name in named[home]), home
    told = {name for home, names in named.items() if home != "features" for name in names}
    inside = {"LOWEST", "Part", "ROTARY_MAJOR", "blocks", "tokens", "shifted", "kept", "ones", "zeros"}
    assert told == set(P.__all__) - inside


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda *x: P.windowed(*x, size=0, scale=1.0, causal=True), "a positive size"),
        (lambda *x: P.windowed(*x, size=2, scale=1.0, causal=True, kind="round"), "one of terraced"),
        (lambda *x: P.selected(*x, size=2, count=0, scale=1.0, causal=False), "positive"),
        (lambda *x: P.selected(*x, size=2, count=1, scale=1.0, causal=False, sinks=2), "sinks among"),
        (lambda *x: P.selected(*x, size=2, count=1, scale=1.0, causal=False, rest="all"), "one of none"),
    ],
)  # fmt: skip
def test_what_is_refused(call, words):
    with pytest.raises(IRError, match=words):
        graph_of(call, *TYPES)


def test_a_neighbourhood_needs_as_many_queries_as_keys():
    types = ((B, H, 5, D), (B, G, 7, D), (B, G, 7, E))
    with pytest.raises(IRError, match="not 5 and 7"):
        graph_of(lambda q, k, v: P.windowed(q, k, v, size=2, scale=1.0, causal=False), *types)
    with pytest.raises(IRError, match="not 5 and 7"):
        graph_of(lambda q, k, v: P.selected(q, k, v, size=2, count=1, scale=1.0, causal=True), *types)

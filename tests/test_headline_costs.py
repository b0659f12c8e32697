"""The costs that papers report, from the symbolic cost of our graphs; the table itself is docs/costs.md."""

import math

import pytest
from benchmarks.bench_headline_costs import (
    HEADLINES,
    block,
    count,
    energy,
    products,
    projected,
    pvt_v2_b0,
    ratio,
    video,
    vit,
    wersa_length,
)

from subquad.ir import RecipeError


@pytest.mark.parametrize("line", HEADLINES, ids=lambda line: f"{line.name}: {line.what}")
def test_headline(line):
    """Within a tenth of the paper's figure, or else, and only then, the table says why not."""
    ours, every = line.ours()
    assert math.isfinite(ours) and ours > 0
    if line.published is None:
        assert line.why
        return
    off = abs(ours / line.published - 1)
    assert (off <= 0.1) == (not line.why), off
    if every is not None:
        assert every == pytest.approx(ours, rel=0.1)  # what counters leave out is little
    if line.bound is not None:  # what the sentence says: no cost of mixing would reach the paper's figure
        best = line.bound()
        assert ours < best < line.published or line.published < best < ours


@pytest.mark.parametrize(("n", "c"), [(196, 192), (1024, 1152)])
def test_a_block_is_its_formula(n, c):
    """12 c^2 multiply-adds a token in layers, 2 n c in attention."""
    found = count(block(n, c, 4))
    assert products(found) == 2 * n * (12 * c * c + 2 * n * c)
    assert products(projected(found)) == 2 * n * 12 * c * c


FORMULAS = {
    "agent": lambda n, c, d: (
        4 * 49 * n * c + 9 * n * c + 2 * c // d * 49 * (28 * 7 * 7 + 28 * 28 * 7)
    ),  # tables
    "sla": lambda n, c, d: 2 * n * c * (d + 1) + 25 * n * c,
    "linfusion": lambda n, c, d: 2 * n * c * (d + 1) + 4 * n * c * c,
    "ecoformer": lambda n, c, d: (
        2 * n * c // d * 16 * (d + 1) + n * 25 * (c + 16 * c // d) - n * c * c
    ),  # no k
    "lamamba(state=1,window=7)": lambda n, c, d: (
        2 * n * 49 * c  # windows of 7 x 7
        + n * (6 * c * c + 9 * 2 * c)  # in, out, and a convolution on 2 c channels
        + 4 * n * 2 * c * (2 * (c // 16) + 2 + 1 + 1.5)  # four walks: rank, B and C, read, three FLOPs a step
    ),
}


@pytest.mark.parametrize("spec", FORMULAS)
def test_a_mixer_is_its_formula(spec):
    """Multiply-adds beyond those of the block's own layers, by the paper's formula."""
    n, c, heads, grid = 784, 192, 3, (28, 28)
    found = count(block(n, c, heads, spec, grid))
    assert products(found) / 2 - 12 * n * c * c == FORMULAS[spec](n, c, c // heads)


def test_most_of_the_energy_is_linearity():
    """EcoFormer's multiply-adds fall nearly as far as its energy: signs add little to being linear."""
    before, after = pvt_v2_b0(), pvt_v2_b0("ecoformer")
    adds, spent = products(after) / products(before), energy(after) / energy(before)
    assert spent < adds < 1.03 * spent


def test_video_grows_linearly():
    """Four times as long a video costs attention sixteen times as much, and LinGen four times."""
    short, long = (video(seconds, 896) for seconds in (17, 68))
    assert long["matmul"] / short["matmul"] == pytest.approx(16, rel=0.01)
    short, long = (video(seconds, 896, "lingen") for seconds in (17, 68))
    assert products(long) / products(short) == pytest.approx(4, rel=0.01)


def test_savings_grow_with_the_picture():
    """At four times the pixels DeiT-T over ViG-T grows, to at most four times."""
    at = [ratio(vit(12, 192, 3, s), vit(12, 192, 3, s, "vig", cls=0, keys=96))[0] for s in (1024, 2048, 4096)]
    assert at[0] < at[1] < at[2] < 4 * at[1] < 16 * at[0]


def test_wersa_length_is_where_the_share_falls():
    """At the length found the share is reached, 64 tokens before it is not."""
    n = wersa_length(0.5)
    share = [
        products(count(block(m, 768, 12, "wersa(levels=4)"))) / products(count(block(m, 768, 12)))
        for m in (n - 64, n)
    ]
    assert share[1] <= 0.5 < share[0]


def test_what_does_not_fit_is_no_figure():
    """A block whose recipe refuses is not counted as the block it was."""
    with pytest.raises(RecipeError, match="agents=50"):
        block(196, 192, 3, "agent(agents=50)", (14, 14))

"""The cost figures that papers are known for, from the symbolic cost alone: no weights, no tensors.

    python tests/benchmarks/bench_headline_costs.py

A model is a sum of blocks. A block is written as a graph of a few ops, `linearize` puts the recipe in the
place of its attention, and FLOPs are read off the graph; stems, heads and changes of resolution are
formulas. Papers' counters count products (linear, matmul, convolution, attention, recurrences) and
call a multiply-add one FLOP, so products are what is compared; what every op costs is printed beside it.

Settings are the papers' where they are known, and no figure was fitted. Where a setting is not known, the
row says so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from subquad.ir import OPS, Graph, No, RecipeError, TensorType, Value, building, cost, journal
from subquad.ir.interpret import body_graph
from subquad.ir.ops.activation import gelu, silu
from subquad.ir.ops.attention import attention
from subquad.ir.ops.linear import linear
from subquad.ir.ops.norm import layer_norm
from subquad.ir.ops.shape import permute, reshape, slice_
from subquad.ir.types import f32
from subquad.passes import linearize

PRODUCTS = frozenset({"linear", "matmul", "convolution", "linear_attention", "linear_scan"})
"""What a paper's counter counts; attention is counted by the products in it."""

Count = dict[str, float]
"""FLOPs by the name of the op."""

Figure = tuple[float, float | None]
"""By products, and by all ops; None where these have no part in it."""


def count(graph: Graph) -> Count:
    """FLOPs of a graph by op; attention as the ops it is made of."""
    found: Count = {}
    for op in graph.ops():
        parts = count(body_graph(op)) if op.name == "attention" else {op.name: cost(op).flops}
        found = added(found, parts)
    return found


def added(*counts: Mapping[str, float]) -> Count:
    """The sum of counts."""
    total: Count = {}
    for part in counts:
        for name, flops in part.items():
            total[name] = total.get(name, 0) + flops
    return total


def times(many: float, part: Mapping[str, float]) -> Count:
    """`many` of the same."""
    return {name: many * flops for name, flops in part.items()}


def products(part: Mapping[str, float]) -> float:
    """FLOPs of its products, two for each multiply-add."""
    return sum(flops for name, flops in part.items() if name in PRODUCTS)


def dense(rows: float, into: float, out: float) -> Count:
    """A product of rows vectors with a matrix, for what is not written as a graph."""
    return {"linear": 2 * rows * into * out}


def weights(graph: Graph) -> dict[str, int]:
    """The size of each weight that is trained."""
    params = [op for op in graph.ops() if op.name == "param" and not op.attrs.get("fixed")]
    return {op.attrs["name"]: op.types[0].size for op in params}


def block(
    n: int, c: int, heads: int, recipe: str = "", grid: tuple[int, ...] = (), *, batch: int = 1,
    keys: int = 0, hidden: int = -1, glu: bool = False, causal: bool = False,
) -> Graph:  # fmt: skip
    """A transformer block on x [batch, n, c], its attention replaced by a recipe if one is named.

    keys: channels of queries and keys, c by default. hidden: of the MLP, 4 c by default, 0 for none; glu:
    with a gate. Raises RecipeError with the reason where the recipe does not fit.
    """
    keys, hidden = keys or c, 4 * c if hidden < 0 else hidden

    def weight(name: str, *shape: int) -> Value:
        return OPS["param"](name=name, type=TensorType(f32, shape))

    def project(x: Value, name: str, out: int) -> Value:
        return linear(x, weight(name, out, x.shape[-1]), weight(f"{name}.bias", out))

    def norm(x: Value, name: str) -> Value:
        return layer_norm(x, weight(name, c), weight(f"{name}.bias", c), normalized_shape=(c,))

    def apart(x: Value) -> Value:
        return permute(reshape(x, shape=(batch, n, heads, x.shape[-1] // heads)), dims=(0, 2, 1, 3))

    with building():
        x = OPS["input"](name="x", type=TensorType(f32, (batch, n, c)))
        y = norm(x, "norm1")
        q, k, v = (apart(project(y, name, out)) for name, out in (("q", keys), ("k", keys), ("v", c)))
        y = attention(q, k, v, scale=(keys // heads) ** -0.5, causal=causal)
        y = x + project(reshape(permute(y, dims=(0, 2, 1, 3)), shape=(batch, n, c)), "o", c)
        if hidden:
            z = project(norm(y, "norm2"), "up", hidden * (1 + glu))
            if glu:
                gate, up = (slice_(z, dim=2, start=i * hidden, end=(i + 1) * hidden) for i in range(2))
                z = silu(gate) * up
            else:
                z = gelu(z)
            y = y + project(z, "down", c)
        graph = Graph("block", (x,), (y,))
    if not recipe:
        return graph
    with journal() as events:
        laid_out = {"*": "x".join(map(str, grid))} if grid else {}
        graph = linearize(graph, recipes={"*": recipe}, grids=laid_out)
    for event in events.events:
        if isinstance(event.result, No):
            raise RecipeError(f"{recipe}: {event.result.reason}")
    return graph


def vit(
    depth: int, c: int, heads: int, image: int, recipe: str = "", *, cls: int = 1, **options: Any
) -> Count:
    """A ViT on image x image pixels: patches of 16 x 16, `depth` blocks, a head of 1000 classes."""
    side = image // 16
    n, batch = side * side + cls, options.get("batch", 1)
    graph = block(n, c, heads, recipe, (side, side) if recipe else (), **options)
    stem, head = dense(batch * side * side, 3 * 256, c), dense(batch, c, 1000)
    return added(stem, times(depth, count(graph)), head)


# ---- the models that papers compare --------------------------------------------------------------


def dit_xl() -> Count:
    """DiT-XL/2 on latents of 64 x 64 (512 x 512 pixels): 28 blocks, 1152 channels, 6 c^2 of conditioning."""
    n, c = 1024, 1152
    each = added(count(block(n, c, 16)), dense(1, c, 6 * c))
    return added(times(28, each), dense(n, 16, c), dense(n, c, 32))


def lamamba_xl() -> Count:
    """LaMamba-Diff-XL on the same latents, patch 1: a U-Net on 64, 32, 16 and 16 tokens a side.

    Two blocks a stage down, two in the middle, three a stage up.
    """
    spec, found = "lamamba(state=1)", dense(4096, 4, 320)
    for side, c, blocks in ((64, 320, 5), (32, 640, 5), (16, 1280, 5 + 5 + 2)):
        graph = block(side * side, c, 16, spec, (side, side))
        found = added(found, times(blocks, added(count(graph), dense(1, c, 9 * c))))
    down = added(dense(32 * 32, 4 * 320, 640), dense(16 * 16, 4 * 640, 1280))
    up = added(dense(16 * 16, 1280, 2 * 1280), dense(32 * 32, 640, 2 * 640))
    return added(found, down, up, dense(4096, 320, 8))


def video(seconds: int, width: int, recipe: str = "") -> Count:
    """One block of a text-to-video DiT, at 16 frames a second of width x 512 pixels.

    8 x 8 x 8 latents in patches of 1 x 2 x 2; 3072 channels, 24 heads, 256 tokens of text attended to: 28
    blocks of that are about 4 billion weights. All but the rate and the 512 is unverified.
    """
    grid, c, text = (seconds * 16 // 8, 32, width // 16), 3072, 256
    n = grid[0] * grid[1] * grid[2]
    across = added(dense(2 * n, c, c), dense(2 * text, c, c), {"matmul": 4.0 * n * text * c})
    return added(count(block(n, c, 24, recipe, grid if recipe else ())), across)


def pvt_v2_b0(recipe: str = "") -> Count:
    """PVTv2-B0 at 224 x 224 with full attention in every stage, or a recipe in all but the last."""
    found: Count = {}
    sizes = ((56, 32, 1, 8, 147), (28, 64, 2, 8, 9 * 32), (14, 160, 5, 4, 9 * 64), (7, 256, 8, 4, 9 * 160))
    for side, c, heads, ratio, patch in sizes:
        n, spec = side * side, recipe if side > 7 else ""
        near = {"convolution": 2.0 * 9 * n * ratio * c}  # a depthwise 3 x 3 in the MLP
        graph = block(n, c, heads, spec, (side, side) if spec else (), hidden=ratio * c)
        found = added(found, dense(n, patch, c), times(2, added(count(graph), near)))
    return added(found, dense(1, 256, 1000))


def energy(part: Mapping[str, float]) -> float:
    """Picojoules: 3.7 a multiplication, 0.9 an addition (32 bits, 45 nm); codes of signs are added only."""
    additions = products(part) / 2
    return 3.7 * (additions - part.get("linear_attention", 0) / 2) + 0.9 * additions


def stages(widths: tuple[int, ...], depths: tuple[int, ...], merge: Callable[[int, int], int],
           each: Callable[[int], Graph]) -> int:  # fmt: skip
    """Weights of a pyramid: `merge` between widths, blocks, 1000 classes."""
    found = widths[-1] * 1000 + 1000
    for i, (c, depth) in enumerate(zip(widths, depths)):
        found += merge(widths[i - 1] if i else 3, c) + depth * sum(weights(each(i)).values())
    return found


def favit_b2_weights() -> int:
    """FaViT-B2 at 224 x 224: patches by convolutions of 7 x 7, then 3 x 3."""
    widths, sides, ratios = (64, 128, 256, 512), (56, 28, 14, 7), (8, 6, 4, 4)

    def each(i: int) -> Graph:
        n, c, sr = sides[i] ** 2, widths[i], 8 >> i
        return block(n, c, 1 << i, f"favit(sr={sr})", (sides[i],) * 2, hidden=ratios[i] * c)

    return stages(widths, (2, 3, 18, 3), lambda a, b: (49 if a == 3 else 9) * a * b + b, each)


def swin_t_weights() -> int:
    """Swin-T: patches of 4 x 4, then 2 x 2 merged."""
    widths, heads = (96, 192, 384, 768), (3, 6, 12, 24)
    near = [169 * h * depth for h, depth in zip(heads, (2, 2, 6, 2))]  # scores of relative positions

    def merge(a: int, b: int) -> int:
        return (16 if a == 3 else 4) * a * b

    return sum(near) + stages(widths, (2, 2, 6, 2), merge, lambda i: block(49, widths[i], heads[i]))


def lm_bytes(ternary: bool) -> float:
    """A language model of 13 billion weights reading its 2048th token: weights and what it remembers.

    40 blocks of 5120 channels and a gated MLP, 32,000 words; 16 bits, or 2 for the weights of products.
    """
    c, tokens, layers, words = 5120, 2048, 40, 32_000
    graph = block(tokens, c, 1 if ternary else 40, "mlgru" if ternary else "",
                  hidden=256 * -(-8 * c // (3 * 256)), glu=True, causal=True)  # fmt: skip
    packed = {"q", "k", "v", "o", "up", "down"}
    sizes = weights(graph)
    bits = sum(size * (2 if ternary and name in packed else 16) for name, size in sizes.items())
    memory = 4 * c if ternary else 2 * 2 * tokens * c  # one f32 state; keys and values in 16 bits
    return layers * (bits / 8 + memory) + 2 * 2 * words * c


def wersa_length(left: float) -> int:
    """The least number of tokens, to 64, at which a WERSA block costs that share of a softmax block.

    The block is as in the README's example: 768 channels, 12 heads, 4 levels, 128 features.
    """

    def saved(n: int) -> float:
        return -products(count(block(n, 768, 12, "wersa(levels=4)"))) / products(count(block(n, 768, 12)))

    lengths = range(64, 1 << 16, 64)
    return lengths[bisect_left(lengths, -left, key=saved)]


# ---- the headlines -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """A figure of a paper, and the same computed here.

    published: None where the paper has no figure of cost that can be compared. why: what accounts for a
    difference of more than a tenth; `{bound}` in it is what `bound` gives.
    """

    name: str
    what: str
    published: float | None
    source: str
    ours: Callable[[], Figure]
    bound: Callable[[], float] | None = None
    why: str = ""


def ratio(before: Count, after: Count) -> Figure:
    """How many times fewer FLOPs."""
    return products(before) / products(after), sum(before.values()) / sum(after.values())


def share(before: Count, after: Count) -> Figure:
    """The part of the FLOPs that is left."""
    return ratio(after, before)


def giga(part: Count) -> Figure:
    """Billions of multiply-adds; half the billions of FLOPs of all ops."""
    return products(part) / 2e9, sum(part.values()) / 2e9


def alone(value: float) -> Figure:
    """A figure that other ops have no part in."""
    return value, None


def projected(part: Count) -> Count:
    """What is left of a model when mixing costs nothing: its linear layers."""
    return {"linear": part["linear"]}


def multiplications(part: Count) -> float:
    """Billions of them where codes of signs are added only."""
    return (products(part) - part.get("linear_attention", 0)) / 2e9


DEIT_T, DEIT_S, DEIT_B = (12, 192, 3), (12, 384, 6), (12, 768, 12)
"""Depth, channels, heads."""

HEADLINES = (
    Headline(
        "LinGen", "times fewer FLOPs, 68 s of 512 x 896", 15.0, "abstract, 'up to'",
        lambda: ratio(video(68, 896), video(68, 896, "lingen")),
        lambda: ratio(video(68, 896), projected(video(68, 896)))[0],
        "width, patches and windows are unverified; with these even free mixing gives {bound:.1f}, for the "
        "ratio is at most about 1 + tokens / (7 channels)",
    ),
    Headline(
        "LinGen", "the same, 512 x 512", 15.0, "abstract, 'up to'",
        lambda: ratio(video(68, 512), video(68, 512, "lingen")),
        lambda: ratio(video(68, 512), projected(video(68, 512)))[0],
        "the shape of the picture is unverified too; free mixing gives {bound:.1f}",
    ),
    Headline(
        "ViG-T", "times fewer FLOPs than DeiT-T, 1024 x 1024", 5.2, "abstract",
        lambda: ratio(vit(*DEIT_T, 1024), vit(*DEIT_T, 1024, "vig", cls=0, keys=96)),
        lambda: ratio(vit(*DEIT_T, 1024), projected(vit(*DEIT_T, 1024, cls=0, keys=96)))[0],
        "with q, k, v, o and the MLP alone, gates and recurrence at no cost, it is {bound:.1f}: the paper's "
        "count leaves out layers that its code has, or DeiT-T's has more than ours; which, is unverified",
    ),
    Headline(
        "ViG-S", "share of the FLOPs of DeiT-B, 224 x 224", 0.20, "abstract",
        lambda: share(vit(*DEIT_B, 224), vit(*DEIT_S, 224, "vig", cls=0, keys=192)),
        lambda: share(vit(*DEIT_B, 224), projected(vit(*DEIT_S, 224, cls=0, keys=192)))[0],
        "as ViG-T: q, k, v, o and the MLP alone are {bound:.2f}",
    ),
    Headline("LaMamba-Diff-XL", "share of the FLOPs of DiT-XL/2, 512 x 512", 0.38, "abstract, -62 %",
             lambda: share(dit_xl(), lamamba_xl())),
    Headline(
        "WERSA", "tokens from which 0.266 of the FLOPs are left", None, "abstract: 26.2 of 98.4 G",
        lambda: alone(wersa_length(26.2 / 98.4)),
        why="length, width and depth of the paper's model are unverified, so its -73 % says only where ours "
        "reaches it (768 channels, 12 heads, 4 levels, 128 features, MLP included)",
    ),
    Headline("Agent-DeiT-T", "G multiply-adds, 224 x 224", 1.2, "code's table",
             lambda: giga(vit(*DEIT_T, 224, "agent"))),
    Headline("Agent-DeiT-S", "G multiply-adds, 448 x 448", 17.7, "code's table",
             lambda: giga(vit(*DEIT_S, 448, "agent"))),
    Headline("InLine-DeiT-T", "G multiply-adds, 224 x 224", 1.1, "code's table",
             lambda: giga(vit(12, 192, 6, 224, "inline"))),
    Headline("ZeroI2V ViT-B/16", "G multiply-adds, 3 views of 8 frames", 422.0, "code's table",
             lambda: giga(times(3, vit(*DEIT_B, 224, "zeroi2v(frames=8)", batch=8)))),
    Headline("EcoFormer PVTv2-B0", "G multiplications", 0.54, "code's table",
             lambda: alone(multiplications(pvt_v2_b0("ecoformer")))),
    Headline("EcoFormer PVTv2-B0", "G additions", 0.56, "code's table",
             lambda: alone(products(pvt_v2_b0("ecoformer")) / 2e9)),
    Headline("EcoFormer PVTv2-B0", "share of the energy of full attention", 0.27, "abstract, -73 %",
             lambda: alone(energy(pvt_v2_b0("ecoformer")) / energy(pvt_v2_b0()))),
    Headline(
        "MatMul-free LM", "times less memory, 13 G weights, inference", 10.0, "abstract, 'more than'",
        lambda: alone(lm_bytes(False) / lm_bytes(True)),
        why="the paper's is measured beside an unoptimised model; its buffers and activations are left out: "
        "these are weights (2 bits for 16, words stay at 16) and keys and values or states; 2 bits cannot "
        "pass 8 for weights, and 1.58 bits 10.1",
    ),
    Headline("FaViT-B2", "share of the weights of Swin-T", 0.86, "abstract, -14 %",
             lambda: alone(favit_b2_weights() / swin_t_weights())),
    Headline(
        "SLAB-DeiT-T", "share of the FLOPs of DeiT-T, 224 x 224", None, "reports latency",
        lambda: share(vit(*DEIT_T, 224, cls=0), vit(*DEIT_T, 224, "sla", cls=0)),
        why="its headline is 16.2 ms of a Swin-S, which no count of FLOPs gives",
    ),
    Headline(
        "LinFusion SD 1.5", "times fewer FLOPs, first attention at 16384 pixels", None, "reports time",
        lambda: ratio(*(count(block(2048**2, 320, 8, spec, hidden=0)) for spec in ("", "linfusion"))),
        why="its headline is about a minute for a picture on one GPU; this is one layer with its projections",
    ),
)  # fmt: skip


def main() -> None:
    """Print the table, then what accounts for differences."""
    print(f"{'method':20}{'figure':60}{'paper':>7}{'ours':>8}{'off':>8}{'all ops':>9}  source of the paper's")
    notes: list[str] = []
    for line in HEADLINES:
        ours, every = line.ours()
        if line.why:
            notes.append(line.why.format(bound=line.bound() if line.bound else 0.0))
        what = line.what + (f" [{len(notes)}]" if line.why else "")
        paper, off = "-", "-"
        if line.published is not None:
            paper, off = f"{line.published:g}", f"{ours / line.published - 1:+.1%}"
        print(
            f"{line.name:20}{what:60}{paper:>7}{ours:8.5g}{off:>8}"
            f"{'-' if every is None else f'{every:.5g}':>9}  {line.source}"
        )
    print()
    for i, note in enumerate(notes, 1):
        print(f"[{i}] {note}")


if __name__ == "__main__":
    main()

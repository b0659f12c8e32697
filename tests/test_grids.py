"""Pieces over grids of tokens: convolutions, pooling, scans, windows, frames, the Haar transform."""

import numpy as np
import pytest
import torch
from graphs import N, assert_linear, close, flags, gradients, graph_of, run
from torch.nn import functional as T

from subquad.ir import IRError, symbol
from subquad.passes.recipes import pieces as P

B, H, D = 2, 3, 4
GRID, BEFORE = (3, 5), 2
COUNT = 15


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def as_map(x, grid=GRID):
    """[b, h, n, d] as [b, h, d, *grid]."""
    return x.swapaxes(2, 3).reshape(*x.shape[:2], x.shape[3], *grid)


# ---- convolution along the tokens ----------------------------------------------------------------


@pytest.mark.parametrize("each", [1, D])
@pytest.mark.parametrize("width", [1, 4, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_token_conv(causal, width, each):
    """Tap by tap; padded tokens are zeros; causal ones see no future."""
    types = ((B, H, N, D), (H, each, width), (H, each), flags(B, 1, 1, N))
    graph = graph_of(lambda x, w, b, p: P.token_conv(x, w, causal=causal, bias=b, padding=p), *types)
    w, bias = draw(H, each, width, seed=1), draw(H, each, seed=2)
    for n in (1, 3, 4, 9):
        x, keep = draw(B, H, n, D), np.ones((B, 1, 1, n), bool)
        keep[1, ..., 1::3] = False
        clean, expected = np.where(keep.swapaxes(2, 3), x, 0), np.zeros_like(x) + bias[:, None]
        for t in range(n):
            for i in range(width):
                s = t - width + 1 + i if causal else t - width // 2 + i
                if 0 <= s < n:
                    expected[:, :, t] += w[:, :, i] * clean[:, :, s]
        out = run(graph, np.where(keep.swapaxes(2, 3), x, np.nan), w, bias, keep)
        close(out, expected)
        if causal and n > 2:
            close(run(graph, clean[:, :, :2], w, bias, keep[..., :2]), out[:, :, :2])
    assert_linear(graph)
    if width == 4:
        plain = graph_of(lambda x, w: P.token_conv(x, w, causal=causal), (1, H, 3, D), w.shape)
        gradients(plain, draw(1, H, 3, D), w)


# ---- over the grid -------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_grid_conv_passes_class_tokens_by(shared):
    """Against torch's convolution of the map; class tokens get 0."""
    many = D if shared else H * D
    x, w, bias = draw(B, H, BEFORE + COUNT, D), draw(many, 3, 5, seed=1), draw(many, seed=2)
    graph = graph_of(
        lambda x, w, b: P.grid_conv(x, w, GRID, bias=b, before=BEFORE), x.shape, w.shape, bias.shape
    )
    full, shift = (np.tile(y, (H,) + (1,) * (y.ndim - 1)) if shared else y for y in (w, bias))
    image = torch.from_numpy(as_map(x[:, :, BEFORE:]).reshape(B, H * D, *GRID))
    y = T.conv2d(
        image, torch.from_numpy(full[:, None]), torch.from_numpy(shift), padding=(1, 2), groups=H * D
    )
    out = run(graph, x, w, bias)
    close(as_map(out[:, :, BEFORE:]).reshape(B, H * D, *GRID), y.numpy())
    assert not out[:, :, :BEFORE].any()
    gradients(graph, x, w, bias)


def test_dynamic_conv_has_a_kernel_for_each_sample():
    x, w = draw(B, H, BEFORE + COUNT, D), draw(B, H, D, 3, 3, seed=1)
    graph = graph_of(lambda x, w: P.dynamic_conv(x, w, GRID, before=BEFORE), x.shape, w.shape)
    image = torch.from_numpy(as_map(x[:, :, BEFORE:]).reshape(1, B * H * D, *GRID))
    y = T.conv2d(image, torch.from_numpy(w.reshape(-1, 1, 3, 3)), padding=1, groups=B * H * D)
    out = run(graph, x, w)
    close(as_map(out[:, :, BEFORE:]).reshape(1, B * H * D, *GRID), y.numpy())
    assert not out[:, :, :BEFORE].any()
    gradients(graph, x, w)


def test_convolution_over_rows_unknown_in_number_is_linear():
    """An open number of rows of one width."""
    rows = symbol("n")
    graph = graph_of(lambda x, w: P.grid_conv(x, w, (rows, 8)), (B, H, rows * 8, D), (D, 3, 3))
    assert_linear(graph)
    x, w = draw(B, H, 16, D), draw(D, 3, 3, seed=1)
    fixed = graph_of(lambda x, w: P.grid_conv(x, w, (2, 8)), x.shape, w.shape)
    close(run(graph, x, w), run(fixed, x, w))


def test_grid_pool_makes_agents():
    x = draw(B, H, BEFORE + COUNT, D)
    graph = graph_of(lambda x: P.grid_pool(x, GRID, (2, 3), before=BEFORE), x.shape)
    y = T.adaptive_avg_pool2d(torch.from_numpy(as_map(x[:, :, BEFORE:]).reshape(B, H * D, *GRID)), (2, 3))
    close(as_map(run(graph, x), (2, 3)).reshape(B, H * D, 2, 3), y.numpy())
    gradients(graph, x)


@pytest.mark.parametrize(
    "size, output", [((7, 7), (14, 9)), ((7, 7), (3, 7)), ((1, 4), (5, 5)), ((6, 2), (1, 1))]
)
def test_resized_is_bilinear(size, output):
    """As torch's interpolate, to sizes given and to sizes open."""
    x = draw(B, H, *size)
    y = T.interpolate(torch.from_numpy(x), output, mode="bilinear").numpy()
    graph = graph_of(lambda x: P.resized(x, output), x.shape)
    close(run(graph, x), y)
    open_ = graph_of(
        lambda x, like: P.resized(x, like.shape), (B, H, N, symbol("m")), (symbol("r"), symbol("c"))
    )
    close(run(open_, x, np.zeros(output)), y)
    gradients(graph, x[:, :1].repeat(H, 1))


# ---- orders --------------------------------------------------------------------------------------


def walk(grid, axes, snake, reverse):
    """The places of a scan one after another, by counting."""
    lines, order = [[]], [grid[a] for a in axes]
    for at in np.ndindex(*order[:-1]):
        line = [np.ravel_multi_index([(*at, i)[axes.index(a)] for a in range(len(grid))], grid)
                for i in range(order[-1])]  # fmt: skip
        lines.append(line[::-1] if snake and len(lines) % 2 == 0 else line)
    found = [place for line in lines[1:] for place in line]
    return found[::-1] if reverse else found


SCANS = [((3, 5), (0, 1)), ((3, 5), (1, 0)), *(((2, 3, 4), axes) for axes in P.ROTARY_MAJOR)]


@pytest.mark.parametrize("grid, axes", SCANS)
@pytest.mark.parametrize("snake", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_and_their_inverses(grid, axes, snake, reverse):
    x, how = (
        draw(B, H, BEFORE + np.prod(grid), D),
        dict(axes=axes, snake=snake, reverse=reverse, before=BEFORE),
    )
    graph = graph_of(lambda x: P.scan(x, grid, **how), x.shape)
    out = run(graph, x)
    close(
        out, np.concatenate([x[:, :, :BEFORE], x[:, :, BEFORE:][:, :, walk(grid, axes, snake, reverse)]], 2)
    )
    close(run(graph_of(lambda x: P.unscan(x, grid, **how), x.shape), out), x)
    steps = np.diff(np.array(np.unravel_index(walk(grid, axes, snake, reverse), grid)))
    assert not snake or len(grid) > 2 or (np.abs(steps).sum(0) == 1).all()
    gradients(
        graph_of(lambda x: P.unscan(P.scan(x, grid, **how) * 2.0, grid, **how), (1, *x.shape[1:])), x[:1]
    )


@pytest.mark.parametrize("window", [(2, 2), (3, 5), (2, 5)])
@pytest.mark.parametrize("shift", [(), (1, 2)])
def test_windows_and_back(window, shift):
    """Every token once, in the window of its place after the turn; empty places are told."""
    x = draw(B, H, BEFORE + COUNT, D)

    def there(x):
        return P.windows(x, GRID, window, shift=shift, before=BEFORE)

    def back(x):
        first, _ = P.order.split(x, BEFORE)
        return P.unwindows(there(x)[0], GRID, window, shift=shift, first=first)

    found = run(graph_of(there, x.shape), x)
    grouped, keep = found if isinstance(found, list) else (found, None)
    close(run(graph_of(back, x.shape), x), x)
    count = [-(-g // w) for g, w in zip(GRID, window)]
    assert grouped.shape == (B * np.prod(count), H, np.prod(window), D)
    assert (keep is None) == all(g % w == 0 for g, w in zip(GRID, window))
    for b, r, c in np.ndindex(B, *count):
        at = (b * count[0] + r) * count[1] + c
        for i, j in np.ndindex(*window):
            y, z = r * window[0] + i, c * window[1] + j
            inside = y < GRID[0] and z < GRID[1]
            place = i * window[1] + j
            assert keep is None or keep[at, 0, 0, place] == inside
            if inside:
                y, z = ((y + shift[0]) % GRID[0], (z + shift[1]) % GRID[1]) if shift else (y, z)
                close(grouped[at, :, place], x[b, :, BEFORE + y * GRID[1] + z])


def test_three_dimensional_windows():
    """As many tokens a window, back where they were."""
    x, grid, window = draw(1, H, 48, D), (2, 4, 6), (2, 2, 3)
    graph = graph_of(lambda x: P.windows(x, grid, window), x.shape)
    y = x.reshape(1, H, 1, 2, 2, 2, 2, 3, D).transpose(0, 2, 4, 6, 1, 3, 5, 7, 8).reshape(4, H, 12, D)
    close(run(graph, x), y)
    close(run(graph_of(lambda y: P.unwindows(y, grid, window), y.shape), y), x)


def test_frames_moved_in_time():
    """Heads 0, 1, 2 look one back, one ahead, two back; the ends keep their own."""
    t, n = 4, 3
    x = draw(B * t, 4, n, D)
    graph = graph_of(lambda x: P.temporal_shift(x, t, each=D, steps=(-1, 1, -2)), x.shape)
    y = x.reshape(B, t, 4, n, D)
    expected = y.copy()
    expected[:, 1:, 0], expected[:, :-1, 1], expected[:, 2:, 2] = y[:, :-1, 0], y[:, 1:, 1], y[:, :-2, 2]
    close(run(graph, x), expected.reshape(x.shape))
    half = graph_of(lambda x: P.temporal_shift(x, t, each=D // 2, steps=(-1, 0)), x.shape)
    expected = y.copy()
    expected[:, 1:, 0, :, : D // 2] = y[:, :-1, 0, :, : D // 2]
    close(run(half, x), expected.reshape(x.shape))
    gradients(graph, x)


# ---- the Haar transform --------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_haar_and_back(levels):
    """Orthonormal, level by level, at lengths that 2^levels does not divide."""
    graph = graph_of(lambda x: tuple(P.haar(x, levels)), (B, H, N, D))
    back = graph_of(lambda x: P.unhaar(P.haar(x, levels), N), (B, H, N, D))
    for n in (1, 7, 8, 9):
        x = draw(B, H, n, D)
        found = run(graph, x)
        found = found if isinstance(found, list) else [found]
        y = np.pad(x, ((0, 0), (0, 0), (0, -n % 2**levels), (0, 0)))
        for detail in found[:-1]:
            close(detail, (y[:, :, ::2] - y[:, :, 1::2]) / 2**0.5)
            y = (y[:, :, ::2] + y[:, :, 1::2]) / 2**0.5
        close(found[-1], y)
        assert abs(sum((part**2).sum() for part in found) - (x**2).sum()) < 1e-9
        close(run(back, x), x)


def test_filtered_levels():
    """Gains of 1 change nothing; else each coefficient takes the gain of its first token."""
    levels = 2
    types = ((B, H, N, D), (B, 1, N, levels + 1))
    graph = graph_of(lambda x, g: P.filtered(x, g, levels), *types)
    for n in (1, 4, 6, 8):
        x, gains = draw(B, H, n, D), draw(B, 1, n, levels + 1, seed=1)
        close(run(graph, x, np.ones_like(gains)), x)
        pad = ((0, 0), (0, 0), (0, -n % 4), (0, 0))
        y, g = np.pad(x, pad), np.pad(gains, pad)
        one = (y[:, :, ::2] - y[:, :, 1::2]) / 2**0.5 * g[:, :, ::2, :1]
        low = (y[:, :, ::2] + y[:, :, 1::2]) / 2**0.5
        two = (low[:, :, ::2] - low[:, :, 1::2]) / 2**0.5 * g[:, :, ::4, 1:2]
        low = (low[:, :, ::2] + low[:, :, 1::2]) / 2**0.5 * g[:, :, ::4, 2:]
        up = np.stack([low + two, low - two], 3).reshape(B, H, -1, D) / 2**0.5
        expected = np.stack([up + one, up - one], 3).reshape(B, H, -1, D) / 2**0.5
        close(run(graph, x, gains), expected[:, :, :n])
    assert_linear(graph)
    gradients(graph_of(lambda x, g: P.filtered(x, g, levels), (1, 1, 5, 2), (1, 1, 5, 3)),
              draw(1, 1, 5, 2), draw(1, 1, 5, 3, seed=1))  # fmt: skip


def test_what_is_refused():
    """Grids that do not hold the tokens, kernels without a centre, steps beyond the frames."""
    x, w = (B, H, COUNT, D), (D, 2, 3)
    for call, types, words in (
        (lambda x: P.scan(x, (4, 4)), (x,), "15 tokens on a grid of"),
        (lambda x: P.scan(x, GRID, axes=(0, 0)), (x,), "they do not fit"),
        (lambda x: P.grid_pool(x, (4, 4), (2, 2)), (x,), "do not lie on a grid"),
        (lambda x, w: P.grid_conv(x, w, GRID), (x, w), "odd sizes"),
        (lambda x, w: P.dynamic_conv(x, w, GRID), (x, (B, H, D, 2, 2)), "odd sizes"),
        (lambda x, w: P.token_conv(x, w), (x, (H + 1, D, 3)), "3 heads of 4 features"),
        (lambda x: P.temporal_shift(x, 2, each=1, steps=(2,)), (x,), "more than 2 frames"),
        (lambda x: P.haar(x, -1), (x,), "negative"),
        (lambda x, g: P.filtered(x, g, 2), (x, (B, 1, COUNT, 2)), "2 levels have 3 gains"),
    ):
        with pytest.raises(IRError, match=words):
            graph_of(call, *types)

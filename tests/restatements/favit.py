"""FaViT's factorised attention, arXiv:2312.08614."""

import numpy as np

from . import Site, restates


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def convolve(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Depthwise, x [rows, columns, c], w [c, 3, 3], zeros around."""
    out, edge = np.empty_like(x), np.pad(x, ((1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(x.shape[:2]):
        out[i, j] = np.einsum("yxc,cyx->c", edge[i : i + 3, j : j + 3], w) + bias
    return out


def favit(site: Site, sr: int = 2, pooling: str = "mean") -> np.ndarray:
    """Sample by sample, head by head, with pictures as arrays of places."""
    (batch, heads, n, _), (rows, columns), w = site.q.shape, site.grid, site.weights
    c, out = site.tokens.shape[2], np.empty((*site.q.shape[:3], site.v.shape[3]))
    groups = 2 if sr > 1 else 1
    few, size = c // 8, 7 * c // 8 // groups
    each = size // heads
    for b in range(batch):
        q = np.concatenate(list(site.q[b]), axis=1)
        picture = site.tokens[b, site.before :].reshape(rows, columns, c)

        small = np.empty((rows // sr, columns // sr, few))
        for i, j in np.ndindex(small.shape[:2]):
            seen = picture[i * sr : i * sr + sr, j * sr : j * sr + sr, :few]
            y = np.einsum("yxc,ocyx->o", seen, w["sr"]) + w["sr_bias"]
            small[i, j] = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * w["norm"] + w["norm_bias"]
        kv = small @ w["kv_g"].T + w["kv_g_bias"]
        k, v = kv[..., :few], kv[..., few:]
        v = v + convolve(v, w["conv_g"], w["conv_g_bias"])
        k, v = k.reshape(-1, few), v.reshape(-1, few)
        columns_out = [softmax(q[:, :few] @ k.T / np.sqrt(few)) @ v]

        local = convolve(picture[..., few:], w["depth"], w["depth_bias"]) @ w["point"].T + w["point_bias"]
        for g in range(groups):
            apart = sr if g else 1
            span = 6 * apart + 1
            part = local[..., g * size : g * size + size]
            down, across = -(-rows // span), -(-columns // span)
            fill = (0, down * span - rows), (0, across * span - columns), (0, 0)
            part = np.pad(part, fill, mode="reflect")
            values, keys = np.empty((7, 7, size)), np.empty((heads, 49, each))
            for h in range(heads):
                for y, x in np.ndindex(7, 7):
                    stack = np.array([
                        part[i * span + y * apart, j * span + x * apart, h * each : h * each + each]
                        for i in range(down) for j in range(across)
                    ])  # fmt: skip
                    if pooling == "compat":
                        runs = stack.ravel()
                        pool = np.array(
                            [runs[r * len(stack) : (r + 1) * len(stack)].mean() for r in range(each)]
                        )
                    else:
                        pool = stack.mean(0)
                    feature = w["fc"][g] @ pool + w["fc_bias"][g, 0]
                    kv = w["kv_l"][g] @ feature + w["kv_l_bias"][g, 0]
                    keys[h, 7 * y + x], values[y, x, h * each : h * each + each] = kv[:each], kv[each:]
            own = slice(g * size, g * size + size)
            values = values + convolve(values, w["conv_l"][own], w["conv_l_bias"][own])
            for h in range(heads):
                start = few + h * groups * each + g * each  # queries: heads first, then groups
                scores = q[:, start : start + each] @ keys[h].T / np.sqrt(each)
                columns_out.append(softmax(scores) @ values.reshape(49, size)[:, h * each : h * each + each])
        flat = np.concatenate(columns_out, axis=1)
        out[b] = flat.reshape(n, heads, -1).transpose(1, 0, 2)
    return out


SIZES = {"h": 2, "g": 1, "d": 16, "e": 16, "c": 32}
for _sr, _pooling, _grids in ((2, "mean", ((8, 8),)), (2, "compat", ((14, 8),)), (1, "compat", ((4, 9),))):
    restates(
        f"favit(sr={_sr},pooling={_pooling})", sizes=SIZES, grids=_grids, linear=False,
        options={"sr": _sr, "pooling": _pooling},
    )(favit)  # fmt: skip

"""What the restatements of recurrences share: one token after another, in loops."""

import numpy as np


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def silu(x):
    """x sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x):
    """ln(1 + e^x)."""
    return np.logaddexp(0, x)


def rms(x, eps=1e-5):
    """The last axis at unit mean square."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def merged(x):
    """[b, h, n, e] as [b, n, h e]."""
    b, h, n, e = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * e)


def apart(x, h):
    """[b, n, h e] as [b, h, n, e]."""
    b, n, c = x.shape
    return x.reshape(b, n, h, c // h).transpose(0, 2, 1, 3)


def recurrence(q, k, v, factor, keep, beta=None):
    """o_t = S_t^T q_t over tokens that count; the others leave S as it is, and read it.

    q, k [b,h,n,d], v [b,h,n,e], factor [b,h,n,1 or d] of the state, keep [b,n], beta [b,h,n] for the
    delta rule.
    """
    (b, h, n, d), e = q.shape, v.shape[3]
    out = np.zeros((b, h, n, e))
    for i, j in np.ndindex(b, h):
        S = np.zeros((d, e))
        for t in range(n):
            if keep[i, t]:
                S = factor[i, j, t][:, None] * S
                new = v[i, j, t] if beta is None else beta[i, j, t] * (v[i, j, t] - k[i, j, t] @ S)
                S = S + np.outer(k[i, j, t], new)
            out[i, j, t] = q[i, j, t] @ S
    return out


def conv(x, w, keep):
    """Causal depthwise convolution of x [b,h,n,d] with w [h,d,width]; padded tokens are zeros."""
    y, width = np.zeros_like(x), w.shape[2]
    x = x * keep[:, None, :, None]
    for t in range(x.shape[2]):
        for i in range(width):
            if (s := t - width + 1 + i) >= 0:
                y[:, :, t] += w[:, :, i] * x[:, :, s]
    return y


def grouped_conv(x, w, keep):
    """`conv` of x whose heads were repeated, with the kernels w [g,d,width] of the heads before that."""
    return conv(x, np.repeat(w, x.shape[1] // w.shape[0], 0), keep)


def backwards(*xs):
    """Each array from the last token to the first; tokens are axis 2, or 1 of two axes."""
    return [x[:, :, ::-1] if x.ndim > 2 else x[:, ::-1] for x in xs]

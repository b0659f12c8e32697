"""Activator's gated unit, arXiv:2405.15953."""

import math

import numpy as np

from . import Site, restates


@restates("activator(accept_no_mixing=true)")
def activator(site: Site) -> np.ndarray:
    """Token by token, from nothing but the token."""
    w, out = site.weights, np.zeros((*site.q.shape[:3], site.v.shape[3]))

    def norm(y: np.ndarray) -> np.ndarray:
        return (y - y.mean()) / np.sqrt(y.var() + 1e-5) * w["norm"] + w["norm_bias"]

    for b, t in np.ndindex(*site.tokens.shape[:2]):
        one, two = (w[f"proj_{i}"] @ site.tokens[b, t] + w[f"proj_{i}_bias"] for i in (1, 2))
        one = np.array([y * (1 + math.erf(y / math.sqrt(2))) / 2 for y in one])
        out[b, :, t] = (w["proj_3"] @ (norm(one) * norm(two)) + w["proj_3_bias"]).reshape(out.shape[1], -1)
    return out

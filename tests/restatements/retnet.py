"""RetNet, arXiv:2307.08621: the parallel form, distances counted over kept tokens."""

import numpy as np

from . import Site, restates, swap
from .steps import apart, rms, silu


@restates("retnet")
def retnet(site: Site) -> np.ndarray:
    """gamma^|i - j| on every score; padding is no distance."""
    h = site.q.shape[1]
    gamma = 1 - 2.0 ** (-5 - np.arange(h))
    place = np.cumsum(site.keep, axis=1)
    distance = np.abs(place[:, None, :, None] - place[:, None, None, :])
    # to the right of a padded token the first step is free, for that token does not decay
    late = np.arange(place.shape[1])[:, None] < np.arange(place.shape[1])
    distance = distance - (late & ~site.keep[:, None, :, None])
    weights = site.scale * site.q @ swap(site.k) * gamma[:, None, None] ** distance * site.seen
    w = site.weights
    return rms(weights @ site.v, 1e-6) * apart(silu(site.tokens @ w["gate"].T + w["gate_bias"]), h)

"""What recipes are put together from, by meaning; each a plain function over values."""

from .grid import dynamic_conv, grid_conv, grid_pool, resized, token_conv
from .landmarks import affinity, pseudo_inverse, segment_means
from .local import blocks, far, shifted, tokens, windowed
from .order import ROTARY_MAJOR, scan, temporal_shift, unscan, unwindows, windows
from .parts import LOWEST, Part, few, joined, kept, linear_part, merge, normalised, ones, scaled, zeros
from .route import from_memories, load_balance, routing, to_memories
from .select import selected
from .spectral import filtered, haar, unhaar

__all__ = [
    "LOWEST", "Part", "ROTARY_MAJOR", "affinity", "blocks", "dynamic_conv", "far", "few", "filtered",
    "from_memories", "grid_conv", "grid_pool", "haar", "joined", "kept", "linear_part", "load_balance",
    "merge", "normalised", "ones", "pseudo_inverse", "resized", "routing", "scaled", "scan",
    "segment_means", "selected", "shifted", "temporal_shift", "to_memories", "token_conv", "tokens",
    "unhaar", "unscan", "unwindows", "windowed", "windows", "zeros",
]  # fmt: skip

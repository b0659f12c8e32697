"""What recipes are put together from, by meaning; each a plain function over values."""

from .local import blocks, far, shifted, tokens, windowed
from .parts import LOWEST, Part, few, joined, kept, linear_part, merge, normalised, scaled, zeros

__all__ = [
    "LOWEST", "Part", "blocks", "far", "few", "joined", "kept", "linear_part", "merge", "normalised",
    "scaled", "shifted", "tokens", "windowed", "zeros",
]  # fmt: skip

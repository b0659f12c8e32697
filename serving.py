"""What a generating model takes and how many users it serves, as closed formulas of its sizes.

Three models, none of which runs anything: the idealised runtime of HELM (Liang et al. 2022,
arXiv:2211.09110), the four metrics of serving long contexts (Fu 2024, arXiv:2405.08944), and the eFLOPs of
Kinetics (Sadhukhan et al. 2025, arXiv:2506.05333), which add the memory that attention reads to its FLOPs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .ir import SubquadError

INTENSITY = 562.5
"""FLOPs that a GPU does while it reads one element of memory, as Kinetics takes it."""


@dataclass(frozen=True)
class Idealised:
    """T = F(p) + g (o - 1): seconds of a prompt of p tokens and o > 0 of output.

    first: F, seconds to the first token, by tokens of the prompt. each: g, seconds of each later token.
    """

    first: Mapping[int, float]
    each: float

    def prompt(self, tokens: int) -> float:
        """F: linear between the known prompts, flat below the shortest, in proportion beyond the longest."""
        known = sorted(self.first)
        if tokens <= known[0]:
            return self.first[known[0]]
        for low, high in itertools.pairwise(known):
            if tokens <= high:
                share = (tokens - low) / (high - low)
                return self.first[low] * (1 - share) + self.first[high] * share
        return self.first[known[-1]] * tokens / known[-1]

    def seconds(self, prompt: int, outputs: int) -> float:
        """T; 0 for no output at all."""
        return self.prompt(prompt) + self.each * (outputs - 1) if outputs > 0 else 0.0

    @classmethod
    def fit(cls, runs: Mapping[int, Sequence[tuple[int, float]]]) -> Idealised:
        """F and g of measured runs, prompt: [(outputs, seconds), ...]: one slope, an intercept a prompt.

        Least squares. Raises SubquadError where no prompt was run with two numbers of outputs.
        """
        above = below = 0.0
        means = {}
        for prompt, points in runs.items():
            x, y = (sum(values) / len(points) for values in zip(*((o - 1, t) for o, t in points)))
            means[prompt] = x, y
            above += sum((o - 1 - x) * (t - y) for o, t in points)
            below += sum((o - 1 - x) ** 2 for o, t in points)
        if not below:
            raise SubquadError(
                "a time for each token cannot be told from runs of one length; run a second one"
            )
        each = above / below
        return cls({prompt: y - each * x for prompt, (x, y) in means.items()}, each)


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model, as far as what it costs to serve goes.

    weights: parameters. width: features of a token. itemsize: bytes of a weight, a key, a value. features: of
    the keys of a linear attention, which keeps a state of features x head_dim a head, in float32, instead of
    keys and values; None for softmax attention.
    """

    layers: int
    kv_heads: int
    head_dim: int
    width: int
    weights: float
    itemsize: int = 2
    features: int | None = None

    def linear(self, features: int | None = None) -> Decoder:
        """The same model with every attention linear, with as many features as a head has where None."""
        return replace(self, features=self.head_dim if features is None else features)

    def cache(self, context: int) -> float:
        """Bytes that a user's context takes: keys and values of every layer, or the state."""
        if self.features is not None:
            return 4.0 * self.layers * self.kv_heads * self.features * self.head_dim
        return 2.0 * context * self.layers * self.kv_heads * self.head_dim * self.itemsize

    def users(self, context: int, memory: float) -> int:
        """Users whose contexts fit into memory beside the weights."""
        left = memory - self.weights * self.itemsize
        return max(0, math.floor(left / self.cache(context)))

    def prefill(self, context: int, peak: float, *, causal: bool = True) -> float:
        """Seconds to read a context at `peak` FLOP/s, which bounds it. causal: masked pairs are skipped."""
        met = (1 if causal else 2) * context  # FLOPs for each feature of a token and layer
        if self.features is not None:  # k v^T is added to the state, q reads it
            met = 4 * self.features
        return context * (2 * self.weights + self.layers * self.width * met) / peak

    def token(self, context: int, bandwidth: float, users: int = 1) -> float:
        """Seconds of the next token of so many users at once: weights and contexts are read."""
        return (self.weights * self.itemsize + users * self.cache(context)) / bandwidth

    def switch(self, context: int, link: float, other: int | None = None) -> float:
        """Seconds to send one context to the host over `link` and fetch another, as long where None."""
        return (self.cache(context) + self.cache(context if other is None else other)) / link

    def sessions(
        self, context: int, rounds: int, outputs: int, *, users: int, memory: float, peak: float,
        bandwidth: float, link: float,
    ) -> float:  # fmt: skip
        """Sessions finished each second, where each user gives one context and gets `rounds` answers.

        Prompts are read one after another; answers of `outputs` tokens are decoded for all users that fit at
        once; where not all do, each round fetches every context again. 0 where nobody fits.
        """
        fit = min(users, self.users(context, memory))
        if not fit:
            return 0.0
        groups = math.ceil(users / fit)
        seconds = users * self.prefill(context, peak)
        seconds += rounds * groups * outputs * self.token(context, bandwidth, fit)
        if groups > 1:
            seconds += rounds * users * self.switch(context, link)
        return users / seconds


def critical_intensity(peak: float, bandwidth: float) -> float:
    """Tokens at once below which decoding waits for memory, at 2 FLOPs and 2 bytes a weight."""
    return peak / bandwidth


def eflops(
    parameters: float, context: int, outputs: int, *, heads: int, kv_heads: int, head_dim: int,
    trials: int = 1, budget: int | None = None, intensity: float = INTENSITY,
) -> float:  # fmt: skip
    """FLOPs of generating, with each element of keys and values read counted as `intensity` FLOPs.

    heads, kv_heads: of all layers together. trials: answers to one context, which they share. budget: keys
    that a sparse attention reads for each token, fewer where there are no more yet; trials then share none.
    Reading the weights is left out: many answers share it.
    """
    if budget is None:
        pairs = (2.0 * context + outputs) * outputs
        read = (2.0 * context + outputs * trials) * outputs
    else:
        few = min(max(budget - context, 0), outputs)  # tokens that see fewer than the budget
        pairs = 2.0 * (few * context + few**2 / 2 + budget * (outputs - few))
        read = trials * pairs
    compute = trials * (2 * parameters * outputs + 2 * pairs * heads * head_dim)
    return compute + intensity * 2 * read * kv_heads * head_dim

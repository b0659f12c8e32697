"""What would have to change for a refusal not to be: sentences for people, by what was refused."""

from __future__ import annotations

import re

REMEDIES: tuple[tuple[str, str], ...] = (
    # what reads the weights
    (
        r"weights are used elsewhere",
        "do not return or read the weights beside the product: need_weights=False, "
        "output_attentions=False, or only when they are asked for",
    ),
    (
        r"dropout_p",
        "pass dropout_p=self.p if self.training else 0.0: scaled_dot_product_attention does not look "
        "at model.eval()",
    ),
    (r"dropout of .* on its weights", "capture after model.eval(), or with a dropout of 0"),
    (
        r"softmax is over axis",
        "softmax(dim=-1) of q @ k.transpose(-1, -2): its last axis is that of the keys",
    ),
    (r"softmax is not over an axis of the product", "softmax(dim=-1) of q @ k.transpose(-1, -2)"),
    (r"are multiplied after the softmax", "scale the result, or the values, instead of the weights"),
    (r"are divided after the softmax", "normalise once: divide the result instead of the weights"),
    (r"masked .*after the softmax", "mask the scores with -inf before the softmax, with the same condition"),
    (r"talking heads", "nothing: heads that read one another's weights are another function"),
    (r"go into an op that has no meaning", "spell that op with ops of torch that are in docs/ops.md"),
    # what makes the scores
    (r"scores are clamped", "clamp queries and keys, or cap the scores with c * tanh(scores / c)"),
    (
        r"scores are masked before they are capped",
        "cap first, then mask: a mask of -inf becomes -c under the cap",
    ),
    (r"before they are scaled by a tensor", "scale the queries instead of the scores"),
    (r"multiplied by a tensor that varies over the keys", "scale the keys instead of the scores"),
    (r"masked scores are .* (some weight|would show)", "mask with float('-inf'), or torch.finfo(dtype).min"),
    (r"masked scores are narrowed", "mask after the cast, or keep the softmax in float32"),
    (r"where\(keep, scores, -inf\)", "scores.masked_fill(~keep, float('-inf'))"),
    (r"a bool is added", "scores.masked_fill(~mask, float('-inf'))"),
    (r"only a part of the scores is taken", "take that part of the keys before the product"),
    (r"scores of several products are joined", "join the keys, and the values, before one product"),
    (r"depends on the scores themselves", "nothing: what is kept depends on the data"),
    (r"overflows where softmax does not", "torch.softmax, or take the row's maximum off before exp"),
    (r"it has one key only", "nothing: its weights are all 1, the result is v"),
    # calls that stayed opaque
    (
        r"features of a head, .* open size",
        "name what may change and leave the last axis closed: n = torch.export.Dim('n'), and {2: n} for "
        "each of q, k and v in dynamic_shapes; True opens every axis, each with a size of its own",
    ),
    (
        r"unrelated sizes",
        "one name for both: n = torch.export.Dim('n'), and n at both axes in dynamic_shapes; True and AUTO "
        "give each axis a size of its own",
    ),
    (r" broadcast", "expand k and v to the batch and heads of q before the call: k.expand(...)"),
    (r"enable_gqa=True on", "give q, k and v four axes, [batch, heads, tokens, features]"),
    (
        r"and the mask .*: only",
        "fold the leading axes into one batch, so that q, k, v and the mask have 4 axes",
    ),
    (r"kernel of its own", "call torch.nn.functional.scaled_dot_product_attention"),
    (r"imported as one opaque call", "nothing: it is run as torch runs it"),
    (r"no pass has put attention", "run the pass called attention: subquad.EXACT has it"),
)
"""(pattern of a reason, what to do); the first that is found in a reason is its remedy."""


def remedy(reason: str) -> str:
    """What to do about a refusal, or "" where nothing is known."""
    for pattern, what in REMEDIES:
        if re.search(pattern, reason):
            return what
    return ""

"""What every softmax of a model is said to be: its status, its mask, why not, and where."""

import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import subquad
from subquad import verdicts
from subquad.passes import find_sites
from subquad.passes.masks import PARTS
from subquad.passes.remedies import REMEDIES, remedy
from subquad.passes.sites import STATUSES
from subquad.verdicts import collapsed, ranges

N = torch.export.Dim("n", min=2)


class Spelled(nn.Module):
    """q, k and v of x, and a function of them that is what a test is about."""

    def __init__(self, function, heads=2, width=8):
        super().__init__()
        self.function, self.heads = function, heads
        self.q, self.k, self.v = (nn.Linear(16, heads * width) for _ in range(3))

    def forward(self, x, *more):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.function(q, k, v, *more)


def scores(q, k):
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def explained(function, *more, **options):
    torch.manual_seed(0)
    return subquad.explain(Spelled(function).eval(), (torch.randn(2, 6, 16), *more), **options)


def only(function, *more, **options):
    (site,) = explained(function, *more, **options).sites
    return site


def line_of(function, text):
    """The file and line of this file where `function` says `text`."""
    lines, start = inspect.getsourcelines(function)
    (at,) = [start + i for i, line in enumerate(lines) if text in line]
    return f"test_sites.py:{at}"


# ---- statuses ------------------------------------------------------------------------------------


def plain(q, k, v):
    weights = scores(q, k).softmax(-1)
    return weights @ v


def test_attention_says_all_of_itself():
    site = only(plain)
    assert (site.status, site.decision, site.mask, site.reason) == ("attention", "attention", "none", "")
    assert (site.q_heads, site.kv_heads, site.head_dim, site.v_dim) == (2, 2, 8, 8)
    assert (site.q_len, site.k_len, site.softcap, site.sink) == (6, 6, None, False)
    assert site.scale == pytest.approx(8**-0.5)
    assert site.source == line_of(plain, "softmax(-1)")
    assert site.parameters == {} and site.counterexample == ""


def soft_capped(q, k, v):
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    capped = torch.tanh(scores(q, k) / 30.0) * 30.0
    return capped.masked_fill(~causal, float("-inf")).softmax(-1) @ v


def test_soft_cap_and_causal():
    site = only(soft_capped)
    assert (site.status, site.mask) == ("attention", "causal"), site.reason
    assert site.softcap == pytest.approx(30.0)


def wrong_axis(q, k, v):
    weights = scores(q, k).softmax(-2)
    return weights @ v


def test_a_softmax_over_the_wrong_axis_is_no_attention():
    site = only(wrong_axis)
    assert (site.status, site.decision, site.mask, site.q_heads) == ("not attention", "kept", "?", None)
    assert "not over the keys" in site.reason and "dim=-1" in site.remedy
    assert site.source == line_of(wrong_axis, "softmax(-2)")
    assert site.at == line_of(wrong_axis, "weights @ v")


def returned(q, k, v):
    weights = scores(q, k).softmax(-1)
    return weights @ v, weights


def test_returned_weights_keep_an_attention_that_is_known():
    site = only(returned)
    assert (site.status, site.decision, site.mask) == ("kept", "kept", "none")
    assert (site.q_heads, site.head_dim, site.q_len) == (2, 8, 6)
    assert "used elsewhere" in site.reason and "need_weights=False" in site.remedy


def test_dropout_in_training_keeps_it():
    def dropped(q, k, v):
        return F.dropout(scores(q, k).softmax(-1), 0.5, training=True) @ v

    site = only(dropped)
    assert (site.status, site.mask) == ("kept", "none")
    assert "dropout of 0.5" in site.reason and "eval()" in site.remedy


def test_weights_that_are_changed_on_their_way_say_how():
    def gated(q, k, v, gate):
        return (scores(q, k).softmax(-1) * gate) @ v

    site = only(gated, torch.rand(2, 1, 6, 6))
    assert site.status == "not attention" and "multiplied after the softmax" in site.reason
    assert "instead of the weights" in site.remedy


ROLES = {
    "a router": lambda q, k, v: torch.topk(q.softmax(-1), 2).values.sum() + k + v,
    "picked": lambda q, k, v: q.topk(2).values.softmax(-1).sum() + k + v,
    "a classifier": lambda q, k, v: (k + v + q).softmax(-1),
    "a sampler": lambda q, k, v: torch.multinomial(q[0, 0].softmax(-1), 1) + k + v,
    "a gate": lambda q, k, v: q.softmax(-1) * k + v,
    "a weighted sum": lambda q, k, v: (q.softmax(-1) * k).sum(-1),
    "log reads": lambda q, k, v: q.softmax(-1).log() + k + v,
}


@pytest.mark.parametrize("what", ROLES)
def test_a_softmax_that_is_no_attention_says_what_it_is(what):
    site = only(ROLES[what])
    assert site.status == "not attention" and what in site.reason, site.reason
    assert "meet no matrix product with values" in site.reason


# ---- calls that stay opaque ----------------------------------------------------------------------


class Call(nn.Module):
    """scaled_dot_product_attention on inputs of its own."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **self.options)


def call(dynamic_shapes=None, *, sizes=((2, 2, 6, 8),) * 3, **options):
    inputs = tuple(map(torch.randn, sizes))
    (site,) = subquad.explain(Call(**options), inputs, dynamic_shapes=dynamic_shapes).sites
    return site


def test_a_call_that_drops_weights_is_kept():
    site = call(dropout_p=0.25)
    assert (site.status, site.decision, site.mask) == ("kept", "kept", "none")
    assert "dropout of 0.25" in site.reason and "self.training" in site.remedy
    assert site.source == line_of(Call, "F.scaled_dot_product_attention(")


def test_unrelated_sizes_are_named_and_one_dim_relates_them():
    auto = {2: torch.export.Dim.AUTO}
    site = call((auto, auto, auto))
    assert site.status == "kept" and "unrelated sizes" in site.reason
    assert "of k and" in site.reason and "torch.export.Dim" in site.remedy
    assert call(({2: N}, {2: N}, {2: N})).status == "attention"


def test_every_axis_open_names_the_sizes_and_the_features():
    site = call(True)
    assert "unrelated sizes" in site.reason and "features of a head" in site.reason
    assert "torch.export.Dim('n')" in site.remedy and "leave the last axis closed" in site.remedy


def test_another_kernel_says_that_it_is_one():
    class Flash(nn.Module):
        def forward(self, q, k, v):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]

    q = torch.randn(1, 2, 6, 8)
    (site,) = subquad.explain(Flash(), (q, q.clone(), q.clone())).sites
    assert site.status == "kept" and "_scaled_dot_product_flash_attention_for_cpu" in site.reason


# ---- masks ---------------------------------------------------------------------------------------


def windowed(q, k, v):
    i = torch.arange(q.shape[2])
    near = (i[None] <= i[:, None]) & (i[:, None] - i[None] < 4)
    return scores(q, k).masked_fill(~near, float("-inf")).softmax(-1) @ v


def padded(q, k, v, keep):
    return scores(q, k).masked_fill(~keep[:, None, None, :], float("-inf")).softmax(-1) @ v


def pairs(q, k, v, keep):
    return scores(q, k).masked_fill(~keep, float("-inf")).softmax(-1) @ v


def test_masks_have_parameters():
    site = only(windowed)
    assert (site.mask, site.parameters["window"]) == ("causal+window", 4)
    site = only(padded, torch.ones(2, 6, dtype=torch.bool))
    assert site.mask == "padding" and site.parameters["padding"].startswith("input")
    assert site.empty == "nan"


def test_a_dense_mask_has_a_reason_and_a_counterexample():
    result = explained(pairs, torch.ones(2, 1, 6, 6, dtype=torch.bool))
    (site,) = result.sites
    assert (site.status, site.mask) == ("attention", "dense")
    assert "query" in site.reason
    assert "key" in site.counterexample and "query" in site.counterexample
    assert site.counterexample in str(result).replace("\n" + " " * 14, " ")
    assert "counterexample" not in vars(only(pairs, torch.ones(2, 1, 6, 6, dtype=torch.bool)))  # lazy


def test_a_recipe_that_refuses_says_so():
    result = explained(pairs, torch.ones(2, 1, 6, 6, dtype=torch.bool), attention="elu1")
    (site,) = result.sites
    assert site.decision == "attention" and "elu1 honours" in site.reason
    (site,) = explained(plain, attention="elu1").sites
    assert (site.status, site.decision, site.reason) == ("attention", "elu1", "")


# ---- pages ---------------------------------------------------------------------------------------

ROOT = Path(subquad.__file__).parent


def pasted(page, name):
    """What stands in a page between two marks, lines of source without their number."""
    text = (ROOT / page).read_text("utf-8")
    text = text.partition(f"<!-- {name}: begin -->")[2].partition(f"<!-- {name}: end -->")[0]
    return re.sub(r"\.py:\d+", ".py", text.strip().removeprefix("```text").removesuffix("```").strip())


def test_the_page_shows_what_the_example_prints():
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "explain_attention.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    said = re.sub(r"\.py:\d+", ".py", str(subquad.explain(*example.make_model())))
    assert pasted("docs/attention.md", "refused") == said
    assert pasted("README.md", "explain") in said


def test_the_page_shows_what_a_llama_gives():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, use_cache=False,
    )  # fmt: skip
    ids = torch.ones(2, 12, dtype=torch.int64)
    axes = {0: torch.export.Dim("b"), 1: torch.export.Dim("n")}
    said = subquad.explain(
        transformers.LlamaForCausalLM(config).eval(), (), {"input_ids": ids, "attention_mask": ids.clone()},
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )  # fmt: skip
    assert pasted("docs/attention.md", "llama") == re.sub(r"\.py:\d+", ".py", str(said))


# ---- text ----------------------------------------------------------------------------------------


class Stack(nn.Module):
    """Three like layers, and one that returns its weights."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Spelled(plain) for _ in range(3))
        self.last = Spelled(returned)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).transpose(1, 2).flatten(2)
        return self.last(x)


@pytest.fixture(scope="module")
def stack():
    torch.manual_seed(0)
    return subquad.optimize(Stack().eval(), (torch.randn(2, 6, 16),), check=False)


def test_like_layers_are_one_block(stack):
    text = str(stack.log.why("attention"))
    assert text.startswith("4 softmaxes: 3 attention, 1 kept\n")
    assert "layers.0-2" in text and "3 x attention" in text and "layers.1" not in text
    assert text.count("shape") == 2
    assert max(map(len, text.splitlines())) <= 110


def test_why_of_a_place(stack):
    assert [site.path for site in stack.log.why("layers.1").sites] == ["layers.1"]
    assert [site.path for site in stack.log.why("layers.*").sites] == [f"layers.{i}" for i in range(3)]
    assert "used elsewhere" in str(stack.log.why("last"))
    assert str(stack.log.why("nowhere")) == "no refusals"


def test_sites_are_a_tuple_that_prints_as_a_table(stack):
    sites = stack.sites
    assert isinstance(sites, tuple) and len(sites) == 4 and sites[0].path == "layers.0"
    assert [site.path for site in sites] == ["layers.0", "layers.1", "layers.2", "last"]
    assert str(sites) == repr(sites)
    header, first, *_ = str(sites).splitlines()
    assert header.split()[:4] == ["where", "line", "n", "mask"]
    assert first.split()[:4] == ["layers.0-2", line_of(plain, "softmax(-1)"), "3", "none"]
    assert "\x1b" not in str(sites)


def test_no_softmax_is_said():
    result = subquad.explain(nn.Linear(4, 4), (torch.randn(2, 4),))
    assert result.sites == () and str(result).startswith("no softmax in this model")
    assert str(result.sites).startswith("no softmax in this model")
    assert result.to_dict()["sites"] == []


def test_a_softmax_of_one_number_is_none():
    class Total(nn.Module):
        def forward(self, x):
            return x.sum().softmax(0)

    (site,) = subquad.explain(Total(), (torch.randn(2, 4),)).sites
    assert site.status == "not attention" and site.reason


def test_an_opaque_graph_is_explained_all_the_same():
    class Fourier(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).real.softmax(-1)

    (site,) = subquad.explain(Fourier(), (torch.randn(2, 4),)).sites
    assert site.status == "not attention" and "a classifier" in site.reason


def test_data_has_a_schema(stack):
    result = explained(returned)
    data = json.loads(json.dumps(result.to_dict()))
    assert set(data) == {"model", "sizes", "sites"}
    (site,) = data["sites"]
    assert set(site) == {
        "path", "source", "status", "decision", "mask", "parameters", "q_heads", "kv_heads", "head_dim",
        "v_dim", "q_len", "k_len", "scale", "softcap", "sink", "empty", "reason", "at", "remedy",
        "counterexample",
    }  # fmt: skip
    assert site["status"] in STATUSES and site["q_len"] == 6
    assert json.loads(json.dumps(stack.log.to_dict()))["sites"][3]["status"] == "kept"


def test_open_sizes_are_text():
    result = explained(plain, dynamic_shapes=({1: N},))
    assert result.to_dict()["sites"][0]["q_len"] == "n" and result.to_dict()["sizes"] == {"n": 6}


def test_explain_wants_inputs():
    with pytest.raises(subquad.SubquadError, match="example inputs"):
        subquad.explain(nn.Linear(4, 4))


def test_explain_takes_an_exported_program():
    program = torch.export.export(Spelled(plain).eval(), (torch.randn(2, 6, 16),))
    assert [site.status for site in subquad.explain(program).sites] == ["attention"]


def test_sites_of_one_graph_are_the_same_twice(stack):
    assert find_sites(stack.graph) == find_sites(stack.graph) == tuple(stack.sites)


@pytest.mark.parametrize(
    "paths, text",
    [
        (["a.0.b", "a.1.b", "a.2.b"], ["a.0-2.b"]),
        (["a.0.b", "a.2.b", "a.3.b"], ["a.0,2-3.b"]),
        (["s.0.b.0", "s.0.b.1", "s.1.b.0", "s.1.b.1"], ["s.0-1.b.0-1"]),
        (["s.0.b.0", "s.0.b.1", "s.1.b.0"], ["s.0.b.0-1", "s.1.b.0"]),
        (["a.b", "a.b"], ["a.b"]),
        (["model.py:12"], ["model.py:12"]),
    ],
)
def test_paths_collapse_to_exactly_themselves(paths, text):
    assert collapsed(paths) == text


def test_ranges():
    assert ranges([3, 1, 2, 7]) == "1-3,7"


SAID = "\n".join(
    path.read_text("utf-8") for path in sorted((ROOT / "passes").rglob("*.py")) if path.name != "remedies.py"
)


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in REMEDIES])
def test_a_remedy_is_for_something_that_is_said(pattern):
    assert re.search(pattern, SAID, re.MULTILINE), "no refusal reads so any more"


def test_no_remedy_for_what_is_not_said():
    assert remedy("nothing of the kind") == ""


def test_every_part_of_a_mask_has_words():
    assert set(PARTS) <= set(verdicts._PARTS)

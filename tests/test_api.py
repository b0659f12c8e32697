"""`subquad.optimize` as a user meets it: what it takes, what it gives back, what it refuses."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import subquad
from subquad.ir import OPS, BackendError, CaptureError, RecipeError, SubquadError
from subquad.ir.dims import evaluate
from subquad.passes import EXACT, Pipeline, pass_


class Mixer(nn.Module):
    """One attention as people write it by hand, with a name that globs can find."""

    def __init__(self, d=16, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, d))


class Encoder(nn.Module):
    """Two mixers and an SDPA call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Mixer(), Mixer()])
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(self.norm(x))
        y = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return scaled_dot_product_attention(y, y, y).transpose(1, 2).flatten(2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Encoder().eval()


X = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))


def test_exact_is_the_default_and_changes_nothing(model):
    fast = subquad.optimize(model, (X,))
    torch.testing.assert_close(fast(X), model(X), rtol=1e-5, atol=1e-6)
    assert [site.decision for site in fast.sites] == ["attention"] * 3
    paths = [site.path for site in fast.sites]  # code in the root's own forward goes by its line
    assert paths[:2] == ["layers.0", "layers.1"] and paths[2].startswith("test_api.py:")
    assert fast.log.error < 1e-12 and len(fast.log.steps) == len(EXACT.passes)


def test_the_graph_reads_back(model):
    fast = subquad.optimize(model, (X,))
    assert str(subquad.parse(str(fast.graph))) == str(fast.graph)


def test_the_model_is_untouched_and_owns_its_weights(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = subquad.optimize(model, (X,))
    assert list(fast.state_dict()) == list(model.state_dict())
    fast(X).sum().backward()
    with torch.no_grad():
        for p in fast.parameters():
            p.add_(1.0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_those_of_the_model(model):
    fast = subquad.optimize(model, (X,))
    fast(X).square().sum().backward()
    model(X).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("recipe", ["elu1", "performer", "taylor1", "window"])
def test_a_recipe_by_name_takes_every_site_and_trains(model, recipe):
    fast = subquad.optimize(model, (X,), attention=recipe)
    assert {site.decision for site in fast.sites} == {recipe}
    assert "attention" not in {op.name for op in fast.graph.ops()}
    fast(X).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in fast.parameters())


def test_recipes_by_glob_take_only_their_sites(model):
    fast = subquad.optimize(model, (X,), attention={"layers.1": "elu1"})
    assert [site.decision for site in fast.sites] == ["attention", "elu1", "attention"]


def test_a_recipe_object_with_options(model):
    fast = subquad.optimize(model, (X,), attention=subquad.RECIPES["window"].with_(size=4))
    assert {site.decision for site in fast.sites} == {"window(size=4)"}


def test_dynamic_shapes_serve_every_length(model):
    fast = subquad.optimize(model, (X,), dynamic_shapes=({1: torch.export.Dim("n")},))
    for n in (1, 2, 40):
        x = torch.randn(2, n, 16)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


def test_another_length_is_refused_with_the_remedy(model):
    fast = subquad.optimize(model, (X,))
    with pytest.raises(CaptureError, match="dynamic_shapes"):
        fast(torch.randn(2, 9, 16))


def test_without_inputs_it_waits_for_the_first_call(model):
    fast = subquad.optimize(model, attention="elu1")
    with pytest.raises(AttributeError, match="first call"):
        _ = fast.log
    fast(X)
    assert {site.decision for site in fast.sites} == {"elu1"}


def test_a_pipeline_as_text(model):
    fast = subquad.optimize(model, (X,), pipeline="canonicalize,attention")
    assert [step.name for step in fast.log.steps] == ["canonicalize", "attention"]


@pytest.fixture
def inductor(model):
    from subquad.backends import BACKENDS

    if reason := BACKENDS["inductor"].unavailable():
        pytest.skip(reason)
    return subquad.optimize(model, (X,), backend="inductor")  # compiles at the first call


def test_inductor_is_a_backend(inductor):
    assert inductor.backend == "inductor"


@pytest.mark.slow
def test_inductor_runs_the_same_graph(model, inductor):
    torch.testing.assert_close(inductor(X), model(X), rtol=1e-4, atol=1e-5)


def test_an_exported_program_is_taken_too(model):
    program = torch.export.export(model, (X,))
    fast = subquad.optimize(program)
    torch.testing.assert_close(fast(X), model(X), rtol=1e-5, atol=1e-6)


def test_a_wrong_pass_is_undone_and_named_and_the_module_still_right(model):
    @subquad.rule(lambda x: OPS["softmax"](x, dim=-1))
    def softmax_is_sigmoid(x):
        return OPS["sigmoid"](x)

    def swindle(graph):
        from subquad.ir import rewrite

        return rewrite(graph, [softmax_is_sigmoid])

    swindle.__doc__ = "A pass that lies."
    wrong = pass_(swindle)
    try:
        fast = subquad.optimize(model, (X,), pipeline=Pipeline(wrong, EXACT))
    finally:
        from subquad.passes import PASSES

        del PASSES["swindle"]
    assert "softmax_is_sigmoid" in fast.log.steps[0].undone
    assert "softmax_is_sigmoid" in str(fast.log)
    torch.testing.assert_close(fast(X), model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"attention": "elu"}, RecipeError, "did you mean 'elu1'"),
        ({"attention": {"nowhere.*": "elu1"}}, RecipeError, "layers.0"),
        ({"backend": "eagr"}, BackendError, "did you mean 'eager'"),
        ({"pipeline": "canonicalise"}, SubquadError, "did you mean 'canonicalize'"),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(model, options, error, words):
    with pytest.raises(error, match=words):
        subquad.optimize(model, (X,), **options)


def test_inputs_must_come_in_a_tuple(model):
    with pytest.raises(SubquadError, match="tuple"):
        subquad.optimize(model, X)


def test_eight_threads_at_once(model):
    results, wanted = [], model(X)

    def work():
        fast = subquad.optimize(model, (X,))
        results.append((fast.graph.digest(), (fast(X) - wanted).abs().max().item()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len({digest for digest, _ in results}) == 1
    assert max(error for _, error in results) < 1e-5


def test_what_could_be_gained_is_priced_where_the_mask_allows(model):
    x = torch.randn(1, 512, 16)
    fast = subquad.optimize(model, (x,), check=False)
    assert {gain.site for gain in fast.log.gains} == {site.path for site in fast.sites}
    elu = next(gain for gain in fast.log.gains if gain.recipe == "elu1")
    assert elu.after.flops < elu.before.flops
    usable = [gain for gain in fast.log.gains if gain.kind != "needs training"]
    best = min(usable, key=lambda gain: evaluate(gain.after.flops, fast.log.sizes))
    assert f'attention="{best.recipe}"' in str(fast.log)

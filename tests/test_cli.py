"""The command line: what it teaches, what it prints, how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import subquad.ir as ir
from subquad import cli
from subquad.target import axes_of, example, load, resized

MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def make_model():
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(2, 12, 32),)


def net():
    return Net().eval()


def broken():
    return 1 / 0


def text():
    return "a model"


model = Net().eval(), (torch.randn(2, 12, 32),), {}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with my_model.py in it, which is the current one."""
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "bad_model.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    return tmp_path


def run(capsys, *argv):
    """(exit code, stdout, stderr) of the command line in this process."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr()
    return code, told.out, told.err


# ---- targets and inputs --------------------------------------------------------------------------


def test_targets(here):
    model, args, kwargs = load("my_model:make_model")
    assert args[0].shape == (2, 12, 32) and kwargs == {}
    assert load("my_model:model")[2] == {}
    model, args, kwargs = load("my_model:net", ["f32[1,4,32]"])
    assert model(*args).shape == (1, 4, 32)


@pytest.mark.parametrize(
    "target, says",
    [
        ("my_model", "expected pkg.mod:make_model"),
        ("no_such_module:make", "no module 'no_such_module'"),
        ("bad_model:make", "bad_model imports 'nothing_of_this_name'"),
        ("my_model:make_modle", "did you mean 'make_model'"),
        ("my_model:broken", r"ZeroDivisionError: division by zero \(my_model.py:\d+\)"),
        ("my_model:text", "returned a str, not a torch.nn.Module"),
        ("my_model:net", "gave a model and no inputs"),
    ],
)
def test_a_wrong_target_is_one_message(here, target, says):
    with pytest.raises(ir.SubquadError, match=says):
        load(target)


def test_examples_of_inputs():
    assert example("f32[2,3]").shape == (2, 3)
    assert example("bf16[]").dtype == torch.bfloat16
    assert example("i64[50]<3").max() == 2
    assert example("bool[2, 2]").all()
    assert torch.equal(example("f32[4]"), example("f32[4]"))
    for text in ("f33[2]", "f32", "f32[a]", "f32[2]<"):
        with pytest.raises(ir.SubquadError, match="no input type"):
            example(text)


class Keyword(torch.nn.Module):
    def forward(self, x, training):
        return x.mean() if training else x


def test_axes_and_lengths():
    x, mask = torch.arange(6).reshape(2, 3), torch.ones(2)
    (shapes, of_mask) = axes_of((x, mask), {}, {1: "n"})
    assert list(shapes) == [1] and not of_mask
    named = axes_of((x,), {"training": False}, {1: "n"}, Keyword())
    assert list(named["x"]) == [1] and named["training"] is None
    longer, same = resized((x, mask), 1, 5)
    assert longer.tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]] and same is mask


# ---- commands ------------------------------------------------------------------------------------


def test_help_teaches(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "subquad demo" in out and "Start here" in out
    for command in ("explain", "optimize", "compare", "print", "demo", "recipes"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0 and "usage: subquad" in out
    assert run(capsys)[0] == 0
    assert max(map(len, out.splitlines())) <= 100


def test_a_wrong_command_is_2(capsys):
    assert run(capsys, "optimise")[0] == 2
    assert run(capsys, "compare", "m:f", "--lengths", "1,x")[0] == 2
    assert run(capsys, "compare", "m:f", "--dynamic", "n")[0] == 2


def test_a_failure_is_1_and_one_message(capsys, here):
    code, out, err = run(capsys, "optimize", "my_model:make_modle")
    assert (code, out) == (1, "")
    assert err.startswith("subquad: my_model has no") and "Traceback" not in err


def test_help_needs_no_torch():
    code = "import sys, subquad.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_optimize(capsys, here):
    code, out, err = run(capsys, "optimize", "my_model:make_model", "--json", "log.json", "--ir", "graph.ir")
    assert code == 0, err
    assert "canonicalize" in out and "rules applied" in out
    assert json.loads((here / "log.json").read_text())["steps"]
    assert ir.parse((here / "graph.ir").read_text()).outputs


def test_explain(capsys, here):
    code, out, err = run(capsys, "explain", "my_model:make_model")
    assert code == 0, err
    assert out.startswith("1 softmax: 1 attention\n") and "none: every query sees every key" in out
    assert f"my_model.py:{MODEL.splitlines().index(CALL) + 1}" in out


CALL = "        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)"


def test_explain_for_machines_with_open_sizes(capsys, here):
    code, out, err = run(capsys, "explain", "my_model:make_model", "--json", "--dynamic", "1=n")
    assert code == 0, err
    (site,) = json.loads(out)["sites"]
    assert (site["status"], site["mask"], site["q_len"], site["head_dim"]) == ("attention", "none", "n", 16)


def test_explain_tries_recipes_and_fails_like_the_others(capsys, here):
    code, out, err = run(capsys, "explain", "my_model:make_model", "--attention", "elu1")
    assert code == 0 and "replaced by elu1" in out, err
    assert run(capsys, "explain", "my_model:make_model", "--attention", "elu")[0] == 1
    code, out, err = run(capsys, "explain", "my_model:make_modle")
    assert (code, out) == (1, "") and "did you mean 'make_model'" in err


def test_compare(capsys, here):
    code, out, err = run(capsys, "compare", "my_model:make_model", "--repeats", "1")
    assert code == 0, err
    assert "ok" in out and "times less" in out


def test_compare_over_lengths_with_a_recipe(capsys, here):
    code, out, err = run(
        capsys, "compare", "my_model:make_model", "--attention", "elu1", "--dynamic", "1=n",
        "--lengths", "32,64", "--repeats", "1", "--plot", "plot.png",
    )  # fmt: skip
    assert code == 1 and "say what you accept" in err, err
    assert "exponent" in out and (here / "plot.png").exists()
    assert run(capsys, "compare", "my_model:make_model", "--lengths", "32")[0] == 1


def test_print(capsys, here):
    code, out, err = run(capsys, "print", "my_model:make_model", "--captured")
    assert code == 0, err
    assert ir.parse(out).inputs
    _, with_sources, _ = run(capsys, "print", "my_model:make_model", "--sources")
    assert "my_model.py:" in with_sources


def test_unknown_recipe(capsys, here):
    code, _, err = run(capsys, "optimize", "my_model:make_model", "--attention", "elu")
    assert code == 1 and "elu1" in err


@pytest.mark.parametrize(
    "given, chosen",
    [
        (None, "exact"),
        (["elu1"], "elu1"),
        (["window(size=32)"], "window(size=32)"),
        (["a.*=elu1", "window(size=2)"], {"a.*": "elu1", "*": "window(size=2)"}),
        (["a.*=window(size=32)"], {"a.*": "window(size=32)"}),
    ],
)
def test_attention(given, chosen):
    assert cli._attention(given) == chosen


def test_recipes(capsys):
    code, out, err = run(capsys, "recipes", "elu1", "window(size=16)", "activator")
    assert code == 0, err
    assert "arXiv:2006.16236" in out and "hedgehog" not in out
    rows = {line.split()[0]: line for line in out.splitlines() if line[:1].strip()}
    assert rows["activator"].startswith("activator"), "it refuses by name, and is listed"
    assert "proj_3: 0, so that it adds nothing" in out


def test_a_recipe_that_there_is_not(capsys):
    code, _, err = run(capsys, "recipes", "elu2")
    assert code == 1 and "elu1" in err


@pytest.mark.parametrize("page, command", [("recipes", "recipes --markdown"), ("ops", "ops")])
def test_the_page_is_what_is_declared(page, command):
    # of its own process: other tests declare ops and recipes
    code = f"from subquad.cli import main; main({command.split()})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    page = Path(cli.__file__).with_name("docs") / f"{page}.md"
    assert said.stdout in page.read_text("utf-8"), f"paste `subquad {command}` into it"


@pytest.mark.parametrize("package", ["matplotlib", "transformers"])
def test_the_demo_without_its_extra(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(capsys, "demo")
    assert code == 1 and package in err and "-c constraints.txt" in err


def test_the_last_part_of_the_demo(capsys, monkeypatch, tmp_path):
    from subquad import demo

    monkeypatch.setattr(demo, "pretrained", lambda say, width: None)
    code, out, err = run(capsys, "demo", "--lengths", "32,64", "--plot", str(tmp_path / "p.png"))
    assert code == 0, err
    assert "exponent" in out and (tmp_path / "p.png").exists()


def test_a_file_that_cannot_be_written_is_one_message(here, capsys):
    """An exit code and a line that names the file, no traceback."""
    assert cli.main(["optimize", "my_model:make_model", "--json", "missing/log.json"]) == 1
    assert "missing/log.json" in capsys.readouterr().err


def test_repeats_are_counted():
    """A negative number of repeats is a wrong command."""
    with pytest.raises(SystemExit):
        cli.main(["compare", "my_model:make_model", "--repeats", "-1"])

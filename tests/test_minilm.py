"""The pretrained encoder: exact passes change nothing that float64 could tell, also from threads."""

import threading

import pytest
import torch

import subquad
from subquad.demo import docstrings, minilm
from subquad.reference import in_float64


@pytest.fixture(scope="module")
def case():
    model, tokenize = minilm(attn_implementation="eager")  # the attention spelt out, not one call
    args = tokenize(docstrings(6))
    return model, args, in_float64(model, args, {})


def test_exact_is_equal_to_float64(case):
    model, args, truth = case
    fast = subquad.optimize(model, args)
    assert [(site.path, site.mask, site.decision) for site in fast.sites] == [
        (f"encoder.encoder.layer.{i}.attention.self", "padding", "attention") for i in range(6)
    ]
    assert not any(step.undone for step in fast.log.steps)
    with torch.no_grad():
        assert (fast(*args) - truth).abs().max() <= 1e-5


def test_open_sizes_serve_texts_of_other_lengths(case):
    model, args, _ = case
    sizes = {0: torch.export.Dim("b"), 1: torch.export.Dim("n", max=512)}
    fast = subquad.optimize(model, args, dynamic_shapes=(sizes, sizes), check=False)
    ids, mask = (x[1:4, :17].clone() for x in args)
    mask[0, 9:] = 0
    with torch.no_grad():
        torch.testing.assert_close(fast(ids, mask), model(ids, mask), rtol=1e-5, atol=1e-6)


def test_eight_threads_get_the_same_graph_and_the_same_numbers(case):
    model, args, truth = case
    found = []

    def work():
        fast = subquad.optimize(model, args, check=False)
        with torch.no_grad():
            found.append((fast.graph.digest(), (fast(*args) - truth).abs().max().item()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({digest for digest, _ in found}) == 1
    assert max(error for _, error in found) <= 1e-5

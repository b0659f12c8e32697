"""Files whole or not at all, and results that a killed run finds again."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from subquad.store import Store, replacing, write


def test_write_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "first")
    with pytest.raises(ValueError), replacing(path) as file:
        file.write_text("half")
        raise ValueError
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_write_names_what_it_cannot_write(tmp_path):
    with pytest.raises(OSError, match="missing"):
        write(tmp_path / "missing" / "a.txt", "")


def test_results_are_found_again_under_their_key_only(tmp_path):
    first = Store(tmp_path, "k" * 64)
    first.keep("effect 0 window(size=16)", {"cosine": 0.5})
    first.keep_tensors("fit hedgehog", {"w": torch.arange(3.0)})
    again, other = Store(tmp_path, "k" * 64), Store(tmp_path, "j" * 64)
    assert again.numbers("effect 0 window(size=16)") == {"cosine": 0.5}
    assert torch.equal(again.tensors("fit hedgehog")["w"], torch.arange(3.0))
    assert other.numbers("effect 0 window(size=16)") is None and other.tensors("fit hedgehog") is None


def test_names_that_differ_have_files_that_differ(tmp_path):
    store = Store(tmp_path, "key")
    store.keep("a/b", 1)
    store.keep("a b", 2)
    assert (Store(tmp_path, "key").numbers("a/b"), Store(tmp_path, "key").numbers("a b")) == (1, 2)


def test_a_corrupt_file_is_a_miss(tmp_path):
    Store(tmp_path, "key").keep("n", {"x": 1})
    Store(tmp_path, "key").keep_tensors("t", {"x": torch.ones(2)})
    for path in (tmp_path / "key").iterdir():
        path.write_bytes(path.read_bytes()[:3])
    assert Store(tmp_path, "key").numbers("n") is None
    assert Store(tmp_path, "key").tensors("t") is None


def test_without_a_folder_results_live_as_long_as_the_store():
    store = Store(None, "key")
    assert store.keep("n", 3) == store.numbers("n") == 3


def test_killed_while_writing(tmp_path):
    """kill -9 in the middle of writing leaves the old file or the new one."""
    program = (
        "import sys; from subquad.store import write\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1; write(sys.argv[1], str(i) * 100000); print(flush=True)\n"
    )
    path = tmp_path / "numbers"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert len(text) % 100000 == 0 and set(text) <= set("0123456789")

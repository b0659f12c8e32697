"""The same text from every process, hash seed and thread; building blocks that overlap."""

import gc
import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from fuzz import specimen
from test_fuzz import RULES, exact_passes

from subquad.ir import (
    DTYPES,
    Graph,
    IRError,
    TensorType,
    building,
    journal,
    ops,
    parse,
    rewrite,
    rule,
)


def digests(seeds) -> str:
    """One hash of the optimised text of these graphs."""
    texts = "".join(exact_passes(specimen(seed, RULES)).digest() for seed in seeds)
    return hashlib.sha256(texts.encode()).hexdigest()


def test_hash_seeds():
    """The same text in processes that hash differently."""
    here = os.path.dirname(__file__)
    code = "import test_threads; print(test_threads.digests(range(100)))"
    said = set()
    for hashseed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": hashseed, "PYTHONPATH": here}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        said.add(ran.stdout)
    assert said == {digests(range(100)) + "\n"}


def test_threads():
    """Sixteen threads, fifty graphs each, the digests of one thread."""
    parts = [range(i * 50, (i + 1) * 50) for i in range(16)]
    alone = [digests(part) for part in parts[:4]]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(digests, [parts[i % 4] for i in range(16)]))
    assert together == alone * 4


def test_interning_is_per_thread():
    """A block in one thread never sees another thread's ops; its rules land in its own journal."""

    @rule(lambda x: ops.neg(ops.neg(x)))
    def negated_twice(x):
        return x

    gate = threading.Barrier(8)

    def work(_):
        with building(), journal() as log:
            gate.wait()
            x = ops.input(name="x", type=TensorType(DTYPES["f32"], (2,)))
            y = ops.neg(ops.neg(x))
            assert ops.neg(x) is y.op.inputs[0]
            gate.wait()
            rewrite(Graph("g", [x], [y]), [negated_twice])
            return y.op, log.applied

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(work, range(8)))
    assert len({op for op, _ in made}) == 8
    assert [applied for _, applied in made] == [1] * 8


def test_the_collector_is_left_as_it_was():
    """Blocks in threads that overlap, and blocks that raise, leave the cycle collector running."""
    assert gc.isenabled()

    def work(i):
        for _ in range(50):
            try:
                with building():
                    parse("graph g() { return }" if i % 2 else "graph")
            except IRError:
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert gc.isenabled()
    gc.disable()
    try:
        with building():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

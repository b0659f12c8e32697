"""Machines: named ones, this one, and the cache that keeps it."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from subquad import cli, machine, speeds
from subquad.backends.targets import TARGETS
from subquad.ir import SubquadError
from subquad.machine import between, identity, keep, machine_named, machine_of, recall, this_machine


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of its own, and a process that has measured nothing."""
    monkeypatch.setenv("SUBQUAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "_known", {})
    return tmp_path / "cache"


@pytest.fixture
def measurements(monkeypatch):
    """What `measured` was asked for; it answers at once."""
    asked = []

    def measured(device):
        asked.append(device)
        return replace(machine_named("epyc"), name=f"measurement {len(asked)}")

    monkeypatch.setattr(speeds, "measured", measured)
    return asked


# ---- curves and named machines -------------------------------------------------------------------


def test_a_curve_is_a_power_law_between_its_points():
    """And constant beyond them."""
    curve = ((10.0, 100.0), (1000.0, 1.0))
    assert [between(curve, x) for x in (1, 10, 100, 1000, 1e9)] == pytest.approx([100, 100, 10, 1, 1])


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_machines(name):
    """Each is whole, survives JSON, and no kernel is faster than the largest product."""
    found = machine_named(name)
    assert machine_of(json.loads(json.dumps(asdict(found)))) == found
    assert all(0 < share <= 1 for share in [*found.shares.values(), *(s for _, s in found.sides)])
    assert [s for _, s in found.sides] == sorted(s for _, s in found.sides)  # longer sides are no slower
    assert found.bandwidth[0][1] > found.bandwidth[-1][1]  # a cache is faster than the memory behind it
    assert found.products["f64"] <= found.products["f32"] <= found.products["bf16"]


def test_data_sheets():
    """The figures that planning rests on, as published."""
    h100, h200, a100 = (machine_named(name) for name in ("H100", "h-200", "a 100"))
    assert (h100.products["bf16"], a100.products["bf16"]) == (989.5e12, 312e12)
    assert h200.products == h100.products and h200.memory == 141e9
    assert h100.bandwidth[-1][1] / 0.92 == pytest.approx(3.35e12)
    assert h200.bandwidth[-1][1] / h100.bandwidth[-1][1] == pytest.approx(4.8 / 3.35)
    assert machine_named("b200").products["bf16"] == 2250e12
    assert machine_named("RTX 4090").memory == 24e9


def test_an_unknown_machine_is_refused_with_the_nearest_name():
    """The house's form of an error."""
    with pytest.raises(
        SubquadError, match=r"no machine is called 'h10'; there are a100.*did you mean 'h100'"
    ):
        machine_named("h10")


@pytest.mark.parametrize(
    "change",
    [
        {"launch": 0}, {"memory": -1.0}, {"products": {"bf16": 1e12}}, {"sides": []}, {"launch": math.nan},
        {"bandwidth": [[2, 1], [1, 1]]}, {"shares": {"batched": 1}}, {"speed": 1},
        {"elements": {"exp": "fast"}}, {"fresh": [1]}, {"link": 0},
    ],
)  # fmt: skip
def test_what_is_no_machine_is_refused(change):
    """Constants that would give times of zero, infinity, or none."""
    with pytest.raises(SubquadError, match="no constants of a machine"):
        machine_of({**asdict(machine_named("h100")), **change})


def test_products_by_shape_and_dtype():
    """A short side and a batch of small products are slower; an unknown dtype counts as f32."""
    found = machine_named("h100")
    peak = found.products["bf16"]
    assert found.product("bf16") == pytest.approx(0.78 * peak)
    assert found.product("bf16", 8) == pytest.approx(0.02 * peak)
    assert found.product("bf16", 64, batched=True) == pytest.approx(found.shares["batched"] * peak)
    assert found.product("c64") == found.product("f32")
    assert found.kernel("attention", "bf16") == pytest.approx(0.35 * peak)


def test_memory_that_is_new_costs_its_pages():
    """From the size on from which the system provides it."""
    found = replace(machine_named("epyc"), bandwidth=((1.0, 1e9),), fresh=(1e6, 1e8))
    assert found.moving(0) == 0
    assert found.moving(1e9, 1e5) == pytest.approx(1)
    assert found.moving(1e9, 1e6) == pytest.approx(1 + 1e-2)


# ---- this machine --------------------------------------------------------------------------------


def test_it_is_measured_once_and_kept(folder, measurements, monkeypatch):
    """In the process, and for the next one in a file."""
    first = this_machine("cpu")
    assert this_machine("cpu") is first and measurements == ["cpu"]
    monkeypatch.setattr(machine, "_known", {})
    assert this_machine("cpu") == first and measurements == ["cpu"]
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["machine"]
    assert this_machine("cpu", force=True).name == "measurement 2"
    assert this_machine("cpu").name == "measurement 2" and len(measurements) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"key": "another", "value": {}}', '{"value": {"name": "x"}}', "[" * 100_000],
)
def test_an_entry_that_cannot_be_read_is_measured_again(folder, measurements, text):
    """Truncated by a crash, of another format, or not ours at all."""
    path = machine.entry("machine", identity("cpu"))
    path.parent.mkdir()
    path.write_text(text)
    assert this_machine("cpu").name == "measurement 1"
    assert json.loads(path.read_text())["value"]["name"] == "measurement 1"


def test_an_entry_with_the_right_key_and_wrong_constants_is_measured_again(folder, measurements):
    """The key alone makes no machine."""
    keep("machine", identity("cpu"), {**asdict(machine_named("epyc")), "launch": -1})
    assert this_machine("cpu").name == "measurement 1"


def test_nothing_can_be_written(folder, measurements):
    """It works without a cache, and measures once in a process."""
    folder.write_text("a file where the folder should be")
    assert this_machine("cpu").name == "measurement 1"
    assert this_machine("cpu").name == "measurement 1"
    assert recall("machine", identity("cpu")) is None and "cannot be written" in machine.where_kept(
        this_machine("cpu")
    )


def test_another_number_of_threads_is_another_machine(folder, measurements):
    """As another version of torch would be."""
    before = torch.get_num_threads()
    this_machine("cpu")
    try:
        torch.set_num_threads(before + 1)
        assert this_machine("cpu").name == "measurement 2"
    finally:
        torch.set_num_threads(before)
    assert this_machine("cpu").name == "measurement 1"
    assert torch.__version__ in identity("cpu") and f"format {machine.FORMAT}" in identity("cpu")


def test_where_the_cache_lies(monkeypatch, tmp_path):
    """SUBQUAD_CACHE, then XDG_CACHE_HOME where it is absolute, then the home folder's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SUBQUAD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert machine.cache_folder() == tmp_path / ".cache" / "subquad"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert machine.cache_folder() == tmp_path / ".cache" / "subquad"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert machine.cache_folder() == tmp_path / "xdg" / "subquad"
    monkeypatch.setenv("SUBQUAD_CACHE", "~/mine")
    assert machine.cache_folder() == tmp_path / "mine"


def test_devices_that_cannot_be_measured(monkeypatch):
    """By name, and where torch sees no CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SubquadError, match="torch sees no CUDA device here"):
        this_machine("cuda")
    with pytest.raises(SubquadError, match="device='tpu'"):
        this_machine("tpu")


# ---- measuring, by a clock that is not one -------------------------------------------------------


def test_rates_are_work_over_time():
    """Under a clock by which every call takes a tenth of a second."""
    seconds, calls = 0.1, []

    def timer(call):
        call()
        calls.append(call)
        return seconds

    found = speeds.measured("cpu", timer)
    launch = seconds / 100
    side = 256  # long enough at once
    peak = 2 * 4096 * 512**2 / (seconds - launch)  # of the most work done in that time
    assert found.launch == launch and found.view == launch
    square = dict.fromkeys(speeds.DTYPES, pytest.approx(2 * side**3 / seconds))
    assert found.products == {**square, "f32": pytest.approx(peak)}
    assert found.elements["exp"] == pytest.approx((1 << 18) / (seconds - launch))
    assert dict(found.sides) == pytest.approx({side: (side / 512) ** 2 for side in speeds.SIDES})
    assert max(found.shares.values()) <= 1
    n = speeds.TOKENS // 2
    work = 4 * speeds.HEADS * speeds.HEAD_DIM * n * n
    assert found.kernel("attention", "f32") == pytest.approx(work / (seconds - launch))
    assert found.kernel("causal", "f32") == pytest.approx(work * (n + 256) / (2 * n) / (seconds - launch))
    assert machine_of(json.loads(json.dumps(asdict(found)))) == found
    assert len(calls) < 80  # at 0.04 s each and a few times as much to make the operands: under 10 s


def test_the_clock_keeps_the_least_time(monkeypatch):
    """Of at least two calls after the first."""
    now, left = [0.0], iter([9.0, 3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(speeds.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(left)

    watch = speeds.Stopwatch("cpu", seconds=5.5)
    assert watch(call) == 1.0 and watch.ratios == [2.0]
    assert next(left) == 5.0


def test_the_clock_keeps_to_its_total(monkeypatch):
    """Once that is spent, a call is made once."""
    now, calls = [0.0], []
    monkeypatch.setattr(speeds.time, "perf_counter", lambda: now[0])

    def call():
        calls.append(call)
        now[0] += 3.0

    watch = speeds.Stopwatch("cpu", seconds=0.1, total=10.0)
    assert [watch(call) for _ in range(3)] == [3.0] * 3
    assert len(calls) == 3 + 1 + 1


@pytest.mark.parametrize("change", [{"spread": 2.5}, {"bandwidth": ((1e3, 1e9), (1e6, 1e6), (1e9, 2e8))}])
def test_a_busy_machine_says_so_and_is_not_kept(folder, monkeypatch, change):
    """Times that differ, or a cache slower than the memory behind it: the next process measures again."""
    quiet = machine_named("epyc")
    busy = replace(quiet, **change)
    assert "busy" in busy.text() and "busy" not in quiet.text()
    monkeypatch.setattr(speeds, "measured", lambda device: busy)
    assert this_machine("cpu") is busy and not folder.exists()
    assert "this process only" in machine.where_kept(busy)
    monkeypatch.setattr(machine, "_known", {})
    monkeypatch.setattr(speeds, "measured", lambda device: quiet)
    assert this_machine("cpu") is quiet and folder.exists()


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_prints_a_table(folder, measurements, capsys):
    """And where it lies; again only when told to."""
    assert cli.main(["calibrate-machine"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("measurement 1 (cpu)") and "linear_attention" in out and str(folder) in out
    assert cli.main(["calibrate-machine", "--json"]) == 0
    assert machine_of(json.loads(capsys.readouterr().out)).name == "measurement 1"
    assert cli.main(["calibrate-machine", "--force"]) == 0
    assert capsys.readouterr().out.startswith("measurement 2")


def test_the_command_knows_targets(folder, measurements, capsys):
    """Which are read, not measured."""
    assert cli.main(["calibrate-machine", "--target", "h100"]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA H100" in out and "data sheet" in out and not measurements
    assert cli.main(["calibrate-machine", "--target", "h1oo"]) == 1
    assert "did you mean 'h100'" in capsys.readouterr().err

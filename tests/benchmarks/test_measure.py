"""Timing, tables and comparisons, without the operators."""

import argparse
import sys
import time

import compare
import measure
import pytest
import torch


@pytest.fixture
def table(tmp_path):
    def make(commit="1234567", device="cpu"):
        options = dict(device=torch.device(device), kernels="compiled", commit=commit)
        return measure.Table("sums", folder=tmp_path, **options)

    return make


@pytest.fixture
def settings():
    return compare.Settings(
        device=torch.device("cpu"),
        dtypes=["float32"],
        threads=[1],
        seconds=0,
        turns=3,
        options=argparse.Namespace(),
    )


def implementation(seconds, **figures):
    return compare.Implementation(calls=[lambda: time.sleep(seconds)], images=2, figures=figures)


def run(table, settings, builders, **options):
    row = dict(case="a case", measured="forward", dtype="float32")
    compare.compare(table, settings, **row, builders=builders, **options)
    return {row["implementation"]: row for row in table.rows}


def test_timers_alternate():
    calls = []
    timers = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    times = measure.interleaved(timers, seconds=0, turns=2)
    # The first turn is for the caches.
    assert calls == list("ababab")
    assert times == {"a": [3, 5], "b": [4, 6]}


def test_spread_is_that_of_the_quartiles():
    assert measure.spread([5.0]) == 0
    assert measure.spread([8, 9, 10, 11, 12]) == pytest.approx(30)


def test_ratio_compares_turn_by_turn():
    assert measure.ratio([20, 200, 30], [10, 100, 10]) == 2


def test_relative_error():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert measure.relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    error = measure.relative_error(torch.tensor([torch.nan, 4.0]), exact)
    assert error != error


def test_eager_and_host_time():
    eager, host = measure.eager_microseconds(lambda: time.sleep(1e-3), repeats=3)
    assert 1000 <= host <= eager


def test_saved_memory_counts_a_storage_once():
    x = torch.ones(1000, requires_grad=True)
    assert measure.saved_bytes(lambda: x.exp() * x) == 8000
    assert measure.saved_bytes(lambda: x.exp() * x, given=[x]) == 4000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_includes_what_is_freed():
    size = 1 << 24
    peak = measure.peak_bytes(lambda: torch.ones(4 * size, dtype=torch.uint8)[:1].clone())
    assert peak == pytest.approx(4 * size, rel=0.1)


def test_rows_are_written_at_once_and_not_measured_again(table, settings):
    first = table()
    rows = run(first, settings, {"ours": lambda: implementation(1e-3)})
    assert measure.read(first.path) == [rows["ours"]]
    assert tuple(rows["ours"]) == measure.FIELDS
    assert float(rows["ours"]["milliseconds"]) >= 1
    speed = 2e3 / float(rows["ours"]["milliseconds"])
    assert float(rows["ours"]["images_per_second"]) == pytest.approx(speed, rel=1e-3)
    again = table()
    run(again, settings, {"ours": pytest.fail})
    assert again.rows == first.rows
    # Rows of other code are dropped.
    assert table(commit="7654321").rows == []


def test_a_peer_that_fails_is_a_row(table, settings, capsys):
    def missing():
        raise ImportError("No module named 'peer'")

    rows = run(
        table(),
        settings,
        {
            "ours": lambda: implementation(1e-3, relative_error=1e-6),
            "missing": missing,
            "wrong": lambda: implementation(1e-3, relative_error=0.5),
            "slow": lambda: implementation(4e-3),
        },
        targets={("slow", 1): ">= 2"},
    )
    assert list(rows)[-1] == "ours"
    assert rows["missing"]["reason"] == "No module named 'peer'"
    assert "0.5" in rows["wrong"]["reason"]
    assert (rows["wrong"]["milliseconds"], rows["wrong"]["threads"]) == ("", "1")
    assert 2 < float(rows["slow"]["ratio"]) <= 4.5
    assert ">= 2 met" in capsys.readouterr().out


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_nothing_is_measured_if_ours_is_wrong(error, table, settings):
    one = table()
    with pytest.raises(RuntimeError, match=str(error)):
        run(one, settings, {"ours": lambda: implementation(0, relative_error=error)})
    assert one.rows == []


def test_threads_are_compared(table, settings):
    settings = compare.Settings(**vars(settings) | dict(threads=[1, 2]))
    before = torch.get_num_threads()
    found = []

    def build():
        return compare.Implementation(calls=[lambda: found.append(torch.get_num_threads())])

    try:
        one = table()
        run(one, settings, {"ours": build})
    finally:
        torch.set_num_threads(before)
    assert {1, 2} <= set(found)
    names = [(row["implementation"], row["threads"]) for row in one.rows]
    assert names == [("ours", "1"), ("ours, one thread", "2"), ("ours", "2")]


def test_memory_of_a_call(table, settings):
    def build():
        return compare.Implementation(calls=[lambda: torch.ones(1 << 24)])

    rows = run(table(), settings, {"ours": build}, memory=True)
    assert float(rows["ours"]["mebibytes"]) == pytest.approx(64, rel=0.1)
    assert rows["ours"]["milliseconds"] == ""

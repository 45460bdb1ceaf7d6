"""`tools/benchmark.py search` on a small set, and the table that it goes to."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from tools import benchmark, benchmark_search, benchmark_tables, results_table
from tools.benchmark_search import Search, recall
from tools.gallery.engines import ENGINES
from utils.errors import UserError

SHORT = ["--size", "small", "--width", "48", "--queries", "40", "--repeats", "1"]


def run(monkeypatch, *args: object) -> None:
    """The program in this process: starting Python and torch for each contender takes seconds."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda task, *which: task.measure(*which))
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", "search", *map(str, args)])
    benchmark.main()


@pytest.fixture
def task() -> Search:
    return Search(size="small", width=48, queries=40)


def test_vectors_are_unit_rows_that_vary_in_few_dimensions_and_the_same_each_time(task):
    query, vectors = task.made()
    assert query.shape == (40, 48) and vectors.shape == (4000, 48) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4000))
    assert torch.linalg.matrix_rank(vectors, rtol=1e-4) == 24
    again = task.made()
    assert torch.equal(query, again[0]) and torch.equal(vectors, again[1])


def test_vectors_are_clustered_as_those_of_people(task):
    query, vectors = task.made()
    nearest = (query @ vectors.T).sort(1, descending=True).values
    assert 0.85 < nearest[:, 0].mean() < 0.95 and 0.65 < nearest[:, 9].mean() < 0.85  # OSNet's: 0.945 and 0.765
    assert abs(float(nearest.median())) < 0.1


def test_recall_by_hand():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(np.array([[4, 3, 2, 1], [5, 6, -1, -1]]), truth) == 0.75


def test_a_whole_run_is_shown_saved_and_read_into_a_table_of_its_own(monkeypatch, capsys, tmp_path):
    run(monkeypatch, *SHORT, "--save", "--results", tmp_path)
    shown = capsys.readouterr().out
    assert "the 10 nearest of 4,000 vectors of 48 dimensions" in shown and "faiss " in shown
    result = json.loads((tmp_path / "benchmark_search_small_cpu_w48_q40.json").read_text())
    rows = {row["contender"]: row for row in result["rows"]}
    assert list(rows) == ["exact", *ENGINES]
    assert rows["exact"]["recall"] == rows["flat"]["recall"] == 1 and min(r["recall"] for r in rows.values()) > 0.8
    for row in rows.values():
        assert row["seconds"] > 0 and row["alone_seconds"] > 0 and 0 <= row["above_mb"] <= row["peak_mb"]
    (read,) = benchmark_tables.read_benchmarks(tmp_path)
    table = benchmark_tables.benchmark_table([read])
    assert table.startswith("| benchmark | contender | queries/s | ms for one alone | recall@10 |")
    assert "| search, small × 48, varying in 24 | ivf |" in table and table.count("\n") == 5


def test_tables_of_other_benchmarks_stay_as_they_are(monkeypatch, tmp_path):
    run(monkeypatch, *SHORT, "--save", "--results", tmp_path)
    (search,) = benchmark_tables.read_benchmarks(tmp_path)
    before = benchmark_tables.read_benchmarks(benchmark.Path(results_table.ROOT) / "results")
    before = [result for result in before if result["task"] != "search"]
    both = benchmark_tables.benchmark_table([*before, search])
    assert both == benchmark_tables.benchmark_table(before) + "\n\n" + benchmark_tables.benchmark_table([search])


def test_what_does_not_fit_into_memory_is_not_run(monkeypatch, capsys, tmp_path):
    ran = []

    def stub(task, contender, scratch):
        ran.append(contender)
        seconds = dict.fromkeys(
            ("seconds", "cpu_seconds", "build_seconds", "alone_seconds", "peak_mb", "above_mb"), 1.0
        )
        return {"contender": contender, "queries": 1000, "recall": 1.0} | seconds

    monkeypatch.setattr(benchmark_search, "from_proc", lambda file, field: 3000)
    monkeypatch.setattr(benchmark, "in_fresh_process", stub)
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", "search", "--save", "--results", str(tmp_path)])
    benchmark.main()
    assert ran == ["exact"] and "hnsw: not run, needs 4.9 GB" in capsys.readouterr().out
    assert "| hnsw | not run: needs 4.9 GB |" in benchmark_tables.benchmark_table(
        benchmark_tables.read_benchmarks(tmp_path)
    )


@pytest.mark.parametrize(("name", "recall_of"), [("flat", 0.99), ("hnsw", 0.4), ("ivf", float("nan"))])
def test_an_engine_that_misses_too_much_fails_and_is_not_saved(monkeypatch, tmp_path, name, recall_of):
    real = Search.measure

    def measure(self, contender, scratch):
        return real(self, contender, scratch) | ({"recall": recall_of} if contender == name else {})

    monkeypatch.setattr(Search, "measure", measure)
    with pytest.raises(UserError, match=f"{name} finds .* of what exact finds"):
        run(monkeypatch, *SHORT, "--save", "--results", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--skip", "exact"], "measured against it"), (["--skip", "nobody"], "nobody"), (["--queries", "0"], "--queries"),
     (["--width", "20"], "--inner 24 dimensions do not go into --width 20")],
)  # fmt: skip
def test_bad_arguments(monkeypatch, args, words):
    with pytest.raises(UserError, match=words):
        run(monkeypatch, "--size", "small", *args)


def test_without_faiss_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", "search", *SHORT])
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        benchmark.main()

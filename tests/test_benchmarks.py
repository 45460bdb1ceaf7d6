"""Benchmarks: the generated features, the classic baselines against the references, each task once, and the tables."""

import json
import os
import signal
import sys

import numpy as np
import pytest
import reference
import torch
from helpers import ROOT, program, refused, save_model

import benchmarks.models
import benchmarks.run
from benchmarks import classic, tables
from benchmarks.scoring import Eval
from benchmarks.task import Task
from utils.errors import UserError


@pytest.fixture
def in_this_process(monkeypatch):
    """Contenders run here: starting Python and torch for each takes seconds."""
    monkeypatch.setattr(benchmarks.run, "in_fresh_process", lambda task, contender: task.measure(contender))
    monkeypatch.setattr(benchmarks.models, "MATMUL", {"cpu": (64, 1)})

    def run(*args: object) -> None:
        monkeypatch.setattr(sys, "argv", ["benchmarks/run.py", *map(str, args)])
        benchmarks.run.main()

    return run


def test_numpy_scores_and_re_ranking_are_those_of_the_references():
    rng = np.random.default_rng(0)
    for distance in (rng.random((9, 40)), rng.integers(0, 3, (9, 40)), np.ones((9, 40))):
        ids = tuple(rng.integers(0, top, n) for top in (6, 3) for n in (9, 40))
        expected = reference.evaluation(distance, *ids)
        mAP, mINP, cmc = classic.evaluate(distance.astype(np.float32), *ids)
        assert (mAP, mINP) == pytest.approx((expected.mAP, expected.mINP)) and np.allclose(cmc, expected.cmc)
    rows = (2 * rng.normal(size=(6, 8))[rng.integers(0, 6, 70)] + rng.normal(size=(70, 8))).astype(np.float32)
    for k1, k2, lambda_value in ((20, 6, 0.3), (5, 1, 0.0), (500, 500, 0.5)):
        expected = reference.k_reciprocal(torch.from_numpy(rows), 12, k1, k2, lambda_value)
        found = classic.k_reciprocal(rows[:12], rows[12:], k1, k2, lambda_value)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_every_task_runs_and_its_outcomes_agree(in_this_process, tiny, tmp_path):
    data, size = ("--dataset", "demo", "--data-root", tiny.data.data_root), ("--height", 32, "--width", 16)
    tasks = {
        "search": ("--size", "small", "--width", 32, "--inner", 8, "--queries", 20),
        "eval": ("--size", "tiny", "--width", 64), "rerank": ("--size", "tiny", "--width", 64, "--metric", "euclidean"),
        "data": (*data, *size, "--batch-size", 8, "--repeats", 1),
        "train": (*data, *size, "--batch-size", 8, "--backbone", "resnet18", "--epochs", 2, "--workers", 1,
                  "--train-ids", 4, "--skip", "compiled", "unfused", "contiguous"),
        "extract": (*data, "--checkpoint", save_model(tiny), "--batch-size", 16, "--workers", 1),
    }  # fmt: skip
    for task, options in tasks.items():
        file = tmp_path / f"benchmark_{task}.json"
        in_this_process(task, *options, "--save", file)
        result = json.loads(file.read_text())
        assert result["differences"] and {"hardware", "commit", "torch", "command", "threads"} <= result.keys()
        assert all("not_run" in row or row["seconds"] > 0 for row in result["rows"])
        assert all("not_run" in row or row.get("peak_mb", 1) > 0 for row in result["rows"])
    assert len(tables.read_results(tmp_path)) == 6
    for args in (("eval", "--skip", "nobody"), ("nothing",)):
        refused(program("benchmarks/run.py", *args), args[-1])


class Doomed(Task):
    def measure(self, contender: str) -> dict:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_contender_has_a_process_of_its_own_and_one_that_dies_is_named():
    row = benchmarks.run.in_fresh_process(Eval(size="tiny", width=64), "ours")
    assert row["seconds"] > 0 and row["mAP"] > 0.5
    with pytest.raises(UserError, match=r"ours .*out of memory"):
        benchmarks.run.in_fresh_process(Doomed(), "ours")


def test_tables_are_those_of_the_page_and_damaged_results_are_refused(tmp_path):
    assert program("benchmarks/tables.py", "--check").returncode == 0
    text = tables.table(tables.read_results(ROOT / "results"))
    row = "| rerank, market, clustered, cosine | ours | 5.11 | 10.2 | 0.601 | 5.63 | 10.7 | 982 | 263 | 99.96 |"
    assert row in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.START}\nold\n{tables.END}\nafter\n")
    where = ("--page", page, "--results", tmp_path)
    refused(program("benchmarks/tables.py", *where, "--check"), page)
    assert program("benchmarks/tables.py", *where).returncode == 0 and "Not measured yet." in page.read_text()
    (tmp_path / "benchmark_x.json").write_text('{"rows": [{"contender": "ours"}]}')
    refused(program("benchmarks/tables.py", *where), "benchmark_x.json")

"""The made data and the baselines of tools/benchmark.py, and the program itself on the smallest size."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

from tools import baselines, benchmark, benchmark_scoring, benchmark_tables, made_data, results_table
from utils.errors import UserError

PROGRAM = Path(__file__).resolve().parents[1] / "tools" / "benchmark.py"
SHORT = ["--size", "tiny", "--width", "64"]


def run(monkeypatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", *map(str, args)])
    benchmark.main()


@pytest.fixture
def in_this_process(monkeypatch):
    """Contenders run here: starting Python and torch for each takes seconds."""
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda task, *which: task.measure(*which))


@pytest.mark.parametrize(("name", "matches"), [("tiny", (5, 20)), ("market", (13.8, 15.8)), ("msmt17", (13.8, 25))])
def test_ids_have_the_counts_of_the_dataset(name, matches):
    size = made_data.SIZES[name]
    query_pids, gallery_pids, query_camids, gallery_camids = made_data.make_ids(size)
    assert len(query_pids) == len(query_camids) == size.queries
    assert len(gallery_pids) == len(gallery_camids) == size.gallery
    assert set(query_pids) == set(range(1, size.identities + 1)) == set(gallery_pids) - {0}
    assert (gallery_pids == 0).sum() == size.distractors
    assert set(query_camids) == set(gallery_camids) == set(range(1, size.cameras + 1))
    queries = list(zip(query_pids, query_camids, strict=True))
    assert len(set(queries)) == len(queries), "an identity has two queries under one camera"
    images = Counter(gallery_pids)
    here = Counter(zip(gallery_pids, gallery_camids, strict=True))
    number = [images[pid] - here[pid, camera] for pid, camera in queries]
    assert min(number) > 0 and matches[0] < np.mean(number) < matches[1]


def test_sizes_are_the_published_ones():
    assert made_data.SIZES["market"][:4] == (3368, 15913, 750, 6)
    assert made_data.SIZES["msmt17"][:4] == (11659, 82161, 3060, 15)


@pytest.mark.parametrize("kind", ["clustered", "random"])
def test_features_are_the_same_each_time_and_unit_rows_where_asked(kind):
    data, again = (made_data.make_data(made_data.SIZES["tiny"], kind, 48, False) for _ in range(2))
    assert data.query.shape == (60, 48) and data.gallery.shape == (300, 48) and data.query.dtype == torch.float32
    assert torch.equal(data.query, again.query) and torch.equal(data.gallery, again.gallery)
    other = made_data.make_data(made_data.SIZES["tiny"], kind, 48, False, seed=1)
    assert not torch.isclose(data.query, other.query).all(1).any()
    unit = made_data.make_data(made_data.SIZES["tiny"], kind, 48, True).gallery
    torch.testing.assert_close(unit, torch.nn.functional.normalize(data.gallery))
    assert data.gallery.std() == pytest.approx(1, abs=0.05)


def test_clustered_features_score_like_those_of_a_trained_model():
    ids = made_data.make_ids(made_data.SIZES["market"])
    few = slice(None, None, 40)
    query_ids = ids.query_pids[few], ids.query_camids[few]
    gallery_ids = ids.gallery_pids, ids.gallery_camids
    query = made_data.make_features(*query_ids, "clustered", 256, False, made_data.QUERY_STREAM)
    gallery = made_data.make_features(*gallery_ids, "clustered", 256, False, made_data.GALLERY_STREAM)
    ids = (query_ids[0], gallery_ids[0], query_ids[1], gallery_ids[1])
    assert 0.7 < baselines.evaluate(query.numpy(), gallery.numpy(), *ids).mAP < 0.9


def test_making_features_takes_little_more_memory_than_they_do():
    pids = np.repeat([0, 1, 2], [1500, 400, 100])
    for kind in ("clustered", "random"):
        tracemalloc.start()
        features = made_data.make_features(pids, np.ones_like(pids), kind, 2048, True, made_data.QUERY_STREAM)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert features.nbytes < peak < features.nbytes + (10 << 20)


@pytest.mark.parametrize("kind", ["real", "coarse", "equal"])
@pytest.mark.parametrize("seed", range(3))
def test_numpy_evaluation_equals_the_reference(kind, seed):
    rng = np.random.default_rng(seed)
    ids = tuple(rng.integers(0, top, n) for top in (6, 3) for n in (9, 40))
    distance = {"real": rng.random((9, 40)), "coarse": rng.integers(0, 3, (9, 40)), "equal": np.ones((9, 40))}[kind]
    expected = reference.evaluation(distance, *ids)
    scores = baselines.evaluate_distance(distance.astype(np.float32), *ids)
    assert (scores.mAP, scores.mINP) == pytest.approx((expected.mAP, expected.mINP), abs=1e-12)
    np.testing.assert_allclose(scores.cmc, expected.cmc, rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.ap, expected.ap, rtol=0, atol=1e-12)


def test_numpy_distances():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(9, 7)).astype(np.float32)
    gallery[3] = query[2]
    euclidean = np.linalg.norm(query.astype(float)[:, None] - gallery.astype(float), axis=2)
    np.testing.assert_allclose(baselines.distances(query, gallery, "euclidean"), euclidean, atol=2e-3)
    norms = np.linalg.norm(query.astype(float), axis=1)[:, None] * np.linalg.norm(gallery.astype(float), axis=1)
    cosine = 1 - query.astype(float) @ gallery.T.astype(float) / norms
    np.testing.assert_allclose(baselines.distances(query, gallery, "cosine"), cosine, atol=1e-6)


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), [(20, 6, 0.3), (5, 1, 0.0), (4, 9, 1.0), (500, 500, 0.5)])
def test_numpy_re_ranking_equals_the_reference(k1, k2, lambda_value):
    rng = np.random.default_rng(2)
    centers = 2 * rng.normal(size=(6, 8))
    features = (centers[rng.integers(0, 6, 70)] + rng.normal(size=(70, 8))).astype(np.float32)
    assert reference.neighbours_are_clear(features, k1, k2)
    expected = reference.k_reciprocal(torch.from_numpy(features), 12, k1, k2, lambda_value)
    for version in (baselines.k_reciprocal, baselines.published_k_reciprocal):
        found = version(features[:12], features[12:], k1, k2, lambda_value)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_ours_and_numpy_re_rank_alike():
    data = made_data.make_data(made_data.SIZES["tiny"], "clustered", 64, True)
    ours, theirs = (benchmark_scoring.Rerank.contenders[name](data, "cosine") for name in ("ours", "numpy"))
    assert (ours - theirs).abs().max() < 1e-5


def test_a_whole_run_is_shown_saved_and_read_into_the_table(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "eval", *SHORT, "--skip", "matmul", "--repeats", 2, "--save", "--results", tmp_path)
    shown = capsys.readouterr().out
    assert "60 queries, 300 gallery images" in shown and "ours ..." in shown and "numpy ..." in shown
    result = json.loads((tmp_path / "benchmark_eval_tiny_cpu_64.json").read_text())
    ours, other = result["rows"]
    assert (ours["contender"], other["contender"]) == ("ours", "numpy")
    for row in (ours, other):
        assert row["seconds"] > 0 and row["cpu_seconds"] > 0 and 0 <= row["above_mb"] < row["peak_mb"]
    assert (
        ours["scores"]["mAP"] == pytest.approx(other["scores"]["mAP"], abs=1e-6) and result["differences"]["mAP"] < 1e-6
    )
    assert result["threads"] == torch.get_num_threads() and "--repeats 2" in result["command"]
    assert {"hardware", "commit", "torch", "numpy", "python"} <= set(result)
    (read,) = benchmark_tables.read_benchmarks(tmp_path)
    assert "| eval, tiny, clustered, cosine, 64 wide | ours |" in benchmark_tables.benchmark_table([read])
    assert results_table.read_results(tmp_path) == {}


@pytest.mark.parametrize("features", ["clustered", "random"])
@pytest.mark.parametrize("task", ["eval", "rerank"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_all_contenders_run_and_agree(monkeypatch, capsys, in_this_process, features, task, metric):
    run(monkeypatch, task, *SHORT, "--features", features, "--metric", metric)
    shown = capsys.readouterr().out
    for name in ("matmul", "ours", "numpy", *(["published"] if task == "rerank" else [])):
        assert any(line.startswith(f"{name} ") and line.count("|") == 8 for line in shown.splitlines())
    assert "|ours - numpy|: mAP" in shown


def test_numpy_is_not_run_where_memory_does_not_suffice(monkeypatch, capsys, tmp_path):
    ran = []

    def stub(task, contender, scratch):
        ran.append(contender)
        scores = {} if contender == "matmul" else {"mAP": 0.8}
        return {"contender": contender, "scores": scores} | dict.fromkeys(
            ("seconds", "cpu_seconds", "peak_mb", "above_mb"), 1.0
        )

    monkeypatch.setattr(benchmark, "in_fresh_process", stub)
    monkeypatch.setattr(benchmark_scoring, "from_proc", lambda file, field: 24 * 2**10)
    run(monkeypatch, "rerank", "--size", "msmt17", "--save", "--results", tmp_path)
    shown = capsys.readouterr().out
    assert ran == ["matmul", "ours"] and "needs 133 GB" in shown and "not compared" in shown
    (read,) = benchmark_tables.read_benchmarks(tmp_path)
    assert "| numpy | not run: needs 133 GB |" in benchmark_tables.benchmark_table([read])
    monkeypatch.setattr(benchmark_scoring, "from_proc", lambda file, field: 134 * 2**10)
    run(monkeypatch, "rerank", "--size", "msmt17")  # published would need more
    assert ran[2:] == ["matmul", "ours", "numpy"]


@pytest.mark.parametrize("wrong", [0.80002, float("nan")])
def test_scores_that_differ_fail_and_are_not_saved(monkeypatch, tmp_path, wrong):
    def stub(task, contender, scratch):
        value = wrong if contender == "ours" else 0.8
        scores = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"), value)
        return {"contender": contender, "scores": scores, "seconds": 1, "cpu_seconds": 1, "peak_mb": 1, "above_mb": 1}

    monkeypatch.setattr(benchmark, "in_fresh_process", stub)
    with pytest.raises(UserError, match=r"mAP is .* by ours and 0.80000000 by numpy"):
        run(monkeypatch, "eval", *SHORT, "--save", "--results", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("code", "words"), [(-9, "want of memory"), (1, "failed")])
def test_a_contender_that_dies_is_named(monkeypatch, tmp_path, code, words):
    died = subprocess.CompletedProcess([], code, "", "Traceback ...")
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *args, **kwargs: died)
    with pytest.raises(UserError, match=f"ours .*{words}"):
        benchmark.in_fresh_process(benchmark_scoring.Eval(size="tiny"), "ours", tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--skip", "nobody"], "nobody"), (["--skip", "matmul", "ours", "numpy"], "no contender"),
     (["--width", "0"], "--width"), (["--repeats", "-1"], "--repeats")],
)  # fmt: skip
def test_bad_arguments(monkeypatch, args, words):
    with pytest.raises(UserError, match=words):
        run(monkeypatch, "eval", *args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(monkeypatch):
    with pytest.raises(UserError, match="--device cuda"):
        run(monkeypatch, "rerank", "--device", "cuda")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stop_leaves_no_process_behind():
    command = [sys.executable, PROGRAM, "eval", *SHORT, "--skip", "matmul", "--repeats", "1000000"]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    deadline = time.monotonic() + 60

    def workers() -> list[int]:
        return [pid for pid in map(int, children.read_text().split()) if b"--worker" in command_of(pid)]

    def command_of(pid: int) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""

    try:
        while not (found := workers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found
        started.send_signal(signal.SIGINT)
        _, error = started.communicate(timeout=30)
        assert started.returncode == 130 and error.strip() == b"stopped"
        assert command_of(found[0]) == b""
    finally:
        started.kill()
        started.wait()

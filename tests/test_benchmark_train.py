"""The classic loops, the clock, and `tools/benchmark.py train` and `extract` on a tiny set."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import save_model

import processor.train
from config import Config
from datasets.loaders import make_loaders
from loss import batch_hard_triplet, make_criterion
from model import make_model
from model.heads import LinearHead
from processor.train import train_step
from tools import (
    baseline_data,
    baseline_train,
    benchmark,
    benchmark_extract,
    benchmark_speed,
    benchmark_tables,
    results_table,
)
from tools.benchmark_speed import Stopwatch, cpu_seconds
from tools.benchmark_train import Train
from utils.errors import UserError

CPU = torch.device("cpu")
TRAIN = ["train", "--dataset", "demo", "--backbone", "resnet18", "--height", "32", "--width", "16", "--batch-size", "8"]
TRAIN += ["--warmup", "1", "--steps", "2", "--passes", "2", "--workers", "1"]


@pytest.fixture(autouse=True)
def small_product(monkeypatch):
    monkeypatch.setattr(benchmark_speed, "MATMUL", {"cpu": (64, 1)})


def run(monkeypatch, tree: Path, *args: object) -> None:
    """The program in this process: starting Python and torch for each contender takes seconds."""
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda task, *which: task.measure(*which))
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", *map(str, args), "--data-root", str(tree)])
    benchmark.main()


# ---- the classic way


@pytest.fixture
def outputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, features and labels of 4 images of each of 3 identities of 5."""
    generator = torch.Generator().manual_seed(0)
    logits, features = (torch.randn(12, n, generator=generator, requires_grad=True) for n in (5, 16))
    return logits, features, torch.tensor([4, 0, 2]).repeat_interleave(4)


def test_classic_losses_and_their_gradients_are_ours(outputs):
    logits, features, labels = outputs
    cfg = Config(center_weight=0.3)
    theirs, ours = baseline_train.Losses(cfg, 5, 16), make_criterion(cfg, 5, [16], [LinearHead(16, 5, 0, 0, 0).harden])
    theirs.centers.data = ours.centers[0].centers.data.clone()
    gradients = []
    for loss in (theirs(*outputs), ours([logits], [features], labels)[0]):
        gradients.append((loss.detach(), *torch.autograd.grad(loss, (logits, features))))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        baseline_train.hard_triplet(features, labels, 0.3), batch_hard_triplet(features, labels), rtol=1e-4, atol=1e-6
    )


def test_classic_batches_are_the_files_in_order_whatever_the_number_of_workers(tiny):
    loader = make_loaders(tiny).train
    paths, labels = [s.path for s in loader.samples], loader.labels.tolist()
    plain = baseline_data.plain_transform(32, 16)
    pictures = baseline_train.Pictures(paths, labels, plain)
    for workers in (0, 2):
        found = list(baseline_train.batches(pictures, ([3, 1], [20, 3]), workers))
        for (images, own), rows in zip(found, ([3, 1], [20, 3]), strict=True):
            assert torch.equal(images, baseline_data.load([paths[i] for i in rows], plain))
            assert own.tolist() == [labels[i] for i in rows]


def test_classic_training_is_a_step_of_adam_and_one_of_the_centers_a_batch(tiny):
    cfg = tiny.replace(backbone="resnet18")
    images, labels = torch.randn(8, 3, 32, 16), torch.arange(4).repeat_interleave(2)
    models, losses = [], []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make_model(cfg, 6))
        losses.append(baseline_train.Losses(cfg, 6, 512))
    before = baseline_train.loss_of(models[0], losses[0], images, labels)
    told = baseline_train.train(cfg, models[0], losses[0], [(images, labels)], CPU)
    assert told == pytest.approx(before, rel=1e-5)
    (logits,), (features,) = models[1].train()(images)
    losses[1](logits, features, labels).backward()
    adam = torch.optim.Adam(
        models[1].parameters(), lr=cfg.solver.lr * cfg.solver.warmup_factor, weight_decay=cfg.solver.weight_decay
    )
    adam.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    center = losses[1].centers[0]
    pull = 2 / 8 * (2 * center - features[0] - features[1])  # images 0 and 1 are of identity 0
    torch.testing.assert_close(losses[0].centers[0], center - cfg.loss.center_lr * pull, rtol=1e-4, atol=1e-4)


def test_classic_features_are_the_models(tiny):
    model = make_model(tiny.replace(backbone="resnet18"), 6)
    batches = [(torch.randn(n, 3, 32, 16), None) for n in (3, 2)]
    found = baseline_train.extract(model, batches, CPU)
    assert not model.training and not found.requires_grad
    assert torch.equal(found, torch.cat([model.eval()(x).detach() for x, _ in batches]))


# ---- the clock


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""

    class Clock:
        wall = cpu = 0.0

    monkeypatch.setattr(benchmark_speed.time, "perf_counter", lambda: Clock.wall)
    monkeypatch.setattr(benchmark_speed, "cpu_seconds", lambda: Clock.cpu)
    return Clock


def batches_in(clock, waits: list[float], size: int = 4):
    for wait in waits:
        clock.wall += wait
        yield torch.zeros(size, 3), torch.zeros(size)


def test_the_fastest_pass_counts_and_the_warmup_does_not(clock):
    watch = Stopwatch(CPU, warmup=1, steps=2)
    work = iter([100.0, 5.0, 5.0, 1.0, 2.0, 4.0, 4.0])
    for _ in watch.over(batches_in(clock, [50.0, 1.0, 1.0, 0.5, 0.5, 1.0, 1.0])):
        clock.wall += (seconds := next(work))
        clock.cpu += 3 * seconds
    assert watch.fastest() == {
        "images": 8, "seconds": 4.0, "cpu_seconds": 9.0, "waited": 1.0, "images_per_second": [8 / 12, 2.0, 0.8],
    }  # fmt: skip


def test_rows_of_batches_one_after_another_are_one_and_what_is_left_over_does_not_count(clock):
    watch = Stopwatch(CPU, warmup=0, steps=2)
    for sizes in ((4, 4, 4), (4, 1), ()):
        for _ in watch.over(torch.zeros(size, 3) for size in sizes):
            clock.wall += 1
        clock.wall += 0 if sizes == (4, 1) else 10  # what is between the rows belongs to the pass that they share
    found = watch.fastest()
    assert (found["images"], found["seconds"], found["images_per_second"]) == (8, 2.0, [4.0, 8 / 12])


def test_too_few_batches_are_refused(clock):
    watch = Stopwatch(CPU, warmup=2, steps=2)
    assert len(list(watch.over(batches_in(clock, [0.0] * 3)))) == 3
    with pytest.raises(UserError, match=r"3 batches are too few.*--steps"):
        watch.fastest()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_seconds_of_worker_processes_count_while_they_run_and_after(monkeypatch):
    own, children = time.process_time(), []
    monkeypatch.setattr(benchmark_speed.multiprocessing, "active_children", lambda: children)
    monkeypatch.setattr(benchmark_speed.time, "process_time", lambda: 0.0)
    over = cpu_seconds()  # of children that have ended
    children += [SimpleNamespace(pid=os.getpid())] * 2
    assert cpu_seconds() >= over + 2 * (own - 0.02)  # /proc counts in hundredths
    children[:] = [SimpleNamespace(pid=2**22 + 1)]  # gone meanwhile
    assert cpu_seconds() == over
    times = SimpleNamespace(children_user=1e6, children_system=1e3)
    monkeypatch.setattr(benchmark_speed.os, "times", lambda: times)
    assert cpu_seconds() == 1e6 + 1e3


def test_matrix_products_are_timed_in_each_precision_and_leave_the_switch_as_it_was():
    before = torch.backends.cuda.matmul.allow_tf32
    found = benchmark_speed.matmul_teraflops(CPU)
    assert found.keys() == {"float32", "bf16"} and all(value > 0 for value in found.values())
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_the_bare_product_of_an_image_is_three_times_the_models_multiply_adds(monkeypatch):
    monkeypatch.setattr(benchmark_speed, "matmul_teraflops", lambda device: {"float32": 1.0, "bf16": 2.0})
    row = Train(dataset="demo").bare_product(Config(weights="none"), CPU)
    assert row["gigaflops_an_image"] == pytest.approx(3 * 2 * 4.05, rel=0.01)  # of ResNet50 at 256 × 128
    assert row["images"] / row["seconds"] == pytest.approx(2e12 / (row["gigaflops_an_image"] * 1e9))


# ---- the program


def test_a_whole_training_run_is_shown_saved_and_read_into_the_table(monkeypatch, capsys, tree, tmp_path):
    run(monkeypatch, tree, *TRAIN, "--save", "--results", tmp_path / "results", "--skip", "contiguous", "unfused")
    shown = capsys.readouterr().out
    assert "train, resnet18, demo: 32 × 16, batches of 8, 2 × 2 steps; torch " in shown
    assert "float32: not run, as ours is in float32 here" in shown and "compiled: not run, on GPUs only" in shown
    for name in ("matmul", "classic", "ours", "bf16"):
        assert any(line.startswith(f"{name} ") and line.count("|") == 7 for line in shown.splitlines())
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "benchmark_train_demo_resnet18_cpu_32x16_b8.json"
    result = json.loads(file.read_text())
    assert set(result["differences"]) == {"ours", "bf16"} and result["differences"]["ours"] < 0.002
    assert {"hardware", "commit", "torch", "torchvision", "threads", "workers"} <= set(result)
    assert "data_root" not in result and str(tree) not in json.dumps(result["rows"])
    rows = {row["contender"]: row for row in result["rows"]}
    for name in ("classic", "ours", "bf16"):
        assert rows[name]["images"] == 16 and len(rows[name]["images_per_second"]) == 2
        assert 0 <= rows[name]["waited"] <= rows[name]["seconds"]
    (read,) = benchmark_tables.read_benchmarks(file.parent)
    table = benchmark_tables.benchmark_table([read])
    assert "| train, resnet18, demo, 32 × 16, batches of 8 | ours |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert results_table.read_results(file.parent) == {}


def test_a_loss_that_differs_from_classics_fails_and_is_not_saved(monkeypatch, tree, tmp_path):
    right = baseline_train.loss_of
    monkeypatch.setattr(baseline_train, "loss_of", lambda *args: 1.25 * right(*args))
    skip = ["--skip", "matmul", "bf16", "contiguous", "unfused"]
    with pytest.raises(UserError, match=r"first loss of ours is 20\.\d% off that of classic"):
        run(monkeypatch, tree, *TRAIN, *skip, "--save", "--results", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_ours_is_the_loop_itself_with_the_changes_of_each_contender(monkeypatch, tree, tmp_path):
    seen = []
    monkeypatch.setattr(processor.train, "train_step", lambda run, *args: seen.append(run) or train_step(run, *args))
    task = Train(dataset="demo", data_root=str(tree), backbone="resnet18", height=32, width=16, batch_size=8, workers=1)
    task = replace(task, warmup=1, steps=2, passes=1)
    expected = {
        "ours": ("float32", True, True), "bf16": ("bf16", True, True),
        "contiguous": ("float32", False, True), "unfused": ("float32", True, False),
    }  # fmt: skip
    for name, (precision, channels_last, fused) in expected.items():
        row = task.measure(name, tmp_path)
        assert len(seen) == 3 and row["images"] == 16
        assert (seen[0].session.precision, seen[0].cfg.loop.channels_last, seen[0].cfg.loop.fused) == (
            precision,
            channels_last,
            fused,
        )
        seen.clear()


@pytest.fixture
def checkpoint(tiny) -> Path:
    return save_model(tiny.replace(backbone="resnet18", test_batch_size=8))


def extract(checkpoint: Path, *args: object) -> list[object]:
    words = ["extract", "--checkpoint", checkpoint, "--dataset", "demo", "--batch-size", "4", "--warmup", "1"]
    return [*words, "--steps", "2", "--workers", "1", *args]


def test_a_whole_extraction_is_shown_saved_and_read_into_the_table(monkeypatch, capsys, tree, checkpoint, tmp_path):
    # The model is not trained, so its ranks are a hair apart.
    monkeypatch.setitem(benchmark_extract.TOLERANCE, "bf16", 0.1)
    run(monkeypatch, tree, *extract(checkpoint, "--save", "--results", tmp_path / "results"))
    shown = capsys.readouterr().out
    assert "extract, resnet18, demo: 37 images at 32 × 16, batches of 4" in shown and "mAP 0." in shown
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "benchmark_extract_demo_resnet18_cpu_32x16_b4.json"
    result = json.loads(file.read_text())
    assert "checkpoint" not in result and str(checkpoint) in result["command"]
    rows = {row["contender"]: row for row in result["rows"]}
    assert rows["classic"]["scores"]["mAP"] == pytest.approx(rows["ours"]["scores"]["mAP"], abs=1e-6)
    assert rows["ours"]["images"] == 8 and result["differences"].keys() == {"ours", "bf16"}
    (read,) = benchmark_tables.read_benchmarks(file.parent)
    assert "| extract, resnet18, demo, 32 × 16, batches of 4 | ours |" in benchmark_tables.benchmark_table([read])


def test_scores_beside_classics_fail(monkeypatch, tree, checkpoint):
    right = baseline_train.extract
    monkeypatch.setattr(baseline_train, "extract", lambda *args: torch.randn_like(right(*args)))
    with pytest.raises(UserError, match=r"the mAP of ours is .* beside that of classic"):
        run(monkeypatch, tree, *extract(checkpoint, "--skip", "matmul", "bf16"))


def test_of_several_rounds_the_fastest_of_each_contender_is_kept(monkeypatch):
    times = {"classic": iter([4.0, 3.0, 5.0]), "ours": iter([1.0, 2.0, 3.0])}
    ran = []

    def stub(task, contender, scratch):
        ran.append(contender)
        return {"contender": contender, "images": 2, "seconds": next(times[contender])}

    monkeypatch.setattr(benchmark, "in_fresh_process", stub)
    rows = benchmark.measure_all(Train(rounds=3, skip=("matmul", "bf16", "contiguous", "unfused")))
    assert ran == ["classic", "ours"] * 3
    found = {row["contender"]: row.get("seconds") for row in rows}
    assert found == {"classic": 3.0, "ours": 1.0, "float32": None, "compiled": None}


def test_cells_of_the_table():
    used = {"waited": 0.5, "cpu_seconds": 8.0, "peak_mb": 1234.4}
    rows = [
        {"contender": "matmul", "images": 1, "seconds": 1e-4, "teraflops": {"bf16": 1.0}},
        {"contender": "classic", "images": 2000, "seconds": 4.0, **used},
        {"contender": "ours", "images": 2000, "seconds": 1.0, **used, "scores": {"mAP": 0.55551}},
        {"contender": "compiled", "not_run": "on GPUs only"},
    ]
    assert benchmark_tables.speed_rows({"rows": rows}) == [
        ("matmul", "10,000", "20", "100", "", "", "", ""),
        ("classic", "500", "1", "5", "12.5", "4", "1,234", ""),
        ("ours", "2,000", "4", "20", "50", "4", "1,234", "55.55"),
        ("compiled", "not run: on GPUs only", "", "", "", "", "", ""),
    ]
    assert benchmark_tables.speed_rows({"rows": rows[2:3]})[0][:4] == ("ours", "2,000", "", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--steps", "0"], "--steps must be at least 1"), (["--passes", "0"], "--passes"), (["--rounds", "0"], "--rounds"),
     (["--warmup", "-1"], "--warmup must be at least 0"), (["--batch-size", "10"], "try --batch-size 8"),
     (["--batch-size", "64"], "training set has 6"), (["--backbone", "resnet5"], "did you mean resnet50"),
     (["--skip", "numpy"], "classic, ours"), (["--dataset", "market1501"], "--data-root .* --dataset demo")],
)  # fmt: skip
def test_bad_arguments_of_train(monkeypatch, tree, args, words):
    with pytest.raises(UserError, match=words) as error:
        run(monkeypatch, tree, *TRAIN, *args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--checkpoint", "none.pth"], "there is no checkpoint none.pth"), (["--batch-size", "0"], "--batch-size"),
     (["--dataset", "market1501"], "--data-root .* --dataset demo"), (["--steps", "100"], "10 batches are too few")],
)  # fmt: skip
def test_bad_arguments_of_extract(monkeypatch, tree, checkpoint, args, words):
    with pytest.raises(UserError, match=words) as error:
        run(monkeypatch, tree, *extract(checkpoint), "--skip", "matmul", *args)
    assert "\n" not in str(error.value)

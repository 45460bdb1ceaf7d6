"""Several processes on one CPU, over gloo, against one process. A process costs seconds until torch is imported, so all
but those that torchrun starts are forked from a server that has it already, with the variables that torchrun sets."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_tree
from distributed_worker import (
    disturbed,
    enter,
    exact,
    extract,
    leave_a_child,
    outcome,
    program,
    refusals,
    together,
    train_all,
    train_one_log,
    wait_for_a_sleeper,
)
from helpers import ROOT, contents, save_model, start_training
from torch import nn

from config import Config
from datasets.loaders import TrainLoader
from datasets.make import make_dataset
from model import make_model
from processor import do_train
from processor.distributed import DistributedRanks
from processor.ranks import ALONE, init_distributed
from solver import set_lr
from utils.errors import UserError

CPU = torch.device("cpu")
LIMIT = 300  # seconds that processes may take
SERVER = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def server():
    """Has imported what the processes need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
        SERVER.set_forkserver_preload(["distributed_worker"])
        yield


def launch(folder: Path, size: int, work: Callable, *args: object) -> tuple[list[int], list[str]]:
    """Exit codes of processes that do this work together, and what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    said = [folder / f"said.{rank}" for rank in range(size)]
    processes = [
        SERVER.Process(target=enter, args=(rank, size, port, said[rank], work, args), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(until - time.monotonic(), 0))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    texts = [file.read_text() for file in said]
    assert not late, texts
    return [process.exitcode for process in processes], texts


def launched(folder: Path, size: int, work: Callable, *args: object) -> None:
    """The same for work that succeeds."""
    codes, said = launch(folder, size, work, *args)
    assert codes == [0] * size, "\n".join(said)


def settings(base: Path, **changes: object) -> Config:
    """Settings for the tree at BASE/data: 3 steps an epoch, no test but after the last."""
    quick = {"workers": 1, "backbone": "shufflenet_v2_x0_5", "weights": str(base / "backbone.pth"), "lr": 1e-3}
    quick |= {"eval_first": False, "eval_every": 100, "log_every": 4}
    if "teacher" in changes:
        changes["teacher"] = str(base / changes["teacher"])
    return tiny_config(base, **quick | changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A place with a tiny data set, and weights of a backbone whose batch norm has seen its images: with statistics of
    none, a network in evaluation mode hardly tells images apart."""
    base = tmp_path_factory.mktemp("several")
    write_tree(base / "data" / "demo", train_ids=5)
    cfg = settings(base, batch_size=10, weights="none")
    torch.manual_seed(0)
    backbone = make_model(cfg, 5).backbone.train()
    images, _ = next(TrainLoader(cfg, make_dataset(cfg).train).epoch(0, CPU))
    for layer in backbone.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
    with torch.no_grad():
        backbone(images)
    torch.save(backbone.state_dict(), base / "backbone.pth")
    np.save(base / "teacher.npy", np.random.default_rng(0).normal(size=(30, 7)).astype("f4"))
    return base


# ---- as one process

EVERY_AUGMENTATION = dict.fromkeys(
    ("cutout_prob", "translate_prob", "rotate_prob", "affine_prob", "jitter_prob", "gray_prob", "lgt_prob"), 0.3
) | {"autoaugment_prob": 0.3, "erase_fill": "random"}  # fmt: skip
CASES = {
    "margin_clipped_averaged": {"head": "arcface", "head_scale": 16.0, "head_margin": 0.3, "clip_grad": 1.0}
    | {"ema_decay": 0.9, "center_weight": 5e-3, **EVERY_AUGMENTATION},
    # groups of 2 steps and 1; frozen until after the first step of the second epoch
    "accumulated_frozen": {"accumulate": 2, "freeze_epochs": 1.5, "optimizer": "sgd", "nesterov": True, "lr": 5e-4}
    | {"head": "circle", "head_scale": 16.0, "circle_weight": 0.1, "ema_decay": 0.9, "clip_grad": 5.0},
    "metric_alone": {"id_weight": 0.0, "weight_decay": 0.05, "triplet": "weighted", "multi_similarity_weight": 0.1},
    "parts_learned": {"branches": "pcb", "height": 96, "head": "cosine_learned", "head_scale": 16.0, "epochs": 2}
    | {"pooling": "gem", "centroid_weight": 0.5, "cluster_weight": 0.1, "range_weight": 0.1, "sampler": "pk_cameras"},
    "identity_ungathered": {"gather": False, "triplet_weight": 0.0, "center_weight": 0.0, "sampler": "shuffle"}
    | {"epochs": 2},
    "taught": {"teacher": "teacher.npy", "accumulate": 2},
    "taught_alone_ungathered": {"teacher": "teacher.npy", "gather": False, "id_weight": 0.0, "triplet_weight": 0.0}
    | {"center_weight": 0.0, "epochs": 1, "optimizer": "sgd"},
    "metric_ungathered": {"gather": False, "epochs": 1},
}
SAME = sorted(CASES.keys() - {"metric_ungathered"})


@pytest.fixture(scope="module")
def trained(base) -> Path:
    """Outcomes of two processes."""
    out = base / "two"
    cfgs = [settings(base, name=name, **changes) for name, changes in CASES.items()]
    launched(out, 2, together, (train_all, (cfgs, out)))
    return out


def alone(base: Path, name: str) -> tuple:
    with exact():
        return outcome(do_train(settings(base, name=f"{name}_alone", **CASES[name])))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_to_the_weights_of_one(base, trained, name):
    (_, *other), (_, *mine) = (torch.load(trained / f"{name}.{rank}.pt") for rank in (1, 0))
    assert mine == other and not (base / "log.1").exists()  # only the first process writes
    weights, history, labels = torch.load(trained / f"{name}.0.pt")
    same_weights = torch.load(trained / f"{name}.1.pt")[0]
    assert all(torch.equal(weights[k], same_weights[k]) for k in weights) and weights.keys() == same_weights.keys()
    expected, expected_history, expected_labels = alone(base, name)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    assert labels == expected_labels
    for row, expected_row in zip(history, expected_history, strict=True):
        assert row.keys() == expected_row.keys()
        for key in row.keys() - {"scores"}:
            assert row[key] == pytest.approx(expected_row[key], abs=2e-5, rel=1e-5), key
        assert row.get("scores") == expected_row.get("scores")


@pytest.mark.slow
def test_ungathered_metric_losses_are_the_mean_of_the_shares_mined_apart(base, trained):
    _, history, _ = torch.load(trained / "metric_ungathered.0.pt")
    cfg = settings(base, name="shares", **CASES["metric_ungathered"])
    with exact():
        state, _, data = start_training(cfg)
        parts = []
        for images, labels in data.train.epoch(0, CPU):
            set_lr(cfg, state.optimizer, len(parts) / 6, 3)
            state.optimizer.zero_grad()
            rows = []
            for half in (slice(4), slice(4, 8)):
                logits, features = state.model(images[half])
                loss, losses = state.criterion(logits, features, labels[half])
                state.scaler.scale(loss / 2).backward()
                rows.append([x.detach() for x in features])
                parts.append(losses["triplet"].item())
            state.optimizer.step()
            state.criterion.move_centers([torch.cat(x) for x in zip(*rows, strict=True)], labels)
    assert history[0]["triplet"] == pytest.approx(sum(parts) / 6, rel=1e-5)
    assert history[0]["triplet"] != pytest.approx(alone(base, "metric_ungathered")[1][0]["triplet"], rel=1e-3)


def test_the_shares_of_a_batch_are_the_batch_of_one_process_pixel_for_pixel(base):
    for sampler, size in (("pk", 2), ("weighted", 4)):
        cfg = settings(base, sampler=sampler, **EVERY_AUGMENTATION)
        samples = make_dataset(cfg).train
        whole = TrainLoader(cfg, samples)
        shares = [TrainLoader(cfg, samples, rank, size).epoch(3, CPU) for rank in range(size)]
        for (images, labels), *parts in zip(whole.epoch(3, CPU), *shares, strict=True):
            assert torch.equal(torch.cat([part[0] for part in parts]), images)
            assert torch.equal(torch.cat([part[1] for part in parts]), labels)


# ---- tests


@pytest.fixture(scope="module")
def tested(base) -> tuple[Path, list[Config]]:
    """A checkpoint, and settings to test it on 12 and 25 images, and on 2 and 3."""
    write_tree(base / "few" / "demo", train_ids=2, test_ids=1, cameras=2, images=1)
    cfgs = [settings(base), settings(base, data_root=str(base / "few"))]
    return save_model(cfgs[0]), cfgs


def test_features_are_those_of_one_process_no_image_twice_however_many_extract_them(base, tested):
    checkpoint, cfgs = tested
    with init_distributed(cfgs[0]) as ranks:
        assert ranks == ALONE
        (base / "1").mkdir()
        extract(0, cfgs, checkpoint, base / "1")
    expected = torch.load(base / "1" / "features.0.pt")
    assert [len(plain) for plain, _ in expected] == [12, 25, 2, 3]
    launched(base / "3", 3, together, (extract, (cfgs, checkpoint, base / "3")))
    for rank in range(3):
        found = torch.load(base / "3" / f"features.{rank}.pt")
        for pair, expected_pair in zip(found, expected, strict=True):
            for rows, expected_rows in zip(pair, expected_pair, strict=True):
                assert rows.shape == expected_rows.shape and torch.allclose(rows, expected_rows, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_several_processes_write_one_result_with_the_scores_of_one(base, tested):
    checkpoint, _ = tested
    results, said = checkpoint.parent / "results", {}
    words = ("test.py", str(checkpoint), "--flip", "--rerank", "--device", "cpu", "--data-root", str(base / "data"))
    for size in (1, 2, 3):
        codes, said = launch(base / f"test{size}", size, program, *words)
        assert codes == [0] * size, said
        (file,) = results.iterdir()
        found = json.loads(file.read_text())
        file.unlink()
        if size == 1:
            expected = found
        assert list(found["scores"]) == ["plain", "flip", "flip+rerank"] and found["scores"] == expected["scores"]
        assert "rerank" in said[0] and not any(said[1:])


# ---- refusals


@pytest.mark.slow
def test_what_one_process_cannot_do_all_refuse_and_the_first_says_so(base):
    cfg = settings(base, name="refused", epochs=1)
    for name in ("renamed", "damaged", "untested"):
        shutil.copytree(base / "data", base / name)
    image = next((base / "renamed" / "demo" / "bounding_box_train").glob("0001_c1*"))
    image.rename(image.with_name("0002" + image.name[4:]))
    image = next((base / "damaged" / "demo" / "bounding_box_train").glob("0003_c2*"))
    image.write_bytes(b"no picture")
    next((base / "untested" / "demo" / "bounding_box_test").glob("0007_c1*")).unlink()
    do_train(cfg.replace(log_dir=str(base / "mine"), eval_every=9))
    attempts = [  # words of the first process's sentence, settings of the first process, of the second
        ("the training images", cfg, cfg.replace(data_root=str(base / "renamed"))),
        ("process 1: 1 of 30", cfg, cfg.replace(data_root=str(base / "damaged"))),
        ("the test images", cfg, cfg.replace(data_root=str(base / "untested"))),
        ("--seed, --lr", cfg, cfg.replace(lr=0.5, seed=7)),
        ("--batch-size 6", *[cfg.replace(batch_size=6)] * 2),
        ("--log-dir", *[cfg.replace(log_dir=str(image))] * 2),  # no room
        ("--log-dir", *[cfg.replace(log_dir=str(base / "mine"), epochs=2, resume=True)] * 2),  # only the first finds it
        ("trained", cfg, cfg),
    ]
    launched(base / "refused", 2, together, (refusals, ([cfgs for _, *cfgs in attempts], base / "refused")))
    first, second = (json.loads((base / "refused" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert second == [None] * 7 + ["trained"]
    for (words, *_), sentence in zip(attempts, first, strict=True):
        assert words in sentence and "\n" not in sentence


@pytest.mark.parametrize("number", [0, signal.SIGKILL])
def test_a_process_that_ends_early_ends_all_without_a_traceback(base, number):
    codes, said = launch(base / "ended", 2, disturbed, settings(base, name=f"ended{number}"), 1, 5, number)
    assert codes == [2, 2 if number == 0 else -number] and said[1] == "error: a file has gone\n" * (number == 0)
    assert "error: another process has ended" in said[0] and "Traceback" not in said[0]


@pytest.mark.slow
def test_an_error_in_either_process_is_always_its_own_sentence(base):
    for attempt in range(8):
        whom = attempt % 2
        codes, said = launch(base / "ended", 2, disturbed, settings(base, name=f"again{attempt}"), whom, 2, 0)
        assert codes == [2, 2] and said[whom].endswith("error: a file has gone\n")
        assert "error: another process has ended" in said[1 - whom] and "terminate called" not in said[1 - whom]


def test_a_process_that_waits_says_so_and_ends_on_a_signal(base):
    codes, said = launch(base / "waits", 2, wait_for_a_sleeper, signal.SIGTERM)
    assert codes == [128 + signal.SIGTERM, 2], said
    first, last = said[0].splitlines()
    assert first.startswith("waiting for values of the other processes") and "stopped while waiting" in last


def test_a_process_ends_with_torchrun(base):
    codes, _ = launch(base / "orphan", 1, leave_a_child, base / "child")
    child, until = int((base / "child").read_text()), time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until, "still there"
        time.sleep(0.1)
    assert codes == [-signal.SIGKILL]


def test_processes_that_cannot_connect_are_refused(base, monkeypatch):
    variables = {"RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for environ, changes, words in (
        ({}, {}, "RANK expected, but not set"),
        (variables, {"device": "cuda:1"}, "--device cuda:1"),
        (variables, {"backend": "nccl"}, "--backend nccl"),
        (variables | {"RANK": "zero"}, {}, "x:1"),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=words):
            for name, value in environ.items():
                patch.setenv(name, value)
            sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            with init_distributed(settings(base, **changes), environ | sizes):
                pass


# ---- stopped, and gone on with


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_resumed_they_end_with_the_same_bits(base):
    # the backbone draws random numbers of each process's own
    changes = {"backbone": "efficientnet_b0", "weights": "none", "log_dir": str(base / "signals"), "ema_decay": 0.9}
    cfg = settings(base, epochs=2, log_every=1, name="whole", **changes)
    jobs = [cfg]
    for number, whom, step, place in (
        (signal.SIGUSR1, 1, 2, "1 after step 2"),
        (signal.SIGTERM, 0, 4, "2 after step 1"),
    ):
        cfg = cfg.replace(name=number.name)
        codes, said = launch(base / "signals", 2, disturbed, cfg, whom, step, number)
        assert codes == [128 + number] * 2, said
        assert f"stopped in epoch {place}" in said[0].splitlines()[-1] and not said[1]
        jobs.append(cfg.replace(resume=True))
    shutil.copytree(base / "signals" / "SIGTERM", base / "signals" / "alone" / "SIGTERM")
    launched(base / "signals", 2, together, (train_one_log, (jobs,)))
    for cfg in jobs[1:]:
        resumed = contents(base / "signals" / cfg.run.name / "last.pth")
        assert resumed == contents(base / "signals" / "whole" / "last.pth")
    run = do_train(jobs[-1].replace(log_dir=str(base / "signals" / "alone")))
    said = (run.directory / "train.log").read_text()
    assert len(run.history) == 2 and "resumed with 1 processes, not 2 as before" in said


# ---- batch norm over the images of all processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "branches"),
    [
        ("resnet50_ibn_a", "one"), ("mobilenet_v2", "one"), ("convnext_tiny", "one"), ("timm/efficientnet_b0", "one"),
        ("timm/resnetv2_50", "one"), ("resnet18_ibn_b", "pcb"), ("osnet_x0_25", "pcb"),
    ],
)  # fmt: skip
def test_synchronized_models_compute_and_store_the_same_as_plain_ones(backbone, branches):
    cfg = Config(backbone=backbone, branches=branches, weights="none", height=96, width=32, embedding_dim=16)
    torch.manual_seed(0)
    plain = make_model(cfg, 5)
    images = torch.randn(3, 3, 96, 32)
    with torch.no_grad():
        plain(images)  # other statistics than the initial ones
        expected = plain.eval()(images)
        names = {n for n, m in plain.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        state, moved = plain.state_dict(), {n for n, p in plain.named_parameters() if p.requires_grad}
        model = DistributedRanks(0, 2).sync_batch_norm(cfg, plain, torch.device("cuda"))
        assert {n for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)} == names
        assert not [m for m in model.modules() if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d)]
        assert torch.equal(model.eval()(images), expected)
        after = model.state_dict()
        assert list(after) == list(state) and all(torch.equal(after[k], state[k]) for k in state)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == moved

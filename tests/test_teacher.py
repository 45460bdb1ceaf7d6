"""Distillation: the loss against a loop, features of teachers in files, and runs that learn from them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments, contents, done, fails, program, refused, save_model
from test_cache import SKIP, damage
from test_resume import short, stop_at

from config import Config
from datasets.base import fingerprint
from datasets.images import read_image
from datasets.loaders import make_loaders
from datasets.make import make_dataset
from loss.teacher import TeacherLoss
from processor import do_train
from processor.checkpoint import read_checkpoint

EXTRACT = "tools/extract_features.py"


def slow_loss(features: list[torch.Tensor], teacher: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor):
    """In float64, image by image."""
    total = 0.0
    for *rows, target in zip(*features, teacher.double(), strict=True):
        joined = torch.cat(rows)
        projected = torch.stack([(w * joined).sum() + b for w, b in zip(weight, bias, strict=True)])
        lengths = projected.square().sum().sqrt() * target.square().sum().sqrt()
        total = total + 1 - ((projected * target).sum() / lengths if lengths > 0 else 0.0)
    return total / len(teacher)


def test_the_loss_equals_the_loop():
    rng = np.random.default_rng(0)
    for images, widths, width, scale in ((1, [1], 1, 1.0), (6, [5], 5, 1.0), (7, [4, 3], 2, 1e3), (3, [8], 20, 1e-2)):
        torch.manual_seed(images)
        loss = TeacherLoss(widths, width)
        draw = [torch.from_numpy(scale * rng.normal(size=(images, w)).astype("f4")) for w in (*widths, width)]
        draw[-1][-1] *= images != 7  # a teacher's feature without a direction
        features, teacher = [x.requires_grad_() for x in draw[:-1]], draw[-1]
        slow = [x.detach().double().requires_grad_() for x in (*features, *loss.parameters())]
        found, expected = loss(features, teacher), slow_loss(slow[:-2], teacher, *slow[-2:])
        assert found.shape == () and found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        found.backward(), expected.backward()
        for ours, theirs in zip((*features, *loss.parameters()), slow, strict=True):
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = [x.detach().bfloat16() for x in features]
            assert torch.equal(loss(half, teacher), loss([x.float() for x in half], teacher))


def write_teacher(cfg: Config) -> Config:
    """Settings with a teacher that sees how much the mean color of an image differs from that of all."""
    samples = make_dataset(cfg).train
    colors = np.array([read_image(s.path, 32, 16).mean((0, 1)) for s in samples])
    rows = (colors - colors.mean(0)).astype("f4")
    file = Path(cfg.run.log_dir) / "colors.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, rows)
    file.with_suffix(".json").write_text(json.dumps({"model": "mean colors", "images": fingerprint(samples)}))
    return cfg.replace(teacher=str(file))


def test_a_model_learns_from_the_teacher_alone_and_its_scores_say_so(tiny):
    cfg = short(write_teacher(tiny), id_weight=0, triplet_weight=0, center_weight=0, epochs=3, steps=(9,))
    state = do_train(cfg)
    assert state.history[-1]["teacher"] < 0.7 * state.history[0]["teacher"]
    assert state.history[-1]["loss"] == pytest.approx(10 * state.history[-1]["teacher"], rel=1e-3)
    assert "distilled from mean colors" in done("test.py", state.directory, "--rerank")
    for file in (state.directory / "results").glob("t*.json"):  # of the training and of the test
        assert "distilled from mean colors" in json.loads(file.read_text())["note"]
    assert "teacher" not in "".join(read_checkpoint(state.directory / "last.pth")["model"])


def test_a_distilled_run_resumes_bit_by_bit(tiny, monkeypatch):
    cfg = short(write_teacher(tiny), teacher_weight=2.0, accumulate=2)
    whole = do_train(cfg.replace(name="whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "train_step", 3, fails(KeyboardInterrupt()))
        do_train(cfg)
    resumed = do_train(cfg.replace(resume=True))
    assert contents(resumed.directory / "last.pth") == contents(whole.directory / "last.pth")
    assert set(whole.history[-1]) >= {"id", "triplet", "center", "teacher"}


def test_the_features_of_a_model_are_written_and_stay_with_their_images(tiny):
    bad = damage(tiny, "train", "0002_c1s1_000000_00", "0004_c2s1_000001_00")
    checkpoint, file = save_model(tiny), Path(tiny.run.log_dir) / "rows" / "t.npy"
    words = (EXTRACT, checkpoint, "--split", "train", "--output", file, "--device", "cpu")
    done(*words, *SKIP)
    refused(program(*words), bad[0])
    refused(program(*words, *SKIP, "--part", "1/2"), "--part")
    samples, rows = make_dataset(tiny).train, np.load(file)
    row_of = {s.path: row for s, row in zip(samples, rows, strict=True)}
    assert [path for path, row in row_of.items() if np.isnan(row).any()] == bad
    cfg = tiny.replace(teacher=str(file), on_bad_image="skip")
    loader = make_loaders(cfg).train
    batches = zip(loader.sampler.epoch(0), loader.epoch(0, torch.device("cpu")), strict=True)
    for indices, (_, labels, teacher) in batches:
        assert np.array_equal(teacher, np.stack([row_of[loader.samples[i].path] for i in indices]))
        assert torch.equal(labels, loader.labels[indices])
    refused(program("train.py", *arguments(tiny.replace(teacher=str(file)))), bad[0])  # the image, not its row


def test_features_of_other_images_are_refused(tiny):
    cfg = write_teacher(tiny)
    file, rows = Path(cfg.loss.teacher), np.load(cfg.loss.teacher)
    name = Path(make_dataset(tiny).train[3].path).name

    def refuse(*words: str, **changes: object) -> None:
        refused(program("train.py", *arguments(cfg.replace(**changes))), file, *words)

    refuse("36", "30", train_ids=5)
    file.with_suffix(".json").write_text('{"images": "1234"}')
    refuse("order")
    file.with_suffix(".json").write_text("[")
    refused(program("train.py", *arguments(cfg)), file.with_suffix(".json"))
    file.with_suffix(".json").unlink()
    for damaged in (rows.astype(int), rows[0], np.where(np.arange(36)[:, None] == 3, np.inf, rows), None):
        np.save(file, damaged) if damaged is not None else file.unlink()
        refuse(*[name] * (damaged is not None and damaged.dtype == rows.dtype and damaged.ndim == 2))


def test_a_network_of_openvino_sees_the_pixels_that_it_expects(tiny):
    file, words = Path(tiny.run.log_dir) / "mean.xml", ("--split", "train", "--data-root", tiny.data.data_root)
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    images = opset13.parameter([1, 3, 24, 16], np.float32)  # the mean color, in blue, green and red
    openvino.save_model(openvino.Model([opset13.reduce_mean(images, [2, 3], False)], [images]), file)
    rows = file.with_suffix(".npy")
    done(EXTRACT, file, *words, "--output", rows)
    expected = [read_image(s.path, 24, 16).mean((0, 1))[::-1] for s in make_dataset(tiny).train]
    np.testing.assert_allclose(np.load(rows), expected, rtol=1e-4)
    assert make_loaders(tiny.replace(teacher=str(rows))).dataset.train_note == f"distilled from {file}"

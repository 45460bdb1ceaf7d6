"""The classic input path, `tools/benchmark.py data` on a tiny set, and the table that it goes to."""

from __future__ import annotations

import errno
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from datasets import cache, loaders
from datasets.augment import OFF, normalise
from tools import baseline_data, benchmark, benchmark_data, benchmark_tables, results_table
from tools.benchmark_data import InputPath, augmented
from utils.errors import UserError

HEIGHT, WIDTH = 32, 16
SHORT = ["--dataset", "demo", "--height", HEIGHT, "--width", WIDTH, "--batch-size", "8", "--repeats", "1"]


def run(monkeypatch, tree: Path, *args: object) -> None:
    """The program in this process: starting Python and torch for each contender takes seconds."""
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda task, *which: task.measure(*which))
    monkeypatch.setattr(sys, "argv", ["tools/benchmark.py", "data", "--data-root", *map(str, (tree, *args))])
    benchmark.main()


@pytest.fixture(autouse=True)
def threads():
    """The program limits torch to one, and tests that follow are to have what they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task(tree: Path) -> InputPath:
    return InputPath(dataset="demo", data_root=str(tree), height=HEIGHT, width=WIDTH, batch_size=8, repeats=1)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """Noise, so that every shift of it is another picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * HEIGHT, 3 * WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def by_hand(image: Image.Image) -> np.ndarray:
    """(3, H, W), one pixel after another."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = np.empty((3, image.height, image.width), np.float32)
    for y in range(image.height):
        for x in range(image.width):
            for channel, level in enumerate(image.getpixel((x, y))):
                expected[channel, y, x] = (level / 255 - mean[channel]) / std[channel]
    return expected


# ---- the classic way


def test_classic_images_without_anything_random_are_resized_and_normalised(photo):
    (found,) = baseline_data.load([photo], baseline_data.plain_transform(HEIGHT, WIDTH))
    resized = Image.open(photo).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found.numpy(), by_hand(resized), atol=1e-5)


def test_classic_training_images_are_all_windows_of_the_padded_picture_and_its_mirror_image(photo):
    random.seed(0)
    torch.manual_seed(0)
    batch = baseline_data.load([photo] * 200, baseline_data.training_transform(HEIGHT, WIDTH)).numpy()
    resized = Image.open(photo).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    both = [by_hand(ImageOps.expand(image, 10)) for image in (resized, ImageOps.mirror(resized))]
    windows = np.stack([w[:, y : y + HEIGHT, x : x + WIDTH] for w in both for y in range(21) for x in range(21)])
    places, erased = [], 0
    for image in batch:
        kept = image[0] != 0  # no level of 255 normalises to 0
        fits = np.abs(windows[:, 0, kept] - image[0, kept]).max(1) < 1e-5
        assert fits.sum() == 1
        np.testing.assert_allclose(image[:, kept], windows[fits.argmax(), :, kept].T, atol=1e-5)
        places.append(int(fits.argmax()))
        if not kept.all():
            erased += 1
            rows, columns = np.flatnonzero((~kept).any(1)), np.flatnonzero((~kept).any(0))
            assert (image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0).all()
            assert (~kept).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    flips, tops, lefts = np.unravel_index(places, (2, 21, 21))
    assert 80 < erased < 120 and 80 < flips.sum() < 120
    assert set(tops) == set(lefts) == set(range(21))


def test_classic_erasing_covers_the_published_shares_and_shapes():
    random.seed(0)
    erase = baseline_data.RandomErasing(1.0)
    rectangles = []
    for _ in range(500):
        image = erase(torch.ones(3, 256, 128))
        rows, columns = (image[0] == 0).any(1).nonzero(), (image[0] == 0).any(0).nonzero()
        rectangles.append((int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1))
    tall, wide = np.array(rectangles).T
    share, aspect = tall * wide / (256 * 128), tall / wide
    assert 0.019 < share.min() < 0.03 and 0.35 < share.max() < 0.41
    assert 0.29 < aspect.min() < 0.4 and 2.8 < aspect.max() < 3.5
    untouched = baseline_data.RandomErasing(0.0)(torch.ones(3, 8, 8))
    assert (untouched == 1).all()


# ---- the contenders


def test_all_contenders_give_the_same_images_in_the_same_order(monkeypatch, task, tmp_path):
    monkeypatch.setattr(baseline_data, "training_transform", baseline_data.plain_transform)
    found = {}
    for name, start in task.contenders.items():
        epoch = start(replace(task.config(tmp_path, name), **OFF), task.samples())
        found[name] = torch.cat(list(epoch()))
        torch.testing.assert_close(torch.cat(list(epoch())), found[name], rtol=0, atol=0)
    assert len(found["classic"]) == 24  # of each of 6 identities 4 of 6 images, in batches of 2 identities
    assert found["cache"].dtype == torch.uint8 and torch.equal(found["cache"], found["jpeg"])
    for name in ("augmented", "streamed"):
        assert torch.equal(found[name], normalise(found["cache"]))
        torch.testing.assert_close(found[name], found["classic"], rtol=0, atol=0.05)


def test_augmentation_is_the_classic_recipe(task, tmp_path):
    for name in ("augmented", "streamed"):
        cfg = task.config(tmp_path, name)
        switched_on = {setting: cfg.get(setting) for setting in OFF if cfg.get(setting)}
        assert switched_on == {"flip_prob": 0.5, "pad": baseline_data.PAD, "erase_prob": 0.5}
        assert (torch.cat(list(augmented(cfg, task.samples())())) == 0).any()


def test_only_what_reads_files_decodes_in_an_epoch(monkeypatch, task, tmp_path):
    decoded, decode = [], cache.read_image
    monkeypatch.setattr(cache, "read_image", lambda *args: decoded.append(args[0]) or decode(*args))
    for name, expected in (("cache", 0), ("jpeg", 24), ("augmented", 0), ("streamed", 24)):
        epoch = task.contenders[name](task.config(tmp_path, name), task.samples())
        decoded.clear()
        list(epoch())
        assert len(decoded) == expected, name


def test_the_pass_with_the_least_cpu_time_counts(monkeypatch, task, tmp_path):
    times = [(3.0, 2.0), (1.0, 4.0), (2.0, 1.0)]
    monkeypatch.setattr(benchmark_data, "timed", lambda call, *rest: (times, {"peak_mb": 5.0}, call()))
    row = task.measure("classic", tmp_path)
    assert row == {"contender": "classic", "images": 24, "seconds": 2.0, "cpu_seconds": 1.0, "peak_mb": 5.0}


def test_a_cache_that_finds_no_room_is_not_measured_as_one(monkeypatch, task, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "write_rows", full)
    with pytest.raises(UserError, match=f"no cache could be written to {tmp_path}"):
        task.measure("cache", tmp_path)
    assert task.measure("jpeg", tmp_path)["images"] == 24


# ---- the program


def test_a_contender_has_a_process_and_a_single_thread_of_its_own(task, tmp_path):
    row = benchmark.in_fresh_process(task, "cache", tmp_path)
    assert row["images"] == 24 and row["cpu_seconds"] > 0 and row["peak_mb"] > row["above_mb"] >= 0
    assert len(list(tmp_path.glob("train-*.npy"))) == 1  # for other contenders too


def test_a_whole_run_is_shown_saved_and_read_into_a_table_below_the_other(monkeypatch, capsys, tree, tmp_path):
    torch.set_num_threads(2)
    run(monkeypatch, tree, *SHORT, "--save", "--results", tmp_path / "results")
    shown = capsys.readouterr().out
    assert "data, demo: 36 training images at 32 × 16, batches of 8; torch " in shown and "opencv" in shown
    for name in ("classic", "cache", "jpeg", "augmented", "streamed"):
        assert any(line.startswith(f"{name} ") and line.count("|") == 5 for line in shown.splitlines())
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "benchmark_data_demo_cpu_32x16_b8.json"
    result = json.loads(file.read_text())
    assert result["threads"] == 1 and ", 1 of " in result["hardware"]
    assert 0 < result["differences"]["mean"] <= result["differences"]["worst image"] < 0.1
    assert {"hardware", "commit", "torch", "torchvision", "pillow", "opencv", "images", "repeats"} <= set(result)
    assert "data_root" not in result and not list(tree.glob(".cache"))
    (read,) = benchmark_tables.read_benchmarks(file.parent)
    scoring = {"task": "eval", "size": "market", "features": "random", "metric": "cosine", "width": 2048}
    scoring |= {"hardware": "a core", "rows": [{"contender": "ours", "not_run": "no time"}]}
    above, below = benchmark_tables.benchmark_table([read, scoring]).split("\n\n")
    assert "| eval, market, random, cosine | ours | not run: no time |" in above and "data" not in above
    assert "| data, demo, 32 × 16, batches of 8 | streamed |" in below and "eval" not in below
    for table in (above, below):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert results_table.read_results(file.parent) == {}


def test_cells_of_the_table():
    rows = [
        {"contender": "classic", "images": 4000, "seconds": 6.5, "cpu_seconds": 8.0, "peak_mb": 1234.4},
        {"contender": "jpeg", "images": 4000, "seconds": 3.0, "cpu_seconds": 2.5, "peak_mb": 900.0},
    ]
    assert benchmark_tables.data_rows({"rows": rows}) == [
        ("classic", "500", "1", "2", "6.5", "1,234"),
        ("jpeg", "1,600", "3.2", "0.625", "3", "900"),
    ]
    assert benchmark_tables.data_rows({"rows": rows[1:]}) == [("jpeg", "1,600", "", "0.625", "3", "900")]


@pytest.mark.parametrize("wrong", ["channels", "sides"])
def test_images_that_differ_grossly_fail_and_are_not_saved(monkeypatch, tree, tmp_path, wrong):
    def read_image(path, height, width):
        right = cache_read(path, height, width)
        return right[..., ::-1].copy() if wrong == "channels" else np.ascontiguousarray(right[::-1, ::-1])

    cache_read = cache.read_image
    monkeypatch.setattr(cache, "read_image", read_image)
    skip = ["--skip", "cache", "jpeg", "augmented", "streamed"]
    with pytest.raises(UserError, match="deviations apart"):
        run(monkeypatch, tree, *SHORT, *skip, "--save", "--results", tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [(["--images", "0"], "--images must be at least 1"), (["--repeats", "0"], "--repeats"),
     (["--height", "8"], "--height must be at least 16"), (["--batch-size", "10"], "try --batch-size 8"),
     (["--batch-size", "64"], "training set has 6; try --batch-size 24"), (["--skip", "numpy"], "classic, cache"),
     (["--dataset", "market1501"], "Market-1501 is not under .*--data-root.* --dataset demo"),
     (["--dataset", "markt"], "markt' is neither .*--dataset demo")],
)  # fmt: skip
def test_bad_arguments(monkeypatch, tree, args, words):
    monkeypatch.setattr(loaders, "Images", None)  # nothing is read before they are refused
    with pytest.raises(UserError, match=words) as error:
        run(monkeypatch, tree, *SHORT, *args)
    assert "\n" not in str(error.value)


def test_the_place_of_the_datasets_may_come_from_the_environment(monkeypatch, tree):
    monkeypatch.setenv("REID_DATA", str(tree))
    assert len(InputPath(dataset="demo").samples()) == 36
    assert len(InputPath(dataset="demo", images=20).samples()) == 20
    monkeypatch.delenv("REID_DATA")
    assert InputPath().data_root == "data"

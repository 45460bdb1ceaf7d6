"""The programs that people run, as they run them."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import program, refused

from config import Config
from processor import do_train
from processor.ranked_lists import choose_queries
from tools import benchmark_tables, results_table


def train_args(cfg: Config) -> list[str]:
    return ["train.py", "--data-root", cfg.data.data_root, "--log-dir", cfg.run.log_dir, "--device", "cpu",
            "--epochs", "1", "--steps", "1", "--height", "32", "--width", "16", "--batch-size", "8",
            "--images-per-id", "2"]  # fmt: skip


@pytest.fixture
def trained(tiny: Config) -> Config:
    do_train(tiny.replace(epochs=1, eval_first=False))
    return tiny


def test_test_py_scores_the_newest_run_and_writes_json(trained, tmp_path):
    shown = program("test.py", "--log-dir", trained.run.log_dir, "--flip", "--rerank", "--metric", "euclidean")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split()[0] for line in shown.stdout.splitlines() if line and line.split()[0] in ("plain", "flip")]
    assert rows == ["plain", "flip"] and "flip+rerank" in shown.stdout
    file = Path(trained.run.log_dir) / "demo" / "results" / "test_last_demo_euclidean_flip_rerank.json"
    result = json.loads(file.read_text())
    assert set(result["scores"]) == {"plain", "flip", "flip+rerank"}
    assert result["settings"]["metric"] == "euclidean" and "test.py" in result["test_command"]
    by_path = program("test.py", file.parents[1] / "last.pth", "--metric", "euclidean", "--no-flip")
    assert f"{result['scores']['plain']['mAP']:.2f}" in by_path.stdout


def test_a_cut_test_split_is_said_in_every_output(trained):
    shown = program("test.py", "--log-dir", trained.run.log_dir, "--test-ids", "2")
    assert "first 2 of 4 identities" in shown.stdout and "not comparable" in shown.stdout
    file = Path(trained.run.log_dir) / "demo" / "results" / "test_last_demo_cosine_2ids.json"
    assert "not comparable" in json.loads(file.read_text())["note"]


def test_plain_weights_are_tested_without_a_checkpoint(tiny, tmp_path):
    from model import BACKBONES

    torch.save(BACKBONES["mobilenet_v2"](tiny).state_dict(), tmp_path / "w.pth")
    shown = program("test.py", "--weights", tmp_path / "w.pth", "--backbone", "mobilenet_v2", "--data-root",
                    tiny.data.data_root, "--log-dir", tiny.run.log_dir, "--height", "32", "--width", "16")  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "312 tensors loaded" in shown.stdout and "plain" in shown.stdout


@pytest.mark.parametrize("entrance", ["get_vis_result.py", "tools/get_vis_result.py"])
def test_ranked_lists_are_drawn(trained, tmp_path, entrance):
    out = tmp_path / "pictures"
    shown = program(entrance, "demo", "--log-dir", trained.run.log_dir, "--sort", "best", "--num", "3", "--output", out)
    assert shown.returncode == 0, shown.stderr
    names = sorted(p.name for p in out.iterdir())
    assert len(names) == 4 and names[-1] == "overview.png" and names[0].startswith("001_ap")
    picture = cv2.imread(str(out / names[0]))
    red, green = (
        (np.abs(picture.astype(int) - np.array(c)[::-1]).max(2) < 12).sum() for c in ((215, 25, 28), (26, 150, 65))
    )
    assert green > 1000, "no green frame around a right match"
    assert red > 1000, "no red frame around a wrong one"


def test_queries_are_chosen_by_ap_and_those_without_a_match_never():
    ap = np.array([0.5, np.nan, 0.1, 0.9, 0.1])
    assert choose_queries(ap, "worst", 3, 0).tolist() == [2, 4, 0]
    assert choose_queries(ap, "best", 2, 0).tolist() == [3, 0]
    assert choose_queries(ap, "random", 99, 0).tolist() == [0, 2, 3, 4]
    assert choose_queries(ap, "random", 2, 5).tolist() == choose_queries(ap, "random", 2, 5).tolist()


def test_missing_and_empty_data(tiny, tmp_path):
    common = ["train.py", "tiny_b1", "--weights", "none", "--log-dir", tiny.run.log_dir, "--device", "cpu"]
    refused(program(*common, "--data-root", tmp_path / "nowhere"), tmp_path / "nowhere", "--data-root")
    (tmp_path / "empty" / "Market-1501" / "bounding_box_train").mkdir(parents=True)
    refused(program(*common, "--data-root", tmp_path / "empty"), "Market-1501/query is missing")
    for folder in ("query", "bounding_box_test"):
        (tmp_path / "empty" / "Market-1501" / folder).mkdir()
    refused(program(*common, "--data-root", tmp_path / "empty"), "bounding_box_train", "no image")
    assert not Path(tiny.run.log_dir).exists()


def test_a_bad_image_is_named_before_anything_is_written(tiny):
    for split, damage in (("bounding_box_train", "truncated"), ("bounding_box_test", "text")):
        victim = sorted((Path(tiny.data.data_root) / "demo" / split).glob("*_c2*.jpg"))[1]
        whole = victim.read_bytes()
        victim.write_bytes(whole[:-200] if damage == "truncated" else b"these are words, not pixels")
        refused(program(*train_args(tiny)), victim)
        victim.write_bytes(whole)
        assert not Path(tiny.run.log_dir).exists()


def test_grey_transparent_and_cmyk_images_are_trained_on(tiny):
    from PIL import Image

    folder = Path(tiny.data.data_root) / "demo" / "bounding_box_train"
    grey, clear, cmyk = sorted(folder.glob("*.jpg"))[:3]
    Image.open(grey).convert("L").save(grey)
    Image.open(clear).convert("RGBA").save(clear.with_suffix(".png"))
    clear.unlink()
    Image.open(cmyk).convert("CMYK").save(cmyk)
    shown = program(*train_args(tiny), "--eval-every", "1")
    assert shown.returncode == 0, shown.stderr
    assert "36 images" in shown.stdout


def test_no_checkpoint_yet_and_one_that_is_not_there(tiny):
    refused(program("test.py", "--log-dir", tiny.run.log_dir), "train.py", tiny.run.log_dir)
    refused(program("get_vis_result.py", "--log-dir", tiny.run.log_dir), "train.py")
    refused(program("test.py", "nowhere.pth", "--log-dir", tiny.run.log_dir), "nowhere.pth")


def test_a_checkpoint_of_another_architecture(trained):
    refused(program("test.py", "--log-dir", trained.run.log_dir, "--backbone", "resnet50"), "mobilenet_v2", "resnet50")
    refused(program("test.py", "demo", "--log-dir", trained.run.log_dir, "--weights", "x.pth"), "--weights")


class Bomb:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tiny, tmp_path):
    for name, save in (("old", lambda v, p: p.write_bytes(pickle.dumps(v))), ("new", lambda v, p: torch.save(v, p))):
        bomb = tmp_path / f"{name}.pth"
        save({"model": Bomb(str(tmp_path / "boom"))}, bomb)
        refused(program("test.py", bomb), bomb, "not a checkpoint" if name == "old" else "code")
        refused(program(*train_args(tiny), "--weights", bomb, "--backbone", "resnet18"), bomb, "refused")
    assert not (tmp_path / "boom").exists()
    assert not Path(tiny.run.log_dir).exists()


def test_damaged_and_foreign_checkpoints_are_refused(trained, tmp_path):
    whole = (Path(trained.run.log_dir) / "demo" / "last.pth").read_bytes()
    for content in (b"", b"PK\x03\x04 cut short", b"\x80\x02 half a pickle", b"plain words", whole[: len(whole) // 2]):
        (tmp_path / "bad.pth").write_bytes(content)
        refused(program("test.py", tmp_path / "bad.pth"), tmp_path / "bad.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    refused(program("test.py", tmp_path / "foreign.pth"), "--weights")


def test_a_log_directory_that_cannot_be_written_to_and_a_device_that_is_not_there(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    blocked = tiny.replace(log_dir=str(tmp_path / "file" / "log"))
    refused(program(*train_args(blocked)), tmp_path / "file" / "log", "--log-dir")
    refused(program(*train_args(tiny.replace(log_dir="/proc/reid"))), "/proc/reid", "--log-dir")
    refused(program(*train_args(tiny), "--device", "gpu7"), "gpu7")


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    readme = tmp_path / "README.md"
    tables = [(results_table.START, results_table.END), (results_table.BENCHMARK_START, results_table.BENCHMARK_END)]
    readme.write_text("before\n" + "".join(f"{start}\nold\n{end}\nafter\n" for start, end in tables))
    rows = [{"experiment": "b1", "protocol": "plain", "source": "paper", "mAP": 85.8, "rank1": 94.1},
            {"experiment": "b2", "protocol": "plain", "source": "paper", "mAP": 86.2, "rank1": 94.4}]  # fmt: skip
    (tmp_path / "results" / "published.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


def fill_table(directory: Path, *more: object) -> subprocess.CompletedProcess:
    where = ["--results", directory / "results", "--readme", directory / "README.md"]
    where += ["--benchmarks", directory / "README.md"]
    return program("tools/results_table.py", *where, *more)


def test_results_become_the_table_with_mean_and_deviation_over_seeds(results, trained, tmp_path):
    file = Path(trained.run.log_dir) / "demo" / "results" / "train.json"
    other = json.loads(file.read_text()) | {"seed": 1}
    scores = [50.0, 60.0]
    for value, content in zip(scores, (json.loads(file.read_text()), other), strict=True):
        content["scores"]["plain"]["mAP"] = value
        (tmp_path / "one.json").write_text(json.dumps(content))
        shown = fill_table(results, "--add", tmp_path / "one.json", "--name", "b1", "--remark", f"mAP was {value}")
        assert shown.returncode == 0, shown.stderr
    text = (results / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| b1 |"))
    assert "`b1`, seed 1: mAP was 60.0" in text and "`b1`, seed 0: mAP was 50.0" in text
    assert "55.00 ± 7.07" in row and "n = 2" in row and "85.8 / 94.1" in row
    assert "| b2 | plain | 86.2 / 94.4 | not measured |" in text
    assert sorted(p.name for p in (results / "results").iterdir()) == ["b1-s1.json", "b1.json", "published.json"]
    assert "data_root" not in json.loads((results / "results" / "b1.json").read_text())["settings"]
    assert fill_table(results, "--check").returncode == 0
    (results / "README.md").write_text(text.replace("55.00", "99.00"))
    refused(fill_table(results, "--check"), "results_table.py")


def test_results_on_another_set_have_rows_and_files_of_their_own(results, trained, tmp_path):
    content = json.loads((Path(trained.run.log_dir) / "demo" / "results" / "train.json").read_text())
    row = {"experiment": "b1", "protocol": "plain", "source": "paper", "mAP": 85.8, "rank1": 94.1}
    other = {"experiment": "b1", "source": "paper", "dataset": "veri776"}
    rows = [row, other | {"protocol": "plain", "mAP": 55.8, "mINP": 7.5}, other | {"protocol": "rerank", "mAP": 61.0}]
    (results / "results" / "published.json").write_text(json.dumps({"rows": rows}))
    sets = [{"dataset": "market1501"}, {"dataset": "market1501", "test_dataset": "veri776"},
            {"dataset": "veri776+market1501", "test_dataset": "", "seed": 1}]  # fmt: skip
    for mAP, which in zip((84.0, 50.0, 60.0), sets, strict=True):
        content["scores"]["plain"] |= {"mAP": mAP, "rank1": mAP}
        (tmp_path / "one.json").write_text(json.dumps(content | which))
        assert fill_table(results, "--add", tmp_path / "one.json", "--name", "b1").returncode == 0
    files = sorted(p.name for p in (results / "results").iterdir())
    assert files == ["b1-veri776-s1.json", "b1-veri776.json", "b1.json", "published.json"]
    text = (results / "README.md").read_text()
    assert "| b1 | plain | 85.8 / 94.1 | 84.00 / 84.00 |" in text
    assert "| b1, veri776 | plain | 55.8 / –, mINP 7.5 | 55.00 ± 7.07 / 55.00 ± 7.07 |" in text
    assert "| b1, veri776 | rerank | 61.0 / – | not measured |" in text


def test_results_of_a_cut_set_and_other_files_stay_out_of_the_table(results, trained, tmp_path):
    content = json.loads((Path(trained.run.log_dir) / "demo" / "results" / "train.json").read_text())
    (tmp_path / "cut.json").write_text(json.dumps(content | {"note": "first 3 of 6; not comparable"}))
    refused(fill_table(results, "--add", tmp_path / "cut.json", "--name", "b1"), "not comparable")
    refused(fill_table(results, "--add", tmp_path / "nothing.json", "--name", "b1"), "nothing.json")
    refused(fill_table(results, "--add", tmp_path / "cut.json"), "--name")
    assert [p.name for p in (results / "results").iterdir()] == ["published.json"]


MEASURED = {
    "task": "eval", "size": "market", "features": "clustered", "metric": "cosine", "width": 2048, "hardware": "a core",
    "rows": [
        {"contender": "matmul", "seconds": 2.0, "cpu_seconds": 3.9, "peak_mb": 900.4, "above_mb": 204.0, "scores": {}},
        {"contender": "ours", "seconds": 2.5, "cpu_seconds": 5.0, "peak_mb": 1234.0, "above_mb": 90.0,
         "scores": {"mAP": 0.81234}},
        {"contender": "numpy", "not_run": "needs 99 GB"},
    ],
}  # fmt: skip


def test_benchmarks_have_a_table_of_their_own(results):
    assert fill_table(results).returncode == 0
    assert "Not measured yet." in (results / "README.md").read_text()
    file = results / "results" / "benchmark_eval_market_cpu.json"
    file.write_text(json.dumps(MEASURED))
    refused(fill_table(results, "--check"), "results_table.py")
    assert fill_table(results).returncode == 0
    text = (results / "README.md").read_text()
    training, speed = text.split(results_table.BENCHMARK_START)
    assert "market" not in training and "| b1 | plain | 85.8 / 94.1 | not measured |" in training
    what = "| eval, market, clustered, cosine |"
    assert f"{what} matmul | 2 | 3.9 | 1 |  |  | 900 | 204 |  | a core |" in speed
    assert f"{what} ours | 2.5 | 5 | 1.25 |  |  | 1,234 | 90 | 81.23 | a core |" in speed
    assert f"{what} numpy | not run: needs 99 GB |" in speed
    assert len({line.count("|") for line in speed.splitlines() if line.startswith("|")}) == 1
    assert fill_table(results, "--check").returncode == 0
    (results / "README.md").write_text(text.replace("81.23", "91.23"))
    refused(fill_table(results, "--check"), "results_table.py")


def test_faster_than_numpy_is_numpy_s_time_divided_by_the_contender_s():
    rows = [row | {"seconds": s, "cpu_seconds": s} for row, s in zip(MEASURED["rows"][:2], (4.0, 1.0), strict=True)]
    numpy_row = rows[1] | {"contender": "numpy", "seconds": 1234.4}
    cells = benchmark_tables.benchmark_rows({"rows": [*rows, numpy_row]})
    assert [row[3] for row in cells] == ["1", "0.25", "309"]
    assert [row[4] for row in cells] == ["309", "1,234", "1"]


def test_odd_benchmark_files_and_a_readme_without_the_lines_are_refused(results, tmp_path):
    file = results / "results" / "benchmark_eval_market_cpu.json"
    for content in ("{", "[]", '{"rows": [{"contender": "ours"}]}'):
        file.write_text(content)
        refused(fill_table(results), file)
    file.unlink()
    refused(fill_table(results, "--add", tmp_path / "x.json", "--name", "benchmark_x"), "--name benchmark_x")
    (results / "README.md").write_text(f"{results_table.START}\n{results_table.END}\n")
    refused(fill_table(results), results_table.BENCHMARK_START)

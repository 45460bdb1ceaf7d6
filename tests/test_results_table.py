"""The tables that the README and the docs show, from files in results/."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from helpers import program, refused

from tools import results_table

ROW = {"experiment": "b1", "protocol": "plain", "source": "paper", "mAP": 85.8, "rank1": 94.1}
RESULT = {
    "dataset": "market1501", "test_dataset": None, "note": "", "seed": 0, "hardware": "a core", "train_seconds": 60.0,
    "images_per_second": 9.0, "scores": {"plain": {"mAP": 50.0, "rank1": 60.0, "mINP": 10.0}},
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    write(tmp_path, "published", {"rows": [ROW, ROW | {"experiment": "b2", "mAP": 86.2, "rank1": 94.4}]})
    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).write_text(f"before\n{results_table.START}\nold\n{results_table.END}\nafter\n")
    return tmp_path


def write(root: Path, name: str, content: object) -> Path:
    (root / "results").mkdir(exist_ok=True)
    file = root / "results" / f"{name}.json"
    file.write_text(json.dumps(content))
    return file


def fill(root: Path, *more: object) -> subprocess.CompletedProcess:
    return program("tools/results_table.py", "--root", root, *more)


def test_results_become_tables_with_mean_and_deviation_over_seeds(root):
    for seed, mAP in enumerate((50.0, 60.0)):
        scores = {"plain": RESULT["scores"]["plain"] | {"mAP": mAP}}
        write(root, f"b1-s{seed}" if seed else "b1", RESULT | {"seed": seed, "scores": scores, "remark": f"was {mAP}"})
    shown = fill(root)
    assert shown.returncode == 0, shown.stderr
    readme, results = ((root / name).read_text() for name in ("README.md", "docs/results.md"))
    for text in (readme, results):
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        row = next(line for line in text.splitlines() if line.startswith("| b1 |"))
        assert "55.00 ± 7.07" in row and "n = 2" in row and "85.8 / 94.1" in row and "1.0 min, 9 images/s" in row
    assert "`b1`, seed 1: was 60.0" in results and "`b1`, seed 0: was 50.0" in results and "was 60.0" not in readme
    assert "| b2 | plain | 86.2 / 94.4 | not measured |" in results and "b2" not in readme
    assert fill(root, "--check").returncode == 0
    (root / "README.md").write_text(readme.replace("55.00", "99.00"))
    refused(fill(root, "--check"), "README.md", "results_table.py")


def test_results_of_a_cut_set_and_damaged_files_are_refused(root):
    file = write(root, "b1", RESULT | {"note": "first 3 of 6; not comparable"})
    refused(fill(root), file, "not comparable")
    for content in ("{", "[]", "{}", json.dumps({k: v for k, v in RESULT.items() if k != "scores"})):
        file.write_text(content)
        refused(fill(root), file)
    file.unlink()
    write(root, "benchmark_x", {"of": "another program"})
    (root / "docs" / "results.md").write_text("no lines")
    refused(fill(root), "results.md", results_table.START)

"""What the README says of a loss and a backbone of one's own, word for word."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

HEADING = "## A loss and a backbone of your own\n"


def blocks(language: str) -> list[str]:
    """The section's code in this language, block by block."""
    section = (ROOT / "README.md").read_text().split(HEADING)[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def steps() -> list[tuple[str, str, str]]:
    """What to write: the file, the beginning of the line that it goes below (empty: it is the whole file), the text."""
    parts = []
    for line in "".join(blocks("python")).splitlines(keepends=True):
        if place := re.fullmatch(r"# (\S+\.py)(?:, below: (.+))?\n", line):
            parts.append((place[1], place[2] or "", ""))
        else:
            name, beginning, text = parts.pop()
            parts.append((name, beginning, text + line))
    return parts


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project without what runs have left in it."""
    left_out = shutil.ignore_patterns("data", "log", ".*", "__pycache__", "tests", "docs", "results")
    return Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out))


def follow(copy: Path) -> None:
    """Do in the copy what the README says."""
    for name, beginning, text in steps():
        if not beginning:
            assert not (copy / name).exists()
            (copy / name).write_text(text)
            continue
        lines = (copy / name).read_text().splitlines(keepends=True)
        places = [i for i, line in enumerate(lines) if line.lstrip().startswith(beginning)]
        assert len(places) == 1, f"{name} has {len(places)} lines that begin with {beginning}"
        lines.insert(places[0] + 1, text)
        (copy / name).write_text("".join(lines))


def run(copy: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}  # nothing from outside the copy
    return subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)


def train(copy: Path, tree: Path, *more: str) -> subprocess.CompletedProcess:
    """The README's command, shrunk to two steps of four people with three images each."""
    (command,) = blocks("sh")
    python, *words = shlex.split(command)
    assert python == "python"
    words += ["--data-root", str(tree), "--train-ids", "4", "--batch-size", "12", "--images-per-id", "3"]
    words += ["--epochs", "1", "--steps", "1", "--height", "32", "--width", "16", "--pad", "2", "--no-rerank"]
    return run(copy, *words, "--device", "cpu", *more)


@pytest.mark.slow
def test_the_readmes_loss_and_backbone_are_trained_by_its_command(copy, tree):
    follow(copy)
    done = train(copy, tree)
    assert done.returncode == 0, done.stderr
    log = copy / "log" / "demo"
    *_, epoch = map(json.loads, (log / "metrics.jsonl").read_text().splitlines())
    assert epoch["epoch"] == 1 and -2 <= epoch["own"] < 2 and "triplet" not in epoch
    assert epoch["loss"] == pytest.approx(epoch["id"] + 0.5 * epoch["own"], abs=1e-4)
    state = torch.load(log / "last.pth", weights_only=True)
    assert state["model"]["backbone.2.weight"].shape == (256, 64, 3, 3)
    assert {int(s["step"]) for s in state["optimizers"]["model"]["state"].values()} == {2}


def test_a_loss_of_ones_own_is_checked_like_the_others(copy):
    follow(copy)
    code = "from config import Config; Config(triplet_weight=0.0, own_weight=0.5, sampler='shuffle').check()"
    done = run(copy, "-c", code)
    assert "the own loss needs several images" in done.stderr, done.stderr

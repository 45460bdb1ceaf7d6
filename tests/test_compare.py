"""tools/compare.py: groups over seeds, their means, and the settings that differ."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import done, program, refused

from config import Config


def write_run(log: Path, name: str, mAP: float, rows: tuple[str, ...] = ("plain",), **settings: object) -> None:
    """What a finished run leaves: its evaluations were 2 before, 90 after epoch 1 and `mAP` after epoch 3."""
    cfg = Config(name=name, log_dir=str(log), **settings)
    scores = {row: {"mAP": mAP + i, "mINP": 1.0, "rank1": 60.0, "valid_queries": 9} for i, row in enumerate(rows)}
    result = {"scores": scores, "note": "", "seed": cfg.run.seed, "epochs": 3, "settings": cfg.to_dict()}
    (log / name / "results").mkdir(parents=True)
    (log / name / "results" / "train.json").write_text(json.dumps(result))
    history = [{"epoch": e, "scores": {"plain": {"mAP": m}}} for e, m in ((0, 2.0), (1, 90.0), (3, mAP))]
    (log / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, history)))


def compare(log: Path, *runs: object) -> list[list[str]]:
    """The words of each line."""
    shown = done("tools/compare.py", *runs, "--log-dir", log)
    return [line.split() for line in shown.splitlines()]


def test_runs_that_differ_in_the_seed_are_one_group_and_other_differences_are_listed(tmp_path):
    write_run(tmp_path, "a", 50.0, seed=0, workers=1)
    write_run(tmp_path, "b", 60.0, seed=1, workers=2)  # workers change nothing
    write_run(tmp_path, "c", 95.0, rows=("plain", "flip"), lr=0.5, flip=True)
    file = tmp_path / "c" / "results" / "train.json"
    older = json.loads(file.read_text())
    del older["settings"]["circle_weight"]  # as of a version that did not have it
    file.write_text(json.dumps(older | {"note": "first 3 of 6 identities; not comparable"}))
    lines = compare(tmp_path)
    assert lines == compare(tmp_path, "a", "b", "c")
    rows = [line for line in lines if {"plain", "flip"} & set(line[:6])]
    assert rows[0][:11] == ["a", "+1", "0", "1", "plain", "55.00", "±", "7.07", "1.00", "±", "0.00"]
    assert rows[0][-5:] == ["3", "90.00", "(1),", "90.00", "(1)"]
    assert rows[1] == ["c", "0", "plain", "95.00", "1.00", "60.00", "9", "3", "95.00", "(3)"]
    assert rows[2] == ["c", "0", "flip", "96.00", "1.00", "60.00", "9", "3"]
    differ = lines[lines.index(["setting", "a", "+1", "c"]) + 1 : -1]
    assert sorted(differ) == [["flip", "False", "True"], ["lr", str(Config().solver.lr), "0.5"]]
    assert lines[-1][:4] == ["note", "on", "c:", "first"]


def test_differences_on_the_same_queries_have_the_intervals_of_a_paired_bootstrap(tmp_path):
    rng = np.random.default_rng(1)
    base = rng.uniform(0, 1, 400)
    ap = {"a": base, "b": np.clip(base + 0.05 + rng.normal(0, 0.1, 400), 0, 1), "c": base + rng.normal(0, 0.1, 400)}
    for name, values in ap.items():
        write_run(tmp_path, name, 100 * values.mean(), lr=len(name) + values.sum())
        file = tmp_path / name / "results" / "train.json"
        queries = {"plain": {"ap": values.tolist(), "first": [1 + (x < 0.5) for x in values.tolist()]}}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"queries": queries, "images": ["q", "g"]}))
    lines = compare(tmp_path)
    row = next(line for line in lines if line[0] == "a")
    drawn = np.random.default_rng(2).choice(100 * base, (4000, 400)).mean(1)
    low, high = (float(word.strip("[,]")) for word in row[4:6])
    assert [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.3)
    found = {(line[1], line[2]): line for line in lines if line[:1] == ["plain"]}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert {pair: line[6:8] == ["within", "chance"] for pair, line in found.items()} == {
        ("a", "b"): False, ("a", "c"): True, ("b", "c"): False
    }  # fmt: skip
    change = 100 * (ap["b"] - ap["a"])
    low, high = (float(word.strip("[,]")) for word in found["a", "b"][4:6])
    spread = 1.96 * change.std() / 20
    assert [low, high] == pytest.approx([change.mean() - spread, change.mean() + spread], abs=0.15)


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": 0}'])
def test_what_is_no_result_is_refused(tmp_path, content):
    refused(program("tools/compare.py", "--log-dir", tmp_path), tmp_path)
    refused(program("tools/compare.py", "nothing", "--log-dir", tmp_path), "nothing", "train.json")
    (tmp_path / "x.json").write_text(content)
    refused(program("tools/compare.py", tmp_path / "x.json"), "x.json")

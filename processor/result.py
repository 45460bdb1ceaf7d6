"""What a result is stored with, so that it can be repeated and compared."""

from __future__ import annotations

from typing import Any

from config import Config


def result_record(state: dict[str, Any], cfg: Config, scores: dict, note: str, command: str = "") -> dict[str, Any]:
    """Plain values: what was trained, where, with which seed, how long it took, and what came out.

    state: a checkpoint's dict. cfg, scores, note: settings, `score_values` and caveat of the test. command: the words
    that repeat the test, if it was one of its own.
    """
    speeds = sorted(h["images_per_second"] for h in state["history"] if "images_per_second" in h)
    first = state["history"][0] if state["history"] else {}
    return {
        "preset": cfg.run.preset,
        "dataset": cfg.data.dataset,
        "test_dataset": cfg.data.test_dataset,
        "command": state["command"],
        "test_command": command,
        **state["environment"],
        "seed": cfg.run.seed,
        "epochs": state["epoch"],
        "train_seconds": round(state["seconds"], 1),
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,
        "note": note,
        "before": first["scores"]["plain"] if first.get("epoch") == 0 and "scores" in first else None,
        "scores": scores,
        "settings": cfg.to_dict(),
    }

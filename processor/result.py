"""What a result is stored with, so that it can be repeated and compared."""

from __future__ import annotations

from typing import Any

from processor.environment import describe_environment
from processor.run import Run


def result_record(run: Run) -> dict[str, Any]:
    """Plain values: what was run, where, with which seed, how long it took, and what came out."""
    speeds = [h["images_per_second"] for h in run.history if "images_per_second" in h]
    return {
        "preset": run.cfg.preset,
        "command": run.command,
        **describe_environment(run.device),
        "seed": run.cfg.seed,
        "epochs": run.epoch,
        "train_seconds": round(run.seconds, 1),
        "images_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "note": run.note,
        "before": run.history[0].get("scores", {}).get("plain") if run.history[0]["epoch"] == 0 else None,
        "scores": run.history[-1].get("scores"),
        "settings": run.cfg.to_dict(),
    }

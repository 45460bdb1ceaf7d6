"""The demo set: rendered pedestrians in Market-1501's layout, made on first use. No download, no licence to accept."""

from __future__ import annotations

from pathlib import Path

from datasets.base import ReIDDataset
from datasets.demo_render import render_demo
from datasets.market1501 import read_layout


def demo(root: str | Path) -> ReIDDataset:
    """List ROOT/demo, rendering it first where it does not exist (some seconds, the same files every time)."""
    base = Path(root) / "demo"
    if not base.exists():
        render_demo(base)
    return read_layout("demo", base)

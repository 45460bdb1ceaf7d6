"""The demo set: rendered pedestrians in Market-1501's layout, made on first use. No download, no licence to accept."""

from __future__ import annotations

from pathlib import Path

from datasets.base import ReIDDataset
from datasets.demo.render import render_demo
from datasets.layouts import read_layout
from utils.errors import UserError
from utils.logging import log


def demo(root: str | Path) -> ReIDDataset:
    """List ROOT/demo, rendering it first where it does not exist (some seconds, the same files every time).

    Raises UserError when it cannot be written there.
    """
    base = Path(root) / "demo"
    if not base.exists():
        log.info("drawing the demo set into %s: some 2,300 pictures, ten seconds or so", base)
        try:
            render_demo(base)
        except OSError as error:
            if not base.exists():  # else another process was quicker, with the same pictures
                raise UserError(
                    f"the demo set cannot be written to {base} ({error.strerror}); choose a place with --data-root"
                ) from error
    return read_layout("demo", base)

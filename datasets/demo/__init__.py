"""The demo set: rendered pedestrians in Market-1501's layout, made on first use. No download, no license to accept."""

from pathlib import Path

from datasets.base import ReIDDataset
from datasets.demo.render import render_demo
from datasets.layouts import read_layout
from utils.errors import UserError
from utils.logging import log


def demo(root: str | Path) -> ReIDDataset:
    """List ROOT/demo, rendering it first if it does not exist (some seconds, the same files every time)."""
    base = Path(root) / "demo"
    if not base.exists():
        log.info("drawing the demo set into %s: about 2,300 images, about ten seconds", base)
        try:
            render_demo(base)
        except OSError as error:
            if not base.exists():  # otherwise another process was faster, with the same images
                raise UserError(
                    f"the demo set cannot be written to {base} ({error.strerror}); choose a directory with --data-root"
                ) from error
    return read_layout("demo", base)

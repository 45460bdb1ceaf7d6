"""Write a page for the browser that shows a test: `python tools/report.py [CKPT] [--rerank] [--top N] [--heatmaps N]`.

One HTML file that needs no network: scores and what they must be read with, CMC, ROC, distances, AP, the training,
scores by camera, and every query's ranked list, to be filtered, sorted and looked at. Gallery images of the query's
identity under its camera are left out, as the protocol does.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import typed_command
from config.config import option
from datasets.make import short_name, test_name
from processor.evaluate import do_inference, report, scores_note
from processor.report_images import pack
from processor.test import parse_test, prepare_test
from tools.report_gather import gather
from utils.errors import UserError, run
from utils.files import write_atomically
from utils.logging import log

PAGE = Path(__file__).resolve().parent / "report_page"
SCRIPTS = ("plots.js", "page.js", "lists.js", "query.js")
LARGE = 60  # MB


@dataclass
class ReportConfig(Config):
    top: int = 20  # images of each ranked list
    heatmaps: int = 50  # queries with heat maps: half of them those with the lowest AP, half with the highest; 0: none
    thumb_height: int = 128  # pixels of the pictures in the page
    output: str = ""  # the page's file; empty: results/report_... in the run's directory

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        for name, least in (("top", 1), ("heatmaps", 0), ("thumb_height", 16)):
            if getattr(self, name) < least:
                yield f"{option(name)} must be at least {least}, not {getattr(self, name)}"
        if self.protocol in ("single_shot", "vehicle_id"):
            yield f"--protocol {self.protocol} has many random galleries, so no one ranked list to show; leave it out"


def page(data: dict[str, Any], thumbs: Sequence[str]) -> str:
    """The HTML of plain values, and of pictures as `thumbnails` makes them. Nothing in them can become markup."""

    def read(name: str) -> str:
        return (PAGE / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(data["title"].encode(errors="replace").decode()),
        "style": read("page.css"),
        "script": "\n".join(map(read, SCRIPTS)),
        # "<" would end the element early if a name held "</script>", and begins nothing as an escape
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "thumbs": pack(thumbs),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read("page.html"))


def main() -> None:
    cfg, stored = parse_test(None, os.environ, "report.py [CKPT]", ReportConfig)
    protocol = (
        "standard" if cfg.eval.protocol == "auto" else cfg.eval.protocol
    )  # one ranked list a query, whatever the set
    cfg = cfg.replace(protocol=protocol, roc=True, by_camera=False)  # cameras come from what the lists are made from
    test = prepare_test(cfg, stored)
    if len(test.gallery.samples) == 1:
        raise UserError(
            f"the gallery of {test_name(cfg)} holds one image, which comes first whatever the model does; add images, "
            "or test on another set with --test-dataset"
        )
    inference = do_inference(cfg, test.model, test.query, test.gallery, test.device)
    report(inference, scores_note(cfg, test.note))
    checkpoint = str(stored[0]) if stored else ""
    text = page(*gather(cfg, test, inference, checkpoint, command=typed_command()))
    words = ["report", test.what, short_name(test_name(cfg)), cfg.eval.metric, list(inference.scores)[-1]]
    words += [f"{cfg.data.test_ids}ids"] if cfg.data.test_ids else []
    path = Path(cfg.output) if cfg.output else test.directory / "results" / f"{'_'.join(words)}.html"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    size = path.stat().st_size / 1e6
    log.info("%.1f MB written to %s, to be opened in a browser", size, path)
    if size > LARGE:
        log.info("that is much for a browser; a smaller --thumb-height or --top makes less of it")


if __name__ == "__main__":
    run(main)

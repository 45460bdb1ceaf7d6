"""Write a test report as a web page: `python tools/report.py [CKPT] [--rerank] [--top N] [--heatmaps N]`.

The page is one HTML file that works offline. It shows scores and how to read them, CMC, ROC, distances, AP, the
training, scores by camera, and each query's ranked list, which you can filter, sort and open. Gallery images of the
query's identity from its own camera are left out, as in the protocol.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.cli import typed_command
from datasets.image_size import measure_ratio
from datasets.make import short_name, test_name
from processor.evaluate import do_inference, report, scores_note
from processor.test import parse_test, prepare_test
from tools.report.page import heat_maps, make_page, plain_values, queries_with_maps, report_values, thumbnails
from utils.errors import run
from utils.files import write_atomically
from utils.logging import log

LARGE = 60  # MB
RANGES = {"top": "[1, inf)", "heatmaps": "[0, inf)", "thumb_height": "[16, inf)"}


@dataclass
class Options:
    top: int = 20  # images per ranked list
    heatmaps: int = 50  # number of queries with heat maps, half with the lowest AP, half with the highest (0: none)
    thumb_height: int = 128  # height in pixels of the pictures in the page
    output: str = ""  # file of the page (empty: results/report_... in the run's directory)


def main() -> None:
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options, RANGES)
    cfg = cfg.replace(roc=True, by_camera=False)  # the page has its own camera table
    test = prepare_test(cfg, stored, ranked_lists=True)
    inference = do_inference(test.cfg, test.model, test.query, test.gallery, test.device)
    report(inference, scores_note(test.cfg, test.note))
    checkpoint = str(stored[0]) if stored else ""
    values, paths, lists = report_values(test, inference, options.top, checkpoint, typed_command())
    maps = options.heatmaps if hasattr(test.model, "backbone") else 0  # a model in an .onnx file has no maps
    chosen = queries_with_maps(list(inference.scores.values())[-1].ap, maps)
    values["heatmaps"] = {q: heat_maps(test, q, lists[q]) for q in chosen}
    width = max(1, round(options.thumb_height / measure_ratio(paths)))
    values["size"] = [width, options.thumb_height]
    text = make_page(plain_values(values), thumbnails(paths, options.thumb_height, width, cfg.data.workers))
    words = ["report", test.what, short_name(test_name(cfg)), cfg.eval.metric, list(inference.scores)[-1]]
    words += [f"{cfg.data.test_ids}ids"] if cfg.data.test_ids else []
    path = Path(options.output or test.directory / "results" / f"{'_'.join(words)}.html")
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    size = path.stat().st_size / 1e6
    log.info("%.1f MB written to %s; open it in a browser", size, path)
    if size > LARGE:
        log.info("this page is large for a browser; use a smaller --thumb-height or --top")


if __name__ == "__main__":
    run(main)

"""Draw ranked lists: `python tools/get_vis_result.py [CKPT] [--sort worst|best|random] [--num N]`.

One PNG a query (query | rank 1 ... rank 10) and one of up to ten queries together. Right matches are framed green,
wrong ones red; images of the same person under the same camera are left out, as the protocol does.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import typed
from processor.ranked_lists import choose_queries, ranked_rows
from processor.test import do_test, parse_test
from utils.errors import run
from utils.logging import log
from utils.visualize import draw_rows


@dataclass
class VisConfig(Config):
    sort: Literal["worst", "best", "random"] = "worst"  # queries with the lowest AP, with the highest, or any
    num: int = 10  # queries to draw
    top: int = 10  # ranks to draw
    output: str = ""  # directory of the pictures; empty: results/ranked_SORT in the run's directory

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        for name in ("num", "top"):
            if getattr(self, name) < 1:
                yield f"--{name} must be at least 1, not {getattr(self, name)}"
        if self.protocol in ("single_shot", "vehicle_id"):
            yield f"--protocol {self.protocol} has many random galleries, so no one ranked list to draw; leave it out"


def main() -> None:
    cfg, stored = parse_test(None, os.environ, "get_vis_result.py [CKPT]", VisConfig)
    cfg.protocol = "standard" if cfg.protocol == "auto" else cfg.protocol  # one ranked list a query, whatever the set
    tested = do_test(cfg, stored, command=typed())
    if tested is None:
        return  # one of several processes: the first draws
    ap = list(tested.inference.scores.values())[-1].ap
    directory = Path(cfg.output) if cfg.output else tested.directory / "results" / f"ranked_{cfg.sort}"
    directory.mkdir(parents=True, exist_ok=True)
    chosen = choose_queries(ap, cfg.sort, cfg.num, cfg.seed)
    rows, columns = ranked_rows(cfg, tested.inference, tested.query, tested.gallery, chosen, cfg.top)
    for place, (index, row) in enumerate(zip(chosen, rows, strict=True), 1):
        name = f"{place:03}_ap{100 * ap[index]:05.1f}_{Path(tested.query.samples[index].path).stem}.png"
        draw_rows(directory / name, [row], columns)
    draw_rows(directory / "overview.png", rows[:10], columns)
    log.info("%d ranked lists and overview.png written to %s", len(rows), directory)


if __name__ == "__main__":
    run(main)

"""Search the best backbone for a budget: `tools/search_backbone.py [PRESET] [--max-flops 210M] [--max-latency 5]`.

Trains a supernet that holds all networks of the space (`model/backbones/space.py`), scores parts of it on training
identities that it has not seen, breeds the better ones, and writes the best as a specification that `train.py
--backbone searched:FILE.json` trains like any other. With `--retrain n` it does so itself, with n seeds, beside
MobileNetV2 1.0 and the backbones of `--references`, all with the preset's schedule. Each step goes on where it was
stopped; the same settings give the same result. No test image is looked at before the retraining.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_train
from config.config import dashed
from model.backbones.space import Space, Spec, mobilenet_v2, multiply_adds
from processor.checkpoint import LAST, load_model
from processor.environment import describe_environment, pick_device
from processor.latency_table import LatencyTable
from processor.run import FREE
from processor.search import Candidate, Evolution, Scorer
from processor.train import do_train
from tools.search_report import comparison, draw, front_table
from utils.errors import UserError, run
from utils.files import write_json
from utils.logging import log, setup_logging

UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass
class SearchConfig(Config):
    max_flops: str = ""  # most multiply-adds an image, such as 210M; empty: as many as MobileNetV2 1.0 has
    max_latency: float = 0.0  # most milliseconds of a batch of --latency-batch on --device; 0: no limit
    latency_batch: int = 1  # images of that batch
    supernet_epochs: int = 0  # epochs of the supernet; 0: twice those of the preset
    candidates: int = 100  # networks that are scored
    at_random: int = 30  # of these, how many are drawn by chance before breeding begins; all: a random search
    retrain: int = 0  # seeds with which the winner and its references are trained and tested; 0: only say how
    references: tuple[str, ...] = ("mobilenet_v2",)  # backbones that are retrained beside the winner

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.max_flops and flops(self.max_flops) <= 0:
            yield f"--max-flops takes a number such as 210M or 1.2G, not {self.max_flops}"
        if self.candidates < 2 or not 1 <= self.at_random <= self.candidates:
            yield f"--at-random must be at least 1 and at most --candidates, not {self.at_random} of {self.candidates}"


def flops(text: str) -> float:
    """210M to 210e6; 0 for what is no number."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1].lower() in UNITS else (text, "")
    try:
        return float(number) * UNITS.get(unit, 1.0)
    except ValueError:
        return 0.0


def plain(cfg: SearchConfig, **changes) -> Config:
    """The settings of a training, without those of the search."""
    values = {name: value for name, value in vars(cfg).items() if name in Config.__dataclass_fields__}
    return replace(Config(**values), **changes)


def train_once(cfg: Config) -> Path:
    """The run of these settings, trained to its end, unless it already is. Gives its directory.

    Raises UserError where a run of that name had other settings.
    """
    directory = Path(cfg.log_dir) / cfg.name
    if (directory / "config.json").exists():
        before = Config.from_dict(json.loads((directory / "config.json").read_text()))
        changed = [n for n in vars(before) if n not in FREE and getattr(before, n) != getattr(cfg, n)]
        if changed:
            raise UserError(
                f"{directory} was trained with another --{dashed(changed[0])} ({getattr(before, changed[0])}, not "
                f"{getattr(cfg, changed[0])}); give another --name, or delete it"
            )
    if not (directory / "results" / "train.json").exists():
        do_train(replace(cfg, resume=True), command=shlex.join(["python", *sys.argv]))
    return directory


def search(cfg: SearchConfig, directory: Path) -> tuple[list[Candidate], LatencyTable | None]:
    """The candidates, best first, and the table of latencies where there is a limit on these."""
    device = pick_device(cfg.device)
    supernet = plain(cfg, backbone="supernet", weights="none", last_stride=1, flip=False, rerank=False)
    supernet = replace(supernet, log_dir=str(directory), name="supernet", epochs=cfg.supernet_epochs or 2 * cfg.epochs)
    scale = supernet.epochs / cfg.epochs
    supernet = replace(supernet, steps=tuple(step * scale for step in cfg.steps), eval_every=supernet.epochs)
    checkpoint = train_once(supernet.check()) / LAST
    setup_logging(directory / "search.log")
    model, trained = load_model(checkpoint, device)
    budget = flops(cfg.max_flops) if cfg.max_flops else multiply_adds(mobilenet_v2(cfg.height, cfg.width))
    limits, table = [(multiply_adds, budget)], None
    if cfg.max_latency:
        hardware = describe_environment(device)["hardware"]
        table = LatencyTable(directory / "latency.json", device, hardware, cfg.latency_batch)
        limits.append((table.of, cfg.max_latency / 1e3))
    scorer = Scorer(replace(trained, data_root=cfg.data_root, workers=cfg.workers), model, device)
    space, file = Space(cfg.height, cfg.width), directory / "candidates.jsonl"
    evolution = Evolution(space, limits, scorer, file, cfg.seed)
    log.info("at most %.1f M multiply-adds%s", budget / 1e6, f", {cfg.max_latency} ms" if table else "")
    with tqdm(total=cfg.candidates, desc="search", unit="net", leave=False, disable=None) as bar:

        def tell(candidate: Candidate) -> None:
            best = max(c.mAP for c in evolution.found.values())
            bar.set_postfix_str(f"mAP {candidate.mAP:.2f}, best {best:.2f}", refresh=False)
            bar.update()

        found = evolution.run(cfg.candidates, cfg.at_random, tell)
    if table:
        table.save()
    return found, table


def command_for(preset: str, file: Path, spec: Spec) -> str:
    """The line that trains a searched network."""
    size = ["--height", str(spec.height), "--width", str(spec.width), "--last-stride", str(spec.last_stride)]
    words = ["python", "train.py", *([preset] if preset else []), "--backbone", f"searched:{file}", "--weights", "none"]
    return shlex.join(words + size)


def retrain(cfg: SearchConfig, directory: Path, winner: Path, spec: Spec) -> dict[str, list[Path]]:
    """Train the winner and its references with each seed; gives the directories of their runs by name."""
    shape = {"height": spec.height, "width": spec.width, "last_stride": spec.last_stride}
    models = {"winner": {"backbone": f"searched:{winner}", **shape}}
    models |= {name: {"backbone": name, "last_stride": 2 if name == "mobilenet_v2" else 1} for name in cfg.references}
    runs: dict[str, list[Path]] = {}
    for seed in range(cfg.retrain):
        for name, changes in models.items():
            one = plain(cfg, **changes, weights="none", holdout_ids=0, seed=seed, eval_first=False)
            name_of_run = f"{winner.stem if name == 'winner' else name}-s{seed}"
            one = replace(one, log_dir=str(directory), name=name_of_run, eval_every=cfg.epochs).check()
            runs.setdefault(name, []).append(train_once(one))
    return runs


def main() -> None:
    cfg = parse_train(None, os.environ, SearchConfig, "tools/search_backbone.py")
    setup_logging()
    if cfg.backbone.startswith("searched:"):
        raise UserError("--backbone is what the search finds; leave it out")
    cfg.holdout_ids = cfg.holdout_ids or 20
    directory = Path(cfg.log_dir) / (cfg.name or f"search_{cfg.preset}")
    found, table = search(cfg, directory)
    best = found[0]
    digest = hashlib.sha256(repr(best.spec).encode()).hexdigest()[:8]
    winner = directory / f"winner-{digest}.json"
    write_json(winner, best.spec.to_dict() | {"found_by": shlex.join(["python", *sys.argv]), "heldout_mAP": best.mAP})
    log.info("%s", front_table(found))
    draw(directory / "pareto.png", found, table)
    log.info("best on held-out identities: mAP %.2f, %.1f M; %s", best.mAP, best.costs[0] / 1e6, winner)
    log.info("train it with: %s", command_for(cfg.preset, winner, best.spec))
    if cfg.retrain:
        runs = retrain(cfg, directory, winner, best.spec)
        setup_logging(directory / "search.log")
        log.info("%s", comparison(cfg, directory, runs))
    log.info("everything is in %s", directory)


if __name__ == "__main__":
    run(main)

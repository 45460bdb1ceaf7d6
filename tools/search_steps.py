"""Steps of the search for a backbone: trainings that go on where they were stopped, the supernet with its limits."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import Config
from config.cli import typed_command
from config.config import option
from model.backbones.searchable import self_contained
from model.backbones.space import Space, Spec, mobilenet_v2, multiply_adds
from processor.checkpoint import LAST, load_model
from processor.environment import describe_environment, pick_device
from processor.latency_table import LatencyTable
from processor.scorer import Scorer, without_test
from processor.search import Candidate, Limits, Scores, search_each_size
from processor.state import FREE_SETTINGS
from processor.train import do_train
from tools.search_settings import SearchConfig, flops, plain
from utils.errors import UserError
from utils.logging import log, setup_logging

# Longest gradient of a supernet, which is of another network at each step. Without it, one in hundreds of SGD's steps
# was so long that what had been learned was gone.
CLIP = 5.0


@dataclass
class Search:
    """A trained supernet, and what its networks are chosen by."""

    cfg: SearchConfig
    directory: Path
    score: Scores
    table: LatencyTable | None
    limits: Limits

    def run(self, count: int, at_random: int) -> list[Candidate]:
        """Score `count` networks, of which `at_random` are drawn and the others bred. The log says ten times on the way
        how far it is, and how long the rest takes if none of it is known from before."""
        space, found = Space(self.cfg.data.height, self.cfg.data.width), []
        started, known = time.monotonic(), len(self.score.known)

        def tell(candidate: Candidate) -> None:
            found.append(candidate)
            fresh = len(self.score.known) - known
            if len(found) % max(count // 10, 1) == 0:
                best = max((c for c in found if size_of(c) == size_of(candidate)), key=lambda c: c.mAP)
                left = (time.monotonic() - started) / max(fresh, 1) * (count - len(found))
                log.info("%d of %d networks, the best for %s images has mAP %.2f with %.1f M multiply-adds%s",
                         len(found), count, "x".join(map(str, size_of(best))), best.mAP, best.costs[0] / 1e6,
                         f", left {minutes(left)}" if fresh else "")  # fmt: skip

        return search_each_size(space, self.limits, self.score, self.cfg.run.seed, count, at_random, tell)


def size_of(candidate: Candidate) -> tuple[int, int]:
    """Height and width of the images that a network takes."""
    return candidate.spec.height, candidate.spec.width


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"


def train_once(cfg: Config) -> dict:
    """The result of the run of these settings, trained to its end unless it already is.

    Raises UserError where a run of that name had other settings.
    """
    directory = Path(cfg.run.log_dir) / cfg.run.name
    if (directory / "config.json").exists():
        before = Config.from_dict(json.loads((directory / "config.json").read_text()))
        changed = [n for n in before.to_dict() if n not in FREE_SETTINGS and before.get(n) != cfg.get(n)]
        if changed:
            raise UserError(
                f"{directory} was trained with another {option(changed[0])} ({before.get(changed[0])}, not "
                f"{cfg.get(changed[0])}); give another --name, or delete it"
            )
    result = directory / "results" / "train.json"
    if not result.exists():
        do_train(cfg.replace(resume=True), command=typed_command())
    return json.loads(result.read_text())


def alone(cfg: Config, directory: Path, name: str, spec: Spec | None = None, **changes) -> dict:
    """The result of one network trained by itself, from scratch; of a specification, or as the changes say."""
    if spec:
        text = self_contained("searched:" + json.dumps(spec.to_dict()))
        changes |= {"backbone": text, "height": spec.height, "width": spec.width, "last_stride": spec.last_stride}
    once = {"log_dir": str(directory), "name": name, "eval_first": False, "eval_every": cfg.solver.epochs}
    return train_once(cfg.replace(weights="none", **once, **changes).check())


def short(spec: Spec) -> str:
    """A name for the files of a network."""
    return hashlib.sha256(repr(spec).encode()).hexdigest()[:8]


def train_each(search: Search, cfg: Config, candidates: Sequence[Candidate], logfile: str) -> list[float]:
    """Score of each network when trained by itself, in per cent, on the people that the supernet's scores are of."""
    one, scores, seconds, done = without_test(cfg, search.directory), [], 0.0, 0.0
    total = sum(c.costs[0] for c in candidates)
    for candidate in candidates:
        result = alone(one, search.directory, f"alone-{short(candidate.spec)}-s{cfg.run.seed}", candidate.spec)
        setup_logging(search.directory / logfile)
        scores.append(result["scores"]["plain"]["mAP"])
        seconds, done = seconds + result["train_seconds"], done + candidate.costs[0]
        log.info(
            "%d of %d, %.1f M multiply-adds: mAP %.2f with shared weights, %.2f by itself; left about %s",
            len(scores), len(candidates), candidate.costs[0] / 1e6, candidate.mAP, scores[-1],
            minutes(seconds / done * (total - done)),
        )  # fmt: skip
    return scores


def open_search(cfg: SearchConfig) -> Search:
    """Train the supernet unless that is done, and make ready what scores and measures its networks."""
    cfg.data.holdout_ids = cfg.data.holdout_ids or 20
    directory, device = (
        Path(cfg.run.log_dir) / (cfg.run.name or f"search_{cfg.run.preset}"),
        pick_device(cfg.run.device),
    )
    epochs = cfg.supernet_epochs or 4 * cfg.solver.epochs
    steps = tuple(step * epochs / cfg.solver.epochs for step in cfg.solver.steps)
    clip = cfg.solver.clip_grad or CLIP
    supernet = plain(cfg, last_stride=1, flip=False, rerank=False, epochs=epochs, steps=steps, clip_grad=clip)
    supernet = without_test(supernet, directory)
    most = flops(cfg.max_flops) if cfg.max_flops else multiply_adds(mobilenet_v2(cfg.data.height, cfg.data.width))
    alone(supernet, directory, "supernet", backbone=f"supernet:{int(most)}")
    model, trained = load_model(directory / "supernet" / LAST, device)
    trained = trained.replace(data_root=cfg.data.data_root, workers=cfg.data.workers)
    limits, table = [(multiply_adds, most)], None
    if cfg.max_latency:
        hardware = describe_environment(device)["hardware"]
        table = LatencyTable(directory / "latency.json", device, hardware, cfg.latency_batch)
        limits.append((table.of, cfg.max_latency / 1e3))
    score = Scores(directory / "supernet" / "candidates.jsonl", Scorer(trained, model, device))
    return Search(cfg, directory, score, table, limits)


def last_stride(backbone: str) -> int:
    """That of its authors: OSNet has no other than 1."""
    return 1 if backbone.startswith("osnet") else 2

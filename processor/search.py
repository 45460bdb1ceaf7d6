"""The search for a backbone: a supernet's parts are scored on people that it has not seen, and the better ones bred."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from config import Config
from datasets.base import heldout_split
from datasets.loaders import TestLoader, TrainLoader
from datasets.make import make_dataset
from model import ReIDModel
from model.backbones.space import Space, Spec, multiply_adds
from processor.extract import extract_features
from utils.errors import UserError
from utils.metrics import evaluate
from utils.pareto import pareto_front

CALIBRATION = 8  # batches that a candidate's batch norm statistics come from
TRIES = 2000  # proposals in a row that may be too dear before the budget is called too small


@dataclass(frozen=True)
class Candidate:
    """A network, what it costs (multiply-adds, and seconds where a limit is set on these), and its score."""

    spec: Spec
    costs: tuple[float, ...]
    mAP: float


class Scorer:
    """mAP of a supernet's parts on held-out training identities, their batch norm statistics counted anew.

    The statistics come from the first training batches, the same ones for every candidate, without augmentation.
    Raises UserError when no identities were held out.
    """

    def __init__(self, cfg: Config, model: ReIDModel, device: torch.device):
        self.cfg, self.model, self.device = cfg, model, device
        dataset = make_dataset(cfg)
        if not cfg.holdout_ids:
            raise UserError("candidates are scored on identities that were kept out of training; give --holdout-ids 20")
        query, gallery = heldout_split(dataset.heldout)
        self.query, self.gallery = TestLoader(cfg, query, "query"), TestLoader(cfg, gallery, "gallery")
        plain = Config.from_dict(cfg.to_dict() | {"pad": 0} | {n: 0.0 for n in vars(cfg) if n.endswith("_prob")})
        loader = TrainLoader(plain, dataset.train)
        batches = loader.epoch(0, device)
        self.batches = [images for images, _ in (next(batches) for _ in range(min(CALIBRATION, len(loader))))]
        batches.close()

    def __call__(self, spec: Spec) -> float:
        """mAP in per cent."""
        self.model.backbone.chosen = spec
        recalibrate(self.model, self.batches)
        query, gallery = (extract_features(self.model, x, self.device)[0] for x in (self.query, self.gallery))
        ids = (self.query.pids, self.gallery.pids, self.query.camids, self.gallery.camids)
        return 100 * evaluate(query, gallery, *ids, metric=self.cfg.metric).mAP


@torch.no_grad()
def recalibrate(model: ReIDModel, batches: list[torch.Tensor]) -> None:
    """Give all batch norms the mean statistics of these batches, for the network that is chosen."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    model.train()
    model.backbone.fixed = True
    for images in batches:
        model(images)
    model.backbone.fixed = False
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@dataclass
class Evolution:
    """Networks of a space within limits, bred for their score (Real et al., Regularized Evolution for Image Classifier
    Architecture Search, AAAI 2019, with parents from the Pareto front, as in Deb et al., NSGA-II, 2002).

    limits: for each cost a function of the network and the most that it may be. The cheapest that is proposed costs
    `least` of the first limit. Everything that was scored is in `file`, a line each; a search that was stopped takes
    the scores from there and goes the same way, since all chance follows from the seed.
    """

    space: Space
    limits: list[tuple[Callable[[Spec], float], float]]
    score: Callable[[Spec], float]
    file: Path
    seed: int = 0
    least: float = 0.5
    mutation: float = 0.15  # probability that a gene of a child is another than its parents'
    found: dict[Spec, Candidate] = field(default_factory=dict)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.stored: dict[str, float] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self.stored[json.dumps(entry["spec"])] = entry["mAP"]
                except (ValueError, KeyError, TypeError):  # the line that was being written when the program was killed
                    continue

    def costs(self, spec: Spec) -> tuple[float, ...]:
        return tuple(cost(spec) for cost, _ in self.limits)

    def fits(self, costs: tuple[float, ...]) -> bool:
        most = [limit for _, limit in self.limits]
        return costs[0] >= self.least * most[0] and all(c <= m for c, m in zip(costs, most, strict=True))

    def propose(self, make: Callable[[], Spec]) -> Candidate | None:
        """A network within the limits that is new, scored; None where chance finds none."""
        for _ in range(TRIES):
            spec = make()
            costs = self.costs(spec)
            if spec not in self.found and self.fits(costs):
                key = json.dumps(spec.to_dict())
                if key not in self.stored:
                    self.stored[key] = self.score(spec)
                    self.file.parent.mkdir(parents=True, exist_ok=True)
                    with open(self.file, "a") as file:
                        file.write(json.dumps({"spec": spec.to_dict(), "costs": costs, "mAP": self.stored[key]}) + "\n")
                self.found[spec] = Candidate(spec, costs, self.stored[key])
                return self.found[spec]
        return None

    def child(self) -> Spec:
        """A mutant of one of the parents, or of a cross of two."""
        parents = self.parents()
        first, second = (parents[self.rng.integers(len(parents))].spec for _ in range(2))
        spec = self.space.cross(first, second, self.rng) if self.rng.random() < 0.5 else first
        return self.space.mutate(spec, self.rng, self.mutation)

    def parents(self) -> list[Candidate]:
        """The Pareto front of score and first cost, and the best quarter whatever they cost."""
        everyone = list(self.found.values())
        front = pareto_front([c.costs[0] for c in everyone], [c.mAP for c in everyone])
        best = sorted(everyone, key=lambda c: -c.mAP)[: max(len(everyone) // 4, 2)]
        return list(dict.fromkeys([everyone[i] for i in front] + best))

    def run(self, count: int, at_random: int, told: Callable[[Candidate], Any] = lambda _: None) -> list[Candidate]:
        """Score `count` networks, the first `at_random` of them drawn, the others bred; best first.

        Raises UserError where the limits leave nothing.
        """
        for number in range(count):
            candidate = self.propose(self.child if number >= at_random else lambda: self.space.random(self.rng))
            if candidate is None and not self.found:
                smallest = multiply_adds(self.space.smallest()) / 1e6
                raise UserError(
                    f"no network of the space is within the limits; the smallest has {smallest:.1f} M multiply-adds at "
                    f"{self.space.sizes[-1][0]} x {self.space.sizes[-1][1]}; raise the limit"
                )
            if candidate is not None:
                told(candidate)
        return sorted(self.found.values(), key=lambda c: -c.mAP)

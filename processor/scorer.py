"""How good parts of a supernet are, on training identities that were kept from it. No test image is looked at."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

import torch
from torch import nn

from config import Config
from datasets.loaders import TestLoader, TrainLoader
from datasets.make import make_dataset
from model import ReIDModel
from model.backbones.space import Spec
from processor.evaluate import extract_features
from utils.errors import UserError
from utils.files import write_atomically
from utils.metrics import evaluate

CALIBRATION = 8  # batches that a candidate's batch norm statistics come from


def without_test(cfg: Config, directory: Path) -> Config:
    """The settings for a dataset whose test side is the held-out training identities: a CSV, written to the directory,
    that lists nobody of the test split, so that whoever trains and tests with these settings cannot look there. Its
    name follows from what is in it: other people are another dataset.

    Raises UserError when no identities were held out.
    """
    if not cfg.data.holdout_ids:
        raise UserError("networks are scored on identities that were kept out of training; give --holdout-ids 20")
    dataset, text = make_dataset(cfg), io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("path", "pid", "split") + ("camid",) * dataset.cameras)
    for split, samples in (("train", dataset.train), ("test", dataset.heldout)):
        for s in samples:
            rows.writerow((Path(s.path).absolute(), s.pid, split) + (s.camid,) * dataset.cameras)
    content = text.getvalue().encode(errors="surrogateescape")
    file = directory.absolute() / f"people-{hashlib.sha256(content).hexdigest()[:8]}.csv"
    write_atomically(file, lambda temporary: temporary.write_bytes(content))
    elsewhere = {"dataset": str(file), "test_dataset": "", "protocol": "auto"}
    return cfg.replace(**elsewhere, holdout_ids=0, train_ids=0, test_ids=0)


class Scorer:
    """mAP of a supernet's parts on the test side of its settings, their batch norm statistics counted anew.

    The statistics come from the first training batches, the same ones for every candidate, without augmentation.
    """

    def __init__(self, cfg: Config, model: ReIDModel, device: torch.device):
        self.cfg, self.model, self.device = cfg, model, device
        dataset = make_dataset(cfg)
        self.query, self.gallery = TestLoader(cfg, dataset.query, "query"), TestLoader(cfg, dataset.gallery, "gallery")
        plain = cfg.replace(pad=0, **{name: 0.0 for name in cfg.to_dict() if name.endswith("_prob")})
        loader = TrainLoader(plain, dataset.train)
        batches = loader.epoch(0, device)
        self.batches = [images for images, _ in (next(batches) for _ in range(min(CALIBRATION, len(loader))))]
        batches.close()

    def __call__(self, spec: Spec) -> float:
        """mAP in per cent."""
        self.model.backbone.chosen = spec
        recalibrate(self.model, self.batches)
        query, gallery = (extract_features(self.cfg, self.model, x, self.device)[0] for x in (self.query, self.gallery))
        ids = (self.query.pids, self.gallery.pids, self.query.camids, self.gallery.camids)
        return 100 * evaluate(query, gallery, *ids, metric=self.cfg.eval.metric).mAP


@torch.no_grad()
def recalibrate(model: ReIDModel, batches: list[torch.Tensor]) -> None:
    """Give all batch norms the mean statistics of these batches (B, 3, H, W), for the network that is chosen."""
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

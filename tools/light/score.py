"""Scores of parts of a supernet, on training identities that it was not trained on. No test image is read."""

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
from model.backbones.searchable import Spec
from processor.evaluate import extract_features
from utils.errors import UserError
from utils.files import write_atomically
from utils.metrics import evaluate

CALIBRATION = 8  # batches from which a candidate's batch norm statistics are computed


def use_heldout_as_test(cfg: Config, directory: Path) -> Config:
    """The settings with a dataset whose test split is the held-out training identities.

    The dataset is a CSV file in `directory` that lists no image of the real test split, so none can be read with these
    settings. Its name depends on its contents. Raises UserError without --holdout-ids.
    """
    if not cfg.data.holdout_ids:
        raise UserError("networks are scored on identities held out from training; give --holdout-ids 20")
    dataset, text = make_dataset(cfg), io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("path", "pid", "split") + ("camid",) * dataset.cameras)
    for split, samples in (("train", dataset.train), ("test", dataset.heldout)):
        for s in samples:
            rows.writerow((Path(s.path).absolute(), s.pid, split) + (s.camid,) * dataset.cameras)
    content = text.getvalue().encode(errors="surrogateescape")
    file = directory.absolute() / f"people-{hashlib.sha256(content).hexdigest()[:8]}.csv"
    write_atomically(file, lambda temporary: temporary.write_bytes(content))
    cfg = cfg.replace(dataset=str(file), test_dataset="", protocol="auto")
    return cfg.replace(holdout_ids=0, train_ids=0, test_ids=0)


class Scorer:
    """mAP in percent of parts of a supernet on the test split of the settings.

    Batch norm statistics are computed for each part, on the same training batches without augmentation.
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
        self.model.backbone.select(spec)
        recalibrate(self.model, self.batches)
        query, gallery = (extract_features(self.cfg, self.model, x, self.device)[0] for x in (self.query, self.gallery))
        ids = (self.query.pids, self.gallery.pids, self.query.camids, self.gallery.camids)
        return 100 * evaluate(query, gallery, *ids, metric=self.cfg.eval.metric).mAP


@torch.no_grad()
def recalibrate(model: ReIDModel, batches: list[torch.Tensor]) -> None:
    """Set the statistics of all batch norms to their mean over batches (B, 3, H, W), for the selected network."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, not a moving average
    model.train()
    for images in batches:
        model(images)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum

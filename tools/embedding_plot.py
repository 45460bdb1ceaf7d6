"""Draw embeddings as points: `python tools/embedding_plot.py [CKPT] [--ids 20] [--method tsne|pca]`.

All test images, queries and gallery, of some identities: a colour an identity, a marker a camera. `tsne` keeps
neighbours together, and the distances between groups mean little; `pca` keeps large distances. Own pictures are given
as in a test: `--test-dataset path/to/pictures` (with `--test-share 1` all of their identities may be chosen).
Writes a PNG, and a CSV of the coordinates beside it.
"""

from __future__ import annotations

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from datasets.base import Sample
from datasets.loaders import TestLoader
from datasets.make import make_test_set, short_name, test_name
from processor.evaluate import extract_features
from processor.test import parse_test, prepare_test
from tools.embedding_picture import draw_points
from utils.errors import UserError, run
from utils.files import write_atomically
from utils.logging import log


@dataclass
class EmbeddingConfig(Config):
    ids: int = 20  # identities to draw, chosen by --seed
    method: Literal["tsne", "pca"] = "tsne"  # how the embedding becomes two numbers; tsne needs scikit-learn
    output: str = ""  # file of the picture; empty: results/embedding_METHOD_DATASET.png in the run's directory

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.ids < 1:
            yield f"--ids must be at least 1, not {self.ids}"


def tsne(features: torch.Tensor, seed: int) -> np.ndarray:
    """(N, D) to (N, 2) by t-SNE (van der Maaten and Hinton, JMLR 2008), begun at the principal components.

    Raises UserError without scikit-learn, and for fewer than 4 points.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError("--method tsne needs scikit-learn: pip install scikit-learn; or take --method pca") from error
    if len(features) < 4:
        raise UserError(f"t-SNE of {len(features)} images says nothing; take more --ids, or --method pca")
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.cpu().numpy())


def pca(features: torch.Tensor) -> tuple[np.ndarray, list[float]]:
    """(N, D) to (N, 2), the first two principal components, and the share of the variance that each of them has.

    The signs are such that the point farthest out is on the positive side.
    """
    centred = (features - features.mean(0)).double().cpu()
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    points = F.pad(left * sizes, (0, 2))[:, :2]  # one image, or one number an image, has fewer components
    points = points * points.gather(0, points.abs().argmax(0, keepdim=True)).sign()
    shares = F.pad(sizes.square() / sizes.square().sum().clamp(min=1e-12), (0, 2))[:2]
    return points.numpy().astype(np.float32), shares.tolist()


def chosen_images(loader: TestLoader, pids: np.ndarray) -> TestLoader:
    """Those of a split that show these identities."""
    kept = np.flatnonzero(np.isin(loader.pids, pids))
    part = loader.part(0, 1)
    part.samples = [loader.samples[i] for i in kept]
    part.rows, part.pids, part.camids = (getattr(loader, name)[kept] for name in ("rows", "pids", "camids"))
    return part


def write_points(path: Path, points: np.ndarray, samples: list[tuple[str, Sample]]) -> None:
    """A line a point: its coordinates, identity, camera, split and file."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.writer(file)
            rows.writerow(["x", "y", "pid", "camid", "split", "path"])
            for (x, y), (split, s) in zip(points.tolist(), samples, strict=True):
                rows.writerow([f"{x:.5f}", f"{y:.5f}", s.pid, s.camid, split, s.path])

    write_atomically(path, write)


def main() -> None:
    cfg, stored = parse_test(None, os.environ, "embedding_plot.py [CKPT]", EmbeddingConfig)
    test = prepare_test(cfg, stored)
    dataset = make_test_set(cfg)  # for the names
    every = np.setdiff1d(test.query.pids, [0])
    pids = np.random.default_rng(cfg.run.seed).permutation(every)[: cfg.ids]
    loaders = {name: chosen_images(getattr(test, name), pids) for name in ("query", "gallery")}
    loaders = {name: loader for name, loader in loaders.items() if loader.samples}
    features = [extract_features(test.cfg, test.model, x, test.device, cfg.eval.flip) for x in loaders.values()]
    rows = torch.cat([pair[1] if cfg.eval.flip else pair[0] for pair in features])
    if not torch.isfinite(rows).all():
        raise UserError("the features are not finite, so there is nothing to draw; the model has diverged")
    rows = F.normalize(rows) if cfg.eval.metric == "cosine" else rows
    points, shares = (tsne(rows, cfg.run.seed), None) if cfg.method == "tsne" else pca(rows)
    samples = [(name, s) for name, loader in loaders.items() for s in loader.samples]
    name = f"embedding_{cfg.method}_{short_name(test_name(cfg))}.png"
    path = Path(cfg.output or test.directory / "results" / name)
    named = {pid: dataset.called(pid) for pid in sorted(pids.tolist())}
    title = f"{len(points)} test images of {len(pids)} of {len(every)} identities of {dataset.name}"
    draw_points(path, points, [s for _, s in samples], named, dataset.cameras, title, shares)
    write_points(path.with_suffix(".csv"), points, samples)
    log.info("%d images of %d identities: %s and %s", len(points), len(pids), path, path.with_suffix(".csv").name)


if __name__ == "__main__":
    run(main)

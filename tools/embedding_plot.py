"""Draw embeddings as points: `python tools/embedding_plot.py [CKPT] [--ids 20] [--method tsne|pca]`.

Draws all query and gallery images of some test identities, with one color per identity and one marker per camera.
`tsne` keeps neighbors together, but distances between groups mean little; `pca` keeps large distances. For your own
pictures, use `--test-dataset path/to/pictures` (add `--test-share 1` to choose from all of their identities).
Writes a PNG, and a CSV file of the coordinates next to it.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.base import Sample
from datasets.loaders import TestLoader
from datasets.make import short_name, test_name
from processor.evaluate import extract_features
from processor.test import parse_test, prepare_test
from utils.errors import UserError, run
from utils.files import write_atomically, write_csv
from utils.logging import log
from utils.lookup import package
from utils.plots import plain, shorten

MARKERS = "osD^vP*X<>phd8H"  # filled markers, which differ in outline
MOST_NAMED = 40  # most identities in the legend


@dataclass
class Options:
    ids: int = 20  # number of identities to draw, chosen by --seed
    method: Literal["tsne", "pca"] = "tsne"  # projection to two dimensions; tsne needs scikit-learn
    output: str = ""  # file of the picture (empty: results/embedding_METHOD_DATASET.png in the run's directory)


def tsne(features: torch.Tensor, seed: int) -> np.ndarray:
    """(N, D) to (N, 2) by t-SNE (van der Maaten and Hinton, JMLR 2008), starting from the principal components.

    Raises UserError without scikit-learn, and for fewer than 4 points.
    """
    make = package("sklearn.manifold", "--method tsne, unlike --method pca,", "scikit-learn").TSNE
    if len(features) < 4:
        raise UserError(f"t-SNE needs at least 4 images, not {len(features)}; use more --ids, or --method pca")
    perplexity = min(30.0, (len(features) - 1) / 3)
    return make(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.cpu().numpy())


def pca(features: torch.Tensor) -> tuple[np.ndarray, list[float]]:
    """(N, D) to (N, 2), the first two principal components, and the share of the variance of each.

    Signs are chosen so that the farthest point is on the positive side.
    """
    left, sizes, _ = torch.linalg.svd((features - features.mean(0)).double().cpu(), full_matrices=False)
    points = F.pad(left * sizes, (0, 2))[:, :2]  # one image, or embeddings of width 1, have fewer components
    points = points * points.gather(0, points.abs().argmax(0, keepdim=True)).sign()
    shares = F.pad(sizes.square() / sizes.square().sum().clamp(min=1e-12), (0, 2))[:2]
    return points.numpy().astype(np.float32), shares.tolist()


def draw_points(
    path: Path, points: np.ndarray, samples: Sequence[Sample], names: Mapping[int, str], cameras: bool, title: str,
    shares: Sequence[float] | None = None, camera_names: Mapping[int, str] = {},
) -> None:  # fmt: skip
    """Write a PNG of points (N, 2), one per sample, with the name of each identity above its points.

    names: pid to name of all drawn identities. cameras: whether they are known. shares: of the variance, for the labels
    of principal components.
    """
    pids, camids = np.array([s.pid for s in samples]), np.array([s.camid for s in samples])
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"].colors
    if len(names) > 20:  # hues around the circle in three shades
        shades = np.resize([0.95, 0.7, 0.45], len(names))[:, None]
        colours = map(tuple, colormaps["hsv"](np.arange(len(names)) / len(names))[:, :3] * shades)
    colours = dict(zip(names, colours, strict=False))
    known = cameras and len(set(camids)) <= len(MARKERS)
    markers = dict(zip(np.unique(camids).tolist(), MARKERS if known else "o" * len(samples), strict=False))
    figure = Figure(figsize=(11, 7.6), dpi=110, layout="constrained")
    axis = figure.subplots()
    for camid, marker in markers.items():
        here = camids == camid
        colour = [colours[pid] for pid in pids[here]]
        axis.scatter(*points[here].T, s=42, c=colour, marker=marker, edgecolors="white", linewidths=0.5)
    for pid, name in names.items():
        x, y = points[pids == pid].T
        axis.annotate(
            plain(shorten(name.removeprefix("pid "), 13)), (np.median(x), np.quantile(y, 0.8)), (0, 6),
            textcoords="offset points", fontsize=8, weight="bold", ha="center", color=[0.6 * c for c in colours[pid]],
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
    axis.set_title(plain(title), fontsize=10, loc="left")
    axis.set_aspect("equal", adjustable="datalim")
    if shares is None:
        axis.set(xticks=[], yticks=[])  # coordinates of t-SNE have no unit
    else:
        axis.set_xlabel(f"first principal component, {100 * shares[0]:.0f} % of the variance", fontsize=9)
        axis.set_ylabel(f"second, {100 * shares[1]:.0f} %", fontsize=9)

    def legend(place: str, title: str, entries: Sequence[tuple[str, object, str]]) -> None:
        dots = [Line2D([], [], marker=m, color=c, label=n, linestyle="", markersize=7) for m, c, n in entries]
        style = {"frameon": False, "fontsize": 8, "title_fontsize": 9, "alignment": "left", "ncols": 2}
        figure.legend(handles=dots, title=title, loc=place, **style)

    few = len(names) <= MOST_NAMED
    entries = [("o", colours[pid], plain(shorten(name, 11))) for pid, name in names.items() if few]
    legend("outside right upper", "identity" if few else f"{len(names)} identities, one color each", entries)
    unknown = "more cameras than markers:\nnot shown" if cameras else "cameras unknown"
    entries = [
        (marker, "#555555", plain(shorten(camera_names.get(camid, f"cam {camid}"), 11)))
        for camid, marker in markers.items()
        if known
    ]
    legend("outside right lower", "camera" if known else unknown, entries)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def main() -> None:
    cfg, options, stored = parse_test(None, os.environ, __doc__, Options, {"ids": "[1, inf)"})
    test = prepare_test(cfg, stored)
    every = np.setdiff1d(test.query.pids, [0])
    pids = np.random.default_rng(cfg.run.seed).permutation(every)[: options.ids].tolist()
    splits = (("query", test.query), ("gallery", test.gallery))
    samples = [(name, s) for name, loader in splits for s in loader.samples if s.pid in pids]
    loader = TestLoader(test.cfg.replace(disk_gb=0), [s for _, s in samples], "images")
    features = extract_features(test.cfg, test.model, loader, test.device, cfg.eval.flip)[cfg.eval.flip]
    if not torch.isfinite(features).all():
        raise UserError("the features are not finite, so there is nothing to draw; the model has diverged")
    features = F.normalize(features) if cfg.eval.metric == "cosine" else features
    points, shares = (tsne(features, cfg.run.seed), None) if options.method == "tsne" else pca(features)
    name = f"embedding_{options.method}_{short_name(test_name(cfg))}.png"
    path = Path(options.output or test.directory / "results" / name)
    names = {pid: test.dataset.name_of(pid) for pid in sorted(pids)}
    title = f"{len(points)} test images of {len(pids)} of {len(every)} identities of {test.dataset.name}"
    draw_points(
        path, points, [s for _, s in samples], names, test.dataset.cameras, title, shares, test.dataset.camera_names
    )
    rows = [
        (f"{x:.5f}", f"{y:.5f}", s.pid, s.camid, split, s.path, names[s.pid], test.dataset.camera_of(s.camid))
        for (x, y), (split, s) in zip(points, samples, strict=True)
    ]
    columns = ("x", "y", "pid", "camid", "split", "path", "name", "camera")
    write_csv(path.with_suffix(".csv"), [columns, *rows])
    log.info("%d images of %d identities: %s and %s", len(points), len(pids), path, path.with_suffix(".csv").name)


if __name__ == "__main__":
    run(main)

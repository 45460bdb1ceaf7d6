"""The embedding plot: coordinates, the choice of images, the CSV and the picture."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import program, refused, save_model
from matplotlib.figure import Figure

from datasets.base import Sample
from datasets.make import make_test_set
from tools.embedding_plot import MARKERS, draw_points, pca, tsne


def test_pca_is_that_of_the_covariance_s_eigenvectors_and_tsne_keeps_identities_together():
    rng, pids = np.random.default_rng(0), np.repeat(np.arange(5), 8)
    features = torch.from_numpy(10 * rng.normal(size=(5, 16))[pids] + rng.normal(size=(40, 16))).float()
    points, shares = pca(features)
    x = features.double().numpy()
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    for number in (0, 1):
        expected = x @ vectors[:, -1 - number]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(points[:, number], expected, atol=1e-4)
        assert shares[number] == pytest.approx(values[-1 - number] / values.sum())
    for shape in ((1, 4), (3, 1), (4, 4)):
        points, shares = pca(torch.ones(shape))
        assert points.shape == (shape[0], 2) and not points.any() and shares == [0, 0]
    pytest.importorskip("sklearn")
    points = tsne(features, 0)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(pids), np.inf))
    assert (pids[distance.argmin(1)] == pids).all()
    assert np.isfinite(tsne(features[:4], 0)).all()


def test_each_identity_has_a_colour_each_camera_a_marker_and_no_word_is_cut(tmp_path, monkeypatch):
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    for count, cameras, known, name in (
        (1, 1, True, "pid {}"), (40, 15, True, "W" * 30 + "{}"), (3, 2, True, "_$\udce9{}"), (60, 6, True, "{}"),
        (3, len(MARKERS) + 1, True, "pid {}"), (3, 3, False, "pid {}"),
    ):  # fmt: skip
        samples = [Sample("x.jpg", pid, camid) for pid in range(1, count + 1) for camid in range(1, cameras + 1)]
        names = {pid: name.format(pid) for pid in range(1, count + 1)}
        points = np.random.default_rng(0).normal(size=(len(samples), 2))
        draw_points(tmp_path / "p.png", points, samples, names, known, "a title")
        figure, marked = kept[-1], known and cameras <= len(MARKERS)
        axis, (identities, cams) = figure.axes[0], figure.legends
        assert len({tuple(c) for dots in axis.collections for c in dots.get_facecolors()[:, :3].round(3)}) == count
        assert len(axis.collections) == cameras and len(axis.texts) == count
        assert len(identities.get_texts()) == (count if count <= 40 else 0)
        assert len(cams.get_texts()) == (cameras if marked else 0)
        assert (cams.get_title().get_text() == "camera") == marked
        boxes = [legend.get_window_extent() for legend in figure.legends]
        assert all(box.x0 > axis.bbox.x1 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
        assert not boxes[0].overlaps(boxes[1])


def test_the_csv_has_every_test_image_of_the_identities_and_no_distractor(tiny, tmp_path, monkeypatch):
    save_model(tiny)
    where = ["tools/embedding_plot.py", "--log-dir", tiny.run.log_dir]

    def draw(name: str, *args: object) -> list[dict[str, str]]:
        shown = program(*where, *args, "--output", tmp_path / f"{name}.png")
        assert shown.returncode == 0, shown.stderr
        assert cv2.imread(str(tmp_path / f"{name}.png")) is not None
        with open(tmp_path / f"{name}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    dataset = make_test_set(tiny)
    expected = {(s.path, str(s.pid), str(s.camid), "query") for s in dataset.query}
    expected |= {(s.path, str(s.pid), str(s.camid), "gallery") for s in dataset.gallery if s.pid > 0}
    rows = draw("all", "--method", "pca", "--flip")
    assert {(r["path"], r["pid"], r["camid"], r["split"]) for r in rows} == expected and len(rows) == 36
    assert np.isfinite([[float(r["x"]), float(r["y"])] for r in rows]).all()
    chosen = []
    for seed in (0, 1, 2, 0):
        rows = draw("some", "--method", "pca", "--ids", 2, "--seed", seed)
        chosen.append(frozenset(row["pid"] for row in rows))
    assert chosen[0] == chosen[3] and len(set(chosen)) > 1 and {len(pids) for pids in chosen} == {2}

    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    refused(program(*where), "pip install scikit-learn", "--method pca")
    monkeypatch.undo()
    pytest.importorskip("sklearn")
    assert len(draw("tsne")) == 36
    refused(program(*where, "--ids", 0), "--ids")
    refused(program(*where, "--test-dataset", tmp_path / "gone"), tmp_path / "gone")
    base = Path(tiny.data.data_root) / "demo"
    for path in [*(base / "query").glob("*"), *(base / "bounding_box_test").glob("*")]:
        if not path.name.startswith(("0008_c1s1_000090", "0008_c2s1_000000", "0008_c2s1_000090")):
            path.unlink()
    refused(program(*where), "t-SNE of 3 images", "--method pca")

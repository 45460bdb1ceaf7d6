"""The embedding plot: coordinates, the choice of images, the CSV and the picture."""

import csv
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers import done, program, refused, save_model

from datasets.make import make_test_set
from tools.embedding_plot import pca, tsne


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


@pytest.mark.slow
def test_the_csv_has_every_test_image_of_the_identities_and_no_distractor(tiny, tmp_path, monkeypatch):
    save_model(tiny)
    where = ["tools/embedding_plot.py", "--log-dir", tiny.run.log_dir]

    def draw(name: str, *args: object) -> list[dict[str, str]]:
        done(*where, *args, "--output", tmp_path / f"{name}.png")
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

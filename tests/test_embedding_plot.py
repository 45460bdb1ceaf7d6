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

from config import Config
from datasets.base import Sample
from datasets.loaders import make_test_loaders
from datasets.make import make_test_set
from tools.embedding_picture import MARKERS, above, draw_points, palette, short
from tools.embedding_plot import chosen_images, pca, tsne


def people(count: int, images: int = 8, width: int = 16) -> tuple[torch.Tensor, np.ndarray]:
    """Features that are near the centre of their identity, and the identities."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(count, width)) * 10
    pids = np.repeat(np.arange(count), images)
    return torch.from_numpy(centres[pids] + rng.normal(size=(len(pids), width))).float(), pids


# ---- coordinates


def test_pca_is_that_of_the_covariance_s_eigenvectors():
    features, _ = people(5)
    points, shares = pca(features)
    x = features.double().numpy()
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    for number in (0, 1):
        expected = x @ vectors[:, -1 - number]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(points[:, number], expected, atol=1e-4)
        assert shares[number] == pytest.approx(values[-1 - number] / values.sum())
    assert points.dtype == np.float32 and points.shape == (40, 2)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (3, 1), (4, 4)])
def test_pca_of_few_or_equal_points_is_finite(shape):
    points, shares = pca(torch.ones(shape))
    assert points.shape == (shape[0], 2) and not points.any() and shares == [0, 0]


def test_tsne_keeps_identities_together_and_gives_the_same_for_a_seed():
    pytest.importorskip("sklearn")
    features, pids = people(4)
    points = tsne(features, 0)
    np.testing.assert_array_equal(points, tsne(features, 0))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(pids), np.inf))
    assert (pids[distance.argmin(1)] == pids).all()
    assert np.isfinite(tsne(features[:4], 0)).all()


# ---- images


def test_the_chosen_images_are_those_of_the_identities_and_keep_their_rows(tiny):
    dataset, query, gallery = make_test_loaders(tiny, make_test_set(tiny))
    pids = np.array([8, 10])
    for loader, samples in ((query, dataset.query), (gallery, dataset.gallery)):
        part = chosen_images(loader, pids)
        assert part.samples == [s for s in samples if s.pid in (8, 10)]
        assert part.pids.tolist() == [s.pid for s in part.samples]
        assert part.camids.tolist() == [s.camid for s in part.samples]
        whole = torch.cat(list(loader.batches(torch.device("cpu"))))
        kept = [i for i, s in enumerate(samples) if s.pid in (8, 10)]
        assert torch.equal(torch.cat(list(part.batches(torch.device("cpu")))), whole[kept])
        assert len(loader.samples) == len(samples), "the loader itself stays whole"


# ---- the picture


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    return kept


def picture(path: Path, count: int, cameras: int, known: bool = True, name: str = "pid {}") -> None:
    rng = np.random.default_rng(0)
    samples = [Sample("x.jpg", pid, camid) for pid in range(1, count + 1) for camid in range(1, cameras + 1)]
    names = {pid: name.format(pid) for pid in range(1, count + 1)}
    draw_points(path, rng.normal(size=(len(samples), 2)), samples, names, known, "a title", None)


@pytest.mark.parametrize(
    "count, cameras, name",
    [(1, 1, "pid {}"), (20, 6, "pid {}"), (40, 15, "W" * 30 + "{}"), (3, 2, "_$\udce9{}"), (60, 6, "{}")],
)
def test_each_identity_has_a_colour_each_camera_a_marker_and_no_word_is_cut(tmp_path, figures, count, cameras, name):
    picture(tmp_path / "p.png", count, cameras, name=name)
    (figure,) = figures
    axis, legends = figure.axes[0], {legend.get_title().get_text(): legend for legend in figure.legends}
    assert len(axis.collections) == cameras, "a marker a camera"
    colours = {tuple(c) for dots in axis.collections for c in dots.get_facecolors()[:, :3].round(3)}
    assert len(colours) == count
    assert len(legends["camera"].get_texts()) == cameras
    assert ("identity" in legends) == (count <= 40)
    if count <= 40:
        assert len(legends["identity"].get_texts()) == count
    assert len(axis.texts) == count
    for box in [legend.get_window_extent() for legend in figure.legends]:
        assert box.x0 > axis.bbox.x1 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    boxes = [legend.get_window_extent() for legend in figure.legends]
    assert len(boxes) == 1 or not boxes[0].overlaps(boxes[1])
    image = cv2.imread(str(tmp_path / "p.png"))
    assert image.shape[1] == round(figure.bbox.width)


@pytest.mark.parametrize("cameras, known, words", [(len(MARKERS) + 1, True, "more cameras"), (3, False, "unknown")])
def test_cameras_that_cannot_be_told_apart_are_said_to_be_so(tmp_path, figures, cameras, known, words):
    picture(tmp_path / "p.png", 3, cameras, known)
    assert any(words in text.get_text() for text in figures[0].texts)
    assert [legend.get_title().get_text() for legend in figures[0].legends] == ["identity"]


@pytest.mark.parametrize("count", [1, 10, 11, 20, 21, 100])
def test_all_colours_of_a_palette_differ(count):
    assert len({tuple(np.round(c, 3)) for c in palette(count)}) == count


def test_names_stand_above_their_points_and_long_ones_keep_both_ends():
    points = np.array([[0.0, 0], [1, 1], [2, 0], [1, 0.5], [90, 90]])
    assert above(points) == (1.0, 1.0), "one point far off moves no name"
    assert above(np.array([[3.0, 4]])) == (3.0, 4.0)
    assert short("short", 8) == "short" and short("a long name 7", 8) == "a l…me 7"


# ---- the tool


@pytest.fixture
def trained(tiny: Config) -> Config:
    save_model(tiny)
    return tiny


def read_points(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_the_csv_has_every_test_image_of_the_identities_and_no_distractor(trained, method):
    if method == "tsne":
        pytest.importorskip("sklearn")
    shown = program("tools/embedding_plot.py", "--log-dir", trained.run.log_dir, "--method", method, "--flip")
    assert shown.returncode == 0, shown.stderr
    path = Path(trained.run.log_dir) / "demo" / "results" / f"embedding_{method}_demo.png"
    assert f"36 images of 4 identities: {path} and {path.stem}.csv" in shown.stdout
    assert cv2.imread(str(path)) is not None
    rows = read_points(path.with_suffix(".csv"))
    dataset = make_test_set(trained)
    expected = {(s.path, str(s.pid), str(s.camid), "query") for s in dataset.query}
    expected |= {(s.path, str(s.pid), str(s.camid), "gallery") for s in dataset.gallery if s.pid > 0}
    assert {(r["path"], r["pid"], r["camid"], r["split"]) for r in rows} == expected and len(rows) == 36
    assert np.isfinite([[float(r["x"]), float(r["y"])] for r in rows]).all()


def test_fewer_identities_are_chosen_by_the_seed(trained, tmp_path):
    def chosen(seed: int, name: str) -> set[str]:
        args = ["--ids", "2", "--method", "pca", "--seed", seed, "--output", tmp_path / f"{name}.png"]
        assert program("tools/embedding_plot.py", "--log-dir", trained.run.log_dir, *args).returncode == 0
        return {row["pid"] for row in read_points(tmp_path / f"{name}.csv")}

    assert chosen(0, "a") == chosen(0, "b") and len(chosen(0, "c")) == 2
    assert len({frozenset(chosen(seed, "d")) for seed in range(6)}) > 1


def test_own_people_are_called_by_their_names(trained, tmp_path, figures):
    for who in ("anna", "bert", "carla"):
        for number in range(3):
            (tmp_path / "own" / who).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 255, (32, 16, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "own" / who / f"{number}.jpg"), noise)
    where = [
        "tools/embedding_plot.py",
        "--log-dir",
        trained.run.log_dir,
        "--method",
        "pca",
        "--output",
        tmp_path / "o.png",
    ]
    shown = program(*where, "--test-dataset", tmp_path / "own", "--test-share", "1")
    assert shown.returncode == 0, shown.stderr
    assert "9 images of 3 identities" in shown.stdout
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["anna", "bert", "carla"]
    assert any("cameras unknown" in text.get_text() for text in figures[0].texts)


def test_without_scikit_learn_one_sentence_names_it_and_pca_works(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    where = ["tools/embedding_plot.py", "--log-dir", trained.run.log_dir]
    refused(program(*where), "pip install scikit-learn", "--method pca")
    assert program(*where, "--method", "pca").returncode == 0


def test_bad_input_of_the_embedding_plot_gets_a_sentence(trained, tmp_path):
    where = ["tools/embedding_plot.py", "--log-dir", trained.run.log_dir]
    refused(program("tools/embedding_plot.py", "--log-dir", tmp_path / "none"), "train.py")
    refused(program(*where, "--ids", "0"), "--ids")
    refused(program(*where, "--test-dataset", tmp_path / "gone"), tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    refused(program(*where, "--test-dataset", tmp_path / "empty"), tmp_path / "empty")
    pytest.importorskip("sklearn")
    base = Path(trained.data.data_root) / "demo"
    for path in [*(base / "query").glob("*"), *(base / "bounding_box_test").glob("*")]:
        if not path.name.startswith("0008_c1") and not path.name.startswith("0008_c2s1_000000"):
            path.unlink()
    (base / "bounding_box_test" / "0008_c1s1_000001_00.jpg").unlink()
    refused(program(*where), "t-SNE of 3 images", "--method pca")

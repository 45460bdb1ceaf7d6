"""Curves of runs: what is read from metrics.jsonl, what is drawn of it, and the tool."""

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import done
from matplotlib import rc_context
from matplotlib.figure import Figure

from config import Config
from datasets.image_size import measure_ratio
from processor import do_train
from tools.curves import read_history
from tools.report.page import letterbox
from utils.errors import UserError
from utils.fonts import drawable, installed_glyphs
from utils.pictures import RIGHT, Tile, draw_rows
from utils.plots import loss_parts, plain, plot_curves


def entry(epoch: int, mAP: float | None = None) -> dict:
    values = {"epoch": epoch}
    if epoch:
        values |= {"loss": 6.0 / epoch, "id": 4.0 / epoch, "triplet": 2.0 / epoch, "accuracy": 0.1 * epoch}
        values |= {"lr": 10.0**-epoch, "images_per_second": 100.0 + epoch}
    if mAP is not None:
        values["scores"] = {"plain": {"mAP": mAP, "rank1": mAP + 10, "valid_queries": 5}}
    return values


def write_run(directory: Path, entries: list[dict], tail: str = "") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries) + tail)
    return directory


THREE = [entry(0, 2.0), entry(1), entry(2, 40.0), entry(3, 50.0)]


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """All figures that are written, to look into."""
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    return kept


def panel(figure: Figure, title: str):
    return next(axis for axis in figure.axes if axis.get_title() == title)


def drawn(figure: Figure, title: str) -> list[list[tuple]]:
    return [list(zip(*line.get_data(), strict=True)) for line in panel(figure, title).get_lines()]


def test_the_history_is_what_was_written_and_damage_is_reported(tmp_path):
    run = write_run(tmp_path / "a", [*THREE, entry(2, 45.0)])  # an epoch that occurs twice: the later line counts
    assert read_history(run) == ([*THREE[:2], entry(2, 45.0), THREE[3]], "")
    for tail in ('{"epoch": 4, "loss": 1.', "\0\0\0", "[1]\n", '{"loss": 1}\n', '{"epoch": null}\n', "\xff\n"):
        run = write_run(tmp_path / "a", THREE, tail=tail)
        history, problem = read_history(run)
        assert history == THREE and str(run / "metrics.jsonl") in problem and "last line" in problem
    lines = (run / "metrics.jsonl").read_text().splitlines()
    broken = "\n".join([lines[0], lines[1][:9], *lines[2:]])
    for text, word in ((broken, "line 2"), ("\n\n", "no epoch"), ('{"epoch": 1, "lo', "no epoch")):
        (run / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match=rf"metrics\.jsonl.*{word}"):
            read_history(run)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_history(tmp_path / "nowhere")


def test_one_run_is_drawn_with_the_parts_of_its_loss_and_all_its_scores(tmp_path, figures):
    last = entry(3, 50.0)
    last["scores"]["flip"] = {"mAP": 55.0, "rank1": 66.0}
    plot_curves({"demo": [*THREE[:3], last]}, tmp_path / "c.png")
    assert cv2.imread(str(tmp_path / "c.png")) is not None
    (figure,) = figures
    assert drawn(figure, "loss")[0] == [(1, 6.0), (2, 3.0), (3, 2.0)]
    assert {tuple(points[0]) for points in drawn(figure, "loss")} == {(1, 6.0), (1, 4.0), (1, 2.0)}
    assert drawn(figure, "mAP (%)") == [[(0, 2.0), (2, 40.0), (3, 50.0)], [(3, 55.0)]]
    assert drawn(figure, "Rank-1 (%)") == [[(0, 12.0), (2, 50.0), (3, 60.0)], [(3, 66.0)]]
    assert drawn(figure, "training speed (images/s)") == [[(1, 101.0), (2, 102.0), (3, 103.0)]]
    assert panel(figure, "learning rate").get_yscale() == "log"
    words = [text.get_text() for text in panel(figure, "loss").get_legend().get_texts()]
    assert sorted(words) == ["id", "sum", "triplet"]


def test_a_run_of_this_program_is_drawn(tiny: Config, figures):
    run = do_train(tiny.replace(clip_grad=1.0, by_camera=True, center_weight=0.1))  # draws its own after each test
    assert loss_parts(run.history) == ["id", "triplet", "center"]
    shown = done("tools/curves.py", "--log-dir", tiny.run.log_dir)
    assert "curves of demo written" in shown
    assert [x for x, _ in drawn(figures[-1], "loss")[0]] == [1, 2, 3]
    assert [x for x, _ in drawn(figures[-1], "mAP (%)")[0]] == [0, 2, 3]


def shape_of(pixels: np.ndarray) -> float:
    """Height : width of what is pure blue."""
    rows, columns = np.nonzero((pixels[..., 2] > 200) & (pixels[..., :2].max(2) < 50))
    return (np.ptp(rows) + 1) / (np.ptp(columns) + 1)


def test_pictures_keep_their_shape_among_others(tmp_path):
    blue, others = np.array([0, 0, 255], np.uint8), [Tile(np.full((40, 20, 3), 99, np.uint8), "", RIGHT)] * 3
    for height, width in ((32, 32), (20, 60), (90, 30)):
        picture = np.broadcast_to(blue, (height, width, 3))
        drawn = draw_rows(tmp_path / "rows.png", [("", [*others, Tile(picture, "", RIGHT)])], [""] * 4)
        for pixels in (drawn, letterbox(picture, 64, 32)):
            assert abs(np.log(shape_of(pixels) * width / height)) < 0.1
    assert letterbox(picture, 64, 32).shape == (64, 32, 3) and measure_ratio([tmp_path / "rows.png"]) < 1


def test_names_in_any_script_are_drawn_by_a_font_that_has_them_or_escaped(tmp_path):
    code = next(code for code, family in installed_glyphs().items() if family)
    known, unknown = f"José {chr(code)}", "\U0010fffd\udc80\t"
    with rc_context(), warnings.catch_warnings():
        drawable.cache_clear()
        warnings.simplefilter("error")
        assert plain(known) == known and plain("a\nb") == "a\nb" and plain("_$x") == r" _\$x"
        warnings.filterwarnings("ignore", message="some characters")
        assert plain(unknown) == r"\U0010fffd\udc80\t"
        draw_rows(tmp_path / "rows.png", [(known + unknown, [Tile(np.zeros((4, 4, 3), np.uint8), known, RIGHT)])], [""])
    drawable.cache_clear()  # fonts that were added are gone

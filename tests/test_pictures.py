"""Rows of pictures: true shapes, and names in any script."""

import warnings

import numpy as np
from matplotlib import rc_context

from datasets.image_size import measure_ratio
from tools.report.page import letterbox
from utils.fonts import drawable, installed_glyphs
from utils.pictures import RIGHT, Tile, draw_rows
from utils.plots import plain


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

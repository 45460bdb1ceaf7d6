"""The report: its numbers against slow references, its page as a file, and in a browser where there is one."""

import base64
import json
import shutil
from html.parser import HTMLParser
from itertools import pairwise, product
from pathlib import Path

import cv2
import numpy as np
import pytest
import reference
import torch
from conftest import draw
from helpers import done, program, refused, save_model
from torch.nn.functional import normalize

from config import Config
from datasets.base import ReIDDataset
from processor.checkpoint import read_checkpoint, save_checkpoint
from processor.evaluate import Inference
from tools.report.page import BARS, NEAREST, STEPS, camera_table, make_page, pair_values, rank_gallery, thumbnails
from utils.metrics import evaluate_distance
from utils.protocols import evaluate_by_camera
from utils.roc import count_pairs

HOSTILE = '<img src=x onerror=alert(1)> & "O\'Neil" {{data}}'  # a name of a folder
HISTORY = [
    {"epoch": 0, "scores": {"plain": {"mAP": 1.0, "mINP": 0.5, "rank1": 2.0, "valid_queries": 3}}},
    {"epoch": 1, "loss": 2.5, "id": float("nan"), "accuracy": 0.25, "lr": 0.001, "images_per_second": 9.0,
     "data_wait": 0.1},
    {"epoch": 2, "loss": 1.5, "id": 1.0, "accuracy": 0.5, "lr": 0.001, "images_per_second": 9.0},
]  # fmt: skip


def made_test(reranked: bool) -> tuple[Inference, Config, tuple]:
    """Features with ties, queries without a match, distractors; or a matrix of distances, as re-ranking leaves it."""
    rng = np.random.default_rng(1)
    query, gallery = (torch.from_numpy(rng.integers(-2, 3, (n, 3)).astype("f4")) for n in (17, 60))
    ids = (rng.integers(1, 9, 17), rng.integers(0, 7, 60), rng.integers(1, 4, 17), rng.integers(1, 4, 60))
    matrix = torch.from_numpy(rng.integers(0, 20, (17, 60)).astype("f4") / 20) if reranked else None
    return Inference({}, query, gallery, matrix), Config(metric="euclidean"), ids


def test_lists_are_those_of_a_plain_sort():
    for reranked in (False, True):
        inference, cfg, ids = made_test(reranked)
        query_pids, gallery_pids, query_camids, gallery_camids = ids
        distance, slow = inference.distance(cfg, torch.arange(17)).numpy(), []
        for row, pid, camid in zip(distance, query_pids, query_camids, strict=True):
            order = reference.ranked_order(row, pid, camid, gallery_pids, gallery_camids)
            slow.append([(float(row[g]), g, bool(gallery_pids[g] == pid)) for g in order])
        scores = evaluate_distance(torch.from_numpy(distance), *ids)
        for top in (5, 1000):
            for ranked, expected, ap in zip(rank_gallery(cfg, inference, ids, top), slow, scores.ap, strict=True):
                assert ranked.nearest.tolist() == [g for _, g, _ in expected[:top]]
                assert ranked.distance.tolist() == [d for d, _, _ in expected[:top]]
                assert ranked.hits.tolist() == [rank for rank, found in enumerate(expected, 1) if found[2]]
                for side, kind in ((ranked.right, True), (ranked.wrong, False)):
                    found = [(rank, g, d) for rank, (d, g, right) in enumerate(expected, 1) if right == kind]
                    assert side == found[:NEAREST]
                precision = np.arange(1, len(ranked.hits) + 1) / ranked.hits
                assert np.isnan(ap) == (len(precision) == 0)
                assert np.isnan(ap) or ap == pytest.approx(precision.mean())


def test_the_pairs_of_the_page_are_counted_by_their_cosines():
    inference, _, ids = made_test(True)
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    for of_query, spread in ((1, 1.0), (1, 0.01), (1, 0.0), (0, 0.0)):  # around one direction; at last all are equal
        query, gallery = (normalize(x) for x in (of_query * inference.query + 5, spread * noise + 5))
        distance = -(query.double() @ gallery.double().T).numpy()
        kinds = [-np.array(kind) for kind in reference.accepted_pairs(distance, *ids)]
        pairs = pair_values(count_pairs(query, gallery, *ids))
        assert [pairs["positives"], pairs["negatives"]] == [len(k) for k in kinds]
        edges, near = pairs["edges"], 2e-7  # rounding in float32
        assert len(pairs["roc"]["threshold"]) <= BARS * STEPS + 1 and 2 <= len(edges) <= BARS + 1
        for key, bars, kind in zip(("tpr", "fpr"), pairs["bars"], kinds, strict=True):
            for rate, threshold in zip(pairs["roc"][key], pairs["roc"]["threshold"], strict=True):
                assert (kind >= threshold + near).mean() - 1e-9 <= rate <= (kind >= threshold - near).mean() + 1e-9
            assert len(bars) == len(edges) - 1 and sum(bars) == pytest.approx(1)
            for share, (low, high) in zip(bars, pairwise(edges), strict=True):
                most = ((kind >= low - near) & (kind <= high + near)).mean()
                assert ((kind >= low + near) & (kind < high - near)).mean() - 1e-9 <= share <= most + 1e-9


def test_the_camera_table_is_the_scores_of_each_pair_of_cameras():
    for reranked in (False, True):
        inference, cfg, ids = made_test(reranked)
        ids[2][ids[2] == 2] = 1  # no query comes from camera 2
        table = camera_table(cfg, ReIDDataset("tests"), inference, ids)
        assert table["rows"] == [1, 3] and table["columns"] == [1, 2, 3]
        parts = inference.query, inference.gallery
        expected = evaluate_by_camera(*parts, *ids, metric="euclidean", distance=inference.reranked)
        for q, row in zip((1, 3), table["cells"], strict=True):
            for g, cell in zip((1, 2, 3), row, strict=True):
                if scores := expected.get((q, g)):
                    figures = (100 * scores.mAP, 100 * scores.rank(1), scores.num_valid_queries)
                    assert tuple(cell[key] for key in ("mAP", "rank1", "queries")) == pytest.approx(figures)
                else:
                    assert cell is None


# ---- the file


class Scripts(HTMLParser):
    """The texts of script elements by their id, and all tags."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open = dict(attributes).get("id", "program") if tag == "script" else None

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, text):
        if self.open:
            self.texts[self.open] = self.texts.get(self.open, "") + text


def contents(path: Path) -> dict:
    """What a page shows, its pictures under "thumbs"."""
    found = Scripts(path.read_text(encoding="utf-8")).texts
    return json.loads(found["data"]) | {"thumbs": found["thumbs"].split("\n")[1:]}


def report(path: Path, *words: object) -> tuple[dict, str]:
    """What the page shows and what is printed, of a report that is written to `path`."""
    shown = done("tools/report.py", *words, "--output", path, "--heatmaps", 2, "--thumb-height", 32)
    return contents(path), shown


def with_history(checkpoint: Path) -> Path:
    save_checkpoint(checkpoint, read_checkpoint(checkpoint) | {"history": HISTORY, "epoch": 2})
    return checkpoint


def test_nothing_in_values_becomes_markup_and_pictures_come_back_whole(tmp_path):
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    for number, colour in enumerate(colours):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((40, 30, 3), colour[::-1], np.uint8))
    thumbs = thumbnails(sorted(tmp_path.iterdir()), 32, 16, workers=2)
    names = ["</script><script>alert(1)</script>", "<!--", "{{thumbs}}", "\udc80"]
    data = {"title": "</title><script>", "names": names}
    scripts = Scripts(make_page(data, thumbs))
    assert json.loads(scripts.texts["data"]) == data and scripts.tags.count("script") == 3
    start, *rest = scripts.texts["thumbs"].split("\n")
    assert [start + line for line in rest] == thumbs and len(start) > 700
    for thumb, colour in zip(thumbs, colours, strict=True):
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(thumb), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert pixels.shape == (32, 16, 3) and np.abs(pixels[8:24].mean((0, 1)) - colour).max() < 8


def test_a_report_agrees_with_the_test_and_holds_each_picture_once(tiny, tree, tmp_path):
    checkpoint = with_history(save_model(tiny))
    for image in (tree / "demo" / "bounding_box_test").glob("0007_c*"):
        image.unlink()  # the first identity has no match
    for last, switches in (("plain", []), ("flip+rerank", ["--flip", "--rerank"])):
        data, printed = report(tmp_path / "page.html", checkpoint, "--top", 7, *switches)
        assert data["shown"] == last and f"{data['scores'][last]['mAP']:.2f}" in printed
        first, scored = data["queries"][:3], data["queries"][3:]
        assert all(q["ap"] is None and q["hits"] == q["right"] == [] for q in first)
        assert np.mean([q["ap"] for q in scored]) == pytest.approx(data["scores"][last]["mAP"], abs=1e-3)
        right = np.mean([q["hits"][0] == 1 for q in scored])
        assert 100 * right == pytest.approx(data["scores"][last]["rank1"], abs=1e-3)
        images = data["images"]
        assert len(set(images["file"])) == len(images["file"]) == len(data["thumbs"])
        assert Path(images["file"][first[0]["image"]]).name == "0007_c1s1_000090_00.jpg"
        for query in data["queries"]:
            own, *listed = [(images["pid"][i], images["camera"][i]) for i in (query["image"], *query["list"])]
            assert len(listed) == 7 and own not in listed
        assert len(data["heatmaps"]) == 2 and all(1 < len(maps) <= 3 for maps in data["heatmaps"].values())
        assert data["losses"] == ["loss", "id"] and [h["epoch"] for h in data["history"]] == [0, 1, 2]
        assert data["cameras"]["rows"] == [1, 2, 3]
        assert data["counts"] == {"queries": 12, "valid": 9, "identities": 4, "images": 19, "distractors": 1}
    shutil.copy(checkpoint, checkpoint.with_name("best.pth"))
    shown = done("tools/report.py", checkpoint.with_name("best.pth"), "--heatmaps", 0, "--test-ids", 3)
    path = checkpoint.parent / "results" / "report_best_demo_cosine_plain_3ids.html"
    assert f"written to {path}" in shown
    data = contents(path)
    assert data["heatmaps"] == {} and data["counts"]["distractors"] == 0
    assert "first 3 of 4 identities" in data["notes"][0] and "chosen by its score on the test split" in data["notes"][1]


def test_bad_input_is_one_sentence(tiny, tree):
    checkpoint = save_model(tiny)
    refused(program("tools/report.py", checkpoint, "--protocol", "vehicle_id"), "--protocol")
    refused(program("tools/report.py", checkpoint, "--top", 0), "--top")
    for folder in ("query", "bounding_box_test"):
        for image in (tree / "demo" / folder).glob("*.jpg"):
            if not image.name.startswith("0007_c1"):
                image.unlink()
    refused(program("tools/report.py", checkpoint), "no query has a match")


# ---- the browser


@pytest.fixture
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("no Chromium is installed, so no page can be looked at")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright (pip) is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
def test_the_page_works_by_mouse_and_keyboard_wide_and_narrow(browser, tiny, tmp_path):
    people = [HOSTILE, *(f"person {i}" for i in range(12))]
    for number, name in enumerate([*(f"test/{name}" for name in people), "train/x", "train/y"]):
        for camera, shot in product((1, 2, 3), (0, 1)):
            draw(tmp_path / "people" / name / str(camera) / f"{shot}.jpg", number, shot, camera)
    cfg = tiny.replace(dataset=str(tmp_path / "people"), name="demo")
    data, _ = report(tmp_path / "page.html", with_history(save_model(cfg)))
    for width, scheme in ((1280, "light"), (400, "dark")):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        view = context.new_page()
        problems: list[str] = []
        view.on("console", lambda message, kept=problems: kept.append(message.text))
        view.on("pageerror", lambda error, kept=problems: kept.append(str(error)))
        view.on("request", lambda r, kept=problems: r.url.startswith(("file:", "data:")) or kept.append(r.url))
        view.goto((tmp_path / "page.html").as_uri())
        view.wait_for_selector("#training-plots svg")
        assert view.evaluate("document.documentElement.dataset.theme") == scheme
        assert view.locator(".plots svg").count() == 8 and not view.locator("#camera-table").is_hidden()
        look_at_lists(view, data, people)
        look_at_one(view, data)
        assert view.evaluate("document.documentElement.scrollWidth") == width
        assert problems == []
        context.close()


def look_at_lists(view, data: dict, people: list[str]) -> None:
    """Filters, sorting, keys; rows far from the screen are not drawn."""
    total, rows, focused = len(data["queries"]), view.locator(".row"), "document.activeElement.dataset.place"
    assert view.locator("#count").inner_text() == f"{total} of {total} queries"
    assert 0 < rows.count() < total, "all rows are drawn at once"
    shown = [q["ap"] for q in data["queries"]]
    assert f"AP {min(shown):.1f} %" in view.locator(".row[data-place='0']").inner_text()
    view.select_option("#sort", "best")
    assert f"AP {max(shown):.1f} %" in view.locator(".row[data-place='0']").inner_text()
    view.keyboard.press("Tab")
    view.evaluate("document.activeElement.blur()")
    view.keyboard.press("/")
    view.keyboard.type(people[0].upper())
    assert view.locator("#count").inner_text() == f"3 of {total} queries"
    assert view.locator(".row[data-place='0'] b").first.inner_text() == people[0]
    view.keyboard.press("Escape")
    assert view.evaluate(focused) == "0"
    view.keyboard.press("ArrowDown")
    assert view.evaluate(focused) == "1"
    assert view.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is not seen"
    view.fill("#words", "no one at all")
    assert view.locator("#nothing").is_visible() and rows.count() == 0
    view.click("#nothing-clear")
    view.select_option("#camera", "2")
    view.select_option("#result", "wrong")
    expected = [q for q in data["queries"] if data["images"]["camera"][q["image"]] == 2 and q["hits"][0] > 1]
    assert view.locator("#count").inner_text().startswith(f"{len(expected)} of")
    view.click("#clear")
    view.fill("#ap-low", "40")
    view.fill("#ap-high", "70")
    assert view.locator("#count").inner_text().startswith(f"{sum(40 <= ap <= 70 for ap in shown)} of")
    view.click("#clear")


def look_at_one(view, data: dict) -> None:
    """A query opened, left by keys to the next, and closed; its pictures are those of its list."""
    worst = min(range(len(data["queries"])), key=lambda i: data["queries"][i]["ap"])
    query = data["queries"][worst]
    view.locator(".row[data-place='0']").click()
    view.wait_for_selector("#query[open]")
    found = view.locator("#query ol").first.locator("li")
    assert found.count() == len(query["list"]) == data["top"]
    texts = [text.split("\n")[0] for text in found.all_inner_texts()]
    marks = ["✓" if rank in query["hits"] else "✗" for rank in range(1, data["top"] + 1)]
    assert texts == [f"{mark} {rank}" for rank, mark in enumerate(marks, 1)]
    sources = view.locator("#query ol").first.locator("img").evaluate_all("all => all.map((i) => i.src.slice(-80))")
    assert sources == [data["thumbs"][i][-80:] for i in query["list"]]
    assert view.locator("#query ol img").evaluate_all("all => all.every((i) => i.complete && i.naturalWidth === 16)")
    assert view.locator("#query .heat img").count() == 5 and view.locator("#query h3").count() == 4
    first = view.locator("#query-title").inner_text()
    view.keyboard.press("ArrowRight")
    assert view.locator("#query-title").inner_text() != first
    view.keyboard.press("Escape")
    assert view.locator("#query").is_hidden()
    pytest.importorskip("playwright.sync_api").expect(view.locator("[data-place='1']")).to_be_focused()
    view.keyboard.press("End")
    assert int(view.evaluate("document.activeElement.dataset.place")) == len(data["queries"]) - 1
    for theme in ("light", "dark"):
        view.click("#theme")
        assert view.evaluate("document.documentElement.dataset.theme") == theme

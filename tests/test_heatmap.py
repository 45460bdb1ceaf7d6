"""Heat maps: their sums and places, and the program that draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import arguments, program, refused, save_model
from torch import nn
from torch.nn import functional as F

from config import Config
from datasets.base import Sample
from model import build_model
from model.backbones import find_backbone
from model.pooling import POOLING
from model.reid import Branch, ReIDModel
from tools.gradcam import activation_maps, class_maps, overlay, resize_to_largest, similarity_maps
from tools.heatmap import best_matches
from utils.pictures import QUERY, RIGHT, WRONG, Tile, draw_rows

PLAIN = Config(backbone="resnet18", weights="none", neck="none", test_feature="before")


class Toy(ReIDModel):
    """Any backbone, each of its maps pooled by a branch of its own."""

    def __init__(self, cfg: Config, backbone: nn.Module, widths: Sequence[int], pool: str = "avg"):
        nn.Module.__init__(self)
        self.num_classes, self.test_after_neck = 4, cfg.model.test_feature == "after"
        self.backbone, self.pool = backbone, POOLING[pool]()
        self.branches = nn.ModuleList(Branch(cfg, width, 4) for width in widths)
        for branch in self.branches:
            nn.init.normal_(branch.classifier.weight)

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        maps = self.backbone(images)
        return [self.pool(m) for m in (maps if isinstance(maps, list) else [maps])]


class Two(nn.Module):
    """Two maps of different sizes."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 5, 4, 4), nn.Conv2d(3, 6, 8, 8)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.fine(images), self.coarse(images)]


def toy(cfg: Config = PLAIN, pool: str = "avg") -> Toy:
    torch.manual_seed(0)
    model = Toy(cfg, nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.ReLU()), [5], pool).double().eval()
    if cfg.model.neck == "bnneck":
        neck = model.branches[0].neck
        neck.running_mean.normal_()
        neck.running_var.uniform_(0.5, 2)
        nn.init.uniform_(neck.weight, 0.5, 2)
    return model


def pictures(count: int, height: int = 16, width: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_activation_maps_are_sums_of_squares_of_length_one_at_the_largest_size():
    model, images = toy(), pictures(2)
    squares = model.backbone(images).detach().square().sum(1)
    expected = squares / squares.square().sum((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(activation_maps(model, images)[:, 0], expected)
    model, images = Toy(PLAIN, Two(), [5, 6]).double().eval(), pictures(6, 32, 16)
    assert activation_maps(model, images).shape == (6, 2, 8, 4)
    first, second, cosines = similarity_maps(model, images[:3], images[3:])
    assert first.shape == second.shape == (3, 2, 8, 4)
    for maps in (first, second):
        torch.testing.assert_close(maps.sum((2, 3)), cosines)
    maps = [torch.rand(1, 4, 2), torch.rand(1, 2, 1)]
    for keep_sum, total in ((True, lambda m: m.sum((-2, -1))), (False, lambda m: m.amax((-2, -1)))):
        torch.testing.assert_close(total(resize_to_largest(maps, keep_sum)), torch.stack([total(m) for m in maps], 1))


def test_the_class_map_of_a_linear_network_is_grad_cam_by_hand():
    model, images, labels = toy(), pictures(3), torch.tensor([2, 0, 3])
    maps, weight = model.backbone(images).detach(), model.branches[0].classifier.weight.detach()
    found, logits = class_maps(model, images, labels)
    # The logit is the mean over 8 positions of w · A, so the mean gradient of each channel is w / 8.
    torch.testing.assert_close(found[:, 0], torch.einsum("nc,nchw->nhw", weight[labels], maps) / 8)
    torch.testing.assert_close(logits, F.linear(maps.mean((2, 3)), weight))
    torch.testing.assert_close(class_maps(model, images)[0], class_maps(model, images, logits.argmax(1))[0])


def test_contributions_are_gradient_times_activation_by_finite_differences():
    for pool in POOLING:
        model, (a, b) = toy(pool=pool), pictures(2).chunk(2)
        maps = model.backbone(a).detach()
        u, v = (model.pool(model.backbone(x)).detach() for x in (a, b))
        step, expected = 1e-6, torch.zeros(4, 2, dtype=torch.float64)
        for c, y, x in np.ndindex(5, 4, 2):
            if maps[0, c, y, x] < 1e-5:  # at 0 the product is 0, whatever the gradient
                continue
            ends = []
            for sign in (1, -1):
                moved = maps.clone()
                moved[0, c, y, x] += sign * step
                ends.append(float((model.pool(moved).detach() * v).sum() / (u.norm() * v.norm())))
            expected[y, x] += (ends[0] - ends[1]) / (2 * step) * maps[0, c, y, x]
        first, second, cosines = similarity_maps(model, a, b)
        assert first.sum().item() == pytest.approx(cosines.item(), abs=1e-9), pool
        torch.testing.assert_close(first[0, 0], expected, atol=2e-6, rtol=1e-4)
        torch.testing.assert_close(second, similarity_maps(model, b, a)[0])
        same, _, one = similarity_maps(model, a, a)
        assert same.sum().item() == pytest.approx(1) and one.item() == pytest.approx(1)


def test_with_a_bnneck_each_position_is_compared_with_the_running_mean():
    model, (a, b) = toy(PLAIN.replace(neck="bnneck", test_feature="after")), pictures(6).chunk(2)
    neck = model.branches[0].neck
    scale = (neck.weight / (neck.running_var + neck.eps).sqrt()).detach()
    u, v = model(a).detach(), model(b).detach()
    maps = (model.backbone(a).detach() - neck.running_mean[:, None, None]) * scale[:, None, None]
    expected = torch.einsum("nchw,nc->nhw", maps, v) / 8 / (u.norm(dim=1) * v.norm(dim=1))[:, None, None]
    used = (model.backbone(a).detach() > -1).any(1)
    first, _, cosines = similarity_maps(model, a, b)
    assert used.all()
    torch.testing.assert_close(first[:, 0], expected)
    torch.testing.assert_close(first.sum((2, 3)), cosines)


def test_a_red_patch_in_both_images_is_where_they_are_similar_until_it_is_covered():
    conv = nn.Conv2d(3, 3, 4, 4, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
    model = Toy(PLAIN, conv, [3]).eval()
    a, b = torch.zeros(1, 3, 32, 16), torch.zeros(1, 3, 32, 16)
    a[:, 1], b[:, 2] = 0.05, 0.05  # one on green, one on blue
    a[:, 0, 8:12, 4:8], b[:, 0, 24:28, 12:16] = 1, 1
    first, second, cosines = similarity_maps(model, a, b)
    assert first[0, 0].argmax() == 2 * 4 + 1 and second[0, 0].argmax() == 6 * 4 + 3
    assert first[0, 0, 2, 1].item() == pytest.approx(cosines.item(), rel=1e-5), "the patch alone makes them similar"
    a[:, 0, 8:12, 4:8] = 0
    covered, _, cosine = similarity_maps(model, a, b)
    assert cosine.item() < 0.05 * cosines.item() + 1e-6 and covered[0, 0, 2, 1].abs() < 1e-6


def test_real_models_have_maps_that_add_up_and_are_left_as_they_were():
    for settings in (
        {"backbone": "resnet18", "branches": "pcb", "height": 192, "width": 64},
        {"backbone": "resnet18", "branches": "bdb"},
        {"backbone": "vit_b_16"},
        {"backbone": "osnet_x0_25", "embedding_dim": 32, "neck": "none", "test_feature": "before", "head": "arcface"},
    ):
        torch.manual_seed(0)
        cfg = Config(**{"weights": "none", "height": 64, "width": 32, **settings})
        model = build_model(cfg, 5).eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        images = torch.randn(2, 3, cfg.data.height, cfg.data.width)
        first, _, cosines = similarity_maps(model, images[:1], images[1:])
        found, logits = class_maps(model, images)
        with torch.no_grad():
            expected = F.cosine_similarity(*model(images).split(1))
        torch.testing.assert_close(first.mean(1).sum((1, 2)), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cosines.mean(1), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.mean(1).sum((1, 2)), logits.amax(1), atol=1e-3, rtol=1e-3)
        assert first.shape[:2] == (1, len(model.branches)) and found.shape[:2] == (2, len(model.heads))
        if cfg.model.branches == "pcb":  # a branch counts nothing outside its stripe, which has two rows
            rows = first[0].abs().sum(2).unflatten(1, (6, 2)).sum(2)
            assert torch.equal(rows > 0, torch.eye(6, dtype=torch.bool))
        with pytest.raises(RuntimeError):
            class_maps(model, images, torch.tensor([0, 99]))
        assert torch.is_grad_enabled() and not model.backbone._forward_hooks
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_overlay_is_half_image_and_half_colour_from_zero_to_the_maximum():
    image = np.full((20, 10, 3), 100, np.uint8)
    drawn = overlay(image, np.array([[4.0, -9.0], [0.0, 2.0]])).astype(int)
    palette = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_TURBO)[0, :, ::-1].astype(int)
    for place, level in (((0, 0), 255), ((0, -1), 0), ((-1, -1), 127)):
        assert np.abs(drawn[place] - (100 + palette[level]) / 2).max() <= 1
    assert (overlay(image, -np.ones((2, 2))) == overlay(image, np.zeros((2, 2)))).all()


def test_rows_leave_empty_places_and_nothing_is_cut_off(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    tile = Tile(np.zeros((64, 32, 3), np.uint8), "pid 1234, cam 15\nrank 12345 of 19732", RIGHT)
    names = ["query", "activation", None, "query: like\nthe match"]
    rows = [("AP 3 %, $5_{x}", [tile, tile, None, tile]), ("branch 1 of 1", [None, tile, None, tile])]
    pixels = draw_rows(tmp_path / "rows.png", rows, names, "each map on its own scale")
    figure = kept[0]
    assert (cv2.imread(str(tmp_path / "rows.png"))[..., ::-1] == pixels).all()
    assert len(figure.axes) == 6, "five tiles and the bar"
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 * figure.dpi <= pixels.shape[1]
    assert box.y1 * figure.dpi <= pixels.shape[0]
    words = [text.get_window_extent() for text in figure.texts if text.get_text()]
    assert len(words) == 5 and not any(a.overlaps(b) for i, a in enumerate(words) for b in words[:i])


def test_best_matches_are_the_nearest_of_the_same_and_of_another_identity():
    ids = [(7, 1), (7, 2), (9, 1), (7, 3), (0, 2), (9, 2)]  # the query is person 7 under camera 1
    samples = [Sample(f"{number}.jpg", *pair) for number, pair in enumerate(ids)]
    gallery = SimpleNamespace(pids=np.array([p for p, _ in ids]), camids=np.array([c for _, c in ids]), samples=samples)
    gallery.caption = lambda index, *more: " ".join((str(index), *more))
    test = SimpleNamespace(query=SimpleNamespace(pids=np.array([7]), camids=np.array([1])), gallery=gallery)
    right, wrong = best_matches(test, 0, np.array([0.1, 0.5, 0.4, 0.3, 0.2, 0.6]))
    assert right == ("3.jpg", "3 rank 2 of 5", RIGHT)
    assert wrong == ("4.jpg", "4 rank 1 of 5", WRONG)
    gallery.pids = np.full(6, 7)
    assert best_matches(test, 0, np.arange(6.0))[1] is None


# ---- the program


def test_queries_and_own_pictures_are_drawn(tiny, tmp_path):
    save_model(tiny)
    where = ["tools/heatmap.py", "--log-dir", tiny.run.log_dir]

    def draw(name: str, *args: object) -> dict[str, np.ndarray]:
        shown = program(*where, *args, "--output", tmp_path / name)
        assert shown.returncode == 0, shown.stderr
        return {path.name: cv2.imread(str(path)).astype(int)[..., ::-1] for path in sorted((tmp_path / name).iterdir())}

    found = draw("queries", "--num", 2)
    assert len(found) == 3 and min(found).startswith("001_ap") and max(found) == "overview.png"
    one, both = found[min(found)], found["overview.png"]
    assert both.shape[0] > 1.5 * one.shape[0] and both.shape[1] == one.shape[1]
    for colour in (RIGHT, WRONG, QUERY):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(one - rgb).max(2) < 12).sum() > 1000, f"no frames of {colour}"
    alone = draw("nobody_else", "--test-ids", 1, "--num", 1)["overview.png"]  # no wrong match
    assert (np.abs(alone - (215, 25, 28)).max(2) < 12).sum() < 400, "a red frame around nothing"

    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("words")
    for name, shape in (("a.jpg", (40, 20, 3)), ("b_$x$.png", (30, 30, 3))):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    query = sorted((Path(tiny.data.data_root) / "demo" / "query").glob("*.jpg"))[0]
    own = draw("own", "--pictures", query, folder)
    assert sorted(own) == [f"001_{query.stem}.png", "002_a.png", "003_b_$x$.png", "overview.png"]
    assert draw("one", "--pictures", query)["overview.png"].shape[1] < own["overview.png"].shape[1]

    torch.save(find_backbone("mobilenet_v2")(tiny).state_dict(), tmp_path / "w.pth")
    where[1:] = arguments(tiny.replace(weights=str(tmp_path / "w.pth")), "name", "steps", "attention_stages", "jitter")
    assert draw("weights", "--num", 1)["overview.png"].shape[1] < one.shape[1], "no column of a training identity"
    save_model(tiny.replace(backbone="resnet18", branches="pcb", height=96, width=48))
    where[1:] = ["--log-dir", tiny.run.log_dir]
    tall, flat = (picture.shape[0] for _, picture in sorted(draw("pcb", "--num", 1).items()))
    assert tall > 5 * flat, "a row per branch"


def test_bad_input_gets_a_sentence(tiny, tmp_path):
    save_model(tiny)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("words")
    (tmp_path / "bad.jpg").write_bytes(b"these are words, not pixels")
    where = ["tools/heatmap.py", "--log-dir", tiny.run.log_dir]
    for name in ("empty", "bad.jpg", "gone.jpg"):
        refused(program(*where, "--pictures", tmp_path / name), tmp_path / name)
    refused(program(*where, "--num", 0), "--num")
    refused(program(*where, "--protocol", "vehicle_id"), "--protocol")
    refused(program("tools/heatmap.py", "--log-dir", tmp_path / "none"), "train.py")

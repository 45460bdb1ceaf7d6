"""Heat maps: their sums, their places, and that the model stays as it was; and the tool that draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
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
from model import BRANCHES, build_model
from model.pooling import POOLING
from model.reid import Branch, ReIDModel
from processor.heatmap import activation_maps, at_one_size, class_maps, similarity_maps
from tools.heatmap import best_matches
from tools.heatmap_columns import one_a_row
from utils.errors import UserError
from utils.heatmap import draw_heat_rows, overlay
from utils.visualize import QUERY, RIGHT, WRONG, Tile

PLAIN = Config(backbone="resnet18", weights="none", neck="none", test_feature="before")


class Toy(ReIDModel):
    """Any backbone, each of its maps pooled by a branch of its own."""

    def __init__(self, cfg: Config, backbone: nn.Module, widths: Sequence[int], classes: int = 4, pool: str = "avg"):
        nn.Module.__init__(self)
        self.num_classes, self.test_after_neck = classes, cfg.model.test_feature == "after"
        self.backbone, self.pool = backbone, POOLING[pool]()
        self.branches = nn.ModuleList(Branch(cfg, width, classes) for width in widths)
        for branch in self.branches:
            nn.init.normal_(branch.classifier.weight)

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        maps = self.backbone(images)
        return [self.pool(m) for m in (maps if isinstance(maps, list) else [maps] * len(self.branches))]


class Two(nn.Module):
    """Two maps of different sizes."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 5, 4, 4), nn.Conv2d(3, 6, 8, 8)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.fine(images), self.coarse(images)]


def toy(cfg: Config = PLAIN, pool: str = "avg", relu: bool = False) -> Toy:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 4, 4), *([nn.ReLU()] if relu else [])]
    model = Toy(cfg, nn.Sequential(*layers), [5], pool=pool).double().eval()
    if cfg.model.neck == "bnneck":
        neck = model.branches[0].neck
        neck.running_mean.normal_()
        neck.running_var.uniform_(0.5, 2)
        nn.init.uniform_(neck.weight, 0.5, 2)
    return model


def pictures(count: int, height: int = 16, width: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---- activation


def test_activation_maps_are_the_sums_of_squares_as_vectors_of_length_one():
    model, images = toy(), pictures(2)
    maps = model.backbone(images).detach()
    expected = torch.zeros(2, 4, 2, dtype=torch.float64)
    for b in range(2):
        for y in range(4):
            for x in range(2):
                expected[b, y, x] = sum(float(maps[b, c, y, x]) ** 2 for c in range(5))
        expected[b] /= math.sqrt(sum(float(v) ** 2 for v in expected[b].flatten()))
    found = activation_maps(model, images)
    assert found.shape == (2, 1, 4, 2)
    torch.testing.assert_close(found[:, 0], expected)


def test_maps_of_several_sizes_come_at_the_largest_s_and_keep_their_sums():
    torch.manual_seed(0)
    model = Toy(PLAIN, Two(), [5, 6]).double().eval()
    assert activation_maps(model, pictures(3, 32, 16)).shape == (3, 2, 8, 4)
    first, second, cosines = similarity_maps(model, pictures(3, 32, 16), pictures(6, 32, 16)[3:])
    assert first.shape == second.shape == (3, 2, 8, 4)
    torch.testing.assert_close(first.sum((2, 3)), cosines)
    torch.testing.assert_close(second.sum((2, 3)), cosines)
    maps = [torch.rand(1, 4, 2), torch.rand(1, 2, 1)]
    resized = at_one_size(maps, keep_sum=True)
    torch.testing.assert_close(resized.sum((2, 3)), torch.stack([m.sum((1, 2)) for m in maps], 1))
    torch.testing.assert_close(at_one_size(maps).amax((2, 3)), torch.stack([m.amax((1, 2)) for m in maps], 1))


# ---- Grad-CAM


def test_the_class_map_of_a_linear_network_is_grad_cam_by_hand():
    model, images = toy(), pictures(3)
    labels = torch.tensor([2, 0, 3])
    maps, weight = model.backbone(images).detach(), model.branches[0].classifier.weight.detach()
    found, logits = class_maps(model, images, labels)
    for b, label in enumerate(labels.tolist()):
        for y in range(4):
            for x in range(2):
                # The logit is the mean over 8 positions of w · A, so the mean gradient of each channel is w / 8.
                by_hand = sum(float(weight[label, c]) / 8 * float(maps[b, c, y, x]) for c in range(5))
                assert found[b, 0, y, x].item() == pytest.approx(by_hand, abs=1e-12)
    expected = F.linear(maps.mean((2, 3)), weight)
    torch.testing.assert_close(logits, expected.detach())
    torch.testing.assert_close(found.sum((1, 2, 3)), expected.gather(1, labels[:, None])[:, 0].detach())
    torch.testing.assert_close(class_maps(model, images)[0], class_maps(model, images, logits.argmax(1))[0])


def test_the_similarity_map_of_average_pooling_is_its_closed_form():
    model, (a, b) = toy(), pictures(6).chunk(2)
    maps = model.backbone(a).detach()
    u, v = maps.mean((2, 3)), model.backbone(b).mean((2, 3)).detach()
    expected = torch.einsum("nchw,nc->nhw", maps, v) / 8 / (u.norm(dim=1) * v.norm(dim=1))[:, None, None]
    first, second, cosines = similarity_maps(model, a, b)
    torch.testing.assert_close(first[:, 0], expected)
    torch.testing.assert_close(cosines[:, 0], F.cosine_similarity(u, v))
    torch.testing.assert_close(second, similarity_maps(model, b, a)[0])


def test_behind_a_bnneck_each_position_is_compared_with_the_mean_that_the_neck_takes_away():
    model, (a, b) = toy(replace(PLAIN, neck="bnneck", test_feature="after")), pictures(6).chunk(2)
    neck = model.branches[0].neck
    maps = model.backbone(a).detach()
    scale = (neck.weight / (neck.running_var + neck.eps).sqrt()).detach()
    u, v = model(a).detach(), model(b).detach()
    part = torch.einsum("nchw,nc->nhw", maps * scale[:, None, None], v)
    mean = torch.einsum("c,nc->n", neck.running_mean * scale, v)[:, None, None]
    expected = (part - mean) / 8 / (u.norm(dim=1) * v.norm(dim=1))[:, None, None]
    first, _, cosines = similarity_maps(model, a, b)
    torch.testing.assert_close(first[:, 0], expected)
    torch.testing.assert_close(first.sum((2, 3)), cosines)


@pytest.mark.parametrize("pool", ["avg", "max", "avg_max", "gem", "gem_fixed"])
def test_contributions_are_gradient_times_activation_by_finite_differences(pool):
    model, (a, b) = toy(pool=pool, relu=True), pictures(2).chunk(2)
    maps = model.backbone(a).detach()
    u, v = (model.pool(model.backbone(x)).detach() for x in (a, b))
    step, expected = 1e-6, torch.zeros(4, 2, dtype=torch.float64)
    for c in range(5):
        for y in range(4):
            for x in range(2):
                ends = []
                for sign in (1, -1):
                    moved = maps.clone()
                    moved[0, c, y, x] += sign * step
                    ends.append(float((model.pool(moved).detach() * v).sum() / (u.norm() * v.norm())))
                if maps[0, c, y, x] > 1e-5:  # at 0 the product is 0, whatever the gradient
                    expected[y, x] += (ends[0] - ends[1]) / (2 * step) * maps[0, c, y, x]
    first, _, cosines = similarity_maps(model, a, b)
    assert first.sum().item() == pytest.approx(cosines.item(), abs=1e-9)
    torch.testing.assert_close(first[0, 0], expected, atol=2e-6, rtol=1e-4)


def test_two_equal_images_have_a_map_that_adds_up_to_one():
    model, images = toy(relu=True), pictures(2)
    first, second, cosines = similarity_maps(model, images, images)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))
    torch.testing.assert_close(first.sum((2, 3)), cosines)
    torch.testing.assert_close(first, second)


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
    assert activation_maps(model, a)[0, 0].argmax() == 2 * 4 + 1
    a[:, 0, 8:12, 4:8] = 0
    covered, _, cosine = similarity_maps(model, a, b)
    assert cosine.item() < 0.05 * cosines.item() + 1e-6 and covered[0, 0, 2, 1].abs() < 1e-6


@pytest.mark.parametrize("name", sorted(BRANCHES))
def test_the_branches_maps_have_the_model_s_similarity_as_their_mean(name):
    torch.manual_seed(0)
    cfg = Config(backbone="resnet18", weights="none", branches=name, height=96, width=32)
    try:
        model = build_model(cfg, 5).eval()
    except UserError as error:
        pytest.skip(str(error))  # a kind of model that takes no ResNet18
    images = torch.randn(4, 3, 96, 32)
    first, _, cosines = similarity_maps(model, images[:2], images[2:])
    assert first.shape[:2] == (2, len(model.branches)) and torch.isfinite(first).all()
    with torch.no_grad():
        expected = F.cosine_similarity(*model(images).split(2))
    torch.testing.assert_close(first.mean(1).sum((1, 2)), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cosines.mean(1), expected, atol=1e-4, rtol=1e-4)
    assert class_maps(model, images)[0].shape[:2] == (4, len(model.heads))


def test_a_stripe_s_branch_counts_nothing_outside_of_its_stripe():
    model = build_model(Config(backbone="resnet18", weights="none", branches="pcb", height=192, width=64), 5).eval()
    images = torch.randn(2, 3, 192, 64, generator=torch.Generator().manual_seed(0))
    first, _, _ = similarity_maps(model, images[:1], images[1:])
    rows = first[0].abs().sum(2)  # (6, 12): a stripe has two rows
    for branch in range(6):
        outside = [row for row in range(12) if row // 2 != branch]
        assert rows[branch, outside].max() == 0 and rows[branch, 2 * branch : 2 * branch + 2].min() > 0


@pytest.mark.parametrize(
    "settings",
    [{"backbone": "swin_t"}, {"backbone": "vit_b_16"}, {"backbone": "resnet18", "attention": "nonlocal"},
     {"backbone": "osnet_x0_25", "embedding_dim": 32, "neck": "none", "test_feature": "before"},
     {"backbone": "resnet18", "pooling": "gem", "head": "arcface"}],
    ids=lambda settings: "-".join(map(str, settings.values())),
)  # fmt: skip
def test_transformers_attention_and_other_heads_give_maps_too(settings):
    torch.manual_seed(0)
    model = build_model(Config(weights="none", height=64, width=32, **settings), 5).eval()
    images = torch.randn(2, 3, 64, 32)
    first, _, cosines = similarity_maps(model, images[:1], images[1:])
    found, logits = class_maps(model, images)
    assert first.shape[2:] == activation_maps(model, images).shape[2:] == (4, 2)
    torch.testing.assert_close(first.sum((2, 3)), cosines, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.sum((1, 2, 3)), logits.amax(1), atol=1e-3, rtol=1e-3)
    assert first.std() > 0 and found.std() > 0


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_the_model_is_left_as_it_was(goes_wrong):
    model = build_model(Config(backbone="resnet18", weights="none", height=32, width=32), 5).train()
    model.backbone.bn1.eval()  # as a frozen part would be
    model.backbone.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    images = torch.randn(2, 3, 32, 32)
    activation_maps(model, images)
    similarity_maps(model, images, images)
    with torch.no_grad():
        class_maps(model, images)
        assert not torch.is_grad_enabled()
    if goes_wrong:
        with pytest.raises(RuntimeError):
            class_maps(model, images, torch.tensor([0, 99]))
    assert torch.is_grad_enabled() and images.grad is None
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# ---- pictures


def test_an_overlay_is_half_image_and_half_colour_from_zero_to_the_maximum():
    image = np.full((20, 10, 3), 100, np.uint8)
    heat = np.array([[4.0, -9.0], [0.0, 2.0]])
    drawn = overlay(image, heat).astype(int)
    assert drawn.shape == (20, 10, 3) and overlay(image, heat).dtype == np.uint8
    palette = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_TURBO)[0, :, ::-1].astype(int)
    assert np.abs(drawn[0, 0] - (100 + palette[255]) / 2).max() <= 1
    assert np.abs(drawn[0, -1] - (100 + palette[0]) / 2).max() <= 1, "below 0 is the lowest colour"
    assert np.abs(drawn[-1, -1] - (100 + palette[127]) / 2).max() <= 1
    assert (overlay(image, -np.ones((2, 2))) == overlay(image, np.zeros((2, 2)))).all()


def test_rows_leave_empty_places_and_nothing_is_cut_off(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k)))
    tile = Tile(np.zeros((64, 32, 3), np.uint8), "pid 1234, cam 15\nrank 12345 of 19732", RIGHT)
    names = ["query", "activation", "", "query: like\nthe match"]
    rows = [("AP 3 %, $5_{x}", [tile, tile, None, tile]), ("branch 1 of 1", [None, tile, None, tile])]
    draw_heat_rows(tmp_path / "rows.png", rows, names)
    figure = kept[0]
    height, width = cv2.imread(str(tmp_path / "rows.png")).shape[:2]
    assert len(figure.axes) == 6, "five tiles and the bar"
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 * figure.dpi <= width and box.y1 * figure.dpi <= height
    words = [text.get_window_extent() for text in figure.texts if text.get_text()]
    assert len(words) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(words) for b in words[:i])


# ---- the tool


def test_best_matches_are_other_cameras_images_of_the_person_and_the_nearest_stranger_with_their_ranks():
    ids = [(7, 1), (7, 2), (9, 1), (7, 3), (0, 2), (9, 2)]  # the query is person 7 under camera 1
    samples = [Sample(f"{number}.jpg", *pair) for number, pair in enumerate(ids)]
    gallery = SimpleNamespace(pids=np.array([p for p, _ in ids]), camids=np.array([c for _, c in ids]), samples=samples)
    test = SimpleNamespace(query=SimpleNamespace(pids=np.array([7]), camids=np.array([1])), gallery=gallery)
    right, wrong = best_matches(test, 0, np.array([0.1, 0.5, 0.4, 0.3, 0.2, 0.6]))
    assert (right.path, right.caption, right.colour) == ("3.jpg", "pid 7, cam 3\nrank 2 of 5", RIGHT)
    assert (wrong.path, wrong.caption, wrong.colour) == ("4.jpg", "distractor, cam 2\nrank 1 of 5", WRONG)
    gallery.pids = np.full(6, 7)
    assert best_matches(test, 0, np.arange(6.0))[1] is None


def test_the_first_row_is_the_mean_of_the_maps_and_each_other_row_a_branch_s():
    maps = torch.arange(6.0).view(3, 1, 2)
    rows = one_a_row(maps, [0, 3, 1], 5)
    assert [None if row is None else row.tolist() for row in rows] == [[[2, 3]], [[0, 1]], [[4, 5]], None, [[2, 3]]]
    assert [row.tolist() for row in one_a_row(maps, range(3), 1)] == [[[2, 3]]]


@pytest.fixture
def trained(tiny: Config) -> Config:
    save_model(tiny)
    return tiny


def test_queries_are_drawn_with_both_matches(trained, tmp_path):
    common = [
        "tools/heatmap.py",
        "--log-dir",
        trained.run.log_dir,
        "--device",
        "cpu",
        "--data-root",
        trained.data.data_root,
    ]
    shown = program(*common, "--num", "2")
    assert shown.returncode == 0, shown.stderr
    directory = Path(trained.run.log_dir) / "demo" / "results" / "heatmaps_worst"
    names = sorted(p.name for p in directory.iterdir())
    assert len(names) == 3 and names[-1] == "overview.png" and names[0].startswith("001_ap")
    assert f"heat maps of 2 images and overview.png written to {directory}" in shown.stdout
    one, both = (cv2.imread(str(directory / name)).astype(int)[..., ::-1] for name in (names[0], names[-1]))
    assert both.shape[0] > 1.5 * one.shape[0] and both.shape[1] == one.shape[1]
    for colour in (RIGHT, WRONG, QUERY):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        assert (np.abs(one - rgb).max(2) < 12).sum() > 1000, f"no frames of {colour}"
    assert program(*common, "--sort", "random", "--num", "1", "--output", tmp_path / "x").returncode == 0
    assert len(list((tmp_path / "x").iterdir())) == 2


def test_a_gallery_without_anyone_else_leaves_the_wrong_match_empty(trained, tmp_path):
    shown = program(
        "tools/heatmap.py",
        "--log-dir",
        trained.run.log_dir,
        "--test-ids",
        "1",
        "--num",
        "1",
        "--output",
        tmp_path / "out",
    )
    assert shown.returncode == 0, shown.stderr
    picture = cv2.imread(str(tmp_path / "out" / "overview.png")).astype(int)[..., ::-1]
    assert (np.abs(picture - (215, 25, 28)).max(2) < 12).sum() < 400, "a red frame around nothing"
    assert (np.abs(picture - (26, 150, 65)).max(2) < 12).sum() > 1000


def test_own_pictures_and_folders_are_drawn_and_other_files_counted(trained, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("words")
    for name, shape in (("a.jpg", (40, 20, 3)), ("b_$x$.png", (30, 30, 3))):
        cv2.imwrite(str(folder / name), np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    one = sorted((Path(trained.data.data_root) / "demo" / "query").glob("*.jpg"))[0]
    shown = program("tools/heatmap.py", "demo", "--log-dir", trained.run.log_dir, "--pictures", one, folder)
    assert shown.returncode == 0, shown.stderr
    assert "1 files that are no pictures left out" in shown.stdout and "of 3 images" in shown.stdout
    directory = Path(trained.run.log_dir) / "demo" / "results" / "heatmaps_pictures"
    names = [f"001_{one.stem}.png", "002_a.png", "003_b_$x$.png", "overview.png"]
    assert sorted(p.name for p in directory.iterdir()) == names
    alone = program(
        "tools/heatmap.py", "--log-dir", trained.run.log_dir, "--pictures", one, "--output", tmp_path / "out"
    )
    assert alone.returncode == 0 and "of 1 image and" in alone.stdout
    widths = [cv2.imread(str(d / names[0])).shape[1] for d in (tmp_path / "out", directory)]
    assert widths[0] < widths[1], "a picture alone has no place for a pair"


def test_a_model_of_several_branches_has_a_row_for_each(tiny, tmp_path):
    save_model(tiny.replace(backbone="resnet18", branches="pcb", height=96, width=48))
    shown = program("tools/heatmap.py", "--log-dir", tiny.run.log_dir, "--num", "1", "--output", tmp_path / "out")
    assert shown.returncode == 0, shown.stderr
    tall, flat = (cv2.imread(str(path)).shape[0] for path in sorted((tmp_path / "out").iterdir()))
    assert tall > 6 * flat


def test_bad_input_of_the_heat_maps_gets_a_sentence(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("words")
    (tmp_path / "bad.jpg").write_bytes(b"these are words, not pixels")
    where = ["tools/heatmap.py", "--log-dir", trained.run.log_dir]
    refused(program("tools/heatmap.py", "--log-dir", tmp_path / "none"), "train.py")
    refused(program(*where, "--pictures", tmp_path / "empty"), tmp_path / "empty", "no picture", "1 other")
    refused(program(*where, "--pictures", tmp_path / "bad.jpg"), tmp_path / "bad.jpg", "not an image")
    refused(program(*where, "--pictures", tmp_path / "gone.jpg"), tmp_path / "gone.jpg")
    refused(program(*where, "--num", "0"), "--num")
    for path in (Path(trained.data.data_root) / "demo" / "bounding_box_test").glob("*.jpg"):
        path.rename(path.with_name("9" + path.name.lstrip("-")))  # people whom no query shows
    refused(program(*where), "no query")


def test_weights_without_a_trained_classifier_show_no_identity(trained, tmp_path):
    from model import find_backbone

    torch.save(find_backbone("mobilenet_v2")(trained).state_dict(), tmp_path / "w.pth")
    settings = arguments(
        trained.replace(weights=str(tmp_path / "w.pth")), "name", "steps", "attention_stages", "jitter"
    )
    shown = program("tools/heatmap.py", *settings, "--num", "1", "--output", tmp_path / "without")
    assert shown.returncode == 0, shown.stderr
    assert (
        program(
            "tools/heatmap.py", "--log-dir", trained.run.log_dir, "--num", "1", "--output", tmp_path / "with"
        ).returncode
        == 0
    )
    widths = [cv2.imread(str(tmp_path / name / "overview.png")).shape[1] for name in ("without", "with")]
    assert widths[0] < widths[1]

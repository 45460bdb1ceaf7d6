"""Heat maps: their sums and places, and the program that draws them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import arguments, done, program, refused, save_model
from torch import nn
from torch.nn import functional as F

from config import Config
from model import build_model
from model.backbones import find_backbone
from model.pooling import POOLING
from model.reid import Branch, ReIDModel
from tools.gradcam import activation_maps, class_maps, resize_to_largest, similarity_maps
from utils.pictures import QUERY, RIGHT, WRONG

PLAIN = Config(backbone="resnet18", weights="none", neck="none", test_feature="before")


def toy(pool: str = "avg") -> ReIDModel:
    """One convolution as a backbone."""
    torch.manual_seed(0)
    model = build_model(PLAIN.replace(pooling=pool), 4)
    model.backbone, model.branches[0] = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.ReLU()), Branch(PLAIN, 5, 4)
    nn.init.normal_(model.branches[0].classifier.weight)
    return model.double().eval()


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_activation_maps_are_sums_of_squares_of_length_one_at_the_largest_size():
    model, images = toy(), pictures(2)
    squares = model.backbone(images).detach().square().sum(1)
    expected = squares / squares.square().sum((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(activation_maps(model, images)[:, 0], expected)
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


def test_real_models_have_maps_that_add_up_and_are_left_as_they_were():
    for settings in (
        {"backbone": "resnet18", "branches": "pcb", "height": 192, "width": 64},
        {"backbone": "resnet18", "branches": "bdb"},
        {"backbone": "resnet18", "branches": "mgn", "height": 96, "last_stride": 2},  # maps of two sizes
        {"backbone": "vit_b_16"},
        {"backbone": "osnet_x0_25", "embedding_dim": 32, "neck": "none", "test_feature": "before", "head": "arcface"},
    ):
        torch.manual_seed(0)
        cfg = Config(**{"weights": "none", "height": 64, "width": 32, **settings})
        model = build_model(cfg, 5).eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        images = torch.randn(2, 3, cfg.data.height, cfg.data.width)
        first, second, cosines = similarity_maps(model, images[:1], images[1:])
        found, logits = class_maps(model, images)
        with torch.no_grad():
            expected = F.cosine_similarity(*model(images).split(1))
        for maps in (first, second):
            torch.testing.assert_close(maps.sum((2, 3)), cosines, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cosines.mean(1), expected, atol=1e-4, rtol=1e-4)
        assert activation_maps(model, images).shape[2:] == first.shape[2:]
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


# ---- the program


@pytest.mark.slow
def test_queries_and_own_pictures_are_drawn(tiny, tmp_path):
    save_model(tiny)
    where = ["tools/heatmap.py", "--log-dir", tiny.run.log_dir]

    def draw(name: str, *args: object) -> dict[str, np.ndarray]:
        done(*where, *args, "--output", tmp_path / name)
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
    path = save_model(tiny)
    refused(program("tools/heatmap.py", path, "--pictures", tmp_path / "gone.jpg"), tmp_path / "gone.jpg")
    refused(program("tools/heatmap.py", path, "--protocol", "vehicle_id"), "--protocol")

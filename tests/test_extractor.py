"""FeatureExtractor on pictures of all kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_tree
from helpers import save_model
from PIL import Image

from datasets.folder import find_pictures
from datasets.images import decode
from datasets.loaders import make_test_loaders
from datasets.make import make_dataset
from processor import FeatureExtractor, extract_features, load_model
from processor.checkpoint import save_checkpoint
from processor.extractor import fingerprint
from utils.errors import UserError

CPU = torch.device("cpu")
NAMES = ["a.png", "anna/1.png", "anna/entrance/2.webp", "b.png", "c.JPG", "d.bmp", "e.tif"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The checkpoint of an untrained model, made once."""
    base = tmp_path_factory.mktemp("saved")
    write_tree(base / "data" / "demo")
    return save_model(tiny_config(base))


@pytest.fixture(scope="module")
def extractor(saved) -> FeatureExtractor:
    return FeatureExtractor(saved, device="cpu", batch_size=16, workers=2)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Seven pictures of many kinds and sizes, two of them in folders below, and three files that are none."""
    rng = np.random.default_rng(5)
    for number, name in enumerate(["b.png", "a.png", "c.JPG", "d.bmp", "anna/1.png", "anna/entrance/2.webp", "e.tif"]):
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (20 + 9 * number, 12 + 3 * number, 3), dtype=np.uint8))
        image.save(path)
    (tmp_path / "crops" / ".cache").mkdir()
    for name in ("notes.txt", "anna/Thumbs.db", "no_ending", ".hidden.png", ".cache/x.png"):
        (tmp_path / "crops" / name).write_bytes(b"not a picture")
    return tmp_path / "crops"


def same(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b.expand_as(a), atol=atol, rtol=0)


def test_features_are_those_of_a_test_with_length_1(tiny):
    pcb = {"branches": "pcb", "backbone": "resnet18", "height": 96, "width": 32}
    for settings in ({}, {"test_feature": "before"}, {"channels_last": False}, pcb):
        changed = tiny.replace(**settings)
        checkpoint = save_model(changed)
        model, cfg = load_model(checkpoint, CPU)
        if cfg.loop.channels_last:
            model = model.to(memory_format=torch.channels_last)
        loader = make_test_loaders(changed.replace(batch_size=8), make_dataset(changed))[1]
        paths = [s.path for s in loader.samples]
        for flip, expected in enumerate(extract_features(cfg, model, loader, CPU, flip=True)):
            found = FeatureExtractor(checkpoint, device="cpu", batch_size=16, flip=bool(flip))(paths)
            assert found.dtype == torch.float32 and found.device == CPU
            assert torch.equal(found, torch.nn.functional.normalize(expected)), settings
            norm = expected.double().norm(dim=1, keepdim=True)
            assert (found.double() - expected.double() / norm).abs().max() < 1e-6
        assert (found[0] - found[1]).abs().max() > 1e-3, "all pictures have one feature, so nothing was compared"


def test_batch_size_half_precision_and_gpu_change_features_little(extractor, saved, crops):
    exact = extractor(crops)
    for batch_size in (1, 3, 7, 100):
        same(FeatureExtractor(saved, device="cpu", batch_size=batch_size)(crops), exact, 1e-5)
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        for half in (False, True):
            found = FeatureExtractor(saved, device=device, batch_size=16, half=half)(crops)
            assert found.dtype == torch.float32 and found.device == CPU
            assert torch.equal(found, exact) == (device == "cpu" and not half)
            assert (found * exact).sum(1).min() > 0.99
            same(found.norm(dim=1), torch.ones(len(found)))


def test_paths_arrays_and_pil_images_of_one_picture_have_one_feature(extractor, crops):
    for name in ("a.png", "c.JPG", "anna/entrance/2.webp", "e.tif"):
        path = crops / name
        pixels = decode(path)
        kinds = [path, str(path), pixels, pixels[:, ::-1][:, ::-1], Image.fromarray(pixels)]
        if name != "c.JPG":  # decoders of JPEGs differ by a level or two
            kinds.append(Image.open(path))
        found = extractor(kinds)
        same(found, found[:1])
        for one in kinds[1:5]:
            assert extractor(one).shape == (1, extractor.width)
            same(extractor(one), found[:1])
    pixels = decode(path)
    batch = np.stack([pixels, pixels[::-1]])
    assert torch.equal(extractor(batch), extractor(list(batch)))
    assert torch.equal(extractor(np.array([str(path)] * 2)), extractor([path] * 2))
    assert torch.equal(extractor(p for p in [path]), extractor([path]))
    as_is, swapped, turned = extractor([pixels, pixels[..., ::-1], pixels.transpose(1, 0, 2)])
    assert (as_is - swapped).abs().max() > 1e-3 and (as_is - turned).abs().max() > 1e-3


def test_a_fingerprint_follows_weights_and_what_shapes_features_and_nothing_else(saved):
    model, cfg = load_model(saved, CPU)
    state = model.state_dict()
    before = fingerprint(state, cfg)
    assert before == fingerprint(dict(reversed(state.items())), cfg.replace(lr=1.0, name="x", data_root="elsewhere"))
    for changed in ({"height": 64}, {"test_feature": "before"}, {"pooling": "gem_fixed"}, {"last_stride": 2}):
        assert fingerprint(state, cfg.replace(**changed)) != before
    for name in ("backbone.features.0.0.weight", "branches.0.neck.running_var"):
        other = {k: v.clone() for k, v in state.items()}
        other[name].view(-1)[0] += 1e-6
        assert fingerprint(other, cfg) != before


def test_a_folder_is_its_pictures_in_order_and_those_below(extractor, crops):
    names, others = find_pictures(crops)
    assert names == NAMES and others == 3
    same(extractor(crops), torch.cat([extractor(crops / name) for name in names]), 1e-5)


def test_what_is_no_picture_is_refused_in_a_sentence_that_names_it(extractor, crops):
    (crops / "short.jpg").write_bytes((crops / "c.JPG").read_bytes()[:-30])
    (crops.parent / "words").mkdir()
    (crops.parent / "words" / "a.txt").write_text("a")
    grey, floats = np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32)
    for pictures, words in (
        ([], "empty"),
        ([crops / "a.png", crops / "gone.png"], "gone.png"),
        (crops / "notes.txt", "notes.txt"),
        (crops.parent / "words", "1 other files"),
        ([crops / "a.png", grey], r"picture 1 .*uint8 \(9, 9\)"),
        (floats, r"picture 0 .*float32 \(9, 9, 3\)"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), "picture 0 .*Tensor of shape"),
        (None, "NoneType"),
        (Image.new("I;16", (9, 9)), "mode I;16"),
        ([crops / "a.png", Image.open(crops / "short.jpg")], r"picture 1 "),
    ):
        with pytest.raises(UserError, match=words) as caught:
            extractor(pictures)
        assert "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError):  # an error of the caller's own generator stays what it is
        extractor(1 / 0 for _ in range(3))


def test_bad_arguments_and_models(saved, tmp_path, crops):
    for options, words in (
        ({"checkpoint": "nothing"}, "nothing"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": 0}, "workers"),
        ({"device": "xpu:77"}, "device"),
    ):
        with pytest.raises(UserError, match=words):
            FeatureExtractor(**{"checkpoint": saved, **options})
    state = torch.load(saved, weights_only=True)
    state["model"]["branches.0.neck.weight"][3] = torch.nan
    save_checkpoint(tmp_path / "nan.pth", state)
    with pytest.raises(UserError, match=r"nan\.pth gives features that are NaN"):
        FeatureExtractor(tmp_path / "nan.pth", device="cpu")(crops)

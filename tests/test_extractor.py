"""FeatureExtractor on pictures of all kinds, and tools/extract_features.py on folders."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tree
from helpers import program, refused, save_model
from PIL import Image

from config import Config
from datasets.folder import find_pictures
from datasets.images import decode
from datasets.loaders import make_test_loaders
from datasets.make import make_dataset
from processor import FeatureExtractor, extract_features, load_model
from processor import folder as folders
from processor.checkpoint import save_checkpoint
from processor.extractor import fingerprint
from processor.gallery import read_gallery
from utils.errors import Stopped, UserError

CPU = torch.device("cpu")
EXTRACT = "tools/extract_features.py"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The checkpoint of an untrained model, made once."""
    base = tmp_path_factory.mktemp("saved")
    write_tree(base / "data" / "demo")
    small = {"backbone": "mobilenet_v2", "weights": "none", "height": 32, "width": 16}
    return save_model(Config(dataset="demo", data_root=str(base / "data"), log_dir=str(base / "log"), **small))


@pytest.fixture(scope="module")
def extractor(saved) -> FeatureExtractor:
    return FeatureExtractor(saved, device="cpu", batch_size=16, workers=2)


@pytest.fixture
def checkpoint(saved, tiny: Config) -> Path:
    """A copy that a test may change."""
    path = Path(tiny.run.log_dir) / "demo" / "last.pth"
    path.parent.mkdir(parents=True)
    return Path(shutil.copy(saved, path))


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Seven pictures of many kinds and sizes, two of them in folders below, and three files that are none."""
    rng = np.random.default_rng(5)
    names = ["b.png", "a.png", "c.JPG", "d.bmp", "anna/1.png", "anna/entrance/2.webp", "e.tif"]
    for number, name in enumerate(names):
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (20 + 9 * number, 12 + 3 * number, 3), dtype=np.uint8))
        image.save(path)
    (tmp_path / "crops" / ".cache").mkdir()
    for name in ("notes.txt", "anna/Thumbs.db", "no_ending", ".hidden.png", ".cache/x.png"):
        (tmp_path / "crops" / name).write_bytes(b"not a picture")
    return tmp_path / "crops"


def of_test(tiny: Config, checkpoint: Path, split: int, flip: bool = False) -> tuple[list[str], torch.Tensor]:
    """Paths and features of a split as test.py computes them, before any scoring."""
    model, cfg = load_model(checkpoint, CPU)
    if cfg.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)
    loader = make_test_loaders(tiny.replace(batch_size=8), make_dataset(tiny))[1 + split]
    plain, flipped = extract_features(cfg, model, loader, CPU, flip)
    return [s.path for s in loader.samples], flipped if flip else plain


# ---- what it computes


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("settings", [{}, {"test_feature": "before"}, {"channels_last": False}], ids=str)
def test_features_are_those_of_a_test_made_unit_length(tiny, flip, settings):
    tiny = tiny.replace(**settings)
    checkpoint = save_model(tiny)
    for split in (0, 1):
        paths, expected = of_test(tiny, checkpoint, split, flip)
        found = FeatureExtractor(checkpoint, device="cpu", batch_size=16, flip=flip)(paths)
        assert found.dtype == torch.float32 and found.shape == (len(paths), 1280) and found.device == CPU
        norm = expected.double().norm(dim=1, keepdim=True)
        assert torch.equal(found, torch.nn.functional.normalize(expected))
        assert (found.double() - expected.double() / norm).abs().max() < 1e-6
    assert (found[0] - found[1]).abs().max() > 1e-3, "all pictures have one feature, so nothing was compared"


def test_models_of_several_branches_too(tiny):
    tiny = tiny.replace(branches="pcb", backbone="resnet18", height=96, width=32)
    paths, expected = of_test(tiny, path := save_model(tiny), 0)
    found = FeatureExtractor(path, device="cpu", batch_size=16)(paths)
    assert torch.equal(found, torch.nn.functional.normalize(expected)) and found.shape[1] > 512


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_batch_size_changes_rounding_only(extractor, saved, crops, batch_size):
    found = FeatureExtractor(saved, device="cpu", batch_size=batch_size)(crops)
    torch.testing.assert_close(found, extractor(crops), atol=1e-5, rtol=0)


def test_paths_arrays_and_pil_images_of_one_picture_have_one_feature(extractor, crops):
    for name in ("a.png", "c.JPG", "anna/entrance/2.webp", "e.tif"):
        path = crops / name
        pixels = decode(path)
        kinds = [path, str(path), pixels, pixels[:, ::-1][:, ::-1], Image.fromarray(pixels)]
        if name != "c.JPG":  # decoders of JPEGs differ by a level or two
            kinds.append(Image.open(path))
        found = extractor(kinds)
        torch.testing.assert_close(found, found[:1].expand_as(found), atol=1e-6, rtol=0)


def test_red_and_blue_are_not_swapped_and_rows_are_no_columns(extractor, crops):
    pixels = decode(crops / "a.png")
    as_is, swapped, turned = extractor([pixels, pixels[..., ::-1], pixels.transpose(1, 0, 2)])
    assert (as_is - swapped).abs().max() > 1e-3 and (as_is - turned).abs().max() > 1e-3


def test_pictures_are_turned_by_their_exif_tag_whoever_opens_them(extractor, crops):
    image, exif = Image.open(crops / "a.png"), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(crops / "turned.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    by_path, by_pil, expected = extractor([crops / "turned.png", Image.open(crops / "turned.png"), upright])
    torch.testing.assert_close(by_path, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(by_pil, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pil_images_of_other_modes_are_as_their_files(extractor, crops, mode):
    image = Image.open(crops / "b.png").convert(mode)
    image.save(path := crops.parent / f"x.{'tif' if mode == 'CMYK' else 'png'}")
    by_pil, by_path = extractor([image, path])
    torch.testing.assert_close(by_pil, by_path, atol=1e-2 if mode == "CMYK" else 1e-6, rtol=0)


def test_one_picture_is_a_list_of_one_and_a_batch_is_its_rows(extractor, crops):
    path = crops / "a.png"
    pixels = decode(path)
    for one in (path, str(path), pixels, Image.fromarray(pixels)):
        torch.testing.assert_close(extractor(one), extractor([path]), atol=1e-6, rtol=0)
    assert extractor(one).shape == (1, extractor.width)
    batch = np.stack([pixels, pixels[::-1]])
    assert torch.equal(extractor(batch), extractor(list(batch)))
    assert torch.equal(extractor(np.array([str(path)] * 2)), extractor([path] * 2))
    assert torch.equal(extractor(p for p in [path]), extractor([path]))


def test_a_generator_is_read_no_further_than_a_batch_ahead(extractor):
    given = itertools.count()
    batches = extractor.batches(np.full((8, 8, 3), next(given), np.uint8) for _ in range(10**9))
    next(batches)
    assert next(given) <= 3 * extractor.batch_size
    batches.close()


def test_half_precision_is_near_and_not_the_same(extractor, saved, crops):
    half = FeatureExtractor(saved, device="cpu", batch_size=16, half=True)(crops)
    exact = extractor(crops)
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    assert (half * exact).sum(1).min() > 0.99
    torch.testing.assert_close(half.norm(dim=1), torch.ones(len(half)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("half", [False, True])
def test_a_gpu_gives_the_same(extractor, checkpoint, crops, half):
    found = FeatureExtractor(checkpoint, device="cuda", half=half)(crops)
    assert found.device == CPU and (found * extractor(crops)).sum(1).min() > 0.99


def test_the_newest_run_is_taken_and_a_run_is_found_by_its_directory(checkpoint, extractor, crops):
    for name in (None, "demo", checkpoint.parent, str(checkpoint)):
        other = FeatureExtractor(name, device="cpu", batch_size=16, log_dir=checkpoint.parents[1])
        assert other.checkpoint == checkpoint and torch.equal(other(crops), extractor(crops))


# ---- fingerprints


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


# ---- what it refuses


def test_a_folder_is_its_pictures_in_order_and_those_below(extractor, crops):
    names, others = find_pictures(crops)
    assert names == ["a.png", "anna/1.png", "anna/entrance/2.webp", "b.png", "c.JPG", "d.bmp", "e.tif"] and others == 3
    expected = torch.cat([extractor(crops / name) for name in names])
    for given in (crops, str(crops)):
        torch.testing.assert_close(extractor(given), expected, atol=1e-5, rtol=0)


def test_links_in_a_circle_end_and_a_folder_counts_once(crops):
    (crops / "anna" / "up").symlink_to(crops)
    (crops / "self").symlink_to("self")
    outside = crops.parent / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "x.png")
    (outside / "back").symlink_to(crops / "anna")
    for name in ("one", "two"):
        (crops / name).symlink_to(outside)
    names, _ = find_pictures(crops)
    assert sorted(Path(name).name for name in names) == sorted(
        ["1.png", "2.webp", "a.png", "b.png", "c.JPG", "d.bmp", "e.tif", "x.png"]
    )


def bad_things(crops: Path) -> dict[str, tuple[object, str]]:
    (crops / "cut.jpg").write_bytes((crops / "c.JPG").read_bytes()[:300])
    (crops.parent / "empty").mkdir()
    (crops.parent / "words").mkdir()
    (crops.parent / "words" / "a.txt").write_text("a")
    grey, floats = np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32)
    return {
        "nothing": ([], "list is empty"),
        "gone": ([crops / "a.png", crops / "gone.png"], "gone.png cannot be read"),
        "cut": (crops / "cut.jpg", "cut.jpg is cut short"),
        "text": (crops / "notes.txt", "notes.txt is not an image"),
        "folder in a list": ([crops], "directory"),
        "empty folder": (crops.parent / "empty", "hold no picture, but 0 other files"),
        "folder of text": (crops.parent / "words", "hold no picture, but 1 other files"),
        "grey": ([crops / "a.png", grey], r"picture 1 .*uint8 \(9, 9\)"),
        "grey alone": (grey, r"of shape \(9, 9\)"),
        "floats": (floats, r"picture 0 .*float32 \(9, 9, 3\)"),
        "channels first": (np.zeros((3, 9, 9), np.uint8), r"\(3, 9, 9\)"),
        "no pixels": (np.zeros((0, 9, 3), np.uint8), r"\(0, 9, 3\)"),
        "four channels": (np.zeros((9, 9, 4), np.uint8), r"\(9, 9, 4\)"),
        "a tensor": (torch.zeros(9, 9, 3, dtype=torch.uint8), "picture 0 .*Tensor of shape"),
        "none": (None, "NoneType"),
        "none in a list": ([None], "picture 0 .*NoneType"),
        "bytes": (b"a.png", "bytes"),
        "number": (3, "int"),
        "deep PIL": (Image.new("I;16", (9, 9)), "mode I;16"),
    }


@pytest.mark.parametrize("case", [
    "nothing", "gone", "cut", "text", "folder in a list", "empty folder", "folder of text", "grey", "grey alone",
    "floats", "channels first", "no pixels", "four channels", "a tensor", "none", "none in a list", "bytes", "number",
    "deep PIL",
])  # fmt: skip
def test_what_is_no_picture_is_refused_in_a_sentence_that_names_it(extractor, crops, case):
    pictures, words = bad_things(crops)[case]
    with pytest.raises(UserError, match=words) as caught:
        extractor(pictures)
    assert "\n" not in str(caught.value)


def test_a_pil_image_of_a_file_that_is_cut_short(extractor, crops):
    (crops / "cut.jpg").write_bytes((crops / "c.JPG").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"picture 1 .*cannot be read"):
        extractor([crops / "a.png", Image.open(crops / "cut.jpg")])


def test_an_error_of_the_one_who_gives_the_pictures_is_his(extractor):
    with pytest.raises(ZeroDivisionError):
        extractor(1 / 0 for _ in range(3))


@pytest.mark.parametrize(
    ("how", "words"),
    [({"checkpoint": "nothing"}, "nothing"), ({"batch_size": 0}, "batch_size"), ({"workers": 0}, "workers"),
     ({"device": "xpu:77"}, "device")],
)  # fmt: skip
def test_bad_arguments(saved, how, words):
    with pytest.raises(UserError, match=words):
        FeatureExtractor(**{"checkpoint": saved, **how})


def test_features_that_are_not_finite_are_refused(tiny, checkpoint, crops):
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["branches.0.neck.weight"][3] = torch.nan
    save_checkpoint(checkpoint, state)
    with pytest.raises(UserError, match="NaN or infinite"):
        FeatureExtractor(checkpoint, device="cpu")(crops)


# ---- python tools/extract_features.py FOLDER


def run(crops: Path, tiny: Config, *more: object):
    where = ("--log-dir", tiny.run.log_dir, "--device", "cpu", "--output", crops.parent / "feats.npz")
    return program(EXTRACT, crops, *where, *more)


def test_a_folder_is_written_with_relative_paths_and_the_bad_ones_are_counted_and_listed(
    tiny, checkpoint, extractor, crops
):
    (crops / "anna" / "cut.png").write_bytes((crops / "b.png").read_bytes()[:300])
    (crops / "picture.heic").write_bytes(b"ftypheic")
    shown = run(crops, tiny)
    assert shown.returncode == 0, shown.stderr
    assert "left out: 3" in shown.stdout and "left out: 2" in shown.stdout
    assert "anna/cut.png is cut short" in shown.stdout and "picture.heic" in shown.stdout
    with np.load(crops.parent / "feats.npz") as stored:
        names = stored["paths"].tolist()
        assert names == ["a.png", "anna/1.png", "anna/entrance/2.webp", "b.png", "c.JPG", "d.bmp", "e.tif"]
        assert stored["features"].dtype == np.float32
        expected = extractor([crops / name for name in names]).numpy()
        np.testing.assert_allclose(stored["features"], expected, atol=1e-5)
    assert [p.name for p in crops.parent.glob(".*")] == [], "something was left behind"


def test_flip_and_half_are_as_the_extractors(tiny, checkpoint, crops):
    assert run(crops, tiny, "--flip", "--half", "--batch-size", 16).returncode == 0
    expected = FeatureExtractor(checkpoint, device="cpu", batch_size=16, half=True, flip=True)(crops)
    stored = read_gallery(crops.parent / "feats.npz")
    np.testing.assert_array_equal(stored.features, expected.numpy())
    assert stored.about["flip"] and stored.about["half"]


def test_without_output_the_file_is_in_the_runs_directory(tiny, checkpoint, crops):
    shown = program(EXTRACT, crops, "--log-dir", tiny.run.log_dir)
    assert shown.returncode == 0 and str(checkpoint.parent / "features_crops.npz") in shown.stdout
    assert len(read_gallery(checkpoint.parent / "features_crops.npz")) == 7


def counted(monkeypatch, stop_after: int | None = None) -> list[int]:
    """Numbers of pictures that go through a model; a Ctrl-C instead of the batch after the first `stop_after`."""
    sizes, real = [], FeatureExtractor._features

    def features(self, pictures):
        if len(sizes) == stop_after:
            raise KeyboardInterrupt
        sizes.append(len(pictures))
        return real(self, pictures)

    monkeypatch.setattr(FeatureExtractor, "_features", features)
    return sizes


def test_what_was_computed_before_a_ctrl_c_is_not_computed_again(tiny, checkpoint, crops, monkeypatch):
    monkeypatch.setattr(folders, "PART", 2)
    expected = FeatureExtractor(checkpoint, device="cpu", batch_size=1)(crops).numpy()
    with monkeypatch.context() as patch:
        sizes = counted(patch, stop_after=5)
        stopped = run(crops, tiny, "--batch-size", 1)
    assert stopped.returncode == 130 and "5 of 7 are kept" in stopped.stderr and sum(sizes) == 5
    assert not (crops.parent / "feats.npz").exists()
    (crops / "anna" / "1.png").write_bytes((crops / "b.png").read_bytes())  # another picture by now
    sizes = counted(monkeypatch)
    again = run(crops, tiny, "--batch-size", 1)
    assert again.returncode == 0 and sum(sizes) == 3 and "4 of 7 pictures have their features already" in again.stdout
    found = read_gallery(crops.parent / "feats.npz")
    assert found.paths.tolist() == find_pictures(crops)[0]
    np.testing.assert_array_equal(np.delete(found.features, 1, 0), np.delete(expected, 1, 0))
    np.testing.assert_array_equal(found.features[1], found.features[3])
    assert sorted(p.name for p in crops.parent.glob(".*")) == []


@pytest.mark.parametrize("other", [["--flip"], ["--half"]])
def test_parts_of_other_settings_are_not_used(tiny, checkpoint, crops, monkeypatch, other):
    with monkeypatch.context() as patch:
        counted(patch, stop_after=3)
        assert run(crops, tiny, "--batch-size", 1).returncode == 130
    sizes = counted(monkeypatch)
    assert run(crops, tiny, "--batch-size", 1, *other).returncode == 0
    assert sum(sizes) == 7


def test_parts_of_another_model_and_damaged_ones_are_not_used(tiny, checkpoint, crops, monkeypatch):
    monkeypatch.setattr(folders, "PART", 1)
    with monkeypatch.context() as patch:
        counted(patch, stop_after=4)
        assert run(crops, tiny, "--batch-size", 1).returncode == 130
    parts = crops.parent / ".feats.npz.parts"
    assert len(list(parts.glob("*.json"))) == len(list(parts.glob("*.npy"))) == 4
    (parts / "000000.json").write_text("{")
    (parts / "000001.npy").write_bytes(b"\x93NUMPY")
    (parts / "000002.npy").unlink()
    with monkeypatch.context() as patch:
        sizes = counted(patch, stop_after=0)
        assert "1 of 7 are kept" in run(crops, tiny, "--batch-size", 1).stderr
    state = torch.load(checkpoint, weights_only=True)
    state["model"]["branches.0.neck.running_mean"] += 0.1
    save_checkpoint(checkpoint, state)
    sizes = counted(monkeypatch)
    assert run(crops, tiny, "--batch-size", 1).returncode == 0 and sum(sizes) == 7
    np.testing.assert_array_equal(
        read_gallery(crops.parent / "feats.npz").features,
        FeatureExtractor(checkpoint, device="cpu", batch_size=1)(crops).numpy(),
    )


def test_a_second_run_computes_what_is_new_or_changed(tiny, checkpoint, crops, monkeypatch):
    assert run(crops, tiny).returncode == 0
    os.utime(crops / "a.png", (1, 1))
    Image.new("RGB", (30, 40), (200, 3, 4)).save(crops / "0.png")
    (crops / "b.png").unlink()
    sizes = counted(monkeypatch)
    assert run(crops, tiny).returncode == 0
    assert sum(sizes) == 2 and read_gallery(crops.parent / "feats.npz").paths[0] == "0.png"
    assert len(read_gallery(crops.parent / "feats.npz")) == 7
    assert run(crops, tiny, "--flip").returncode == 0 and sum(sizes) == 9


def test_a_full_disk_leaves_the_old_file_and_what_was_computed(tiny, checkpoint, crops, monkeypatch):
    assert run(crops, tiny).returncode == 0
    before = (crops.parent / "feats.npz").read_bytes()
    Image.new("RGB", (30, 40)).save(crops / "0.png")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "feats.npz")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        refused(run(crops, tiny), "No space left on device")
    assert (crops.parent / "feats.npz").read_bytes() == before
    sizes = counted(monkeypatch)
    assert run(crops, tiny).returncode == 0 and sizes == []


@pytest.mark.parametrize(
    ("case", "words"),
    [("empty", "holds? no picture|hold no picture"), ("unreadable", "none of the pictures can be read"),
     ("no run", "no run"), ("other file", "no file of features"), ("a folder", "is a folder; give --output a file")],
)  # fmt: skip
def test_bad_folders_and_outputs(tiny, crops, checkpoint, case, words):
    output, folder = crops.parent / "feats.npz", crops.parent / "folder"
    folder.mkdir()
    if case == "unreadable":
        (folder / "a.jpg").write_bytes(b"\xff\xd8")
    elif case != "empty":
        folder = crops
    if case == "other file":
        output.write_bytes(b"precious")
    elif case == "a folder":
        output = crops.parent
    log_dir = crops.parent / "nowhere" if case == "no run" else tiny.run.log_dir
    shown = program(EXTRACT, folder, "--log-dir", log_dir, "--output", output)
    refused(shown)
    assert re.search(words, shown.stderr), shown.stderr
    assert case != "other file" or output.read_bytes() == b"precious"
    assert [p.name for p in crops.parent.glob(".feats*")] == []


def test_a_run_and_a_checkpoint_are_still_tested_as_before(tiny, checkpoint, tmp_path):
    for number, word in enumerate((checkpoint, checkpoint.parent, "demo")):
        shown = program(EXTRACT, word, "--log-dir", tiny.run.log_dir, "--data-root", tiny.data.data_root, "--output",
                        tmp_path / str(number))  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert np.load(tmp_path / str(number) / "qf.npy").shape == (12, 1280)


def test_a_word_that_means_a_folder_and_a_run_is_asked_back(tiny, checkpoint, crops, monkeypatch):
    monkeypatch.chdir(checkpoint.parents[2])
    crops.rename("demo")
    refused(program(EXTRACT, "demo"), "demo is a folder, and a run in log/ too; say ./demo or log/demo")
    assert program(EXTRACT, "./demo", "--output", "x.npz").returncode == 0
    assert len(read_gallery("x.npz")) == 7


def test_two_programs_do_not_write_one_file(tiny, checkpoint, crops):
    from processor.gallery import writing

    with writing(crops.parent / "feats.npz"):
        refused(run(crops, tiny), "another program is writing")
    assert run(crops, tiny).returncode == 0


def test_a_stop_says_that_it_goes_on(extractor, crops, tmp_path, monkeypatch):
    counted(monkeypatch, stop_after=0)
    files = folders.files_of(crops, [crops])
    with pytest.raises(Stopped, match="0 of 7 are kept, the same command goes on from there"):
        folders.compute(extractor, crops, files, {}, tmp_path)

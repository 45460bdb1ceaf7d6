"""Spoiled image files of every kind, read one by one and lying in the tree of a whole program."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import arguments, program, refused, save_model
from PIL import Image

from config import Config
from datasets.images import read_image
from datasets.layouts import IMAGES
from datasets.loaders import make_loaders
from processor.checkpoint import read_checkpoint
from tools.features import read_features
from utils.errors import UserError
from utils.logging import log, setup_logging

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 24, 16
EXTRACT, VISUALIZE = "tools/extract_features.py", "tools/get_vis_result.py"


# ---- one by one


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encodings() -> dict[str, bytes]:
    """One picture as every kind of file that a dataset may hold."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    image, deep = Image.fromarray(noise), noise.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "baseline.jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "turned.jpg": encoded(image, "JPEG", exif=exif),
        "gray.jpg": encoded(image.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "rgb.png": encoded(image, "PNG"),
        "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG", transparency=3),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
        "sixteen_bits.png": cv2.imencode(".png", deep)[1].tobytes(),
        "rgb.bmp": encoded(image, "BMP"),
        "palette.bmp": encoded(image.quantize(16), "BMP"),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "alpha.webp": encoded(image.convert("RGBA"), "WEBP"),
        "plain.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "fax.tif": encoded(image.convert("1"), "TIFF", compression="group4"),
        "sixteen_bits.tif": cv2.imencode(".tif", deep)[1].tobytes(),
    }


def spoiled(rng: np.random.Generator, data: bytes, how: str) -> bytes:
    """The file as a bad disk, a broken download or a wrong program may leave it."""
    data = bytearray(data)
    at = int(rng.integers(len(data)))
    if how == "cut":
        del data[at:]
    elif how == "header":
        for place in rng.integers(min(len(data), 60), size=3):
            data[place] = rng.integers(256)
    elif how == "bits":
        for place in rng.integers(len(data), size=8):
            data[place] ^= 1 << int(rng.integers(8))
    elif how == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif how == "ones":
        data[at : at + 4] = b"\xff" * len(data[at : at + 4])
    elif how == "lost":
        del data[at : at + int(rng.integers(1, 40))]
    elif how == "more":
        data[at:at] = rng.bytes(9)
    return bytes(data)


WAYS = ("cut", "header", "bits", "zeros", "ones", "lost", "more")

READ = """
import json, resource, sys
from pathlib import Path
from datasets.images import read_image
from utils.errors import UserError

def most_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 3 * 2**30, now + 3 * 2**30))  # the machine shall not suffer
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, file=sys.stderr, flush=True)  # the last one is that which ended the program
    before = most_memory()
    try:
        image = read_image(path, 24, 16)
        what = "read" if image.shape == (24, 16, 3) and image.dtype == "uint8" else f"{image.shape} {image.dtype}"
    except UserError as error:
        what = "refused" if path.name in str(error) else str(error)
    except BaseException as error:
        what = repr(error)
    print(json.dumps([path.name, what, most_memory() - before]))
"""


def read_all(folder: Path) -> dict[str, tuple[str, int]]:
    """What comes of each file of a folder ("read", "refused", or what should not be) and the bytes of memory it took.

    In a process of its own: a fault in a decoder would end it.
    """
    shown = subprocess.run(
        [sys.executable, "-c", READ, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    return {name: (what, memory) for name, what, memory in map(json.loads, shown.stdout.splitlines())}


@pytest.mark.parametrize("name", list(encodings()))
def test_every_kind_of_file_is_read_before_it_is_spoiled(tmp_path, name):
    (tmp_path / name).write_bytes(encodings()[name])
    image = read_image(tmp_path / name, HEIGHT, WIDTH)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert Path(name).suffix in IMAGES


def test_a_thousand_spoiled_files_are_read_or_refused_by_name(tmp_path):
    rng, expected = np.random.default_rng(7), 0
    for name, data in encodings().items():
        for how in WAYS:
            for number in range(8):
                (tmp_path / f"{how}{number}_{name}").write_bytes(spoiled(rng, data, how))
                expected += 1
    found = read_all(tmp_path)
    assert len(found) == expected > 1000
    assert {name: what for name, (what, _) in found.items() if what not in ("read", "refused")} == {}
    assert not [name for name, (what, _) in found.items() if name.startswith("cut") and what == "read"]
    assert 200 < sum(what == "refused" for what, _ in found.values()) < expected - 100


def claims(size: int) -> dict[str, bytes]:
    """Files of a few bytes, most of them whole, that claim to be size × size pixels large."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8))
    plain = Image.new("RGB", (16, 16), (3, 4, 5))
    files = {}
    png = bytearray(encoded(noise, "PNG"))
    png[16:24] = struct.pack(">II", size, size)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    files["header.png"] = png
    for kind, marker in (("baseline", b"\xff\xc0"), ("progressive", b"\xff\xc2")):
        jpeg = bytearray(encoded(noise, "JPEG", progressive=kind == "progressive"))
        at = jpeg.find(marker)
        jpeg[at + 5 : at + 9] = struct.pack(">HH", size, size)
        files[f"{kind}.jpg"] = jpeg
        files[f"{kind}_after_stray_bytes.jpg"] = jpeg[:at] + b"\0\0" + jpeg[at:]
    bmp = bytearray(encoded(noise, "BMP"))
    bmp[18:26] = struct.pack("<ii", size, -size)
    files["upside_down.bmp"] = bmp
    webp = bytearray(encoded(plain, "WEBP", lossless=True))
    at = webp.find(b"VP8L") + 9
    flags = struct.unpack_from("<I", webp, at)[0] & 0xF0000000
    struct.pack_into("<I", webp, at, (size - 1) | (size - 1) << 14 | flags)
    files["one_colour.webp"] = webp
    lossy = bytearray(encoded(noise, "WEBP"))
    at = lossy.find(b"\x9d\x01\x2a") + 3
    lossy[at : at + 4] = struct.pack("<HH", size, size)
    files["lossy.webp"] = lossy
    files["fax.tif"] = encoded(Image.new("1", (size, size)), "TIFF", compression="group4")
    files["zipped.tif"] = encoded(Image.new("L", (size, size)), "TIFF", compression="tiff_deflate")
    gif = bytearray(encoded(noise, "GIF"))
    gif[6:10] = struct.pack("<HH", size, size)
    files["screen.gif"] = gif
    return {name: bytes(data) for name, data in files.items()}


def test_files_that_claim_to_be_huge_are_refused_and_take_no_memory(tmp_path):
    for name, data in claims(9000).items():
        (tmp_path / name).write_bytes(data)
    for name, data in claims(500).items():
        (tmp_path / f"small_{name}").write_bytes(data)
    png = bytearray(encodings()["rgb.png"])
    png[33:37] = struct.pack(">I", 800 * 2**20)  # length of the first block after the header
    (tmp_path / "long_block.png").write_bytes(png)
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.write(b"\xff\xd8")
        file.truncate(20 * 2**30)  # holes: takes no room on the disk
    found = read_all(tmp_path)
    assert {n: w for n, (w, _) in found.items() if w != "refused" and not n.startswith("small_")} == {}
    assert all(what in ("read", "refused") for what, _ in found.values())
    assert found["small_one_colour.webp"][0] == found["small_fax.tif"][0] == "read"
    assert {n: f"{m / 2**20:.0f} MiB" for n, (_, m) in found.items() if m > 150 * 2**20} == {}


def test_a_picture_of_a_camera_is_not_too_large(tmp_path):
    path = tmp_path / "48_megapixels.jpg"
    cv2.imwrite(str(path), np.full((6000, 8000), 90, np.uint8))
    assert (read_image(path, HEIGHT, WIDTH) == 90).all()


def outcome(path: str | Path) -> str:
    """The sentence that refuses a file. A reader that waits (for whoever should write into a pipe) fails."""
    found = []

    def read() -> None:
        try:
            found.append(read_image(path, HEIGHT, WIDTH))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    if thread.is_alive():
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # an end for it to read
        pytest.fail(f"reading {path} waits for ever")
    assert isinstance(found[0], UserError), found[0]
    return str(found[0])


def test_what_is_no_file_is_refused_by_name_and_not_waited_for(tmp_path, monkeypatch):
    made = {
        "pipe.jpg": os.mkfifo,
        "folder.jpg": os.mkdir,
        "loop.jpg": lambda path: os.symlink(path, path),
        "broken.jpg": lambda path: os.symlink(tmp_path / "gone", path),
        "endless.jpg": lambda path: os.symlink("/dev/zero", path),
        "random.jpg": lambda path: os.symlink("/dev/urandom", path),
        "nothing.jpg": lambda path: os.symlink("/dev/null", path),
        "pipe_by_link.jpg": lambda path: os.symlink(tmp_path / "pipe.jpg", path),
        "memory.jpg": lambda path: os.symlink("/proc/self/mem", path),
    }
    for name, make in made.items():
        make(tmp_path / name)
        assert name in outcome(tmp_path / name)
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as file:
        file.bind("socket.jpg")
        assert "socket.jpg" in outcome(tmp_path / "socket.jpg")


IMPOSSIBLE = {"nul": "nul\0.jpg", "no text": "\ud800.jpg", "long": "x" * 300, "deep": "a/" * 3000, "empty": ""}


@pytest.mark.parametrize("name", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    assert name in outcome(f"{tmp_path}/{name}")


def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encodings()["baseline.jpg"])
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), MemoryError()):

        def deny(*_args, error=error, **_more):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(np, "fromfile", deny)
            patch.setattr(Path, "read_bytes", deny)
            patch.setattr("builtins.open", deny)
            said = outcome(tmp_path / "a.jpg")
        assert "a.jpg cannot be read" in said and (getattr(error, "strerror", None) or "") in said


def test_a_name_that_is_no_text_can_be_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    setup_logging(tmp_path / "train.log")
    log.warning("warning: %s left out", os.fsdecode(b"\xff.jpg"))
    sys.stdout.flush()
    assert b".jpg left out" in sys.stdout.buffer.getvalue()
    assert ".jpg left out" in (tmp_path / "train.log").read_text(errors="replace")


# ---- in the tree of a program

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def spoil(cfg: Config, split: str, *names: str) -> list[str]:
    """Spoil these images of a split, each in another way; gives their paths."""
    rng, ways = np.random.default_rng(3), ["cut", "empty", "text", "gone", "folder", "pipe"]
    paths = [Path(cfg.data.data_root) / "demo" / FOLDERS[split] / f"{name}.jpg" for name in names]
    for number, path in enumerate(paths):
        data, way = path.read_bytes(), ways[number % len(ways)]
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif way == "gone":
            path.symlink_to("nowhere.jpg")
        elif way == "pipe":
            path.symlink_to("/dev/null")
        else:
            contents = {"cut": spoiled(rng, data, "cut"), "empty": b"", "text": b"<html>404 Not Found</html>"}
            path.write_bytes(contents[way])
    return list(map(str, paths))


def train(cfg: Config, *more: object):
    args = arguments(cfg, "epochs", "steps")
    return program("train.py", *args, "--epochs", "1", "--steps", "1", "--no-eval-first", *more)


SKIP = ("--on-bad-image", "skip")
TRAIN = [f"{pid:04}_c1s1_000000_00" for pid in range(1, 7)]
QUERY = ["0007_c1s1_000090_00", "0008_c2s1_000090_00"]
GALLERY = ["0007_c1s1_000000_00", "0009_c3s1_000001_00", "0000_c1s1_000005_00"]


def test_bad_images_of_any_split_stop_a_run_before_it_begins(tiny):
    for split, names, count in (("gallery", GALLERY, 25), ("query", QUERY, 12), ("train", TRAIN, 36)):
        bad = spoil(tiny, split, *names)
        shown = train(tiny)
        refused(shown, f"{len(bad)} of {count} {split} images", *bad, "--on-bad-image skip")
    assert all(f"of {n} {split} images" in shown.stderr for n, split in ((25, "gallery"), (12, "query")))  # all at once
    assert not Path(tiny.run.log_dir).exists()


def test_a_run_goes_on_without_them_and_says_so(tiny):
    bad = spoil(tiny, "train", *TRAIN[:3]) + spoil(tiny, "query", *QUERY) + spoil(tiny, "gallery", *GALLERY)
    shown = train(tiny, *SKIP)
    assert shown.returncode == 0, shown.stderr
    directory = Path(tiny.run.log_dir) / "demo"
    assert all(path in shown.stdout for path in bad)
    for number, count, split in ((3, 36, "train"), (2, 12, "query"), (3, 25, "gallery")):
        assert f"{number} of {count} {split} images left out" in shown.stdout
        assert f"{number} {split} images" in (directory / "train.log").read_text()
    result = json.loads((directory / "results" / "train.json").read_text())
    assert "2 query images that cannot be read left out" in result["note"]
    assert "3 gallery images that cannot be read left out" in result["note"]
    assert "3 train images that cannot be read left out" in result["note"]
    assert "not comparable with published scores" in result["note"]
    assert result["scores"]["plain"]["valid_queries"] == 10
    state = read_checkpoint(directory / "last.pth")
    assert state["labels"] == {pid: pid - 1 for pid in range(1, 7)} and "train images" in state["train_note"]


def all_of(cfg: Config, split: str, start: str) -> list[str]:
    return sorted(path.stem for path in (Path(cfg.data.data_root) / "demo" / FOLDERS[split]).glob(f"{start}*.jpg"))


@pytest.mark.parametrize("settings", [{}, {"disk_gb": 0}, {"disk_gb": 0, "cache_gb": 0}, {"disk_gb": 1e-9}], ids=str)
def test_batches_hold_the_readable_images_with_their_labels(tiny, settings):
    spoil(tiny, "train", *all_of(tiny, "train", "0003"), TRAIN[0])
    cfg = tiny.replace(on_bad_image="skip", flip_prob=0, pad=0, erase_prob=0, **settings)
    for _ in range(2):
        loaders = make_loaders(cfg)
        assert loaders.labels == {1: 0, 2: 1, 4: 2, 5: 3, 6: 4}
        assert [s.pid for s in loaders.train.samples] == [1] * 5 + [2] * 6 + [4] * 6 + [5] * 6 + [6] * 6
        assert loaders.dataset.train == loaders.train.samples
        pictures = {s.path: read_image(s.path, 32, 16) for s in loaders.train.samples}
        for indices in loaders.train.sampler.epoch(0):
            for index, picture in zip(indices, loaders.train.images.read(indices).numpy(), strict=True):
                assert np.array_equal(picture, pictures[loaders.train.samples[index].path])
        for images, labels in loaders.train.epoch(0, torch.device("cpu")):
            assert len(images) == len(labels) == 8 and sorted(labels.unique().tolist())[-1] <= 4


def test_what_is_left_may_be_too_little(tiny):
    spoil(tiny, "train", *(name for pid in ("0001", "0002", "0003") for name in all_of(tiny, "train", pid)))
    refused(train(tiny, *SKIP), "needs 4 identities, the training set has 3", "--batch-size 6")
    spoil(tiny, "train", *(name for pid in ("0004", "0005") for name in all_of(tiny, "train", pid)))
    alone = train(tiny, *SKIP)
    refused(alone, "identities")
    assert "--batch-size 2" not in alone.stderr  # no mend: that holds one identity and is refused in its turn
    spoil(tiny, "train", *all_of(tiny, "train", "0006"))
    refused(train(tiny, *SKIP), "the train split holds no image that can be read")
    assert not Path(tiny.run.log_dir).exists()


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_a_test_split_without_a_readable_image_is_refused_at_the_start(tiny, split):
    spoil(tiny, split, *all_of(tiny, split, "00"))
    refused(train(tiny, *SKIP), f"the {split} split holds no image that can be read")
    refused(program("test.py", save_model(tiny), *SKIP), f"the {split} split holds no image that can be read")


def test_queries_that_lose_all_their_matches_are_refused_with_a_sentence(tiny):
    spoil(tiny, "gallery", *(name for pid in range(7, 11) for name in all_of(tiny, "gallery", f"{pid:04}")))
    refused(program("test.py", save_model(tiny), *SKIP), "no query")


def test_the_programs_that_test_leave_bad_images_out_too(tiny, tmp_path):
    path = save_model(tiny)
    spoil(tiny, "query", *QUERY)
    spoil(tiny, "gallery", *GALLERY)
    for name in ("test.py", VISUALIZE, EXTRACT):
        refused(program(name, path), "2 of 12 query images")
    shown = program("test.py", path, *SKIP)
    assert shown.returncode == 0 and "2 of 12 query images left out" in shown.stdout, shown.stderr
    result = json.loads((path.parent / "results" / "test_last_demo_cosine.json").read_text())
    assert "2 query images that cannot be read left out; 3 gallery images that cannot be" in result["note"]
    assert result["scores"]["plain"]["valid_queries"] == 10
    shown = program(VISUALIZE, path, *SKIP, "--num", "3", "--top", "2", "--output", tmp_path / "ranked")
    assert shown.returncode == 0 and len(list((tmp_path / "ranked").iterdir())) == 4, shown.stderr


def test_features_in_parts_are_those_of_the_readable_images(tiny, tmp_path):
    path = save_model(tiny)
    spoil(tiny, "query", *QUERY)
    spoil(tiny, "gallery", *GALLERY)
    for part in ("1/2", "2/2", "1/1"):
        shown = program(EXTRACT, path, *SKIP, "--part", part, "--output", tmp_path / part[-1])
        assert shown.returncode == 0, shown.stderr
    one, two = read_features(tmp_path / "1"), read_features(tmp_path / "2")
    assert one.query.shape[0] == 10 and one.gallery.shape[0] == 22 and "2 query images" in one.note == two.note
    assert torch.allclose(one.query, two.query, atol=1e-5) and torch.allclose(one.gallery, two.gallery, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(one.ids, two.ids, strict=True))

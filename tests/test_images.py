"""Image files of every kind to RGB arrays, and damaged ones to errors that name them."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT, fails
from PIL import Image, ImageOps

from datasets.folder import PICTURES
from datasets.images import read_image
from utils.errors import UserError

HEIGHT, WIDTH = 24, 16


def picture(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """A smooth coloured picture without symmetry, so that a swap of channels or sides would show."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_reads_as(path: Path, data: bytes, expected: Image.Image, tolerance: int, most: int = 0) -> None:
    path.write_bytes(data)
    found = read_image(path, HEIGHT, WIDTH, (0, most))
    assert found.shape == (HEIGHT, WIDTH, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= tolerance


def test_files_of_every_kind_and_colour_mode_become_rgb(tmp_path):
    image = picture()
    for kind in ("PNG", "BMP", "TIFF"):
        assert_reads_as(tmp_path / "no suffix", encoded(image, kind), image, 0)
    modes = [("JPEG", "L", 2), ("PNG", "L", 0), ("PNG", "LA", 0), ("PNG", "1", 0), ("PNG", "P", 0), ("PNG", "RGBA", 0)]
    for kind, mode, tolerance in modes:
        data = encoded(image.convert(mode), kind)
        assert_reads_as(tmp_path / "名前 🙂.a.jpg", data, Image.open(io.BytesIO(data)).convert("RGB"), tolerance)
    assert_reads_as(tmp_path / "a", encoded(image.convert("RGBA"), "WEBP", lossless=True), image, 0)
    for options in ({}, {"progressive": True}, {"optimize": True}, {"subsampling": 2}):
        data = encoded(image, "JPEG", quality=95, **options)
        expected = Image.open(io.BytesIO(data)).convert("RGB")
        assert_reads_as(tmp_path / "a", data, expected, 2)
        assert_reads_as(tmp_path / "a", data + bytes(500), expected, 2)  # phones append depth maps and films
    cmyk = encoded(image.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert_reads_as(tmp_path / "a", cmyk, image, 30)  # and not its negative
    gray = np.asarray(image.convert("L"))
    deep = encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    assert_reads_as(tmp_path / "a", deep, image.convert("L").convert("RGB"), 1, 65535)
    clear = image.copy()  # transparency is dropped, and the colours under it stay
    clear.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)))
    assert_reads_as(tmp_path / "a", encoded(clear, "PNG"), image, 0)
    palette = image.quantize(16)
    assert_reads_as(tmp_path / "a", encoded(palette, "PNG", transparency=3), palette.convert("RGB"), 0)


def test_exif_rotation_is_applied(tmp_path):
    for kind in ("JPEG", "PNG"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = picture(WIDTH, HEIGHT) if orientation >= 5 else picture()  # upright it is HEIGHT × WIDTH
            data = encoded(stored, kind, exif=exif)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            assert_reads_as(tmp_path / "image", data, upright, 2)


def test_images_of_any_size_are_resized_to_height_by_width(tmp_path):
    path = tmp_path / "image.png"
    for size in ((HEIGHT, WIDTH), (1, 40_000), (40_000, 1), (1, 1), (3, 5000)):
        Image.new("RGB", size[::-1], (200, 30, 90)).save(path)
        for height, width in ((24, 16), (48, 32), (1, 1), (7, 30)):
            found = read_image(path, height, width)
            assert found.shape == (height, width, 3) and (found == (200, 30, 90)).all()
    quarters = np.zeros((40, 20, 3), dtype=np.uint8)
    quarters[:20, 10:], quarters[20:, :10], quarters[20:, 10:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(quarters).save(path)
    for height, width in ((12, 8), (80, 60)):  # upright and in place
        corners = read_image(path, height, width)[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()
        assert corners == [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(path)
    assert np.abs(read_image(path, 16, 16).astype(int) - 100).max() <= 1  # shrinking averages
    bilinear = cv2.resize(stripes, (15, 16), interpolation=cv2.INTER_LINEAR)
    assert (read_image(path, 16, 15, shrink="bilinear") == bilinear).all() and np.abs(bilinear - 100.0).max() > 90
    cv2.imwrite(str(path.with_suffix(".jpg")), np.full((6000, 8000), 90, np.uint8))
    assert (read_image(path.with_suffix(".jpg"), HEIGHT, WIDTH) == 90).all()  # 48 megapixels are not too many


# ---- damaged files


def encodings() -> dict[str, bytes]:
    """One picture as every kind of file that a dataset may hold."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    image, deep = Image.fromarray(noise), noise.astype(np.uint16) * 257
    return {
        "baseline.jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "rgb.png": encoded(image, "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG", transparency=3),
        "rgb.bmp": encoded(image, "BMP"),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "plain.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "fax.tif": encoded(image.convert("1"), "TIFF", compression="group4"),
        "sixteen_bits.tif": cv2.imencode(".tif", deep)[1].tobytes(),
    }


def damage(rng: np.random.Generator, data: bytes, how: str) -> bytes:
    """The file as a bad disk, a broken download or a wrong program may leave it."""
    data = bytearray(data)
    at = int(rng.integers(len(data) - 2))  # the last two bytes of a JPEG are its end marker: nothing is lost with them
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
    elif how == "lost":
        del data[at : at + int(rng.integers(1, 40))]
    return bytes(data)


READ = """
import json, resource, sys
from pathlib import Path
from datasets.images import read_image
from utils.errors import UserError

def most_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 3 * 2**30, now + 3 * 2**30))  # protects the machine
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


def read_all(folder: Path, first: str = "") -> dict[str, tuple[str, int]]:
    """What comes of each file ("read", "refused", or what should not be) and the bytes of memory it took.

    In a process of its own, which starts with the line `first`: a fault in a decoder would end it.
    """
    command = [sys.executable, "-c", first + READ, str(folder)]
    environ = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    shown = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr[-2000:]
    return {name: (what, memory) for name, what, memory in map(json.loads, shown.stdout.splitlines())}


@pytest.mark.slow
def test_hundreds_of_damaged_files_are_read_or_refused_by_name(tmp_path):
    rng, expected = np.random.default_rng(7), 0
    for name, data in encodings().items():
        (tmp_path / f"whole_{name}").write_bytes(data)
        for how in ("cut", "header", "bits", "zeros", "lost"):
            for number in range(10):
                (tmp_path / f"{how}{number}_{name}").write_bytes(damage(rng, data, how))
                expected += 1
    found = {name: what for name, (what, _) in read_all(tmp_path).items()}
    assert {name: what for name, what in found.items() if what not in ("read", "refused")} == {}
    assert all(what == "read" for name, what in found.items() if name.startswith("whole_"))
    assert not [name for name, what in found.items() if name.startswith("cut") and what == "read"]
    assert 150 < sum(what == "refused" for what in found.values()) < expected - 100
    assert {Path(name).suffix for name in found} <= PICTURES


def claims(size: int) -> dict[str, bytes]:
    """Small files that are, or claim to be, size × size pixels large."""
    noise, huge = picture(), Image.new("L", (size, size))
    bmp = bytearray(encoded(noise, "BMP"))
    bmp[18:26] = struct.pack("<ii", size, -size)
    webp = bytearray(encoded(noise, "WEBP"))
    at = webp.find(b"\x9d\x01\x2a") + 3
    webp[at : at + 4] = struct.pack("<HH", size, size)
    fax = encoded(huge.convert("1"), "TIFF", compression="group4")
    zipped = encoded(huge, "TIFF", compression="tiff_deflate")
    png, jpeg = encoded(huge, "PNG"), encoded(huge, "JPEG")
    return {"a.png": png, "a.jpg": jpeg, "a.bmp": bmp, "a.webp": webp, "fax.tif": fax, "zipped.tif": zipped}


@pytest.mark.parametrize("first", [pytest.param("", marks=pytest.mark.slow), "import cv2"], ids=["", "cv2 first"])
def test_files_that_claim_to_be_huge_are_refused_and_take_no_memory(tmp_path, first):
    for name, data in claims(9000).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "small.tif").write_bytes(claims(500)["fax.tif"])
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.write(b"\xff\xd8")
        file.truncate(20 * 2**30)  # holes: takes no room on the disk
    found = read_all(tmp_path, first)
    assert found.pop("small.tif")[0] == "read"
    assert {name: what for name, (what, _) in found.items() if what != "refused"} == {}
    assert {n: f"{m / 2**20:.0f} MiB" for n, (_, m) in found.items() if m > 150 * 2**20} == {}


def test_a_jpeg_cut_anywhere_and_what_is_no_image_is_refused_by_name(tmp_path):
    path = tmp_path / "broken.jpg"
    for options in ({}, {"progressive": True}):
        whole = encoded(picture(128, 64), "JPEG", quality=95, **options)
        for length in {1, 2, 3, 20, len(whole) // 4, len(whole) // 2, len(whole) - 100, len(whole) - 3}:
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"broken\.jpg"):
                read_image(path, HEIGHT, WIDTH)
    for content in (b"", b"text\n", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n", bytes(5000), b"<html></html>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.jpg"):
            read_image(path, HEIGHT, WIDTH)


def error_of(path: str | Path) -> str:
    """The message that refuses a file. A reader that waits (for the writer of a pipe) fails."""
    signal.signal(signal.SIGALRM, lambda *_args: pytest.fail(f"reading {path} does not end"))
    signal.alarm(5)
    try:
        with pytest.raises(UserError) as error:
            read_image(path, HEIGHT, WIDTH)
    finally:
        signal.alarm(0)
    return str(error.value)


def test_what_is_no_file_or_may_not_be_read_is_refused_by_name_at_once(tmp_path, monkeypatch):
    made = {
        "pipe.jpg": os.mkfifo,
        "folder.jpg": os.mkdir,
        "loop.jpg": lambda path: os.symlink(path, path),
        "broken.jpg": lambda path: os.symlink(tmp_path / "gone", path),
        "endless.jpg": lambda path: os.symlink("/dev/zero", path),
        "pipe_by_link.jpg": lambda path: os.symlink(tmp_path / "pipe.jpg", path),
        "gone.jpg": lambda path: None,
    }
    for name, make in made.items():
        make(tmp_path / name)
        assert name in error_of(tmp_path / name)
    for name in ("nul\0.jpg", "\ud800.jpg", "x" * 300, "a/" * 3000):  # that no file can have
        assert name in error_of(f"{tmp_path}/{name}")
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error"), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setattr(np, "fromfile", fails(error))
            message = error_of(tmp_path / "a.jpg")
        assert "a.jpg cannot be read" in message and (getattr(error, "strerror", None) or "") in message

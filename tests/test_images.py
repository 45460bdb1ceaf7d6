"""Image files of every kind to RGB arrays, broken ones to errors that name them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.images import read_image
from utils.errors import UserError

HEIGHT, WIDTH = 24, 16


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """A smooth coloured picture without symmetry, so that a swap of channels or sides would show."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, **options) -> bytes:
    return encoded(picture(seed), "JPEG", **{"quality": 95, **options})


def assert_reads_as(path, expected, tolerance: int = 0) -> None:
    found = read_image(path, HEIGHT, WIDTH)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= tolerance


# ---- kinds of files


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_files_come_back_exactly_and_in_rgb_order(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(encoded(picture(), kind))
    assert_reads_as(path, picture())


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "L"),
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "1"),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("WEBP", "RGBA"),
    ],
)
def test_other_colour_modes_become_rgb(tmp_path, kind, mode):
    path = tmp_path / "image"
    path.write_bytes(encoded(picture().convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {})))
    with Image.open(path) as file:
        assert file.mode == mode or kind == "WEBP"
        expected = file.convert("RGB")
    assert_reads_as(path, expected, tolerance=2 if kind == "JPEG" else 0)


def test_transparency_is_dropped_and_the_colours_under_it_stay(tmp_path):
    image = picture()
    image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)))
    path = tmp_path / "image.png"
    image.save(path)
    assert_reads_as(path, picture())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 2}], ids=str)
def test_jpegs_come_back_closely(tmp_path, options):
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg(**options))
    with Image.open(path) as file:
        assert_reads_as(path, file.convert("RGB"), tolerance=2)


def test_cmyk_jpegs_become_rgb_and_not_their_negative(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(picture().convert("CMYK"), "JPEG", quality=95, subsampling=0))
    with Image.open(path) as file:
        assert file.mode == "CMYK"
    assert_reads_as(path, picture(), tolerance=30)


def test_16_bit_png_keeps_the_upper_eight_bits(tmp_path):
    gray = np.asarray(picture().convert("L"))
    path = tmp_path / "image.png"
    Image.fromarray(gray.astype(np.uint16) * 257).save(path)
    with Image.open(path) as file:
        assert file.mode == "I;16"
    assert_reads_as(path, np.repeat(gray[..., None], 3, axis=2), tolerance=1)


def test_palette_with_transparency_becomes_rgb(tmp_path):
    image = picture().quantize(16)
    path = tmp_path / "image.png"
    image.save(path, transparency=3)
    assert_reads_as(path, image.convert("RGB"))


def test_a_bitmap_with_the_short_header_of_os2_is_read(tmp_path):
    pixels = np.asarray(picture())[::-1, :, ::-1]  # from the bottom up, blue first
    header = (
        b"BM" + struct.pack("<IHHI", 26 + pixels.nbytes, 0, 0, 26) + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    )
    path = tmp_path / "image.bmp"
    path.write_bytes(header + pixels.tobytes())
    assert_reads_as(path, picture())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture(0, WIDTH, HEIGHT) if orientation >= 5 else picture()  # upright it is HEIGHT × WIDTH
    path = tmp_path / "image"
    path.write_bytes(encoded(stored, kind, exif=exif))
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    assert_reads_as(path, upright, tolerance=2)


@pytest.mark.parametrize("name", ["名前.jpg", "Füße 1.jpg", "a.jpg.jpg", "🙂.JPG", "no suffix"])
def test_any_file_name_will_do(tmp_path, name):
    (tmp_path / name).write_bytes(jpeg())
    for path in (tmp_path / name, str(tmp_path / name)):
        with Image.open(path) as file:
            assert_reads_as(path, file.convert("RGB"), tolerance=2)


# ---- sizes


@pytest.mark.parametrize(("height", "width"), [(24, 16), (48, 32), (12, 8), (1, 1), (30, 7), (7, 30)])
def test_images_are_resized_to_height_by_width(tmp_path, height, width):
    path = tmp_path / "image.png"
    Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 90)).save(path)
    found = read_image(path, height, width)
    assert found.shape == (height, width, 3)
    assert (found == (200, 30, 90)).all()


@pytest.mark.parametrize(("height", "width"), [(1, 40_000), (40_000, 1), (1, 1), (3, 5000)])
def test_pictures_of_any_proportion_are_read(tmp_path, height, width):
    path = tmp_path / "image.png"
    Image.new("RGB", (width, height), (200, 30, 90)).save(path)
    assert (read_image(path, HEIGHT, WIDTH) == (200, 30, 90)).all()


def test_resizing_keeps_the_picture_upright_and_in_place(tmp_path):
    quarters = np.zeros((40, 20, 3), dtype=np.uint8)
    quarters[:20, 10:], quarters[20:, :10], quarters[20:, 10:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = tmp_path / "image.png"
    Image.fromarray(quarters).save(path)
    for height, width in ((12, 8), (80, 60)):
        found = read_image(path, height, width)
        assert found[0, 0].tolist() == [0, 0, 0]
        assert found[0, -1].tolist() == [255, 0, 0]
        assert found[-1, 0].tolist() == [0, 255, 0]
        assert found[-1, -1].tolist() == [0, 0, 255]


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    path = tmp_path / "image.png"
    Image.fromarray(stripes).save(path)
    assert np.abs(read_image(path, 16, 16).astype(int) - 100).max() <= 1


# ---- broken files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_a_file_cut_short_by_any_number_of_bytes_is_refused(tmp_path, kind):
    whole = encoded(picture(), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(whole)
    read_image(path, HEIGHT, WIDTH)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.img"):
            read_image(path, HEIGHT, WIDTH)


def test_a_jpeg_cut_short_anywhere_is_refused_by_name(tmp_path):
    whole = encoded(picture(0, 128, 64), "JPEG", quality=95)
    path = tmp_path / "cut.jpg"
    for length in {1, 2, 3, 20, len(whole) // 4, len(whole) // 2, len(whole) - 100, len(whole) - 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.jpg"):
            read_image(path, HEIGHT, WIDTH)


def test_a_progressive_jpeg_cut_short_is_refused(tmp_path):
    whole = encoded(picture(0, 128, 64), "JPEG", quality=95, progressive=True)
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.jpg is cut short"):
        read_image(path, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_other_files_cut_short_are_refused_by_name(tmp_path, kind, share):
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cut\.img"):
        read_image(path, HEIGHT, WIDTH)


@pytest.mark.parametrize("number", [1, 500, 5000])
def test_a_whole_jpeg_with_bytes_after_its_end_is_read(tmp_path, number):
    # Cameras and phones append depth maps, films and padding after the end marker.
    path = tmp_path / "image.jpg"
    path.write_bytes(jpeg() + bytes(number))
    with Image.open(io.BytesIO(jpeg())) as file:
        assert_reads_as(path, file.convert("RGB"), tolerance=2)


@pytest.mark.parametrize(
    "content",
    [b"this is no image\n", b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n", bytes(5000), b"<html></html>"],
    ids=["text", "empty", "JPEG start", "JPEG start and end", "PNG start", "zeros", "web page"],
)
def test_files_that_are_no_images_are_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.jpg"):
        read_image(path, HEIGHT, WIDTH)


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read: No such file"):
        read_image(tmp_path / "gone.jpg", HEIGHT, WIDTH)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match=r"folder\.jpg cannot be read"):
        read_image(tmp_path / "folder.jpg", HEIGHT, WIDTH)

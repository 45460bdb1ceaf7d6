"""Augmentation by its statistics over many draws, and by what each image turns into."""

from functools import cache

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision

from datasets.augment import MEAN, STD, augment, batch_generator, normalise, pad_crop, random_erasing, random_flip


def pictures(number: int = 6, height: int = 12, width: int = 8, seed: int = 0) -> torch.Tensor:
    """(number, height, width, 3) uint8 noise."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (number, height, width, 3), dtype=np.uint8))


def coordinates(number: int, height: int, width: int) -> torch.Tensor:
    """(number, height, width, 3) uint8 images whose first channel is the row and second the column, from 1 up."""
    image = torch.zeros(height, width, 3, dtype=torch.uint8)
    image[..., 0] = torch.arange(1, height + 1)[:, None]
    image[..., 1] = torch.arange(1, width + 1)
    return image.expand(number, -1, -1, -1)


def within_noise(count: int, draws: int, probability: float) -> bool:
    """Whether `count` of `draws` is within 4.5 deviations of what the probability gives."""
    return abs(count - draws * probability) <= 4.5 * (draws * probability * (1 - probability)) ** 0.5


# ---- the generator


def test_the_generator_of_a_batch_follows_from_its_key_alone():
    draws = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 2, 3), (3, 2, 1), (2**31, 10_000, 10_000)]:
        torch.manual_seed(len(draws))
        draws[key] = tuple(torch.rand(4, generator=batch_generator(*key)).tolist())
        assert tuple(torch.rand(4, generator=batch_generator(*key)).tolist()) == draws[key]
    assert len(set(draws.values())) == len(draws)


def test_augmentation_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    augment(pictures(), 0.5, 2, 0.5, batch_generator(0))
    assert torch.equal(torch.rand(3), expected)


# ---- normalisation


def test_normalise_equals_torchvision():
    images = pictures(5, 7, 9)
    scaled = vision.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = vision.normalize(scaled, list(MEAN), list(STD))
    found = normalise(images)
    assert found.shape == (5, 3, 7, 9)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_normalise_uses_the_mean_and_deviation_of_imagenet():
    assert MEAN == (0.485, 0.456, 0.406)
    assert STD == (0.229, 0.224, 0.225)
    black_white = torch.tensor([[[[0, 0, 0], [255, 255, 255]]]], dtype=torch.uint8)
    found = normalise(black_white)[0, :, 0]
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        assert found[channel].tolist() == pytest.approx([-mean / std, (1 - mean) / std], abs=1e-5)


# ---- flip


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_flips_come_with_their_probability_and_mirror_left_to_right(probability):
    image = pictures(1)
    images = image.expand(10_000, -1, -1, -1)
    result = random_flip(images, probability, batch_generator(1))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    mirrored = torch.from_numpy(image.numpy()[:, :, ::-1].copy())
    flipped = (result == mirrored).flatten(1).all(1)
    kept = (result == image).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert within_noise(int(flipped.sum()), 10_000, probability)


def test_flips_of_neighbouring_images_are_independent():
    images = coordinates(20_000, 1, 2)
    flipped = random_flip(images, 0.5, batch_generator(2))[:, 0, 0, 1] == 2
    assert within_noise(int((flipped[::2] == flipped[1::2]).sum()), 10_000, 0.5)


# ---- crop


@pytest.mark.parametrize(("height", "width", "pad"), [(8, 9, 3), (9, 5, 1), (24, 12, 10)])
def test_crop_offsets_are_uniform_over_their_whole_range(height, width, pad):
    draws = 12_000
    result = pad_crop(coordinates(draws, height, width), pad, batch_generator(3))
    # Every window holds some pixels of the image: from any of them the offset of the window follows.
    rows, columns = result[..., 0].int(), result[..., 1].int()
    top = pad + (rows.amax((1, 2)) - (rows.argmax(1) * (rows.amax(1) > 0)).amax(1)) - 1
    left = pad + (columns.amax((1, 2)) - (columns.argmax(2) * (columns.amax(2) > 0)).amax(1)) - 1
    share = 1 / (2 * pad + 1)
    for offset in (top, left):
        assert sorted(set(offset.tolist())) == list(range(2 * pad + 1))
        assert all(within_noise(int((offset == value).sum()), draws, share) for value in range(2 * pad + 1))
    together = torch.bincount(top * (2 * pad + 1) + left, minlength=(2 * pad + 1) ** 2)
    chi_square = float(((together - draws * share**2) ** 2 / (draws * share**2)).sum())
    freedom = (2 * pad + 1) ** 2 - 1  # rows and columns independent: chi-square is about freedom ± sqrt(2 freedom)
    assert abs(chi_square - freedom) < 4.5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("height", "width", "pad"), [(6, 4, 2), (4, 7, 1), (3, 3, 5)])
def test_crops_are_windows_of_the_image_with_a_black_border(height, width, pad):
    images = pictures(40, height, width, seed=4) | 1  # no black of its own
    result = pad_crop(images, pad, batch_generator(4))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    for image, found in zip(images.numpy(), result.numpy(), strict=True):
        windows = []
        for top in range(-pad, pad + 1):
            for left in range(-pad, pad + 1):
                window = np.zeros_like(image)
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + top < height and 0 <= x + left < width:
                            window[y, x] = image[y + top, x + left]
                windows.append(window)
        assert any(np.array_equal(found, window) for window in windows)


def test_a_crop_without_padding_changes_nothing():
    images = pictures()
    assert torch.equal(pad_crop(images, 0, batch_generator(0)), images)


# ---- erasing


def boxes(erased: torch.Tensor) -> torch.Tensor:
    """(B, 4) top, left, height, width of the erased pixels (B, H, W); each must be one full rectangle."""
    rows, columns = erased.any(2), erased.any(1)
    tall, wide = rows.sum(1), columns.sum(1)
    top, left = rows.int().argmax(1), columns.int().argmax(1)
    assert torch.equal(erased.sum((1, 2)), tall * wide)
    y, x = torch.arange(erased.shape[1]), torch.arange(erased.shape[2])
    assert torch.equal(rows, (y >= top[:, None]) & (y < (top + tall)[:, None]))
    assert torch.equal(columns, (x >= left[:, None]) & (x < (left + wide)[:, None]))
    return torch.stack([top, left, tall, wide], 1)


@cache
def erased_boxes(height: int, width: int) -> torch.Tensor:
    """The rectangles of 12,000 images of ones, each erased."""
    result = []
    for part in range(12):
        images = random_erasing(torch.ones(1000, 3, height, width), 1.0, batch_generator(5, part))
        erased = images == 0
        assert (erased | (images == 1)).all()
        assert torch.equal(erased.any(1), erased.all(1))
        result.append(boxes(erased[:, 0]))
    return torch.cat(result).double()


def paper_boxes(height: int, width: int, draws: int = 12_000) -> np.ndarray:
    """Zhong et al. 2020, algorithm 1, one image at a time: draw area and aspect until the rectangle fits."""
    rng = np.random.default_rng(6)
    result = []
    while len(result) < draws:
        area = rng.uniform(0.02, 0.4) * height * width
        aspect = rng.uniform(0.3, 1 / 0.3)
        tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if tall < height and wide < width:
            result.append((rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1), tall, wide))
    return np.array(result, dtype=float)


@pytest.mark.parametrize(("height", "width"), [(48, 24), (32, 32), (24, 48)])
def test_erased_rectangles_have_the_area_and_aspect_of_the_paper(height, width):
    top, left, tall, wide = erased_boxes(height, width).T
    # Sides are rounded to whole pixels: half a pixel either way.
    assert float(((tall + 0.5) * (wide + 0.5)).min()) >= 0.02 * height * width
    assert float(((tall - 0.5) * (wide - 0.5)).max()) <= 0.4 * height * width
    assert float(((tall + 0.5) / (wide - 0.5)).min()) >= 0.3
    assert float(((tall - 0.5) / (wide + 0.5)).max()) <= 1 / 0.3
    assert (top + tall <= height).all() and (left + wide <= width).all()
    expected = paper_boxes(height, width).T
    quantities = {
        "area": lambda y, x, h, w: h * w / (height * width),
        "aspect": lambda y, x, h, w: h / w,
        "height": lambda y, x, h, w: h / height,
        "width": lambda y, x, h, w: w / width,
        "row": lambda y, x, h, w: y / (height - h),
        "column": lambda y, x, h, w: x / (width - w),
    }
    for name, quantity in quantities.items():
        found, wanted = quantity(*(x.numpy() for x in (top, left, tall, wide))), quantity(*expected)
        for level in (0.05, 0.25, 0.5, 0.75, 0.95):
            # the share of our values up to a quantile of the paper's, and of the paper's own (ties of whole pixels)
            edge = np.quantile(wanted, level)
            assert abs((found <= edge).mean() - (wanted <= edge).mean()) < 0.03, name


@pytest.mark.parametrize(("height", "width"), [(48, 24), (24, 48)])
def test_erased_rectangles_reach_all_four_edges(height, width):
    top, left, tall, wide = erased_boxes(height, width).T
    for touches in (top == 0, left == 0, top + tall == height, left + wide == width):
        assert touches.any()
        assert not touches.all()


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_erasing_comes_with_its_probability(probability):
    images = torch.ones(12_000, 3, 16, 8)
    erased = (random_erasing(images, probability, batch_generator(7)) == 0).flatten(1).any(1)
    assert within_noise(int(erased.sum()), 12_000, probability)


def test_erasing_fills_0_and_leaves_the_rest_as_it_was():
    images = torch.randn(500, 3, 32, 16, generator=torch.Generator().manual_seed(0)) + 10
    before = images.clone()
    result = random_erasing(images, 0.5, batch_generator(8))
    erased = result == 0
    assert erased.any()
    assert torch.equal(result, torch.where(erased, 0.0, before))
    assert torch.equal(erased.all(1), erased.any(1))  # all channels of a pixel
    assert torch.equal(images, before)


def test_area_and_aspect_of_erasing_can_be_set():
    result = random_erasing(torch.ones(2000, 3, 60, 60), 1.0, batch_generator(9), area=(0.1, 0.12), aspect=0.8)
    _, _, tall, wide = boxes(result[:, 0] == 0).T
    assert (((tall + 0.5) * (wide + 0.5)) >= 0.1 * 3600).all()
    assert (((tall - 0.5) * (wide - 0.5)) <= 0.12 * 3600).all()
    assert (((tall + 0.5) / (wide - 0.5)) >= 0.8).all()
    assert (((tall - 0.5) / (wide + 0.5)) <= 1.25).all()


# ---- the whole recipe


@pytest.mark.parametrize(("height", "width"), [(12, 8), (8, 12), (7, 7)])
@pytest.mark.parametrize(("flip", "pad", "erase"), [(0, 0, 0), (1, 0, 0), (0, 3, 0), (0, 0, 1), (0.5, 2, 0.5)])
def test_any_setting_gives_float32_batches_of_the_input_size(height, width, flip, pad, erase):
    images = pictures(5, height, width)
    before = images.clone()
    result = augment(images, flip, pad, erase, batch_generator(0))
    assert result.shape == (5, 3, height, width)
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert torch.equal(images, before)


def test_everything_off_is_normalisation_alone():
    images = pictures()
    assert torch.equal(augment(images, 0, 0, 0, batch_generator(0)), normalise(images))


def test_a_certain_flip_alone_is_the_mirror_image():
    images = pictures()
    assert torch.equal(augment(images, 1, 0, 0, batch_generator(0)), normalise(images).flip(3))


def test_the_border_of_a_crop_is_black_and_what_is_erased_is_the_mean_colour():
    white = torch.full((300, 12, 8, 3), 255, dtype=torch.uint8)
    result = augment(white, 0, 3, 1, batch_generator(10))
    black, erased, bright = (normalise(torch.full((1, 1, 1, 3), v, dtype=torch.uint8))[0] for v in (0, 0, 255))
    erased = torch.zeros_like(erased)
    kinds = torch.stack([(result - colour).abs().amax(1) < 1e-5 for colour in (black, erased, bright)])
    assert (kinds.sum(0) == 1).all()
    assert all(kind.any() for kind in kinds)


def test_the_same_generator_seed_gives_the_same_batch_and_another_does_not():
    images = pictures(16)
    one, again, other = (augment(images, 0.5, 3, 0.5, batch_generator(0, 1, step)) for step in (2, 2, 3))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("flip", "pad", "erase"), [(0.5, 0, 0), (0, 4, 0), (0, 0, 0.9)], ids=["flip", "crop", "erase"])
def test_images_of_one_batch_are_not_augmented_alike(flip, pad, erase):
    images = pictures(1).expand(64, -1, -1, -1)
    result = augment(images, flip, pad, erase, batch_generator(11))
    different = {tuple(image.flatten().tolist()) for image in result}
    assert len(different) == 2 if flip else len(different) > 16

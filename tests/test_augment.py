"""Augmentation: its random numbers, flip, crop and erasing by their statistics, and the recipe that settings make."""

from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision

from config import Config
from datasets.augment import MEAN, OFF, STD, TRANSFORMS, augment, normalise
from datasets.augment.boxes import cutout, erase_, local_grayscale, paint_, random_boxes, random_erasing
from datasets.augment.colour import autoaugment, colour_jitter, random_grayscale
from datasets.augment.draws import Draws, on_chosen
from datasets.augment.geometry import (
    pad_crop,
    random_affine,
    random_flip,
    random_rotation,
    random_translation,
    windows,
)

# Every transform at a probability or magnitude that changes most images.
FUNCTIONS = {
    "flip": lambda images, draws: random_flip(images, 0.6, draws),
    "crop": lambda images, draws: pad_crop(images, 2, draws),
    "translation": lambda images, draws: random_translation(images, 0.8, draws),
    "rotation": lambda images, draws: random_rotation(images, 0.8, 30, draws),
    "affine": lambda images, draws: random_affine(images, 0.8, draws),
    "jitter": lambda images, draws: colour_jitter(images, 0.8, (0.5, 0.5, 0.5, 0.3), draws),
    "grayscale": lambda images, draws: random_grayscale(images, 0.6, draws),
    "local grayscale": lambda images, draws: local_grayscale(images, 0.8, draws),
    "autoaugment": lambda images, draws: autoaugment(images, 0.8, draws),
    "cutout": lambda images, draws: cutout(images, 0.8, 0.5, draws),
    "erasing": lambda images, draws: random_erasing(images, 0.8, "zero", draws),
    "erasing, noise": lambda images, draws: random_erasing(images, 0.8, "random", draws),
}
EVERYTHING = {name: 0.7 for name in OFF if name != "pad"} | {"pad": 2, "erase_fill": "mean"}


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


def uniform(values: torch.Tensor, low: float, high: float) -> bool:
    """Whether values lie in [low, high] and each tenth of it holds its share of them."""
    counts = torch.histc(values.double(), 10, low, high)
    inside = bool((values >= low).all() and (values <= high).all())
    return inside and all(within_noise(int(count), len(values), 0.1) for count in counts)


# ---- random numbers


def test_the_draws_of_a_batch_follow_from_its_key_alone():
    found = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 2, 3), (3, 2, 1), (2**31, 10_000, 10_000)]:
        torch.manual_seed(len(found))
        found[key] = tuple(Draws(*key, batch=4).uniform(0, 1).tolist())
        assert tuple(Draws(*key, batch=4).uniform(0, 1).tolist()) == found[key]
    assert len(set(found.values())) == len(found)


def test_draws_have_the_ranges_and_shapes_they_say_and_fill_them_evenly():
    draws = Draws(0, batch=20_000)
    assert uniform(draws.uniform(-3, 5), -3, 5)
    integers = draws.integers(-1, 4, 2)
    assert integers.shape == (20_000, 2)
    assert sorted(set(integers.flatten().tolist())) == [-1, 0, 1, 2, 3]
    assert all(within_noise(int((integers == n).sum()), 40_000, 0.2) for n in range(-1, 4))
    assert draws.uniform(0, 1, 3, 2).shape == (20_000, 3, 2)
    assert draws.bytes(3, 5, 1).shape == (20_000, 3, 5, 1)
    for probability in (0.0, 0.3, 1.0):
        assert within_noise(int(draws.chance(probability).sum()), 20_000, probability)


@pytest.mark.parametrize("shape", [(), (3,), (7, 7, 3)])
def test_bytes_are_all_equally_likely_and_independent(shape):
    values = Draws(1, batch=500_000 // int(np.prod(shape))).bytes(*shape)
    assert values.dtype == torch.uint8
    values = values.flatten().long()
    for numbers in (values, values[::8], values[1:] ^ values[:-1], values[8:] ^ values[:-8]):
        counts = torch.bincount(numbers, minlength=256).double()
        chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert abs(chi_square - 255) < 4.5 * (2 * 255) ** 0.5


def test_shares_of_a_batch_draw_what_the_whole_batch_draws():
    def all_draws(draws: Draws) -> list[torch.Tensor]:
        return [draws.uniform(0, 1), draws.bytes(5), draws.integers(0, 9, 2), draws.chance(0.5), draws.uniform(0, 1, 3)]

    whole = all_draws(Draws(3, 1, batch=10))
    for first, batch in [(0, 10), (0, 4), (4, 5), (9, 1), (10, 0)]:
        part = all_draws(Draws(3, 1, batch=batch, first=first, total=10))
        assert all(torch.equal(p, w[first : first + batch]) for p, w in zip(part, whole, strict=True))


@pytest.mark.parametrize(("first", "batch", "total"), [(1, 10, 10), (-1, 2, 10), (1, 5, None)])
def test_a_share_that_is_no_part_of_the_batch_is_refused(first, batch, total):
    with pytest.raises(ValueError, match=f"images {first} to {first + batch} are no part"):
        Draws(0, batch=batch, first=first, total=total)


def test_a_change_of_some_images_sees_these_and_their_numbers_and_leaves_the_others():
    images, chosen = pictures(5), torch.tensor([False, True, False, True, True])
    numbers, seen = torch.arange(5), []

    def change(some: torch.Tensor, their: torch.Tensor) -> torch.Tensor:
        seen.append((some, their))
        return 255 - some

    result = on_chosen(images, chosen, change, numbers)
    assert torch.equal(result, torch.where(chosen[:, None, None, None], 255 - images, images))
    assert len(seen) == 1
    assert torch.equal(seen[0][0], images[chosen])
    assert seen[0][1].tolist() == [1, 3, 4]
    assert torch.equal(on_chosen(images, torch.zeros(5, dtype=torch.bool), change), images)
    assert len(seen) == 1  # nobody chosen: not called


# ---- normalisation


def test_normalise_equals_torchvision():
    images = pictures(5, 7, 9)
    scaled = vision.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = vision.normalize(scaled, list(MEAN), list(STD))
    found = normalise(images)
    assert found.shape == (5, 3, 7, 9)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
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
    result = random_flip(images, probability, Draws(1, batch=10_000))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    mirrored = torch.from_numpy(image.numpy()[:, :, ::-1].copy())
    flipped = (result == mirrored).flatten(1).all(1)
    kept = (result == image).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert within_noise(int(flipped.sum()), 10_000, probability)


def test_flips_of_neighbouring_images_are_independent():
    images = coordinates(20_000, 1, 2)
    flipped = random_flip(images, 0.5, Draws(2, batch=20_000))[:, 0, 0, 1] == 2
    assert within_noise(int((flipped[::2] == flipped[1::2]).sum()), 10_000, 0.5)


# ---- crop


def test_windows_are_cut_at_each_images_own_place():
    images = pictures(30, 9, 7)
    rng = np.random.default_rng(0)
    top, left = torch.from_numpy(rng.integers(0, 9 - 4 + 1, 30)), torch.from_numpy(rng.integers(0, 7 - 5 + 1, 30))
    expected = torch.stack([i[t : t + 4, x : x + 5] for i, t, x in zip(images, top, left, strict=True)])
    assert torch.equal(windows(images, top, left, 4, 5), expected)
    transposed = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # another order in memory
    assert torch.equal(windows(transposed, top, left, 4, 5), expected)


@pytest.mark.parametrize(("height", "width", "pad"), [(8, 9, 3), (9, 5, 1), (24, 12, 10)])
def test_crop_offsets_are_uniform_over_their_whole_range(height, width, pad):
    draws = 12_000
    result = pad_crop(coordinates(draws, height, width), pad, Draws(3, batch=draws))
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
    result = pad_crop(images, pad, Draws(4, batch=40))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    for image, found in zip(images.numpy(), result.numpy(), strict=True):
        candidates = []
        for top in range(-pad, pad + 1):
            for left in range(-pad, pad + 1):
                window = np.zeros_like(image)
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + top < height and 0 <= x + left < width:
                            window[y, x] = image[y + top, x + left]
                candidates.append(window)
        assert any(np.array_equal(found, window) for window in candidates)


def test_a_crop_without_padding_changes_nothing():
    images = pictures()
    assert torch.equal(pad_crop(images, 0, Draws(0, batch=6)), images)


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


def ones(number: int, height: int, width: int) -> torch.Tensor:
    return torch.ones(number, height, width, 3, dtype=torch.uint8)


@cache
def erased_boxes(height: int, width: int) -> torch.Tensor:
    """The rectangles of 12,000 images of ones, each erased."""
    result = []
    for part in range(12):
        erased = random_erasing(ones(1000, height, width), 1.0, "zero", Draws(5, part, batch=1000)) == 0
        assert torch.equal(erased.any(3), erased.all(3))
        result.append(boxes(erased[..., 0]))
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
    result = random_erasing(ones(12_000, 16, 8), probability, "zero", Draws(7, batch=12_000))
    assert within_noise(int((result == 0).flatten(1).any(1).sum()), 12_000, probability)


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_erasing_fills_0_and_leaves_the_rest_and_its_input_as_they_were(fill):
    images = torch.randn(500, 32, 16, 3, generator=torch.Generator().manual_seed(0)) + 10
    before = images.clone()
    result = random_erasing(images, 0.5, fill, Draws(8, batch=500))
    erased = result == 0
    assert erased.any()
    assert torch.equal(result, torch.where(erased, 0.0, before))
    assert torch.equal(erased.all(3), erased.any(3))  # all channels of a pixel
    assert torch.equal(images, before)
    assert erase_(images, 0.5, fill, Draws(8, batch=500)) is images  # and the same in place
    assert torch.equal(images, result)


def test_noise_is_uniform_and_independent_between_pixels_channels_and_images():
    result = random_erasing(ones(400, 32, 16) * 7, 1.0, "random", Draws(9, batch=400))
    where = random_erasing(ones(400, 32, 16), 1.0, "zero", Draws(9, batch=400)) == 0  # the same rectangles
    assert (result[~where] == 7).all()
    values = result[where].long().view(-1, 3)  # in the order of images, rows and columns
    assert uniform(values.flatten().double() + 0.5, 0, 256)
    red, green, blue = values.T
    pairs = {"channels": (red, green), "others": (green, blue), "pixels": (red[1:], red[:-1])}
    pairs["images"] = tuple(result[i : i + 399][(where[:-1] & where[1:])].long() for i in (0, 1))
    for name, (one, other) in pairs.items():
        assert within_noise(int((one == other).sum()), len(one), 1 / 256), name


def test_area_and_aspect_of_rectangles_can_be_set():
    found = random_boxes(60, 60, 1.0, Draws(9, batch=2000), area=(0.1, 0.12), aspect=0.8)
    tall, wide = found[:, 2], found[:, 3]
    assert (((tall + 0.5) * (wide + 0.5)) >= 0.1 * 3600).all()
    assert (((tall - 0.5) * (wide - 0.5)) <= 0.12 * 3600).all()
    assert (((tall + 0.5) / (wide - 0.5)) >= 0.8).all()
    assert (((tall - 0.5) / (wide + 0.5)) <= 1.25).all()


def test_an_image_that_no_rectangle_fits_stays_whole():
    found = random_boxes(8, 4, 1.0, Draws(0, batch=50), area=(0.9, 0.95), aspect=0.9)  # a square of five by five
    assert (found[:, 2] == 0).all()
    images = ones(50, 8, 4)
    assert torch.equal(paint_(images.clone(), found, lambda old, numbers: old * 0), images)


# ---- every transform


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("height", "width"), [(16, 8), (7, 7), (9, 21)])
def test_a_transform_gives_new_uint8_images_of_the_same_size_and_leaves_its_input(name, height, width):
    images = pictures(12, height, width)
    before = images.clone()
    result = FUNCTIONS[name](images, Draws(0, batch=12))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert result.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)
    assert not torch.equal(result, images)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_processes_with_shares_of_a_batch_make_the_batch_of_a_single_process(name):
    images = pictures(12, 16, 8)
    whole = FUNCTIONS[name](images, Draws(5, batch=12))
    for first, end in [(0, 5), (5, 6), (6, 12)]:
        draws = Draws(5, batch=end - first, first=first, total=12)
        assert torch.equal(FUNCTIONS[name](images[first:end], draws), whole[first:end])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_transform_does_not_mind_the_order_of_its_images_in_memory(name):
    images = pictures(12, 16, 8)
    planes = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(FUNCTIONS[name](planes, Draws(5, batch=12)), FUNCTIONS[name](images, Draws(5, batch=12)))
    assert torch.equal(normalise(planes), normalise(images))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_images_of_one_batch_are_not_transformed_alike(name):
    images = pictures(1, 16, 8).expand(64, -1, -1, -1)
    different = {tuple(image.flatten().tolist()) for image in FUNCTIONS[name](images, Draws(11, batch=64))}
    possible = {"flip": 2, "grayscale": 2, "translation": 3 * 2 + 1}  # 18 × 9 pixels hold six windows of 16 × 8
    assert len(different) == possible[name] if name in possible else len(different) > 16


# ---- the recipe


def recipe(**changes: object) -> Config:
    return Config().replace(**{**OFF, **changes})


def test_off_is_every_switch_and_each_has_its_transform():
    assert set(OFF) == {f.name for f in fields(Config) if f.name.endswith("_prob")} | {"pad"}
    assert not any(OFF.values())
    assert {name for switched in TRANSFORMS.values() for name in switched} == {*OFF, "erase_fill"}


@pytest.mark.parametrize("name", [*TRANSFORMS, "nothing", "everything"])
@pytest.mark.parametrize(("height", "width"), [(12, 8), (7, 7), (33, 17)])
def test_any_setting_gives_float32_batches_of_the_input_size(name, height, width):
    changes = TRANSFORMS.get(name, EVERYTHING if name == "everything" else {})
    images = pictures(5, height, width)
    before = images.clone()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, again, other = (augment(images, recipe(**changes), Draws(0, 1, step, batch=5)) for step in (2, 2, 3))
    assert torch.equal(torch.rand(3), expected)  # the global random state is as it was
    assert one.shape == (5, 3, height, width)
    assert one.dtype == torch.float32
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert one.isfinite().all()
    assert torch.equal(images, before)
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (name in ("flip", "grayscale", "nothing"))  # at probability 1 these are certain
    assert torch.equal(one, normalise(images)) == (name == "nothing")


@pytest.mark.parametrize("name", sorted({*TRANSFORMS} - {"AutoAugment"}))
def test_no_transform_reads_pixels_back_from_the_device(name):
    images = torch.empty(5, 16, 8, 3, dtype=torch.uint8, device="meta")  # a device that holds no values to read
    assert augment(images, recipe(**TRANSFORMS[name]), Draws(0, batch=5)).device.type == "meta"


def test_processes_with_shares_of_a_batch_make_one_recipes_batch():
    images = pictures(12, 16, 8)
    whole = augment(images, recipe(**EVERYTHING), Draws(5, batch=12))
    for first, end in [(0, 5), (5, 6), (6, 12)]:
        draws = Draws(5, batch=end - first, first=first, total=12)
        assert torch.equal(augment(images[first:end], recipe(**EVERYTHING), draws), whole[first:end])


def test_the_default_recipe_flips_then_crops_then_normalises_then_erases():
    images, draws = pictures(50, 24, 12), Draws(4, batch=50)
    expected = pad_crop(random_flip(images, 0.5, draws), 10, draws)
    expected = random_erasing(normalise(expected).permute(0, 2, 3, 1), 0.5, "mean", draws).permute(0, 3, 1, 2)
    assert torch.equal(augment(images, Config(), Draws(4, batch=50)), expected)


@pytest.mark.parametrize(
    ("changes", "function"),
    [
        ({"pad": 3}, lambda images, draws: pad_crop(images, 3, draws)),
        ({"rotate_prob": 0.8, "rotate_degrees": 50.0}, lambda images, draws: random_rotation(images, 0.8, 50, draws)),
        ({"cutout_prob": 0.8, "cutout_size": 0.6}, lambda images, draws: cutout(images, 0.8, 0.6, draws)),
        (
            {"jitter_prob": 0.8, "jitter": (0.9, 0.1, 0.5, 0.4)},
            lambda images, draws: colour_jitter(images, 0.8, (0.9, 0.1, 0.5, 0.4), draws),
        ),
    ],
    ids=["crop", "rotation", "cutout", "jitter"],
)
def test_magnitudes_are_those_of_the_settings(changes, function):
    images = pictures(20, 24, 12)
    expected = normalise(function(images, Draws(6, batch=20)))
    assert torch.equal(augment(images, recipe(**changes), Draws(6, batch=20)), expected)


def test_a_certain_flip_alone_is_the_mirror_image():
    images = pictures()
    assert torch.equal(augment(images, recipe(flip_prob=1), Draws(0, batch=6)), normalise(images).flip(3))


@pytest.mark.parametrize("fill", ["mean", "zero", "random"])
def test_the_border_of_a_crop_is_black_and_what_is_erased_has_the_colour_of_the_settings(fill):
    white = torch.full((300, 12, 8, 3), 255, dtype=torch.uint8)
    result = augment(white, recipe(pad=3, erase_prob=1, erase_fill=fill), Draws(10, batch=300))
    black, bright = (normalise(torch.full((1, 1, 1, 3), v, dtype=torch.uint8))[0] for v in (0, 255))
    kinds = [(result - colour).abs().amax(1) < 1e-5 for colour in (black, torch.zeros(3, 1, 1), bright)]
    counts = [bool(kind.any()) for kind in kinds]
    assert counts == [True, fill == "mean", True]
    if fill == "random":  # noise: hardly ever black or white
        assert not (kinds[0] | kinds[2]).all()
        values = (result * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
        torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-3)
    else:
        assert sum(kind.int() for kind in kinds).eq(1).all()


def test_what_is_erased_is_neither_moved_nor_tinted_by_other_transforms():
    changes = {name: 1.0 for name in EVERYTHING if name.endswith("_prob")} | {"pad": 2}
    result = augment(pictures(64, 24, 12), recipe(**changes), Draws(3, batch=64))
    erased = (result == 0).all(1)
    assert erased.flatten(1).any(1).all()
    boxes(erased)

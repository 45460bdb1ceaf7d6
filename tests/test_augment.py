"""Augmentation: its random numbers, each transform against an obvious reference, and what all of them promise."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision
from torchvision.transforms.v2 import AutoAugment, InterpolationMode

from datasets import augment_rare as module
from datasets.augment import MEAN, STD, Draws, normalise, pad_crop, random_flip, to_pixels, windows
from datasets.augment_rare import (
    affine,
    autoaugment,
    colour_jitter,
    cutout,
    jitter,
    local_grayscale,
    random_affine,
    random_erasing,
    random_grayscale,
    random_rotation,
    random_translation,
)  # fmt: skip

FUNCTIONS = {  # every transform with a probability, and for some a magnitude that changes most images
    "flip": lambda images, draws, p: random_flip(images, p, draws),
    "translation": lambda images, draws, p: random_translation(images, p, draws),
    "rotation": lambda images, draws, p: random_rotation(images, p, 30, draws),
    "affine": lambda images, draws, p: random_affine(images, p, draws),
    "jitter": lambda images, draws, p: colour_jitter(images, p, (0.5, 0.5, 0.5, 0.3), draws),
    "grayscale": lambda images, draws, p: random_grayscale(images, p, draws),
    "local grayscale": lambda images, draws, p: local_grayscale(images, p, draws),
    "autoaugment": lambda images, draws, p: autoaugment(images, p, draws),
    "cutout": lambda images, draws, p: cutout(images, p, 0.5, draws),
    "erasing": lambda images, draws, p: random_erasing(images, p, "zero", draws),
    "erasing, noise": lambda images, draws, p: random_erasing(images, p, "random", draws),
}


def pictures(number: int = 6, height: int = 12, width: int = 8, seed: int = 0) -> torch.Tensor:
    """(number, height, width, 3) uint8 noise."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (number, height, width, 3), dtype=np.uint8))


def smooth(number: int, height: int, width: int) -> torch.Tensor:
    """(number, height, width, 3) uint8 blobs of colour: rounding of a place changes little."""
    small = pictures(number, 5, 4, seed=1).permute(0, 3, 1, 2)
    return vision.resize(small, [height, width]).permute(0, 2, 3, 1).contiguous()


def within_noise(count: int, draws: int, probability: float) -> bool:
    """Whether `count` of `draws` is within 4.5 deviations of what the probability gives."""
    return abs(count - draws * probability) <= 4.5 * (draws * probability * (1 - probability)) ** 0.5


def uniform(values: torch.Tensor, low: float, high: float) -> bool:
    """Whether values lie in [low, high] and each tenth of it holds its share of them."""
    counts = torch.histc(values.double(), 10, low, high)
    inside = bool((values >= low).all() and (values <= high).all())
    return inside and all(within_noise(int(count), len(values), 0.1) for count in counts)


def assert_close(found: torch.Tensor, expected: torch.Tensor, share: float = 2e-3) -> None:
    """At most one step of 255 apart, and rarely: arithmetic in another order rounds differently."""
    different = (found.int() - expected.int()).abs()
    assert int(different.max()) <= 1 and float(different.float().mean()) < share


# ---- random numbers


def test_draws_follow_from_their_key_alone_and_are_uniform():
    found = {}
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 2, 3), (3, 2, 1), (2**31, 10_000, 10_000)]:
        torch.manual_seed(len(found))
        found[key] = tuple(Draws(*key, batch=4).uniform(0, 1).tolist())
        assert tuple(Draws(*key, batch=4).uniform(0, 1).tolist()) == found[key]
    assert len(set(found.values())) == len(found)
    draws = Draws(0, batch=20_000)
    assert uniform(draws.uniform(-3, 5), -3, 5)
    integers = draws.integers(-1, 4, 2)
    assert integers.shape == (20_000, 2)
    assert all(within_noise(int((integers == n).sum()), 40_000, 0.2) for n in range(-1, 4))
    for probability in (0.0, 0.3, 1.0):
        assert within_noise(int(draws.chance(probability).sum()), 20_000, probability)
    values = Draws(1, batch=3000).bytes(7, 7, 3)
    assert values.shape == (3000, 7, 7, 3) and values.dtype == torch.uint8
    values = values.flatten().long()
    for numbers in (values, values[::8], values[1:] ^ values[:-1], values[8:] ^ values[:-8]):
        counts = torch.bincount(numbers, minlength=256).double()
        assert abs(float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) - 255) < 4.5 * (2 * 255) ** 0.5


# ---- normalisation


def test_normalise_equals_torchvision_and_to_pixels_inverts_it():
    images = pictures(5, 7, 9)
    scaled = vision.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    found = normalise(images)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, vision.normalize(scaled, list(MEAN), list(STD)), rtol=0, atol=2e-6)
    assert np.array_equal(to_pixels(found), images.numpy())
    assert (MEAN, STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# ---- geometry


def test_flips_mirror_left_to_right_with_their_probability():
    images = pictures(2000)
    flipped = random_flip(images, 0.3, Draws(1, batch=2000))
    mirrored = (flipped == images.flip(2)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) ^ mirrored).all()
    assert within_noise(int(mirrored.sum()), 2000, 0.3)


def test_windows_and_crops_equal_slices_and_their_places_are_uniform():
    images, rng = pictures(30, 9, 7), np.random.default_rng(0)
    top, left = torch.from_numpy(rng.integers(0, 6, 30)), torch.from_numpy(rng.integers(0, 3, 30))
    expected = torch.stack([i[t : t + 4, x : x + 5] for i, t, x in zip(images, top, left, strict=True)])
    transposed = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # another order in memory
    assert torch.equal(windows(images, top, left, 4, 5), expected)
    assert torch.equal(windows(transposed, top, left, 4, 5), expected)
    for height, width, pad in [(6, 4, 2), (4, 7, 1), (3, 3, 5)]:
        image = pictures(1, height, width, seed=4) | 1  # no black of its own
        padded = torch.nn.functional.pad(image[0], (0, 0, pad, pad, pad, pad))
        found = pad_crop(image.expand(8000, -1, -1, -1), pad, Draws(3, batch=8000))
        places = [(y, x) for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        shifted = [padded[y : y + height, x : x + width].flatten() for y, x in places]
        kinds, number = torch.unique(torch.stack(shifted), dim=0, return_counts=True)  # some are all black
        counts = [int((found.flatten(1) == kind).all(1).sum()) for kind in kinds]
        assert sum(counts) == 8000
        assert all(within_noise(c, 8000, int(n) / len(places)) for c, n in zip(counts, number, strict=True))


def test_affine_equals_torchvision_on_each_image():
    rng = np.random.default_rng(0)
    for height, width in [(32, 16), (15, 31), (7, 7)]:
        images = smooth(20, height, width)
        numbers = [rng.uniform(low, high, 20) for low, high in ((-180, 180), (0.5, 2), (-40, 40))]
        found = affine(images, *(torch.from_numpy(n).float() for n in numbers))
        for image, result, angle, scale, shear in zip(images, found, *numbers, strict=True):
            options = {"interpolation": InterpolationMode.BILINEAR}
            expected = vision.affine(image.permute(2, 0, 1), angle, [0, 0], scale, [shear, 0], **options)
            assert_close(result, expected.permute(1, 2, 0))


# ---- colour


def test_jitter_equals_torchvision_on_each_image_and_draws_uniformly(monkeypatch):
    images = torch.cat([pictures(20, 16, 12), smooth(20, 16, 12)])
    images[3], images[4] = 0, 255
    ranges = {"brightness": (0.0, 2.0), "contrast": (0.0, 2.0), "saturation": (0.0, 2.0), "hue": (-0.5, 0.5)}
    rng = np.random.default_rng(1)
    for used in [[name] for name in ranges] + [list(ranges)]:
        factors = [torch.full((40,), neutral) for neutral in (1.0, 1.0, 1.0, 0.0)]
        for index, name in enumerate(ranges):
            if name in used:
                factors[index] = torch.from_numpy(rng.uniform(*ranges[name], 40)).float()
        expected = []
        for number, image in enumerate(images):
            image = image.permute(2, 0, 1).float() / 255
            for name, values in zip(ranges, factors, strict=True):
                image = getattr(vision, f"adjust_{name}")(image, float(values[number]))
            expected.append((image * 255).round().to(torch.uint8).permute(1, 2, 0))
        # torchvision's luma has four digits, ours Pillow's 16 bits; a hue between two sixths may fall on either side
        assert_close(jitter(images, *factors), torch.stack(expected), share=0.02)
    neutral = [torch.full((40,), value) for value in (1.0, 1.0, 1.0, 0.0)]
    assert torch.equal(jitter(images, *neutral), images)
    numbers = []
    monkeypatch.setattr(module, "jitter", lambda images, *given: numbers.extend(given) or images)
    colour_jitter(pictures(10_000, 2, 2), 1.0, (0.4, 0.0, 1.5, 0.5), Draws(10, batch=10_000))
    assert uniform(numbers[0], 0.6, 1.4) and (numbers[1] == 1).all() and uniform(numbers[2], 0, 2.5)
    assert uniform(numbers[3], -0.5, 0.5)


def test_autoaugment_is_torchvisions_with_a_seed_per_image():
    images = smooth(30, 24, 12)
    draws = Draws(14, batch=30)
    draws.chance(1.0)
    seeds = draws.integers(0, 2**63 - 1).tolist()
    before = torch.random.get_rng_state()
    found = autoaugment(images, 1.0, Draws(14, batch=30))
    assert torch.equal(torch.random.get_rng_state(), before)
    for image, result, seed in zip(images, found, seeds, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(result, AutoAugment()(image.permute(2, 0, 1)).permute(1, 2, 0))


# ---- rectangles


def boxes_of(changed: torch.Tensor) -> torch.Tensor:
    """(B, 4) top, left, height, width of the changed pixels (B, H, W); each must be one full rectangle."""
    rows, columns = changed.any(2), changed.any(1)
    tall, wide = rows.sum(1), columns.sum(1)
    assert torch.equal(changed.sum((1, 2)), tall * wide)
    return torch.stack([rows.int().argmax(1), columns.int().argmax(1), tall, wide], 1)


def paper_boxes(height: int, width: int, draws: int) -> np.ndarray:
    """Zhong et al. 2020, algorithm 1, one image at a time: draw area and aspect until the rectangle fits."""
    rng, result = np.random.default_rng(6), []
    while len(result) < draws:
        area, aspect = rng.uniform(0.02, 0.4) * height * width, rng.uniform(0.3, 1 / 0.3)
        tall, wide = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if tall < height and wide < width:
            result.append((rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1), tall, wide))
    return np.array(result, dtype=float)


def test_erased_rectangles_have_the_distribution_of_the_paper():
    quantities = {
        "area": lambda y, x, h, w: h * w,
        "aspect": lambda y, x, h, w: h / w,
        "row": lambda y, x, h, w: y,
        "column": lambda y, x, h, w: x,
    }
    for height, width in [(48, 24), (24, 48)]:
        white = torch.full((8000, height, width, 3), 255, dtype=torch.uint8)
        erased = random_erasing(white, 1.0, "zero", Draws(5, batch=8000)) == 0
        assert torch.equal(erased.any(3), erased.all(3))
        found, expected = boxes_of(erased[..., 0]).double().numpy().T, paper_boxes(height, width, 8000).T
        for name, quantity in quantities.items():
            ours, wanted = quantity(*found), quantity(*expected)
            for level in (0.05, 0.25, 0.5, 0.75, 0.95):
                edge = np.quantile(wanted, level)
                assert abs((ours <= edge).mean() - (wanted <= edge).mean()) < 0.03, name


# ---- every transform


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_transform_keeps_size_input_probability_and_shares(name):
    transform = FUNCTIONS[name]
    for height, width in [(16, 8), (7, 7), (9, 21)]:
        images = pictures(12, height, width)
        before, whole = images.clone(), transform(images, Draws(5, batch=12), 0.8)
        assert whole.shape == images.shape and whole.dtype == torch.uint8 and not torch.equal(whole, images)
        assert torch.equal(images, before)
        for first, end in [(0, 5), (5, 6), (6, 12)]:
            draws = Draws(5, batch=end - first, first=first, total=12)
            assert torch.equal(transform(images[first:end], draws, 0.8), whole[first:end])
        if not name.startswith("erasing"):  # those work in place on contiguous images
            planes = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # another order in memory
            assert torch.equal(transform(planes, Draws(5, batch=12), 0.8), whole)
    many = 200 if name == "autoaugment" else 4000
    images = pictures(1, 16, 16).expand(many, -1, -1, -1)
    assert torch.equal(transform(images, Draws(2, batch=many), 0.0), images)
    changed = (transform(images, Draws(2, batch=many), 0.3) != images).flatten(1).any(1)
    if name != "autoaugment":  # some of its policies change nothing
        assert within_noise(int(changed.sum()), many, 0.3)

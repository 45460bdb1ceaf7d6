"""Each further augmentation against torchvision or Pillow on one image at a time, and by its statistics."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as vision
from PIL import Image
from test_augment import boxes, coordinates, ones, pictures, uniform, within_noise
from torchvision.transforms.v2 import AutoAugment, InterpolationMode

from datasets.augment import colour, geometry
from datasets.augment.boxes import cutout, local_grayscale, random_erasing
from datasets.augment.colour import autoaugment, colour_jitter, gray, jitter, random_grayscale
from datasets.augment.draws import Draws
from datasets.augment.geometry import affine, random_affine, random_rotation, random_translation


def smooth(number: int, height: int, width: int) -> torch.Tensor:
    """(number, height, width, 3) uint8 blobs of colour: rounding of a place changes little."""
    small = pictures(number, 5, 4, seed=1).permute(0, 3, 1, 2)
    return vision.resize(small, [height, width]).permute(0, 2, 3, 1).contiguous()


def recorded(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[torch.Tensor]:
    """From now on: the numbers that a function of this module is called with, after the images."""
    numbers, function = [], getattr(module, name)

    def recorder(images: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        numbers.extend(given)
        return function(images, *given)

    monkeypatch.setattr(module, name, recorder)
    return numbers


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """At most one step of 255 apart, and hardly anywhere: arithmetic in another order rounds another way."""
    different = (found.int() - expected.int()).abs()
    assert int(different.max()) <= 1
    assert float(different.float().mean()) < 2e-3


# ---- translation


@pytest.mark.parametrize(("height", "width"), [(16, 8), (9, 21), (7, 7), (24, 12)])
def test_translations_are_all_windows_of_the_image_enlarged_by_an_eighth(height, width):
    draws = 10_000
    image = pictures(1, height, width)
    result = random_translation(image.expand(draws, -1, -1, -1), 1.0, Draws(1, batch=draws))
    size = [round(height * 1.125), round(width * 1.125)]
    large = vision.resize(image[0].permute(2, 0, 1), size).permute(1, 2, 0)
    places = [(y, x) for y in range(size[0] - height + 1) for x in range(size[1] - width + 1)]
    counts = [int((result == large[y : y + height, x : x + width]).flatten(1).all(1).sum()) for y, x in places]
    assert sum(counts) == draws
    assert all(within_noise(count, draws, 1 / len(places)) for count in counts)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_translations_come_with_their_probability(probability):
    images = pictures(1, 16, 16).expand(10_000, -1, -1, -1)
    moved = random_translation(images, probability, Draws(2, batch=10_000)) != images
    assert within_noise(int(moved.flatten(1).any(1).sum()), 10_000, probability)


# ---- rotation and affine


@pytest.mark.parametrize(("height", "width"), [(32, 16), (15, 31), (7, 7)])
def test_affine_equals_torchvision_on_each_image(height, width):
    images = smooth(20, height, width)
    rng = np.random.default_rng(0)
    numbers = [rng.uniform(low, high, 20) for low, high in ((-180, 180), (0.5, 2), (-40, 40))]
    found = affine(images, *(torch.from_numpy(n).float() for n in numbers))
    for image, result, angle, scale, shear in zip(images, found, *numbers, strict=True):
        expected = vision.affine(
            image.permute(2, 0, 1), angle, [0, 0], scale, [shear, 0], interpolation=InterpolationMode.BILINEAR
        )
        close(result, expected.permute(1, 2, 0))


def test_rotations_equal_torchvision_by_the_angles_drawn(monkeypatch):
    angles = recorded(monkeypatch, geometry, "affine")
    images = smooth(20, 32, 16)
    found = random_rotation(images, 1.0, 45, Draws(1, batch=20))
    for image, result, angle in zip(images, found, angles[0].tolist(), strict=True):
        expected = vision.rotate(image.permute(2, 0, 1), -angle, interpolation=InterpolationMode.BILINEAR)
        close(result, expected.permute(1, 2, 0))
    assert angles[1].tolist() == [1] * 20 and angles[2].tolist() == [0] * 20


@pytest.mark.parametrize("degrees", [10.0, 45.0])
def test_angles_of_rotations_are_uniform_in_their_range(monkeypatch, degrees):
    numbers = recorded(monkeypatch, geometry, "affine")
    random_rotation(pictures(10_000, 2, 1), 1.0, degrees, Draws(2, batch=10_000))
    assert uniform(numbers[0], -degrees, degrees)


def test_angle_scale_and_shear_of_affine_maps_are_uniform_in_their_ranges(monkeypatch):
    numbers = recorded(monkeypatch, geometry, "affine")
    random_affine(pictures(10_000, 2, 1), 1.0, Draws(3, batch=10_000))
    for values, limits in zip(numbers, ((-10, 10), (0.9, 1.1), (-0.1, 0.1)), strict=True):
        assert uniform(values, *limits)
    assert abs(float(torch.corrcoef(torch.stack(numbers)).fill_diagonal_(0).abs().max())) < 4.5 / 100


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["rotation", "affine"])
def test_rotations_and_affine_maps_come_with_their_probability(monkeypatch, name, probability):
    monkeypatch.setattr(geometry, "affine", lambda images, *numbers: 255 - images)
    images, draws = pictures(10_000, 2, 2), Draws(4, batch=10_000)
    if name == "rotation":
        result = random_rotation(images, probability, 10, draws)
    else:
        result = random_affine(images, probability, draws)
    changed = (result != images).flatten(1)
    assert torch.equal(changed.any(1), changed.all(1))
    assert within_noise(int(changed.all(1).sum()), 10_000, probability)


def test_what_comes_from_outside_is_black_and_the_centre_stays():
    white = torch.full((200, 33, 17, 3), 255, dtype=torch.uint8)
    for result in (
        random_rotation(white, 1.0, 40, Draws(5, batch=200)),
        random_affine(white, 1.0, Draws(6, batch=200)),
    ):
        assert (result[:, 16, 8] == 255).all()
        assert (result[:, 0, 0] == 0).any()


# ---- gray


def test_gray_is_the_luma_of_pillow_for_every_kind_of_colour():
    images = pictures(4, 128, 128)
    images[0] = torch.arange(128 * 128).view(128, 128, 1) % 256  # gray stays as it is
    for image, found in zip(images, gray(images), strict=True):
        expected = np.asarray(Image.fromarray(image.numpy()).convert("L"))
        assert (found.numpy() == expected[..., None]).all()
    assert torch.equal(gray(images)[0], images[0])
    other = vision.rgb_to_grayscale(images.permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1)  # rounds down
    assert int((gray(images).int() - other.int()).abs().max()) <= 1


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_whole_images_turn_gray_with_their_probability(probability):
    images = pictures(1).expand(10_000, -1, -1, -1)
    result = random_grayscale(images, probability, Draws(7, batch=10_000))
    turned = (result == gray(images[:1])).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert (turned ^ kept).all()
    assert within_noise(int(turned.sum()), 10_000, probability)


def test_local_grayscale_turns_the_rectangles_of_random_erasing_gray():
    images = pictures(500, 24, 12)
    result = local_grayscale(images, 0.7, Draws(8, batch=500))
    inside = random_erasing(ones(500, 24, 12), 0.7, "zero", Draws(8, batch=500)) == 0
    assert torch.equal(result, torch.where(inside, gray(images), images))
    assert within_noise(int(inside.flatten(1).any(1).sum()), 500, 0.7)
    boxes(inside[..., 0])


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_local_grayscale_comes_with_its_probability(probability):
    images = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(10_000, 16, 8, 3)
    changed = (local_grayscale(images, probability, Draws(9, batch=10_000)) != images).flatten(1).any(1)
    assert within_noise(int(changed.sum()), 10_000, probability)


# ---- colour jitter

FACTORS = {"brightness": (0.0, 2.0), "contrast": (0.0, 2.0), "saturation": (0.0, 2.0), "hue": (-0.5, 0.5)}
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def one_by_one(images: torch.Tensor, factors: dict[str, torch.Tensor]) -> torch.Tensor:
    """torchvision's functions on one image after the other, in float, in our order."""
    result = []
    for number, image in enumerate(images):
        image = image.permute(2, 0, 1).float() / 255
        for name in FACTORS:
            image = getattr(vision, f"adjust_{name}")(image, float(factors[name][number]))
        result.append((image * 255).round().to(torch.uint8).permute(1, 2, 0))
    return torch.stack(result)


@pytest.mark.parametrize("names", [[name] for name in FACTORS] + [list(FACTORS)], ids="-".join)
def test_jitter_equals_torchvision_on_each_image(names):
    images = torch.cat([pictures(20, 16, 12), smooth(20, 16, 12)])
    images[3], images[4] = 0, 255
    rng = np.random.default_rng(1)
    factors = {name: torch.full((40,), value) for name, value in NEUTRAL.items()}
    factors |= {name: torch.from_numpy(rng.uniform(*FACTORS[name], 40)).float() for name in names}
    found = jitter(images, *factors.values())
    different = (found.int() - one_by_one(images, factors).int()).abs()
    # torchvision's luma has four digits, ours Pillow's 16 bits; a hue near the edge of two sixths may fall either side
    assert int(different.max()) <= 1
    assert float(different.float().mean()) < 0.02


def test_neutral_jitter_changes_nothing():
    grays = torch.arange(256, dtype=torch.uint8).view(1, 64, 4, 1).expand(1, 64, 4, 3)
    images = torch.cat([pictures(3, 64, 4), grays])
    assert torch.equal(jitter(images, *(torch.full((4,), value) for value in NEUTRAL.values())), images)


def test_a_third_of_a_turn_of_the_hue_makes_red_green_and_leaves_gray():
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [90, 90, 90], [0, 0, 0], [200, 100, 100]]
    images = torch.tensor(colours, dtype=torch.uint8).view(7, 1, 1, 3)
    factors = [torch.full((7,), value) for value in (1, 1, 1, 1 / 3)]
    expected = [[0, 255, 0], [0, 0, 255], [255, 0, 0], [0, 255, 255], [90, 90, 90], [0, 0, 0], [100, 200, 100]]
    assert jitter(images, *factors).view(7, 3).tolist() == expected


@pytest.mark.parametrize("limits", [(0.15, 0.15, 0.1, 0.1), (0.4, 0.0, 1.0, 0.5), (1.5, 0.2, 0.3, 0.0)])
def test_factors_of_jitter_are_each_images_own_and_uniform_in_their_ranges(monkeypatch, limits):
    numbers = recorded(monkeypatch, colour, "jitter")
    images = smooth(1, 4, 3).expand(10_000, -1, -1, -1)
    found = colour_jitter(images, 1.0, limits, Draws(10, batch=10_000))
    for values, limit, middle in zip(numbers, limits, NEUTRAL.values(), strict=True):
        low = max(0.0, middle - limit) if middle else -limit
        assert uniform(values, low, middle + limit) if limit else (values == middle).all()
    some = slice(0, 50)
    expected = one_by_one(images[some], {name: n[some] for name, n in zip(FACTORS, numbers, strict=True)})
    assert int((found[some].int() - expected.int()).abs().max()) <= 1


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_jitter_comes_with_its_probability(monkeypatch, probability):
    monkeypatch.setattr(colour, "jitter", lambda images, *factors: 255 - images)
    images = pictures(10_000, 2, 2)
    changed = colour_jitter(images, probability, (0.1, 0.1, 0.1, 0.1), Draws(11, batch=10_000)) != images
    assert within_noise(int(changed.flatten(1).all(1).sum()), 10_000, probability)


# ---- Cutout


@pytest.mark.parametrize(("height", "width", "size"), [(20, 10, 0.25), (16, 24, 0.5), (7, 7, 0.4), (12, 6, 1.0)])
def test_cutouts_are_black_squares_with_their_centre_anywhere(height, width, size):
    side, draws = round(size * height), 10_000
    image = coordinates(1, height, width) | 128  # no black of its own
    image[..., 2] = 255
    expected = []
    for y in range(height):
        for x in range(width):
            result = image[0].clone()
            top, left = y - side // 2, x - side // 2
            result[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
            expected.append(result)
    found = cutout(image.expand(draws, -1, -1, -1), 1.0, size, Draws(12, batch=draws)).flatten(1)
    candidates, together = torch.unique(torch.stack(expected).flatten(1), dim=0, return_counts=True)
    number = {tuple(row.tolist()): index for index, row in enumerate(candidates)}
    counts = np.bincount([number[tuple(row)] for row in found.tolist()], minlength=len(candidates))
    for count, places in zip(counts, together.tolist(), strict=True):
        assert within_noise(int(count), draws, places / (height * width))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_cutouts_come_with_their_probability(probability):
    result = cutout(ones(10_000, 8, 6), probability, 0.25, Draws(13, batch=10_000))
    assert within_noise(int((result == 0).flatten(1).any(1).sum()), 10_000, probability)


# ---- AutoAugment


def test_autoaugment_is_torchvisions_with_a_seed_for_each_image(monkeypatch):
    seeds = recorded(monkeypatch, colour, "_autoaugment")
    images = smooth(30, 24, 12)
    found = autoaugment(images, 1.0, Draws(14, batch=30))
    assert len(set(seeds[0].tolist())) == 30
    for image, result, seed in zip(images, found, seeds[0].tolist(), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(result, AutoAugment()(image.permute(2, 0, 1)).permute(1, 2, 0))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_autoaugment_comes_with_its_probability(monkeypatch, probability):
    monkeypatch.setattr(colour, "_autoaugment", lambda images, seeds: 255 - images)
    images = pictures(10_000, 2, 2)
    changed = (autoaugment(images, probability, Draws(15, batch=10_000)) != images).flatten(1).all(1)
    assert within_noise(int(changed.sum()), 10_000, probability)


def test_autoaugment_gives_the_random_state_back_also_after_an_error(monkeypatch):
    class Broken:
        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            torch.rand(5)
            raise RuntimeError("broken")

    monkeypatch.setattr(colour, "AutoAugment", Broken)
    before = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        autoaugment(pictures(2), 1.0, Draws(16, batch=2))
    assert torch.equal(torch.random.get_rng_state(), before)

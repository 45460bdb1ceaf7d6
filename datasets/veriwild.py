"""VERI-Wild, 40,671 vehicles under 174 cameras (Lou et al., VERI-Wild: A Large Dataset and a New Method for Vehicle
Re-Identification in the Wild, CVPR 2019)."""

from __future__ import annotations

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, numbered_lines
from utils.errors import UserError

NAMES = ("VERI-Wild", "VeRI-Wild", "VeRi-Wild", "VERI-WILD", "veri-wild", "veriwild", ".")
TREE = """
images/00001/000001.jpg ...                 a folder a vehicle
train_test_split/vehicle_info.txt           id/image;Camera ID;Time;Model;Type;Color
train_test_split/train_list.txt             00001/000001, also as train_list_start0.txt
train_test_split/test_3000_query.txt ...    also as test_3000_id_query.txt
train_test_split/test_3000.txt ...          also as test_3000_id.txt
"""
SIZES = {3000: "small", 5000: "medium", 10000: "large"}
TRAIN = (277797, 30671)
GALLERY = {3000: 38861, 5000: 64389, 10000: 128517}  # images; the authors' counts of test images less the queries


def veriwild(root: str | Path, size: int) -> ReIDDataset:
    """List ROOT/VERI-Wild with the test set of `size` vehicles (3000, 5000 or 10000), one query each.

    The pid is the name of a vehicle's folder, whatever the newer lists number in their second column, and the camera
    comes from vehicle_info.txt. Raises UserError when files are missing or a line cannot be read; warns when the
    counts are not the published ones. Images are not looked for, as there are 416,314 of them.
    """
    base = find_base("VERI-Wild", root, NAMES, "train_test_split/vehicle_info.txt", TREE)
    lists, images = base / "train_test_split", base / "images"
    if not images.is_dir():
        raise UserError(f"{images} is missing; it must lie beside train_test_split and hold a folder a vehicle")
    cameras = read_cameras(lists / "vehicle_info.txt")
    dataset = ReIDDataset(
        f"veriwild_{SIZES[size]}",
        _read_list(lists, ("train_list.txt", "train_list_start0.txt"), images, cameras),
        _read_list(lists, (f"test_{size}_query.txt", f"test_{size}_id_query.txt"), images, cameras),
        _read_list(lists, (f"test_{size}.txt", f"test_{size}_id.txt"), images, cameras),
    )
    published = {"train": TRAIN, "query": (size, size), "gallery": (GALLERY[size], size)}
    return check_counts(f"VERI-Wild at {base}", dataset, published)


def read_cameras(path: Path) -> dict[str, int]:
    """Camera of each PID/IMAGE from vehicle_info.txt. Raises UserError where a line below the header has none."""
    cameras = {}
    for number, line in numbered_lines(path):
        image, _, rest = line.partition(";")
        camera = rest.partition(";")[0].strip()
        if camera.isdecimal():
            cameras[image.removesuffix(".jpg")] = int(camera)
        elif number > 1:
            raise UserError(f"{path}, line {number}: {line!r} is not like 00001/000001;23;..., image and camera")
    return cameras


def _read_list(lists: Path, names: tuple[str, ...], images: Path, cameras: dict[str, int]) -> list[Sample]:
    """The images of the first list that is there. What follows an image's name, as in the newer lists, is ignored."""
    path = next((lists / name for name in names if (lists / name).exists()), lists / names[0])
    samples = []
    for number, line in numbered_lines(path):
        image = line.split(maxsplit=1)[0].removesuffix(".jpg")
        pid, _, name = image.partition("/")
        if not (pid.isdecimal() and int(pid) and name and "/" not in name):
            raise UserError(f"{path}, line {number}: {line!r} is not like 00001/000001, vehicle (from 1 up) and image")
        if image not in cameras:
            raise UserError(f"{path}, line {number}: {image} has no camera in {lists / 'vehicle_info.txt'}")
        samples.append(Sample(f"{images}/{image}.jpg", int(pid), cameras[image]))
    if not samples:
        raise UserError(f"{path} is empty; unpack it anew")
    return samples

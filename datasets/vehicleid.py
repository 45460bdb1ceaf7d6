"""PKU VehicleID, 26,328 vehicles (Liu et al., Deep Relative Distance Learning: Tell the Difference Between Similar
Vehicles, CVPR 2016)."""

from __future__ import annotations

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, numbered_lines
from utils.errors import UserError

NAMES = ("VehicleID_V1.0", "VehicleID", "vehicleid", "PKU-VehicleID", "vehicle_id", ".")
TREE = """
image/0000001.jpg ...
train_test_split/train_list.txt         0000001 1 ..., image and vehicle
train_test_split/test_list_800.txt      likewise; also test_list_1600.txt and test_list_2400.txt
"""
SIZES = {800: "small", 1600: "medium", 2400: "large"}
# Of the lists that are released. The paper counts others, as its authors took out vehicles with faked plates later.
TRAIN = (113346, 13164)
TEST = {800: 6493, 1600: 13377, 2400: 19777}  # images of query and gallery together


def vehicleid(root: str | Path, size: int) -> ReIDDataset:
    """List ROOT/VehicleID_V1.0 (or ROOT/VehicleID) with the test set of `size` vehicles (800, 1600 or 2400).

    Its protocol draws the gallery anew for each trial. Where a fixed one is needed, a vehicle's first image by name is
    gallery and the others are queries. There are no camera labels: each image counts as its own camera. Pids are the
    lists' numbers, but one higher should a list have a vehicle 0. Raises UserError when files are missing or a line
    cannot be read; warns when the counts are not the published ones. Images are not looked for.
    """
    base = find_base("VehicleID", root, NAMES, f"train_test_split/test_list_{size}.txt", TREE)
    if not (base / "image").is_dir():
        raise UserError(f"{base / 'image'} is missing; it must lie beside train_test_split and hold the images")
    train = _read_list(base, "train_list.txt")
    test = sorted(_read_list(base, f"test_list_{size}.txt"))
    first = 0 if all(pid for _, pid in train + test) else 1  # a pid of 0 would be a distractor
    samples = [Sample(path, pid + first, camera) for camera, (path, pid) in enumerate(train + test, 1)]
    train, test = samples[: len(train)], samples[len(train) :]
    name, title = f"vehicleid_{SIZES[size]}", f"VehicleID at {base}, all of the test list as gallery"
    check_counts(title, ReIDDataset(name, train, gallery=test), {"train": TRAIN, "gallery": (TEST[size], size)})
    gallery, query, seen = [], [], set()
    for s in test:
        (query if s.pid in seen else gallery).append(s)
        seen.add(s.pid)
    return ReIDDataset(name, train, query, gallery, protocol="vehicle_id", cameras=False)


def _read_list(base: Path, name: str) -> list[tuple[str, int]]:
    """Path and vehicle of each line "image vehicle"; the image may lack its .jpg."""
    path = base / "train_test_split" / name
    rows = []
    for number, line in numbered_lines(path):
        image, *vehicle = line.split()
        if len(vehicle) != 1 or not vehicle[0].isdecimal():
            raise UserError(f"{path}, line {number}: {line!r} is not like 0000001 1, image and vehicle")
        rows.append((f"{base / 'image'}/{image.removesuffix('.jpg')}.jpg", int(vehicle[0])))
    if not rows:
        raise UserError(f"{path} is empty; unpack it anew")
    return rows

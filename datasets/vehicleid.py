"""PKU VehicleID, 26,328 vehicles (Liu et al., Deep Relative Distance Learning: Tell the Difference Between Similar
Vehicles, CVPR 2016)."""

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base
from datasets.lists import read_list

NAMES = ("VehicleID_V1.0", "VehicleID", "vehicleid", "PKU-VehicleID", "vehicle_id", ".")
SIZES = {800: "small", 1600: "medium", 2400: "large"}
LINE = r"(\S+?)(?:\.jpg)?\s+(\d+)"  # image, with or without .jpg; vehicle
# Of the released lists. The paper counts differently, as its authors removed vehicles with faked plates later.
TRAIN = (113346, 13164)
TEST = {800: 6493, 1600: 13377, 2400: 19777}  # images of query and gallery together


def vehicleid(root: str | Path, size: int) -> ReIDDataset:
    """List VehicleID under `root` with the test set of `size` vehicles (800, 1600 or 2400).

    Its protocol draws a new gallery for each trial. Where a fixed one is needed, a vehicle's first image by name is
    gallery and the others are queries. There are no camera labels: each image counts as its own camera. Pids are the
    lists' numbers, or one higher if a list has a vehicle 0. The images are not checked to exist. Warns when the counts
    are not the published ones.
    """
    base = find_base("VehicleID", root, NAMES, f"train_test_split/test_list_{size}.txt")
    images = base / "image"

    def read(name: str) -> list[tuple[str, int]]:
        rows = read_list(base / "train_test_split" / name, LINE, "0000001 1")
        return [(f"{images}/{match[1]}.jpg", int(match[2])) for match in rows]

    train, test = read("train_list.txt"), sorted(read(f"test_list_{size}.txt"))
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

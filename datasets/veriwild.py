"""VERI-Wild, 40,671 vehicles under 174 cameras (Lou et al., VERI-Wild: A Large Dataset and a New Method for Vehicle
Re-Identification in the Wild, CVPR 2019)."""

from pathlib import Path

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base
from datasets.lists import read_list
from utils.errors import UserError

NAMES = ("VERI-Wild", "VeRI-Wild", "VeRi-Wild", "VERI-WILD", "veri-wild", "veriwild", ".")
SIZES = {3000: "small", 5000: "medium", 10000: "large"}
INFO = r"([^;]+?)(?:\.jpg)?;\s*(\d+)\s*(?:;.*)?"  # image; camera; time; model; type; color
LINE = r"((?!0+/)(\d+)/[^/\s]+?)(?:\.jpg)?(?:\s.*)?"  # vehicle/image; newer lists continue with label and camera
TRAIN = (277797, 30671)
GALLERY = {3000: 38861, 5000: 64389, 10000: 128517}  # images; the authors' counts of test images minus the queries


def veriwild(root: str | Path, size: int) -> ReIDDataset:
    """List VERI-Wild under `root` with the test set of `size` vehicles (3000, 5000 or 10000), one query each.

    The pid is the name of a vehicle's folder, not the label in the newer lists, and the camera comes from
    vehicle_info.txt. The 416,314 images are not checked to exist. Warns when the counts are not the published ones.
    """
    base = find_base("VERI-Wild", root, NAMES, "train_test_split/vehicle_info.txt")
    lists, images = base / "train_test_split", base / "images"
    info = lists / "vehicle_info.txt"
    cameras = {match[1]: int(match[2]) for match in read_list(info, INFO, "00001/000001;23;...", skip=1)}

    def read(*names: str) -> list[Sample]:
        path = next((lists / name for name in names if (lists / name).exists()), lists / names[0])
        samples = []
        for match in read_list(path, LINE, "00001/000001"):
            if match[1] not in cameras:
                raise UserError(f"{path}: {match[1]} has no camera in {info}")
            samples.append(Sample(f"{images}/{match[1]}.jpg", int(match[2]), cameras[match[1]]))
        return samples

    dataset = ReIDDataset(
        f"veriwild_{SIZES[size]}",
        read("train_list.txt", "train_list_start0.txt"),
        read(f"test_{size}_query.txt", f"test_{size}_id_query.txt"),
        read(f"test_{size}.txt", f"test_{size}_id.txt"),
    )
    published = {"train": TRAIN, "query": (size, size), "gallery": (GALLERY[size], size)}
    return check_counts(f"VERI-Wild at {base}", dataset, published)

"""VeRi-776, vehicles under 20 cameras (Liu et al., Large-scale Vehicle Re-identification in Urban Surveillance Videos,
ICME 2016; the split of Liu et al., A Deep Learning-Based Approach to Progressive Vehicle Re-identification, ECCV 2016).
"""

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, list_images, require_folder
from utils.errors import UserError

NAMES = ("VeRi", "VeRi-776", "VeRi776", "veri", "veri776", "veri_776", ".")
SPLITS = {  # the queries are images of the test set, so its label file has them too
    "train": ("image_train", "train_label.xml"),
    "query": ("image_query", "test_label.xml"),
    "gallery": ("image_test", "test_label.xml"),
}
NAME = r"(\d+)_c(\d+)"
# As the set's own ReadMe says; there are copies with 37746 training images of 575 vehicles, whose scores differ.
PUBLISHED = {"train": (37778, 576), "query": (1678, 200), "gallery": (11579, 200)}


def veri776(root: str | Path) -> ReIDDataset:
    """List VeRi-776 under `root`. Where a label file exists its labels are used, otherwise those in the file names.

    Raises UserError when a label file is broken; warns where the two disagree, and when the counts are not the
    published ones.
    """
    base = find_base("VeRi-776", root, NAMES, "image_train")
    splits, different = {}, []
    for split, (folder, file) in SPLITS.items():
        labels = read_labels(base / file) if (base / file).exists() else {}
        splits[split] = []
        for path in list_images(require_folder(base / folder)):
            match = re.match(NAME, path.name)
            named = (int(match[1]), int(match[2])) if match else None
            label = labels.get(path.name, named)
            if label:
                splits[split].append(Sample(str(path), *label))
                if named not in (label, None):
                    different.append(f"{folder}/{path.name} is vehicle {label[0]}, camera {label[1]}")
        if not splits[split]:
            raise UserError(f"{base / folder} holds no image named like 0001_c001_00016450_0.jpg; is it the right one?")
    if different:
        warnings.warn(
            f"VeRi-776 at {base}: the label files, which are used, disagree with {len(different)} file names, for "
            f"example {different[0]}",
            stacklevel=2,
        )
    return check_counts(f"VeRi-776 at {base}", ReIDDataset("veri776", **splits), PUBLISHED)


def read_labels(path: Path) -> dict[str, tuple[int, int]]:
    """Image name to vehicle and camera. Raises UserError where the file is not XML, or an item lacks its labels."""
    raw, fix = path.read_bytes(), "unpack it again, or remove it to use the labels in the file names"
    try:  # the files declare gb2312, which expat cannot decode; in a str it ignores the declaration
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("gb18030", errors="replace")  # includes all of gb2312
    try:
        items = ElementTree.fromstring(text).iter("Item")
    except ElementTree.ParseError as error:
        raise UserError(f"{path}, line {error.position[0]}: not valid XML ({error}); {fix}") from error
    labels = {}
    for number, item in enumerate(items, 1):
        vehicle, camera = item.get("vehicleID", ""), item.get("cameraID", "").lstrip("c")
        if not (item.get("imageName") and vehicle.isdecimal() and int(vehicle) and camera.isdecimal()):
            raise UserError(f"{path}: item {number} lacks imageName, or a number as vehicleID or cameraID; {fix}")
        labels[item.attrib["imageName"]] = (int(vehicle), int(camera))
    return labels

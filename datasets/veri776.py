"""VeRi-776, vehicles under 20 cameras (Liu et al., Large-scale Vehicle Re-identification in Urban Surveillance Videos,
ICME 2016; the split of Liu et al., A Deep Learning-Based Approach to Progressive Vehicle Re-identification, ECCV 2016).
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

from datasets.base import ReIDDataset, Sample
from datasets.layouts import check_counts, find_base, list_images
from utils.errors import UserError

NAMES = ("VeRi", "VeRi-776", "VeRi776", "veri", "veri776", "veri_776", ".")
TREE = """
image_train/        0001_c001_00016450_0.jpg ...
image_query/        0002_c002_00030600_0.jpg ...
image_test/         0002_c002_00030600_0.jpg ...
train_label.xml     where it is there, its labels are taken, and compared with the names
test_label.xml      likewise
"""
SPLITS = {  # the queries are images of the test set, so its label file has them too
    "train": ("image_train", "train_label.xml"),
    "query": ("image_query", "test_label.xml"),
    "gallery": ("image_test", "test_label.xml"),
}
NAME = re.compile(r"^(\d+)_c(\d+)")
# As the set's own ReadMe says; there are copies with 37746 training images of 575 vehicles, whose scores differ.
PUBLISHED = {"train": (37778, 576), "query": (1678, 200), "gallery": (11579, 200)}

Labels = dict[str, tuple[int, int]]  # image name to vehicle and camera


def veri776(root: str | Path) -> ReIDDataset:
    """List ROOT/VeRi (or ROOT/VeRi-776, ROOT/veri, ROOT itself).

    Raises UserError when it is not there or a label file is broken; warns when the counts are not the published ones,
    and when label files and file names disagree: the label files are followed.
    """
    base = find_base("VeRi-776", root, NAMES, "image_train", TREE)
    splits, differing = {}, []
    for split, (folder, file) in SPLITS.items():
        if not (base / folder).is_dir():
            raise UserError(f"{base / folder} is missing; it must lie beside image_train")
        labels = read_labels(base / file) if (base / file).exists() else {}
        splits[split], differ = _read_folder(base / folder, labels)
        differing += [f"{folder}/{name} is vehicle {labels[name][0]}, camera {labels[name][1]}" for name in differ]
    if differing:
        warnings.warn(
            f"VeRi-776 at {base}: {len(differing)} images are labelled otherwise than their names say, {differing[0]} "
            "for one; the label files are followed",
            stacklevel=2,
        )
    return check_counts(f"VeRi-776 at {base}", ReIDDataset("veri776", **splits), PUBLISHED)


def read_labels(path: Path) -> Labels:
    """Vehicle and camera by image name. Raises UserError where the file is no XML, or an item lacks its labels."""
    # The files declare gb2312, which expat cannot decode; of a str it ignores the declaration.
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("gb18030", errors="replace")  # holds all of gb2312
    try:
        items = ElementTree.fromstring(text).iter("Item")
    except ElementTree.ParseError as error:
        raise UserError(
            f"{path}, line {error.position[0]}: no whole XML ({error}); unpack it anew, or move it away to take the "
            "labels from the file names"
        ) from error
    labels = {}
    for number, item in enumerate(items, 1):
        vehicle, camera = item.get("vehicleID", ""), item.get("cameraID", "").lstrip("c")
        if not (item.get("imageName") and vehicle.isdecimal() and int(vehicle) and camera.isdecimal()):
            shown = " ".join(f'{key}="{value}"' for key, value in item.items())
            raise UserError(
                f"{path}: item {number} (<Item {shown}>) lacks imageName, or a number as vehicleID or cameraID; unpack "
                "it anew, or move it away to take the labels from the file names"
            )
        labels[item.attrib["imageName"]] = (int(vehicle), int(camera))
    return labels


def _read_folder(folder: Path, labels: Labels) -> tuple[list[Sample], list[str]]:
    """The images of a folder, and the names that say something else than their labels. Names count without labels."""
    samples, differ = [], []
    for path in list_images(folder):
        match = NAME.match(path.name)
        named = (int(match[1]), int(match[2])) if match else None
        label = labels.get(path.name, named)
        if label is None:
            continue
        if named not in (label, None):
            differ.append(path.name)
        samples.append(Sample(str(path), *label))
    if not samples:
        raise UserError(f"{folder} holds no image named like 0001_c001_00016450_0.jpg; is it the right folder?")
    return samples, differ

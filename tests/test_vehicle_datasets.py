from __future__ import annotations

import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from datasets import make_dataset
from datasets.base import ReIDDataset
from datasets.vehicleid import vehicleid
from datasets.veri776 import read_labels, veri776
from datasets.veriwild import veriwild
from utils.errors import UserError
from utils.protocols import evaluate_vehicle_id

TRAIN = ["0001_c001_00016450_0.jpg", "0001_c002_00016460_0.jpg", "0003_c011_00000001_1.jpg"]
QUERY = ["0002_c002_00030600_0.jpg"]
TEST = ["0002_c002_00030600_0.jpg", "0002_c005_00030700_0.jpg", "0005_c020_00040000_0.jpg"]


def listed(samples, base: Path) -> list[tuple[str, int, int]]:
    assert all(type(s.pid) is int and type(s.camid) is int for s in samples)
    return [(os.path.relpath(s.path, base), s.pid, s.camid) for s in samples]


def quiet(loader, *args) -> ReIDDataset:
    """The counts of tiny trees are never the published ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the published set.*")
        return loader(*args)


def one_sentence(error: pytest.ExceptionInfo) -> None:
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


# ---- VeRi-776


def veri_tree(base: Path) -> Path:
    for folder, names in {"image_train": TRAIN, "image_query": QUERY, "image_test": TEST}.items():
        (base / folder).mkdir(parents=True)
        for name in (*names, "Thumbs.db", "note.jpg"):
            (base / folder / name).write_bytes(b"")
    return base


def label_xml(names: list[str], declared: str = "gb2312", **other: tuple[str, str]) -> bytes:
    """As the authors wrote it. `other`: vehicle and camera of items by the first four digits of their names."""
    items = []
    for name in names:
        vehicle, camera = other.get(f"v{name[:4]}", name.split("_")[:2])
        items.append(f'<Item imageName="{name}" vehicleID="{vehicle}" cameraID="{camera}" colorID="1" typeID="4" />')
    lines = [f'<?xml version="1.0" encoding="{declared}" ?>', '<TrainingImages Version="1.0">', "<!-- 车辆 -->"]
    lines += [f'<Items number="{len(items)}">', *items, "</Items>", "</TrainingImages>", ""]
    return "\r\n".join(lines).encode(declared)


@pytest.mark.parametrize("folder", ["VeRi", "VeRi-776", "veri776", "."])
def test_veri_without_label_files_goes_by_the_names(tmp_path, folder):
    base = veri_tree(tmp_path / folder)
    dataset = quiet(veri776, tmp_path)
    assert dataset.name == "veri776" and dataset.protocol == "standard" and dataset.note == ""
    assert listed(dataset.train, base / "image_train") == [(TRAIN[0], 1, 1), (TRAIN[1], 1, 2), (TRAIN[2], 3, 11)]
    assert listed(dataset.query, base / "image_query") == [(QUERY[0], 2, 2)]
    assert listed(dataset.gallery, base / "image_test") == [(TEST[0], 2, 2), (TEST[1], 2, 5), (TEST[2], 5, 20)]


@pytest.mark.parametrize("declared", ["gb2312", "utf-8", "utf-8-sig", "GBK"])
def test_veri_label_files_are_read_whatever_they_declare_and_agree_silently(tmp_path, declared, recwarn):
    base = veri_tree(tmp_path / "VeRi")
    names_alone = quiet(veri776, tmp_path)
    (base / "train_label.xml").write_bytes(label_xml(TRAIN, declared))
    (base / "test_label.xml").write_bytes(label_xml(TEST, declared))
    assert quiet(veri776, tmp_path) == names_alone
    assert not recwarn.list
    assert read_labels(base / "test_label.xml")[TEST[1]] == (2, 5)


def test_veri_label_files_win_over_names_with_one_warning_for_all(tmp_path):
    base = veri_tree(tmp_path / "VeRi")
    (base / "train_label.xml").write_bytes(
        label_xml([*TRAIN[:2], "note.jpg"], v0001=("0009", "c004"), vnote=("8", "c3"))
    )
    (base / "test_label.xml").write_bytes(label_xml(TEST, v0005=("0005", "c019")))
    with pytest.warns(UserWarning) as caught:
        dataset = veri776(tmp_path)
    assert listed(dataset.train, base / "image_train") == [
        (TRAIN[0], 9, 4), (TRAIN[1], 9, 4), (TRAIN[2], 3, 11), ("note.jpg", 8, 3),  # the third is in no label file
    ]  # fmt: skip
    assert listed(dataset.gallery, base / "image_test")[2] == (TEST[2], 5, 19)
    about = [str(w.message) for w in caught if "otherwise than their names" in str(w.message)]
    assert len(about) == 1 and "3 images" in about[0] and f"image_train/{TRAIN[0]} is vehicle 9, camera 4" in about[0]


@pytest.mark.parametrize(
    "raw, words",
    [
        (label_xml(TRAIN)[:-30], "line 7"),
        (b"", "line 1"),
        (label_xml(TRAIN, v0003=("0000", "c001")), "item 3"),
        (label_xml(TRAIN, v0003=("red", "c001")), "item 3"),
        (label_xml(TRAIN, v0003=("0003", "")), "item 3"),
        (label_xml(TRAIN).replace(b"imageName", b"image"), "item 1"),
    ],
    ids=["cut short", "empty", "vehicle 0", "no number", "no camera", "no name"],
)
def test_veri_broken_label_files_are_refused_by_name_and_place(tmp_path, raw, words):
    base = veri_tree(tmp_path / "VeRi")
    (base / "train_label.xml").write_bytes(raw)
    with pytest.raises(UserError, match=rf"train_label\.xml.*{words}") as error:
        veri776(tmp_path)
    one_sentence(error)


def test_veri_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"(?s)--data-root.*REID_DATA.*image_train/ +0001_c001_00016450_0.jpg"):
        veri776(tmp_path)
    (tmp_path / "VeRi" / "image_train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"image_train holds no image named like 0001_c001"):
        veri776(tmp_path)
    (tmp_path / "VeRi" / "image_train" / TRAIN[0]).write_bytes(b"")
    with pytest.raises(UserError, match=r"VeRi/image_query is missing"):
        veri776(tmp_path)


def test_veri_counts_are_compared_with_the_published_ones(tmp_path):
    veri_tree(tmp_path / "VeRi")
    with pytest.warns(UserWarning) as caught:
        veri776(tmp_path)
    numbers = ("37778 of 576", "1678 of 200", "11579 of 200")
    assert [number in str(w.message) for w, number in zip(caught, numbers, strict=True)] == [True] * 3


# ---- VERI-Wild

INFO = """id/image;Camera ID;Time;Model;Type;Color
00001/000001;23;2018-03-11 07:12:10;Audi;SUV;white
00001/000002;41;2018-03-11 07:12:11;大众;SUV;white
00002/000003;23;2018-03-12 10:00:00;Audi;Sedan;red
31388/321972;61;2018-03-12 10:00:00;Audi;Sedan;red
31388/321973;174;2018-03-12 10:00:00;Audi;Sedan;red
"""
WILD = {  # the lists as first released, and as they are released now: with a label, from 0 up in training, and a camera
    "old": {
        "train_list.txt": "00001/000002\n00001/000001\n00002/000003\n",
        "test_5000_query.txt": "31388/321972\n",
        "test_5000.txt": "31388/321973\n",
    },
    "new": {
        "train_list_start0.txt": "00001/000002.jpg 0 41\n00001/000001.jpg 0 23\n00002/000003.jpg 1 23\n",
        "test_5000_id_query.txt": "31388/321972.jpg 31388 61\n",
        "test_5000_id.txt": "31388/321973.jpg 31388 174\n",
    },
}


def wild_tree(base: Path, lists: dict[str, str], info: str = INFO, end: str = "\n", encoding: str = "utf-8") -> Path:
    (base / "images").mkdir(parents=True)
    (base / "train_test_split").mkdir()
    for name, text in {**lists, "vehicle_info.txt": info}.items():
        (base / "train_test_split" / name).write_bytes(text.replace("\n", end).encode(encoding))
    return base


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb2312"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
@pytest.mark.parametrize("lists", ["old", "new"])
def test_wild_lists_old_and_new_give_the_same_identities_and_cameras(tmp_path, lists, end, encoding):
    base = wild_tree(tmp_path / "VERI-Wild", WILD[lists], end=end, encoding=encoding)
    dataset = quiet(veriwild, tmp_path, 5000)
    assert dataset.name == "veriwild_medium" and dataset.protocol == "standard" and dataset.note == ""
    assert listed(dataset.train, base / "images") == [
        ("00001/000002.jpg", 1, 41), ("00001/000001.jpg", 1, 23), ("00002/000003.jpg", 2, 23),
    ]  # fmt: skip
    assert listed(dataset.query, base / "images") == [("31388/321972.jpg", 31388, 61)]
    assert listed(dataset.gallery, base / "images") == [("31388/321973.jpg", 31388, 174)]


def test_wild_cameras_without_a_header_or_with_extensions_are_read(tmp_path):
    info = INFO.partition("\n")[2].replace(";23", ".jpg;23")
    wild_tree(tmp_path / "VERI-Wild", WILD["old"], info)
    assert [s.camid for s in quiet(veriwild, tmp_path, 5000).train] == [41, 23, 23]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("train_list.txt", "00001/000001\n\n000002\n", r"line 3: '000002'"),
        ("train_list.txt", "00001/000001\nred/000002\n", r"line 2: 'red/000002'"),
        ("train_list.txt", "00000/000002\n", r"line 1: '00000/000002'"),
        ("train_list.txt", "images/00001/000002\n", r"line 1: 'images/00001/000002'"),
        ("train_list.txt", "00001/\n", r"line 1: '00001/'"),
        ("test_5000.txt", "31388/321973\n00007/000007\n", r"line 2: 00007/000007 has no camera in .*vehicle_info"),
        ("vehicle_info.txt", INFO + "00003/000009\n", r"line 7: '00003/000009'"),
        ("vehicle_info.txt", INFO + "00003/000009;red;\n", r"line 7"),
        ("test_5000_query.txt", "\n", "is empty"),
    ],
)
def test_wild_bad_lines_are_refused_by_file_and_number(tmp_path, name, text, words):
    base = wild_tree(tmp_path / "VERI-Wild", WILD["old"])
    (base / "train_test_split" / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*{words}") as error:
        veriwild(tmp_path, 5000)
    one_sentence(error)


def test_wild_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"(?s)--data-root.*vehicle_info.txt"):
        veriwild(tmp_path, 3000)
    base = wild_tree(tmp_path / "VERI-Wild", WILD["old"])
    with pytest.raises(UserError, match=r"test_3000_query.txt cannot be read: No such file"):
        veriwild(tmp_path, 3000)
    (base / "images").rmdir()
    with pytest.raises(UserError, match=r"VERI-Wild/images is missing"):
        veriwild(tmp_path, 5000)


@pytest.mark.parametrize("size, gallery", [(3000, 38861), (5000, 64389), (10000, 128517)])
def test_wild_counts_are_compared_with_the_published_ones(tmp_path, size, gallery):
    wild_tree(tmp_path / "VERI-Wild", {k.replace("5000", str(size)): v for k, v in WILD["old"].items()})
    with pytest.warns(UserWarning) as caught:
        veriwild(tmp_path, size)
    numbers = ("277797 of 30671", f"{size} of {size}", f"{gallery} of {size}")
    assert [number in str(w.message) for w, number in zip(caught, numbers, strict=True)] == [True] * 3
    assert 277797 + 10000 + 128517 == 416314  # all that there are


# ---- VehicleID

VEHICLES = {
    "train_list.txt": "0000004 7\n0000002 12\n",
    "test_list_800.txt": "0000009 30\n0000005 30\n0000001 41\n0000007 30\n0000003 55\n0000008 55\n",
}


def vehicle_tree(base: Path, lists: dict[str, str], end: str = "\n", encoding: str = "utf-8") -> Path:
    (base / "image").mkdir(parents=True)
    (base / "train_test_split").mkdir()
    for name, text in lists.items():
        (base / "train_test_split" / name).write_bytes(text.replace("\n", end).encode(encoding))
    return base


@pytest.mark.parametrize("folder", ["VehicleID_V1.0", "VehicleID", "."])
@pytest.mark.parametrize("extension", ["", ".jpg"])
@pytest.mark.parametrize("end, encoding", [("\n", "utf-8"), ("\r\n", "utf-8-sig"), ("\t\n \n", "utf-8")])
def test_vehicleid_first_image_is_gallery_the_rest_ask_and_no_image_shares_a_camera(
    tmp_path, folder, extension, end, encoding
):
    lists = {name: text.replace(" ", f"{extension} ") for name, text in VEHICLES.items()}
    base = vehicle_tree(tmp_path / folder, lists, end, encoding)
    dataset = quiet(vehicleid, tmp_path, 800)
    assert dataset.name == "vehicleid_small" and dataset.protocol == "vehicle_id" and dataset.note == ""
    assert listed(dataset.train, base / "image") == [("0000004.jpg", 7, 1), ("0000002.jpg", 12, 2)]
    images = base / "image"
    assert listed(dataset.gallery, images) == [("0000001.jpg", 41, 3), ("0000003.jpg", 55, 4), ("0000005.jpg", 30, 5)]
    assert listed(dataset.query, images) == [("0000007.jpg", 30, 6), ("0000008.jpg", 55, 7), ("0000009.jpg", 30, 8)]


def test_vehicleid_gallery_does_not_hang_on_the_order_of_the_list(tmp_path):
    vehicle_tree(tmp_path / "a" / "VehicleID", VEHICLES)
    lines = VEHICLES["test_list_800.txt"].split("\n")
    random.Random(3).shuffle(lines)
    vehicle_tree(tmp_path / "b" / "VehicleID", VEHICLES | {"test_list_800.txt": "\n".join(lines)})
    a, b = (quiet(vehicleid, tmp_path / place, 800) for place in "ab")
    assert listed(a.gallery, tmp_path / "a") == listed(b.gallery, tmp_path / "b")
    assert listed(a.query, tmp_path / "a") == listed(b.query, tmp_path / "b")


@pytest.mark.parametrize("name", VEHICLES)
def test_vehicleid_moves_all_identities_up_where_one_is_zero(tmp_path, name):
    vehicle_tree(tmp_path / "VehicleID", VEHICLES | {name: VEHICLES[name] + "0000010 0\n0000011 0\n"})
    dataset = quiet(vehicleid, tmp_path, 800)
    assert {s.pid for s in dataset.train} == {8, 13} | ({1} if name == "train_list.txt" else set())
    assert {s.pid for s in dataset.query} == {31, 56} | (set() if name == "train_list.txt" else {1})


def test_vehicleid_can_be_scored_by_its_protocol(tmp_path):
    vehicle_tree(tmp_path / "VehicleID", VEHICLES)
    dataset = quiet(make_dataset, Config(dataset="vehicleid_small", data_root=str(tmp_path)))
    pids = np.array([s.pid for s in dataset.query + dataset.gallery])
    scores = evaluate_vehicle_id(torch.nn.functional.one_hot(torch.from_numpy(pids)).float(), pids)
    assert scores.num_valid_queries == 3 and scores.mAP == 1


@pytest.mark.parametrize(
    "line, words", [("0000006", "'0000006'"), ("0000006 red", "red"), ("0000006 7 1", "7 1"), ("0000006 -1", "-1")]
)
@pytest.mark.parametrize("name", VEHICLES)
def test_vehicleid_bad_lines_are_refused_by_file_and_number(tmp_path, name, line, words):
    vehicle_tree(tmp_path / "VehicleID", VEHICLES | {name: f"\n{line}\n{VEHICLES[name]}"})
    with pytest.raises(UserError, match=rf"{name}, line 2: .*{words}") as error:
        vehicleid(tmp_path, 800)
    one_sentence(error)


def test_vehicleid_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"(?s)--data-root.*test_list_800.txt"):
        vehicleid(tmp_path, 800)
    base = vehicle_tree(tmp_path / "VehicleID", VEHICLES | {"train_list.txt": "\n"})
    with pytest.raises(UserError, match=r"train_list.txt is empty"):
        vehicleid(tmp_path, 800)
    (base / "image").rmdir()
    with pytest.raises(UserError, match=r"VehicleID/image is missing"):
        vehicleid(tmp_path, 800)


@pytest.mark.parametrize("size, test", [(800, 6493), (1600, 13377), (2400, 19777)])
def test_vehicleid_counts_are_compared_with_the_published_ones(tmp_path, size, test):
    vehicle_tree(tmp_path / "VehicleID", {k.replace("800", str(size)): v for k, v in VEHICLES.items()})
    with pytest.warns(UserWarning) as caught:
        vehicleid(tmp_path, size)
    numbers = ("113346 of 13164", f"gallery has 6 images of 3 pids, the published set {test} of {size}")
    assert [number in str(w.message) for w, number in zip(caught, numbers, strict=True)] == [True] * 2

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import Sample
from datasets.cuhk03 import IMAGES, cuhk03, cuhk03_classic
from datasets.dukemtmc import dukemtmc, occluded_duke
from datasets.market1501 import market1501_500k
from datasets.msmt17 import msmt17
from datasets.partial_ilids import partial_ilids
from datasets.randperson import randperson
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # tiny trees have not the published counts


def touch(base: Path, *files: str) -> None:
    for file in files:
        (base / file).parent.mkdir(parents=True, exist_ok=True)
        (base / file).write_bytes(b"")


def listed(samples: Iterable[Sample], base: Path) -> list[tuple[int, int, str]]:
    return [(s.pid, s.camid, Path(s.path).relative_to(base).as_posix()) for s in samples]


def warned(load, *args) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(*args)
    return [str(w.message) for w in caught]


# Market-1501 + 500k


def market_tree(base: Path) -> None:
    touch(
        base,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0000_c2s1_000151_01.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/0001_c6s4_001877_01.jpg.jpg",
        "bounding_box_test/Thumbs.db",
    )


@pytest.mark.parametrize(
    "folder",
    ["market1501/images", "market1501/distractors_500k", "market1501/distractors_500k/images", "distractors_500k"],
)
def test_all_distractors_join_the_gallery_as_nobody(tmp_path, folder):
    market_tree(tmp_path / "market1501")
    names = ["0000_c1s1_000000_00.jpg", "0000_c3s2_000076_01.jpg.jpg", "17.jpg", "Thumbs.db", "readme.txt"]
    touch(tmp_path, *(f"{folder}/{name}" for name in names))
    dataset = market1501_500k(tmp_path)
    assert dataset.name == "market1501_500k" and dataset.protocol == "standard"
    assert listed(dataset.train, tmp_path) == [(2, 1, "market1501/bounding_box_train/0002_c1s1_000451_03.jpg")]
    assert listed(dataset.query, tmp_path) == [(1, 1, "market1501/query/0001_c1s1_001051_00.jpg")]
    found = [(s.pid, s.camid, Path(s.path).name) for s in dataset.gallery]
    assert found == [
        (0, 2, "0000_c2s1_000151_01.jpg"),
        (1, 6, "0001_c6s4_001877_01.jpg.jpg"),
        (0, 1, "0000_c1s1_000000_00.jpg"),
        (0, 3, "0000_c3s2_000076_01.jpg.jpg"),
        (0, 0, "17.jpg"),
    ]
    assert Path(dataset.gallery[-1].path).resolve() == (tmp_path / folder / "17.jpg").resolve()


def test_missing_and_empty_distractors_are_named_and_the_count_is_that_of_both(tmp_path):
    market_tree(tmp_path / "market1501")
    with pytest.raises(UserError, match=r"distractor set is not under .*market1501;(?s:.*)images(?s:.*)500,000 images"):
        market1501_500k(tmp_path)
    (tmp_path / "market1501" / "images").mkdir()
    with pytest.raises(UserError, match=r"images holds no image"):
        market1501_500k(tmp_path)
    touch(tmp_path, "market1501/images/0000_c1s1_000000_00.jpg")
    assert any(
        "gallery has 3 images of 2 pids, the published set 515913 of 751" in w
        for w in warned(market1501_500k, tmp_path)
    )


# DukeMTMC-reID and Occluded-Duke


def duke_tree(base: Path) -> None:
    touch(
        base,
        "bounding_box_train/0012_c8_f0046302.jpg",
        "bounding_box_train/0001_c2_f0046182.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0005_c5_f0051681.jpg",
        "bounding_box_test/7139_c2_f0160815.jpg",
        "bounding_box_test/Thumbs.db",
        "LICENSE_DukeMTMC.txt",
    )


@pytest.mark.parametrize(
    ("load", "name", "folder"),
    [
        (dukemtmc, "dukemtmc", "DukeMTMC-reID"),
        (dukemtmc, "dukemtmc", "dukemtmc-reid/DukeMTMC-reID"),
        (dukemtmc, "dukemtmc", "dukemtmcreid"),
        (dukemtmc, "dukemtmc", "."),
        (occluded_duke, "occluded_duke", "Occluded_Duke"),
        (occluded_duke, "occluded_duke", "Occluded-DukeMTMC-Dataset/Occluded_Duke"),
        (occluded_duke, "occluded_duke", "."),
    ],
)
def test_duke_names_under_its_usual_folders(tmp_path, load, name, folder):
    base = tmp_path / folder
    duke_tree(base)
    dataset = load(tmp_path)
    assert dataset.name == name
    assert listed(dataset.train, base) == [
        (1, 2, "bounding_box_train/0001_c2_f0046182.jpg"),
        (12, 8, "bounding_box_train/0012_c8_f0046302.jpg"),
    ]
    assert listed(dataset.query, base) == [(5, 2, "query/0005_c2_f0046985.jpg")]
    assert listed(dataset.gallery, base) == [
        (5, 5, "bounding_box_test/0005_c5_f0051681.jpg"),
        (7139, 2, "bounding_box_test/7139_c2_f0160815.jpg"),
    ]


@pytest.mark.parametrize(
    ("load", "folder", "counts"),
    [
        (dukemtmc, "DukeMTMC-reID", ("16522 of 702", "2228 of 702", "17661 of 1110")),
        (occluded_duke, "Occluded_Duke", ("15618 of 702", "2210 of 519", "17661 of 1110")),
    ],
)
def test_duke_is_said_to_be_withdrawn_once_and_its_counts_are_checked(tmp_path, load, folder, counts):
    duke_tree(tmp_path / folder)
    first, *rest = warned(load, tmp_path)
    assert "withdrew" in first and "do not use it for new work" in first
    assert [count in message for count, message in zip(counts, rest, strict=True)] == [True] * 3


def test_occluded_duke_is_not_duke(tmp_path):
    duke_tree(tmp_path / "Occluded_Duke")
    with pytest.raises(UserError, match=r"DukeMTMC-reID is not under(?s:.*)0001_c2_f0046182"):
        dukemtmc(tmp_path)


# MSMT17

LISTS = {
    "train": "0001/0001_000_14_0303morning_0017_2.jpg 1\n0000/0000_045_12_0303noon_0006_2_ex.jpg 0\n",
    "val": "0000/0000_001_03_0114afternoon_0009_0.jpg 0\n",
    "query": "0000/0000_000_01_0303morning_0015_0.jpg 0\n",
    "gallery": "0000/0000_007_02_0302noon_0100_0.jpg 0\n3059/3059_000_15_0113noon_1439_0.jpg 3059\n",
}


def msmt_tree(base: Path, folders: tuple[str, str] = ("train", "test"), **changed: str) -> None:
    for folder in folders:
        (base / folder).mkdir(parents=True)
    for name, text in (LISTS | changed).items():
        (base / f"list_{name}.txt").write_bytes(text.encode())


@pytest.mark.parametrize(
    ("folder", "train", "test"),
    [
        ("MSMT17_V1", "train", "test"),
        ("MSMT17_V2", "mask_train_v2", "mask_test_v2"),
        ("msmt17/MSMT17_V2", "mask_train_v2", "mask_test_v2"),
        ("MSMT17", "train", "test"),
        (".", "train", "test"),
    ],
)
def test_msmt_lists_of_both_versions_with_labels_that_mean_one_person_each(tmp_path, folder, train, test):
    base = tmp_path / folder
    msmt_tree(base, (train, test))
    dataset = msmt17(tmp_path)
    assert dataset.name == "msmt17"
    assert listed(dataset.train, base) == [
        (2, 14, f"{train}/0001/0001_000_14_0303morning_0017_2.jpg"),
        (1, 12, f"{train}/0000/0000_045_12_0303noon_0006_2_ex.jpg"),
    ]
    assert listed(dataset.query, base) == [(1042, 1, f"{test}/0000/0000_000_01_0303morning_0015_0.jpg")]
    assert listed(dataset.gallery, base) == [
        (1042, 2, f"{test}/0000/0000_007_02_0302noon_0100_0.jpg"),
        (4101, 15, f"{test}/3059/3059_000_15_0113noon_1439_0.jpg"),
    ]


def test_msmt_validation_images_are_trained_on_only_on_demand(tmp_path):
    base = tmp_path / "MSMT17_V1"
    msmt_tree(base)
    merged, plain = msmt17(tmp_path, merge_val=True), msmt17(tmp_path)
    assert merged.name == "msmt17_trainval"
    assert merged.train[:2] == plain.train and merged.gallery == plain.gallery
    assert listed(merged.train[2:], base) == [(1, 3, "train/0000/0000_001_03_0114afternoon_0009_0.jpg")]
    assert "published set 30248 of 1041" in warned(msmt17, tmp_path)[0]
    assert "published set 32621 of 1041" in warned(msmt17, tmp_path, True)[0]


def test_msmt_is_found_without_the_validation_list_where_it_is_not_asked_for(tmp_path):
    msmt_tree(tmp_path / "MSMT17_V1")
    (tmp_path / "MSMT17_V1" / "list_val.txt").unlink()
    assert len(msmt17(tmp_path).train) == 2
    with pytest.raises(UserError, match=r"list_val\.txt cannot be read"):
        msmt17(tmp_path, merge_val=True)


@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n\n", lambda t: t.rstrip("\n")])
def test_msmt_line_ends_and_blank_lines_do_not_matter(tmp_path, change):
    msmt_tree(tmp_path / "a" / "MSMT17_V1")
    msmt_tree(tmp_path / "b" / "MSMT17_V1", **{name: change(text) for name, text in LISTS.items()})
    plain, changed = msmt17(tmp_path / "a"), msmt17(tmp_path / "b")
    for split in ("train", "query", "gallery"):
        assert listed(getattr(changed, split), tmp_path / "b") == listed(getattr(plain, split), tmp_path / "a")


@pytest.mark.parametrize(
    "line",
    [
        "0000/0000_000_01_0303morning_0015_0.jpg",  # no label
        "0000/0000_000_01_0303morning_0015_0.jpg -1",
        "0000/0000_000_01_0303morning_0015_0.jpg one",
        "0000/0000_000_01_0303morning_0015_0.jpg 0 1",
        "0000/0000_000_c1_0303morning_0015_0.jpg 0",  # no camera number
        "0000_000_01/0000.jpg 0",  # fields of the folder are no fields of the name
        "0 0000/0000_000_01_0303morning_0015_0.jpg",
    ],
)
def test_a_malformed_msmt_line_is_named_with_its_file(tmp_path, line):
    msmt_tree(tmp_path / "MSMT17_V1", query=LISTS["query"] + line + "\n")
    with pytest.raises(UserError) as caught:
        msmt17(tmp_path)
    assert f"list_query.txt, line 2: '{line}' is not like" in str(caught.value)


def test_missing_msmt_shows_its_tree_and_a_missing_half_is_named(tmp_path):
    with pytest.raises(UserError, match=r"MSMT17 is not under(?s:.*)MSMT17_V1/(?s:.*)mask_train_v2(?s:.*)list_query"):
        msmt17(tmp_path)
    msmt_tree(tmp_path / "MSMT17_V2", ("mask_train_v2", "test"))
    with pytest.raises(UserError, match=r"mask_test_v2 is missing"):
        msmt17(tmp_path)


# Partial-iLIDS


@pytest.mark.parametrize(
    ("folder", "query", "gallery", "end"),
    [
        ("Partial_iLIDS", "Probe", "Gallery", ""),
        ("partial_ilids/Partial_iLIDS", "Probe", "Gallery", ""),
        ("PartialiLIDS", "query", "gallery", "_1"),
        ("Partial_iLIDS", "partial_body_images", "whole_body_images", ""),
        (".", "Probe", "Gallery", ""),
    ],
)
def test_partial_ilids_has_query_and_gallery_under_two_cameras(tmp_path, folder, query, gallery, end):
    base = tmp_path / folder
    touch(
        base, f"{query}/2{end}.jpg", f"{query}/001{end}.jpg", f"{query}/Thumbs.db", f"{query}/readme.jpg", "Probe.txt"
    )
    touch(base, f"{gallery}/2{end}.jpg", f"{gallery}/001{end}.jpg")
    dataset = partial_ilids(tmp_path)
    assert (dataset.name, dataset.train, dataset.protocol) == ("partial_ilids", [], "standard")
    assert listed(dataset.query, base) == [(1, 1, f"{query}/001{end}.jpg"), (2, 1, f"{query}/2{end}.jpg")]
    assert listed(dataset.gallery, base) == [(1, 2, f"{gallery}/001{end}.jpg"), (2, 2, f"{gallery}/2{end}.jpg")]
    assert ["119 of 119" in w for w in warned(partial_ilids, tmp_path)] == [True, True]


def test_a_partial_ilids_that_numbers_from_zero_has_no_distractor(tmp_path):
    touch(tmp_path / "PartialiLIDS", "query/000_1.jpg", "query/001_1.jpg", "gallery/000_2.jpg", "gallery/001_2.jpg")
    dataset = partial_ilids(tmp_path)
    assert [s.pid for s in dataset.query] == [s.pid for s in dataset.gallery] == [1, 2]


def test_missing_partial_ilids_shows_its_tree_and_a_missing_or_empty_half_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Partial-iLIDS is not under(?s:.*)Partial_iLIDS/(?s:.*)Probe/(?s:.*)Gallery/"):
        partial_ilids(tmp_path)
    touch(tmp_path, "Partial_iLIDS/Probe/1.jpg")
    with pytest.raises(UserError, match=r"Gallery is missing"):
        partial_ilids(tmp_path)
    touch(tmp_path, "Partial_iLIDS/Gallery/Thumbs.db")
    with pytest.raises(UserError, match=r"Gallery holds no image whose name begins with a number"):
        partial_ilids(tmp_path)


# RandPerson


@pytest.mark.parametrize(
    "folder", ["randperson_subset/randperson_subset", "randperson_subset", "randperson/randperson_subset"]
)
def test_randperson_counts_people_from_one_and_cameras_by_scene(tmp_path, folder):
    base = tmp_path / folder
    touch(
        base,
        "000000_s00_c00_f000264.jpg",
        "000000_s00_c01_f001632.jpg",
        "000000_s01_c00_f000010.jpg",
        "007999_s10_c03_f3490000.jpg",
        "readme.txt",
        "cover.jpg",
    )
    dataset = randperson(tmp_path)
    assert (dataset.name, dataset.query, dataset.gallery) == ("randperson", [], [])
    assert listed(dataset.train, base) == [
        (1, 1, "000000_s00_c00_f000264.jpg"),
        (1, 2, "000000_s00_c01_f001632.jpg"),
        (1, 11, "000000_s01_c00_f000010.jpg"),
        (8000, 104, "007999_s10_c03_f3490000.jpg"),
    ]
    assert ["published set 132145 of 8000" in w for w in warned(randperson, tmp_path)] == [True]


def test_missing_and_empty_randperson_are_named(tmp_path):
    with pytest.raises(UserError, match=r"RandPerson is not under(?s:.*)000000_s00_c00_f000264"):
        randperson(tmp_path)
    touch(tmp_path, "randperson_subset/cover.jpg")
    with pytest.raises(UserError, match=r"holds no image named like 000000_s00"):
        randperson(tmp_path)


# CUHK03, new protocol as folders


@pytest.mark.parametrize("folder", ["cuhk03-np", "CUHK03-NP", "cuhk03/cuhk03-np", "."])
@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_folders_of_both_kinds_of_boxes(tmp_path, folder, boxes):
    base = tmp_path / folder
    for kind, pid in (("detected", 3), ("labeled", 4)):
        touch(
            base / kind,
            f"bounding_box_train/000{pid}_c1_21.png",
            f"query/1467_c2_{pid}.png",
            f"bounding_box_test/1467_c1_{pid}.png",
            "bounding_box_test/Thumbs.db",
        )
    dataset = cuhk03(tmp_path, boxes)
    pid = {"detected": 3, "labeled": 4}[boxes]
    assert (dataset.name, dataset.protocol) == (f"cuhk03_{boxes}", "standard")
    assert listed(dataset.train, base / boxes) == [(pid, 1, f"bounding_box_train/000{pid}_c1_21.png")]
    assert listed(dataset.query, base / boxes) == [(1467, 2, f"query/1467_c2_{pid}.png")]
    assert listed(dataset.gallery, base / boxes) == [(1467, 1, f"bounding_box_test/1467_c1_{pid}.png")]


@pytest.mark.parametrize(
    ("boxes", "counts"),
    [
        ("detected", ("7365 of 767", "1400 of 700", "5332 of 700")),
        ("labeled", ("7368 of 767", "1400 of 700", "5328 of 700")),
    ],
)
def test_cuhk03_counts_are_those_of_the_boxes(tmp_path, boxes, counts):
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        touch(tmp_path, f"cuhk03-np/{boxes}/{folder}/0001_c1_1.png")
    found = warned(cuhk03, tmp_path, boxes)
    assert [count in message for count, message in zip(counts, found, strict=True)] == [True] * 3


def test_missing_cuhk03_shows_both_trees(tmp_path):
    with pytest.raises(UserError, match=r"CUHK03 is not under(?s:.*)labeled/bounding_box_train(?s:.*)cuhk-03\.mat"):
        cuhk03(tmp_path, "detected")
    with pytest.raises(UserError, match=r"raw release is not under(?s:.*)cuhk03/cuhk03_release/\n    cuhk-03\.mat"):
        cuhk03_classic(tmp_path, "detected", 0)


# CUHK03, the raw release

PEOPLE = (3, 1, 1, 1, 2)  # of each camera pair; 843, 440, 77, 58 and 49 in truth


def picture(kind: str, pair: int, person: int, place: int) -> np.ndarray | None:
    """RGB, different along each axis; some are missing: person 2 of pair 1 was seen by the first camera alone."""
    seen = range(1, 6) if (pair, person) == (1, 2) else (2, 6, 7)
    if place not in seen:
        return None
    image = np.zeros((7, 4, 3), np.uint8)
    image[..., 0] = np.arange(7)[:, None] * 20
    image[..., 1] = np.arange(4)[None] * 40
    image[..., 2] = 100 * (kind == "labeled") + 20 * pair + person
    return image


def matlab(file, value) -> object:
    """A reference to `value`, stored as MATLAB 7.3 does: column after column, an empty cell as its size."""
    name = f"#refs#/{len(file.require_group('#refs#'))}"
    if value is None:
        data = file.create_dataset(name, data=np.zeros(2, np.uint64))
        data.attrs["MATLAB_empty"] = np.uint8(1)
    else:
        data = file.create_dataset(name, data=np.ravel(value, order="F").reshape(value.shape[::-1]))
    return data.ref


def cell(file, rows: list[list]) -> np.ndarray:
    """A cell array: references of the shape of the nested lists."""
    h5py = pytest.importorskip("h5py")
    out = np.empty((len(rows), len(rows[0])), h5py.ref_dtype)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            out[i, j] = matlab(file, value)
    return out


def write_mat(path: Path, testsets: list[list[tuple[int, int]]]) -> None:
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for kind in ("detected", "labeled"):
            pairs = [
                cell(file, [[picture(kind, pair, person + 1, place + 1) for place in range(10)] for person in range(n)])
                for pair, n in enumerate(PEOPLE, 1)
            ]
            file.create_dataset(kind, data=cell(file, [[people] for people in pairs]).T)
        sets = cell(file, [[np.array(people, np.float64)] for people in testsets])
        file.create_dataset("testsets", data=sets.T)


def write_config(path: Path, **lists: list[int]) -> list[str]:
    """The new protocol's list over all pictures in order, pids counted on through the pairs; their names."""
    savemat = pytest.importorskip("scipy.io").savemat
    names, labels = [], []
    everyone = [(pair, person + 1) for pair, n in enumerate(PEOPLE, 1) for person in range(n)]
    for pid, (pair, person) in enumerate(everyone, 1):
        for place in range(1, 11):
            if picture("detected", pair, person, place) is not None:
                names.append(f"{pair}_{person:03}_{1 if place < 6 else 2}_{place:02}.png")
                labels.append([pid])
    filelist = np.array(names, dtype=object)[:, None]
    places = {f"{split}_idx": np.array(rows, np.uint16)[:, None] for split, rows in lists.items()}
    savemat(path, {"filelist": filelist, "labels": np.array(labels, np.uint16), **places})
    return names


def raw_tree(root: Path) -> Path:
    release = root / "cuhk03" / "cuhk03_release"
    write_mat(release / "cuhk-03.mat", [[(1, 2), (3, 1)], [(1, 1), (5, 2)]])
    return release


def test_matlab_pictures_come_out_upright_in_their_colours_and_empty_cells_not_at_all(tmp_path):
    release = raw_tree(tmp_path)
    cuhk03_classic(tmp_path, "labeled", 0)
    folder = release / "images_labeled"
    everyone = [(pair, person + 1) for pair, n in enumerate(PEOPLE, 1) for person in range(n)]
    expected = {
        f"{pair}_{person:03}_{1 if place < 6 else 2}_{place:02}.png": picture("labeled", pair, person, place)
        for pair, person in everyone
        for place in range(1, 11)
    }
    expected = {name: image for name, image in expected.items() if image is not None}
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected) and len(expected) == 26
    for name, image in expected.items():
        assert np.array_equal(cv2.imread(str(folder / name))[..., ::-1], image)
    assert {path.name for path in release.iterdir()} == {"cuhk-03.mat", "images_labeled"}


def test_classic_protocol_tests_the_people_of_the_split_and_trains_on_all_others(tmp_path):
    release = raw_tree(tmp_path)
    dataset = cuhk03_classic(tmp_path, "detected", 0)
    assert (dataset.name, dataset.protocol) == ("cuhk03_classic_detected", "single_shot")
    test = [(2, 1, f"images_detected/1_002_1_0{place}.png") for place in range(1, 6)]
    test += [(5, 1 + (place > 5), f"images_detected/3_001_{1 + (place > 5)}_0{place}.png") for place in (2, 6, 7)]
    assert listed(dataset.query, release) == listed(dataset.gallery, release) == test
    assert {s.pid for s in dataset.train} == {1, 3, 4, 6, 7, 8} and len(dataset.train) == 18
    other = cuhk03_classic(tmp_path, "detected", 1)
    assert {s.pid for s in other.query} == {1, 8} and {s.pid for s in other.train} == {2, 3, 4, 5, 6, 7}


def test_classic_counts_are_checked_against_the_whole_release(tmp_path):
    raw_tree(tmp_path)
    train, gallery = warned(cuhk03_classic, tmp_path, "labeled", 0)
    assert f"train has 18 images of 6 pids, the published set {IMAGES['labeled'] - 8} of 1367" in train
    assert "gallery has 8 images of 2 pids, the published set 8 of 100" in gallery


@pytest.mark.parametrize("split", [-1, 2, 20])
def test_a_classic_split_that_does_not_exist_is_refused_before_the_pictures_are_written(tmp_path, split):
    release = raw_tree(tmp_path)
    with pytest.raises(UserError, match=rf"--split-seed {split}: .* 0 to 1"):
        cuhk03_classic(tmp_path, "detected", split)
    assert [path.name for path in release.iterdir()] == ["cuhk-03.mat"]


@pytest.mark.parametrize("place", ["cuhk03", "cuhk03/cuhk03_release"])
def test_the_raw_release_gives_the_new_protocol_by_its_list(tmp_path, place):
    release = raw_tree(tmp_path)
    config = tmp_path / place / "cuhk03_new_protocol_config_detected.mat"
    names = write_config(config, train=[1, 2, 26], query=[4], gallery=[9, 12])
    dataset = cuhk03(tmp_path, "detected")
    assert (dataset.name, dataset.protocol) == ("cuhk03_detected", "standard")
    assert names[3] == "1_002_1_01.png" and names[11] == "2_001_1_02.png"  # one-based 4 and 12
    assert listed(dataset.train, release) == [
        (1, 1, "images_detected/1_001_1_02.png"),
        (1, 2, "images_detected/1_001_2_06.png"),
        (8, 2, "images_detected/5_002_2_07.png"),
    ]
    assert listed(dataset.query, release) == [(2, 1, "images_detected/1_002_1_01.png")]
    assert listed(dataset.gallery, release) == [
        (3, 1, "images_detected/1_003_1_02.png"),
        (4, 1, "images_detected/2_001_1_02.png"),
    ]
    classic = cuhk03_classic(tmp_path, "detected", 0)
    pids = {s.path: s.pid for s in classic.train + classic.query}
    assert all(pids[s.path] == s.pid for s in dataset.train + dataset.query + dataset.gallery)


def test_the_folders_win_over_the_raw_release(tmp_path):
    raw_tree(tmp_path)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        touch(tmp_path, f"cuhk03-np/detected/{folder}/0001_c1_1.png")
    dataset = cuhk03(tmp_path, "detected")
    assert listed(dataset.train, tmp_path) == [(1, 1, "cuhk03-np/detected/bounding_box_train/0001_c1_1.png")]
    with pytest.raises(UserError, match=r"config_labeled\.mat is missing.*person-re-ranking"):
        cuhk03(tmp_path, "labeled")  # of which there are no folders


def test_pictures_are_written_once_and_half_of_them_never(tmp_path, monkeypatch):
    release = raw_tree(tmp_path)
    real, calls = cv2.imencode, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(cv2, "imencode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cuhk03_classic(tmp_path, "detected", 0)
    assert [path.name for path in release.iterdir()] == ["cuhk-03.mat"]
    assert len(cuhk03_classic(tmp_path, "detected", 0).train) == 18 and len(calls) == 5 + 26
    assert len(cuhk03_classic(tmp_path, "detected", 1).train) == 20 and len(calls) == 5 + 26


def test_another_process_may_write_the_pictures_meanwhile(tmp_path, monkeypatch):
    release = raw_tree(tmp_path)
    real = Path.rename

    def beaten(self, target):
        real(self, target)  # the other's, complete
        self.mkdir()
        touch(self, "ours.png")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    assert len(cuhk03_classic(tmp_path, "detected", 0).train) == 18
    assert {path.name for path in release.iterdir()} == {"cuhk-03.mat", "images_detected"}


def test_a_picture_that_the_list_names_and_the_folder_lacks_is_named(tmp_path):
    release = raw_tree(tmp_path)
    write_config(release / "cuhk03_new_protocol_config_detected.mat", train=[1, 2], query=[3], gallery=[4])
    cuhk03(tmp_path, "detected")
    (release / "images_detected" / "1_001_2_06.png").unlink()
    with pytest.raises(UserError, match=r"images_detected holds no 1_001_2_06\.png"):
        cuhk03(tmp_path, "detected")


@pytest.mark.parametrize("package", ["h5py", "scipy"])
def test_a_missing_package_is_named_with_its_installation(tmp_path, monkeypatch, package):
    touch(tmp_path, "cuhk03/cuhk03_release/cuhk-03.mat", "cuhk03/cuhk03_new_protocol_config_detected.mat")
    monkeypatch.setitem(sys.modules, "h5py", None)
    if package == "scipy":
        monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=rf"cuhk.*03.*\.mat is read by .* pip install {package}$"):
        cuhk03_classic(tmp_path, "detected", 0) if package == "h5py" else cuhk03(tmp_path, "detected")


def test_damaged_matlab_files_are_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("scipy.io")
    release = tmp_path / "cuhk03" / "cuhk03_release"
    touch(release, "cuhk-03.mat", "cuhk03_new_protocol_config_detected.mat")
    with pytest.raises(UserError, match=r"cuhk-03\.mat is damaged.*unpack"):
        cuhk03_classic(tmp_path, "detected", 0)
    with pytest.raises(UserError, match=r"config_detected\.mat is no list"):
        cuhk03(tmp_path, "detected")
    with h5py.File(release / "cuhk-03.mat", "w") as file:
        file["testsets"] = np.zeros(3)
    with pytest.raises(UserError, match=r"cuhk-03\.mat is damaged or not the one of CUHK03"):
        cuhk03_classic(tmp_path, "detected", 0)


def test_a_release_cut_short_leaves_no_pictures(tmp_path):
    h5py = pytest.importorskip("h5py")
    release = raw_tree(tmp_path)
    with h5py.File(release / "cuhk-03.mat", "a") as file:
        del file["labeled"]
    with pytest.raises(UserError, match=r"damaged"):
        cuhk03_classic(tmp_path, "labeled", 0)
    assert [path.name for path in release.iterdir()] == ["cuhk-03.mat"]

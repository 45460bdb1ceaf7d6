"""Every public dataset on a tiny tree in its naming: which samples are listed, and what is refused or warned about."""

import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import fails, stop_at

from config import Config
from datasets.base import ReIDDataset
from datasets.cuhk03 import IMAGES, cuhk03, cuhk03_classic
from datasets.make import DATASETS, find_dataset
from utils.errors import UserError


def write(base: Path, tree: dict[str, str | bytes]) -> Path:
    for name, content in tree.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (base / name).mkdir(exist_ok=True)
        else:
            (base / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return base


def read(name: str, root: Path) -> ReIDDataset:
    """The dataset, without the warnings: tiny trees do not have the published counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_dataset(name, Config(data_root=str(root)))


def listed(samples: list, base: Path) -> list[tuple[int, int, str]]:
    assert all(type(s.pid) is int and type(s.camid) is int for s in samples)
    return [(s.pid, s.camid, Path(s.path).relative_to(base).as_posix()) for s in samples]


@dataclass
class Case:
    """A tree of files under `folder` (or `others`), and what is listed: pid, camera and path from it."""

    folder: str
    tree: dict[str, str]
    train: list[tuple[int, int, str]] = field(default_factory=list)
    query: list[tuple[int, int, str]] = field(default_factory=list)
    gallery: list[tuple[int, int, str]] = field(default_factory=list)
    counts: tuple[str, ...] = ()  # published images "of" identities that the warnings name
    others: tuple[str, ...] = ()
    protocol: str = "standard"


def files(folder: str, *names: str) -> dict[str, str]:
    return {f"{folder}/{name}": "" for name in (*names, "Thumbs.db", "readme.txt", "note.jpg", "._1.jpg")}


MARKET = {
    **files("bounding_box_train", "0007_c3s3_077419_03.jpg", "0002_c2s1_000451_03.jpg.jpg"),
    **files("query", "0001_c1s1_001051_00.jpg"),
    **files("bounding_box_test", "0000_c2s1_000151_01.jpg", "-1_c1s1_000401_03.jpg", "0001_c6s4_001877_01.jpg.jpg"),
}
MARKET_SIDES = {
    "train": [
        (2, 2, "bounding_box_train/0002_c2s1_000451_03.jpg.jpg"),
        (7, 3, "bounding_box_train/0007_c3s3_077419_03.jpg"),
    ],
    "query": [(1, 1, "query/0001_c1s1_001051_00.jpg")],
    "gallery": [  # junk is gone, the distractor stays
        (0, 2, "bounding_box_test/0000_c2s1_000151_01.jpg"),
        (1, 6, "bounding_box_test/0001_c6s4_001877_01.jpg.jpg"),
    ],
}
MSMT = {
    "list_train.txt": "0001/0001_000_14_0303morning_0017_2.jpg 1\r\n\n0000/0000_045_12_0303noon_0006_2_ex.jpg 0",
    "list_val.txt": "0000/0000_001_03_0114afternoon_0009_0.jpg 0\n",
    "list_query.txt": "0000/0000_000_01_0303morning_0015_0.jpg 0\n",
    "list_gallery.txt": "0000/0000_007_02_0302noon_0100_0.jpg 0\n3059/3059_000_15_0113noon_1439_0.jpg 3059\n",
}
MSMT_TRAIN = [
    (2, 14, "train/0001/0001_000_14_0303morning_0017_2.jpg"), (1, 12, "train/0000/0000_045_12_0303noon_0006_2_ex.jpg"),
]  # fmt: skip
MSMT_SIDES = {
    "query": [(1042, 1, "test/0000/0000_000_01_0303morning_0015_0.jpg")],
    "gallery": [
        (1042, 2, "test/0000/0000_007_02_0302noon_0100_0.jpg"), (4101, 15, "test/3059/3059_000_15_0113noon_1439_0.jpg")
    ],
}  # fmt: skip
WILD = {
    "images/": "",
    "train_test_split/vehicle_info.txt": "id/image;Camera ID;Time;Model\r\n00001/000001;23;2018-03-11 07:12:10;Audi\n"
    "00001/000002;41;2018;大众\n00002/000003.jpg;23\n31388/321972;61;x\n31388/321973;174;x;y\n",
    "train_test_split/train_list.txt": "00001/000002\n\n00002/000003\n",
    "train_test_split/test_5000_query.txt": "31388/321972\n",
    "train_test_split/test_5000.txt": "31388/321973\n",
}
NEW_WILD = {name: text for name, text in WILD.items() if "list" not in name and "test_5" not in name} | {
    "train_test_split/train_list_start0.txt": "00001/000002.jpg 0 41\n00002/000003.jpg 1 23\n",
    "train_test_split/test_5000_id_query.txt": "31388/321972.jpg 31388 61\n",
    "train_test_split/test_5000_id.txt": "31388/321973.jpg 31388 174\n",
}
WILD_SIDES = {
    "train": [(1, 41, "images/00001/000002.jpg"), (2, 23, "images/00002/000003.jpg")],
    "query": [(31388, 61, "images/31388/321972.jpg")],
    "gallery": [(31388, 174, "images/31388/321973.jpg")],
}
VEHICLES = {
    "image/": "",
    "train_test_split/train_list.txt": "0000004 7\n0000002.jpg 12\r\n",
    "train_test_split/test_list_800.txt": "0000009 30\n0000005 30\n0000001 41\n\n0000007 30\n0000003 55\n0000008 55\n",
}
VERI = {
    **files("image_train", "0001_c001_00016450_0.jpg", "0003_c011_00000001_1.jpg"),
    **files("image_query", "0002_c002_00030600_0.jpg"),
    **files("image_test", "0002_c002_00030600_0.jpg", "0005_c020_00040000_0.jpg"),
}


def like_market(folder: str, *counts: str, others: tuple[str, ...] = ()) -> Case:
    return Case(folder, MARKET, **MARKET_SIDES, counts=counts, others=others)


CASES = {
    "market1501": like_market(
        "Market-1501-v15.09.15", "12936 of 751", "3368 of 750", "15913 of 751", others=("market1501", "."),
    ),
    "market1501_500k": Case(
        "market1501", MARKET | files("images", "0000_c3s2_000076_01.jpg"), MARKET_SIDES["train"], MARKET_SIDES["query"],
        [*MARKET_SIDES["gallery"], (0, 3, "images/0000_c3s2_000076_01.jpg"), (0, 0, "images/note.jpg")],
        ("12936 of 751", "3368 of 750", "515913 of 751"),
    ),
    "dukemtmc": like_market(
        "DukeMTMC-reID", "16522 of 702", "2228 of 702", "17661 of 1110",
        others=("dukemtmc-reid/DukeMTMC-reID", "dukemtmcreid", "."),
    ),
    "occluded_duke": like_market(
        "Occluded_Duke", "15618 of 702", "2210 of 519", "17661 of 1110",
        others=("Occluded-DukeMTMC-Dataset/Occluded_Duke", "."),
    ),
    "cuhk03_detected": like_market(
        "cuhk03-np/detected", "7365 of 767", "1400 of 700", "5332 of 700",
        others=("detected", "cuhk03/cuhk03-np/detected"),
    ),
    "cuhk03_labeled": like_market("cuhk03-np/labeled", "7368 of 767", "1400 of 700", "5328 of 700"),
    "msmt17": Case(
        "MSMT17_V1", MSMT | {"train/": "", "test/": ""}, MSMT_TRAIN, **MSMT_SIDES,
        counts=("30248 of 1041", "11659 of 3060", "82161 of 3060"), others=("msmt17/MSMT17_V1", "."),
    ),
    "msmt17_trainval": Case(
        "MSMT17", MSMT | {"train/": "", "test/": ""},
        [*MSMT_TRAIN, (1, 3, "train/0000/0000_001_03_0114afternoon_0009_0.jpg")], **MSMT_SIDES,
        counts=("32621 of 1041", "11659 of 3060", "82161 of 3060"),
    ),
    "partial_ilids": Case(
        "Partial_iLIDS", files("Probe", "2.jpg", "001.jpg") | files("Gallery", "2.jpg", "001.jpg"),
        [], [(1, 1, "Probe/001.jpg"), (2, 1, "Probe/2.jpg")], [(1, 2, "Gallery/001.jpg"), (2, 2, "Gallery/2.jpg")],
        ("119 of 119", "119 of 119"), others=("partial_ilids/Partial_iLIDS", "."),
    ),
    "randperson": Case(
        "randperson_subset/randperson_subset",
        files(".", "000000_s00_c01_f001632.jpg", "000000_s01_c00_f000010.jpg", "007999_s10_c03_f3490000.jpg"),
        [(1, 2, "000000_s00_c01_f001632.jpg"), (1, 11, "000000_s01_c00_f000010.jpg"),
         (8000, 104, "007999_s10_c03_f3490000.jpg")],
        counts=("132145 of 8000",), others=("randperson_subset", "randperson/randperson_subset"),
    ),
    "veri776": Case(
        "VeRi", VERI,
        [(1, 1, "image_train/0001_c001_00016450_0.jpg"), (3, 11, "image_train/0003_c011_00000001_1.jpg")],
        [(2, 2, "image_query/0002_c002_00030600_0.jpg")],
        [(2, 2, "image_test/0002_c002_00030600_0.jpg"), (5, 20, "image_test/0005_c020_00040000_0.jpg")],
        ("37778 of 576", "1678 of 200", "11579 of 200"), others=("VeRi-776", "."),
    ),
    "veriwild_medium": Case(
        "VERI-Wild", WILD, **WILD_SIDES, counts=("277797 of 30671", "5000 of 5000", "64389 of 5000")
    ),
    "vehicleid_small": Case(  # a vehicle's first image by name is gallery, and no two images share a camera
        "VehicleID_V1.0", VEHICLES,
        [(7, 1, "image/0000004.jpg"), (12, 2, "image/0000002.jpg")],
        [(30, 6, "image/0000007.jpg"), (55, 7, "image/0000008.jpg"), (30, 8, "image/0000009.jpg")],
        [(41, 3, "image/0000001.jpg"), (55, 4, "image/0000003.jpg"), (30, 5, "image/0000005.jpg")],
        ("113346 of 13164", "6493 of 800"), others=("VehicleID", "."), protocol="vehicle_id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_dataset_lists_its_samples_and_compares_the_published_counts(tmp_path, name):
    case = CASES[name]
    spec, *arguments = DATASETS[name]
    module, function = spec.split(":")
    load = getattr(__import__(module, fromlist=[function]), function)
    for number, folder in enumerate((case.folder, *case.others)):
        root = tmp_path / str(number)
        base = write(root / folder, case.tree)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = load(root, *arguments)
        assert (dataset.name, dataset.protocol, dataset.note) == (name, case.protocol, "")
        for split in ("train", "query", "gallery"):
            assert listed(getattr(dataset, split), base) == getattr(case, split), split
        texts = [str(w.message) for w in caught if "are left out" not in str(w.message)]
        assert [t for t in texts if "withdrew" in t] == texts[: "duke" in name]
        texts = texts["duke" in name :]
        assert [count in text for text, count in zip(texts, case.counts, strict=True)] == [True] * len(case.counts)
    with pytest.raises(UserError, match=rf"{case.folder.split('/')[0]}.*--data-root.*REID_DATA"):
        load(tmp_path / "nowhere", *arguments)


WRONG = [  # dataset, file or folder, its content (None: removed), what the message names
    ("market1501", "query/0001_c1s1_001051_00.jpg", None, "query holds no image"),
    ("msmt17", "list_query.txt", "\n0000/0000_000_01_0303morning_0015_0.jpg", "list_query.txt, line 2"),
    ("msmt17", "list_gallery.txt", None, "list_gallery.txt cannot be read"),
    ("veri776", "image_query/", None, "image_query is missing"),
    ("veriwild_medium", "train_test_split/train_list.txt", "00001/000002\n\n000002\n", "train_list.txt, line 3"),
    ("veriwild_medium", "train_test_split/train_list.txt", "00000/000002\n", "train_list.txt, line 1"),
    ("veriwild_medium", "train_test_split/test_5000.txt", "00007/000007\n", "00007/000007 has no camera"),
    ("veriwild_medium", "train_test_split/vehicle_info.txt", "x\n00003/000009;red;\n", "vehicle_info.txt, line 2"),
    ("vehicleid_small", "train_test_split/test_list_800.txt", "0000006 -1\n", "test_list_800.txt, line 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "words"), WRONG)
def test_what_is_missing_or_wrong_is_named(tmp_path, name, file, content, words):
    tree = {k: v for k, v in CASES[name].tree.items() if content is not None or not k.startswith(file)}
    write(tmp_path / CASES[name].folder, tree | ({file: content} if content is not None else {}))
    if file.endswith(".jpg") and content is None:
        (tmp_path / CASES[name].folder / file).parent.mkdir(exist_ok=True)
    with pytest.raises(UserError) as error:
        read(name, tmp_path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_other_releases_of_a_dataset_give_the_same(tmp_path):
    base = write(tmp_path / "VERI-Wild", NEW_WILD)
    for end in ("\n", "\r\n", "\n\n  \n"):
        for name in ("train_list_start0", "test_5000_id", "test_5000_id_query"):
            text = NEW_WILD[f"train_test_split/{name}.txt"].replace("\n", end)
            (base / "train_test_split" / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        dataset = read("veriwild_medium", tmp_path)
        assert {split: listed(getattr(dataset, split), base) for split in WILD_SIDES} == WILD_SIDES
    base = write(tmp_path / "MSMT17_V2", MSMT | {"mask_train_v2/": "", "mask_test_v2/": ""})
    first, second = read("msmt17", tmp_path).query[0], CASES["msmt17"].query[0]
    assert (first.pid, first.camid) == second[:2] and "mask_test_v2/0000" in first.path
    for query, gallery in (("query", "gallery"), ("partial_body_images", "whole_body_images")):
        names = ("000_1.jpg", "001_1.jpg")  # numbered from 0: no one may be a distractor
        write(tmp_path / query / "PartialiLIDS", files(query, *names) | files(gallery, *names))
        dataset = read("partial_ilids", tmp_path / query)
        assert [s.pid for s in dataset.query] == [s.pid for s in dataset.gallery] == [1, 2]
    for folder in ("distractors_500k", "market1501/distractors_500k/images"):
        root = tmp_path / folder.replace("/", "-")
        write(root, {f"market1501/{name}": "" for name in MARKET} | {f"{folder}/17.jpg": ""})
        gallery = read("market1501_500k", root).gallery
        assert [(s.pid, s.camid) for s in gallery] == [(0, 2), (1, 6), (0, 0)]


# ---- CUHK03's raw release

PEOPLE = (3, 1, 1, 1, 2)  # per camera pair; really 843, 440, 77, 58 and 49
EVERYONE = [(pair, person + 1) for pair, n in enumerate(PEOPLE, 1) for person in range(n)]


def picture(kind: str, pair: int, person: int, place: int) -> np.ndarray | None:
    """RGB, different along each axis; some are missing: person 2 of pair 1 was seen by the first camera alone."""
    if place not in (range(1, 6) if (pair, person) == (1, 2) else (2, 6, 7)):
        return None
    image = np.zeros((7, 4, 3), np.uint8)
    image[..., 0] = np.arange(7)[:, None] * 20
    image[..., 1] = np.arange(4)[None] * 40
    image[..., 2] = 100 * (kind == "labeled") + 20 * pair + person
    return image


def file_names(kind: str) -> dict[str, np.ndarray]:
    names = {(p, n, k): f"{p}_{n:03}_{1 if k < 6 else 2}_{k:02}.png" for p, n in EVERYONE for k in range(1, 11)}
    return {name: picture(kind, *key) for key, name in names.items() if picture(kind, *key) is not None}


def write_release(root: Path) -> Path:
    """cuhk-03.mat as MATLAB 7.3 stores it: column after column, an empty cell as its size."""
    h5py = pytest.importorskip("h5py")
    release = root / "cuhk03" / "cuhk03_release"
    release.mkdir(parents=True)

    def cell(file, rows: list[list]) -> np.ndarray:
        out = np.empty((len(rows), len(rows[0])), h5py.ref_dtype)
        for i, j in np.ndindex(out.shape):
            value = rows[i][j]
            data = np.zeros(2, np.uint64) if value is None else np.ravel(value, order="F").reshape(value.shape[::-1])
            out[i, j] = file.create_dataset(f"#refs#/{len(file.require_group('#refs#'))}", data=data).ref
        return out

    with h5py.File(release / "cuhk-03.mat", "w", userblock_size=512) as file:
        for kind in ("detected", "labeled"):
            pairs = [
                cell(file, [[picture(kind, pair, person + 1, place + 1) for place in range(10)] for person in range(n)])
                for pair, n in enumerate(PEOPLE, 1)
            ]
            file.create_dataset(kind, data=cell(file, [[people] for people in pairs]).T)
        testsets = ([(1, 2), (3, 1)], [(1, 1), (5, 2)])
        file.create_dataset("testsets", data=cell(file, [[np.array(people, np.float64)] for people in testsets]).T)
    return release


def write_config(path: Path, **lists: list[int]) -> list[str]:
    """The new protocol's list of all images in order; their names."""
    savemat = pytest.importorskip("scipy.io").savemat
    names = list(file_names("detected"))
    labels = [[EVERYONE.index((int(name[0]), int(name[2:5]))) + 1] for name in names]
    places = {f"{split}_idx": np.array(rows, np.uint16)[:, None] for split, rows in lists.items()}
    savemat(path, {"filelist": np.array(names, dtype=object)[:, None], "labels": np.array(labels, np.uint16), **places})
    return names


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_classic_protocol_writes_the_images_once_and_tests_the_people_of_the_split(tmp_path, monkeypatch):
    release = write_release(tmp_path)
    dataset = cuhk03_classic(tmp_path, "labeled", 0)
    assert (dataset.name, dataset.protocol, dataset.drawn) == ("cuhk03_classic_labeled", "single_shot", True)
    expected = file_names("labeled")
    assert sorted(path.name for path in (release / "images_labeled").iterdir()) == sorted(expected)
    for name, image in expected.items():
        assert np.array_equal(cv2.imread(str(release / "images_labeled" / name))[..., ::-1], image)
    test = [(2, 1, f"images_labeled/1_002_1_0{place}.png") for place in range(1, 6)]
    test += [(5, 1 + (place > 5), f"images_labeled/3_001_{1 + (place > 5)}_0{place}.png") for place in (2, 6, 7)]
    assert listed(dataset.query, release) == listed(dataset.gallery, release) == test
    assert {s.pid for s in dataset.train} == {1, 3, 4, 6, 7, 8} and len(dataset.train) == 18
    monkeypatch.setattr(cv2, "imencode", None)  # not written again
    assert {s.pid for s in cuhk03_classic(tmp_path, "labeled", 1).query} == {1, 8}
    with pytest.warns(UserWarning, match=f"published set has {IMAGES['labeled'] - 8} of 1367"):
        cuhk03_classic(tmp_path, "labeled", 0)
    for split in (-1, 2):
        with pytest.raises(UserError, match=rf"--split-seed {split}: .* 0 to 1"):
            cuhk03_classic(tmp_path, "labeled", split)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_raw_release_gives_the_new_protocol_and_folders_win_over_it(tmp_path):
    release = write_release(tmp_path)
    names = write_config(
        release / "cuhk03_new_protocol_config_detected.mat", train=[1, 2, 26], query=[4], gallery=[9, 12]
    )
    dataset = cuhk03(tmp_path, "detected")
    assert names[3] == "1_002_1_01.png" and names[11] == "2_001_1_02.png"  # one-based 4 and 12
    assert [(s.pid, s.camid) for s in dataset.train] == [(1, 1), (1, 2), (8, 2)]
    assert listed(dataset.query, release) == [(2, 1, "images_detected/1_002_1_01.png")]
    assert [s.pid for s in dataset.gallery] == [3, 4]
    (release / "images_detected" / names[1]).unlink()
    with pytest.raises(UserError, match=rf"images_detected has no {names[1]}"):
        cuhk03(tmp_path, "detected")
    with pytest.raises(UserError, match=r"config_labeled\.mat is missing.*person-re-ranking"):
        cuhk03(tmp_path, "labeled")
    write(tmp_path / "cuhk03-np" / "detected", MARKET)
    assert [s.pid for s in cuhk03(tmp_path, "detected").train] == [2, 7]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_release_that_cannot_be_read_or_written_leaves_no_images(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    release = write_release(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "imencode", 5, fails(KeyboardInterrupt()), cv2)
        cuhk03_classic(tmp_path, "detected", 0)
    with h5py.File(release / "cuhk-03.mat", "a") as file:
        del file["labeled"]
    with pytest.raises(UserError, match=r"cuhk-03\.mat cannot be read"):
        cuhk03_classic(tmp_path, "labeled", 0)
    assert [path.name for path in release.iterdir()] == ["cuhk-03.mat"]
    (release / "cuhk-03.mat").write_bytes(b"")
    (release / "cuhk03_new_protocol_config_detected.mat").write_bytes(b"")
    with pytest.raises(UserError, match=r"cuhk-03\.mat cannot be read.*unpack"):
        cuhk03_classic(tmp_path, "detected", 0)
    with pytest.raises(UserError, match=r"config_detected\.mat is not a list"):
        cuhk03(tmp_path, "detected")
    for module, package in (("h5py", "h5py"), ("scipy.io", "scipy")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"\.mat is read by .* pip install {package}$"):
            cuhk03_classic(tmp_path, "detected", 0) if package == "h5py" else cuhk03(tmp_path, "detected")

"""The pictures of a split: the same from a file, from memory and read anew; and no file is used that is stale."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from config import Config
from datasets import cache, cache_files
from datasets.cache import Images
from datasets.images import read_image
from utils.errors import UserError
from utils.files import write_rows

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH, COUNT = 24, 16, 7
SIZE = HEIGHT * WIDTH * 3  # bytes of a picture
MODES = {
    "file": {},
    "memory": {"disk_gb": 0},
    "read again": {"disk_gb": 0, "cache_gb": 0},
    "checked, then read again": {"disk_gb": 1e-9, "cache_gb": 0},
}
modes = pytest.mark.parametrize("mode", list(MODES))


def write_picture(path: Path | str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT + seed % 3, WIDTH, 3), dtype=np.uint8)
    Path(path).write_bytes(cv2.imencode(".bmp", pixels)[1].tobytes())  # uncompressed: the seed does not change the size


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Paths of seven pictures, not all of the input size."""
    (tmp_path / "pictures").mkdir()
    paths = [str(tmp_path / "pictures" / f"{i}.bmp") for i in range(COUNT)]
    for seed, path in enumerate(paths):
        write_picture(path, seed)
    return paths


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(height=HEIGHT, width=WIDTH, workers=2, cache_gb=1, disk_gb=1, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that were decoded."""
    names = []

    def counted(path, height, width):
        names.append(Path(path).name)
        return read_image(path, height, width)

    monkeypatch.setattr(cache, "read_image", counted)
    return names


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """What was warned of."""
    said = []
    monkeypatch.setattr(cache.log, "warning", lambda text, *values: said.append(text % values))
    return said


def decoded(paths) -> np.ndarray:
    return np.stack([read_image(path, HEIGHT, WIDTH) for path in paths])


def pixels(images: Images) -> np.ndarray:
    return images.read(range(len(images))).numpy()


def left(cfg: Config) -> list[str]:
    """What lies in the cache beside the lock, digests left out."""
    names = (path.name for path in Path(cfg.data.cache_dir).iterdir())
    return sorted(name.split("-")[0] + Path(name).suffix for name in names if name != ".lock")


def stored(cfg: Config, end: str) -> Path:
    (path,) = Path(cfg.data.cache_dir).glob(f"*.{end}")
    return path


# ---- the same pictures whatever they come from


@modes
def test_images_by_index_are_those_of_their_files(cfg, files, mode):
    images = Images(cfg.replace(**MODES[mode]), files, "train")
    assert len(images) == COUNT and images.bad == {}
    wanted = [[0], [3, 1, 6], range(7), (4, 5), [2, 2, 2], [np.int8(3)], torch.tensor([6, 0]), np.arange(7)[::-2], [-1]]
    wanted += [np.array([4, 0, 6], dtype) for dtype in ("i1", "u1", "i2", ">i4", "u4", "i8", "u8")]
    for indices in wanted:
        batch = images.read(indices)
        assert batch.dtype == torch.uint8
        assert np.array_equal(batch.numpy(), decoded([files[int(i)] for i in indices]))
    assert images.read([]).shape == images.read(np.array([], dtype=int)).shape == (0, HEIGHT, WIDTH, 3)


@modes
def test_an_index_that_there_is_not_is_refused(cfg, files, mode):
    images = Images(cfg.replace(**MODES[mode]), files, "train")
    for indices in ([7], [0, -8], [10**6], np.array([2**63 + 1], dtype="u8")):
        with pytest.raises(IndexError):
            images.read(indices)


@modes
def test_what_is_no_index_gives_no_other_picture(cfg, files, mode):
    images = Images(cfg.replace(**MODES[mode]), files, "train")
    for indices in ([1.7], np.array([1.7]), np.array(["1"])):
        with pytest.raises((IndexError, TypeError, ValueError)):
            images.read(indices)
    mask = np.arange(7) > 4
    assert np.array_equal(images.read(mask).numpy(), decoded(files[5:]))  # not pictures 0 and 1


@pytest.mark.parametrize("block", [1, 3, 7, 64])
@pytest.mark.parametrize("workers", [1, 2, 8])
@modes
def test_any_number_of_workers_and_any_block_give_the_same(cfg, files, monkeypatch, mode, workers, block):
    monkeypatch.setattr(cache, "BLOCK", block)
    images = Images(cfg.replace(workers=workers, **MODES[mode]), files, "train")
    assert np.array_equal(pixels(images), decoded(files))


@modes
def test_no_paths_are_no_pictures(cfg, mode):
    for _ in range(2):
        images = Images(cfg.replace(**MODES[mode]), [], "train")
        assert len(images) == 0 and images.read([]).shape == (0, HEIGHT, WIDTH, 3)


@modes
def test_a_batch_may_be_written_to(cfg, files, mode):
    cfg = cfg.replace(**MODES[mode])
    images = Images(cfg, files, "train")
    images.read(range(7)).zero_()
    for again in (images, Images(cfg, files, "train")):
        assert np.array_equal(pixels(again), decoded(files))


@modes
def test_batches_come_in_order_each_with_its_indices(cfg, files, mode):
    images = Images(cfg.replace(**MODES[mode]), files, "train")
    wanted = [np.array(x) for x in ([3, 1], [0], [6, 5, 4], [2, 2])]
    found = list(images.batches(iter(wanted)))
    assert len(found) == len(wanted)
    for (indices, batch), expected in zip(found, wanted, strict=True):
        assert np.array_equal(indices, expected)
        assert np.array_equal(batch.numpy(), decoded([files[i] for i in expected]))
    assert list(images.batches(iter([]))) == []


@modes
def test_batches_can_be_left_early_and_begun_anew(cfg, files, mode):
    images = Images(cfg.replace(**MODES[mode]), files, "train")
    for _ in range(2):
        batches = images.batches(np.array([i]) for i in range(7))
        assert [next(batches)[0].tolist() for _ in range(2)] == [[0], [1]]
        batches.close()


def test_a_file_that_goes_bad_later_is_an_error_that_names_it(cfg, files):
    images = Images(cfg.replace(**MODES["read again"]), files, "train")
    Path(files[3]).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.bmp"):
        list(images.batches([np.array([0, 1]), np.array([2, 3]), np.array([4])]))


# ---- where they are kept


def test_a_second_start_decodes_nothing(cfg, files, reads):
    Images(cfg, files, "train")
    assert sorted(reads) == [Path(f).name for f in files] and left(cfg) == ["train.json", "train.npy"]
    reads.clear()
    assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files)) and reads == []


def test_with_disk_gb_0_no_file_is_written_and_pictures_are_in_memory_if_they_fit(cfg, files, reads):
    for cache_gb, again in ((COUNT * SIZE * 1.001 / 1e9, 0), (COUNT * SIZE * 0.999 / 1e9, 1), (0, 1)):
        images = Images(cfg.replace(disk_gb=0, cache_gb=cache_gb), files, "train")
        reads.clear()
        images.read([2])
        assert len(reads) == again
    assert not Path(cfg.data.cache_dir).exists()


def test_a_set_beyond_disk_gb_is_checked_at_the_first_start_alone(cfg, files, reads):
    cfg = cfg.replace(disk_gb=COUNT * SIZE * 0.999 / 1e9, cache_gb=0)
    Images(cfg, files, "train")
    assert len(reads) == COUNT and left(cfg) == ["train.json"]
    reads.clear()
    images = Images(cfg, files, "train")
    assert reads == []
    assert np.array_equal(pixels(images), decoded(files)) and len(reads) == COUNT
    Images(cfg.replace(disk_gb=1), files, "train")  # now there is room
    assert left(cfg) == ["train.json", "train.npy"]


def test_a_set_beyond_disk_gb_that_fits_into_memory_is_kept_there(cfg, files, reads):
    cfg = cfg.replace(disk_gb=COUNT * SIZE * 0.999 / 1e9)
    for _ in range(2):
        images = Images(cfg, files, "train")
        reads.clear()
        assert np.array_equal(pixels(images), decoded(files)) and reads == []


def test_a_bad_file_shows_at_the_start_even_if_nothing_is_kept(cfg, files):
    Path(files[3]).write_bytes(b"no image")
    for settings in MODES.values():
        with pytest.raises(UserError, match=r"1 of 7 train images cannot be used: \S*3\.bmp"):
            Images(cfg.replace(**settings), files, "train")


def test_the_least_recently_used_go_when_there_are_too_many_and_the_newest_stays(cfg, files, monkeypatch):
    cfg = cfg.replace(disk_gb=2.5 * (COUNT * SIZE + 128) / 1e9)
    records = {}
    for age, name in enumerate(("a", "b")):
        Images(cfg, files, name)
        (records[name],) = Path(cfg.data.cache_dir).glob(f"{name}-*.json")
        os.utime(records[name], (1000 + age, 1000 + age))
    Images(cfg, files, "a")  # used: b is now the oldest
    Images(cfg, files, "c")
    assert left(cfg) == ["a.json", "a.npy", "c.json", "c.npy"]
    monkeypatch.setattr(cache_files, "STARTED", time.time() + 1000)  # as another program, later
    Images(cfg.replace(disk_gb=1.001 * COUNT * SIZE / 1e9), files, "d")
    assert left(cfg) == ["d.json", "d.npy"]


def test_splits_of_one_run_do_not_take_turns_in_too_small_a_cache(cfg, files, reads, monkeypatch):
    cfg = cfg.replace(disk_gb=2.5 * (COUNT * SIZE + 128) / 1e9, cache_gb=0)
    splits = ("train", "query", "gallery")
    for start in range(3):
        reads.clear()
        monkeypatch.setattr(cache_files, "STARTED", time.time() - 1)
        assert all(np.array_equal(pixels(Images(cfg, files, name)), decoded(files)) for name in splits)
        assert len(reads) == (4 if start == 0 else 1) * COUNT  # the third is read anew at its use, and checked once
        assert left(cfg) == ["gallery.json", "query.json", "query.npy", "train.json", "train.npy"]
        for record in Path(cfg.data.cache_dir).glob("*.json"):
            os.utime(record, (record.stat().st_mtime - 5,) * 2)


def test_a_split_that_is_opened_twice_is_read_from_its_file_both_times(cfg, files, reads):
    cfg = cfg.replace(disk_gb=1.001 * (COUNT * SIZE + 128) / 1e9)
    for _ in range(3):
        assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files))
    assert len(reads) == COUNT and left(cfg) == ["train.json", "train.npy"]


def test_only_files_of_the_cache_are_ever_removed(cfg, files):
    directory = Path(cfg.data.cache_dir)
    directory.mkdir()
    others = ["my-features.npy", "pids-2024.npy", "run-1.json", ".last.pth.77.tmp", "notes.tmp", "train-x.npy"]
    for name in others:
        (directory / name).write_bytes(b"somebody's work" * 1000)
    os.utime(directory / "run-1.json", (1000, 1000))
    for name in ("a", "b"):
        Images(cfg.replace(disk_gb=1.001 * COUNT * SIZE / 1e9), files, name)
    assert all((directory / name).is_file() for name in others)


# ---- when the file is stale


def changed_content(path: Path) -> None:
    write_picture(path, 100)
    os.utime(path, ns=(0, 10**18))


def changed_size_alone(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replaced_by_another_of_the_same_size_and_time(path: Path) -> None:
    before, other = path.stat(), path.with_name("other")
    write_picture(other, 102)  # of 24 + 0 rows, as path
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_size == before.st_size


@pytest.mark.parametrize(
    "change", [changed_content, changed_size_alone, touched, replaced_by_another_of_the_same_size_and_time]
)
@pytest.mark.parametrize("mode", ["file", "checked, then read again"])
def test_a_changed_file_is_seen(cfg, files, reads, mode, change):
    cfg = cfg.replace(**MODES[mode])
    Images(cfg, files, "train")
    change(Path(files[3]))
    reads.clear()
    images = Images(cfg, files, "train")
    assert len(reads) == COUNT
    assert np.array_equal(pixels(images), decoded(files))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"no image")], ids=["removed", "bad"])
@pytest.mark.parametrize("mode", ["file", "checked, then read again"])
def test_a_file_that_was_removed_or_spoiled_and_is_repaired(cfg, files, reads, mode, spoil):
    cfg = cfg.replace(**MODES[mode])
    skipping = cfg.replace(on_bad_image="skip")
    Images(cfg, files, "train")
    spoil(Path(files[3]))
    with pytest.raises(UserError, match=r"3\.bmp"):
        Images(cfg, files, "train")
    for _ in range(2):
        images = Images(skipping, files, "train")
        assert list(images.bad) == [3] and "3.bmp" in images.bad[3] and images.kept.tolist() == [0, 1, 2, 4, 5, 6]
        assert np.array_equal(pixels(images), decoded(files[:3] + files[4:]))
    reads.clear()
    with pytest.raises(UserError, match=r"3\.bmp"):  # known from the run that left it out
        Images(cfg, files, "train")
    assert reads == []
    write_picture(files[3], 50)
    assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files))


def test_a_file_that_could_not_be_read_for_a_while_comes_back(cfg, files, monkeypatch):
    def denied(path, height, width):
        if path == files[3]:
            raise UserError(f"{path} cannot be read: Permission denied")
        return read_image(path, height, width)

    cfg = cfg.replace(on_bad_image="skip")
    os.chmod(files[3], 0o000)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_image", denied)
        assert len(Images(cfg, files, "train")) == 6
    os.chmod(files[3], 0o644)
    assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files))


def test_bad_files_in_every_mode_and_many(cfg, tmp_path, files):
    paths = [str(tmp_path / f"missing{i:03}.jpg") for i in range(200)]
    with pytest.raises(UserError, match=r"200 of 200 train images .*190 more.*--on-bad-image skip") as error:
        Images(cfg, paths, "train")
    assert len(str(error.value).split("missing")) == 11 and "missing000.jpg" in str(error.value)
    assert left(cfg) == []
    mixed = [paths[0], *files[:3], paths[1], *files[3:], paths[2]]
    for settings in MODES.values():
        images = Images(cfg.replace(on_bad_image="skip", **settings), mixed, "train")
        assert sorted(images.bad) == [0, 4, 9] and np.array_equal(pixels(images), decoded(files))
        with pytest.raises(IndexError):
            images.read([7])
    images = Images(cfg.replace(on_bad_image="skip"), paths, "train")
    assert len(images) == 0 and len(images.bad) == 200


def test_another_size_list_or_order_is_another_cache(cfg, files):
    lists = [files, files[::-1], files[:3], files[3:], files[:1] * 2]
    for _ in range(2):
        for paths in lists:
            assert np.array_equal(pixels(Images(cfg, paths, "train")), decoded(paths))
        for height, width in ((24, 17), (25, 16), (16, 24)):
            batch = Images(cfg.replace(height=height, width=width), files, "train").read([0, 2])
            assert np.array_equal(batch.numpy(), np.stack([read_image(files[i], height, width) for i in (0, 2)]))
    assert left(cfg) == ["train.json"] * 8 + ["train.npy"] * 8


def test_paths_count_by_where_they_lead_not_by_how_they_are_written(cfg, files, tmp_path, monkeypatch, reads):
    Path(files[2]).write_bytes(b"no image")
    cfg = cfg.replace(on_bad_image="skip")
    Images(cfg, files, "train")
    reads.clear()
    for folder in (tmp_path, tmp_path / "pictures"):
        monkeypatch.chdir(folder)
        images = Images(cfg, [os.path.relpath(f) for f in files], "train")
        assert list(images.bad) == [2] and "2.bmp" in images.bad[2] and reads == []
        assert np.array_equal(pixels(images), decoded(files[:2] + files[3:]))
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    for i in range(COUNT):
        write_picture(f"{i}.bmp", 50 + i)
    images = Images(cfg, [Path(f).name for f in files], "train")
    assert images.bad == {} and np.array_equal(pixels(images), decoded([Path(f).name for f in files]))


@pytest.mark.parametrize(
    "name",
    ["名前 🙂.bmp", "a b.bmp", "a\nb.bmp", os.fsdecode(b"\xff\xfe.bmp"), "%s%d.bmp", '"[x]*.bmp', "-x"],
    ids=ascii,
)
def test_any_name_works_twice_good_or_bad(cfg, files, reads, name):
    paths = [*files[:3], str(Path(files[0]).with_name(name)), str(Path(files[0]).with_name(f"bad{name}"))]
    write_picture(paths[3], 60)
    Path(paths[4]).write_bytes(b"no image")
    for _ in range(2):
        images = Images(cfg.replace(on_bad_image="skip"), paths, "train")
        assert list(images.bad) == [4] and f"bad{name}" in images.bad[4]
        assert np.array_equal(pixels(images), decoded(paths[:4]))
    assert len(reads) == 5
    with pytest.raises(UserError, match="1 of 5"):
        Images(cfg, paths, "train")


# ---- what others leave behind


def shorter(cfg: Config) -> None:
    np.save(stored(cfg, "npy"), np.zeros((3, HEIGHT, WIDTH, 3), np.uint8))


def over(end: str, content: bytes):
    return lambda cfg: stored(cfg, end).write_bytes(content)


def cut(share: float):
    def spoil(cfg: Config) -> None:
        with open(stored(cfg, "npy"), "r+b") as file:
            file.truncate(int(share * (COUNT * SIZE + 128)))

    return spoil


LEFT_BEHIND = {
    "pictures without record": lambda cfg: stored(cfg, "json").unlink(),
    "record without pictures": lambda cfg: stored(cfg, "npy").unlink(),
    "pictures cut short": cut(0.9),
    "half a header": cut(0.002),
    "empty pictures": cut(0.0),
    "fewer pictures": shorter,
    "other pictures": over("npy", b"garbage" * 9000),
    "a zip": over("npy", b"PK\x03\x04" + bytes(100)),
    **{f"record {text[:30]!r}": over("json", text) for text in (
        b"", b"{", b"{}", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b'{"cached": true}', b'{"bad": []}',
        b'{"cached": true, "bad": null}', b'{"cached": true, "bad": [[1]]}', b'{"cached": true, "bad": [3]}')},
}  # fmt: skip


@pytest.mark.parametrize("spoil", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_what_is_not_whole_is_not_used_but_made_anew(cfg, files, reads, warned, spoil):
    Images(cfg, files, "train")
    (Path(cfg.data.cache_dir) / f".{stored(cfg, 'npy').name}.12345.tmp").write_bytes(b"left by a killed program")
    spoil(cfg)
    reads.clear()
    images = Images(cfg, files, "train")
    assert np.array_equal(pixels(images), decoded(files)) and len(reads) == COUNT and warned == []
    assert left(cfg) == ["train.json", "train.npy"]
    assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files)) and len(reads) == COUNT


def test_what_a_killed_build_of_other_pictures_left_goes_too(cfg, files):
    Images(cfg, files, "query")
    stored(cfg, "json").unlink()
    (Path(cfg.data.cache_dir) / f".{stored(cfg, 'npy').name}.12345.tmp").write_bytes(b"left by a killed program")
    Images(cfg, files, "train")
    assert left(cfg) == ["train.json", "train.npy"]


# ---- where no file can be written


def refuse_with(error: OSError):
    def refuse(*_args, **_kwargs):
        raise error

    return refuse


DENIED = PermissionError(errno.EACCES, "Permission denied")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "what", "error"),
    [(Path, "mkdir", DENIED), (cache_files, "FileLock", DENIED), (cache, "make_room", DENIED), (os, "fsync", FULL),
     (os, "replace", FULL), (cache, "write_json", FULL), (Path, "read_text", DENIED)],
)  # fmt: skip
def test_where_no_file_can_be_written_pictures_are_in_memory(
    cfg, files, reads, warned, monkeypatch, where, what, error
):
    monkeypatch.setattr(where, what, refuse_with(error))
    images = Images(cfg, files, "train")
    assert len(warned) == 1 and error.strerror in warned[0] and cfg.data.cache_dir in warned[0]
    reads.clear()
    assert np.array_equal(pixels(images), decoded(files)) and reads == []
    assert not Path(cfg.data.cache_dir).exists() or left(cfg) == []


def test_a_disk_that_is_full_in_the_middle_leaves_nothing_there(cfg, files, warned, monkeypatch):
    import resource

    monkeypatch.setattr(cache, "BLOCK", 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * SIZE, before[1]))
    try:
        images = Images(cfg, files, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(warned) == 1 and np.array_equal(pixels(images), decoded(files)) and left(cfg) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_place_of_the_directory_is_left_alone(cfg, files, tmp_path, warned, place):
    (tmp_path / "file").write_bytes(b"not a directory")
    images = Images(cfg.replace(cache_dir=str(tmp_path / place)), files, "train")
    assert len(warned) == 1 and np.array_equal(pixels(images), decoded(files))
    assert (tmp_path / "file").read_bytes() == b"not a directory"


def test_a_cache_that_cannot_be_written_to_is_read(cfg, files, reads, warned, monkeypatch):
    Images(cfg, files, "train")
    for where, what in ((Path, "mkdir"), (cache_files, "FileLock"), (os, "utime"), (os, "replace")):
        monkeypatch.setattr(where, what, refuse_with(DENIED))
    reads.clear()
    assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files)) and reads == warned == []


# ---- other processes

CHILD = """
import atexit, hashlib, json, sys, threading
from config import Config
from datasets import cache, cache_files
from utils.errors import run
from utils.logging import setup_logging

settings, paths, hold_at = json.loads(sys.argv[1])
real, lock, count = cache.read_image, threading.Lock(), 0

def read_image(*args):
    global count
    with lock:
        count += 1
        held = count == hold_at
    if held:
        print("held", flush=True)
        sys.stdin.readline()
    return real(*args)

def main():
    images = cache.Images(Config(**settings), paths, "train")
    print(hashlib.sha256(images.read(range(len(images))).numpy().tobytes()).hexdigest(), flush=True)

cache.read_image = read_image
setup_logging()
atexit.register(lambda: print("decoded", count, flush=True))  # after the threads of the pool have ended
run(main)
"""


def start(cfg: Config, paths: list[str], hold_at: int) -> subprocess.Popen:
    """Another program that reads these pictures, and stops at the `hold_at`-th (0: none) until it gets a line."""
    arguments = [sys.executable, "-c", CHILD, json.dumps([cfg.to_dict(), paths, hold_at])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, **pipes)


def wait_for(process: subprocess.Popen, word: str) -> str:
    seen, late = [], threading.Timer(120, process.kill)
    late.start()
    try:
        for line in process.stdout:
            seen.append(line)
            if word in line:
                return line
    finally:
        late.cancel()
    raise AssertionError("".join(seen))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_stopped_while_it_decodes_leaves_nothing_that_is_used(cfg, files, number):
    paths, cfg = files * 30, cfg.replace(workers=1)
    with start(cfg, paths, hold_at=100) as process:
        wait_for(process, "held")
        process.send_signal(number)
        if number == signal.SIGINT:
            wait_for(process, "stopped")
            process.stdin.write("\n")
            process.stdin.flush()
            assert wait_for(process, "decoded").split() == ["decoded", "100"]  # what was asked for is not decoded
            assert left(cfg) == []
        assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    assert not list(Path(cfg.data.cache_dir).glob("*.npy"))
    assert np.array_equal(pixels(Images(cfg, paths, "train")), decoded(paths))
    assert left(cfg) == ["train.json", "train.npy"]


def test_of_two_programs_that_start_together_one_decodes_and_both_have_the_pictures(cfg, files):
    with start(cfg, files, hold_at=1) as first:
        wait_for(first, "held")
        with start(cfg, files, hold_at=0) as second:
            wait_for(second, "another program is filling")
            first.stdin.write("\n")
            first.stdin.flush()
            shown = [process.communicate(timeout=60)[0].split() for process in (first, second)]
    assert [words[-1] for words in shown] == [str(COUNT), "0"]
    assert shown[0][-3] == shown[1][-3] and len(shown[0][-3]) == 64
    assert left(cfg) == ["train.json", "train.npy"]


# ---- rows to a file

ARRAYS = {
    "one row": np.ones((1, 3), "f4"),
    "half floats": np.linspace(0, 1, 60).astype("f2").reshape(20, 3),
    "no columns": np.ones((20, 0), "f4"),
    "one dimension": np.arange(20),
    "four dimensions": np.arange(20 * 24, dtype="u1").reshape(20, 2, 3, 4),
    "bool": np.arange(20) % 3 == 0,
    "big endian": np.arange(20, dtype=">i4"),
    "complex": np.arange(20) * 1j,
    "text": np.array([f"é{i}" for i in range(20)]),
    "records": np.array([(i, 2 * i) for i in range(20)], dtype=[("a", "f4"), ("b", "i8")]),
    "transposed": np.arange(60.0).reshape(3, 20).T,
    "every other": np.arange(120.0).reshape(20, 6)[:, ::2],
    "backwards": np.arange(60.0).reshape(20, 3)[::-1, ::-1],
    "in Fortran's order": np.asfortranarray(np.arange(60.0).reshape(20, 3)),
    "one row for all": np.broadcast_to(np.arange(3.0), (20, 3)),
}


@pytest.mark.parametrize("rows", [1, 7, 20])
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_rows_come_back_as_they_were(tmp_path, array, rows):
    path = tmp_path / "new" / "rows.npy"
    write_rows(path, len(array), (array[i : i + rows] for i in range(0, len(array), rows)))
    for mode in (None, "r") if array.size else (None,):
        found = np.load(path, mmap_mode=mode)
        assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    expected = tmp_path / "expected.npy"
    np.save(expected, np.ascontiguousarray(array))
    assert path.stat().st_size == expected.stat().st_size
    assert [p.name for p in path.parent.iterdir()] == ["rows.npy"]


@pytest.mark.parametrize("lengths", [(0, 4), (0, 0, 3, 0, 1), (2, 0, 2), (4, 0), (0,)], ids=str)
def test_parts_without_rows_add_nothing(tmp_path, lengths):
    array = np.arange(12.0).reshape(4, 3)[: sum(lengths)]
    write_rows(tmp_path / "rows.npy", len(array), np.split(array, np.cumsum(lengths)[:-1]))
    assert np.array_equal(np.load(tmp_path / "rows.npy"), array)


def raising():
    yield np.ones((2, 3))
    raise KeyError("no more")


@pytest.mark.parametrize(
    ("parts", "error"),
    [([np.ones((2, 3))], ValueError), ([np.ones((2, 3))] * 3, ValueError), (raising, KeyError), ([], ValueError),
     ([np.ones((2, 3)), np.ones((2, 3), "f4")], ValueError), ([np.ones((2, 3)), np.ones((2, 4))], ValueError),
     ([np.ones((2, 6)), np.ones((2, 2, 3))], ValueError), ([np.full((4, 1), None)], ValueError)],
    ids=["too few", "too many", "raising", "none", "another type", "another width", "another shape", "objects"],
)  # fmt: skip
@pytest.mark.parametrize("before", [True, False])
def test_rows_that_make_no_whole_leave_the_old_file_or_none(tmp_path, parts, error, before):
    path = tmp_path / "rows.npy"
    if before:
        np.save(path, np.arange(3))
    with pytest.raises(error):
        write_rows(path, 4, parts() if callable(parts) else parts)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"] * before
    assert not before or np.load(path).tolist() == [0, 1, 2]

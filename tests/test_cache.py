"""The images of a split: the same from a file, from memory and decoded again; and no stale file is used."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import arguments, done, killed, program, refused, save_model

from config import Config
from datasets import cache
from datasets.cache import Images
from datasets.images import read_image, read_input
from datasets.loaders import make_loaders
from utils.errors import UserError

HEIGHT, WIDTH, COUNT = 24, 16, 7
CPU = torch.device("cpu")
SIZE = HEIGHT * WIDTH * 3  # bytes of an image
FILE_GB = (COUNT * SIZE + 128) / 1e9  # size of the cache file of all
MODES = {"file": {}, "memory": {"disk_gb": 0}, "decode again": {"disk_gb": 0, "cache_gb": 0}}


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

    def counted(path, *rest):
        names.append(Path(path).name)
        return read_input(path, *rest)

    monkeypatch.setattr(cache, "read_input", counted)
    return names


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    texts = []
    monkeypatch.setattr(cache.log, "warning", lambda text, *values: texts.append(text % values))
    return texts


def decoded(paths, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.stack([read_image(path, height, width) for path in paths])


def pixels(images: Images) -> np.ndarray:
    return images.read(range(len(images))).numpy()


def left(cfg: Config) -> list[str]:
    """The files in the cache except the lock, without digests."""
    names = (path.name for path in Path(cfg.data.cache_dir).iterdir())
    return sorted(name.split("-")[0] + Path(name).suffix for name in names if name != ".lock")


def stored(cfg: Config, end: str) -> Path:
    (path,) = Path(cfg.data.cache_dir).glob(f"*.{end}")
    return path


# ---- the same images from everywhere


@pytest.mark.parametrize("mode", MODES)
def test_images_by_index_and_in_batches_are_those_of_their_files(cfg, files, monkeypatch, mode):
    cfg = cfg.replace(**MODES[mode])
    for block, workers in ((1, 8), (3, 1), (64, 2)):
        monkeypatch.setattr(cache, "BLOCK", block)
        images = Images(cfg.replace(workers=workers, cache_dir=f"{cfg.data.cache_dir}{block}"), files, "train")
        assert len(images) == COUNT and images.bad == {} and np.array_equal(pixels(images), decoded(files))
    wanted = [[0], [3, 1, 6], range(7), [2, 2, 2], torch.tensor([6, 0]), np.arange(7)[::-2]]
    for indices, (found, batch) in zip(wanted, images.batches(iter(wanted), CPU), strict=True):
        expected = decoded([files[int(i)] for i in indices])
        assert found is indices and np.array_equal(batch.numpy(), expected)
        assert np.array_equal(images.read(indices).numpy(), expected)
        batch.zero_()  # it may be written to
    assert images.read([]).shape == (0, HEIGHT, WIDTH, 3)
    for indices in ([7], [0, -8]):
        with pytest.raises(IndexError):
            images.read(indices)
    assert list(images.batches(iter([]), CPU)) == []
    for _ in range(2):  # left early and begun again
        batches = images.batches((np.array([i]) for i in range(7)), CPU)
        assert [next(batches)[0].tolist() for _ in range(2)] == [[0], [1]]
        batches.close()
    empty = Images(cfg, [], "train")
    assert len(empty) == 0 and empty.read([]).shape == (0, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("mode", MODES)
def test_bad_files_show_at_the_start_or_are_left_out(cfg, files, tmp_path, mode):
    cfg = cfg.replace(**MODES[mode])
    missing = [str(tmp_path / f"missing{i:03}.jpg") for i in range(200)]
    with pytest.raises(UserError, match=r"200 of 200 train images .*190 more") as error:
        Images(cfg, missing, "train")
    assert len(str(error.value).split("missing")) == 11 and "missing000.jpg" in str(error.value)
    mixed = [missing[0], *files[:3], missing[1], *files[3:], missing[2]]
    for _ in range(2):
        images = Images(cfg.replace(on_bad_image="skip"), mixed, "train")
        assert sorted(images.bad) == [0, 4, 9] and np.array_equal(pixels(images), decoded(files))
        with pytest.raises(IndexError):
            images.read([7])
    with pytest.raises(UserError, match="3 of 10"):  # also those known from the run that left them out
        Images(cfg, mixed, "train")
    assert len(Images(cfg.replace(on_bad_image="skip"), missing, "train")) == 0


def test_a_file_that_goes_bad_later_is_an_error_that_names_it(cfg, files):
    images = Images(cfg.replace(**MODES["decode again"]), files, "train")
    Path(files[3]).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.bmp"):
        list(images.batches([np.array([0, 1]), np.array([2, 3]), np.array([4])], CPU))


# ---- where they are kept


def test_a_second_start_decodes_nothing_unless_images_are_resized_otherwise(cfg, files, reads):
    Images(cfg, files, "train")
    assert sorted(reads) == [Path(f).name for f in files] and left(cfg) == ["train.json", "train.npy"]
    reads.clear()
    assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files)) and reads == []
    Images(cfg.replace(shrink="bilinear"), files, "train")
    assert len(reads) == COUNT


def test_without_a_file_images_are_in_memory_if_they_fit(cfg, files, reads):
    for disk_gb in (0, FILE_GB * 0.9):  # no files; too small
        for cache_gb, again in ((COUNT * SIZE * 1.001 / 1e9, 0), (COUNT * SIZE * 0.999 / 1e9, 1), (0, 1)):
            images = Images(cfg.replace(disk_gb=disk_gb, cache_gb=cache_gb), files, "train")
            reads.clear()
            assert np.array_equal(images.read([2]).numpy(), decoded(files[2:3])) and len(reads) == again
    assert not Path(cfg.data.cache_dir).exists()


def test_the_least_recently_used_files_go_and_those_in_use_stay(cfg, files, reads, monkeypatch):
    cfg = cfg.replace(disk_gb=2.5 * FILE_GB, cache_gb=0)
    directory = Path(cfg.data.cache_dir)
    directory.mkdir()
    others = ["my-features.npy", "run-1.json", ".last.pth.77.tmp", "train-x.npy"]
    for name in others:
        (directory / name).write_bytes(b"not ours" * 1000)
    monkeypatch.setattr(cache, "STARTED", time.time() + 1000)  # as if each were another program
    for age, name in enumerate(("a", "b")):
        Images(cfg, files, name)
        (record,) = directory.glob(f"{name}-*.json")
        os.utime(record, (1000 + age, 1000 + age))
    Images(cfg, files, "a")  # used: b is now the oldest
    Images(cfg, files, "c")
    ours = sorted(path.name[0] for path in directory.glob("[a-d]-*.npy"))
    assert ours == ["a", "c"] and all((directory / name).is_file() for name in others)
    monkeypatch.setattr(cache, "STARTED", time.time() - 60)  # both are in use by this program now
    reads.clear()
    assert np.array_equal(pixels(Images(cfg, files, "d")), decoded(files)) and len(reads) == 2 * COUNT
    assert sorted(path.name[0] for path in directory.glob("[a-d]-*.npy")) == ["a", "c"]


# ---- when the file is stale


def replaced_by_another_of_the_same_size_and_time(path: Path) -> None:
    before, other = path.stat(), path.with_name("other")
    write_picture(other, 102)  # as many rows as path
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_size == before.st_size


def longer_at_the_same_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_changed_file_is_seen(cfg, files, reads):
    changes = [
        lambda path: write_picture(path, 99),
        lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
        replaced_by_another_of_the_same_size_and_time,
        longer_at_the_same_time,
    ]
    for change in changes:
        Images(cfg, files, "train")
        change(Path(files[3]))
        reads.clear()
        assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files)) and len(reads) == COUNT
    for spoil in (Path.unlink, lambda path: path.write_bytes(b"no image")):
        spoil(Path(files[3]))
        with pytest.raises(UserError, match=r"3\.bmp"):
            Images(cfg, files, "train")
        images = Images(cfg.replace(on_bad_image="skip"), files, "train")
        assert list(images.bad) == [3] and np.array_equal(pixels(images), decoded(files[:3] + files[4:]))
        write_picture(files[3], 50)
        assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files))


# ---- what others leave behind


def truncate(cfg: Config, share: float) -> None:
    with open(stored(cfg, "npy"), "r+b") as file:
        file.truncate(int(share * (COUNT * SIZE + 128)))


LEFT_BEHIND = {
    "pictures without record": lambda cfg: stored(cfg, "json").unlink(),
    "record without pictures": lambda cfg: stored(cfg, "npy").unlink(),
    "truncated pictures": lambda cfg: truncate(cfg, 0.9),
    "half a header": lambda cfg: truncate(cfg, 0.002),
    "fewer pictures": lambda cfg: np.save(stored(cfg, "npy"), np.zeros((3, HEIGHT, WIDTH, 3), np.uint8)),
    "other pictures": lambda cfg: stored(cfg, "npy").write_bytes(b"garbage" * 9000),
    **{
        f"record {text!r}": lambda cfg, text=text: stored(cfg, "json").write_bytes(text)
        for text in (b"{", b"[]", b"\xff\xfe", b'{"bad": [3]}')
    },
}


def test_what_is_damaged_is_made_again(cfg, files, reads, warned):
    for name, spoil in LEFT_BEHIND.items():
        Images(cfg, files, "train")
        leftover = Path(cfg.data.cache_dir) / f".{stored(cfg, 'npy').name}.12345.tmp"
        leftover.write_bytes(b"left by a killed program")
        spoil(cfg)
        reads.clear()
        images = Images(cfg, files, "train")
        assert np.array_equal(pixels(images), decoded(files)) and len(reads) == COUNT and warned == [], name
        assert left(cfg) == ["train.json", "train.npy"], name
    Images(cfg, files, "query")
    next(Path(cfg.data.cache_dir).glob("query-*.json")).unlink()  # a build of other images that was killed
    Images(cfg.replace(height=12), files, "train")
    assert left(cfg) == ["train.json", "train.json", "train.npy", "train.npy"]


def test_a_flipped_bit_gives_no_other_picture(cfg, files):
    expected = decoded(files)
    Images(cfg, files, "train")
    file = stored(cfg, "npy")
    whole, record = file.read_bytes(), stored(cfg, "json").read_bytes()
    for place in (*range(0, 128, 5), *range(128, len(whole), len(whole) // 20)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        stored(cfg, "json").write_bytes(record)
        try:
            assert np.array_equal(pixels(Images(cfg, files, "train")), expected), place
            assert place < 128
        except UserError as error:
            assert str(file) in str(error) and files[max(place - 128, 0) // SIZE] in str(error)
    stored(cfg, "json").write_bytes(b"[" * 100_000)  # too deep for Python's parser
    assert np.array_equal(pixels(Images(cfg, files, "train")), expected)


# ---- where no file can be written


def test_a_disk_that_gets_full_or_a_file_in_the_place_of_the_directory(cfg, files, tmp_path, warned, monkeypatch):
    import resource

    monkeypatch.setattr(cache, "BLOCK", 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * SIZE, before[1]))
    try:
        images = Images(cfg, files, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(warned) == 1 and np.array_equal(pixels(images), decoded(files)) and left(cfg) == []
    (tmp_path / "file").write_bytes(b"not a directory")
    for place in ("file", "file/below"):
        images = Images(cfg.replace(cache_dir=str(tmp_path / place)), files, "train")
        assert np.array_equal(pixels(images), decoded(files))
    assert len(warned) == 3 and (tmp_path / "file").read_bytes() == b"not a directory"


# ---- other processes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_stopped_while_it_decodes_leaves_nothing_that_is_used(cfg, files, monkeypatch, number):
    paths, cfg, seen = files * 30, cfg.replace(workers=1), []

    def read(*args):
        seen.append(args)
        if len(seen) == 100:
            os.kill(os.getpid(), number)
            time.sleep(1)  # until the main thread has the signal
        return read_input(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_input", read)
        if number == signal.SIGKILL:
            assert killed(lambda: Images(cfg, paths, "train"))
        else:
            with pytest.raises(KeyboardInterrupt):
                Images(cfg, paths, "train")
            time.sleep(2)
            assert len(seen) == 100  # the rest was cancelled
    assert not list(Path(cfg.data.cache_dir).glob("*.npy"))
    assert np.array_equal(pixels(Images(cfg, paths, "train")), decoded(paths))
    assert left(cfg) == ["train.json", "train.npy"]


def test_of_two_programs_that_start_together_one_decodes_and_both_have_the_images(cfg, files, monkeypatch):
    fork = multiprocessing.get_context("fork")
    begun, waits = fork.Event(), fork.Event()

    def read(*args):
        begun.set()
        assert waits.wait(60)
        return read_input(*args)

    def other() -> None:
        assert begun.wait(60)
        monkeypatch.setattr("utils.files.log.info", lambda *_args: waits.set())  # that another program has the lock
        monkeypatch.setattr(cache, "read_input", None)
        assert np.array_equal(pixels(Images(cfg, files, "train")), decoded(files))

    monkeypatch.setattr(cache, "read_input", read)
    process = fork.Process(target=other, daemon=True)
    process.start()
    images = Images(cfg, files, "train")
    process.join(60)
    assert process.exitcode == 0 and np.array_equal(pixels(images), decoded(files))
    assert left(cfg) == ["train.json", "train.npy"]


# ---- damaged files in the tree of a whole program


FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
SKIP = ("--on-bad-image", "skip")
TRAIN = [f"{pid:04}_c1s1_000000_00" for pid in range(1, 7)]
QUERY = ["0007_c1s1_000090_00", "0008_c2s1_000090_00"]
GALLERY = ["0007_c1s1_000000_00", "0009_c3s1_000001_00", "0000_c1s1_000005_00"]


def damage(cfg: Config, split: str, *names: str) -> list[str]:
    """Spoil these images of a split; returns their paths."""
    paths = [Path(cfg.data.data_root) / "demo" / FOLDERS[split] / f"{name}.jpg" for name in names]
    for path in paths:
        path.write_bytes(b"<html>404 Not Found</html>")
    return list(map(str, paths))


def all_of(cfg: Config, split: str, start: str) -> list[str]:
    return sorted(path.stem for path in (Path(cfg.data.data_root) / "demo" / FOLDERS[split]).glob(f"{start}*.jpg"))


def test_bad_images_of_all_splits_stop_a_run_before_it_begins(tiny):
    bad = damage(tiny, "gallery", *GALLERY) + damage(tiny, "query", *QUERY) + damage(tiny, "train", *TRAIN)
    shown = program("train.py", *arguments(tiny))
    refused(shown, "6 of 36 train images", "--on-bad-image skip")
    assert all(path in shown.stderr for path in bad)  # all at once
    assert "3 of 25 gallery images" in shown.stderr and "2 of 12 query images" in shown.stderr
    assert not Path(tiny.run.log_dir).exists()


def test_a_run_goes_on_without_them_and_says_so(tiny, caplog):
    bad = damage(tiny, "train", *TRAIN[:3]) + damage(tiny, "query", *QUERY) + damage(tiny, "gallery", *GALLERY)
    note = make_loaders(tiny.replace(on_bad_image="skip")).dataset.note
    assert all(path in caplog.text for path in bad)
    for number, count, split in ((3, 36, "train"), (2, 12, "query"), (3, 25, "gallery")):
        assert f"{number} of {count} {split} images left out" in caplog.text
        assert f"{number} unreadable {split} images left out" in note
    assert "not comparable with published scores" in note
    checkpoint = save_model(tiny)
    assert "2 unreadable query images left out" in done("test.py", checkpoint, *SKIP)
    refused(program("test.py", checkpoint, "--on-bad-image", "refuse"), "2 of 12 query images")


def test_batches_hold_the_readable_images_with_their_labels(tiny):
    damage(tiny, "train", *all_of(tiny, "train", "0003"), TRAIN[0])
    for _ in range(2):
        loaders = make_loaders(tiny.replace(on_bad_image="skip"))
        samples = loaders.train.samples
        assert loaders.labels == {1: 0, 2: 1, 4: 2, 5: 3, 6: 4} and loaders.dataset.train == samples
        assert [s.pid for s in samples] == [1] * 5 + [2] * 6 + [4] * 6 + [5] * 6 + [6] * 6
        assert np.array_equal(pixels(loaders.train.images), decoded([s.path for s in samples], 32, 16))
        for indices, (images, labels) in zip(loaders.train.sampler.epoch(0), loaders.train.epoch(0, CPU), strict=True):
            assert len(images) == 8 and labels.tolist() == [loaders.labels[samples[i].pid] for i in indices]


def test_what_is_left_may_be_too_little(tiny):
    for split, people, words in (
        ("train", ("0001", "0002", "0003"), "needs 4 identities, the training set has 3.*--batch-size 6"),
        ("train", ("0004", "0005"), "fewer than two identities"),
        ("train", ("0006",), "the train split has no image that can be read"),
        ("query", ("00",), "the query split has no image that can be read"),
    ):
        damage(tiny, split, *(name for person in people for name in all_of(tiny, split, person)))
        with pytest.raises(UserError, match=words):
            make_loaders(tiny.replace(on_bad_image="skip"))

import os
import pickle
import random
import resource
import signal
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import flat, kill_at_rename, killed

from processor.checkpoint import find_checkpoint, kept_checkpoints, read_checkpoint, save_checkpoint
from processor.resume import newest_valid
from processor.state import has_checkpoint
from utils.errors import UserError


def state(number: int = 0) -> dict:
    """A checkpoint of some two kilobytes."""
    generator = torch.Generator().manual_seed(number)
    weights = {"w": torch.randn(5, generator=generator), "steps": torch.tensor(number)}
    plain = {"labels": {7: 0, 9: 1}, "epoch": number, "sums": {"id": (0.5, 2)}, "history": [{"epoch": 1, "id": 0.25}]}
    return {"model": weights, "config": {"seed": 0, "name": "é", "steps": (40.0, 70.0)}, **plain}


def same(a: dict, b: dict) -> bool:
    return flat(a) == flat(b)


def refused(path: Path, *words: str) -> str:
    """The sentence with which a file is refused: it names the file, and what to do about it."""
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence
    assert "train one" in sentence or "the one before it is" in sentence
    assert all(word in sentence for word in words), sentence
    return sentence


def test_a_checkpoint_comes_back_as_it_was_and_leaves_nothing_else(tmp_path):
    save_checkpoint(tmp_path / "new" / "last.pth", state())
    assert same(read_checkpoint(tmp_path / "new" / "last.pth"), state())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["last.pth"]


# ---- damaged files


@pytest.fixture
def saved(tmp_path) -> Path:
    save_checkpoint(tmp_path / "last.pth", state())
    return tmp_path / "last.pth"


def test_no_flipped_bit_gives_other_values_whether_in_tensors_the_pickle_headers_or_the_directory(saved):
    whole = saved.read_bytes()
    inside = set()
    with zipfile.ZipFile(saved) as archive:
        directory = archive.start_dir
        for part in archive.infolist():
            name, more = (int.from_bytes(whole[part.header_offset + i :][:2], "little") for i in (26, 28))
            start = part.header_offset + 30 + name + more
            inside |= set(range(start, start + part.file_size))
            assert zlib.crc32(whole[start : start + part.file_size]) == part.CRC
    counts = {"inside": 0, "directory": 0}
    for place in range(0, len(whole), 2):
        bit = place // 2 % 8
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            values = read_checkpoint(saved)
            assert place not in inside and same(values, state()), (place, bit)
        except UserError:
            counts["inside"] += place in inside
            counts["directory"] += place >= directory
    assert counts["inside"] == len([p for p in inside if p % 2 == 0]) > 200 and counts["directory"] > 150


def test_a_tensor_whose_entry_says_directory_is_refused_as_torch_would_fill_it_with_random_memory(saved):
    whole = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        place = archive.start_dir
        while whole[place : place + 4] == b"PK\1\2":
            whole[place + 38] ^= 0x10  # the bit for a directory in the external attributes
            name, more, comment = (int.from_bytes(whole[place + i : place + i + 2], "little") for i in (28, 30, 32))
            place += 46 + name + more + comment
    saved.write_bytes(whole)
    assert zipfile.ZipFile(saved).testzip() is None  # zipfile sees nothing
    refused(saved, "cannot be read")


def test_a_file_that_is_cut_off_or_overwritten_never_gives_other_values_or_another_error(saved):
    whole, rng = saved.read_bytes(), random.Random(0)
    for length in (*range(0, len(whole), 37), *range(len(whole) - 30, len(whole))):
        saved.write_bytes(whole[:length])
        refused(saved)
    for _ in range(200):
        place, length = rng.randrange(len(whole)), rng.choice([1, 2, 4, 16, 64, 512])
        burst = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length), b""])
        saved.write_bytes(whole[:place] + burst + whole[place + length :])
        with suppress(UserError):
            assert same(read_checkpoint(saved), state())


class Trap:
    """What would make a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_does_not_run_it(tmp_path):
    path, sprung = tmp_path / "last.pth", tmp_path / "sprung"
    torch.save(state() | {"epoch": Trap(sprung)}, path)
    refused(path, "run code")
    with open(path, "wb") as file:
        torch.save(state() | {"epoch": Trap(sprung)}, file, _use_new_zipfile_serialization=False)
    refused(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    refused(path)
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists()  # the trap is one


def test_a_foreign_file_is_refused_and_the_one_before_is_used(tmp_path):
    image = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    other = {"state_dict": {"w": torch.ones(2)}, "epoch": 3, "labels": [1, 2], "model": "resnet50"}
    contents = (b"", image, b"epoch 1/3\n", torch.nn.Linear(2, 2).state_dict(), other, [state()], None)
    for name, content in enumerate(contents):
        path = tmp_path / str(name) / "last.pth"
        path.parent.mkdir()
        if content is None:
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        refused(path)
        save_checkpoint(path.with_name("other.pth"), state(3))
        path.with_name("other.pth").rename(path.with_name("last.1.pth"))
        refused(path, f"the one before it is {path.with_name('last.1.pth')}")
        found, values = newest_valid(path)
        assert found.name == "last.1.pth" and same(values, state(3))


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none" / "last.pth", "there is no checkpoint")
    with pytest.raises(UserError, match=r"there is no checkpoint .*none/last.pth"):
        newest_valid(tmp_path / "none" / "last.pth")


# ---- rotation


def test_as_many_are_kept_as_the_setting_says(tmp_path):
    for keep in (1, 2, 3):
        path = tmp_path / str(keep) / "last.pth"
        for number in range(5):
            save_checkpoint(path, state(number), keep)
            names = ["last.pth", "last.1.pth", "last.2.pth"][: min(keep, number + 1)]
            assert sorted(p.name for p in path.parent.iterdir()) == sorted(names)
            assert [p.name for p in kept_checkpoints(path)] == names
            epochs = [read_checkpoint(p)["epoch"] for p in kept_checkpoints(path)]
            assert epochs == list(range(number, number - len(names), -1))
    path = tmp_path / "last.pth"
    for number, keep, epochs in ((0, 1, [0]), (1, 3, [1, 0]), (2, 3, [2, 1, 0]), (3, 4, [3, 2, 1, 0]), (4, 2, [4, 3])):
        save_checkpoint(path, state(number), keep)
        assert [read_checkpoint(p)["epoch"] for p in kept_checkpoints(path)] == epochs


@pytest.mark.parametrize("keep", [1, 3])
def test_a_kill_before_any_rename_of_a_write_loses_nothing(tmp_path, keep):
    def saves(path: Path, nth: int) -> None:
        kill_at_rename(nth, signal.SIGKILL)
        for number in range(6, 8):
            save_checkpoint(path, state(number), keep)

    for nth in range(1, 99):
        path = tmp_path / f"run{nth}" / "last.pth"
        for number in range(6):
            save_checkpoint(path, state(number), keep)
        struck = killed(lambda: saves(path, nth))  # noqa: B023
        done = (nth - 1) // keep  # writes that were whole before
        assert has_checkpoint(path.parent)
        found, values = newest_valid(path)
        assert same(values, state(5 + min(done, 2)))
        assert find_checkpoint(f"run{nth}", tmp_path) == find_checkpoint(str(path.parent), ".") == found
        os.utime(found, (2e9 + nth, 2e9 + nth))
        assert find_checkpoint(None, tmp_path) == found
        epochs = sorted({read_checkpoint(p)["epoch"] for p in kept_checkpoints(path)}, reverse=True)
        newest = epochs[0]  # it may have two names
        assert epochs == list(range(newest, newest - len(epochs), -1)) and len(epochs) >= max(keep - 1, 1)
        save_checkpoint(path, state(newest + 1), keep)  # as the run that goes on does
        epochs = [read_checkpoint(p)["epoch"] for p in kept_checkpoints(path)]
        assert epochs == list(range(newest + 1, newest + 1 - keep, -1))
        if not struck:
            assert nth == 2 * keep + 1
            return


# ---- a disk that takes no more


def test_a_write_that_the_system_cuts_off_leaves_all_as_it_was_and_says_why(tmp_path):
    """A real limit: writes beyond it fail as on a full disk."""
    for number in range(2):
        save_checkpoint(tmp_path / "last.pth", state(number), 2)
    big = state(2) | {"big": torch.zeros(100_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(UserError) as error:
            save_checkpoint(tmp_path / "last.pth", big, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value).startswith(f"{tmp_path}/last.pth could not be written (File too large)")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.1.pth", "last.pth"]
    assert [read_checkpoint(p)["epoch"] for p in kept_checkpoints(tmp_path / "last.pth")] == [1, 0]

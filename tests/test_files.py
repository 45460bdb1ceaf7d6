"""Files: errors while reading, and locks between programs."""

import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from helpers import ROOT

from utils.errors import UserError
from utils.files import lock_directory, reading


def test_whatever_is_wrong_with_a_file_becomes_one_sentence_that_names_it(tmp_path):
    path = tmp_path / "file"
    for content, read in (
        (None, lambda: path.read_text()),
        (b"\xff", lambda: path.read_text(encoding="utf-8")),
        (b"{", lambda: json.loads(path.read_text())),
        (b"{}", lambda: json.loads(path.read_text())["key"]),
        (b"[]", lambda: json.loads(path.read_text())["key"]),
        (b"", lambda: np.load(path)),
        (b"PK\x03\x04", lambda: zipfile.ZipFile(path)),
        (b"\x80\x02 half", lambda: pickle.loads(path.read_bytes())),
        (b"[" * 100_000, lambda: json.loads(path.read_text())),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as caught, reading(path, "give another one"):
            read()
        message = str(caught.value)
        assert message.startswith(str(path)) and message.endswith("; give another one") and "\n" not in message
    with pytest.raises(UserError, match="as it was"), reading(path):
        raise UserError("as it was")
    with pytest.raises(ZeroDivisionError), reading(path):
        raise ZeroDivisionError


HOLD = """
import sys, time
from utils.files import lock_directory
with lock_directory(sys.argv[1]) as locked:
    print(locked, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(directory, seconds: float) -> subprocess.Popen:
    words = [sys.executable, "-c", HOLD, str(directory), str(seconds)]
    other = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    return other


def test_one_program_at_a_time_has_a_directory_and_the_next_one_cleans_up(tmp_path):
    directory = tmp_path / "a" / "b"
    other = hold(directory, 60)
    (directory / ".half.1.tmp").touch()
    (directory / "kept.tmp").touch()
    try:
        with lock_directory(directory) as locked:
            assert not locked and (directory / ".half.1.tmp").exists()
    finally:
        other.kill()
        other.wait()
    with lock_directory(directory) as locked:  # a killed program holds no lock
        assert locked and not (directory / ".half.1.tmp").exists() and (directory / "kept.tmp").exists()
    with pytest.raises(ZeroDivisionError), lock_directory(directory):
        raise ZeroDivisionError
    with lock_directory(directory) as locked:
        assert locked

"""What goes wrong around a run: diverging weights, a screen that is gone, checkpoints of others, read-only places."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, arguments, done, program, save_features, save_model

import processor.train
from processor import do_train
from processor.checkpoint import kept_checkpoints, read_checkpoint, save_checkpoint
from processor.distributed import choose_backend
from processor.setup import run_directory
from processor.signals import StopSignals
from processor.test import parse_test
from utils.errors import Stopped, UserError, run
from utils.files import reading
from utils.logging import log, setup_logging


def test_diverged_weights_replace_no_good_checkpoint_and_the_message_names_it(tiny, monkeypatch):
    cfg = tiny.replace(epochs=4, width_multiplier=0.25, log_every=1, save_minutes=0, bad_steps=6, eval_every=9)
    real = processor.train.train_step

    def diverge(state, network, batches, number):
        (images, labels), factor = next(batches), float("nan") if (state.epoch, state.step) > (1, 0) else 1
        return real(state, network, [(images * factor, labels)], number)

    monkeypatch.setattr(processor.train, "train_step", diverge)
    last = Path(cfg.run.log_dir) / "demo" / "last.pth"
    with pytest.raises(UserError, match=f"6 consecutive steps.* --resume from {last}"):
        do_train(cfg)
    states = [read_checkpoint(path) for path in kept_checkpoints(last)]
    assert [(s["epoch"], s["step"], s["bad"]) for s in states] == [(1, 1, 0), (1, 0, 0)]
    assert all(x.isfinite().all() for x in states[0]["model"].values())


def test_no_place_for_files_comes_from_a_checkpoint(tiny, tmp_path):
    other = {name: str(tmp_path / "theirs") for name in ("data_root", "cache_dir", "log_dir")}
    state = read_checkpoint(checkpoint := save_model(tiny))
    save_checkpoint(checkpoint, state | {"config": state["config"] | other})
    cfg = parse_test([str(checkpoint), "--cache-dir", "cache"], {"REID_DATA": "mine"}, "")[0]
    assert (cfg.data.data_root, cfg.data.cache_dir, cfg.run.log_dir) == ("mine", "cache", "log")


def test_scores_are_printed_where_they_cannot_be_written(tiny):
    checkpoint = save_model(tiny)
    (checkpoint.parent / "results").write_text("in the way")
    shown = program("test.py", checkpoint)
    assert shown.returncode == 0 and "plain" in shown.stdout and "cannot be written" in shown.stdout, shown.stderr


def test_a_screen_that_takes_nothing_ends_no_program():
    words = "from utils.logging import log, setup_logging; from utils.errors import run; setup_logging()\n"
    for line, code in {"log.info('人 %d', i)": 0, "print('人', i, flush=True)": 141}.items():
        script = f"{words}def main():\n    for i in range(9999): {line}\nrun(main)"
        pipe = ["bash", "-c", '"$0" -c "$1" | head -n 1; exit ${PIPESTATUS[0]}', sys.executable, script]
        ended = subprocess.run(pipe, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "latin-1"})
        assert (ended.returncode, ended.stderr) == (code, b"") and b"\\u4eba" in ended.stdout, ended


def test_odd_values_in_a_checkpoint_are_one_sentence(tiny):
    state = read_checkpoint(checkpoint := save_model(tiny))
    odd = [("config", state["config"] | change) for change in ({"height": "32"}, {"height": 1e9}, {"steps": [[1]]})]
    odd += [("history", value) for value in ([1, 2], 3, [{}], [{"epoch": 1, "scores": {"plain": {"mAP": "1"}}}])]
    odd += [("epoch", "1"), ("seconds", None), ("environment", []), ("train_note", 5), ("labels", [1])]
    for name, value in odd:
        save_checkpoint(checkpoint, state | {name: value})
        with pytest.raises(UserError, match=str(checkpoint)):
            parse_test([str(checkpoint)], {}, "")
    save_checkpoint(checkpoint, {name: state[name] for name in ("model", "config", "labels")})  # all that is needed
    done("test.py", checkpoint)


HOSTILE = "a\x1b[2J\nerror: b\x9b"  # a name or note that would clear the screen and forge a line


def test_control_characters_in_arguments_of_the_log_and_in_errors_are_escaped(tmp_path, capsys):
    def main() -> None:
        setup_logging(tmp_path / "x.log")
        log.info("%s and %s: %d\nsecond line", HOSTILE, Path(HOSTILE), 3)
        log.warning(f"{HOSTILE}")
        raise UserError(HOSTILE)

    with pytest.raises(SystemExit):
        run(main)
    shown = capsys.readouterr()
    name = r"a\x1b[2J\nerror: b\x9b"
    expected = f"{name} and {name}: 3\nsecond line\na\\x1b[2J\nerror: b\\x9b\n"  # a message may have several lines
    assert (shown.out, shown.err) == (expected, f"error: {name}\n")
    assert name in (tmp_path / "x.log").read_text() and "\x1b" not in (tmp_path / "x.log").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pytest-xdist cannot send warnings that hold such a name
def test_names_and_notes_with_control_characters_and_no_utf8_are_used_and_shown_escaped(tiny, tmp_path):
    people = os.fsdecode(os.fsencode(tmp_path / HOSTILE) + b"\xe9")
    shutil.copytree(Path(tiny.data.data_root) / "demo", people)
    save_features(tmp_path / "f.npz")
    (tmp_path / "f").mkdir()
    for name, rows in np.load(tmp_path / "f.npz").items():
        np.save(tmp_path / "f" / f"{name}.npy", rows)
    (tmp_path / "f" / "about.json").write_text(json.dumps({"note": HOSTILE, "camera_names": {0: HOSTILE}}))
    log_dir, run = f"{people}/log", f"{people}/log/x"
    shown = [
        program("tools/check_dataset.py", people, "--output", tmp_path / "sheet.png", "--batch-size", 8),
        program("tools/score_features.py", tmp_path / "f", "--by-camera"),
        program("train.py", *arguments(tiny.replace(dataset=people, log_dir=log_dir, name="x", epochs=1, steps=()))),
        program("test.py", run),
        program("tools/report.py", run, "--heatmaps", 0),
        program("tools/search.py", "index", people, "--log-dir", log_dir),
        program("test.py", f"{people}/nothing.pth"),
    ]
    assert [ended.returncode for ended in shown] == [0] * 6 + [2]
    for text in [Path(run, "train.log").read_text(), *(ended.stdout + ended.stderr for ended in shown)]:
        assert r"a\x1b[2J\nerror: b\x9b" in text and not {"\x1b", "\x9b"} & set(text)
        assert not any(line.startswith("error: b") for line in text.splitlines())


def test_a_closed_terminal_stops_a_run_unless_nohup_started_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(Stopped), StopSignals():
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals():
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


def test_a_name_that_is_given_is_resumed_though_there_are_later_runs(tiny):
    first = save_model(tiny).parent
    shutil.copytree(first, first.with_name("demo-2"))
    for name, expected in (("demo", "demo"), ("", "demo-2")):
        with run_directory(tiny.replace(name=name, resume=True)) as directory:
            assert directory.name == expected


def test_shares_of_one_identity_are_refused(tiny):
    environ = {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    with pytest.raises(UserError, match=r"--no-gather.*--batch-size"):
        choose_backend(tiny.replace(gather=False), environ)


# ---- errors while reading files


def test_whatever_is_wrong_with_a_file_becomes_one_sentence_that_names_it(tmp_path):
    path = tmp_path / "file"
    for content, read in (
        (None, lambda: path.read_text()),
        (b"\xff", lambda: path.read_text(encoding="utf-8")),
        (b"{", lambda: json.loads(path.read_text())),
        (b"{}", lambda: json.loads(path.read_text())["key"]),
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

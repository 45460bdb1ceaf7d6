from __future__ import annotations

import contextlib
import copy
import errno
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import processor.prepare
import processor.train
import utils.errors
from config import Config
from processor import do_train, load_model
from processor.checkpoint import kept, read_checkpoint
from processor.prepare import prepare
from processor.resume import restore
from processor.run import Run, StopSignals, run_directory
from processor.train import train_one_epoch
from tools.chaos import flat
from utils.errors import Stopped, UserError


def fails(error: BaseException):
    def call(*_args, **_more):
        raise copy.copy(error)  # it may be told where it came from

    return call


def stop_at(monkeypatch, name: str, nth: int, action, module=processor.train) -> None:
    """`action` before the nth call of a function of a module."""
    real, calls = getattr(module, name), []

    def wrapped(*args, **more):
        calls.append(0)
        if len(calls) == nth:
            action()
        return real(*args, **more)

    monkeypatch.setattr(module, name, wrapped)


def short(tiny: Config, **changes) -> Config:
    """4 steps an epoch, a checkpoint after each, and no test but the last."""
    quick = {"epochs": 2, "eval_first": False, "eval_every": 9, "width_multiplier": 0.25, "log_every": 1}
    return tiny.replace(**quick | {"save_minutes": 0.0, "keep": 3} | changes)


def said(cfg: Config) -> str:
    return (Path(cfg.run.log_dir) / "demo" / "train.log").read_text()


def without_times(path: Path) -> list:
    """All that must be the same in the checkpoints of two runs."""
    state = read_checkpoint(path)
    kept_out = ("seconds", "environment", "config", "command", "images_per_second", "data_wait")
    state["history"] = [{k: v for k, v in entry.items() if k not in kept_out} for entry in state["history"]]
    return list(flat({k: v for k, v in state.items() if k not in kept_out}, ""))


def go_on(cfg: Config, monkeypatch, stop_after: int = 6, **changes) -> Run:
    """Stopped in the second epoch, and gone on with after some settings were changed."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, "train_step", stop_after, lambda: os.kill(os.getpid(), signal.SIGTERM))
        do_train(cfg)
    return do_train(cfg.replace(resume=True, **changes))


def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before(tiny, monkeypatch):
    cfg = short(tiny)
    whole = do_train(cfg.replace(name="whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "train_step", 7, fails(KeyboardInterrupt()))
        do_train(cfg)
    directory = Path(cfg.run.log_dir) / "demo"
    states = [read_checkpoint(p) for p in kept(directory / "last.pth")]
    assert [(s["epoch"], s["step"]) for s in states] == [(1, 2), (1, 1), (1, 0)]
    damaged = bytearray((directory / "last.pth").read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (directory / "last.pth").write_bytes(damaged)
    resumed = do_train(cfg.replace(resume=True))
    assert f"{directory}/last.pth is damaged" in said(cfg)
    assert "looking for the one before it" in said(cfg) and "last.1.pth after epoch 1 and 1 steps" in said(cfg)
    assert without_times(resumed.directory / "last.pth") == without_times(whole.directory / "last.pth")
    assert (directory / "last.damaged.pth").read_bytes() == damaged  # it has taken nobody's place
    assert [p.name for p in kept(directory / "last.pth")] == ["last.pth", "last.1.pth", "last.2.pth"]
    for path in kept(directory / "last.pth"):
        read_checkpoint(path)


def test_where_all_are_damaged_the_run_is_refused_and_nothing_is_changed(tiny):
    run = do_train(short(tiny, epochs=1))
    for path in kept(run.directory / "last.pth"):
        path.write_bytes(path.read_bytes()[:-9])
    before = {p.name: p.read_bytes() for p in run.directory.glob("*.pth")}
    with pytest.raises(UserError, match=r"last.pth is damaged.*nor can the 2 before it be used; start anew"):
        do_train(short(tiny, epochs=1, resume=True))
    assert {p.name: p.read_bytes() for p in run.directory.glob("*.pth")} == before


def test_a_checkpoint_of_another_model_or_without_its_training_is_refused_by_name(tiny):
    run = do_train(short(tiny, epochs=1))
    path = run.directory / "last.pth"
    state = read_checkpoint(path)
    other = state | {"model": {k: v for k, v in state["model"].items() if "classifier" not in k}}
    torch.save(other, path)
    with pytest.raises(UserError, match=f"{path} holds a mobilenet_v2 model of 6 identities, which does not fit"):
        do_train(short(tiny, epochs=1, resume=True))
    with pytest.raises(UserError, match=f"{path} holds a mobilenet_v2 model"):
        load_model(path, "cpu")
    assert path.exists() and not (run.directory / "last.damaged.pth").exists()
    names = ("model", "config", "labels", "train_note")
    torch.save({name: state[name] for name in names}, path)
    load_model(path, "cpu")
    for name in ("last.1.pth", "last.2.pth"):
        (run.directory / name).unlink()
    with pytest.raises(UserError, match=f"{path} holds a model but not the state of its training: criterion, opti"):
        do_train(short(tiny, epochs=1, resume=True))


def trained(cfg: Config) -> Run:
    """A run after its first epoch, with a loss that was not finite."""
    run, loaders = prepare(cfg, "")
    train_one_epoch(run, loaders, StopSignals())
    random.random(), np.random.rand(), torch.rand(1)
    run.step, run.bad, run.sums = 0, 3, {"loss": (1.5, 2)}
    return run


def test_a_checkpoint_holds_everything_and_all_of_it_is_restored(tiny):
    cfg = short(tiny, ema_decay=0.9, precision="fp16", optimizer="amsgrad", backbone_lr_factor=0.5)
    run = trained(cfg)
    run.save()
    saved = dict(flat(read_checkpoint(run.directory / "last.pth"), ""))
    with torch.no_grad():
        for module in (run.model, run.average, run.criterion):
            for x in module.state_dict().values():
                x.add_(1)
        for optimizer in run.optimizers.values():
            for values in optimizer.state.values():
                for x in values.values():
                    if isinstance(x, torch.Tensor):
                        x.add_(1)
    run.optimizers["model"].param_groups[0]["lr"] = 7.0
    run.scaler.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 8.0, "_growth_tracker": 99})
    run.epoch, run.step, run.bad, run.sums, run.seconds, run.history = 5, 1, 0, {}, 0.0, []
    random.random(), np.random.rand(), torch.rand(1)
    changed = dict(flat(run.state(), ""))
    kinds = ("training_model", "model", "criterion", "optimizers model state", "scaler scale", "scaler _growth_tracker")
    kinds += ("rng 0 torch", "rng 0 python", "rng 0 numpy", "epoch", "step", "bad", "sums", "seconds", "history")
    kinds += ("optimizers model param_groups 0 lr",)
    for kind in kinds:
        mine = [name for name in saved if name.startswith(f" {kind}")]
        assert mine and any(changed.get(name) != saved[name] for name in mine), kind
    restore(run)
    again = dict(flat(run.state(), ""))
    assert [name for name in saved.keys() | again.keys() if name not in saved or again.get(name) != saved[name]] == []


@pytest.mark.parametrize("stop_after", [2, 6])
def test_the_scale_of_half_precision_goes_on_where_it_was(tiny, monkeypatch, stop_after):
    """On the CPU, too, fp16 has its scale, which is too high for these losses at first."""
    cfg = short(tiny, precision="fp16")
    whole = do_train(cfg.replace(name="whole"))
    resumed = go_on(cfg, monkeypatch, stop_after)
    scales = [read_checkpoint(p)["scaler"]["scale"] for p in reversed(kept(resumed.directory / "last.pth"))]
    assert 1 < scales[-1] < 2**16 and resumed.scaler.state_dict()["scale"] == scales[-1]
    assert without_times(resumed.directory / "last.pth") == without_times(whole.directory / "last.pth")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_ends_the_run_with_a_sentence_and_the_last_checkpoint(tiny, monkeypatch):
    cfg = short(tiny)
    whole = do_train(cfg.replace(name="whole"))
    directory = Path(cfg.run.log_dir) / "demo"
    found = {}

    def full() -> None:
        found.update({p.name: p.read_bytes() for p in directory.glob("*.pth")})
        monkeypatch.setattr("utils.files.os.fsync", fails(FULL))

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        stop_at(patch, "train_step", 6, full)
        do_train(cfg)
    assert f"{directory}/last.pth could not be written (No space left on device)" in str(error.value)
    assert "--resume" in str(error.value) and len(found) == 3
    assert {p.name: p.read_bytes() for p in directory.glob("*.pth")} == found and not list(directory.glob(".*.tmp"))
    monkeypatch.undo()
    resumed = do_train(cfg.replace(resume=True))
    assert without_times(resumed.directory / "last.pth") == without_times(whole.directory / "last.pth")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_directory_that_is_gone_is_made_anew_with_the_state_of_now(tiny, monkeypatch, capsys):
    cfg = short(tiny)
    whole = do_train(cfg.replace(name="whole"))
    directory = Path(cfg.run.log_dir) / "demo"
    stop_at(monkeypatch, "train_step", 6, lambda: shutil.rmtree(directory))
    run = do_train(cfg)
    assert without_times(run.directory / "last.pth") == without_times(whole.directory / "last.pth")
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 2
    shown = capsys.readouterr().out
    assert shown.count(f"warning: {directory} is gone; it is made anew") == 1
    assert shown.count("TensorBoard's events cannot be written (No such file or directory)") == 1


def test_a_directory_that_cannot_be_made_anew_ends_the_run_with_a_sentence(tiny, monkeypatch):
    directory = Path(tiny.run.log_dir) / "demo"

    def replaced() -> None:
        shutil.rmtree(directory)
        directory.write_text("")

    stop_at(monkeypatch, "train_step", 6, replaced)
    with pytest.raises(UserError, match=r"demo/last.pth could not be written \((File exists|Not a directory)\)"):
        do_train(short(tiny))


def test_a_full_disk_is_told_in_a_sentence_whatever_file_it_refuses(tiny, monkeypatch, capsys):
    def full() -> None:
        monkeypatch.setattr("utils.files.os.fsync", fails(FULL))

    stop_at(monkeypatch, "write_json", 1, full, processor.prepare)
    with pytest.raises(SystemExit) as stop:
        utils.errors.run(lambda: do_train(short(tiny)))
    directory = Path(tiny.run.log_dir) / "demo"
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: No space left on device: {directory}/config.json\n"


# ---- other settings than before


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"batch_size": 12}, {"seed": 1}, {"sampler": "pk_cameras"}])
def test_other_batches_begin_the_epoch_anew_with_the_weights_of_now(tiny, monkeypatch, changes):
    cfg, steps = short(tiny), []
    real = processor.train.train_step
    monkeypatch.setattr(processor.train, "train_step", lambda *a: steps.append(a[3:]) or real(*a))
    run = go_on(cfg, monkeypatch, **changes)
    (name, value) = next(iter(changes.items()))
    assert f"resumed with other settings than before: {name} {cfg.get(name)} -> {value}" in said(cfg)
    assert "epoch 2 begins anew, as its batches are others now" in said(cfg)
    assert len(run.history) == 2 and len(steps) == 6 + (3 if name == "batch_size" else 4)
    assert steps[6:][:2] == ([(0, 2), (1, 2)] if name == "accumulate" else [(0, 1), (0, 1)])


@pytest.mark.parametrize("before", ["float32", "fp16"])
def test_another_precision_goes_on_with_the_same_batches_and_a_scale_of_its_own(tiny, monkeypatch, before):
    after = "fp16" if before == "float32" else "float32"
    run = go_on(short(tiny, precision=before), monkeypatch, precision=after)
    assert f"precision {before} -> {after}" in said(run.cfg) and "begins anew" not in said(run.cfg)
    assert (1 < run.scaler.scaler.get_scale() <= 2.0**16) == (after == "fp16")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_fused_on_or_off_takes_over_the_moments(tiny, monkeypatch, fused, optimizer):
    cfg = short(tiny, optimizer=optimizer, fused=fused)
    seen = []
    real = processor.prepare.restore

    def restore_and_look(run: Run) -> None:
        real(run)
        states = (
            read_checkpoint(run.directory / "last.pth")["optimizers"],
            {"model": run.optimizers["model"].state_dict()},
        )
        seen.extend(list(flat(state["model"]["state"], "")) for state in states)

    monkeypatch.setattr(processor.prepare, "restore", restore_and_look)
    run = go_on(cfg, monkeypatch, fused=not fused)
    assert f"fused {fused} -> {not fused}" in said(cfg)
    assert run.optimizers["model"].param_groups[0]["fused"] is not fused
    assert seen[0] == seen[1] and len(seen[0]) > 100
    assert run.epoch == 2 and all(p.isfinite().all() for p in run.model.parameters())


def test_fewer_are_kept_after_resuming_with_fewer(tiny, monkeypatch):
    run = go_on(short(tiny, keep=3), monkeypatch, keep=1)
    assert [p.name for p in run.directory.glob("last*")] == ["last.pth"]


# ---- whose directory it is


def test_two_programs_at_once_get_two_directories_and_one_cannot_be_resumed_while_it_runs(tiny):
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        assert run_directory(tiny, first).name == "demo"
        assert run_directory(tiny, second).name == "demo-2"
        with pytest.raises(UserError, match=r"another program is training in .*/demo; wait until it has ended"):
            run_directory(tiny.replace(resume=True), second)
    with contextlib.ExitStack() as third:
        assert run_directory(tiny.replace(resume=True), third).name == "demo"


def test_a_run_that_ends_in_whatever_way_leaves_its_directory_to_others(tiny, monkeypatch):
    for error in (KeyboardInterrupt(), UserError("no"), RuntimeError("bug")):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(processor.train, "train_step", fails(error))
            do_train(short(tiny))
    run = do_train(short(tiny, epochs=1))
    assert run.directory.name == "demo" and do_train(short(tiny, epochs=1, resume=True)).epoch == 1


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(tiny):
    directory = Path(tiny.run.log_dir) / "demo"
    directory.mkdir(parents=True)
    for name in (".last.pth.123.tmp", ".best.pth.9.tmp", ".probe.tmp"):
        (directory / name).write_bytes(b"half")
    (directory / "mine.tmp").touch()
    with contextlib.ExitStack() as at_end:
        run_directory(tiny.replace(resume=True), at_end)
        assert sorted(p.name for p in directory.iterdir()) == [".lock", "mine.tmp"]


def test_a_kill_between_the_two_checkpoints_of_a_test_does_not_lose_the_best(tiny, monkeypatch):
    cfg = short(tiny, eval_first=True)  # the weights of the start are the best here
    whole = do_train(cfg.replace(name="whole"))
    real, written = processor.run.save_checkpoint, []

    def save(path: Path, *args) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(processor.run, "save_checkpoint", save)
        do_train(cfg)
    resumed = do_train(cfg.replace(resume=True))
    assert len(written) == 1 and whole.best == resumed.best == whole.history[0]["scores"]["plain"]["mAP"]
    for name in ("best.pth", "last.pth"):
        assert without_times(resumed.directory / name) == without_times(whole.directory / name)

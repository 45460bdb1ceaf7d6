from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import tiny_config, write_tree
from helpers import fails, stop_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import Config
from processor import do_train
from processor.state import TrainState
from processor.watch import Watchers


@pytest.fixture
def quick(tiny) -> Config:
    return tiny.replace(epochs=3, eval_every=2, width_multiplier=0.25, log_every=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> TrainState:
    """A run of three epochs and three tests that draws ranked lists."""
    base = tmp_path_factory.mktemp("whole")
    write_tree(base / "data" / "demo")
    return do_train(tiny_config(base, batch_size=12, width_multiplier=0.25, ranked_lists=2))


def events(directory: Path) -> EventAccumulator:
    found = EventAccumulator(str(directory / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def scalars(found: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in found.Scalars(tag)}


def test_tensorboard_has_every_number_of_the_history_at_its_epoch(whole):
    run, found = whole, events(whole.directory)
    tags = set(found.Tags()["scalars"])
    names = {"loss", "id", "triplet", "center", "accuracy", "lr", "images_per_second", "data_wait"}
    assert tags == {f"train/{n}" for n in names} | {f"test_plain/{n}" for n in ("mAP", "mINP", "rank1")}
    for name in names:
        assert scalars(found, f"train/{name}") == pytest.approx({h["epoch"]: h[name] for h in run.history[1:]}), name
    for name in ("mAP", "mINP", "rank1"):
        logged = {h["epoch"]: h["scores"]["plain"][name] for h in run.history if "scores" in h}
        assert scalars(found, f"test_plain/{name}") == pytest.approx(logged) and list(logged) == [0, 2, 3]


def decoded(found: EventAccumulator, tag: str) -> dict[int, np.ndarray]:
    images = {e.step: cv2.imdecode(np.frombuffer(e.encoded_image_string, np.uint8), 1) for e in found.Images(tag)}
    return {step: pixels[..., ::-1] for step, pixels in images.items()}


def test_ranked_lists_are_drawn_at_each_test_and_none_if_the_setting_is_0(whole, quick):
    lists = decoded(events(whole.directory), "ranked_lists")
    assert list(lists) == [0, 2, 3]
    assert np.array_equal(lists[3], cv2.imread(str(whole.directory / "ranked_lists.png"))[..., ::-1])
    assert not np.array_equal(lists[0], lists[3])
    none = do_train(quick.replace(epochs=1))
    assert events(none.directory).Tags()["images"] == ["train_batch"]
    assert not (none.directory / "ranked_lists.png").exists()


@pytest.mark.parametrize(("what", "nth"), [("log_entry", 2), ("draw_evaluation", 3)])
def test_what_a_kill_kept_from_tensorboard_is_logged_by_the_resumed_run(quick, monkeypatch, what, nth):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, what, nth, fails(KeyboardInterrupt()), Watchers)
        do_train(quick)
    run = do_train(quick.replace(resume=True))
    found = events(run.directory)
    assert scalars(found, "train/loss") == pytest.approx({h["epoch"]: h["loss"] for h in run.history[1:]})
    assert list(scalars(found, "test_plain/mAP")) == [0, 2, 3]
    assert list(decoded(found, "train_batch")) == [0]


def test_wandb_offline_gets_every_number_and_a_resumed_run_continues_there(quick, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, init, log = [], wandb.init, wandb.Run.log
    monkeypatch.setattr(wandb, "init", lambda **settings: logged.append(settings) or init(**settings))
    monkeypatch.setattr(wandb.Run, "log", lambda self, values: logged.append(values) or log(self, values))
    cfg = quick.replace(wandb="project", epochs=1, eval_first=False, ranked_lists=1)
    run = do_train(cfg)
    assert list((run.directory / "wandb").glob("offline-run-*-demo-0/*.wandb"))
    settings, *values = logged
    assert settings["project"] == "project" and settings["id"] == "demo-0" and settings["config"] == cfg.to_dict()
    assert settings["resume"] is None and wandb.run is None  # finished
    together = {k: v for entry in values for k, v in entry.items()}
    assert together["train/loss"] == run.history[0]["loss"] and together["epoch"] == 1
    assert together["test_plain/mAP"] == run.history[0]["scores"]["plain"]["mAP"]
    assert isinstance(together["train_batch"], wandb.Image) and isinstance(together["ranked_lists"], wandb.Image)
    logged.clear()
    do_train(cfg.replace(resume=True))
    assert logged[0]["id"] == "demo-0" and logged[0]["resume"] == "allow"

"""Tiny Market-1501-like trees that tests write and train on in seconds."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks gain nothing from threads, and wait for each other's
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))  # as where PlainReID is imported before cv2

import cv2
import numpy as np
import pytest
import torch

import processor.checkpoint
import processor.train
from config import Config

processor.train.SAVE_SHARE = 1e9  # a checkpoint after each epoch, however fast
processor.checkpoint.SHIPPED = Path("none")  # no model where there is no run
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored, by children too


def write_tree(base: Path, train_ids: int = 6, test_ids: int = 4, cameras: int = 3, images: int = 2) -> Path:
    """Identities are colours, cameras brightness: learnable, and small (32 × 16 pixels)."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 200, (train_ids + test_ids + 1, 3))

    def write(folder: str, pid: int, camera: int, number: int, colour: np.ndarray) -> None:
        (base / folder).mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-20, 20, (32, 16, 3))
        picture = np.clip(colour + noise + 10 * camera, 0, 255).astype(np.uint8)
        cv2.imwrite(str(base / folder / f"{pid:04}_c{camera}s1_{number:06}_00.jpg"), picture)

    for i in range(train_ids + test_ids):
        folder = "bounding_box_train" if i < train_ids else "bounding_box_test"
        for camera in range(1, cameras + 1):
            if i >= train_ids:
                write("query", i + 1, camera, 90, colours[i])
            for number in range(images):
                write(folder, i + 1, camera, number, colours[i])
    write("bounding_box_test", 0, 1, 5, colours[-1])
    write("bounding_box_test", -1, 1, 6, colours[-1])
    (base / "bounding_box_test" / "Thumbs.db").write_bytes(b"not an image")
    return base


def draw(path: Path, pid: int, shot: int, camera: int = 0) -> Path:
    """A 32x16 picture whose colours are those of the person."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(pid + 9).integers(30, 220, (4, 1, 3)).repeat(8, 0)
    noise = np.random.default_rng([pid + 9, shot, camera]).normal(8 * camera, 12, (32, 16, 3))
    cv2.imwrite(str(path), np.clip(colour + noise, 0, 255).astype(np.uint8))
    return path


@pytest.fixture(autouse=True)
def denormal_numbers():
    """A run in this process flushes them to zero, which hypothesis refuses."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def market_arrays() -> dict[str, np.ndarray]:
    """Real Market-1501 features with their ids, junk included: qf, gf, qp, gp, qc, gc."""
    file = Path(__file__).resolve().parents[2] / "shared" / "data" / "market1501_osnet_features.npz"
    if not file.is_file():
        pytest.skip(f"{file} is absent: nothing can be checked on real features")
    with np.load(file) as data:
        return {name: data[name] for name in data.files}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A data root that holds a tiny `demo` set, so that nothing has to be rendered."""
    write_tree(tmp_path / "data" / "demo")
    return tmp_path / "data"


def tiny_config(base: Path, **changes: object) -> Config:
    """Settings that train on the tree at BASE/data in a second or two, and log to BASE/log."""
    return Config(
        preset="demo", dataset="demo", data_root=str(base / "data"), log_dir=str(base / "log"), device="cpu",
        height=32, width=16, pad=2, precision="float32", batch_size=8, images_per_id=2, test_batch_size=16, workers=2,
        backbone="mobilenet_v2", weights="none", epochs=3, warmup_epochs=1, steps=(2,), eval_every=2, log_every=2,
        ranked_lists=0,
    ).replace(**changes)  # fmt: skip


@pytest.fixture
def tiny(tree: Path, tmp_path: Path, monkeypatch) -> Config:
    monkeypatch.setenv("REID_DATA", str(tree))  # programs take no place from a checkpoint
    return tiny_config(tmp_path)

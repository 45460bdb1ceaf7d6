"""Files for other programs: each program's own code, in an environment of its own, gives PyTorch's embeddings."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import tiny_config, write_tree
from helpers import ROOT, done, environment, program, refused, save_model

from datasets.augment import normalise
from processor import load_model

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
TARGETS = ["boxmot", "ultralytics", "openvino", "deepsort"]  # in the order of docs/trackers.md
PACKAGES = {  # with what they import, which torch and the packages of this environment do not bring
    "boxmot": ["boxmot==25.0.0", "rich", "gdown<6", "platformdirs"],
    "ultralytics": ["ultralytics==8.4.190", "lap", "ultralytics-thop", "py-cpuinfo"],
    "deepsort": ["deep-sort-realtime==1.3.2", "setuptools<81"],
}
CROPS = [(10, 100, 20, 60), (10, 110, 100, 160), (5, 120, 180, 240)]  # of docs/trackers.md: top, bottom, left, right
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "trackers.md").read_text(), re.DOTALL)
SAVED = """
crops = []
if TARGET == "ultralytics":  # which adds a margin to each box
    crops = ReID._crop_detections(frame, boxes)
np.savez("found.npz", features=np.stack(features), **{str(i): crop for i, crop in enumerate(crops)})
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("trackers")
    write_tree(base / "data" / "demo")
    return base


def made(base: Path, target: str):
    """The program's files in a directory, with a frame of pedestrians; the checkpoint."""
    fits = {"backbone": "resnet18", "height": 48, "width": 24}
    if target == "deepsort":
        fits = {"height": 224, "width": 224, "last_stride": 2, "test_feature": "before"}
    path = save_model(tiny_config(base, **fits))
    folder = base / target
    folder.mkdir()
    people = cv2.imread(str(ROOT / "docs" / "ranked_lists.jpg"))[:600, :1200]
    cv2.imwrite(str(folder / "frame.jpg"), cv2.resize(people, (600, 300), interpolation=cv2.INTER_AREA))
    suffix = {"openvino": "xml", "deepsort": "pt"}.get(target, "onnx")
    words = ("--data-root", base / "nowhere", "--dataset", "market1501", "--log-dir", base / "log")
    shown = done("tools/export_onnx.py", path, "--for", target, *words, "--output", folder / f"{target}.{suffix}")
    assert "random pictures" in shown
    return folder, load_model(path, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_programs_own_code_gives_pytorchs_embeddings(base, target):
    pytest.importorskip("openvino") if target == "openvino" else None
    folder, (model, cfg) = made(base, target)
    code = BLOCKS[TARGETS.index(target)] + f"\nimport numpy as np\nTARGET = {target!r}\n" + SAVED
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1", "YOLO_CONFIG_DIR": str(folder)}
    python = environment(base / "env" / target, PACKAGES[target]) if target in PACKAGES else sys.executable
    command = [python, "-c", code]
    ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    frame, found = cv2.imread(str(folder / "frame.jpg")), np.load(folder / "found.npz")
    crops = [frame[top:bottom, left:right] for top, bottom, left, right in CROPS]
    if target == "ultralytics":
        wider = [found[str(i)] for i in range(3)]
        assert all(a.shape[0] > b.shape[0] - 2 for a, b in zip(wider, crops, strict=True))
        crops = wider
    size = (cfg.data.width, cfg.data.height)
    small = [cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)[..., ::-1].copy() for crop in crops]
    with torch.no_grad():
        expected = model(normalise(torch.from_numpy(np.stack(small))))
    features = torch.from_numpy(found["features"]).flatten(1)
    assert features.shape == expected.shape
    cosine = torch.nn.functional.cosine_similarity(features, expected)
    other = torch.nn.functional.cosine_similarity(features, expected.roll(1, 0))
    assert cosine.min() >= 0.9999 and other.max() < 0.999


def test_what_a_target_cannot_hold_is_refused(base):
    path = save_model(tiny_config(base, backbone="resnet18"))
    words = ("--log-dir", base / "log", "--data-root", base / "data")
    refused(program("tools/export_onnx.py", path, "--for=deepsort", *words), "--backbone mobilenet_v2")
    refused(program("tools/export_onnx.py", path, "--for", "boxmot", "--preprocessing", *words), "--preprocessing")
    refused(program("tools/export_onnx.py", path, "--for", "openvino", "--int8", *words), "--int8")

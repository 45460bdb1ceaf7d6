"""Models in .onnx and .xml files, tested and used in place of checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import done, program, refused, save_model

from config import Config
from datasets.augment import normalise
from datasets.images import read_image
from datasets.make import make_dataset
from processor import FeatureExtractor, load_model
from processor.model_file import FileModel, spread

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402

KINDS = {"f4": TensorProto.FLOAT, "f2": TensorProto.FLOAT16, "u1": TensorProto.UINT8}


def colour_model(path: Path, dims: tuple, kind: str = "f4", last: bool = False, grey: float = 0, **about: str) -> Path:
    """A file whose outputs are a number per image, and the mean colour (B, 3, 1, 1); with `grey` in whole steps
    of 20, less it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["images"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]),
        helper.make_node("ReduceMean", ["images"], ["sum"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Mul", ["mean", "factor"], ["scaled"]),
        helper.make_node("Floor" if grey else "Identity", ["scaled"], ["rounded"]),
        helper.make_node("Sub", ["rounded", "grey"], ["embedding"]),
    ]
    outputs = [("sum", ["batch"]), ("embedding", ["batch", 3, 1, 1])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", KINDS[kind], dims)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [helper.make_tensor(*x) for x in (("grey", 1, [], [grey]), ("factor", 1, [], [1 / 20 if grey else 1]))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, about)
    onnx.save(model, path)
    return path


def test_a_file_gets_the_pixels_that_it_expects_whatever_its_batch_size_layout_and_kind(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 24, 16, 3), dtype=np.uint8)
    images = normalise(torch.from_numpy(pixels))
    zero, one, mean, std = (0.0,) * 3, (1.0,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for settings, expected in (
        ({}, (pixels / 255 - mean) / std),
        ({"file_colour": "bgr"}, (pixels[..., ::-1] / 255 - mean) / std),
        ({"file_scale": 255.0, "file_colour": "bgr"}, pixels[..., ::-1]),
        ({"file_mean": zero, "file_std": one}, pixels / 255),
        ({"file_scale": 2.0, "file_mean": one, "file_std": (0.5, 1, 2)}, (pixels / 127.5 - 1) / (0.5, 1, 2)),
    ):
        for dims in ((1, 3, 24, 16), (3, 3, 24, 16), ("b", 3, 24, 16), ("b", 3, "h", "w"), (2, "h", "w", 3)):
            for kind in ("f4", "f2", "u1"):
                path = colour_model(tmp_path / "it.onnx", dims, kind, last=dims[-1] == 3)
                cfg = Config(height=24, width=16, file_output="embedding", **settings)
                found = FileModel(path, cfg)(images).numpy()
                values = expected if kind != "u1" else pixels[..., :: -1 if settings.get("file_colour") else 1]
                assert found.shape == (5, 3)
                tolerance = 0.02 if kind == "f2" and values.max() < 9 else 0.3 if kind == "f2" else 1e-4
                np.testing.assert_allclose(found, values.mean((1, 2)), rtol=1e-3, atol=tolerance)


@pytest.mark.slow
def test_every_program_takes_a_file_for_a_checkpoint(tiny, tmp_path):
    about = {"colour": "bgr", "scale": "255", "settings": json.dumps({"file_output": "embedding", "dataset": "demo"})}
    path = colour_model(tmp_path / "own.onnx", (2, 3, 32, 16), grey=6, **about)
    words = ("--log-dir", tiny.run.log_dir, "--data-root", tiny.data.data_root)
    assert "warning" not in done("test.py", path, *words, "--flip")
    results = Path(tiny.run.log_dir) / "own" / "results"
    record = json.loads((results / "test_own.onnx_demo_cosine_flip.json").read_text())
    assert record["scores"]["plain"]["mAP"] > 80 and record["settings"]["height"] == 32
    for args in (
        ("get_vis_result.py", path, "--num", 2), ("tools/report.py", path),
        ("tools/extract_features.py", path), ("tools/extract_features.py", path, "--split", "train"),
        ("tools/search.py", "index", "--checkpoint", path),
    ):  # fmt: skip
        done(*args, *words)
    made = {p.name for p in results.parent.iterdir()}
    assert made == {"results", "features_own.onnx_demo", "teacher_demo.npy", "teacher_demo.json", "gallery"}
    rows = np.load(results.parent / "teacher_demo.npy")
    expected = [read_image(s.path, 32, 16)[..., ::-1].mean((0, 1)) for s in make_dataset(tiny).train]
    np.testing.assert_allclose(rows, np.floor(np.divide(expected, 20)) - 6, atol=1e-3)
    feature = FeatureExtractor(path, file_colour="rgb")(make_dataset(tiny).train[0].path)[0].numpy()
    np.testing.assert_allclose(feature, rows[0][::-1] / np.linalg.norm(rows[0]), atol=1e-5)
    assert load_model(path, "cpu")[1].data.width == 16
    shown = done("test.py", path, save_model(tiny), *words, "--file-colour", "bgr")
    assert "settings that differ" not in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("plain ")]
    assert len(rows) == 2 + 1 and rows[-1][1:3] == [str(path), str(tiny.run.log_dir) + "/demo/last.pth"], rows
    refused(program("tools/heatmap.py", path, *words), path, "checkpoint")


def test_the_preprocessing_that_a_file_lacks_is_found_by_trying(tiny, tmp_path):
    path = colour_model(tmp_path / "own.onnx", ("b", 3, "h", "w"), grey=6)
    words = (path, "--log-dir", tiny.run.log_dir, "--data-root", tiny.data.data_root, "--file-output", "embedding")
    words += ("--height", 32, "--width", 16)
    hint = "--file-scale 255 --file-mean 0 0 0 --file-std 1 1 1"
    assert hint in done("test.py", *words, "--file-mean", 0, 0, 0, "--file-std", 1, 1, 1)
    assert "warning" not in done("test.py", *words, "--file-scale", 255, "--file-colour", "bgr")
    Path(f"{path}.json").write_text('{"metadata": {"colour": "bgr", "scale": 255}}')
    assert "warning" not in done("test.py", *words)


def test_files_that_are_no_such_model_are_refused(tiny, tmp_path):
    words = ("--log-dir", tiny.run.log_dir, "--data-root", tiny.data.data_root)
    for suffix in ("onnx", "xml"):
        (tmp_path / f"it.{suffix}").write_bytes(b"nothing")
        refused(program("test.py", tmp_path / f"it.{suffix}", *words), f"it.{suffix}")
    path = colour_model(tmp_path / "own.onnx", (2, 3, 32, 16))
    refused(program("test.py", path, *words, "--height", 64), "own.onnx", "--height")
    refused(program("test.py", path, *words, "--file-output", "logits"), "logits", "embedding")
    refused(program("test.py", path, *words, "--file-mean", 1, 2), "--file-mean")
    Path(f"{path}.json").write_text("{")
    refused(program("test.py", path, *words), "own.onnx.json")
    assert spread([1, 2, 3, 4, 5], 3) == [1, 3, 5] and spread([], 3) == []

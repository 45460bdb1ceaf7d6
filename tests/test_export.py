"""Exported files compared with the model that they are made from, and tools/export_onnx.py as people run it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import tiny_config, write_tree
from helpers import ROOT, program, refused, save_model
from torch import nn

import tools.export.graph
import tools.export_onnx
from config import Config
from datasets.augment import normalise, to_pixels
from datasets.images import read_image
from model import build_model
from model.attention import ATTENTION
from model.reid import Branch, ReIDModel
from processor.model_file import open_onnx
from tools.export.graph import Embed, Preprocess, onnx_bytes, to_onnx
from tools.export_onnx import lowest_cosine

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def small(height: int = 64, width: int = 32, stages: int = 2, layers: int | None = None, **settings) -> ReIDModel:
    """A random model in evaluation mode, its batch norms as after some training; of its backbone only the first stages
    and the first layers of these, because writing ONNX takes long."""
    torch.manual_seed(0)
    cfg = Config(height=height, width=width, weights="none", **settings)
    model = build_model(cfg, 3)
    if cfg.model.branches == "one":
        model.backbone.stages = [stage[:layers] for stage in model.backbone.stages[:stages]]
        model.branches[0] = Branch(cfg, model.backbone.stage_channels[stages - 1], 3)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return model.eval()


def opened(content: bytes):
    """A file as a function of tensors."""
    network = open_onnx(content)
    return lambda images: torch.from_numpy(network.run(images.contiguous().numpy())[0])


def check_onnx(model: ReIDModel, height: int = 64, width: int = 32, **options) -> onnx.ModelProto:
    """The ONNX file gives the model's embeddings for a batch of one and of five."""
    proto = to_onnx(Embed(model, **options), torch.zeros(2, 3, height, width), 1, "it")
    run, images = opened(onnx_bytes(proto, {})), torch.randn(5, 3, height, width)
    with torch.no_grad():
        reference = model(images)
        reference = nn.functional.normalize(reference) if options.get("normalise") else reference
    for batch in (images[:1], images):
        found, expected = run(batch).float(), reference[: len(batch)]
        assert lowest_cosine(found, expected) >= 0.99999
        torch.testing.assert_close(found.norm(dim=1), expected.norm(dim=1), rtol=0.01, atol=1e-6)
    return proto


@pytest.mark.slow
def test_a_member_of_each_family_gives_pytorchs_embeddings_as_onnx():
    for backbone, settings in {
        "resnet18_ibn_b": {}, "osnet_ain_x0_25": {"height": 128, "width": 64, "stages": 1}, "mobilenet_v3_small": {},
        "shufflenet_v2_x0_5": {}, "efficientnet_b0": {}, "regnet_y_400mf": {}, "convnext_tiny": {},
        "swin_t": {"stages": 1}, "vit_b_16": {"stages": 1, "layers": 1},
    }.items():  # fmt: skip
        model = small(backbone=backbone, **settings)
        check_onnx(model, settings.get("height", 64), settings.get("width", 32))


@pytest.mark.slow
def test_attention_branches_and_generalised_means_are_exported():
    torch.manual_seed(0)
    modules = nn.Sequential(*(make(16, 0.25) for make in ATTENTION.values())).eval()
    for parameter in modules.parameters():
        nn.init.normal_(parameter, std=0.2)  # some are 0 at the start, so that the module does nothing
    run = opened(onnx_bytes(to_onnx(modules, torch.zeros(2, 16, 8, 4), 1, "them"), {}))
    maps = torch.randn(5, 16, 8, 4)
    with torch.no_grad():
        assert not torch.allclose(modules(maps), maps, atol=0.1)
        torch.testing.assert_close(run(maps), modules(maps), rtol=1e-4, atol=1e-5)
    check_onnx(small(height=96, backbone="resnet18", branches="pcb", pooling="gem"), 96, normalise=True)


@pytest.mark.slow
def test_half_precision_holds_float16_weights_takes_float32_and_leaves_the_model_alone():
    model = small(stages=1, backbone="resnet18", pooling="gem", attention="nonlocal", attention_stages=(1,))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = check_onnx(model, half=True)
    kinds = {tensor.data_type for tensor in file.graph.initializer if np.prod(tensor.dims) > 64}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert file.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shrink", ["area", "bilinear"])
def test_pictures_of_any_size_are_resized_as_cv2_does_it_also_in_the_graph(tmp_path, shrink):
    preprocess = Preprocess(64, 32, shrink)
    example = torch.zeros(2, 37, 41, 3, dtype=torch.uint8)
    run = opened(onnx_bytes(to_onnx(preprocess, example, 3, "it"), {}))
    sizes = [(128, 64), (64, 32), (192, 96), (77, 51)]
    exact = sizes if shrink == "area" else []
    for size in [*sizes, (40, 20), (56, 90), (96, 20), (1, 1), (1, 90), (33, 1)]:
        picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "it.png"), picture[..., ::-1])
        ours = torch.from_numpy(read_image(tmp_path / "it.png", 64, 32, shrink=shrink))
        batch = torch.from_numpy(picture)[None]
        difference = (preprocess.resize(batch)[0] - ours).abs()
        assert difference.max() <= 1, size
        assert difference.mean() < (0.001 if size in exact else 0.15), size  # cv2 blends the others in integers
        level = 1.01 / 255 / 0.224
        assert (preprocess(batch) - normalise(ours[None])).abs().max() < level
        assert (run(batch.repeat(2, 1, 1, 1)) - preprocess(batch)).abs().max() < level
    assert (to_pixels(normalise(ours[None])) == ours[None].numpy()).all()


# ---- the program


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Config:
    """Settings of an untrained ResNet18 whose checkpoint lies in log/demo; test pictures have several sizes."""
    root = tmp_path_factory.mktemp("export")
    write_tree(root / "data" / "demo")
    for number, path in enumerate(sorted((root / "data" / "demo" / "query").iterdir())):
        if number % 3 == 0:
            cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (20 + number, 50)))
    cfg = tiny_config(root, backbone="resnet18")
    save_model(cfg)
    return cfg


def export(cfg: Config, *args: object):
    return program("tools/export_onnx.py", *args, "--log-dir", cfg.run.log_dir, "--data-root", cfg.data.data_root)


def read_record(shown, path: Path) -> dict:
    """The JSON next to a file that was written."""
    assert shown.returncode == 0, shown.stderr
    assert f"written to {path} and {path}.json" in shown.stdout
    assert not list(path.parent.glob(".*.tmp"))
    assert str(ROOT).encode() not in path.read_bytes(), "paths of this machine"
    record = json.loads(Path(f"{path}.json").read_text())
    assert record["bytes"] == path.stat().st_size and record["check"]["crops"] == 37
    return record


@pytest.mark.slow
def test_without_an_argument_the_latest_model_becomes_a_checked_file(trained):
    path = Path(trained.run.log_dir) / "demo" / "last.onnx"
    record = read_record(export(trained), path)
    assert record["check"]["lowest_cosine"] >= 0.9999 and "scores" not in record
    session = ort.InferenceSession(path)
    assert [x.shape for x in session.get_inputs()] == [["batch", 3, 32, 16]]
    assert [x.shape for x in session.get_outputs()] == [["batch", 512]]
    about = session.get_modelmeta().custom_metadata_map
    assert about == record["metadata"]
    assert (about["height"], about["width"], about["embedding_dim"]) == ("32", "16", "512")
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406] and about["precision"] == "float32"
    assert about["checkpoint"] == str(path.with_name("last.pth"))
    assert (about["colour"], about["scale"]) == ("rgb", "1.0") and "area" in about["resize"]
    words = ("--log-dir", trained.run.log_dir, "--data-root", trained.data.data_root)
    rows = [program("test.py", name, *words).stdout.splitlines()[3] for name in (path, "demo")]
    assert rows[0] == rows[1] and rows[0].startswith("plain")  # the file is tested like its checkpoint
    refused(export(trained, path), path)


@pytest.mark.slow
def test_int8_quantises_the_backbone_scores_it_and_takes_pictures_of_any_size(trained, tmp_path):
    path = Path(trained.run.log_dir) / "demo" / "last_preprocessing_normalise_int8.onnx"
    record = read_record(export(trained, "demo", "--int8", "--preprocessing", "--normalise"), path)
    assert record["bytes"] < 0.4 * record["pytorch_bytes"]
    before, after = record["scores"]["PyTorch"], record["scores"]["file"]
    assert before["valid_queries"] == after["valid_queries"] == 12
    assert record["change"] == {key: pytest.approx(after[key] - before[key], abs=1e-3) for key in ("mAP", "rank1")}
    assert 0.5 < record["check"]["lowest_cosine"] < 1
    nodes = onnx.load(path).graph.node
    narrowed = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert [node.input[1] in narrowed for node in convolutions] == [False] * 4 + [True] * (len(convolutions) - 4)
    session = ort.InferenceSession(path)
    assert [(x.type, x.shape) for x in session.get_inputs()] == [("tensor(uint8)", ["batch", "height", "width", 3])]
    for size in ((1, 1), (7, 90), (32, 16), (100, 40)):
        pictures = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
        (three,) = session.run(None, {"images": pictures})
        (one,) = session.run(None, {"images": pictures[1:2]})
        assert three.shape == (3, 512) and np.linalg.norm(three, axis=1) == pytest.approx(1, abs=1e-5)
        assert three[1] == pytest.approx(one[0], abs=1e-4)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "use.md").read_text(), re.DOTALL)
    code = next(block for block in blocks if "onnxruntime" in block)
    shutil.copy(path, tmp_path / "model.onnx")
    (tmp_path / "pictures").mkdir()
    for name, colour in (("red", (0, 0, 250)), ("blue", (250, 0, 0)), ("green", (0, 250, 0))):
        cv2.imwrite(str(tmp_path / "pictures" / f"{name}.jpg"), np.full((40, 20, 3), colour, np.uint8))
    cv2.imwrite(str(tmp_path / "query.jpg"), np.full((70, 30, 3), (0, 0, 245), np.uint8))
    command = [sys.executable, "-c", f"import sys; sys.modules['torch'] = None\n{code}"]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout.splitlines()
    assert len(lines) == 3 and lines[0].endswith("red.jpg") and float(lines[0].split()[0]) > 0.98


@pytest.mark.slow
def test_torch_export_is_saved_opened_again_and_scored_in_half_precision(trained, tmp_path):
    path = tmp_path / "new" / "it.pt2"
    shown = export(trained, "--format", "export", "--preprocessing", "--half", "--output", path, "--test-ids", 3)
    assert shown.returncode == 0, shown.stderr
    assert "first 3 of 4 identities" in shown.stdout
    record = json.loads(Path(f"{path}.json").read_text())
    assert 0.999 < record["check"]["lowest_cosine"] <= 1 and set(record["change"]) == {"mAP", "rank1"}
    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["metadata.json"]) == record["metadata"]
    pictures = torch.randint(0, 256, (1, 50, 23, 3), dtype=torch.uint8)
    assert module(pictures).shape == (1, 512) and module(pictures).dtype == torch.float32


def test_a_file_with_other_embeddings_is_not_kept_and_bad_input_is_refused(trained, tmp_path, monkeypatch):
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 16, 512))
    other = onnx_bytes(to_onnx(other, torch.zeros(2, 3, 32, 16), 1, "other"), {})
    old = tmp_path / "it.onnx"
    old.write_bytes(b"as it was")
    with monkeypatch.context() as patch:
        patch.setattr(tools.export.graph, "to_onnx", lambda *_: None)
        patch.setattr(tools.export.graph, "onnx_bytes", lambda *_: other)
        refused(export(trained, "--output", old), "not kept", "0.9999")
    assert [p.name for p in tmp_path.iterdir()] == ["it.onnx"] and old.read_bytes() == b"as it was"
    (tmp_path / "folder.onnx").mkdir()
    for args, word in (
        (["--half", "--int8"], "--half"), (["--int8", "--format", "export"], "--int8"),
        (["--output", "it.pth"], "it.pth"), (["--output", tmp_path / "folder.onnx"], "folder.onnx"),
    ):  # fmt: skip
        refused(export(trained, *args), word)
    nowhere = ("--data-root", tmp_path, "--log-dir", trained.run.log_dir, "--dataset", "market1501")
    refused(program("tools/export_onnx.py", *nowhere, "--half"), tmp_path, "market1501")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            refused(export(trained), package, "pip install")

"""Exported files against the model that they are made from, tools/export_onnx.py as people run it, and the example."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_tree
from helpers import ROOT, program, refused, save_model
from torch import nn

from config import Config
from datasets.base import ReIDDataset
from datasets.images import read_image
from model import build_model
from model.attention import ATTENTION
from model.reid import Branch, ReIDModel
from processor import export, export_check
from processor.export import Embed, finish, to_onnx, trace
from processor.export_check import lowest_cosine, refuse_unlike
from processor.export_input import Preprocess
from processor.export_run import OnnxRunner
from utils.errors import UserError

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


def small(height: int = 64, width: int = 32, stages: int = 2, layers: int | None = None, **settings) -> ReIDModel:
    """A random model in evaluation mode, its batch norms as after some training; of its backbone the first stages and
    the first layers of these, because writing ONNX takes long."""
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


def as_onnx(embed: nn.Module, height: int = 64, width: int = 32) -> onnx.ModelProto:
    return to_onnx(embed, torch.zeros(2, 3, height, width), 1, "it")


def same(run, model: nn.Module, height: int = 64, width: int = 32, least: float = 0.99999) -> None:
    """Embeddings of a batch of one and of one of five are the model's, as long as these."""
    images = torch.randn(5, 3, height, width)
    with torch.no_grad():
        reference = model(images)
        for batch in (images[:1], images):
            found = run(batch).float()
            assert lowest_cosine(found, reference[: len(batch)]) >= least
            torch.testing.assert_close(found.norm(dim=1), reference[: len(batch)].norm(dim=1), rtol=0.01, atol=1e-6)


FAMILIES = {
    "resnet18_ibn_b": {},
    "osnet_ain_x0_25": {"height": 128, "width": 64, "stages": 1},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
    "convnext_tiny": {},
    "swin_t": {"stages": 1},
    "vit_b_16": {"stages": 1, "layers": 1},
}  # ResNet is that of the other tests


@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_member_of_each_family_gives_pytorchs_embeddings_as_onnx(backbone):
    settings = FAMILIES[backbone]
    size = settings.get("height", 64), settings.get("width", 32)
    model = small(backbone=backbone, **settings)
    same(OnnxRunner(finish(as_onnx(Embed(model), *size), {})), model, *size)


def test_all_attention_modules_give_pytorchs_maps_as_onnx():
    torch.manual_seed(0)
    modules = nn.Sequential(*(make(16, 0.25) for make in ATTENTION.values())).eval()
    for parameter in modules.parameters():
        nn.init.normal_(parameter, std=0.2)  # some are 0 at the start, so that the module does nothing
    run = OnnxRunner(finish(to_onnx(modules, torch.zeros(2, 16, 8, 4), 1, "them"), {}))
    maps = torch.randn(5, 16, 8, 4)
    with torch.no_grad():
        assert not torch.allclose(modules(maps), maps, atol=0.1)
        torch.testing.assert_close(run(maps), modules(maps), rtol=1e-4, atol=1e-5)


def test_branches_and_generalised_means_are_exported_and_normalised_if_asked():
    model = small(height=96, backbone="resnet18", branches="pcb", pooling="gem")
    run = OnnxRunner(finish(as_onnx(Embed(model, normalise=True), 96), {}))
    images = torch.randn(3, 3, 96, 32)
    with torch.no_grad():
        torch.testing.assert_close(run(images), nn.functional.normalize(model(images)), rtol=1e-4, atol=1e-5)
        assert model(images).norm(dim=1).mean() > 2  # of six parts, so the file must have done it
    assert len(model.branches) == 6 and run(images).shape == (3, 6 * 256)


def test_half_precision_holds_float16_weights_takes_float32_and_leaves_the_model_alone():
    model = small(stages=1, backbone="resnet18", pooling="gem", attention="nonlocal", attention_stages=(1,))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = as_onnx(Embed(model, half=True))
    kinds = {tensor.data_type for tensor in file.graph.initializer if np.prod(tensor.dims) > 64}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert file.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    same(OnnxRunner(finish(file, {})), model)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == before[name].dtype for name in before)


def test_what_cannot_be_exported_is_told_in_one_sentence(monkeypatch):
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    class Rare(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(UserError, match=r"^PyTorch cannot export a\.pth \(.+\); another --backbone"):
        trace(Asks(), torch.zeros(2, 3), 1, "a.pth")
    with pytest.raises(UserError, match=r"^b\.pth cannot be written as ONNX \(.+\); --format export") as caught:
        to_onnx(Rare(), torch.zeros(2, 3, 3), 1, "b.pth")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(export, "ONNX_BYTES", 4)
    with pytest.raises(UserError, match="beyond the 2 GB"):
        to_onnx(nn.Linear(3, 3), torch.zeros(2, 3), 1, "c.pth")


SIZES = [(128, 64), (64, 32), (192, 96), (77, 51), (40, 20), (56, 90), (96, 20), (200, 20), (1, 1), (1, 90), (33, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_any_size_are_resized_as_cv2_does_it(tmp_path, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "it.png"), picture[..., ::-1])
    ours = read_image(tmp_path / "it.png", 64, 32)
    preprocess = Preprocess(64, 32)
    difference = np.abs(preprocess.resize(torch.from_numpy(picture)[None])[0].numpy() - ours)
    areas = size[0] >= 64 and size[1] >= 32  # means of areas, which may be a half but for float32's last digits
    assert difference.max() <= areas and (difference > 0).mean() < 0.001
    standard = (torch.from_numpy(ours).float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    found = preprocess(torch.from_numpy(picture)[None])
    assert found.shape == (1, 3, 64, 32)
    assert (found[0].permute(1, 2, 0) - standard).abs().max() < 1.01 / 255 / 0.224


def test_the_lowest_cosine_is_of_the_worst_row_and_nothing_hides_a_nan():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert lowest_cosine(rows, rows) == 1  # a row of zeros that is equal is no error
    assert lowest_cosine(rows[:2] * 3, rows[:2]) == pytest.approx(1)
    assert lowest_cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), rows[:2]) == pytest.approx(0.5**0.5)
    assert lowest_cosine(torch.zeros(1, 2), rows[:1]) == 0
    for precision in ("float32", "half", "int8"):
        with pytest.raises(UserError, match="not finite"):
            refuse_unlike({"crops": 3, "lowest_cosine": lowest_cosine(rows * torch.nan, rows)}, precision)
    with pytest.raises(UserError, match=r"of 3 test images, the lowest cosine is 0\.999000, below 0\.9999"):
        refuse_unlike({"crops": 3, "lowest_cosine": 0.999}, "float32")
    refuse_unlike({"crops": 3, "lowest_cosine": 0.9999}, "float32")
    refuse_unlike({"crops": 3, "lowest_cosine": 0.5}, "int8")


# ---- the tool


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Config:
    """Settings of an untrained ResNet18 whose checkpoint lies in log/demo; test pictures have several sizes."""
    root = tmp_path_factory.mktemp("export")
    write_tree(root / "data" / "demo")
    for number, path in enumerate(sorted((root / "data" / "demo" / "query").iterdir())):
        if number % 3 == 0:
            cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (20 + number, 50)))
    cfg = Config(
        preset="demo", dataset="demo", data_root=str(root / "data"), log_dir=str(root / "log"), device="cpu",
        height=32, width=16, backbone="resnet18", weights="none", test_batch_size=16, workers=2,
    )  # fmt: skip
    save_model(cfg)
    return cfg


def exported(cfg: Config, *args: object):
    return program("tools/export_onnx.py", *args, "--log-dir", cfg.run.log_dir)


def checked(shown, path: Path) -> dict:
    """What is beside a file that was written, and nothing else was."""
    assert shown.returncode == 0, shown.stderr
    assert f"written to {path} and {path}.json" in shown.stdout
    assert not list(path.parent.glob(".*.tmp"))
    assert str(ROOT).encode() not in path.read_bytes(), "paths of this machine"
    record = json.loads(Path(f"{path}.json").read_text())
    assert record["bytes"] == path.stat().st_size and record["check"]["crops"] == 37
    assert [row["batch"] for row in record["latency"]] == [1, 16] and record["hardware"] in shown.stdout
    return record


@pytest.fixture(scope="module")
def default(trained):
    """The file that the tool writes without an argument, and what it said."""
    return exported(trained), Path(trained.run.log_dir) / "demo" / "last.onnx"


@pytest.fixture(scope="module")
def int8(trained):
    """The same on 8 bits, with the preprocessing inside."""
    path = Path(trained.run.log_dir) / "demo" / "last_preprocessing_normalise_int8.onnx"
    return exported(trained, "demo", "--int8", "--preprocessing", "--normalise"), path


def test_without_an_argument_the_newest_runs_model_becomes_a_checked_file(default):
    shown, path = default
    record = checked(shown, path)
    assert record["check"]["lowest_cosine"] >= 0.9999 and "scores" not in record
    session = ort.InferenceSession(path)
    assert [x.shape for x in session.get_inputs()] == [["batch", 3, 32, 16]]
    assert [x.shape for x in session.get_outputs()] == [["batch", 512]]
    about = session.get_modelmeta().custom_metadata_map
    assert about == record["metadata"]
    assert (about["height"], about["width"], about["embedding_dim"]) == ("32", "16", "512")
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406] and json.loads(about["std"]) == [0.229, 0.224, 0.225]
    assert about["checkpoint"] == str(path.with_name("last.pth")) and about["precision"] == "float32"


def test_int8_quantises_the_backbone_and_tells_what_that_costs(int8, default):
    shown, path = int8
    record = checked(shown, path)
    assert path.stat().st_size < 0.4 * default[1].stat().st_size
    before, after = record["scores"]["PyTorch"], record["scores"]["file"]
    assert before["valid_queries"] == after["valid_queries"] == 12
    assert record["change"] == {key: pytest.approx(after[key] - before[key], abs=1e-3) for key in ("mAP", "rank1")}
    assert "change: mAP" in shown.stdout and 0.5 < record["check"]["lowest_cosine"] < 1
    assert record["check"]["largest_difference_grey_levels"] <= 1
    nodes = onnx.load(path).graph.node
    narrowed = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert [node.input[1] in narrowed for node in convolutions] == [False] * 4 + [True] * (len(convolutions) - 4)
    first = next(i for i, node in enumerate(nodes) if node.op_type == "QuantizeLinear")
    assert all(not node.name.startswith("preprocessing/") for node in nodes[first:])


def test_a_file_with_preprocessing_takes_pictures_of_any_size_and_any_number(int8):
    session = ort.InferenceSession(int8[1])
    assert [(x.type, x.shape) for x in session.get_inputs()] == [("tensor(uint8)", ["batch", "height", "width", 3])]
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 90), (32, 16), (100, 40)):
        pictures = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
        (three,) = session.run(None, {"images": pictures})
        (one,) = session.run(None, {"images": pictures[1:2]})
        assert three.shape == (3, 512) and np.linalg.norm(three, axis=1) == pytest.approx(1, abs=1e-5)
        assert three[1] == pytest.approx(one[0], abs=1e-4)


def test_the_graphs_pictures_are_those_of_the_module():
    preprocess = Preprocess(48, 20)
    example = torch.zeros(2, 37, 41, 3, dtype=torch.uint8)
    run = OnnxRunner(finish(to_onnx(preprocess, example, 3, "it"), {}))
    for size in (*SIZES, (37, 41)):
        pictures = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
        difference = (run(pictures) - preprocess(pictures)).abs()
        assert difference.max() < 1.01 / 255 / 0.224  # a grey level, where the mean of an area is a half
        assert (difference > 1e-5).float().mean() < 0.005


def test_torch_export_is_saved_opened_again_and_scored_in_half_precision(trained, tmp_path):
    path = tmp_path / "new" / "it.pt2"
    shown = exported(trained, "--format", "export", "--preprocessing", "--half", "--output", path, "--test-ids", 3)
    assert shown.returncode == 0, shown.stderr
    assert "first 3 of 4 identities" in shown.stdout  # a cut split is said where its scores are
    record = json.loads(Path(f"{path}.json").read_text())
    assert 0.999 < record["check"]["lowest_cosine"] <= 1 and set(record["change"]) == {"mAP", "rank1"}
    assert str(ROOT).encode() not in path.read_bytes()
    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["metadata.json"]) == record["metadata"]
    pictures = torch.randint(0, 256, (1, 50, 23, 3), dtype=torch.uint8)
    assert module(pictures).shape == (1, 512) and module(pictures).dtype == torch.float32


def test_a_file_that_gives_other_embeddings_is_not_left_there(trained, default, tmp_path, monkeypatch):
    torch.manual_seed(1)
    other = finish(as_onnx(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 16, 512)), 32, 16), {})
    old = tmp_path / "it.onnx"
    old.write_bytes(b"as it was")
    for name in ("trace", "to_onnx"):  # which take long
        monkeypatch.setattr(export, name, lambda *_: None)
    monkeypatch.setattr(export, "finish", lambda *_: other)
    refused(exported(trained, "--output", old), "not kept", "of 37 test images", "below 0.9999")
    assert [p.name for p in tmp_path.iterdir()] == ["it.onnx"] and old.read_bytes() == b"as it was"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--half", "--int8"], ["either --half or --int8"]),
        (["--int8", "--format", "export"], ["--int8", "ONNX only"]),
        (["--output", "it.pth"], ["it.pth", ".onnx"]),
        (["--output", "it.onnx", "--format", "export"], ["it.onnx", ".pt2"]),
        (["--output", "folder.onnx"], ["folder.onnx", "directory"]),
        (["nobody"], ["nobody", "newest run"]),
    ],
)
def test_bad_settings_are_refused_before_anything_is_done(trained, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    refused(exported(trained, *args), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_told_with_the_command_that_installs_it(trained, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    refused(exported(trained), package, "pip install onnx onnxscript onnxruntime")


def test_ranges_for_int8_come_from_training_pictures_that_can_be_read(trained, tmp_path, monkeypatch):
    root = tmp_path / "data"
    train = write_tree(root / "demo", train_ids=2) / "bounding_box_train"
    bad = sorted(train.iterdir())[1]
    bad.write_bytes(b"no picture")
    cfg = trained.replace(data_root=str(root))
    with pytest.raises(UserError, match=bad.name):
        export_check.calibration_crops(cfg)
    crops = export_check.calibration_crops(cfg.replace(on_bad_image="skip"))
    assert crops.shape == (11, 3, 32, 16) and crops.dtype == np.float32
    monkeypatch.setattr(export_check, "make_dataset", lambda cfg: ReIDDataset("tests"))
    with pytest.raises(UserError, match="--int8 needs pictures of the training split, and tests has none"):
        export_check.calibration_crops(cfg)


# ---- the example


def example(*args: object) -> subprocess.CompletedProcess:
    """examples/onnx_search.py in a process of its own that cannot import PyTorch."""
    start = (
        "import sys, runpy; sys.modules.update(torch=None, onnx=None); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", start, str(ROOT / "examples" / "onnx_search.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_the_example_finds_the_nearest_pictures_without_pytorch(int8, trained, tmp_path):
    people = tmp_path / "people" / "deep"
    people.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, colour in (("red", (0, 0, 250)), ("blue", (250, 0, 0)), ("green", (0, 250, 0))):
        picture = np.clip(rng.integers(-5, 6, (40, 20, 3)) + np.array(colour), 0, 255).astype(np.uint8)
        cv2.imwrite(str(people / f"{name}.png"), picture)
    (people / "notes.txt").write_text("no picture")
    query = tmp_path / "query.png"
    cv2.imwrite(str(query), cv2.resize(cv2.imread(str(people / "red.png")), (30, 70)))
    shown = example(int8[1], tmp_path / "people", query)
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert len(lines) == 3 and lines[0][1].endswith("red.png") and float(lines[0][0]) > 0.98
    assert [float(line[0]) for line in lines] == sorted((float(line[0]) for line in lines), reverse=True)


def test_the_example_says_what_is_wrong(int8, default, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    nothing = example(int8[1], tmp_path, tmp_path / "notes.txt")
    assert nothing.returncode == 1 and "no picture" in nothing.stderr and "Traceback" not in nothing.stderr
    plain = example(default[1], tmp_path, tmp_path / "notes.txt")
    assert plain.returncode == 1 and "--preprocessing" in plain.stderr and "Traceback" not in plain.stderr

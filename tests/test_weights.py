"""Weights files of any project: found by one rule, or refused, with a report and a note."""

import logging
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fails, filled, program

from config import Config
from model import ReIDModel, find_backbone, make_model
from model.weights import load_backbone
from processor.train import do_train
from utils.errors import UserError


def config(backbone: str = "resnet18", **settings) -> Config:
    return Config(backbone=backbone, height=64, width=32, **{"weights": "none"} | settings)


def net(name: str = "resnet18", **settings) -> torch.nn.Module:
    return find_backbone(name)(config(name, **settings))


def save(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


def renamed(model: ReIDModel, **names: str) -> dict[str, torch.Tensor]:
    """The tensors of a model of one branch, with prefixes instead of the names of its parts; those not named are left
    out."""
    parts = {"backbone": model.backbone, "pool": model.pool, "fc": model.branches[0].fc, "neck": model.branches[0].neck}
    return {f"{names[part]}{k}": v for part in names for k, v in parts[part].state_dict().items()}


def test_prefix_and_container_are_found_whatever_they_are_called(tmp_path):
    small = "shufflenet_v2_x0_5"
    source = net(small).state_dict()
    adam = {"state": {0: {"exp_avg": torch.zeros(512)}}, "param_groups": [{"lr": 0.1}]}
    for prefix in ("", "base.", "model.backbone.", "_orig_mod.", "module.encoder_q.", "a.b.c.d.e."):
        for keys in ((), ("state_dict",), ("net", "params")):
            content = {prefix + k: v.half() if v.is_floating_point() else v for k, v in source.items()}
            for key in reversed(keys):
                content = {"epoch": 3, "optimizer": adam, key: content}
            report = load_backbone(target := net(small), save(tmp_path / "w.pth", content))
            assert report.found == {"backbone": "".join(f"{key}." for key in keys) + prefix}
            assert (len(report.loaded), report.missing, report.skipped) == (len(source), [], [])
            for name, tensor in target.state_dict().items():
                assert torch.equal(tensor, source[name].half().to(tensor.dtype)), (prefix, keys, name)


def test_of_several_copies_the_shortest_path_then_the_first_is_loaded_with_its_own_head(tmp_path):
    theirs, others = (filled(make_model(config(), 2)).float() for _ in range(2))
    others.backbone.conv1.weight.data += 1
    names = {"backbone": "backbone.", "neck": "head.bn."}
    for chosen, other in (("model", "model_ema"), ("teacher", "student"), ("state", "training_state")):
        content = {chosen: renamed(theirs, **names), other: renamed(others, **names)}
        if chosen == "state":
            content = dict(reversed(content.items()))
        model = make_model(config(weights=save(tmp_path / "w.pth", content)), 2)
        assert model.loaded.found == {"backbone": f"{chosen}.backbone.", "neck": f"{chosen}.head.bn."}
        assert torch.equal(model.backbone.conv1.weight, theirs.backbone.conv1.weight)
        assert all(name.startswith(f"{other}.") for name in model.loaded.skipped) and f"{other}." in str(model.loaded)
    assert model.loaded.source in str(model.loaded) and "120 tensors" in str(model.loaded)


@pytest.mark.parametrize(
    "project", ["fast-reid", "fast-reid embedding", "Bag of Tricks", "layumi", "torchreid", "OML", "our own"]
)
def test_files_of_other_projects_give_their_features(tmp_path, project):
    """Each in the layout of the project's own code, see docs/models.md."""
    no_neck, linear = {"neck": "none"}, {"embedding_dim": 24, "embedding": "linear"}
    settings, names, classifier = {
        "fast-reid": (
            {"stem": "ceil", "pooling": "gem"},
            {"backbone": "backbone.", "pool": "heads.pool_layer.", "neck": "heads.bottleneck.0."}, "heads.weight",
        ),
        "fast-reid embedding": (
            {"stem": "ceil", **linear},
            {"backbone": "backbone.", "fc": "heads.bottleneck.0.", "neck": "heads.bottleneck.1."}, "heads.weight",
        ),
        "Bag of Tricks": ({"stem": "no_relu"}, {"backbone": "base.", "neck": "bottleneck."}, "classifier.weight"),
        "layumi": (
            {"last_stride": 2, **linear},
            {"backbone": "model.", "fc": "classifier.add_block.0.", "neck": "classifier.add_block.1."},
            "classifier.classifier.0.weight",
        ),
        "torchreid": (
            {"embedding_dim": 24, "metric": "euclidean", **no_neck}, {"backbone": "", "fc": "fc."}, "classifier.weight",
        ),
        "our own": (
            {"embedding_dim": 24}, {"backbone": "backbone.", "fc": "branches.0.fc.", "neck": "branches.0.neck."},
            "branches.0.classifier.weight",
        ),
        "OML": ({"last_stride": 2, **no_neck}, {"backbone": "model.model."}, "criterion.weight"),
    }[project]  # fmt: skip
    theirs = filled(make_model(config(**settings), 2)).float()
    for name, tensor in theirs.state_dict().items():
        if name == "pool.p":
            tensor.fill_(2.0)
        if name == "branches.0.fc.bias" and project.startswith("fast"):
            tensor.zero_()
    state = renamed(theirs, **names) | {classifier: torch.zeros(70, theirs.embedding_dim)}
    if project == "fast-reid embedding":  # a convolution without bias
        del state["heads.bottleneck.0.bias"]
        state["heads.bottleneck.0.weight"] = state["heads.bottleneck.0.weight"][..., None, None]
    if project == "fast-reid":
        state["heads.pool_layer.p"] = state["heads.pool_layer.p"][None]
    wrapped = {"fast": {"model": state}, "torc": {"state_dict": state, "rank1": np.float32(0.9)}}
    wrapped |= {"OML": {"state_dict": state}, "our ": {"model": state}}
    path = save(tmp_path / "theirs.pth", wrapped.get(project[:4], state))
    ours = make_model(config(**settings, weights=path), 2).eval()
    images = torch.randn(4, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs.eval()(images))
    assert ours.loaded.found.keys() == names.keys() and not ours.loaded.note and not ours.loaded.missing
    assert [name.endswith(classifier) for name in ours.loaded.skipped] == [True]


def test_a_neck_or_an_embedding_that_is_not_there_is_noted(tmp_path):
    theirs = filled(make_model(config(), 2)).float()
    plain = renamed(theirs, backbone="base.")
    several = plain | {f"head{i}.{k}": v for i in (1, 2) for k, v in theirs.branches[0].neck.state_dict().items()}
    between = renamed(theirs, backbone="base.", neck="bn.") | {"projector.weight": torch.zeros(512, 512)}
    for state in (plain, several, between):
        path = save(tmp_path / "w.pth", state)
        assert "neck" in make_model(config(weights=path), 2).loaded.note
        assert not make_model(config(weights=path, neck="none"), 2).loaded.note
        assert "embedding" in make_model(config(weights=path, embedding_dim=8), 2).loaded.note
    assert "embedding" in make_model(config(weights=path, branches="pcb"), 2).loaded.note
    state = renamed(theirs, backbone="", neck="bn.") | {"layer1.0.se.fc.weight": torch.zeros(4, 64, 1, 1)}
    assert "se.fc" in make_model(config(weights=save(tmp_path / "w.pth", state)), 2).loaded.note


def test_scores_and_logs_say_what_was_loaded(tmp_path, tiny):
    path = save(tmp_path / "w.pth", {f"base.{k}": v for k, v in net("mobilenet_v2").state_dict().items()})
    cfg = tiny.replace(weights=path, backbone="mobilenet_v2", epochs=1, eval_first=False)
    assert "312 tensors" in (do_train(cfg).directory / "train.log").read_text()
    shown = program("test.py", "--weights", path, "--backbone", "mobilenet_v2", "--data-root", tiny.data.data_root,
                    "--log-dir", tmp_path, "--height", 32, "--width", 16, "--device", "cpu")  # fmt: skip
    assert "backbone from base." in shown.stdout and "note: scores are of the feature before the neck" in shown.stdout


def test_a_file_that_leaves_a_part_random_is_refused_unless_allowed(tmp_path):
    state = net().state_dict()
    for name, other in (("layer4.1.bn2.running_var", {}), ("conv1.weight", {"conv1.weight": torch.zeros(64, 1, 7, 7)})):
        path = save(tmp_path / "w.pth", {k: v for k, v in state.items() if k != name} | other)
        with pytest.raises(UserError, match=rf"w\.pth lacks 1 .*{name}.*--backbone.*--allow-missing"):
            make_model(config(weights=path), 2)
        model = make_model(config(weights=path, allow_missing=True), 2)
        assert model.loaded.missing == [name] and "1 tensors" in model.loaded.note
    with pytest.raises(UserError, match="lacks"):
        load_backbone(net(), save(tmp_path / "w.pth", net("resnet34").state_dict() | {"layer1.0.conv1.weight": 1}))
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}  # of PyTorch 0.4
    for attention in ("none", "cbam"):
        model = make_model(config(weights=save(tmp_path / "w.pth", old), attention=attention), 2)
        assert not model.loaded.missing and len(model.loaded.loaded) == 100


def test_files_that_do_not_fit_or_could_harm_are_refused(tmp_path, monkeypatch):
    path, loop = tmp_path / "w.pth", {}
    loop |= {"a": loop, "b": {"c": loop}}
    for content, words in (
        (net("mobilenet_v2").state_dict(), r"nothing in .*w\.pth fits"),
        ({"model": {}}, "no tensor"),
        ([1, 2], "no tensor"),
        (loop, "no tensor"),
        ({k: v.to(torch.int8) for k, v in net().state_dict().items()}, "lacks 100"),
        ({"model": Path("x")}, r"w\.pth is damaged, or holds more"),
    ):
        with pytest.raises(UserError, match=words):
            load_backbone(net(), save(path, content))
    save(path, {"conv1.weight": torch.zeros(100_000)})
    with zipfile.ZipFile(path, "r") as archive, zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    path.write_bytes(path.read_bytes()[:100])
    for name, words in (("z.pth", "compressed"), ("w.pth", "cannot be read"), ("none.pth", "cannot be read")):
        with pytest.raises(UserError, match=f"{name} .*{words}"):
            load_backbone(net(), str(tmp_path / name))
    monkeypatch.setattr("model.weights.load_state_dict_from_url", fails(urllib.error.URLError("no such host")))
    with pytest.raises(UserError, match=r"https://.*resnet18.*--weights FILE.*--weights none"):
        load_backbone(net(), "imagenet")


# ---- the plain model, and initial weights that are shared


SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"


def test_the_neck_and_the_classifier_are_those_of_bnneck_and_the_embedding_is_before_or_after_the_neck():
    model = make_model(config(), num_classes=7)
    images = torch.randn(4, 3, 64, 32)
    branch = model.branches[0]
    assert branch.classifier.bias is None and branch.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not branch.neck.bias.requires_grad and branch.neck.bias.eq(0).all()
    branch.neck.weight.data.fill_(3.0)
    with torch.no_grad():
        after = model.eval()(images)
        model.test_after_neck = False
        before = model(images)
        assert torch.allclose(branch.neck(before), after) and not torch.allclose(before, after)
        model = make_model(config(pooling="max", neck="none"), 3).eval()
        assert torch.equal(model(images), model.backbone(images).flatten(2).max(2).values)


def test_metric_losses_see_the_feature_that_the_settings_name():
    images = torch.randn(4, 3, 64, 32)
    for name, width in (("pooled", 512), ("before", 24), ("after", 24)):
        torch.manual_seed(0)
        model = make_model(config(embedding_dim=24, embedding="linear", metric_feature=name), 7).train()
        pooled = model.pool(model.backbone(images))
        branch = model.branches[0]
        expected = {"pooled": pooled, "before": branch.fc(pooled), "after": branch.neck(branch.fc(pooled))}[name]
        (features,) = model(images)[1]
        assert model.feature_dims == [width] == [features.shape[1]] and torch.allclose(features, expected, atol=1e-5)


def test_stems_and_the_momentum_of_batch_norm_are_those_of_the_settings():
    images = torch.randn(2, 3, 64, 32)
    for stem, relu, kernel in (("no_relu", False, 3), ("no_relu_pool2", False, 2), ("ceil", True, 3)):
        model = make_model(config(stem=stem, bn_momentum=0.25), 3)
        net = model.backbone
        maps = net.relu(net.bn1(net.conv1(images)))
        assert (maps.min() >= 0) == relu and net.maxpool(maps).shape[2:] == (16, 8)
        assert (net.maxpool.kernel_size, net.maxpool.ceil_mode) == (kernel, stem == "ceil")
        found = {layer.momentum for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)}
        assert found == {0.25} and model.branches[0].neck.momentum == 0.1


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/weights is not here")
def test_the_shared_weights_load_whole_and_caffe_weights_without_their_stride_warn(monkeypatch):
    mobilenet, caffe = (str(SHARED / f"{name}_imagenet.pth") for name in ("mobilenet_v2", "resnet50_caffe"))
    for part, file in ((net("mobilenet_v2"), mobilenet), (net("resnet50", stride_in_1x1=True), caffe)):
        report = load_backbone(part, file)
        assert not report.skipped and not report.missing
    warnings = []
    monkeypatch.setattr(logging.getLogger("plainreid"), "warning", lambda text, *a: warnings.append(text))
    cfg = config("resnet50").replace(weights=caffe)
    make_model(cfg, 2)
    make_model(cfg.replace(stride_in_1x1=True), 2)
    assert len(warnings) == 1 and "--stride-in-1x1" in warnings[0]

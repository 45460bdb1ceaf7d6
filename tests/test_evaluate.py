from pathlib import Path

import pytest
import torch

from config.cli import parse_train
from datasets import ReIDDataset, Sample, make_loaders
from model import make_model
from processor import do_inference, extract_features
from processor.evaluate import resolve_protocol
from processor.test import parse_test
from utils.errors import UserError
from utils.metrics import evaluate, evaluate_distance
from utils.rerank import k_reciprocal

CPU = torch.device("cpu")


@pytest.fixture
def parts(tiny):
    torch.manual_seed(0)
    cfg = tiny.replace(backbone="resnet18")
    loaders = make_loaders(cfg)
    return cfg, make_model(cfg, len(loaders.labels)).train(), loaders


def test_features_follow_the_order_of_the_files_and_leave_the_model_in_its_mode(parts):
    cfg, model, loaders = parts
    plain, flipped = extract_features(cfg, model, loaders.gallery, CPU, flip=True)
    assert not model.training and plain.shape == flipped.shape == (25, 512) and plain.dtype == torch.float32
    images = torch.cat(list(loaders.gallery.batches(CPU)))
    with torch.no_grad():
        one_by_one = torch.cat([model.eval()(image[None]) for image in images])
        mirrored = torch.cat([model(image[None].flip(3)) for image in images])
    torch.testing.assert_close(plain, one_by_one, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flipped, (one_by_one + mirrored) / 2, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_every_protocol_that_is_asked_for_is_resolve_protocol_its_parts_say(parts, metric):
    cfg, model, loaders = parts
    cfg = cfg.replace(metric=metric, flip=True, rerank=True, k1=4, k2=2)
    result = do_inference(cfg, model, loaders.query, loaders.gallery, CPU)
    ids = (loaders.query.pids, loaders.gallery.pids, loaders.query.camids, loaders.gallery.camids)
    assert list(result.scores) == ["plain", "flip", "flip+rerank"]
    assert result.scores["flip"].mAP == evaluate(result.query, result.gallery, *ids, metric=metric).mAP
    expected = evaluate_distance(k_reciprocal(result.query, result.gallery, 4, 2, metric=metric), *ids)
    assert result.scores["flip+rerank"].mAP == expected.mAP
    assert result.distance(cfg, [0, 3]).shape == (2, 25)
    assert list(do_inference(cfg.replace(flip=False), model, loaders.query, loaders.gallery, CPU).scores) == [
        "plain",
        "rerank",
    ]


def test_the_protocol_of_the_dataset_is_used(tiny):
    vehicles = ReIDDataset("vehicles", query=[Sample("a", 1, 1)], gallery=[Sample("b", 1, 2)], protocol="vehicle_id")
    plain = tiny.replace(rerank=False, flip=False)
    assert resolve_protocol(plain, vehicles).eval.protocol == "vehicle_id" and plain.eval.protocol == "auto"
    assert resolve_protocol(plain, vehicles, ranked_lists=True).eval.protocol == "standard"
    assert resolve_protocol(plain.replace(protocol="standard", rerank=True), vehicles).eval.protocol == "standard"
    with pytest.raises(UserError, match="--protocol single_shot"):
        resolve_protocol(plain.replace(protocol="single_shot"), vehicles, ranked_lists=True)


@pytest.mark.filterwarnings("ignore:.*not defined")
def test_settings_that_the_protocol_does_not_define_are_left_out_but_typed_ones_are_refused(tiny, monkeypatch):
    vehicles = ReIDDataset("vehicles", query=[Sample("a", 1, 1)], gallery=[Sample("b", 1, 2)], protocol="vehicle_id")
    state = {"config": tiny.replace(rerank=True, query_expansion=3, flip=True).to_dict()}
    monkeypatch.setattr("processor.test.find_checkpoint", lambda name, log_dir: Path(name))
    monkeypatch.setattr("processor.test.read_checkpoint", lambda path: state)
    for typed in ([], ["--protocol", "single_shot"]):
        run = parse_test(["run", *typed], {}, "")[0]
        preset = parse_train(["demo", *typed], {}).replace(query_expansion=3)
        for cfg in (run, preset):
            assert cfg.eval.flip and cfg.eval.rerank
            with pytest.warns(UserWarning) as warned:
                found = resolve_protocol(cfg, vehicles).eval
            assert found.flip and not found.rerank and found.query_expansion == 0
            assert [str(w.message).split()[0] for w in warned] == ["--rerank", "--query-expansion"]
        for option in ("--rerank", "--query-expansion=3", "--roc", "--by-camera"):
            with pytest.raises(UserError, match=option.split("=")[0]):
                resolve_protocol(parse_test(["run", *typed, option], {}, "")[0], vehicles)

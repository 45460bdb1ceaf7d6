"""Architecture search: specifications, the space, the supernet, the evolution, scores, latency, and the program."""

import json
import os
import signal
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_tree
from helpers import arguments, done, filled, program, refused, save_model
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torchvision import models

import tools.light.latency
import tools.light.runs
import tools.light.space
import tools.search_backbone
from config import Config
from datasets.loaders import TestLoader
from datasets.make import make_dataset
from model import make_model
from model.backbones import find_backbone, searchable
from model.backbones.searchable import STRIDES, Searched, Spec, blocks, multiply_adds, read_spec, self_contained
from processor import do_train, load_model
from processor.checkpoint import read_checkpoint
from tools.light.evolution import Candidate, Scores, choose_parents, evolve, pareto_front
from tools.light.latency import LatencyTable, parts
from tools.light.report import kendall
from tools.light.runs import Scorer, parse_search, use_heldout_as_test
from tools.light.space import Space, mobilenet_v2
from tools.light.supernet import ElasticNorm, Supernet
from utils.errors import Stopped, UserError
from utils.files import write_json
from utils.metrics import evaluate

SIZE = (64, 32)
SPACE = Space(*SIZE)
CPU = torch.device("cpu")


def resize(images: torch.Tensor, spec: Spec) -> torch.Tensor:
    return F.interpolate(images, (spec.height, spec.width), mode="bilinear", antialias=True)


def in_mlr(height: int, width: int, seed: int = 0) -> Spec:
    """A random network of Matrix Light ReID's space with MobileNetV2's multiply-adds."""
    budget = multiply_adds(mobilenet_v2(height, width), norms=True)
    return Space(height, width, budget, "mlr").random(np.random.default_rng(seed))


def some_specs() -> list[Spec]:
    return [SPACE.random(np.random.default_rng(0)), SPACE.largest(), SPACE.smallest(), mobilenet_v2(*SIZE)]


# ---- specifications and their networks


def test_mobilenet_v2_has_the_published_cost_and_computes_what_torchvisions_does():
    assert round(multiply_adds(mobilenet_v2(256, 128)) / 1e6, 1) == 195.6
    for last_stride in (1, 2):
        theirs = filled(models.mobilenet_v2().features)
        if last_stride == 1:
            theirs[14].conv[1][0].stride = (1, 1)
        ours = Searched(mobilenet_v2(96, 64, last_stride)).double()
        values = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
        ours.load_state_dict(dict(values))
        images = torch.randn(3, 3, 96, 64, dtype=torch.float64)
        for training in (False, True):
            assert torch.allclose(ours.train(training)(images), theirs.train(training)(images))


def test_strides_are_those_of_the_stages_and_multiply_adds_those_of_torchs_counter():
    from torch.utils.flop_counter import FlopCounterMode

    for spec in (*some_specs(), mobilenet_v2(256, 128, 1), in_mlr(256, 128)):
        found, strides = blocks(spec), [stride or spec.last_stride for stride in STRIDES[len(spec.stages)]]
        assert [next(b.stride for b in found if b.stage == n) for n in range(len(spec.stages))] == strides
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            Searched(spec).eval()(torch.zeros(1, 3, spec.height, spec.width))
        assert multiply_adds(spec) == counter.get_total_flops() // 2


def backbone(spec: Spec, **settings) -> nn.Module:
    settings = {"height": spec.height, "width": spec.width, "last_stride": spec.last_stride} | settings
    name = "searched:" + json.dumps(spec.to_dict())
    return find_backbone(name)(Config(backbone=name, weights="none", **settings))


def test_a_searched_backbone_gives_maps_and_checks_its_settings(monkeypatch):
    warned = []
    monkeypatch.setattr(searchable.log, "warning", lambda text, *values: warned.append(text % values))
    for last_stride, cells in ((1, (4, 2)), (2, (2, 1))):
        spec = replace(some_specs()[0], height=64, width=32, last_stride=last_stride)
        net = backbone(spec)
        maps = net(torch.randn(4, 3, 64, 32))
        assert maps.shape == (4, net.out_channels, *cells) and not warned
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.ones_(norm.weight)  # blocks that start as the identity pass no gradient into their layers
        (net(torch.randn(4, 3, 64, 32)) * torch.randn_like(maps)).sum().backward()
        assert all(p.grad.any() or ".se." in name for name, p in net.named_parameters())
        with pytest.raises(UserError, match=f"--last-stride {last_stride}"):
            backbone(spec, last_stride=3 - last_stride)
    backbone(mobilenet_v2(96, 48), height=256, width=128)
    assert len(warned) == 1 and "29.9 M" in warned[0] and "195.6 M" in warned[0]


def test_a_checkpoint_needs_no_file_if_its_name_holds_the_specification(tiny, tmp_path):
    file, spec = tmp_path / "spec.json", Space(32, 32).smallest()
    write_json(file, spec.to_dict())
    name = self_contained(f"searched:{file}")
    assert self_contained(name) == name and self_contained("resnet50") == "resnet50"
    cfg = tiny.replace(height=spec.height, width=spec.width, last_stride=2)
    lost = save_model(cfg.replace(backbone=f"searched:{file}"))
    kept = save_model(cfg.replace(backbone=name, log_dir=str(tmp_path / "kept")))
    file.unlink()
    assert load_model(kept, "cpu")[0].backbone.spec == spec
    with pytest.raises(UserError, match=r"spec\.json"):
        load_model(lost, "cpu")


# ---- the space


def test_random_networks_mutants_and_crosses_are_in_the_space():
    rng = np.random.default_rng(1)
    for size in ((256, 128), (96, 48), (100, 50), (32, 32)):
        space = Space(*size)
        assert space.sizes[0] == size and space.largest() == replace(space.largest(), height=size[0], width=size[1])
        drawn = [space.random(rng) for _ in range(20)]
        specs = drawn + [space.mutate(s, rng, 0.5) for s in drawn] + [space.cross(a, drawn[0], rng) for a in drawn]
        for spec in [*specs, space.largest(), space.smallest()]:
            genes = space.genes(spec)
            assert space.build(genes) == spec and genes.keys() == space.choices.keys()
            assert all(value in space.choices[gene] for gene, value in genes.items())
            largest = zip(spec.stages, space.largest().stages, strict=True)
            assert all(np.all(np.less_equal(*(list(asdict(s).values()) for s in pair))) for pair in largest)
            assert multiply_adds(space.smallest()) <= multiply_adds(spec) <= multiply_adds(space.largest())


def test_the_space_of_matrix_light_reid_is_that_of_its_program():
    """search_tools/generate_configs_0.56gf.py, read slowly: widths are factors of the last one, rounded down to 8."""
    budget, rng = multiply_adds(mobilenet_v2(96, 48), norms=True), np.random.default_rng(1)
    space = Space(96, 48, budget, "mlr")
    assert multiply_adds(mobilenet_v2(256, 128), norms=True) == 208_338_944  # published as 210 M
    drawn = [space.random(rng) for _ in range(4)]
    mutants = [space.mutate(drawn[0], rng, 0.15) for _ in range(200)]
    assert any(map(space.allows, mutants)) and not all(map(space.allows, mutants))
    for spec in (*drawn, *filter(space.allows, mutants)):
        assert 0.98 * budget <= multiply_adds(spec, norms=True) <= 1.02 * budget
        assert spec.stem in range(8, 72, 8) and 1024 <= spec.head <= 2048 and (spec.height, spec.width) == (96, 48)
        widths = [*(stage.width for stage in spec.stages), spec.head]
        assert widths[0] <= 64 and len(widths) == 6 and not any(width % 8 for width in widths)
        assert all(a <= b <= 4 * a for a, b in pairwise(widths))
        assert (spec.stages[0].depth, spec.stages[0].expansion) == (1, 1)
        for stage in spec.stages[1:]:
            assert (stage.depth in range(1, 7), stage.expansion in range(2, 7)) == (True, True)
        assert all((stage.kernel, stage.se) == (3, False) for stage in spec.stages)
        assert space.build(space.genes(spec)) == spec == read_spec(json.dumps(spec.to_dict()))


def test_the_presets_of_matrix_light_reids_networks_are_searched_in_its_space(monkeypatch):
    def parsed(*words: str):
        monkeypatch.setattr("sys.argv", ["search_backbone.py", *words])
        cfg, options = parse_search("", {})
        return options.space, cfg.data.height, cfg.data.width, options.candidates

    assert parsed("light_210m") == ("mlr", 256, 128, 32)
    assert parsed("light_210m", "--height", "96", "--space", "mobilenet_v2") == ("mobilenet_v2", 96, 128, 200)
    assert parsed("demo_light") == ("mobilenet_v2", 96, 48, 200)


# ---- the supernet


def extract(net: Supernet, spec: Spec, gradients: bool = False) -> Searched:
    """The network of a specification as a module of its own, with a copy of its part of the weights and statistics.

    gradients: with the gradients in place of the weights.
    """
    alone = Searched(spec).to(net.stem.weight)
    pairs = [(alone.stem[0], net.stem), (alone.stem[1], net.stem_norm)]
    pairs += [(alone.head[0], net.head), (alone.head[1], net.head_norm)]
    for number, stage in enumerate(spec.stages):
        for block, elastic in zip(getattr(alone, f"stage{number + 1}"), net.stages[number][: stage.depth], strict=True):
            for name, norm in (("expand", "norm1"), ("within", "norm2"), ("project", "norm3")):
                if hasattr(block.layers, name):
                    sources = getattr(elastic, name), getattr(elastic, norm)
                    pairs += zip(getattr(block.layers, name), sources, strict=False)
            if hasattr(block.layers, "se"):
                pairs += [(block.layers.se.fc1, elastic.fc1), (block.layers.se.fc2, elastic.fc2)]
    for layer, source in pairs:
        values = {n: p.grad for n, p in source.named_parameters()} if gradients else source.state_dict()
        for name, target in layer.named_parameters() if gradients else layer.state_dict().items():
            part = values[name]
            if part.ndim == 4:  # the center of the kernel
                cut = (part.shape[2] - target.shape[2]) // 2
                part = part[:, :, cut : cut + target.shape[2], cut : cut + target.shape[3]]
            target.data.copy_(part[tuple(map(slice, target.shape))])
    return alone.train(net.training)


def test_the_selected_part_and_its_gradients_are_those_of_the_network_alone():
    images = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    for spec in some_specs():
        torch.manual_seed(1)
        net = Supernet(SPACE, 0).double()
        with torch.no_grad():
            for module in (m for m in net.modules() if isinstance(m, ElasticNorm)):
                module.weight.uniform_(0.5, 1.5), module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3), module.running_var.uniform_(0.5, 1.5)
        alone = extract(net, spec)
        net.select(spec)
        maps = net.eval()(images)
        assert maps.std() > 0.01 and torch.allclose(maps, alone.eval()(resize(images, spec)))
        maps, weight = net.train()(images), torch.randn_like(maps)
        (maps * weight).sum().backward()
        (alone.train()(resize(images, spec)) * weight).sum().backward()
        for (name, a), b in zip(extract(net, spec).state_dict().items(), alone.state_dict().values(), strict=True):
            assert torch.allclose(a.double(), b.double()), name  # statistics too
        for (name, a), b in zip(extract(net, spec, True).named_parameters(), alone.parameters(), strict=True):
            assert torch.allclose(a, b.grad, atol=1e-9), name
        total = sum(p.grad.abs().sum() for p in net.parameters() if p.grad is not None)
        assert torch.allclose(total, sum(p.grad.abs().sum() for p in alone.parameters()))  # none outside of the part
        assert net.steps == 0


@pytest.fixture
def small(tmp_path) -> Config:
    write_tree(tmp_path / "data" / "demo", train_ids=8, test_ids=4, cameras=2)
    quick = {"width": 32, "workers": 1, "center_weight": 0.0, "epochs": 1, "warmup_epochs": 0, "steps": (1,)}
    return tiny_config(tmp_path, **quick, holdout_ids=4)


@pytest.mark.slow
def test_stopped_and_resumed_training_of_a_supernet_is_bit_identical(small, monkeypatch):
    cfg = small.replace(backbone="supernet", epochs=2, ema_decay=0.9, eval_first=False, eval_every=2)
    whole, real = do_train(cfg.replace(name="whole")), Supernet.sample
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop = lambda net: net.steps == 2 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(Supernet, "sample", lambda net: (stop(net), real(net))[1])
        do_train(cfg.replace(name="parts"))
    torch.manual_seed(12345)
    resumed = do_train(cfg.replace(name="parts", resume=True))
    first, second = (read_checkpoint(run.directory / "last.pth") for run in (whole, resumed))
    for kind in ("model", "training_model"):
        assert all(torch.equal(value, second[kind][name]) for name, value in first[kind].items())
    assert first["training_model"]["backbone._extra_state"] > 2


# ---- evolution


def goodness(spec: Spec) -> float:
    """In place of the score: depth, SE and small kernels are good, plus noise."""
    noise = np.random.default_rng(multiply_adds(spec)).random()
    return 10 * noise + sum(3 * s.depth + 5 * s.se - s.kernel + s.width / 40 for s in spec.stages)


def evolved(count: int, at_random: int, score=goodness, limit: float = 12e6, seed: int = 0) -> list[Candidate]:
    return evolve(SPACE, [(multiply_adds, limit)], score, count, at_random, seed)


def test_the_pareto_front_holds_all_points_that_no_other_beats():
    assert pareto_front([], []).tolist() == [] and pareto_front([3], [1.5]).tolist() == [0]
    for seed in range(5):
        costs, gains = np.random.default_rng(seed).integers(0, 12, (2, 40))  # with ties
        beaten = [
            any((costs <= costs[i]) & (gains >= gains[i]) & ((costs < costs[i]) | (gains > gains[i])))
            for i in range(40)
        ]
        points = {(costs[i], gains[i]): i for i in reversed(range(40)) if not beaten[i]}  # of equal points the first
        assert pareto_front(costs, gains).tolist() == [points[point] for point in sorted(points)]


def test_evolution_repeats_itself_keeps_the_limits_and_scores_nothing_twice():
    assert evolved(30, 10) == evolved(30, 10) != evolved(30, 10, seed=1)
    asked, measured = [], []
    limits = [(multiply_adds, 9e6), (lambda spec: measured.append(spec) or sum(s.depth for s in spec.stages), 13)]
    found = evolve(SPACE, limits, lambda spec: asked.append(spec) or goodness(spec), 50, 15)
    assert len(found) == len(set(asked)) == len(asked) == 50 and set(choose_parents(found)) <= set(asked)
    assert all(c.costs[0] <= 9e6 and c.costs[1] <= 13 and c.mAP == goodness(c.spec) for c in found)
    assert all(multiply_adds(spec) <= 9e6 for spec in measured)  # what is too expensive anyway is not measured
    assert [c.mAP for c in found] == sorted((c.mAP for c in found), reverse=True)
    bad = evolved(30, 12, lambda spec: -goodness(spec))
    assert len({c.spec for c in evolved(30, 12)} & {c.spec for c in bad}) >= 12  # the random ones
    limit = 1.3 * multiply_adds(SPACE.smallest())  # rarely met by random networks
    assert len(evolved(10, 5, limit=limit)) == 10 and evolved(5, 3, limit=1e6) == []
    bred, drawn = ([evolved(60, n, seed=s)[0].mAP for s in range(4)] for n in (15, 60))
    assert np.mean(bred) > np.mean(drawn) + 3


def test_a_killed_search_resumes_with_the_scores_that_it_wrote(tmp_path):
    whole = evolved(25, 8)
    for number, torn in enumerate(("", '{"spec": {"height": 64, "wid', "\n", '{"spec": 3}\n', "null\n\x00\n")):
        file, scored = tmp_path / f"{number}.jsonl", []

        def score(spec: Spec, scored=scored) -> float:
            if len(scored) == 7:
                raise KeyboardInterrupt
            scored.append(spec)
            return goodness(spec)

        with pytest.raises(KeyboardInterrupt):
            evolved(25, 8, Scores(file, score))
        with open(file, "a") as lines:
            lines.write(torn)
        fresh = []
        assert evolved(25, 8, Scores(file, lambda s, fresh=fresh: fresh.append(s) or goodness(s))) == whole
        assert len(fresh) == 18
        assert evolved(25, 8, Scores(file, lambda spec: pytest.fail("scored again"))) == whole


# ---- scores on held-out identities, latency, statistics


def test_the_test_split_is_replaced_by_held_out_identities(small, tmp_path):
    def listed(cfg: Config, *splits: str) -> set:
        dataset = make_dataset(cfg)
        return {(Path(s.path).name, s.pid, s.camid) for split in splits for s in getattr(dataset, split)}

    cfg = use_heldout_as_test(small, tmp_path)
    assert listed(cfg, "train") == listed(small, "train") and not listed(cfg, "heldout")
    assert listed(cfg, "query", "gallery") == listed(small, "heldout")
    assert {pid for _, pid, _ in listed(cfg, "query")} == {5, 6, 7, 8}  # 9 to 12 are the real test
    assert "bounding_box_test" not in Path(cfg.data.dataset).read_text()
    assert use_heldout_as_test(small.replace(train_ids=2), tmp_path).data.dataset != cfg.data.dataset
    with pytest.raises(UserError, match="--holdout-ids"):
        use_heldout_as_test(small.replace(holdout_ids=0), tmp_path)


def test_a_score_is_that_of_the_network_alone_after_recalibration(small, tmp_path):
    cfg = use_heldout_as_test(small.replace(erase_prob=1.0, gray_prob=1.0, pad=10), tmp_path)
    cfg = cfg.replace(backbone="supernet")
    torch.manual_seed(0)
    model, dataset = make_model(cfg, 4), make_dataset(cfg)
    scorer, plain = Scorer(cfg, model, CPU), torch.cat(list(TestLoader(cfg, dataset.train, "train").batches(CPU)))
    for image in torch.cat(scorer.batches):  # training images, not augmented
        assert (plain - image).abs().amax((1, 2, 3)).min() < 1e-5
    weights = {k: v.clone() for k, v in model.named_parameters()}
    for spec in (Space(32, 32).smallest(), mobilenet_v2(32, 32)):
        found, alone, neck = scorer(spec), extract(model.backbone, spec), nn.BatchNorm1d(1280)
        norms = [neck, *(m for m in alone.modules() if isinstance(m, nn.BatchNorm2d))]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None

        def embed(images: torch.Tensor, alone=alone, neck=neck, spec=spec) -> torch.Tensor:
            return neck(alone(resize(images, spec)).mean((2, 3)))

        with torch.no_grad():
            alone.train(), neck.train()
            for images in scorer.batches:
                embed(images)
            alone.eval(), neck.eval()
            sides = [TestLoader(cfg, samples, "x") for samples in (dataset.query, dataset.gallery)]
            features = [torch.cat([embed(images) for images in side.batches(CPU)]) for side in sides]
        scores = evaluate(*features, *(side.pids for side in sides), *(side.camids for side in sides))
        assert found == pytest.approx(100 * scores.mAP, abs=0.01) and found == scorer(spec)
    assert model.backbone.steps == 0
    assert {n.momentum for n in model.modules() if hasattr(n, "momentum")} == {0.1}
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Nothing is timed: a module takes a millisecond per convolution, and the list says what was run."""
    calls: list[str] = []

    def time_calls(runs, device, **_options) -> list[list[float]]:
        calls.extend(f"{type(run.func).__name__} {tuple(run().shape)}" for run in runs)
        return [[sum(isinstance(m, nn.Conv2d) for m in run.func.modules()) / 1e3] for run in runs]

    monkeypatch.setattr(tools.light.latency, "time_calls", time_calls)
    return calls


def test_a_latency_table_adds_up_the_parts_and_measures_none_twice(tmp_path, measured):
    spec, file = mobilenet_v2(64, 32), tmp_path / "latency.json"
    table = LatencyTable(file, CPU, "this machine", batch=2)
    layers = sum(isinstance(m, nn.Conv2d) for m in Searched(spec).modules())
    assert table.total(spec) == pytest.approx(layers / 1e3)  # a block that occurs twice counts twice
    assert len(measured) == len(table.seconds) == len({key for key, _ in parts(spec)}) < 19
    assert "Conv2dNormActivation (2, 1280, 2, 1)" in measured  # the head
    measured.clear()
    again = LatencyTable(file, CPU, "this machine", batch=2)
    assert again.total(spec) == table.total(spec) and not measured
    again.total(replace(spec, stages=(*spec.stages[:6], replace(spec.stages[6], width=400))))
    assert measured and len(again.seconds) == len(table.seconds) + 2
    for hardware, batch in (("another machine", 2), ("this machine", 8)):
        with pytest.raises(UserError, match=r"latency\.json was measured on .*this machine"):
            LatencyTable(file, CPU, hardware, batch)
    for text in ("", "[]", '{"about": 3}', '{"about": {}, "seconds": {"a": "b"}}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"latency\.json"):
            LatencyTable(file, CPU, "this machine")


# ---- the program


def command(small: Config, name: str, *more: object, most: str = "6M") -> tuple:
    words = (*arguments(small, "weights", "backbone", "jitter"), "--supernet-epochs", 1, "--candidates", 5)
    words += ("--at-random", 3, "--max-flops", most, "--name", name)
    return ("tools/search_backbone.py", "demo", *words, *more)


def search(small: Config, name: str, *more: object, **options: str) -> Path:
    """The directory of a search that succeeds."""
    done(*command(small, name, *more, **options))
    return Path(small.run.log_dir) / name


def spoil(small: Config, *folders: str) -> None:
    for folder in folders:
        for image in (Path(small.data.data_root) / "demo" / folder).glob("*.jpg"):
            image.write_bytes(b"not an image")


@pytest.mark.slow
def test_a_search_writes_a_specification_that_trains_and_reads_no_test_image(small, monkeypatch, measured):
    originals = {path: path.read_bytes() for path in Path(small.data.data_root).rglob("*.jpg")}
    spoil(small, "query", "bounding_box_test")
    directory = search(small, "s", "--max-latency", 100)
    (winner,) = directory.glob("winner-*.json")
    spec, about = read_spec(winner), json.loads(winner.read_text())
    assert multiply_adds(spec) == about["multiply_adds"] <= 6e6 and about["found_by"].startswith("python ")
    assert (directory / "pareto.png").stat().st_size > 10_000 and list((directory / "front").iterdir())
    finals = [json.loads((p / "results" / "train.json").read_text()) for p in directory.glob("alone-*")]
    assert len({(r["settings"]["height"], r["settings"]["width"]) for r in finals}) == len(finals)  # one per size
    assert about["heldout_mAP_trained_alone"] == max(r["scores"]["plain"]["mAP"] for r in finals)
    before = winner.read_bytes()
    with monkeypatch.context() as patch:  # once more: nothing is trained again
        patch.setattr(tools.light.runs, "do_train", lambda *_args, **_kwargs: pytest.fail("trained again"))
        again = done(*command(small, "s", "--max-latency", 100))
        assert winner.read_bytes() == before
    refused(program(*command(small, "s", "--seed", 1)), "--seed", "--name")
    for path, content in originals.items():
        path.write_bytes(content)
    (words,) = (line for line in again.splitlines() if line.startswith("train it with: "))
    done(*words.removeprefix("train it with: python ").split())
    assert load_model(Path(small.run.log_dir) / "demo" / "last.pth", CPU)[0].backbone.spec == spec


@pytest.mark.slow
def test_retraining_compares_the_winner_with_references_and_random_search(small):
    options = ("--retrain", 2, "--against-random", "--no-finals", "--references", "mobilenet_v2", "osnet_x0_25")
    directory = search(small, "r", *options, most="7M")
    rows = json.loads((directory / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["winner", "best of random", "mobilenet_v2", "osnet_x0_25"]
    assert all(len(row["mAP"]) == row["seeds"] == 2 for row in rows) and rows[0]["multiply-adds"] <= 7e6
    results = [json.loads((path / "results" / "train.json").read_text()) for path in directory.glob("*-s[01]")]
    assert {r["settings"]["holdout_ids"] for r in results} == {0}


def test_kendalls_tau_is_scipys_and_counts_the_pairs_within_groups_only():
    a, b = np.random.default_rng(0).integers(0, 6, (2, 12))  # with ties
    tau, bounds = kendall(a, b, [""] * 12)
    assert tau == pytest.approx(stats.kendalltau(a, b).statistic) and bounds[0] < tau < bounds[1]
    apart = kendall(np.r_[a, a + 9], np.r_[b, b - 9], ["small"] * 12 + ["large"] * 12)[0]
    assert apart == pytest.approx(tau)

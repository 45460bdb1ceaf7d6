"""The search for a backbone: evolution, scores on held-out people, latency tables, and the programs around it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_tree
from helpers import arguments, program, refused
from scipy import stats
from torch import nn
from torch.nn import functional as F

import processor.latency_table
import processor.search
import tools.search_backbone
import tools.search_steps
import utils.latency
from config import Config
from datasets.loaders import TestLoader
from datasets.make import make_dataset
from model import make_model
from model.backbones.space import Space, Spec, mobilenet_v2, multiply_adds, read_spec
from processor import load_model
from processor.latency_table import LatencyTable, parts
from processor.scorer import Scorer, without_test
from processor.search import Candidate, Evolution, Scores, search_each_size
from tools.check_ranking import interval
from tools.search_report import verdict
from tools.search_settings import SearchConfig, flops
from utils.errors import UserError
from utils.metrics import evaluate
from utils.pareto import kendall, pareto_front, spearman

SPACE = Space(64, 32)
CPU = torch.device("cpu")


# ---- Pareto front and rank correlations


@pytest.mark.parametrize("seed", range(5))
def test_the_pareto_front_is_all_that_nothing_beats(seed):
    rng = np.random.default_rng(seed)
    costs, gains = rng.integers(0, 12, 40), rng.integers(0, 12, 40)  # with ties
    front = pareto_front(costs, gains)

    def beaten(i: int) -> bool:
        no_worse = (costs <= costs[i]) & (gains >= gains[i])
        return bool(np.any(no_worse & ((costs < costs[i]) | (gains > gains[i]))))

    best = {(costs[i], gains[i]) for i in range(40) if not beaten(i)}
    assert {(costs[i], gains[i]) for i in front} == best and len(front) == len(best)
    assert np.all(np.diff(costs[front]) > 0) and np.all(np.diff(gains[front]) > 0)
    for i in front:  # of equal points the first
        assert not any((costs[j], gains[j]) == (costs[i], gains[i]) for j in range(i))


def test_the_pareto_front_of_nothing_is_empty_and_of_one_is_that():
    assert pareto_front([], []).tolist() == [] and pareto_front([3], [1.5]).tolist() == [0]


@pytest.mark.parametrize("ties", [False, True])
def test_kendalls_and_spearmans_correlations_are_scipys(ties):
    rng = np.random.default_rng(0)
    for n in (2, 3, 12, 40):
        a, b = (rng.integers(0, 6, n) + (0 if ties else rng.random(n)) for _ in range(2))
        if len(set(a)) > 1 < len(set(b)):
            assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
            assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    up = np.arange(5.0)
    assert kendall(up, up**3) == 1 == pytest.approx(spearman(up, up**3)) and kendall(up, -up) == -1
    assert np.isnan(kendall(up, up * 0)) and np.isnan(spearman(up * 0, up))


@pytest.mark.parametrize("seed", range(5))
def test_kendalls_correlation_within_groups_counts_only_their_pairs(seed):
    rng = np.random.default_rng(seed)
    a, b, groups = rng.integers(0, 5, 15), rng.integers(0, 5, 15), rng.integers(0, 4, 15)
    agree = first = second = 0
    for i in range(15):
        for j in range(i):
            if groups[i] == groups[j]:
                agree += np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])
                first, second = first + (a[i] != a[j]), second + (b[i] != b[j])
    assert kendall(a, b, groups) == pytest.approx(agree / (first * second) ** 0.5)
    assert kendall(a, b, [0] * 15) == kendall(a, b) and np.isnan(kendall(a, b, range(15)))


# ---- evolution


def goodness(spec: Spec) -> float:
    """Stands for the score: depth, SE and small kernels are good, beside something that nobody can foretell."""
    noise = np.random.default_rng(multiply_adds(spec)).random()
    return 10 * noise + sum(3 * s.depth + 5 * s.se - s.kernel + s.width / 40 for s in spec.stages)


def evolution(score=goodness, limit: float = 12e6, seed: int = 0, **options) -> Evolution:
    return Evolution(SPACE, [(multiply_adds, limit)], score, seed, **options)


def test_the_same_seed_finds_the_same_and_another_seed_something_else():
    first, again, other = (evolution(seed=seed).run(30, 10) for seed in (0, 0, 1))
    assert first == again and first != other


def test_nothing_is_ever_beyond_a_limit_or_scored_twice_and_the_best_comes_first():
    asked = []
    limits = [(multiply_adds, 9e6), (lambda spec: sum(s.depth for s in spec.stages) / 1e3, 0.013)]
    search = Evolution(SPACE, limits, lambda spec: asked.append(spec) or goodness(spec))
    found = search.run(50, 15)
    assert len(found) == len(set(asked)) == len(asked) == 50
    for candidate in found:
        assert candidate.costs == tuple(cost(candidate.spec) for cost, _ in limits)
        assert candidate.costs[0] <= 9e6 and candidate.costs[1] <= 0.013 and candidate.mAP == goodness(candidate.spec)
    assert [c.mAP for c in found] == sorted((c.mAP for c in found), reverse=True)
    assert set(search.parents()) <= set(asked)


def test_what_has_to_be_measured_is_not_asked_of_networks_that_are_too_dear_anyway():
    measured = []
    limits = [(multiply_adds, 9e6), (lambda spec: measured.append(spec) or 0.0, 1.0)]
    Evolution(SPACE, limits, goodness).run(10, 5)
    assert measured and all(multiply_adds(spec) <= 9e6 for spec in measured)


def test_the_first_networks_are_drawn_and_do_not_depend_on_any_score():
    told = []
    good, bad = (evolution(score).run(30, 12, told.append) for score in (goodness, lambda spec: -goodness(spec)))
    assert [c.spec for c in told[:12]] == [c.spec for c in told[30:42]]
    assert {c.spec for c in good} != {c.spec for c in bad}


def test_breeding_finds_better_networks_than_as_many_draws():
    bred, drawn = ([evolution(seed=s).run(60, n)[0].mAP for s in range(6)] for n in (15, 60))
    assert np.mean(bred) > np.mean(drawn) + 3 and min(bred) > np.mean(drawn)


def test_parents_are_the_pareto_front_and_the_best_quarter():
    search = evolution()
    search.run(24, 24)
    everyone = list(search.found.values())
    front = {everyone[i].spec for i in pareto_front([c.costs[0] for c in everyone], [c.mAP for c in everyone])}
    best = {c.spec for c in sorted(everyone, key=lambda c: -c.mAP)[:6]}
    assert set(search.parents()) == front | best


def killed_and_resumed(file: Path, torn: str, kill_after: int) -> tuple[list, int]:
    """A search whose program is killed while it scores number `kill_after`, then run to its end; and how many networks
    were scored after that."""
    scored = []

    def score(spec: Spec) -> float:
        if len(scored) == kill_after:
            raise KeyboardInterrupt
        scored.append(spec)
        return goodness(spec)

    with pytest.raises(KeyboardInterrupt):
        evolution(Scores(file, score)).run(25, 8)
    with open(file, "a") as lines:
        lines.write(torn)
    fresh = []
    return evolution(Scores(file, lambda s: fresh.append(s) or goodness(s))).run(25, 8), len(fresh)


@pytest.mark.parametrize("torn", ["", '{"spec": {"height": 64, "wid', "\n", '{"spec": 3}\n', "null\n\x00\n"])
@pytest.mark.parametrize("kill_after", [1, 5, 17])
def test_killed_and_resumed_it_finds_the_same_and_scores_nothing_anew(tmp_path, torn, kill_after):
    found, fresh = killed_and_resumed(tmp_path / "scores.jsonl", torn, kill_after)
    assert found == evolution().run(25, 8) and fresh == 25 - kill_after
    once_more = Scores(tmp_path / "scores.jsonl", lambda spec: pytest.fail("scored again"))
    assert evolution(once_more).run(25, 8) == found  # lines after the torn one are whole


def each_size(limits: list, count: int, at_random: int, score=goodness) -> list[Candidate]:
    return search_each_size(SPACE, limits, score, 0, count, at_random)


def test_each_size_of_images_is_searched_by_itself_with_an_equal_share_and_the_best_comes_first():
    told, limits = [], [(multiply_adds, 12e6)]
    found = search_each_size(SPACE, limits, goodness, 3, 42, 14, told.append)
    assert {*told} == {*found} and len(found) == 42
    assert [c.mAP for c in found] == sorted((c.mAP for c in found), reverse=True)
    assert Counter((c.spec.height, c.spec.width) for c in found) == dict(
        zip(SPACE.sizes, (10, 10, 11, 11), strict=True)
    )
    for number, (size, share) in enumerate(zip(SPACE.sizes, (10, 10, 11, 11), strict=True)):
        own = Evolution(SPACE.of_size(size), limits, goodness, (3, number)).run(share, 4)
        assert set(own) == {c for c in found if (c.spec.height, c.spec.width) == size}
    bad = search_each_size(SPACE, limits, lambda spec: -goodness(spec), 3, 42, 14)
    same = {c.spec for c in found} & {c.spec for c in bad}
    assert len(same) >= 16 > 42 - len(same) - 12  # those that were drawn, and hardly more


def test_what_a_size_leaves_of_its_share_goes_to_the_others(monkeypatch):
    monkeypatch.setattr(processor.search, "TRIES", 100)
    few = multiply_adds(SPACE.of_size(SPACE.sizes[1]).smallest())  # one network of that size, none of a larger
    found = Counter((c.spec.height, c.spec.width) for c in each_size([(multiply_adds, few)], 21, 21))
    assert found == {SPACE.sizes[1]: 1, SPACE.sizes[2]: 10, SPACE.sizes[3]: 10}


def test_a_budget_that_is_too_small_gets_a_sentence_with_the_smallest_networks_costs(monkeypatch):
    monkeypatch.setattr(processor.search, "TRIES", 100)
    with pytest.raises(UserError) as error:
        each_size([(multiply_adds, 1e6)], 5, 3)
    smallest = multiply_adds(SPACE.smallest()) / 1e6
    words = (
        f"no network of the space is within the limits: the smallest has {smallest:.1f} M multiply-adds where 1.0 are"
    )
    assert str(error.value).startswith(words) and "raise --max-flops" in str(error.value)
    with pytest.raises(UserError, match=r"and 4\.0 ms where 2\.0 are allowed"):
        each_size([(multiply_adds, 1e9), (lambda spec: 0.004, 0.002)], 5, 3)
    assert evolution(limit=1e6).run(5, 3) == []


def test_a_budget_that_chance_hardly_ever_meets_is_met_from_the_smallest_network_on():
    limit = 1.3 * multiply_adds(SPACE.smallest())
    found = evolution(limit=limit).run(10, 5)
    assert len(found) == 10 and all(c.costs[0] <= limit for c in found)
    only = evolution(limit=multiply_adds(SPACE.smallest())).run(10, 5)
    assert [c.spec for c in only if c.costs[0] < multiply_adds(SPACE.smallest())] == [] and len(only) <= 10


# ---- scores, on people that nobody trains on or tests on


@pytest.fixture
def small(tmp_path) -> Config:
    write_tree(tmp_path / "data" / "demo", train_ids=8, test_ids=4, cameras=2)
    return Config(
        preset="demo", dataset="demo", data_root=str(tmp_path / "data"), log_dir=str(tmp_path / "log"), device="cpu",
        height=32, width=32, pad=2, batch_size=8, images_per_id=2, workers=1, weights="none", center_weight=0.0,
        epochs=1, warmup_epochs=0, steps=(1,), holdout_ids=4,
    )  # fmt: skip


def listed(cfg: Config) -> dict[str, set[tuple[str, int, int]]]:
    dataset = make_dataset(cfg)
    return {
        split: {(Path(s.path).name, s.pid, s.camid) for s in getattr(dataset, split)}
        for split in ("train", "query", "gallery", "heldout")
    }


def test_nobody_of_the_test_is_listed_and_nobody_held_out_is_trained_on(small, tmp_path):
    before, after = listed(small), listed(without_test(small, tmp_path))
    assert after["train"] == before["train"] and not after["heldout"]
    assert after["query"] | after["gallery"] == before["heldout"] and not after["query"] & after["gallery"]
    trained, asked = ({pid for _, pid, _ in after[split]} for split in ("train", "query"))
    assert trained == {1, 2, 3, 4} and asked == {5, 6, 7, 8}  # 9 to 12 are the test's
    (file,) = tmp_path.glob("people-*.csv")
    assert "bounding_box_test" not in file.read_text() and "query" not in file.read_text()
    cut = listed(without_test(small.replace(train_ids=2, test_ids=1), tmp_path))
    assert {pid for _, pid, _ in cut["train"]} == {1, 2} and len(cut["query"]) == len(after["query"])
    assert without_test(small, tmp_path).dataset == str(file)  # other people have another file


def test_own_pictures_without_cameras_are_held_out_too(small, tmp_path):
    for pid in range(8):
        (tmp_path / "own" / f"p{pid}").mkdir(parents=True)
        for number in range(3):
            source = next((tmp_path / "data" / "demo" / "bounding_box_train").glob(f"{pid + 1:04}_*"))
            (tmp_path / "own" / f"p{pid}" / f"{number}.jpg").write_bytes(source.read_bytes())
    cfg = small.replace(dataset=str(tmp_path / "own"), holdout_ids=2)
    found = listed(without_test(cfg, tmp_path))
    with open(next(tmp_path.glob("people-*.csv")), newline="") as file:
        assert next(csv.reader(file)) == ["path", "pid", "split"]
    assert len({pid for _, pid, _ in found["train"]}) >= 2 and len(found["query"]) == 2


def test_without_people_held_out_there_is_a_sentence(small, tmp_path):
    with pytest.raises(UserError, match="kept out of training; give --holdout-ids 20"):
        without_test(small.replace(holdout_ids=0), tmp_path)


def test_a_score_is_that_of_the_extracted_network_by_itself(small, tmp_path):
    cfg = replace(without_test(small, tmp_path), backbone="supernet")
    torch.manual_seed(0)
    model = make_model(cfg, 4)
    scorer = Scorer(cfg, model, CPU)
    space, dataset = Space(32, 32), make_dataset(cfg)
    for spec in (space.smallest(), mobilenet_v2(32, 32), space.random(np.random.default_rng(0))):
        found = scorer(spec)
        alone, neck = model.backbone.extract(spec), nn.BatchNorm1d(1280)
        for norm in [neck, *(m for m in alone.modules() if isinstance(m, nn.BatchNorm2d))]:
            norm.reset_running_stats()
            norm.momentum = None

        def embed(images: torch.Tensor, alone=alone, neck=neck, size=(spec.height, spec.width)) -> torch.Tensor:
            smaller = F.interpolate(images, size, mode="bilinear", antialias=True)
            return neck(alone(smaller).mean((2, 3)))

        with torch.no_grad():
            alone.train(), neck.train()
            for images in scorer.batches:
                embed(images)
            alone.eval(), neck.eval()
            sides = [TestLoader(cfg, samples, "x") for samples in (dataset.query, dataset.gallery)]
            features = [torch.cat([embed(images) for images in side.batches(CPU)]) for side in sides]
        scores = evaluate(*features, *(side.pids for side in sides), *(side.camids for side in sides))
        assert found == pytest.approx(100 * scores.mAP, abs=0.01) and found == scorer(spec)


def test_images_for_the_statistics_are_of_training_and_not_augmented(small, tmp_path):
    cfg = without_test(small.replace(erase_prob=1.0, gray_prob=1.0, pad=10), tmp_path)
    cfg = cfg.replace(backbone="supernet")
    scorer = Scorer(cfg, make_model(cfg, 4), CPU)
    train = TestLoader(cfg, make_dataset(cfg).train, "train")
    plain = torch.cat(list(train.batches(CPU)))
    for images in scorer.batches:
        assert images.shape == (8, 3, 32, 32)
        for image in images:
            assert (plain - image).abs().amax((1, 2, 3)).min() < 1e-5


# ---- latency


def test_the_shortest_run_of_each_module_counts_and_all_run_in_turns(monkeypatch):
    order, now = [], [0.0]
    took = {"a": iter([5, 1, 3]), "b": iter([2, 4, 8])}

    class Named(nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training and not torch.is_grad_enabled()
            order.append(self.name)
            now[0] += next(took[self.name])
            return x

    for clock in ("thread_time", "perf_counter"):
        monkeypatch.setattr(utils.latency.time, clock, lambda: now[0])
    assert utils.latency.shortest([(Named("a"), torch.zeros(1)), (Named("b"), torch.zeros(1))], rounds=3) == [1, 2]
    assert order == ["a", "b"] * 3


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Measuring takes no time here: a module takes a millisecond for each of its layers, and the list says what was."""
    calls: list[str] = []

    def shortest(modules, rounds: int = 1) -> list[float]:
        for module, images in modules:
            with torch.no_grad():
                calls.append(f"{type(module).__name__} {tuple(module.eval()(images).shape)}")
        return [sum(isinstance(m, nn.Conv2d) for m in module.modules()) / 1e3 for module, _ in modules]

    monkeypatch.setattr(processor.latency_table, "shortest", shortest)
    return calls


def test_a_table_adds_up_what_stem_blocks_and_head_take_and_measures_nothing_twice(tmp_path, measured):
    spec = mobilenet_v2(64, 32)
    table = LatencyTable(tmp_path / "latency.json", CPU, "this machine", batch=2)
    layers = sum(isinstance(m, nn.Conv2d) for m in make_model(config_of(spec), 2).backbone.modules())
    assert table.of(spec) == pytest.approx(layers / 1e3)  # blocks that come twice count twice
    assert len(measured) == len(table.seconds) == len({key for key, _ in parts(spec)}) < 19
    assert any(call == "Sequential (2, 1280, 2, 1)" for call in measured)  # the head, for two images
    measured.clear()
    again = LatencyTable(tmp_path / "latency.json", CPU, "this machine", batch=2)
    assert again.of(spec) == table.of(spec) and not measured
    deeper = replace(spec, stages=(*spec.stages[:6], replace(spec.stages[6], width=400)))
    again.of(deeper)
    assert measured  # all run again, but only what is new is taken over
    assert all(again.seconds[key] == value for key, value in table.seconds.items())
    assert len(again.seconds) == len(table.seconds) + 2


def config_of(spec: Spec) -> Config:
    name = "searched:" + json.dumps(spec.to_dict())
    shape = {"height": spec.height, "width": spec.width, "last_stride": spec.last_stride}
    return Config(backbone=name, weights="none", **shape)


def test_a_table_of_another_machine_or_a_damaged_one_is_refused(tmp_path, measured):
    file = tmp_path / "latency.json"
    LatencyTable(file, CPU, "one machine").of(SPACE.smallest())
    for hardware, batch in (("another machine", 1), ("one machine", 8)):
        with pytest.raises(UserError, match=r"latency\.json was measured on .*one machine.*delete it, or give another"):
            LatencyTable(file, CPU, hardware, batch)
    for text in ("", "[]", '{"about": 3}', '{"about": {}, "seconds": {"a": "b"}}', '{"about": {}, "seconds": []}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"latency\.json is no table of latencies .*delete it"):
            LatencyTable(file, CPU, "one machine")


# ---- the programs


def words(small: Config, *more: object, most: str = "6M") -> list[str]:
    budget = ("--supernet-epochs", 1, "--candidates", 5, "--at-random", 3, "--max-flops", most)
    return ["demo", *arguments(small, "weights", "backbone", "jitter"), *map(str, budget), *map(str, more)]


def no_training(monkeypatch) -> None:
    monkeypatch.setattr(tools.search_steps, "do_train", lambda *_args, **_kwargs: pytest.fail("trained again"))
    monkeypatch.setattr(Scorer, "__call__", lambda *_args: pytest.fail("scored again"))


def spoil(small: Config, *folders: str) -> None:
    for folder in folders:
        for image in (Path(small.data.data_root) / "demo" / folder).glob("*.jpg"):
            image.write_bytes(b"nobody may look at this")


def test_a_search_ends_with_a_specification_that_trains_and_never_opens_a_test_image(small, monkeypatch, measured):
    originals = {path: path.read_bytes() for path in Path(small.data.data_root).rglob("*.jpg")}
    spoil(small, "query", "bounding_box_test")
    options = ("--name", "s", "--max-latency", 100, "--no-finals")
    shown = program("tools/search_backbone.py", *words(small, *options))
    assert shown.returncode == 0, shown.stderr
    directory = Path(small.run.log_dir) / "s"
    (winner,) = directory.glob("winner-*.json")
    spec, told = read_spec(winner), json.loads(winner.read_text())
    assert multiply_adds(spec) == told["multiply_adds"] <= 6e6 and told["found_by"].startswith("python ")
    assert told["on"].startswith("demo, 4 of its training identities held out")
    assert len((directory / "supernet" / "candidates.jsonl").read_text().splitlines()) == 6  # and MobileNetV2 beside
    assert (directory / "pareto.png").stat().st_size > 10_000
    fronts = [read_spec(path) for path in sorted((directory / "front").iterdir())]
    assert fronts[-1] == spec and "train it with: python train.py demo " in shown.stdout
    assert "MobileNetV2 1.0 with the shared weights has" in shown.stdout and "5 of 5 networks" in shown.stdout

    before = winner.read_bytes()
    with monkeypatch.context() as patch:
        no_training(patch)
        measured.clear()
        again = program("tools/search_backbone.py", *words(small, "--name", "s", "--max-latency", 100, "--no-finals"))
        assert again.returncode == 0 and winner.read_bytes() == before and not measured, again.stderr
    shown = program("tools/search_backbone.py", *words(small, *options, "--retrain", 1))
    refused(shown, "no JPEG, PNG")  # the first that looks at the test
    for path, content in originals.items():
        path.write_bytes(content)
    command = next(line for line in again.stdout.splitlines() if line.startswith("train it with: "))
    trained = program(*command.removeprefix("train it with: python ").split())
    assert trained.returncode == 0, trained.stderr
    model, _ = load_model(Path(small.run.log_dir) / "demo" / "last.pth", CPU)
    assert model.backbone.spec == spec


def test_the_winner_is_the_finalist_that_does_best_alone_on_nobody_of_the_test(small):
    spoil(small, "query", "bounding_box_test")
    shown = program("tools/search_backbone.py", *words(small, "--name", "f", most="7M"))
    assert shown.returncode == 0, shown.stderr
    directory = Path(small.run.log_dir) / "f"
    finals = [json.loads((p / "results" / "train.json").read_text()) for p in directory.glob("alone-*")]
    sizes = Counter((r["settings"]["height"], r["settings"]["width"]) for r in finals)
    assert sizes == {(32, 32): 2, (24, 24): 1, (16, 16): 1}  # one a size, and MobileNetV2
    assert {r["settings"]["dataset"].rpartition("/")[2][:7] for r in finals} == {"people-"}
    (winner,) = map(read_spec, directory.glob("winner-*.json"))
    best = max(r["scores"]["plain"]["mAP"] for r in finals)
    won = [r for r in finals if json.dumps(winner.to_dict(), separators=(",", ":")) in r["settings"]["backbone"]]
    assert [r["scores"]["plain"]["mAP"] for r in won] == [best]


def test_finalists_use_most_of_a_limit_where_a_size_has_such_networks(monkeypatch):
    small, large = SPACE.sizes[-1], SPACE.sizes[0]
    rng = np.random.default_rng(0)

    def candidate(size: tuple[int, int], flops: float, seconds: float, mAP: float) -> Candidate:
        return Candidate(SPACE.of_size(size).random(rng), (flops, seconds), mAP)

    found = [
        candidate(large, 8e6, 0.004, 90.0),
        near_in_time := candidate(large, 8e6, 0.009, 80.0),
        candidate(large, 18e6, 0.004, 70.0),
        better := candidate(small, 14e6, 0.007, 60.0),
        candidate(small, 12e6, 0.007, 50.0),
    ]
    reference = mobilenet_v2(64, 32)
    limits = [(multiply_adds, 20e6), (lambda spec: 0.02, 0.010)]
    search = SimpleNamespace(limits=limits, score=lambda spec: 40.0)
    trained = []

    def train_each(_search, _cfg, finalists, _log) -> list[float]:
        trained.append(finalists)
        return [float(c is better) for c in finalists]

    monkeypatch.setattr(tools.search_backbone, "train_each", train_each)
    cfg = tools.search_backbone.RetrainConfig(height=64, width=32)
    assert tools.search_backbone.choose(search, cfg, found) == (better, 1.0)
    limits[1] = (lambda spec: 0.01, 0.010)  # MobileNetV2 is within
    assert tools.search_backbone.choose(search, cfg, found) == (better, 1.0)
    assert trained[0] == [better, near_in_time]
    assert trained[1] == [better, near_in_time, Candidate(reference, (multiply_adds(reference), 0.01), 40.0)]
    cfg.finals = False
    assert tools.search_backbone.choose(search, cfg, found) == (found[0], None) and len(trained) == 2


def test_retraining_compares_with_mobilenet_v2_and_with_chance_and_goes_on_where_it_was(small, monkeypatch):
    options = words(small, "--name", "r", "--retrain", 2, "--against-random", most="7M")
    options += ["--references", "mobilenet_v2", "osnet_x0_25"]
    shown = program("tools/search_backbone.py", *options)
    assert shown.returncode == 0, shown.stderr
    directory = Path(small.run.log_dir) / "r"
    rows = json.loads((directory / "comparison.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["winner", "best of random", "mobilenet_v2", "osnet_x0_25"]
    assert all(len(row["mAP"]) == row["seeds"] == 2 for row in rows)
    assert rows[0]["multiply-adds"] <= 7e6 and (directory / "comparison.png").stat().st_size > 10_000
    retrained = [path for path in directory.glob("*-s[01]") if not path.name.startswith("alone-")]
    results = [json.loads((path / "results" / "train.json").read_text()) for path in retrained]
    assert {r["settings"]["holdout_ids"] for r in results} == {0} and {r["note"] for r in results} == {""}
    last_strides = {r["settings"]["backbone"]: r["settings"]["last_stride"] for r in results}
    assert last_strides["mobilenet_v2"] == 2 and last_strides["osnet_x0_25"] == 1
    with monkeypatch.context() as patch:
        no_training(patch)
        again = program("tools/search_backbone.py", *options)
    assert again.returncode == 0 and shown.stdout.splitlines()[-8:] == again.stdout.splitlines()[-8:]
    (directory / next(directory.glob("winner-*.json")).name).unlink()  # checkpoints hold the specification
    checkpoints = [p / "last.pth" for p in retrained if "searched" in (p / "config.json").read_text()]
    costs = {multiply_adds(load_model(p, CPU)[0].backbone.spec) for p in checkpoints}
    assert costs == {row["multiply-adds"] for row in rows[:2]}
    assert all(load_model(p, CPU)[1].backbone.startswith("searched:{") for p in checkpoints)
    for name, value, said in (("--seed", 1, "--seed (0, not 1)"), ("--train-ids", 3, "--dataset")):
        changed = program("tools/search_backbone.py", *words(small, "--name", "r", name, value, most="7M"))
        refused(changed, f"supernet was trained with another {said}", "give another --name, or delete it")


def test_ranking_trains_each_network_by_itself_on_nobody_of_the_test_and_goes_on(small, monkeypatch):
    spoil(small, "query", "bounding_box_test")
    shown = program("tools/check_ranking.py", *words(small, "--name", "k", "--ranking", 3, "--ranking-seeds", 2))
    assert shown.returncode == 0, shown.stderr
    directory = Path(small.run.log_dir) / "k"
    found = json.loads((directory / "ranking.json").read_text())
    shared, alone = ([row[key] for row in found["rows"]] for key in ("shared", "alone"))
    assert len(shared) == 3 and "3 of 3" in shown.stdout and "left about 0.0 minutes" in shown.stdout
    seeds = [[row["by_seed"][n] for row in found["rows"]] for n in range(2)]
    assert alone == pytest.approx(np.mean(seeds, axis=0)) and len(list(directory.glob("alone-*-s[01]"))) == 6
    tau = stats.kendalltau(shared, alone).statistic
    told = found["shared weights"]["kendall"]
    assert np.isnan([told, tau]).all() or told == pytest.approx(tau)
    assert (directory / "ranking.png").exists()
    with monkeypatch.context() as patch:
        no_training(patch)
        again = program("tools/check_ranking.py", *words(small, "--name", "k", "--ranking", 3, "--ranking-seeds", 2))
    assert again.returncode == 0 and json.loads((directory / "ranking.json").read_text())["rows"] == found["rows"]


def test_bootstraps_of_a_perfect_ranking_are_perfect_and_of_a_short_one_wide():
    assert interval(range(12), range(12), None) == [1, 1] == interval(range(12), range(12), [0, 1] * 6)
    rng = np.random.default_rng(0)
    low, high = interval(np.arange(12) + rng.normal(0, 4, 12), np.arange(12), None)
    assert -0.2 < low < high - 0.2 < 0.9


def test_check_latency_says_how_well_sums_of_blocks_rank_whole_networks(tmp_path):
    size = ("--height", 32, "--width", 32, "--networks", 3, "--device", "cpu", "--log-dir", tmp_path)
    shown = program("tools/check_latency.py", *size)
    assert shown.returncode == 0, shown.stderr
    found = json.loads((tmp_path / "latency_32x32_batch1_cpu.json").read_text())
    sums, wholes = ([row[key] for row in found["rows"]] for key in ("sum", "whole"))
    assert found["spearman"] == pytest.approx(stats.spearmanr(sums, wholes).statistic) and min(wholes + sums) > 0
    assert "Spearman's correlation" in shown.stdout and found["hardware"] in shown.stdout
    refused(program("tools/check_latency.py", *size, "--batch", 0), "--batch at least 1")


def test_a_comparison_says_how_sure_it_is():
    rows = {"name": "winner", "mAP": [30.0, 31.0, 35.0]}, {"name": "other", "mAP": [29.0, 30.5, 35.5]}
    differences = [1.0, 0.5, -0.5]
    error = np.std(differences, ddof=1) / 3**0.5
    said = verdict(*rows)
    assert said == f"the winner's mAP is +0.33 beside other, standard error {error:.2f}; better with 2 of 3 seeds"
    assert "nobody knows how sure" in verdict(*({**row, "mAP": row["mAP"][:1]} for row in rows))


def test_numbers_of_multiply_adds_are_read_with_their_suffix():
    assert [flops(text) for text in ("210M", "1.2G", "5e7", "300k", "7")] == [210e6, 1.2e9, 5e7, 3e5, 7]
    assert [flops(text) for text in ("M", "x", "2TM")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_flops": "many"}, "--max-flops takes a number such as 210M"),
        ({"max_flops": "-3M"}, "--max-flops takes a number"),
        ({"max_flops": "nan"}, "--max-flops takes a number"),
        ({"max_latency": -1.0}, "--max-latency must be 0 or more"),
        ({"max_latency": float("nan")}, "--max-latency must be 0 or more"),
        ({"latency_batch": 0}, "--latency-batch must be at least 1"),
        ({"supernet_epochs": -1}, "--supernet-epochs must be 0 or more"),
        ({"at_random": 0}, "--at-random must be at least 1"),
        ({"at_random": 9, "candidates": 8}, "at most --candidates, not 9 of 8"),
    ],
)
def test_bad_settings_get_a_sentence(changes, said):
    with pytest.raises(UserError, match=said):
        SearchConfig(**changes).check()

"""Gallery search: nearest neighbours, thresholds, the index on the disk, and its programs."""

import os
import re
import shutil
import signal
import subprocess
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config, write_tree
from helpers import environment, killed, program, refused, save_model
from torch.nn.functional import normalize

from datasets.base import ReIDDataset, Sample
from processor import FeatureExtractor
from processor.checkpoint import save_checkpoint
from tools.gallery import answer, engines, threshold
from tools.gallery import index as indexes
from tools.gallery.engines import build_engine, nearest, search_engine
from tools.gallery.index import add, changing, make_index, read_index, remove
from tools.gallery.threshold import Bootstrap, Rate, Thresholds, find_thresholds, pool_tracklets, promised
from tools.search import find
from utils import roc
from utils.errors import Stopped, UserError
from utils.roc import STEPS


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


# ---- nearest neighbours


def test_the_nearest_rows_are_those_of_a_full_sort(monkeypatch):
    monkeypatch.setattr(engines, "MIN_ROWS", 1)
    shapes = [(1, 1, 1), (1, 7, 3), (5, 100, 10), (3, 50, 50), (70, 2000, 9), (2, 3, 99), (2, 0, 5), (0, 3, 2)]
    for block in (1, 1 << 10, 1 << 22):
        monkeypatch.setattr(engines, "BLOCK", block)
        for queries, rows, k in shapes:
            query, gallery = unit(queries, 16), unit(rows, 16, seed=1)
            value, index = nearest(query, gallery, k)
            product = query.double() @ gallery.double().T
            order = product.argsort(dim=1, descending=True, stable=True)[:, :k]
            assert torch.equal(index, order) and value.dtype == torch.float32
            torch.testing.assert_close(value.double(), product.gather(1, order), atol=1e-6, rtol=0)
        equal = torch.eye(2).repeat(15, 1)  # equal rows come in their order, each once
        value, index = nearest(torch.tensor([[1.0, 0.0]] * 4), equal, 30)
        assert index.tolist() == [[*range(0, 30, 2), *range(1, 30, 2)]] * 4
        assert value.tolist() == [[1.0] * 15 + [0.0] * 15] * 4


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Twenty clusters of fifty."""
    pytest.importorskip("faiss")
    return normalize(unit(20, 24).repeat_interleave(50, 0) + 0.1 * unit(1000, 24, seed=1) * 24**0.5).numpy()


def recall(found: np.ndarray, rows: np.ndarray, query: np.ndarray) -> float:
    truth = nearest(torch.from_numpy(query), torch.from_numpy(np.ascontiguousarray(rows)), found.shape[1])[1].numpy()
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def test_a_graph_finds_what_exact_search_finds(rows, tmp_path):
    import faiss

    ids = np.arange(1000) * 3 + 5
    engine = build_engine(rows[:600], ids[:600])
    engine.add_with_ids(rows[600:], ids[600:])
    faiss.write_index(engine, str(tmp_path / "e.faiss"))
    for removed in (0, 1, 500, 990):
        kept = np.sort(np.random.default_rng(0).permutation(1000)[removed:])
        value, row = search_engine(faiss.read_index(str(tmp_path / "e.faiss")), rows[:100], 10, ids[kept])
        assert recall(row, rows[kept], rows[:100]) > (0.9 if removed else 0.95), removed
        np.testing.assert_allclose(value, (rows[:100, None] * rows[kept][row]).sum(2), atol=1e-5)
        assert (np.diff(value) <= 0).all()
    for size in (1, 2, 40, 200):  # of few rows, all are found
        ids = np.arange(size)
        _, row = search_engine(build_engine(rows[:size], ids), rows[:3], 500, ids)
        assert (np.sort(row, 1) == ids).mean() > 0.95 and row.shape == (3, size)
    with pytest.raises(UserError, match="--engine hnsw"):
        build_engine(rows[:0], np.arange(0))


# ---- thresholds


def pairs_by_hand(query, gallery, qp, gp, qc, gc) -> tuple[list, list]:
    """Cosine, the two people and the two cameras of the pairs of one person, and of two; distractors differ."""
    same, others = [], []
    for i, a in enumerate(query):
        for j, b in enumerate(gallery):
            people, cameras = (int(qp[i]), int(gp[j]) if gp[j] else -1 - j), (int(qc[i]), int(gc[j]))
            kind = others if qp[i] != gp[j] else same if qc[i] != gc[j] else []
            kind.append((float((a.double() * b.double()).sum()), people, cameras))
    return same, others


def test_error_rates_and_intervals_are_those_of_all_pairs_one_by_one(monkeypatch):
    rng = np.random.default_rng(3)
    ids = [rng.integers(1, 9, 40), rng.integers(0, 9, 90), rng.integers(0, 3, 40), rng.integers(0, 3, 90)]
    people = normalize(unit(9, 6, seed=2)[np.concatenate(ids[:2])] + 0.4 * unit(130, 6))
    data = (people[:40], people[40:], *ids)
    same, others = pairs_by_hand(*data)
    for block in (1, 500, 1 << 22):
        monkeypatch.setattr(roc, "BLOCK", block)
        monkeypatch.setattr(threshold, "FEWEST", 1)
        found = find_thresholds(*data, fmr=0.01, fnmr=0.05, fpir=0.1)
        rates, inf = found.rates, np.inf
        errors = {"fmr": (others, found.same, inf), "fnmr": (same, -inf, found.same),
                  "refused": (same, -inf, found.different), "unknown": (same, found.different, found.same)}  # fmt: skip
        for name, (pairs, low, high) in errors.items():
            assert rates[name].errors == sum(low <= c < high for c, *_ in pairs) and rates[name].number == len(pairs)
        assert rates["fmr"].share <= 0.01 < np.mean([c >= found.same - 2 / STEPS for c, *_ in others])
        assert rates["refused"].share <= 0.05 < np.mean([c < found.different + 2 / STEPS for c, *_ in same])
        # a sample holds each person as often as it was drawn, and each pair as often as both were
        numbers = {p: i for i, p in enumerate(sorted({p for _, two, _ in same + others for p in two}))}
        weights = Bootstrap(len(numbers)).weights.numpy()
        assert (weights.sum(1) == len(numbers)).all()
        for name, (pairs, low, high) in errors.items():
            first, second = np.array([[numbers[p] for p in two] for _, two, _ in pairs]).T
            factor = weights[:, first] * np.where(first != second, weights[:, second], 1)
            wrong = np.array([low <= c < high for c, *_ in pairs])
            expected = np.quantile((factor * wrong).sum(1) / factor.sum(1), (0.025, 0.975))
            three = 3 / len({two for _, two, _ in pairs})  # the rule of three, for as many people or pairs of people
            assert (rates[name].low, rates[name].high) == pytest.approx((expected[0], max(expected[1], three)))
        for *pair, fmr, fnmr in found.cameras:
            for rate, (pairs, low, high) in ((fmr, errors["fmr"]), (fnmr, errors["fnmr"])):
                some = [c for c, _, two in pairs if two == tuple(pair)]
                assert (rate.errors, rate.number) == (sum(low <= c < high for c in some), len(some))
        assert len(found.cameras) == 9 and sum(row[2].number for row in found.cameras) == len(others)
        # a stranger is a query whose person is kept out of the gallery
        named, missed, asked = 0, 0, 0
        for i in range(40):
            cosine = (data[0][i].double() @ data[1].double().T).numpy()
            known_people = ids[1] == ids[0][i]
            named += cosine[~known_people].max() >= found.search
            if (matches := cosine[known_people & (ids[3] != ids[2][i])]).size:
                asked += 1
                missed += matches.max() < found.search or matches.max() <= cosine[~known_people].max()
        assert (rates["fpir"].errors, rates["fpir"].number) == (named, 40) and 3 <= named <= 4
        assert (rates["fnir"].errors, rates["fnir"].number) == (missed, asked)
    equal = find_thresholds(*data, equal=True)
    assert equal.same == equal.different and abs(equal.rates["fmr"].share - equal.rates["fnmr"].share) < 0.02
    two, one = np.array([1, 2]), np.array([1, 1])
    for wrong, words in (
        ((two, two, two, two), "of one person under two cameras"),
        ((one, one, one, two + 5), "of different people"),
        ((one[:1], one, one, one), "query_pids"),
    ):
        with pytest.raises(ValueError, match=words):
            find_thresholds(unit(2, 4), unit(2, 4), *wrong)


@pytest.mark.parametrize("cameras", [True, False])
def test_tracklets_are_pooled_by_identity_camera_and_track(cameras):
    rng = np.random.default_rng(0)
    samples = [Sample(str(i), *(int(x) for x in rng.integers(0, 3, 2))) for i in range(40)]
    tracks = {str(i): str(i % 3) for i in range(30)}
    data, sides = unit(40, 6), (samples[:15], samples[15:])
    dataset = ReIDDataset("x", tracks=tracks, cameras=cameras)
    query, gallery, *ids = pool_tracklets(data.split([15, 25]), sides, dataset)
    keys = [(s.pid, s.camid * cameras, tracks.get(s.path, f"alone {s.path}")) for s in samples]
    seen = []
    for rows, pids, camids, own in ((query, ids[0], ids[2], keys[:15]), (gallery, ids[1], ids[3], keys[15:])):
        wanted = {key: normalize(data[[k == key for k in keys]].sum(0), dim=0) for key in own}
        nearest_to = [min(wanted, key=lambda key: float((wanted[key] - row).norm())) for row in rows]
        assert len(set(nearest_to)) == len(rows) == len(wanted)
        torch.testing.assert_close(rows, torch.stack([wanted[key] for key in nearest_to]), atol=1e-6, rtol=0)
        assert pids.tolist() == [key[0] for key in nearest_to]
        seen += zip(nearest_to, camids.tolist(), strict=True)
    if cameras:
        assert all(camera == key[1] for key, camera in seen)
    else:  # one for each tracklet, the same on both sides
        assert len(dict(seen)) == len(set(seen)) == len(set(dict(seen).values()))


def test_no_rate_is_promised_that_the_pairs_cannot_show():
    for name in ("fmr", "fnmr", "fpir"):
        with pytest.raises(UserError, match=f"here: 100 .*--{name}"):
            promised(name, 1e-4, 100, "here")
        with pytest.raises(UserError, match=f"--{name}"):
            promised(name, 1.5, 100, "here")
    assert promised("fmr", 0.1, 100, "") == promised("fmr", 0, 100, "") == 0.1
    assert promised("fmr", 0, 10**9, "") == 1e-3
    # without an error, the interval is that of the rule of three, by people
    sample, label, none = Bootstrap(20), np.arange(20), np.arange(0)
    assert sample.of_one(label, label < 0) == Rate(0, 20, 20, 0, 3 / 20)
    assert sample.of_two(none, none, label, label) == Rate(0, 380, 20, 0, 3 / 380)


def test_answers():
    rates = {name: Rate(n, 100, 9, 0, 0.1) for n, name in enumerate(("fmr", "refused", "unknown", "fpir", "fnir"), 1)}
    known = Thresholds(0.6, 0.3, 0.8, "here", 9, rates)
    cases = {0.8: ("same", "same"), 0.6: ("same", "unknown"), 0.3: ("unknown",) * 2, 0.29: ("different",) * 2}
    for cosine, (pair, hit) in cases.items():
        assert known.answer(cosine) == pair and known.answer(cosine, search=True) == hit
    reasons = [known.reason(*of) for of in (("same",), ("different",), ("unknown",), ("same", True), ("unknown", True))]
    assert all(f"{n} %" in reason for n, reason in enumerate(reasons, 1))


# ---- the index, with features from the bytes of the files


class Fake:
    """Stands for a FeatureExtractor; counts the pictures, and raises `error` after `stop_after` of them."""

    fingerprint, flip, half, width, checkpoint = "0123", False, False, 6, Path("fake.pth")

    def __init__(self, stop_after: int = 10**9, error: type[BaseException] = KeyboardInterrupt):
        self.read, self.stop_after, self.error = 0, stop_after, error

    @staticmethod
    def feature(data: bytes) -> np.ndarray:
        return unit(1, 6, seed=zlib.crc32(data)).numpy()

    def batches(self, pictures, bad):
        for place, path in enumerate(pictures):
            if self.read == self.stop_after:
                raise self.error
            if (data := Path(path).read_bytes()) == b"bad":
                bad[place] = f"{path} is bad"
            else:
                self.read += 1
                yield [place], torch.from_numpy(self.feature(data))


def change(index: Path, how, *args) -> None:
    """Add to an index on the disk, or remove from it."""
    with changing(index) as opened:
        how(opened, *args)


def names(index) -> list[str]:
    return [file.path for file in index.entries()]


GOOD = {"a.png", "b $x_1$.png", "below/c.png", "below/d.png", "e.png", "f.png"}


def write_files(folder: Path, *names: str) -> Path:
    """Each holds its name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven files, one of them unreadable."""
    folder = write_files(tmp_path / "folder", *GOOD, "g.png")
    (folder / "g.png").write_bytes(b"bad")
    return folder


def check(index: Path, folder: Path, expected: set[str] | None = None, whole: bool = True) -> None:
    """Each picture has its features, for np.load too unless a program was stopped; ids are in order."""
    index = read_index(index)
    if whole and len(index):
        assert np.array_equal(np.load(index.directory / index.about["features"])[: len(index)], index.features)
    for file, feature in zip(index.files, index.features, strict=True):
        data = (folder / file.path).read_bytes()
        assert np.array_equal(feature, Fake.feature(data)[0]), file.path
        for exact in (True, False):
            ((cosine, found),) = index.find(torch.from_numpy(Fake.feature(data)), 1, exact)
            assert cosine == pytest.approx(1, abs=1e-5) and found.path == file.path
    assert (np.diff(index.ids) > 0).all() and expected in (None, {file.path for file in index.files})


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_added_and_removed_is_as_indexed_at_once(folder, tmp_path, monkeypatch, kind):
    pytest.importorskip("faiss")
    index, numbers = tmp_path / "i", [f"{number}.png" for number in range(8)]
    make_index(Fake(), [folder], index, kind)
    check(index, folder, GOOD)
    assert read_index(index).files == sorted(read_index(index).files)
    with monkeypatch.context() as patch:
        patch.setattr(indexes, "build_engine", lambda *args: pytest.fail("rebuilt"))
        more = write_files(tmp_path / "more", *numbers, "a.txt")
        change(index, add, Fake(), [more, folder / "a.png", folder / "g.png"])
        change(index, remove, ["a.png", str(folder / "below"), "../more/3.png"])
        (folder / "e.png").write_bytes(b"another picture")
        (more / "5.png").write_bytes(b"bad")  # what cannot be read any more stays as it was
        change(index, add, extractor := Fake(), [folder, more])
        assert extractor.read == 5
        write_files(more, "5.png")
    check(index, folder, GOOD | {f"../more/{name}" for name in numbers})
    assert sorted(read_index(index).ids) == [1, 5, 6, 7, 8, *range(10, 19)]
    change(index, remove, [str(folder), str(more)])
    assert len(read_index(index)) == 0
    change(index, add, Fake(), [folder / "a.png"])
    check(index, folder, {"a.png"})
    assert read_index(index).ids == [19]
    make_index(Fake(), [folder], index, kind)
    check(index, folder, GOOD)
    assert len(list(index.glob("[!.]*"))) == 2 + (kind != "exact")


def test_what_was_computed_before_a_stop_is_not_computed_again(folder, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    index = tmp_path / "i"
    with pytest.raises(Stopped, match="0 of 7 are saved"):
        make_index(Fake(stop_after=0), [folder], index)
    with pytest.raises(Stopped, match="4 of 7 are saved; repeat the command to continue"):
        make_index(Fake(stop_after=4), [folder], index, "hnsw")
    check(index, folder, {"a.png", "b $x_1$.png", "below/c.png", "below/d.png"})
    assert "not complete" in find(read_index(index), unit(1, 6), 9, None, False)[1]
    (folder / "a.png").write_bytes(b"another picture")
    make_index(extractor := Fake(), [folder], index, "hnsw")
    check(index, folder, GOOD)
    assert extractor.read == 3 and "complete" not in find(read_index(index), unit(1, 6), 9, None, False)[1]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="--exact"):
        patch.setattr(indexes, "search_engine", lambda *args: (np.zeros((1, 3), "f4"), np.full((1, 3), -1)))
        find(read_index(index), unit(1, 6), 3, None, False)
    (folder / "f.png").unlink()
    (folder / "e.png").write_bytes(b"another")
    make_index(extractor := Fake(), [folder], index)
    check(index, folder, GOOD - {"f.png"})
    assert extractor.read == 1 and "engine" not in read_index(index).about
    # a kill leaves what was saved last, and more rows than that
    write_files(folder, "x1.png", "x2.png")
    monkeypatch.setattr(indexes, "SAVE_SECONDS", -1)
    with pytest.raises(ZeroDivisionError):
        make_index(Fake(stop_after=1, error=ZeroDivisionError), [folder], index)
    with open(index / read_index(index).about["features"], "r+b") as file:
        file.write(indexes.npy_header(99, 6))
        file.seek(0, os.SEEK_END)
        file.write(b"half a row")
    check(index, folder, GOOD - {"f.png"} | {"x1.png"}, whole=False)
    (folder / "x2.png").write_bytes(b"x3")
    make_index(Fake(), [folder], index)
    check(index, folder, GOOD - {"f.png"} | {"x1.png", "x2.png"})


def test_a_stop_at_any_moment_leaves_the_old_index_or_the_new_one(folder, tmp_path, monkeypatch):
    pytest.importorskip("faiss")

    def stopping(real, left: list[int]):
        def stop(*args, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*args, **options)

        return stop

    changes = [
        lambda index: change(index, add, Fake(), [folder / "e.png", folder / "f.png"]),
        lambda index: change(index, remove, ["a.png"]),
        lambda index: make_index(Fake(), [folder], index, "hnsw"),
    ]
    make_index(Fake(), [folder / "a.png", folder / "below" / "c.png"], tmp_path / "hnsw", "hnsw")
    make_index(Fake(), [folder / "a.png", folder / "below" / "c.png"], tmp_path / "exact")
    for kind in ("hnsw", "exact"):
        for make in changes:
            finished = False
            for stop_at in range(50):
                index = shutil.copytree(tmp_path / kind, tmp_path / "copy")
                left = [stop_at]
                with monkeypatch.context() as patch:
                    for name in ("fsync", "replace"):
                        patch.setattr(os, name, stopping(getattr(os, name), left))
                    patch.setattr(Path, "write_bytes", stopping(Path.write_bytes, left))
                    with suppress(KeyboardInterrupt):
                        make(index)
                        finished = True
                check(index, folder)
                with suppress(UserError):  # it can be done again, unless it was done
                    make(index)
                check(index, folder)
                shutil.rmtree(index)
                if finished:
                    break
            assert finished and stop_at > 3


def test_damage_is_found_and_named(folder, tmp_path):
    pytest.importorskip("faiss")
    make_index(Fake(), [folder], index := tmp_path / "index", "hnsw")
    query = torch.from_numpy(Fake.feature(b"a.png"))
    rng = np.random.default_rng(0)
    for name in ("index.json", "features.npy", "engine.faiss"):
        data = (index / name).read_bytes()
        ways = [b"", b"words", data[:-1], data[: len(data) // 2]]
        ways += [None] * (name != "index.json")  # no such file
        for place in (*rng.integers(0, len(data), 30), 0, len(data) - 1):
            if name != "features.npy" or place >= 128:  # the header is for other programs
                ways.append(data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :])
        for damaged in ways:
            (index / name).unlink() if damaged is None else (index / name).write_bytes(damaged)
            with pytest.raises(UserError, match=re.escape(str(index / name))) as caught:
                read_index(index).find(query, 3, exact=name == "features.npy")
            assert "\n" not in str(caught.value)
            if name == "features.npy":  # nor is it copied to a new file with a checksum that fits
                before = (index / "index.json").read_bytes()
                with pytest.raises(UserError):
                    change(index, remove, ["a.png"])
                assert (index / "index.json").read_bytes() == before
            if name == "engine.faiss":
                assert read_index(index).find(query, 3, exact=True)[0][1].path == "a.png"
        (index / name).write_bytes(data)
    other = read_index(index)
    other.about["engine"]["kind"] = "ivf"
    with pytest.raises(UserError, match=r"engine.faiss.*ivf"):
        other.find(query, 3)
    other.about["format"] = "PlainReID index 3"
    other.save()
    with pytest.raises(UserError, match="index 3"):
        read_index(index)


def test_what_cannot_be_indexed_is_refused_and_left_alone(folder, tmp_path, monkeypatch):
    (tmp_path / "old.idx").write_bytes(b"PK of an older version")
    for place, output, words in (
        (folder, tmp_path / "old.idx", "old.idx"),
        (folder, folder, "folder"),
        (folder / "g.png", tmp_path / "i", "none of the pictures"),
    ):
        with pytest.raises(UserError, match=words):
            make_index(Fake(), [place], output)
    assert (tmp_path / "old.idx").read_bytes().startswith(b"PK") and sorted(os.listdir(folder))[0] == "a.png"
    with pytest.raises(UserError, match="none"), changing(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
    make_index(Fake(), [folder], tmp_path / "i")
    with changing(tmp_path / "i"), pytest.raises(UserError, match="another program is writing"):
        make_index(Fake(), [folder], tmp_path / "i")
    check(tmp_path / "i", folder, GOOD)

    def full(*args):
        raise OSError(28, "No space left on device")

    (folder / "h.png").write_bytes(b"h")
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space .*features\.npy"):
        patch.setattr(indexes, "npy_header", full)
        make_index(Fake(), [folder], tmp_path / "i")
    check(tmp_path / "i", folder, GOOD)


def test_a_tracklet_is_one_entry_with_the_mean_of_its_features(folder, tmp_path, monkeypatch):
    write_files(folder, "p/c/1.png", "p/c/2.png", "p/c/3.png", "q/1.png")
    (folder / "g.png").unlink()

    def expected(*names: str) -> torch.Tensor:
        rows = [Fake.feature((folder / name).read_bytes()) for name in names]
        return normalize(torch.from_numpy(np.sum(rows, 0)))

    class Batches(Fake):
        """Three pictures per batch, across tracklets."""

        def batches(self, pictures, bad):
            found = [(places[0], rows) for places, rows in super().batches(pictures, bad)]
            for start in range(0, len(found), 3):
                places, rows = zip(*found[start : start + 3], strict=True)
                yield list(places), torch.cat(rows)

    members = {".": ["a.png", "b $x_1$.png", "e.png", "f.png"], "below": ["below/c.png", "below/d.png"],
               "p/c": ["p/c/1.png", "p/c/2.png", "p/c/3.png"], "q": ["q/1.png"]}  # fmt: skip
    index = make_index(Batches(), [folder], tmp_path / "i", tracklets=True)
    assert names(index) == list(members) and [file.picture for file in index.files] == [m[0] for m in members.values()]
    for row, own in zip(torch.from_numpy(index.features), members.values(), strict=True):
        torch.testing.assert_close(row[None], expected(*own), atol=1e-6, rtol=0)
    # one that changed is computed again, as a whole
    (folder / "p/c/2.png").unlink()
    (folder / "p/c/4.png").write_bytes(b"bad")
    with changing(tmp_path / "i") as opened:
        add(opened, extractor := Batches(), [folder / "p", folder / "q"])
        assert extractor.read == 2 and sorted(names(opened)) == list(members)
        torch.testing.assert_close(torch.from_numpy(opened.features[-1:]), expected("p/c/1.png", "p/c/3.png"))
        remove(opened, [str(folder / "p")])
    (folder / "p/c/4.png").write_bytes(b"4")
    # a CSV names cameras, times and tracks
    text = (
        "path,pid,camid,track,time\na.png,7,door,1,2026-01-01\ne.png,7,door,1,2026-01-01\n"
        "f.png,7,yard,1,2026-01-02\np/c/4.png,7,door,2,2026-01-03\n"
    )
    (folder / "list.csv").write_text(text)
    index = make_index(Batches(), [folder / "list.csv"], tmp_path / "c")
    assert names(index) == ["list.csv/7/door/1", "list.csv/7/door/2", "list.csv/7/yard/1"] and index.about["tracklets"]
    torch.testing.assert_close(torch.from_numpy(index.features[:1]), expected("a.png", "e.png"), atol=1e-6, rtol=0)
    day = indexes.seconds("2026-01-02", "")
    for where, rows in ((("door",), {0, 1}), (("", day), {1, 2}), (("", -1, day), {0, 2}), (("yard", day, day), {2})):
        hits = index.find(unit(1, 6), 9, False, indexes.Where(*where))
        assert {index.files.index(file) for _, file in hits} == rows
        expected_cosines = sorted((unit(1, 6).numpy() @ index.features.T)[0, list(rows)], reverse=True)
        assert [cosine for cosine, _ in hits] == pytest.approx(expected_cosines, abs=1e-6)
    with pytest.raises(UserError, match="--camera"):
        find(index, unit(1, 6), 9, None, False, indexes.Where("gate"))
    (folder / "list.csv").write_text(text.replace("2026-01-02", "soon"))
    with pytest.raises(UserError, match="soon"):
        make_index(Batches(), [folder / "list.csv"], tmp_path / "c")
    # labels that change need no model
    (folder / "list.csv").write_text(text.replace("2026-01-02", "9"))
    index = make_index(extractor := Batches(), [folder / "list.csv"], tmp_path / "c")
    assert extractor.read == 0 and read_index(tmp_path / "c").files[2].time == 9


# ---- Milvus


@pytest.fixture(params=["file", "server"])
def uri(request, tmp_path):
    """Of Milvus Lite, or of a server of the last version that pip installs."""
    pytest.importorskip("milvus_lite")
    if request.param == "file":
        yield str(tmp_path / "m.db")
        return
    python = environment(tmp_path / "env", ["milvus==2.3.5"])
    code = f"""
import sys
from milvus import default_server as server
server.set_base_dir({str(tmp_path / "server")!r})
server.start()
print(server.listen_port, flush=True)
sys.stdin.read()
server.stop()"""
    with subprocess.Popen([python, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"


class Killed(Fake):
    """Its process is killed at the fourth picture."""

    def batches(self, pictures, bad):
        for number, batch in enumerate(super().batches(pictures, bad)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


@pytest.mark.slow
def test_milvus_holds_each_picture_once_whatever_stops_it(folder, tmp_path, uri):
    place = tmp_path / "m", "milvus", uri

    def check_milvus(expected: set[str]) -> None:
        index = read_index(tmp_path / "m")
        assert names(index) == sorted(expected) and len(index) == len(expected)
        rows = [Fake.feature((folder / path).read_bytes()) for path in names(index)]
        features = torch.from_numpy(np.concatenate(rows))
        for path, feature in zip(names(index), features, strict=True):
            hits, cosines = index.find(feature[None], 3), (features @ feature).sort(descending=True).values[:3]
            assert hits[0][1].path == path
            assert [cosine for cosine, _ in hits] == pytest.approx(cosines.tolist(), abs=1e-5)
        index.client.close()

    assert killed(partial(make_index, Killed(), [folder], *place), "spawn")  # while it adds
    make_index(extractor := Fake(), [folder], *place).client.close()
    assert extractor.read == 3 and ("://" in uri or [*Path(uri).rglob("*.idx")])  # of six; the graph is built already
    check_milvus(GOOD)
    (folder / "e.png").write_bytes(b"another picture")
    (folder / "h_c3.png").write_bytes(b"h")
    os.utime(folder / "h_c3.png", (2e9, 2e9))
    with changing(tmp_path / "m") as index:
        add(index, extractor := Fake(), [folder])
        index.client.close()
    assert extractor.read == 2
    check_milvus(GOOD | {"h_c3.png"})
    with changing(tmp_path / "m") as index:
        remove(index, ["below", str(folder / "a.png")])
        with pytest.raises(UserError, match="nobody"):
            remove(index, ["nobody"])
        hits, _ = find(index, unit(1, 6), 9, None, False, indexes.Where("3"))
        assert [hit.name for hit in hits] == ["h_c3.png"]
        assert {f.path for _, f in index.find(unit(1, 6), 9, False, indexes.Where(after=2e9))} == {"h_c3.png"}
        assert len(index.find(unit(1, 6), 9, False, indexes.Where(before=2e9 - 1))) == 3
        with pytest.raises(UserError, match="--camera"):
            find(index, unit(1, 6), 9, None, False, indexes.Where('3" or "\\'))
        index.client.close()
    (folder / "f.png").unlink()
    make_index(Fake(), [folder], *place).client.close()
    check_milvus(GOOD - {"f.png"} | {"h_c3.png"})
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1"):
        make_index(Fake(), [folder], tmp_path / "n", "milvus", "http://127.0.0.1:1")


# ---- the programs, with a model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """log/demo/last.pth of an untrained model, data/demo, crops (three pictures, one of them below, one that is cut
    short, and a text) and their index g."""
    base = tmp_path_factory.mktemp("saved")
    write_tree(base / "data" / "demo")
    save_model(tiny_config(base))
    gallery = base / "data" / "demo" / "bounding_box_test"
    (base / "crops" / "below").mkdir(parents=True)
    for name, source in (("a.jpg", "0007_c1s1_000000_00"), ("b $x_1$.jpg", "0008_c1s1_000000_00"),
                         ("below/c.jpg", "0009_c2s1_000001_00")):  # fmt: skip
        shutil.copy(gallery / f"{source}.jpg", base / "crops" / name)
    (base / "crops" / "cut.jpg").write_bytes((base / "crops" / "a.jpg").read_bytes()[:200])
    (base / "crops" / "notes.txt").write_text("notes")
    return base


@pytest.fixture
def base(saved, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "base")


@pytest.fixture(autouse=True)
def drawings(monkeypatch) -> list:
    """Arguments of drawings, which take longer than all the rest and are not made."""
    drawings = []
    monkeypatch.setattr(answer, "draw_answer", lambda *args: drawings.append(args))
    return drawings


def search(base: Path, command: str, *args: object):
    """The program, with the run and the data of `base`."""
    where = ["--log-dir", base / "log", "--index" if command != "index" else "--output", base / "g"]
    where += ["--data-root", base / "data"] if command != "remove" else []
    return program("tools/search.py", command, *args, *where)


def done(base: Path, command: str, *args: object) -> str:
    """What it prints, if all went well."""
    shown = search(base, command, *args)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def listed(shown: str) -> list[tuple[float, str]]:
    """(similarity, picture) of each line of a table of hits."""
    lines = re.findall(r"^ *\d+ +(-?\d\.\d{3})  (?:(?:same|unknown|different) +)?(.+)$", shown, re.MULTILINE)
    return [(float(similarity), name) for similarity, name in lines]


def test_indexed_pictures_are_found_by_their_cosine(base, drawings):
    crops, query = base / "crops", base / "data" / "demo" / "query"
    shown = done(base, "index", crops)
    assert "left out: 1" in shown and "cut.jpg cannot be decoded" in shown
    names = ["a.jpg", "b $x_1$.jpg", "below/c.jpg"]
    features = FeatureExtractor(base / "log" / "demo", device="cpu")([crops / name for name in names]).double()
    for pictures, top in (([0], 10), ([1], 2), ([0, 2], 3)):
        mean = features[pictures].sum(0)
        cosine = (features @ (mean / mean.norm())).tolist()
        expected = sorted(zip(cosine, names, strict=True), reverse=True)[:top]
        found = listed(done(base, "ask", *(crops / names[i] for i in pictures), "--top", top))
        assert [name for _, name in found] == [name for _, name in expected]
        assert [s for s, _ in found] == pytest.approx([s for s, _ in expected], abs=6e-4)
    assert drawings[0][0] == base / "answer_a.png" and drawings[0][2][0].path == crops / "a.jpg"
    assert "added: 12, replaced: 0" in done(base, "add", query)
    assert "removed: 1;" in done(base, "remove", "a.jpg")
    name = "0007_c1s1_000090_00.jpg"
    assert listed(done(base, "ask", query / name))[0] == (1.0, f"../data/demo/query/{name}")
    # paths with .. are found from a folder that is gone, or a link
    shutil.move(crops, base / "moved")
    done(base, "ask", query / "0007_c1s1_000090_00.jpg")
    assert drawings[-1][2][0].path == query / "0007_c1s1_000090_00.jpg"
    done(base, "remove", crops)
    done(base, "remove", query)
    refused(search(base, "ask", query / "0007_c1s1_000090_00.jpg"), "is empty")


def test_without_arguments_the_runs_gallery_is_indexed_and_its_first_query_asked(base, drawings, monkeypatch):
    monkeypatch.chdir(base)
    monkeypatch.setenv("REID_DATA", "data")
    shown = program("tools/search.py").stdout
    assert len(listed(shown)) == 10 and "0007_c1s1_000090_00.jpg: 10 of 25 pictures" in shown
    assert drawings[0][0] == Path("log/demo/answer_0007_c1s1_000090_00.png")
    shutil.copytree("log/demo/gallery", "log/other/features")
    os.utime("log/demo/gallery/index.json", (1e9, 1e9))
    shutil.copytree("log/demo", "log/newer")  # a run that is newer than any index
    shutil.rmtree("log/newer/gallery")
    asked = program("tools/search.py", "ask").stdout
    assert "index log/other/features, " in asked and "log/demo/gallery" in asked
    refused(program("tools/search.py", "ask", "--checkpoint", "newer"), "log/newer/gallery")
    shutil.rmtree("log/newer")
    refused(program("tools/search.py", "ask", "--log-dir", "nowhere"), "nowhere")
    (base / "data").rename(base / "elsewhere")
    monkeypatch.setenv("REID_DATA", "elsewhere")
    assert "pictures in log/demo/gallery: 25, of which computed now: 25" in program("tools/search.py").stdout


def test_an_index_asks_as_it_was_made_and_only_with_its_model(base):
    asked = base / "crops" / "a.jpg"
    done(base, "index", base / "crops", "--flip", "--half", "--engine", "hnsw")
    assert listed(done(base, "ask", asked, "--exact"))[0] == (pytest.approx(1, abs=2e-3), "a.jpg")
    assert listed(done(base, "ask", asked))[0][1] == "a.jpg"
    done(base, "add", base / "data" / "demo" / "query")
    flipped = FeatureExtractor(base / "log" / "demo", device="cpu", flip=True, half=True)
    index = read_index(base / "g")
    expected = flipped([base / "crops" / file.path for file in index.files]).numpy()
    np.testing.assert_allclose(index.features, expected, atol=1e-2)
    (base / "log" / "demo" / "last.pth").rename(base / "moved.pth")
    refused(search(base, "ask", asked), "last.pth", "--checkpoint")
    assert listed(done(base, "ask", asked, "--checkpoint", base / "moved.pth"))[0][1] == "a.jpg"
    state = torch.load(base / "moved.pth", weights_only=True)
    state["model"]["branches.0.neck.running_mean"] += 0.1
    save_checkpoint(base / "log" / "other" / "last.pth", state)
    refused(search(base, "ask", asked, "--checkpoint", "other"), base / "g", "another model", "--checkpoint")


def test_bad_input_is_one_sentence_and_changes_nothing(base):
    crops = base / "crops"
    done(base, "index", crops)
    before = (base / "g" / "index.json").read_bytes()
    for command, *args in (
        ("ask", crops / "cut.jpg"),
        ("ask", crops, "--after", "yesterday"),
        ("ask", crops / "a.jpg", "--top", "0"),
        ("add",),
        ("remove",),
        ("remove", "a.jpg", "nobody.jpg"),
        ("threshold", "nothing"),
    ):
        refused(search(base, command, *args), Path(args[-1]).name if args else "no picture is named")
    assert (base / "g" / "index.json").read_bytes() == before
    shutil.rmtree(base / "log")
    refused(program("tools/search.py", "index", crops, "--log-dir", base / "log"), "log")


def test_a_threshold_is_found_stored_and_used(base):
    asked = base / "crops" / "a.jpg"
    done(base, "index", base / "crops")
    assert "unknown" not in done(base, "ask", asked) and "threshold" in done(base, "compare", asked, asked)
    shown = done(base, "threshold")
    numbers = re.compile(r"^pairs of .*?  +([\d,]+), ", re.MULTILINE)
    assert numbers.findall(shown) == ["48", "228"]  # 12 queries: 2 cameras x 2 images; 25 images less 6 of their own
    stored = Thresholds(**read_index(base / "g").about["threshold"]["pictures"])
    assert f"{stored.same:.3f}" in shown and str(stored.rates["fnmr"]) in shown and "cam 1 in cam 2" in shown
    marks = re.findall(r"^ *\d+ +(\S+)  (same|unknown|different) ", done(base, "ask", asked), re.MULTILINE)
    assert len(marks) == 3 and all(stored.answer(float(s), search=True) == m for s, m in marks)
    assert "answer: the person of a.jpg" in (found := done(base, "ask", asked)) and str(stored.rates["fpir"]) in found
    assert "answer: unknown" in done(base, "ask", asked, "--threshold", "1.1")
    assert f"same: similarity 1.000, at least {stored.same:.3f}" in done(base, "compare", asked, asked)
    assert done(base, "compare", asked, asked, "--threshold", "1.1").startswith("different: similarity ")
    refused(search(base, "threshold", "--fmr", "1e-4"), "--fmr")
    refused(search(base, "compare", asked), "compare")
    done(base, "threshold", "--store", "eer")
    stored = read_index(base / "g").about["threshold"]["pictures"]
    assert stored["same"] == stored["different"]
    with changing(base / "g") as index:  # of an older version
        index.about["threshold"] = {"value": 0.25, "rule": "FPR 0.001", "dataset": "demo"}
        index.save()
    assert "same person from 0.250 on (FPR 0.001 on demo)" in done(base, "ask", asked)
    # of a folder with one folder per identity, all is used
    people, alone = base / "people", base / "alone" / "test" / "anna"
    for path in (base / "data" / "demo" / "bounding_box_train").iterdir():
        (people / path.name[:4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, people / path.name[:4])
    assert numbers.findall(done(base, "threshold", people)) == ["36", "270"]  # 18 queries, 18 others
    for number, path in enumerate(sorted((base / "data" / "demo" / "query").glob("0007*"))):
        (alone / f"cam{number}").mkdir(parents=True)
        shutil.copy(path, alone / f"cam{number}")
    refused(search(base, "threshold", base / "alone"), "of different people")


def test_figures_of_tracklets_are_next_to_those_of_pictures(base):
    done(base, "index", base / "crops")
    rows = [(path, path.name[:4], path.name[6]) for path in sorted((base / "data/demo/bounding_box_train").iterdir())]
    lines = [f"{path},{pid},{camera},1" for path, pid, camera in rows]
    (base / "tracks.csv").write_text("\n".join(["path,pid,camid,track", *lines]))
    shown = done(base, "threshold", base / "tracks.csv")
    assert re.search("people +pictures +tracklets$", shown, re.MULTILINE)
    person = base / "person"
    person.mkdir()
    for path, _, _ in rows[:6]:
        shutil.copy(path, person)
    assert "(tracklets of tracks; " in done(base, "compare", person, person)
    assert "(pictures of tracks; " in done(base, "compare", person, rows[0][0])
    assert "pictures, averaged: 3 of 3" in done(base, "ask", person)
    # one tracklet of each person, and no cameras: only pictures can be compared
    (base / "plain").mkdir()
    lines = [f"{shutil.copy(path, base / 'plain' / f'{i}.jpg')},{pid},1" for i, (path, pid, _) in enumerate(rows)]
    (base / "plain.csv").write_text("\n".join(["path,pid,track", *lines]))
    done(base, "threshold", base / "plain.csv")
    assert list(read_index(base / "g").about["threshold"]) == ["pictures"]

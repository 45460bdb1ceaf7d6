"""README, docs and the notebook: every command line is accepted by its program, and all code runs, shortened."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import tiny_config, write_tree
from helpers import ROOT, program, save_features

import config.cli
import config.options
import processor.test  # noqa: F401  before a test replaces what it imports
from config import Config
from config.config import METRIC_LOSSES, Optimizer, Protocol, Sampler
from model import BACKBONES, BRANCHES, make_model
from model.attention import ATTENTION
from model.heads import HEADS
from model.pooling import POOLING
from processor import do_train

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PARTS = (ROOT / "docs" / "parts.md").read_text()
NAMES = {"PRESET": "tiny_b1", "NAME": "demo", "TASK": "eval", "FOLDER": "path/to/pictures", "QUERY": "query.jpg"}
NAMES |= {"TARGET": "boxmot", "PICTURE": "path/to/pictures/anna/c1s1.jpg", "log/large": "log/demo"}
NOT_RUN = {  # beginnings of commands
    "python -m pytest": "the tests themselves",
    "pip install": "a network; the packages are there",
    "python tools/search.py index FOLDER --engine milvus": "a database; tests/test_gallery.py runs it",
    "torchrun": "four GPUs; tests/test_distributed.py runs two processes on the CPU",
    "export": "Slurm",
    "srun": "Slurm",
    "[ $? = 138 ]": "Slurm",
    "scontrol": "Slurm",
    "python train.py --backbone own": "the files of its section; the README's own test runs it with them",
}
TINY = "--device cpu --height 32 --width 16 --pad 2 --batch-size 8 --images-per-id 2 --weights none --epochs 1 --steps"
TINY += " --warmup-epochs 0 --workers 2 --no-rerank"
SEARCH = f"{TINY} --width 32 --center-weight 0 --holdout-ids 3 --supernet-epochs 1 --candidates 4 --at-random 3"
SHORT = {  # options that make a program short; of an option that comes twice, the last one counts
    "train.py": TINY,
    "tiny_b1": "--backbone mobilenet_v2",
    "tools/visualize_augmentation.py": "--batch-size 8 --images-per-id 2 --num 2",
    "tools/check_dataset.py": "--batch-size 8",
    "tools/search_backbone.py": f"{SEARCH} --max-flops 9M",
    "market1501+msmt17": "--dataset market1501+demo",
    "--start-sizes": "--start-sizes 16x16:1 --epochs 2",
    "--teacher": "--dataset demo",
    "--retrain": "--retrain 1 --references",
    "--at-random": "--candidates 2 --at-random 1 --least-share 0",
    "--check-ranking": "--check-ranking 3",
    "--check-latency": "--check-latency 3",
    "--max-latency": "--max-latency 1000",
}


def split(line: str) -> list[str]:
    """A line of a shell to words, without comments and [optional parts], its stand-ins replaced."""
    words = shlex.split(re.sub(r"\[[^\]]*\]", "", line), comments=True)
    return [NAMES.get(word, word) for word in words]


def lines(code: str) -> Iterator[str]:
    """The commands of a block."""
    for line in code.replace("\\\n", " ").splitlines():
        yield from filter(None, map(str.strip, re.sub(r"(^|\s)#.*", "", line).split(" && ")))


def all_commands() -> Iterator[str]:
    """Those of blocks and those within sentences."""
    for page in PAGES:
        text = page.read_text()
        for language, code in BLOCK.findall(text):
            yield from lines(code) if language == "sh" else ()
        for code in re.findall(r"`((?:python|torchrun) [^`]+)`", BLOCK.sub("", text)):
            yield from lines(" ".join(code.split()))


def test_every_command_line_is_accepted(monkeypatch, tmp_path):
    """Each program is started, and ended where its options have been read and checked."""
    parsed = []

    def then_end(parse):
        return lambda *args, **options: (parse(*args, **options), parsed.append(args), sys.exit(0))

    for before in (config.cli.parse_settings, config.options.parse_options):
        name = before.__name__
        for module in [m for m in sys.modules.values() if getattr(m, name, None) is before]:
            monkeypatch.setattr(module, name, then_end(before))
    monkeypatch.chdir(tmp_path)
    commands = sorted({line for line in all_commands() if re.match("python|torchrun", line)})
    assert len(commands) > 40
    for command in commands:
        words = split(command)
        script = next((i for i, word in enumerate(words) if word.endswith(".py")), 0)
        if "pytest" in words or words[script] == "mine.py" or "own" in words:
            continue  # pytest's own options; programs and a setting of the reader's
        parsed.clear()
        shown = program(*words[script:])
        shows = {"--help", "--presets"} & set(words)
        assert shown.returncode == 0 and (parsed or shows), f"{command}: {shown.stderr}"


# ---- run


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A directory with small stand-ins for datasets, pictures, weights, and two runs."""
    base = tmp_path_factory.mktemp("docs")
    for name in ("demo", "Market-1501-v15.09.15", "cuhk03-np/detected"):
        write_tree(base / "data" / name, train_ids=8)
    pictures = sorted((base / "data" / "demo" / "bounding_box_train").glob("*.jpg"))
    for person, name in enumerate(("anna", "ben", "cem", "dora", "eve", "fay", "gil", "hans")):
        (base / "path/to/pictures" / name).mkdir(parents=True)
        for picture in pictures[6 * person : 6 * person + 6]:
            shutil.copy(picture, base / "path/to/pictures" / name / f"{picture.name[5:9]}{picture.name[9:16]}.jpg")
        shutil.copy(pictures[6 * person], base / "path/to/pictures" / name / "c1s1.jpg")
    for name in ("a.jpg", "b.png", "query.jpg"):
        shutil.copy(pictures[0], base / name)
    shutil.copytree(base / "path/to/pictures", base / "pictures")
    save_features(base / "features.npz")
    torch.save(make_model(Config(backbone="osnet_x0_25", weights="none"), 2).state_dict(), base / "FILE")
    searched = json.loads((ROOT / "results" / "demo_light_searched.json").read_text())["settings"]["backbone"]
    (base / "winner.json").write_text(searched.removeprefix("searched:"))
    (base / "mine.py").write_text("import processor\nprocessor.FeatureExtractor('log/demo')('path/to/pictures')\n")
    for name in ("RUN", "OTHER_RUN", "demo"):
        do_train(tiny_config(base, name=name, epochs=1, steps=(), eval_every=1, flip=True, seed=len(name)))
    return base


def shorten(words: list[str]) -> list[str]:
    return words + [word for name in words for word in shlex.split(SHORT.get(name, ""))]


def run_line(line: str) -> None:
    """One command, as printed but shorter."""
    if any(line.startswith(beginning) for beginning in NOT_RUN):
        return
    words = split(line)
    if "=" in words[0]:  # a variable of the environment: in a process of its own
        variables = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        done = subprocess.run([sys.executable, *words[2:]], env=variables, capture_output=True, text=True)
        assert words[0].startswith("PYTHONPATH=") and done.returncode == 0, done.stderr
        return
    assert words[0] == "python", line
    shown = program(*shorten(words[1:]))
    expected = (0, 1) if words[1] == "tools/check_dataset.py" else (0,)  # 1: it found something in the stand-ins
    assert shown.returncode in expected, f"{line}\n{shown.stdout}{shown.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "cpu"], ids=lambda page: page.stem)  # cpu: hours
def test_every_block_of_the_page_runs(page, ready, tmp_path, monkeypatch):
    base = shutil.copytree(ready, tmp_path / "base")
    (base / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(base)
    monkeypatch.delenv("REID_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    for language, code in BLOCK.findall(page.read_text()):
        if language == "sh":
            for line in lines(code):
                run_line(line)
        elif not code.startswith("# ") and page.stem != "trackers":  # they have tests of their own
            if "feats/index.json" in code:
                run_line("python tools/extract_features.py FOLDER --output feats")
            exec(compile(code, str(page), "exec"), {})


# ---- docs/parts.md


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("Backbones", [*BACKBONES, "timm/NAME", "searched:FILE.json", "supernet"]),
        ("Attention", ATTENTION),
        ("Pooling", POOLING),
        ("Heads", HEADS),
        ("Models of branches", BRANCHES),
        ("Identity losses", ["cross_entropy", "focal"]),
        ("Metric losses", ["triplet, hard", "triplet, weighted", *set(METRIC_LOSSES) - {"triplet"}, "center"]),
        ("Optimizers", get_args(Optimizer)),
        ("Schedules", ["steps", "cosine", "linear"]),
        ("Samplers", get_args(Sampler)),
        ("Evaluation", set(get_args(Protocol)) - {"auto"}),
    ],
)
def test_every_part_is_in_its_section(section, names):
    (text,) = re.findall(rf"^## {section}\b.*?(?=^## |\Z)", PARTS, re.MULTILINE | re.DOTALL)
    assert set(names) <= set(re.findall("`(.+?)`", text))


def test_every_file_exists():
    assert not [path for path in re.findall(r"\]\(\.\./(\S+)\)", PARTS) if not (ROOT / path).exists()]


# ---- the README's loss and backbone of one's own, word for word


HEADING = "## A loss and a backbone of your own\n"


def blocks(language: str) -> list[str]:
    """The section's code in this language, block by block."""
    section = (ROOT / "README.md").read_text().split(HEADING)[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project without what runs have left in it."""
    left_out = shutil.ignore_patterns("data", "log", ".*", "__pycache__", "tests", "docs", "results")
    return Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out))


def follow(copy: Path) -> None:
    """Do in the copy what the README says: `# FILE` begins a new file, `# FILE, below: WORDS` what goes there."""
    parts = re.split(r"^# (\S+\.py)(?:, below: (.+))?\n", "".join(blocks("python")), flags=re.MULTILINE)[1:]
    for name, beginning, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        path = copy / name
        assert path.exists() == bool(beginning)
        if beginning:
            line = re.compile(rf"^ *{re.escape(beginning)}.*\n", re.MULTILINE)
            text, number = line.subn(lambda found, text=text: found[0] + text, path.read_text())
            assert number == 1, f"{name} has {number} lines that begin with {beginning}"
        path.write_text(text)


def run(copy: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}  # nothing from outside the copy
    return subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)


def train(copy: Path, tree: Path, *more: str) -> subprocess.CompletedProcess:
    """The README's command, shrunk to two steps of four people with three images each."""
    (command,) = blocks("sh")
    python, *words = shlex.split(command)
    assert python == "python"
    words += ["--data-root", str(tree), "--train-ids", "4", "--batch-size", "12", "--images-per-id", "3"]
    words += ["--epochs", "1", "--steps", "1", "--height", "32", "--width", "16", "--pad", "2", "--no-rerank"]
    return run(copy, *words, "--device", "cpu", *more)


@pytest.mark.slow
def test_the_readmes_loss_and_backbone_are_trained_by_its_command(copy, tree):
    follow(copy)
    done = train(copy, tree)
    assert done.returncode == 0, done.stderr
    log = copy / "log" / "demo"
    *_, epoch = map(json.loads, (log / "metrics.jsonl").read_text().splitlines())
    assert epoch["epoch"] == 1 and -2 <= epoch["own"] < 2 and "triplet" not in epoch
    assert epoch["loss"] == pytest.approx(epoch["id"] + 0.5 * epoch["own"], abs=1e-4)
    state = torch.load(log / "last.pth", weights_only=True)
    assert state["model"]["backbone.2.weight"].shape == (256, 64, 3, 3)
    assert {int(s["step"]) for s in state["optimizers"]["model"]["state"].values()} == {2}


def test_a_loss_of_ones_own_is_checked_like_the_others(copy):
    follow(copy)
    code = "from config import Config; Config(triplet_weight=0.0, own_weight=0.5, sampler='shuffle').check()"
    done = run(copy, "-c", code)
    assert "the own loss needs several images" in done.stderr, done.stderr


# ---- the notebook


NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
SETTINGS = 'name="quickstart", epochs=8, steps=(5.0, 7.0), eval_every=8, resume=True'


@pytest.mark.slow
def test_the_notebook_runs_from_first_to_last_cell(tree, tmp_path, monkeypatch):
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(NOTEBOOK, 4)
    tiny = f'name="quickstart", epochs=1, steps=(), eval_every=1, data_root={str(tree)!r}, log_dir={str(tmp_path)!r}'
    tiny += ', device="cpu", batch_size=8, images_per_id=2, height=32, width=16, k1=4, k2=2, ranked_lists=2'
    cell = next(cell for cell in book.cells if SETTINGS in cell.source)
    cell.source = cell.source.replace(SETTINGS, tiny)
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join(output.get("text", "") for output in outputs)
    assert "flip+rerank" in printed and (tmp_path / "quickstart" / "last.pth").exists()


def test_the_notebook_is_stored_without_outputs():
    """Pictures of a run would make every commit of it large, and could show what must not be shown."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell["outputs"] for cell in cells if cell["cell_type"] == "code")

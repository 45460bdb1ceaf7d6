"""Write a small file of a trained model to publish: `python tools/publish.py [CKPT] --output weights/NAME.pth`.

All programs except `train.py --resume` accept it as a checkpoint. It holds weights in float16, settings and scores, but
no classifier, no optimizer state and no names of people. A model card, NAME.md, is written next to it: read and
complete the card before you publish it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from config.options import parse_options
from model import build_model
from processor.checkpoint import ABOUT, find_checkpoint, read_checkpoint, save_checkpoint, stored_config
from processor.evaluate import plain_settings, score_table
from tools.model_summary import count
from utils.errors import UserError, run
from utils.files import write_atomically
from utils.logging import log, setup_logging

CARD = """# {name}

| | |
|---|---|
| file | `{file}`, {megabytes:.1f} MB, {parameters:.2f} M parameters without the classifier, float16 |
| model | {backbone}, input {height} x {width}, embedding {dim} |
| trained on | {dataset}{note} |
| recipe | `{command}` |
| training | {epochs} epochs in {hours:.1f} h on {hardware}, commit {commit} |
| use | `python test.py {file}`, `FeatureExtractor("{file}")`, `tools/search.py --checkpoint {file}` |

Scores in percent of the run's last checkpoint, before rounding to float16:

```
{scores}
```

## Limits

This model is for research. It was trained on pictures of one place; scores are lower on other cameras, clothes, seasons
and people. A high similarity is not proof of identity, and errors are not the same for all groups of people. Do not use
it to watch or identify people without their consent where the law requires it, or to decide anything about a person.
"""


@dataclass
class Options:
    output: str  # file to write, such as weights/NAME.pth
    checkpoint: str = ""  # a file, a run's directory or name (empty: the latest run)
    log_dir: str = "log"  # directory of all runs


def published(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a checkpoint's dict without what only training needs; its classifier has one class, of zeros.

    Raises UserError for a checkpoint without scores.
    """
    if not state.get("history") or "scores" not in state["history"][-1]:
        raise UserError(f"{path} has no scores of its last epoch; finish the run with --resume")
    cfg = plain_settings(stored_config(state, path)).replace(
        resume=False, data_root="data", cache_dir="", log_dir="log"
    )
    cfg = cfg.replace(**{name: Path(cfg.get(name)).name for name in ("weights", "teacher")})
    weights = {}
    for name, empty in build_model(cfg, 1).state_dict().items():
        full = state["model"][name]
        weight = full if full.shape == empty.shape else torch.zeros_like(empty)
        weights[name] = weight.half() if weight.is_floating_point() and weight.ndim > 1 else weight
    about = {name: state.get(name, default) for name, default in (ABOUT | {"precision": ""}).items()}
    return about | {"model": weights, "config": cfg.to_dict(), "labels": {}, "history": state["history"][-1:]}


def card(state: dict[str, Any], file: Path) -> str:
    """Return the text of NAME.md for a published file."""
    cfg = stored_config(state, file)
    numbers = count(cfg)
    return CARD.format(
        name=file.stem, file=file, megabytes=file.stat().st_size / 1e6, parameters=numbers["parameters"] / 1e6,
        backbone=cfg.model.backbone, height=cfg.data.height, width=cfg.data.width, dataset=cfg.data.dataset,
        dim=numbers["embedding"], note=f"; {state['train_note']}" if state["train_note"] else "",
        command=state["command"], epochs=state["epoch"], hours=state["seconds"] / 3600,
        hardware=state["environment"].get("hardware"), commit=state["environment"].get("commit"),
        scores=score_table(state["history"][-1]["scores"]),
    )  # fmt: skip


def main() -> None:
    options = parse_options(None, Options, __doc__, "checkpoint")
    setup_logging()
    path, file = find_checkpoint(options.checkpoint or None, options.log_dir), Path(options.output)
    state = published(read_checkpoint(path), path)
    save_checkpoint(file, state)
    text = card(state, file)
    write_atomically(file.with_suffix(".md"), lambda temporary: temporary.write_text(text))
    log.info("%s, of %s, is %.1f MB; its card is %s", file, path, file.stat().st_size / 1e6, file.with_suffix(".md"))


if __name__ == "__main__":
    run(main)

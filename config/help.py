"""The text of --help. The help of a setting is the comment at the end of its line."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Literal, get_args, get_origin

from config.config import SECTIONS, Config, option
from utils.errors import UserError

EVERYDAY = (
    "name", "log_dir", "dataset", "data_root", "backbone", "weights", "height", "width", "batch_size", "images_per_id",
    "epochs", "lr", "optimizer", "precision", "flip", "rerank", "seed", "device", "workers", "resume",
)  # fmt: skip


def help_text(asked: str, default: Config, about: str, own: type | None, sections: Iterable[str]) -> str:
    """Return the text of --help: the program's options, everyday settings and names of sections; or whole sections."""
    chosen = [name for name in SECTIONS if asked == "all" or name.startswith(asked) or asked.startswith(name)]
    if asked != "short" and not chosen:
        raise UserError(f"there is no section {asked}; choose {', '.join(SECTIONS)} or all")
    preset = f" (defaults: preset {default.run.preset})" if default.run.preset else ""
    lines = [about.strip()] if asked in ("short", "all") else []
    if own and asked in ("short", "all"):
        lines += ["\noptions", *option_lines(own)]
    if asked == "short":
        few = own and sum(len(fields(SECTIONS[section])) for section in sections) <= 60
        lines += [f"\neveryday settings{preset}"]
        everyday = {line.split()[0]: line for s in sections for line in option_lines(SECTIONS[s], default)}
        lines += everyday.values() if few else [everyday[name] for name in map(option, EVERYDAY) if name in everyday]
        lines += ["\nsections (--help NAME prints one, --help all prints everything)"]
        lines += ["  " + ", ".join(f"{name} ({len(fields(kind))})" for name, kind in SECTIONS.items())]
    for section in chosen:
        lines += [f"\n{section}{preset}", *option_lines(SECTIONS[section], default)]
    return "\n".join(lines)


def option_lines(kind: type, cfg: Config | None = None) -> Iterable[str]:
    """One line per field of a dataclass: option, default (its value in `cfg`, if given), meaning, choices."""
    lines = "".join(inspect.getsource(base) for base in kind.__mro__[:-1])
    comments = dict(re.findall(r"^    (\w+): .*?  # (.+)$", lines, re.MULTILINE))
    for f in fields(kind):
        value = cfg.get(f.name) if cfg else f.default
        if isinstance(value, tuple):
            value = " ".join(map(str, value))
        shown = "required" if value is MISSING else "''" if value == "" else value
        choices = f" {{{', '.join(map(str, get_args(f.type)))}}}" if get_origin(f.type) is Literal else ""
        if not f.name.startswith("preset"):
            yield f"  {option(f.name):<24} {shown!s:<14} {comments.get(f.name, '')}{choices}"

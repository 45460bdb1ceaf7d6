"""The text of --help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from typing import Literal, get_args, get_origin

from config.cli import Setting, settings_of
from config.config import SECTIONS, Config, option
from utils.errors import UserError

EVERYDAY = (
    "name", "log_dir", "dataset", "data_root", "backbone", "weights", "height", "width", "batch_size", "images_per_id",
    "epochs", "lr", "optimizer", "precision", "flip", "rerank", "seed", "device", "workers", "resume",
)  # fmt: skip
HIDDEN = ("preset", "preset_note")


def help_text(asked: str, default: Config, about: str, own: type | None, sections: Iterable[str]) -> str:
    """The text of --help: the program's own options, everyday settings and names of sections; or whole sections."""
    known = {name: settings_of(kind) for name, kind in SECTIONS.items()}
    chosen = [name for name in known if asked == "all" or name.startswith(asked) or asked.startswith(name)]
    if asked != "short" and not chosen:
        raise UserError(f"there is no section {asked}; choose {', '.join(known)} or all")
    preset = f" (defaults: preset {default.run.preset})" if default.run.preset else ""
    lines = [about.strip()] if asked in ("short", "all") else []
    if own and asked in ("short", "all"):
        lines += ["\noptions", *option_lines(settings_of(own))]
    if asked == "short":
        shown = {name: s for section in sections for name, s in known[section].items() if name not in HIDDEN}
        everyday = shown if own and len(shown) < 60 else {name: shown[name] for name in EVERYDAY if name in shown}
        lines += [f"\neveryday settings{preset}", *option_lines(everyday, default)]
        lines += ["\nsections (--help NAME prints one, --help all prints everything)"]
        lines += ["  " + ", ".join(f"{name} ({len(some)})" for name, some in known.items())]
    for section in chosen:
        lines += [f"\n{section}{preset}", *option_lines(known[section], default)]
    return "\n".join(lines)


def option_lines(settings: Mapping[str, Setting], cfg: Config | None = None) -> Iterable[str]:
    """One line per option: name, default (its value in `cfg`, if given), meaning, choices."""
    for s in settings.values():
        value = cfg.get(s.name) if cfg else s.default
        if isinstance(value, tuple):
            value = " ".join(map(str, value))
        shown = "required" if value is MISSING else "''" if value == "" else value
        choices = f" {{{', '.join(map(str, get_args(s.type)))}}}" if get_origin(s.type) is Literal else ""
        if s.name not in HIDDEN:
            yield f"  {option(s.name):<24} {shown!s:<14} {s.help}{choices}"

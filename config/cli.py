"""Command line to `Config`. tyro turns the dataclass into options; this file adds presets and checkpoints."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

import tyro

from config.config import Config
from config.presets import PRESETS
from utils.errors import UserError

C = TypeVar("C", bound=Config)


def parse_train(
    args: Sequence[str] | None, environ: Mapping[str, str], kind: type[C] = Config, prog: str = "train.py"
) -> C:
    """`[PRESET] [--setting value ...]` to checked settings of class `kind`; no preset means `demo`.

    `environ` gives REID_DATA, the default of --data-root. Raises UserError, or SystemExit(2) with tyro's message.
    """
    preset, args = split_first(args)
    preset = preset or "demo"
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(PRESETS)}."
        raise UserError(f"no preset is called {preset}; {hint}")
    return parse_settings(widen(PRESETS[preset], kind), args, environ, prog=f"{prog} [{'|'.join(PRESETS)}]")


def parse_settings(default: C, args: Sequence[str], environ: Mapping[str, str], prog: str) -> C:
    """`--setting value ...` on top of `default` to a checked Config of the same class."""
    if environ.get("REID_DATA"):
        default.data_root = environ["REID_DATA"]
    return read_settings(default, args, prog).check()


def read_settings(default: C, args: Sequence[str], prog: str) -> C:
    """The same, not checked."""
    if args and not args[0].startswith("-"):
        raise UserError(f"{args[0]} is not expected here; settings are given as --setting value, see --help")
    about = "PlainReID: person and vehicle re-identification in plain PyTorch."
    if default.preset:
        about += f" The defaults below are those of the preset '{default.preset}'."
    return tyro.cli(type(default), default=default, args=list(args), prog=prog, description=about)


def widen(cfg: Config, wider: type[C], **extra) -> C:
    """The same settings as an object of `wider`, a subclass of Config with settings of its own."""
    return wider(**{f.name: getattr(cfg, f.name) for f in fields(Config)}, **extra)


def split_first(args: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Take the leading word that is no option (a preset or a checkpoint) off the command line."""
    args = list(sys.argv[1:] if args is None else args)
    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    return None, args


def typed() -> str:
    """The command that was typed, to be stored with what comes of it."""
    return shlex.join(["python", *sys.argv])

"""Command lines of programs that train or test: all settings of `Config`, and the options of their own dataclass.

`config/help.py` prints what --help asks for; `config/options.py` is for programs without `Config`.
"""

import argparse
import contextlib
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from config.config import SECTIONS, SETTINGS, Config, check_range, option
from config.presets import describe_presets, load_preset
from utils.errors import UserError, did_you_mean
from utils.lookup import load

T = TypeVar("T")
OWN_PICTURES = "datasets.own_recipe:choose_settings"  # the default preset of a folder or .csv file
TEST_SECTIONS = ("run", "data", "eval")  # sections in the help of programs for trained models
TRAIN_USAGE = """usage: python train.py [PRESET] [--setting value ...]     (PRESET: demo if not given; list: --presets;
       for own pictures without a PRESET, the settings are chosen to fit the pictures and the machine)

Train a person or vehicle re-identification model and test it.

example: python train.py tiny_b1 --data-root data --epochs 60
"""


def settings_of(kind: type | None) -> dict[str, Field]:
    """The fields of a dataclass by name."""
    return {f.name: f for f in fields(kind)} if kind else {}


def parse_train(args: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """Parse `[PRESET] [--setting value ...]` into checked settings.

    `environ` gives REID_DATA, the default of --data-root. Raises UserError, or SystemExit after --help or --presets.
    """
    preset, args = split_first(args)
    if "--presets" in args:
        show("\n".join(f"{name:<40}{about}" for name, about in describe_presets().items()))
    return parse_settings(args, default_settings(preset, args), environ, TRAIN_USAGE)[0]


def default_settings(preset: str | None, args: Sequence[str], own: type | None = None) -> Config:
    """Return the settings of a preset. Without one, they fit the own pictures that --dataset names, or are `demo`."""
    if not preset and not asked_help(args):
        typed = parse_values(args, SETTINGS | settings_of(own))
        typed = {name: value for name, value in typed.items() if name in SETTINGS}
        if "dataset" in typed and (chosen := load(OWN_PICTURES)(typed)):
            return Config(**chosen)
    return load_preset(preset or "demo")


def parse_settings(
    args: Sequence[str], default: Config, environ: Mapping[str, str], about: str, own: type[T] | None = None,
    ranges: Mapping[str, str] = {}, sections: Iterable[str] = tuple(SECTIONS), check: bool = True,
) -> tuple[Config, T | None]:  # fmt: skip
    """Parse `--setting value ...`, on top of `default`, into checked settings and the program's own options.

    about: the text above the help. own: dataclass of the program's own options; ranges: their allowed intervals, such
    as {"num": "[1, inf)"}. sections: sections of `Config` that the help lists (settings of all sections are accepted).
    """
    if environ.get("REID_DATA"):
        default = default.replace(data_root=environ["REID_DATA"])
    if asked := asked_help(args):
        from config.help import help_text

        show(help_text(asked, default, about, own, sections))
    values = parse_values(args, SETTINGS | settings_of(own))
    mine = {name: values.pop(name) for name in list(values) if name not in SETTINGS}
    cfg, options = default.replace(**values), own(**mine) if own else None
    cfg.typed = frozenset(values)
    if check:
        cfg.check()
        for name, interval in ranges.items():
            check_range(name, getattr(options, name), interval)
    return cfg, options


def parse_values(args: Sequence[str], known: Mapping[str, Field], positional: str = "") -> dict[str, Any]:
    """Parse a command line into values by name. Raises UserError for unknown options and wrong values."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for setting in known.values():
        kind, inner = setting.type, get_args(setting.type)
        if setting.name == positional:
            parser.add_argument(setting.name, nargs="*" if get_origin(kind) is tuple else "?")
        elif kind is bool:
            # not argparse.BooleanOptionalAction, which would read --no-decay-norm-bias as False
            parser.add_argument(option(setting.name), nargs="?", const=True, type=_read_bool)
            parser.add_argument(option(f"no_{setting.name}"), dest=setting.name, action="store_const", const=False)
        elif get_origin(kind) is Literal:
            parser.add_argument(option(setting.name), type=type(inner[0]), choices=inner)
        elif get_origin(kind) is tuple:
            parser.add_argument(option(setting.name), type=inner[0], nargs="*" if inner[-1] is Ellipsis else len(inner))
        else:
            parser.add_argument(option(setting.name), type=kind)
    # --some_name is the same as --some-name
    args = [re.sub("^--[^=]+", lambda name: name[0].replace("_", "-"), word) for word in args]
    values, unknown = parser.parse_known_args(args)
    if unknown:
        word = unknown[0].split("=")[0]
        if not word.startswith("-"):
            raise UserError(f"{word} is not expected here; settings are given as --setting value, see --help")
        raise UserError(f"there is no option {word}; {did_you_mean(word, map(option, known)) or 'see --help'}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(values).items()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _read_bool(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"takes True or False, not {word}")
    return word.lower() == "true"


def asked_help(args: Sequence[str]) -> str:
    """Return what --help asks for: "" (there is no --help), "short", "all" or the name of a section."""
    for place, word in enumerate(args):
        if word in ("-h", "--help"):
            following = args[place + 1] if place + 1 < len(args) else "-"
            return "short" if following.startswith("-") else following
    return ""


def show(text: str, code: int = 0) -> NoReturn:
    """Print a text and end the program."""
    with contextlib.suppress(BrokenPipeError):  # the reader, such as `head`, has ended
        print(text, flush=True)
    raise SystemExit(code)


def split_first(args: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Split off the first word of the command line if it is not an option but a preset, checkpoint or command."""
    args = list(sys.argv[1:] if args is None else args)
    return (args[0], args[1:]) if args and not args[0].startswith("-") else (None, args)


def split_names() -> tuple[list[str], list[str]]:
    """Return all words before the first option, and the rest of the command line."""
    args = sys.argv[1:]
    count = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
    return args[:count], args[count:]


def typed_command() -> str:
    """Return the command as typed, to store it with its results."""
    return shlex.join(["python", *sys.argv])

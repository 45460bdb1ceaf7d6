"""Command lines: dataclasses of settings become options, and `--help` prints them section by section.

A program has the options of its own dataclass and, where it trains or tests, all settings of `Config`. The help of a
setting is the comment at the end of its line.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from config.config import SECTION_OF, SECTIONS, Config, check_range, option
from config.presets import describe_presets, load_preset
from utils.errors import UserError, did_you_mean
from utils.lookup import load

T = TypeVar("T")
OWN_PICTURES = "datasets.own_recipe:choose_settings"  # the default preset of a folder or .csv file
TEST_SECTIONS = ("run", "data", "eval")  # those that programs for trained models show


@dataclass(frozen=True)
class Setting:
    """One option: its name, type, default (MISSING: required) and help."""

    name: str
    type: Any
    default: Any
    help: str


def settings_of(kind: type) -> dict[str, Setting]:
    """The options of a dataclass, by name, those of the classes it inherits from included."""
    lines = "".join(inspect.getsource(base) for base in kind.__mro__[:-1])
    comments = dict(re.findall(r"^    (\w+): .*?  # (.+)$", lines, re.MULTILINE))
    hints = get_type_hints(kind)
    return {f.name: Setting(f.name, hints[f.name], f.default, comments.get(f.name, "")) for f in fields(kind)}


def all_settings() -> dict[str, Setting]:
    """The settings of `Config`, by name."""
    return {name: s for kind in SECTIONS.values() for name, s in settings_of(kind).items()}


def parse_train(args: Sequence[str] | None, environ: Mapping[str, str]) -> Config:
    """`[PRESET] [--setting value ...]` to checked settings.

    `environ` gives REID_DATA, the default of --data-root. Raises UserError, or SystemExit after --help or --presets.
    """
    preset, args = split_first(args)
    if "--presets" in args:
        show("\n".join(f"{name:<28}{about}" for name, about in describe_presets()))
    cfg = default_settings(preset, args)
    about = (
        "usage: python train.py [PRESET] [--setting value ...]     (PRESET: demo if not given; list: --presets;\n"
        "       own pictures without a PRESET: what fits them and the machine)\n\n"
        "Train a person or vehicle re-identification model and test it.\n\n"
        "example: python train.py tiny_b1 --data-root data --epochs 60\n"
    )
    return parse_settings(args, cfg, environ, about)[0]


def default_settings(preset: str | None, args: Sequence[str], own: type | None = None) -> Config:
    """The settings of a preset; without one those that fit own pictures, where --dataset gives some, else `demo`."""
    if not preset and not asked_help(args):
        typed = parse_values(args, all_settings() | (settings_of(own) if own else {}))
        typed = {name: value for name, value in typed.items() if name in SECTION_OF}
        if "dataset" in typed and (chosen := load(OWN_PICTURES)(typed)):
            return Config(**chosen)
    return load_preset(preset or "demo")


def parse_settings(
    args: Sequence[str],
    default: Config,
    environ: Mapping[str, str],
    about: str,
    own: type[T] | None = None,
    ranges: Mapping[str, str] | None = None,
    sections: Iterable[str] = tuple(SECTIONS),
    check: bool = True,
) -> tuple[Config, T | None]:
    """`--setting value ...` on top of `default` to checked settings and the program's own options.

    about: the text above the help. own: dataclass of the program's own options; ranges: intervals of these, such as
    {"num": "[1, inf)"}. sections: those of `Config` that the help lists (all are accepted).
    """
    if environ.get("REID_DATA"):
        default = default.replace(data_root=environ["REID_DATA"])
    if asked := asked_help(args):
        from config.help import help_text

        show(help_text(asked, default, about, own, sections))
    known = all_settings() | (settings_of(own) if own else {})
    values = parse_values(args, known)
    mine = {name: values.pop(name) for name in list(values) if name not in SECTION_OF}
    cfg, options = default.replace(**values), own(**mine) if own else None
    if check:
        cfg.check()
        for name, interval in (ranges or {}).items():
            check_range(name, getattr(options, name), interval)
    return cfg, options


def parse_options(
    args: Sequence[str] | None, kind: type[T], about: str, positional: str = "", ranges: Mapping[str, str] | None = None
) -> T:
    """A command line to an object of the dataclass `kind`, for programs without `Config`.

    positional: the field that takes the words before the first option; if it is a tuple, any number of them.
    Raises UserError, or SystemExit after --help.
    """
    args, known = list(sys.argv[1:] if args is None else args), settings_of(kind)
    if asked_help(args):
        from config.help import option_lines

        show("\n".join([about.strip(), "", *option_lines(known)]))
    values = parse_values(args, known, positional)
    for name, setting in known.items():
        if setting.default is MISSING and name not in values:
            raise UserError(f"{name} is missing; see --help")
    options = kind(**values)
    for name, interval in (ranges or {}).items():
        check_range(name, getattr(options, name), interval)
    return options


def parse_command(
    args: Sequence[str] | None, kinds: Mapping[str, type], about: str, positional: Mapping[str, str]
) -> Any:
    """The same for programs whose first word chooses one of several dataclasses, each with a docstring.

    positional: for each word the field that takes the words after it, if any.
    """
    word, rest = split_first(args)
    if word is None:
        commands = "\n".join(
            f"  {name:<12}{(kind.__doc__ or '').strip().splitlines()[0]}" for name, kind in kinds.items()
        )
        show(
            f"{about.strip()}\n\ncommands (COMMAND --help lists the options of one):\n{commands}",
            code=0 if asked_help(rest) else 2,
        )
    if word not in kinds:
        raise UserError(f"there is no command {word}; {did_you_mean(word, kinds) or 'choose ' + ', '.join(kinds)}")
    return parse_options(rest, kinds[word], inspect.cleandoc(kinds[word].__doc__ or ""), positional.get(word, ""))


def parse_values(args: Sequence[str], known: Mapping[str, Setting], positional: str = "") -> dict[str, Any]:
    """The values that a command line gives, by name. Raises UserError for unknown options and wrong values."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for setting in known.values():
        kind, inner = setting.type, get_args(setting.type)
        if setting.name == positional:
            parser.add_argument(setting.name, nargs="*" if get_origin(kind) is tuple else "?")
        elif kind is bool:
            # not argparse.BooleanOptionalAction, for which the option of no_decay_norm_bias would mean False
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
    """What --help asks for: "" nothing, "short", "all" or a section's name."""
    for place, word in enumerate(args):
        if word in ("-h", "--help"):
            following = args[place + 1] if place + 1 < len(args) else "-"
            return "short" if following.startswith("-") else following
    return ""


def show(text: str, code: int = 0) -> NoReturn:
    """Print a text and end the program."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has ended; Python would complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


def split_first(args: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Take the leading word that is no option (a preset, a checkpoint, a command) off the command line."""
    args = list(sys.argv[1:] if args is None else args)
    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    return None, args


def typed_command() -> str:
    """The command as typed, to be stored with its results."""
    return shlex.join(["python", *sys.argv])

"""Command lines of programs without `Config`: the fields of a dataclass become options."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

from config.cli import asked_help, parse_values, settings_of, show, split_first
from config.config import check_range
from config.help import option_lines
from utils.errors import UserError, did_you_mean

T = TypeVar("T")


def parse_options(
    args: Sequence[str] | None, kind: type[T], about: str, positional: str = "", ranges: Mapping[str, str] = {}
) -> T:
    """Parse a command line into an object of the dataclass `kind`, for programs without `Config`.

    positional: the field for the words before the first option; a tuple accepts any number of them.
    Raises UserError, or SystemExit after --help.
    """
    args, known = list(sys.argv[1:] if args is None else args), settings_of(kind)
    if asked_help(args):
        show("\n".join([about.strip(), "", *option_lines(kind)]))
    values = parse_values(args, known, positional)
    for name, setting in known.items():
        if setting.default is MISSING and name not in values:
            raise UserError(f"{name} is missing; see --help")
    options = kind(**values)
    for name, interval in ranges.items():
        check_range(name, getattr(options, name), interval)
    return options


def parse_command(
    args: Sequence[str] | None, kinds: Mapping[str, type], about: str, positional: Mapping[str, str]
) -> Any:
    """Like `parse_options`, for programs whose first word chooses one of several dataclasses, each with a docstring.

    positional: for each first word, the field for the words after it, if any.
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

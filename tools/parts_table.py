"""Write docs/parts.md: `python tools/parts_table.py`. What each part is called, which of the systems that this project
stands on have it, where its code is, and which paper that follows.

Parts and files are taken from the code (`parts.py`), papers from its docstrings and comments. Only who has what is
knowledge, in `parts_seeds.py`.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.parts import Group, Inside, groups
from tools.parts_seeds import LEGEND, SEEDS
from utils.errors import UserError, run
from utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
AUTHORS = r"[A-Z][\w-]+(?: et al\.| (?:&|and) [A-Z][\w-]+)"
YEAR = r"(?:\b(?:19|20)\d\d\b(?!\.\d)|arXiv:\d{4}\.\d{5}(?:, 20\d\d)?)"
TITLED = rf"{AUTHORS},(?:[^().]|\.\d|al\.)*?{YEAR}"  # authors, title, place and year
REFERENCE = rf"{TITLED}|{AUTHORS} {YEAR}"
ABOUT = """\
Written by `python tools/parts_table.py`. A part is in a system that has the same thing, if not every detail of it.
Sources are what the part's docstring in its file names, or else that of the file, which may name several papers."""
HEAD = "| part | in | file | source |\n|---|---|---|---|"


def file_and_source(group: Group, name: str, part: Any) -> tuple[str, str]:
    """Of one part: the file below ROOT, and the references of its paper or papers."""
    made = part.home if isinstance(part, Inside) else part
    while isinstance(made, partial):
        made = made.func
    comment = re.search(rf'^ *"{re.escape(name)}": .*?  # (.+)$', inspect.getsource(group.home), re.MULTILINE)
    ours = [thing for thing in (*getattr(made, "__mro__", [made]), inspect.getmodule(made)) if our_file(thing)]
    texts = ([comment[1]] if comment else []) + [thing.__doc__ for thing in ours if thing.__doc__]
    source = "; ".join(references([" ".join(text.split()) for text in texts], part))
    return our_file(made) or our_file(group.home), source or "–"  # what torch has is where we list it


def our_file(thing: Any) -> str:
    """The file below ROOT of a module, class or function; empty where that is another's."""
    path = Path(getattr(inspect.getmodule(thing), "__file__", None) or "/")
    ours = path.is_relative_to(ROOT) and "site-packages" not in path.parts
    return path.relative_to(ROOT).as_posix() if ours else ""


def references(texts: list[str], part: Any) -> list[str]:
    """Those of the first text with a reference that has a title, else with one of authors and year."""
    if isinstance(part, Inside):
        behind = rf"{re.escape(part.word)}(?:[^.]|\.\d)*?({REFERENCE})"
        return next((re.findall(behind, text)[:1] for text in texts if part.word in text), [])
    found = [text for text in texts if re.search(TITLED, text)] or [t for t in texts if re.search(REFERENCE, t)]
    return re.findall(REFERENCE, found[0]) if found else []


def who_has(title: str, group: Group) -> dict[str, str]:
    """Part to seeds. Raises UserError unless SEEDS names each part of the group once and nothing else."""
    named = [(name, seeds) for names, seeds in SEEDS.get(title, {}).items() for name in names.split(" + ")]
    names = sorted(name for name, _ in named)
    if names != sorted(group.parts):
        wrong = sorted(set(names) ^ set(group.parts)) or sorted({n for n in names if names.count(n) > 1})
        raise UserError(f"tools/parts_seeds.py, {title}: must name each part of the code once, see {', '.join(wrong)}")
    return dict(named)


def document() -> str:
    """The whole of docs/parts.md."""
    text = ["# Parts, and where they come from", ABOUT]
    text.append("\n".join(f"* {short}: {long}" for short, long in LEGEND.items()))
    for title, group in groups().items():
        seeds, rows = who_has(title, group), {}
        for name, part in group.parts.items():
            rows.setdefault((seeds[name], *file_and_source(group, name, part)), []).append(f"`{name}`")
        lines = [
            f"| {', '.join(names)} | {has} | [{path}](../{path}) | {source} |"
            for (has, path, source), names in rows.items()
        ]
        text += [f"## {title}" + f" (`{group.setting}`)" * bool(group.setting), "\n".join([HEAD, *lines])]
    return "\n\n".join(text) + "\n"


@dataclass
class Options:
    output: str = str(ROOT / "docs" / "parts.md")  # file that is written
    check: bool = False  # write nothing; fail if the file is not up to date


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    path, text = Path(options.output), document()
    if options.check:
        if not path.is_file() or path.read_text() != text:
            raise UserError(f"{path} is not what the code says; run python tools/parts_table.py")
        return
    write_atomically(path, lambda temporary: temporary.write_text(text))
    print(f"{path} updated")


if __name__ == "__main__":
    run(main)

"""Text files that list the images of a dataset, one per line."""

import re
from pathlib import Path

from utils.errors import UserError
from utils.files import reading


def read_list(path: Path, pattern: str, example: str, skip: int = 0) -> list[re.Match[str]]:
    """Return the match of each line that is not blank, stripped of spaces; the first `skip` lines may be anything.

    Bytes that are not UTF-8 are replaced: the columns in use are ASCII, others may have any encoding. Raises UserError,
    which shows `example`, when the file is missing or empty or a line does not match.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        match = re.fullmatch(pattern, line.strip())
        if match:
            found.append(match)
        elif line.strip() and number > skip:
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not like {example!r}; restore the file")
    if not found:
        raise UserError(f"{path} is empty; restore the file")
    return found

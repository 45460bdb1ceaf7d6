"""Text tables, and means with standard deviations for their cells."""

import statistics
from collections.abc import Callable, Sequence


def text_table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.rjust) -> str:
    """Rows of equally many cells as lines of text: the first column aligned to the left, the others by `align`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(align, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def mean_and_std(values: Sequence[float]) -> str:
    """Format the mean, and for several values the standard deviation."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")

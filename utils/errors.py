"""One kind of error for everything that the user can fix, and the wrapper that prints it."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the file or setting and how to fix it."""


class Stopped(Exception):
    """The work was stopped by a signal after its state was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question with the known names that are similar to `name` or begin with it; "" if there are none."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
    near += [other for other in known if other.startswith(name) and other not in near]
    return f"did you mean {' or '.join(near)}?" if near else ""


def run(main: Callable[[], None]) -> None:
    """Call `main`; a `UserError` becomes one line on stderr and exit code 2, a stop its own exit code."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # Disk full, no permission, directory gone: the system's message already names the file.
        if error.filename is None and error.strerror is None:
            raise
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)

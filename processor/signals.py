"""Signals that stop a run after its state has been saved."""

import contextlib
import signal
from collections.abc import Iterator

from utils.errors import Stopped

# Ctrl-C, kill, a cluster's warning, a closed terminal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopSignals:
    """SIGNALS end the `with` block with Stopped. Inside a `held` block they are delayed, so that the state
    can be saved first: `requested` is the signal's number, and only a second signal ends the block at once.
    """

    def __init__(self):
        self.hold = False
        self.requested = 0

    def __enter__(self) -> "StopSignals":
        kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
        self.before = {n: signal.signal(n, self._handle) for n in SIGNALS if not (kept and n == signal.SIGHUP)}
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt) and self.requested:
            sentence = "stopped; --resume continues from the last checkpoint, if there is one"
            raise Stopped(sentence, 128 + self.requested) from None

    @contextlib.contextmanager
    def held(self, really: bool = True) -> Iterator[None]:
        """Delay signals inside this block, which must check `requested`; with `really` False nothing changes."""
        before, self.hold = self.hold, self.hold or really
        try:
            yield
        finally:
            self.hold = before

    def _handle(self, number: int, _frame) -> None:
        at_once = self.requested or not self.hold
        self.requested = number
        if at_once:
            raise KeyboardInterrupt  # not an Exception, which torch's load_state_dict would report as bad weights

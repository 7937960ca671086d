"""Preemption: a signal asks the run to save and end; the loop looks at the flag between steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

ASKED_TO_END = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")  # of schedulers (two), a person, and a terminal that closes


class SignalFlag:
    """While entered, SIGTERM, SIGUSR1, SIGINT and SIGHUP set `received` instead of ending the process.

    A second SIGINT raises KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers, nothing
    is caught.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ASKED_TO_END:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                ignored = name == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup asks for that
                if number is not None and not ignored:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 0, or 128 + the signal's number (143, 138, 130 and 129 on Linux)."""
        return 0 if self.received is None else 128 + self.received

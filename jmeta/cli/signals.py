"""Ctrl-C, SIGTERM and SIGHUP while a run is trained: the first lets it save, the second ends it at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)  # a terminal was closed; not every system has it
_SIGNALS = [signum for signum in (signal.SIGINT, signal.SIGTERM, HANGUP) if signum is not None]


class StopRequests:
    """Collects requests to stop within a `with` block; outside the main thread there are none.

    Python runs handlers of signals between two lines of Python, and a compilation or a chunk of iterations
    is one line that takes minutes. So a thread reads the signals as they arrive: it can answer the first
    one, and end the process at the second. A terminal that is closed may say so twice, through its shell and
    by itself, so a second SIGHUP ends nothing.

    Args:
      answer: called, from another thread, when the first signal arrives.
      before_exit: called, from another thread, before the process ends at the second.
    """

    def __init__(self, answer: Callable[[], None], before_exit: Callable[[], None]) -> None:
        self.signum: int | None = None  # of the first signal; None as long as nobody has asked
        self._answer = answer
        self._before_exit = before_exit
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody has asked to stop."""
        return self.signum is not None

    def __enter__(self) -> StopRequests:
        """Takes the signals over, except those that are ignored.

        A shell's background jobs ignore Ctrl-C, and what `nohup` starts ignores SIGHUP.
        """
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        for signum in _SIGNALS:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives the signals back."""
        del kind, error, trace
        if threading.current_thread() is not threading.main_thread():
            return
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writer.close()  # ends the watcher
        self._watcher.join()
        self._reader.close()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        """Runs in the main thread."""
        del frame
        self.signum = self.signum or signum

    def _watch(self) -> None:
        asked = False
        while data := self._reader.recv(1):  # one byte a signal: its number
            if data[0] in self._previous:
                if not asked:
                    self._answer()
                elif data[0] != HANGUP:
                    try:
                        self._before_exit()
                    finally:
                        os._exit(128 + data[0])
                asked = True

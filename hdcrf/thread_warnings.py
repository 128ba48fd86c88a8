"""Taking down warnings in several threads at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["collected_warnings"]

_lock = threading.Lock()
_own = threading.local()  # .messages: the list of this thread, where it has one
_collectors = 0
_shared = ExitStack()


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that gets the text of each warning of this thread, none of which is shown.

    `warnings.catch_warnings` alone is not for threads: it changes what is the whole process's, and puts it
    back in any order. Here the first thread that comes changes it, and the last that leaves puts it back.
    Until then warnings of other threads are shown as ever, but all of them, whatever their filters say; and
    `warnings.catch_warnings` in one of these, begun earlier or ended later, puts back what it found.
    """
    before = getattr(_own, "messages", None)
    messages: list[str] = []
    _own.messages = messages
    _enter()
    try:
        yield messages
    finally:
        _leave()
        _own.messages = before


def _enter() -> None:
    global _collectors
    with _lock:
        if _collectors == 0:
            _shared.enter_context(warnings.catch_warnings())
            show = warnings.showwarning

            def take(message: Warning | str, *details: Any, **options: Any) -> None:
                messages = getattr(_own, "messages", None)
                if messages is None:
                    show(message, *details, **options)
                else:
                    messages.append(str(message))

            warnings.showwarning = take
            warnings.simplefilter("always")
        _collectors += 1


def _leave() -> None:
    global _collectors
    with _lock:
        _collectors -= 1
        if _collectors == 0:
            _shared.close()

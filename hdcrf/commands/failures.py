"""How the command line fails: with a sentence and an exit code, and nothing half-written."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from hdcrf.failures import is_out_of_memory
from hdcrf.files import InputError, NotPutBackError, reason

__all__ = ["Commands", "as_early_end", "as_print_failure", "as_write_failure"]


class _WrongInput(click.ClickException):
    """A message about what the user gave."""

    exit_code = 2


class Commands(click.Group):
    """A group that turns what its commands may raise into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _clean_end_by_signals():
                return super().invoke(ctx)
        except InputError as error:
            raise _WrongInput(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted; nothing was written.", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise click.ClickException(reason(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise click.ClickException(
                "out of memory, and nothing was written; scale the input down, or use another --device"
            ) from error


@contextmanager
def _clean_end_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as an exception does, so that no temporary file stays behind."""

    def end(number: int, _: object) -> None:
        for each in taken:  # a second signal must not cut the clean-up short
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    present = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handler
    # One that is ignored, as under nohup, stays so.
    taken = [each for each in present if in_main and signal.getsignal(each) == signal.SIG_DFL]
    try:
        for each in taken:
            signal.signal(each, end)
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def as_early_end(context: click.Context, said: Callable[[], str], prefix: str = "") -> Iterator[None]:
    """If the block is interrupted, ended by a signal, or cannot write, say where things stand.

    Args:
        context: Of the command.
        said: Returns where, in a sentence without its end.
        prefix: Of the message on what cannot be written.
    """
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted; {said()}.", err=True)
        context.exit(130)
    except SystemExit:  # by a signal
        click.echo(f"Ended; {said()}.", err=True)
        raise
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"{prefix}{reason(error)}; {said()}") from error


@contextmanager
def as_write_failure() -> Iterator[None]:
    """Report that the results could not be written."""
    try:
        yield
    except NotPutBackError as error:
        raise click.ClickException(f"cannot write the results: {error}") from error
    except OSError as error:
        raise click.ClickException(f"cannot write the results, and wrote none: {error}") from error


@contextmanager
def as_print_failure() -> Iterator[None]:
    """Report that the results are written, but could not all be described."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"the results are written, but not all was printed: {error}") from error

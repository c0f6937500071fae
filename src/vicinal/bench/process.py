"""A process that answers requests: one that crashes, hangs or breaks its CUDA context costs one request."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from vicinal.bench.measure import words


class Server:
    """One process; started when something is sent to it, also after it was stopped.

    Args:
        serve: what it runs: answers what comes through the connection until that is closed.
        arguments: what `serve` is given after the connection.
    """

    def __init__(self, serve: Callable[..., None], *arguments: object) -> None:
        self.serve, self.arguments = serve, arguments
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None

    def send(self, *request: object) -> None:
        """A request.

        Raises:
            OSError: the process is gone.
        """
        if self.process is None:
            self.start()
        assert self.connection is not None
        self.connection.send(request)

    def receive(self, seconds: float) -> Any:
        """The answer.

        Raises:
            RuntimeError: the process died, or took longer than `seconds` and was stopped.
        """
        assert self.connection is not None
        try:
            if self.connection.poll(seconds):
                return self.connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(self.died(error)) from error
        self.stop()
        raise RuntimeError(f"took longer than {seconds:.3g} s")

    def died(self, error: Exception) -> str:
        """What became of the process, in words; it is started anew when something is sent."""
        if self.process is not None:
            self.process.join(5)
        code = None if self.process is None else self.process.exitcode
        self.stop()
        return f"the measuring process died ({words(error)}, exit status {code})"

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=self.serve, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()

    def release(self) -> None:
        """Let the process end by itself, so that it cleans up."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def stop(self, patience: float = 0.0) -> None:
        """End the process, by force after so many seconds."""
        self.release()
        if self.process is not None:
            self.process.join(patience)
            if self.process.is_alive():
                self.process.terminate()
                self.process.join(5)
            if self.process.is_alive():
                self.process.kill()
            self.process.join()
        self.process = None

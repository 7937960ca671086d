"""Worker processes that read batches, in order.

Each worker has a pipe of its own and takes every count-th batch, so which worker reads what is fixed, and a pipe that
ends names the worker that died. (torch's DataLoader reports a death by an exception from a signal handler, at
whatever line the training loop is.)
"""

import os
import signal
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing as multiprocessing

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # batches each worker prepares before they are asked for
_WATCH_S = 5.0  # how often an idle worker looks whether its parent still lives


class WorkerDied(RuntimeError):  # noqa: N818  the name says what happened
    """A worker process ended without a word, or failed; the message names it."""


class Workers(Generic[Task, Result]):
    """`count` processes that map tasks to results; they live until this object goes.

    Tasks, results and the function travel between processes; tensors in results go through shared memory.
    """

    def __init__(self, read: Callable[[Task], Result], count: int) -> None:
        self._workers = [_Worker(read, number) for number in range(count)]
        weakref.finalize(self, _stop, self._workers)

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """The results of the tasks, in order. Raises WorkerDied."""
        for worker in self._workers:
            worker.forget()  # what an earlier, abandoned call asked for
        window = _AHEAD * len(self._workers)
        for number, task in enumerate(tasks[:window]):
            self._workers[number % len(self._workers)].submit(task)
        for number in range(len(tasks)):
            worker = self._workers[number % len(self._workers)]
            result = worker.receive()
            if number + window < len(tasks):
                worker.submit(tasks[number + window])  # the window is a multiple of the workers: it is this one's
            yield result


class _Worker:
    def __init__(self, read: Callable[[Any], Any], number: int) -> None:
        context = multiprocessing.get_context()
        self._pipe, theirs = context.Pipe()
        self._number, self._pending = number, 0
        self._process = context.Process(target=_serve, args=(read, theirs, os.getpid()), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of forking with threads about; workers touch neither threads nor the GPU
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            self._process.start()
        theirs.close()  # the worker's end is now the worker's alone: when it dies, ours reads an end of file

    def submit(self, task: Any) -> None:
        try:
            self._pipe.send(task)
        except OSError as error:
            raise self._died() from error
        self._pending += 1

    def receive(self) -> Any:
        try:
            done, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._pending -= 1
        if not done:
            raise WorkerDied(f"data worker {self._number} (pid {self._process.pid}) failed:\n{answer}")
        return answer

    def forget(self) -> None:
        while self._pending:
            self.receive()

    def stop(self) -> None:
        self._process.kill()  # it is deaf to the signals that ask
        self._process.join()
        self._pipe.close()

    def _died(self) -> WorkerDied:
        self._process.join(timeout=_WATCH_S)
        code = self._process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        return WorkerDied(
            f"data worker {self._number} (pid {self._process.pid}) {how}: mostly for want of memory or of space in "
            "/dev/shm; use fewer workers, or none."
        )


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _serve(read: Callable[[Any], Any], pipe: Any, parent: int) -> None:
    """A worker's life: one thread, deaf to what asks a run to end (the parent hears it), gone when its parent is."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # a scheduler sends them to the whole group of processes
        if hasattr(signal, name):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    torch.set_num_threads(1)
    while os.getppid() == parent:
        if not pipe.poll(_WATCH_S):
            continue
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(read, task))


def _answer(read: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    try:
        return True, read(task)
    except Exception:
        return False, traceback.format_exc()

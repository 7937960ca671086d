"""Worker processes that read batches, in order.

Each worker has a pipe of its own and takes every count-th batch, so which worker reads what is fixed, and a pipe that
ends names the worker that died. (torch's DataLoader reports a death by an exception from a signal handler, at
whatever line the training loop is.)
"""

import pickle
import signal
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import torch
import torch.multiprocessing as multiprocessing

from barlow.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # batches each worker prepares before they are asked for
_LAST_WORDS_S = 5.0  # how long a process whose pipe has ended may take to end itself
# Signals that ask a run to end: schedulers and terminals send them to all of its processes, and the parent alone acts.
_DEAF_TO = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


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
        self._number, self._pending, self._answered = number, 0, False
        self._process = context.Process(target=_serve, args=(_Sent(read), theirs), daemon=True)
        with _held_signals(), warnings.catch_warnings():
            # Python 3.12 warns of forking with threads about; workers touch neither threads nor the GPU
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            try:
                self._process.start()
            except (pickle.PicklingError, TypeError, AttributeError) as error:  # what pickle raises
                raise InputError(
                    f"The data or the views cannot be sent to worker processes ({error}); use no workers."
                ) from error
        theirs.close()  # the worker's end is now the worker's alone: when it dies, ours reads an end of file

    def submit(self, task: Any) -> None:
        try:
            self._pipe.send(task)
        except OSError as error:
            raise self._died(error) from error
        self._pending += 1

    def receive(self) -> Any:
        try:
            done, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died(error) from error
        self._pending, self._answered = self._pending - 1, True
        if not done:
            raise WorkerDied(f"data worker {self._number} (pid {self._process.pid}) failed: {answer}")
        return answer

    def forget(self) -> None:
        while self._pending:
            self.receive()

    def stop(self) -> None:
        self._process.kill()  # it is deaf to the signals that ask
        self._process.join()
        self._pipe.close()

    def _died(self, error: Exception) -> WorkerDied:
        self._process.join(timeout=_LAST_WORDS_S)
        code = self._process.exitcode
        if code is None:
            how = f"does not answer ({type(error).__name__}: {error})"
        else:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        if code == 1 and not self._answered:  # a new interpreter first runs the person's script, up to the guard
            why = "a script that trains needs the guard `if __name__ == '__main__':`; or use no workers."
        else:
            why = "mostly for want of memory or of space in /dev/shm; use fewer workers, or none."
        return WorkerDied(f"data worker {self._number} (pid {self._process.pid}) {how}: {why}")


class _Sent:
    """A function on its way to a process; one that cannot be loaded there raises when it is called, not before."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function: Any = function

    def __call__(self, argument: Any) -> Any:
        if isinstance(self._function, bytes):
            self._function = pickle.loads(self._function)  # noqa: S301  from the parent process
        return self._function(argument)

    def __getstate__(self) -> dict[str, Any]:
        return {"_function": bytes(ForkingPickler.dumps(self._function))}


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


@contextmanager
def _held_signals() -> Iterator[None]:
    """Signals that ask to end wait until a child is started, which inherits that they wait."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(read: Callable[[Any], Any], pipe: Any) -> None:
    """A worker's life: one thread, deaf to what asks a run to end (the parent hears it), gone when its parent is."""
    for number in _DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    try:
        while parent.sentinel not in wait([pipe, parent.sentinel]):
            pipe.send_bytes(_answer(read, pipe.recv()))
    except (EOFError, OSError):
        return  # the parent has gone, or wants no more


def _answer(read: Callable[[Any], Any], task: Any) -> Any:
    """The pickled result, its tensors in shared memory; or why there is none."""
    try:
        result = read(task)
    except Exception:
        return ForkingPickler.dumps((False, "\n" + traceback.format_exc()))
    try:
        return ForkingPickler.dumps((True, result))
    except Exception as error:
        why = f"its batch finds no place in shared memory ({error}); use fewer workers, or none, or enlarge /dev/shm."
        return ForkingPickler.dumps((False, why))

"""Signals: a flag for the loop, and the exit codes that schedulers expect."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from barlow.training.signals import SignalFlag


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_sets_the_flag_and_the_exit_code_of_a_scheduler(name: str, code: int) -> None:
    number = signal.Signals[name]
    with SignalFlag() as flag:
        assert (flag.received, flag.exit_code) == (None, 0)
        os.kill(os.getpid(), number)
        assert flag.received == number
    assert flag.exit_code == code


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with SignalFlag():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_a_closing_terminal_does_not_end_what_nohup_started() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalFlag() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
        assert flag.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_does_not_wait() -> None:
    with SignalFlag():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_repeated_preemption_signals_are_taken_calmly() -> None:
    with SignalFlag() as flag:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert flag.exit_code == 143


def test_outside_the_main_thread_nothing_is_caught_and_nothing_breaks() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with SignalFlag() as flag:
            seen.append((signal.getsignal(signal.SIGTERM), flag.exit_code))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]


LOOP = """
import sys, time
from barlow.training.signals import SignalFlag
with SignalFlag() as flag:
    print("ready", flush=True)
    step = 0
    while flag.received is None:
        step += 1
        time.sleep(0.001)
    print("saved", flush=True)
sys.exit(flag.exit_code)
"""


def test_a_loop_that_polls_ends_between_steps_with_the_schedulers_code() -> None:
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "saved\n"
    assert process.returncode == 143

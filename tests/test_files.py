"""The one atomic writer, and the lock."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from barlow.errors import InputError
from barlow.files import locked, read_json, write_json, write_text, written


def test_a_block_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "facts.json"
    write_json(file, {"a": 1})
    with pytest.raises(KeyboardInterrupt), written(file) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert read_json(file, dict[str, int]) == {"a": 1}
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("link", ["hardlink_to", "symlink_to"])
def test_a_link_is_replaced_and_not_written_through(link: str, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.txt", tmp_path / "out.txt"
    mine.write_text("mine")
    getattr(out, link)(mine)
    write_text(out, "new")
    assert (mine.read_text(), out.read_text()) == ("mine", "new")
    assert not out.is_symlink()


def test_a_folder_and_a_device_are_no_files_to_write(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "pipe", "is no regular file")):
        with pytest.raises(InputError, match=f"{path} {why}"):
            write_text(path, "new")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """The kernel's limit on a file's size stands for the full disk: a real failure in the middle of a write."""
    code = """
import resource, signal, sys; from pathlib import Path; from barlow.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try: write_bytes(Path(sys.argv[1]), bytes(2000))
except OSError as error: print(error.filename, error.errno)"""
    file = tmp_path / "weights.bin"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(file), str(errno.EFBIG)]
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, written(tmp_path / "copy"):
        (tmp_path / "original").read_bytes()
    assert raised.value.filename == str(tmp_path / "original")


def test_the_longest_name_can_be_written_and_others_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / ("データ" * 28 + "abc")  # 255 bytes
    write_text(file, "new")
    plain = tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode


def test_a_reader_sees_whole_files_while_many_write(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    write_json(file, {"by": 0, "long": [0] * 5000})

    def write(k: int) -> None:
        for _ in range(20):
            write_json(file, {"by": k, "long": [k] * 5000})

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        facts = json.loads(file.read_text())
        assert set(facts["long"]) == {facts["by"]}
    assert list(tmp_path.iterdir()) == [file]


HOLDING = """
import os, sys, time; from pathlib import Path; from barlow.files import locked
with locked(Path(sys.argv[1]), wait=False):
    child = os.fork()  # as a loader's worker, which outlives a killed parent for some seconds
    if child == 0: print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_lock_is_free_when_its_process_is_killed_even_if_a_forked_worker_lives_on(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(file)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        worker = int(other.stdout.readline())
        with pytest.raises(InputError, match=f"is being written by process {other.pid} on "), locked(file, wait=False):
            pass
        other.kill()
        other.wait()
        with locked(file, wait=False):
            pass
        os.kill(worker, signal.SIGKILL)

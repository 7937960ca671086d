"""Completion as the shells themselves do it, with the script that the program prints."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from barlow.cli import COMMANDS, main
from barlow.completion import SHELLS
from barlow.config import leaves
from barlow.methods import METHODS

BASH = """
source {script}
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_barlow
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of every shell."""
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        for shell in SHELLS:
            with (folder / shell).open("w") as script:
                patch.setattr("sys.stdout", script)
                main(["completion", shell])
    return folder


def completed(shell: str, scripts: Path, *words: str) -> list[str]:
    """What the shell offers for the last of the words after `barlow`."""
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "bash":
        command = BASH.format(script=scripts / shell, words=shlex.join(["barlow", *words]))
    else:
        command = f"source {scripts / shell}; complete -C {shlex.quote(' '.join(['barlow', *words]))}"
    shown = subprocess.run([program, "-c", command], capture_output=True, text=True, check=True, cwd=scripts)
    assert shown.stderr == ""
    return sorted(line.split("\t")[0] for line in shown.stdout.split("\n") if line)


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_commands_flags_and_values(shell: str, scripts: Path) -> None:
    assert completed(shell, scripts, "pre") == ["pretrain"]
    assert set(completed(shell, scripts, "")) >= set(COMMANDS)
    assert completed(shell, scripts, "pretrain", "--enc") == ["--encoder"]
    assert completed(shell, scripts, "pretrain", "photos", "--lambd") == ["--lambd", "--lambd-reg"]
    assert completed(shell, scripts, "pretrain", "photos", "--method", "") == sorted(METHODS)
    assert completed(shell, scripts, "evaluate", "run", "--protocols", "few-shot-") == ["few-shot-ridge"]
    assert completed(shell, scripts, "import", "--layout", "so") == ["solo-learn"]
    assert completed(shell, scripts, "report", "--layout", "u") == ["umap"]
    assert completed(shell, scripts, "export", "--enc") == []


def test_every_setting_is_offered_and_bash_goes_on_with_files(scripts: Path) -> None:
    offered = completed("bash", scripts, "pretrain", "--")
    assert len(offered) >= len(list(leaves()))
    assert "--no-check-overlap" in completed("bash", scripts, "evaluate", "--no")
    several = completed("bash", scripts, "evaluate", "run", "--protocols", "knn", "lin")
    assert several == ["linear", "linear-mixed", "linear-mixed-drifting", "linear-paper"]
    assert completed("bash", scripts, "pretrain", "pho") == []
    assert "complete -o default" in (scripts / "bash").read_text()  # nothing of ours: names of files


@pytest.mark.parametrize("shell", ["zsh"])
def test_zsh_reads_the_script_of_bash(shell: str, scripts: Path) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip("zsh is not installed")
    asked = f"source {scripts / shell}; print -r -- ${{_comps[barlow]}}"
    shown = subprocess.run([program, "-f", "-c", asked], capture_output=True, text=True, check=True)
    assert (shown.stderr, "_barlow" in shown.stdout) == ("", True)


def test_a_shell_without_a_script_is_told_which_have_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "bsh"])
    assert capsys.readouterr().err == "barlow: no completion for shell 'bsh'. Did you mean 'bash'?\n"

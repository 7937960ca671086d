"""Scripts that complete `barlow`'s commands, flags and values in bash, zsh and fish."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from barlow.errors import InputError, suggest


@dataclass(frozen=True)
class Command:
    """One sub-command: its summary, and its flags with the values they take (none: a file name, or anything)."""

    summary: str
    flags: Mapping[str, tuple[str, ...]]


Commands = Mapping[str, Command]


def completion_script(shell: str, commands: Commands) -> str:
    """The script to source. Where nothing is known to fit, file names are completed.

    Raises InputError for a shell that is none of `SHELLS`.
    """
    if shell not in SHELLS:
        raise InputError(f"no completion for shell '{shell}'. {suggest(shell, SHELLS)}")
    return "\n".join(SHELLS[shell](commands)) + "\n"


BASH = """\
_barlow() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words= flag= i
    for ((i = COMP_CWORD - 1; i > 1; i--)); do
        if [[ ${{COMP_WORDS[i]}} == -* ]]; then flag=${{COMP_WORDS[i]}}; break; fi
    done
    if ((COMP_CWORD == 1)); then
        words={commands}
    elif [[ $word == -* ]]; then
        case $command in
{flags}
        esac
    else
        case "$command $flag" in
{values}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _barlow barlow"""


def _bash(commands: Commands) -> Iterator[str]:
    flags = (f"        {name}) words={_words([*command.flags, '--help'])} ;;" for name, command in commands.items())
    values = (
        f"        {shlex.quote(f'{name} {flag}')}) words={_words(values)} ;;"
        for name, command in commands.items()
        for flag, values in command.flags.items()
        if values
    )
    yield BASH.format(
        commands=_words([*commands, "--help", "--version"]), flags="\n".join(flags), values="\n".join(values)
    )


def _zsh(commands: Commands) -> Iterator[str]:
    """zsh reads bash's completions."""
    yield "autoload -U +X compinit && compinit"
    yield "autoload -U +X bashcompinit && bashcompinit"
    yield from _bash(commands)


def _fish(commands: Commands) -> Iterator[str]:
    for name, command in commands.items():
        yield f"complete -c barlow -n __fish_use_subcommand -f -a {name} -d {_quoted(command.summary)}"
        for flag, values in command.flags.items():
            chosen = f" -x -a {_quoted(' '.join(values))}" if values else ""
            yield f"complete -c barlow -n '__fish_seen_subcommand_from {name}' -l {flag.removeprefix('--')}{chosen}"


def _words(words: list[str] | tuple[str, ...]) -> str:
    return shlex.quote(" ".join(words))


def _quoted(text: str) -> str:
    """In fish's single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Commands], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}

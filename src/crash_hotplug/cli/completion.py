# SPDX-License-Identifier: MIT
"""Completion for bash, zsh and fish, from the parsers: ``python3 -m crash_hotplug.cli.completion DIRECTORY``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from crash_hotplug.cli.command_tree import Argument, Command, Value, read_commands
from crash_hotplug.linux.atomic_file import write_atomically

_BASH = r"""# bash completion for crash-hotplug
_crash_hotplug() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local command= options= words= positional= i
    # readline splits --option=value into three words.
    if [[ $word == "=" ]]; then
        word=
    elif [[ $previous == "=" ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            %(commands)s) command=${COMP_WORDS[i]}; break;;
        esac
    done
    COMPREPLY=()
    case "$command $previous" in
%(values)s
    esac
    case "$command" in
%(words)s
    esac
    if [[ $word == -* || -z $words$positional ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    elif [[ -n $positional ]]; then
        compopt -o "$positional"
    else
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    fi
}
complete -F _crash_hotplug crash-hotplug
"""
# Options of readline's own completion, which runs where the function offers nothing.
_READLINE = {Value.FILE: "default", Value.DIRECTORY: "dirnames"}


def bash(program: Command, *commands: Command) -> str:
    """Return the script for bash 4 and newer; it needs no function of the bash-completion package."""
    names = [command.name for command in commands]
    values = [
        f"        {_bash_patterns(command, option)}) {_bash_value(option)}return;;"
        for command in (program, *commands)
        for option in command.options
        if option.value is not Value.NOTHING
    ]
    words = [f'        "") {_bash_words(program)}; words="{" ".join(names)}";;']
    words += [f"        {command.name}) {_bash_words(command)};;" for command in commands]
    return _BASH % {"commands": "|".join(names), "values": "\n".join(values), "words": "\n".join(words)}


def _bash_patterns(command: Command, option: Argument) -> str:
    return "|".join(f'"{command.name} {name}"' for name in option.names)


def _bash_value(option: Argument) -> str:
    if option.words:
        return f'COMPREPLY=($(compgen -W "{" ".join(option.words)}" -- "$word")); '
    kind = _READLINE.get(option.value)
    return "" if kind is None else f"compopt -o {kind}; "


def _bash_words(command: Command) -> str:
    parts = [f'options="{" ".join(name for option in command.options for name in option.names)}"']
    for positional in command.positionals:
        if positional.value in _READLINE:
            parts.append(f"positional={_READLINE[positional.value]}")
    return "; ".join(parts)


_ZSH = """#compdef crash-hotplug
%(functions)s
_crash_hotplug() {
    local curcontext="$curcontext" state line
    local -A opt_args
    local -a commands
    commands=(%(commands)s)
    _arguments -C %(arguments)s
    case $state in
        command) _describe command commands;;
        argument) _call_function state _crash_hotplug_$words[1];;
    esac
}
_crash_hotplug "$@"
"""
_ZSH_ACTION = {Value.FILE: "_files", Value.DIRECTORY: "_path_files -/", Value.WORD: " "}


def zsh(program: Command, *commands: Command) -> str:
    """Return the script for zsh, which has to be named _crash-hotplug in a directory of fpath."""
    functions = [
        f"_crash_hotplug_{command.name}() {{\n    _arguments -s -S {_zsh_arguments(command)}\n}}"
        for command in commands
    ]
    described = _zsh_lines(_zsh_quote(f"{command.name}:{command.summary}") for command in commands)
    arguments = _zsh_arguments(program, "'1:command:->command'", "'*::argument:->argument'")
    return _ZSH % {"functions": "\n".join(functions), "commands": described, "arguments": arguments}


def _zsh_arguments(command: Command, *more: str) -> str:
    options = [_zsh_option(option) for option in command.options]
    return _zsh_lines([*options, *map(_zsh_positional, command.positionals), *more])


def _zsh_lines(specs: Iterable[str]) -> str:
    return "".join(f"\\\n        {spec} " for spec in specs).rstrip()


def _zsh_option(option: Argument) -> str:
    description = f"[{_zsh_text(option.help)}]{_zsh_value(option)}"
    takes_value = option.value is not Value.NOTHING
    names = [name + ("" if not takes_value else "=" if name.startswith("--") else "+") for name in option.names]
    if len(names) == 1:
        return _zsh_quote(f"{'*' if option.is_list else ''}{names[0]}{description}")
    apart = "'*'" if option.is_list else f"'({' '.join(option.names)})'"
    return f"{apart}{{{','.join(names)}}}{_zsh_quote(description)}"


def _zsh_positional(positional: Argument) -> str:
    which = "*" if positional.is_list else ":"
    return _zsh_quote(which + _zsh_value(positional))


def _zsh_value(argument: Argument) -> str:
    if argument.value is Value.NOTHING:
        return ""
    action = f"({' '.join(argument.words)})" if argument.words else _ZSH_ACTION[argument.value]
    return f":{'one of' if argument.words else _zsh_text(argument.metavar)}:{action}"


def _zsh_text(text: str) -> str:
    for special in "\\:[]":
        text = text.replace(special, f"\\{special}")
    return text


def _zsh_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_FISH = """# fish completion for crash-hotplug
function __crash_hotplug_command --description 'whether this is the command typed so far, or none is'
    set -l typed (commandline -opc)
    set -l words (string match --invert -- '-*' $typed[2..-1])
    test "$words[1]" = "$argv"
end
complete -c crash-hotplug -f
"""
_FISH_VALUE = {Value.FILE: " -r -F", Value.DIRECTORY: " -x -a '(__fish_complete_directories)'", Value.WORD: " -x"}


def fish(program: Command, *commands: Command) -> str:
    """Return the script for fish 3 and newer."""
    return _FISH + "".join(f"complete -c crash-hotplug -n {rest}\n" for rest in _fish_lines(program, commands))


def _fish_lines(program: Command, commands: Iterable[Command]) -> Iterator[str]:
    for command in commands:
        yield f"__crash_hotplug_command -a {command.name} -d {_fish_quote(command.summary)}"
    for command in (program, *commands):
        inside = f"'__crash_hotplug_command {command.name}'"
        for option in command.options:
            yield f"{inside}{_fish_option(option)} -d {_fish_quote(option.help)}"
        if any(positional.value is Value.FILE for positional in command.positionals):
            yield f"{inside} -F"


def _fish_option(option: Argument) -> str:
    names = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names)
    if option.words:
        return f"{names} -x -a '{' '.join(option.words)}'"
    return names + _FISH_VALUE.get(option.value, "")


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


FILES = {"crash-hotplug": bash, "_crash-hotplug": zsh, "crash-hotplug.fish": fish}
"""By file name, under which the shell looks for its script."""


def main(directory: str) -> None:
    """Write every script into a directory, which is made if it does not exist."""
    os.makedirs(directory, exist_ok=True)
    commands = read_commands()
    for name, script in FILES.items():
        write_atomically(os.path.join(directory, name), script(*commands).encode(), 0o644)


if __name__ == "__main__":
    main(sys.argv[1])

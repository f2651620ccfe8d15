"""Completion for bash, zsh and fish, out of the parsers: ``python3 -m crash_hotplug.cli.completion DIRECTORY``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from crash_hotplug.cli.command_tree import Argument, Command, Value, read_commands

_BASH = r"""# bash completion for crash-hotplug
_crash_hotplug() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local command= options= words= positional= i
    # "=" is a word of its own here: --option=value is three words.
    if [[ $word == "=" ]]; then
        word=
    elif [[ $previous == "=" ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$command ${COMP_WORDS[i]}" in
%(commands)s
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
# What readline completes by itself where a function offers nothing.
_READLINE = {Value.FILE: "default", Value.DIRECTORY: "dirnames"}


def bash(program: Command) -> str:
    """Return the script for bash 4 and newer; it needs nothing of bash-completion's."""
    commands = [
        f'            "{" ".join(command.path[:-1])} {command.path[-1]}") command="{" ".join(command.path)}";;'
        for command in program.walk()
        if command.path
    ]
    values = [
        f"        {_bash_patterns(command, option)}) {_bash_value(option)}return;;"
        for command in program.walk()
        for option in command.options
        if option.value is not Value.NOTHING
    ]
    words = [f'        "{" ".join(command.path)}") {_bash_words(command)};;' for command in program.walk()]
    return _BASH % {"commands": "\n".join(commands), "values": "\n".join(values), "words": "\n".join(words)}


def _bash_patterns(command: Command, option: Argument) -> str:
    return "|".join(f'"{" ".join(command.path)} {name}"' for name in option.names)


def _bash_value(option: Argument) -> str:
    if option.words:
        return f'COMPREPLY=($(compgen -W "{" ".join(option.words)}" -- "$word")); '
    kind = _READLINE.get(option.value)
    return "" if kind is None else f"compopt -o {kind}; "


def _bash_words(command: Command) -> str:
    parts = [f'options="{" ".join(name for option in command.options for name in option.names)}"']
    if command.commands:
        parts.append(f'words="{" ".join(child.path[-1] for child in command.commands)}"')
    for positional in command.positionals:
        if positional.value in _READLINE:
            parts.append(f"positional={_READLINE[positional.value]}")
    return "; ".join(parts)


_ZSH_ACTION = {Value.FILE: "_files", Value.DIRECTORY: "_path_files -/", Value.WORD: " "}


def zsh(program: Command) -> str:
    """Return the script for zsh, to be called _crash-hotplug in a directory of fpath."""
    functions = [_zsh_function(command) for command in program.walk()]
    return "\n".join(["#compdef crash-hotplug", *functions, '_crash_hotplug "$@"', ""])


def _zsh_function(command: Command) -> str:
    name = _shell_name(command)
    specs = [_zsh_option(option) for option in command.options]
    specs += [_zsh_positional(positional) for positional in command.positionals]
    if not command.commands:
        return "\n".join([f"\n{name}() {{", "    _arguments -s -S " + _zsh_lines(specs), "}"])
    specs += ["'1:command:->command'", "'*::argument:->argument'"]
    described = _zsh_lines(_zsh_quote(f"{child.path[-1]}:{child.summary}") for child in command.commands)
    children = [f"                {child.path[-1]}) {_shell_name(child)};;" for child in command.commands]
    return "\n".join([
        f"\n{name}() {{",
        '    local curcontext="$curcontext" state line',
        "    local -A opt_args",
        "    local -a commands",
        f"    commands=({described})",
        "    _arguments -C " + _zsh_lines(specs),
        "    case $state in",
        "        command) _describe command commands;;",
        "        argument)",
        "            case $words[1] in",
        *children,
        "            esac;;",
        "    esac",
        "}",
    ])  # fmt: skip


def _zsh_lines(specs: Iterator[str] | list[str]) -> str:
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
function __crash_hotplug_typed --description 'the words so far that are no options'
    set -l typed (commandline -opc)
    set -e typed[1]
    string match --invert -- '-*' $typed
end
function __crash_hotplug_at --description 'whether just these words are typed so far'
    set -l typed (__crash_hotplug_typed)
    test "$typed" = "$argv"
end
function __crash_hotplug_in --description 'whether what is typed so far begins with these words'
    set -l typed (__crash_hotplug_typed)
    string match --quiet -- "$argv *" "$typed "
end
complete -c crash-hotplug -f
"""
_FISH_VALUE = {Value.FILE: " -r -F", Value.DIRECTORY: " -x -a '(__fish_complete_directories)'", Value.WORD: " -x"}


def fish(program: Command) -> str:
    """Return the script for fish 3 and newer."""
    return _FISH + "".join(f"complete -c crash-hotplug {line}\n" for line in _fish_lines(program))


def _fish_lines(program: Command) -> Iterator[str]:
    for command in program.walk():
        path = " ".join(command.path)
        at = f"-n '__crash_hotplug_at {path}'" if path else "-n __crash_hotplug_at"
        inside = f"-n '__crash_hotplug_in {path}'" if path else at
        for child in command.commands:
            yield f"{at} -a {child.path[-1]} -d {_fish_quote(child.summary)}"
        for option in command.options:
            yield f"{inside}{_fish_option(option)} -d {_fish_quote(option.help)}"
        for positional in command.positionals:
            if positional.value is Value.FILE:
                yield f"{inside} -F"


def _fish_option(option: Argument) -> str:
    names = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in option.names)
    if option.words:
        return f"{names} -x -a '{' '.join(option.words)}'"
    return names + _FISH_VALUE.get(option.value, "")


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _shell_name(command: Command) -> str:
    return "_" + "_".join(["crash_hotplug", *command.path]).replace("-", "_")


FILES = {"crash-hotplug": bash, "_crash-hotplug": zsh, "crash-hotplug.fish": fish}
"""Each script's name, as its shell looks for it."""


def main(directory: str) -> None:
    """Write every script into a directory, which is made."""
    os.makedirs(directory, exist_ok=True)
    program = read_commands()
    for name, script in FILES.items():
        with open(os.path.join(directory, name), "w") as file:
            file.write(script(program))


if __name__ == "__main__":
    main(sys.argv[1])

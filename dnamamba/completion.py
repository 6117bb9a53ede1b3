"""`dnamamba completion bash|zsh|fish`: a script that completes verbs, flags and their choices in a shell.

It is made of the table of verbs and their settings when it is printed, and holds them: completing starts no Python.

    dnamamba completion bash > ~/.local/share/bash-completion/completions/dnamamba
    dnamamba completion zsh > "${fpath[1]}/_dnamamba"
    dnamamba completion fish > ~/.config/fish/completions/dnamamba.fish
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args, get_origin

from dnamamba import verbs
from dnamamba.settings.fields import Settings, setting
from dnamamba.settings.parser import is_switch, kinds

Shell = Literal["bash", "zsh", "fish"]


@dataclass(kw_only=True)
class CompletionSettings(Settings):
    """A script that completes verbs, flags and their choices in a shell: source it, or keep it where the shell looks.

    bash: ~/.local/share/bash-completion/completions/dnamamba. zsh: _dnamamba in a folder of $fpath. fish:
    ~/.config/fish/completions/dnamamba.fish."""

    shell: Shell = setting(positional=True)
    """bash, zsh or fish."""


main = verbs.main("completion")


class Flag(NamedTuple):
    """A flag as a shell sees it."""

    name: str
    """With its dashes"""
    help: str
    """Its first sentence"""
    choices: tuple[str, ...]
    """What its value is one of; empty for any value"""
    takes_value: bool


def completion(settings: CompletionSettings) -> None:
    """Prints the script."""
    print(SCRIPTS[settings.shell]({verb: flags(verb) for verb in verbs.VERBS}))


def flags(verb: str) -> list[Flag]:
    """The flags of a verb in the order of its help, and the choices of a value without a flag under the name ""."""
    found = []
    for name, known in verbs.parser(verb).names.items():
        choices = tuple(
            str(choice)
            for kind in kinds(known.hint)
            for choice in (get_args(kind) if get_origin(kind) is Literal else ("true", "false") if kind is bool else ())
        )
        sentence = re.split(r"(?<=[a-z)`])[.:;](?:\s|$)", known.help)[0]
        shown = "" if known.positional else f"--{name}"
        found.append(Flag(shown, " ".join(sentence.split()), choices, not is_switch(known)))
    found += [Flag("--config", "YAML file with any of these flags", (), True), Flag("--help", "All flags", (), False)]
    return found


def _bash(known: dict[str, list[Flag]]) -> str:
    """Where nothing is offered, bash completes the names of files."""
    names = {verb: " ".join(flag.name for flag in found if flag.name) for verb, found in known.items()}
    by_verb = [f'        {verb}) flags="{words}" ;;' for verb, words in names.items()]
    values = [
        f'        "{verb} {flag.name}") choices="{" ".join(flag.choices)}" ;;'
        for verb, found in known.items()
        for flag in found
        if flag.choices and flag.takes_value
    ]
    return "\n".join(
        [
            "_dnamamba() {",
            '    local current="${COMP_WORDS[COMP_CWORD]}" verb="${COMP_WORDS[1]}" flag="" flags="" choices="" i',
            "    COMPREPLY=()",
            '    if [ "$COMP_CWORD" -eq 1 ]; then',
            f'        COMPREPLY=($(compgen -W "{" ".join(known)} --help --version" -- "$current"))',
            "        return",
            "    fi",
            '    case "$verb" in',
            *by_verb,
            "    esac",
            '    case "$current" in',
            '        -*) COMPREPLY=($(compgen -W "$flags" -- "$current")); return ;;',
            "    esac",
            "    for ((i = COMP_CWORD - 1; i > 1; i--)); do",
            '        case "${COMP_WORDS[i]}" in --*) flag="${COMP_WORDS[i]}"; break ;; esac',
            "    done",
            '    case "$verb $flag" in',
            *values,
            "    esac",
            '    [ -n "$choices" ] && COMPREPLY=($(compgen -W "$choices" -- "$current"))',
            "}",
            "complete -o default -F _dnamamba dnamamba",
        ]
    )


def _zsh(known: dict[str, list[Flag]]) -> str:
    def quoted(text: str) -> str:
        return text.replace("'", "’").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")

    lines = ["#compdef dnamamba", "_dnamamba() {", "    local -a verbs=("]
    lines += [f"        '{verb}:{quoted(verbs.VERBS[verb].help)}'" for verb in known]
    lines += ["    )", "    if (( CURRENT == 2 )); then _describe verb verbs; return; fi", "    case $words[2] in"]
    for verb, found in known.items():
        lines.append(f"        {verb})")
        lines.append("            shift words; (( CURRENT-- ))")
        lines.append("            _arguments \\")
        for flag in found:
            action = f"({' '.join(flag.choices)})" if flag.choices else "_files"
            if not flag.name:
                lines.append(f"                '1:{quoted(flag.help)}:{action}' \\")
                continue
            value = f":value:{action}" if flag.takes_value else ""
            lines.append(f"                '*{flag.name}[{quoted(flag.help)}]{value}' \\")
        lines += ["                '*:file:_files'", "            ;;"]
    # Loaded by zsh from $fpath it is the function's body; sourced, it has to be registered.
    last = 'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _dnamamba "$@"; else compdef _dnamamba dnamamba; fi'
    return "\n".join([*lines, "    esac", "}", last])


def _fish(known: dict[str, list[Flag]]) -> str:
    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace("'", "’")

    lines = []
    for verb, found in known.items():
        help_text = quoted(verbs.VERBS[verb].help)
        lines.append(f"complete -c dnamamba -n __fish_use_subcommand -f -a {verb} -d '{help_text}'")
        for flag in found:
            named = f" -l {flag.name[2:]}" if flag.name else ""
            value = ""
            if flag.choices and flag.takes_value:
                value = f" -x -a '{' '.join(flag.choices)}'"
            elif flag.takes_value:
                value = " -r"
            here = f"complete -c dnamamba -n '__fish_seen_subcommand_from {verb}'"
            lines.append(f"{here}{named}{value} -d '{quoted(flag.help)}'")
    return "\n".join(lines)


SCRIPTS: dict[Shell, Callable[[dict[str, list[Flag]]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}

if __name__ == "__main__":
    verbs.run(main)

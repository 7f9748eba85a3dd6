"""Completion of keys, options and flags in bash and zsh."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cyclestyle.cli.arguments import FLAGS
from cyclestyle.cli.help import option_files, yaml_entries
from cyclestyle.errors import CommandError

COMMANDS = ("train", "translate", "evaluate", "export", "download")

# bash splits words at `=`, so that only the part after it is replaced; zsh replaces the whole word.
BASH = """_cyclestyle() {
    local line="${COMP_LINE:0:COMP_POINT}" runner
    local word="${line##* }"
    COMPREPLY=()
    if [ "${COMP_WORDS[1]}" = "-m" ] && [ "${COMP_WORDS[2]#cyclestyle.}" != "${COMP_WORDS[2]}" ]; then
        runner="${COMP_WORDS[0]} -m ${COMP_WORDS[2]}"
    elif [ "${COMP_WORDS[0]##*/cyclestyle-}" != "${COMP_WORDS[0]#cyclestyle-}" ]; then
        runner="${COMP_WORDS[0]}"
    else
        return
    fi
    local found
    while IFS= read -r found; do
        case "$COMP_WORDBREAKS" in
            *=*) if [ "${word%%=*}" != "$word" ]; then found="${found#"${word%%=*}="}"; fi ;;
        esac
        COMPREPLY+=("$found")
    done < <(eval "$runner" --complete '"$word"' 2> /dev/null)
}
complete -o nospace -o default -F _cyclestyle COMMANDS python python3
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def script(shell: str) -> str:
    """Return the shell script that enables completion of arguments.

    Args:
        shell: `bash` or `zsh`; with `install=` before it, as in Hydra's own flag, it is accepted too.

    Raises:
        CommandError: there is no completion for this shell.
    """
    name = shell.removeprefix("install=")
    if name not in ("bash", "zsh"):
        raise CommandError(f"no completion for {shell}: there are bash and zsh, as in --shell-completion bash")
    bash = BASH.replace("COMMANDS", " ".join(f"cyclestyle-{command}" for command in COMMANDS))
    return bash if name == "bash" else ZSH + bash


def candidates(word: str, root: Path, folders: Sequence[Path], groups: Mapping[str, str | None]) -> list[str]:
    """Return the completions of `word`: flags, `key=`, `group=option`, or `key=true` and `key=false` for a boolean key.

    Args:
        root: the command's YAML file.
        folders: folders that contain the options of config groups.
        groups: config group -> its default option; None for a group without a default.
    """
    if word.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(word)]
    signs = word[: len(word) - len(word.lstrip("+~"))]
    typed = word.removeprefix(signs)
    values = {entry.key: entry.value for entry in yaml_entries(root) if entry.value}
    for group, default in groups.items():
        file = option_files(folders, group).get(default or "")
        for entry in yaml_entries(file) if file else ():
            values[f"{group}.{entry.key}"] = entry.value
    key, equals, _ = typed.partition("=")
    if not equals:
        complete = [f"{name}=" for name in [*groups, *values]]
    elif key in groups:
        complete = [f"{key}={option}" for option in option_files(folders, key)]
    else:
        complete = [f"{key}=true", f"{key}=false"] if values.get(key) in ("true", "false") else []
    return [signs + choice for choice in complete if choice.startswith(typed)]

"""Find words and sentence openings that the glossary in CONTRIBUTING.md forbids, in code, configs and docs.

    python scripts/check_words.py [FILE ...]     # all files of the project by default; part of `make check`

Prints one line for each finding and exits with 1 if there is one. The check covers docstrings, comments, strings of
three or more words (error texts, log lines, help), test names, comments in YAML files, and Markdown except code blocks.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cyclestyle", "configs", "scripts", "tests", "docs")
PAGES = ("README.md", "CONTRIBUTING.md")

# Forbidden first words of a docstring: the clause that they open has no subject.
OPENING = re.compile(r"(What|Who|Whom|Whoever|Whose|Of|By|As|That|Those that)\b")
# Forbidden first words of a comment: it would continue the line above it or the code before it.
DANGLING = re.compile(r"(that|which|whose|whom|who|of which|of|by|as of|so that|such that)\b")
BANNED = re.compile(
    r"\b(told|tells?|telling|says?|said|saying|hand(?:s|ed)? on|go(?:es|ing)? on|went on|stands?|stood|anew|of which"
    r"|as of|such that|whoever|somebody)\b",
    re.IGNORECASE,
)
# Code, options, assignments and addresses are not checked.
CODE = re.compile(r"`[^`]*`|\"[^\"\s]*\"|--[\w-]+|\b\w+=\S*|https?://\S+")
DIALECT = re.compile(r"_s_|_told\b|_told_|_tells?_|_tells?\b|_says?_|_said_|_of_which_|whoever|somebody|_anew|_goes_on")
EXEMPT = {"scripts/check_words.py", "tests/test_check_words.py"}  # these files contain the forbidden words


class Finding(NamedTuple):
    """One line of a file that breaks a rule."""

    line: int
    rule: str
    text: str


def main() -> int:
    """Check the files and print the findings; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    for path in arguments.files:
        if path.suffix not in CHECKS:
            parser.error(f"{path}: only {', '.join(CHECKS)} files can be checked")
    count = 0
    for path in arguments.files or project_files():
        name = path.resolve().relative_to(ROOT).as_posix()
        if name in EXEMPT:
            continue
        for finding in check(path):
            count += 1
            print(f"{name}:{finding.line}: {finding.rule}: {finding.text}")
    if count:
        print(f"{count} places: see the glossary in CONTRIBUTING.md", file=sys.stderr)
    return 1 if count else 0


def project_files() -> list[Path]:
    """Files that are checked by default, sorted."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in CHECKS]
    return sorted(found) + [ROOT / page for page in PAGES]


def check(path: Path) -> list[Finding]:
    """Findings in one file, sorted by line."""
    return sorted(CHECKS[path.suffix](path.read_text(encoding="utf-8")))


def in_python(source: str) -> Iterator[Finding]:
    """Yield the findings in docstrings, comments, strings and names of tests."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and DIALECT.search(node.name):
            yield Finding(node.lineno, "test name", node.name)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_docstring = id(node) in docstrings
            if is_docstring and OPENING.match(node.value):
                yield Finding(node.lineno, "opening", _first_line(node.value))
            if is_docstring or len(node.value.split()) >= 3:
                yield from _banned(node.value, node.lineno)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _comment(token.string, token.start[0])


def in_yaml(text: str) -> Iterator[Finding]:
    """Yield the findings in comments."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.search(r"(?:^|\s)#(.*)", line):
            yield from _banned(match[1], number)


def in_markdown(text: str) -> Iterator[Finding]:
    """Yield the findings in paragraphs and tables."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield from _banned(line, number)


CHECKS: dict[str, Callable[[str], Iterator[Finding]]] = {".py": in_python, ".yaml": in_yaml, ".md": in_markdown}


def _comment(comment: str, line: int) -> Iterator[Finding]:
    words = comment.lstrip("#").strip()
    if DANGLING.match(words):
        yield Finding(line, "dangling comment", words)
    yield from _banned(words, line)


def _banned(text: str, line: int) -> Iterator[Finding]:
    for offset, part in enumerate(text.splitlines()):
        for match in BANNED.finditer(CODE.sub(" ", part)):
            yield Finding(line + offset, f"`{match[0]}`", part.strip())


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())

"""Checks the sizes that keep the code readable: files, Python functions, the bind crate. Prints every breach.

Arguments per function and the length of Rust functions are checked by ruff and clippy.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

FILE_LINES = 400
FUNCTION_LINES = 70
BIND_LINES = 700
BIND = Path("rust_core/bind/src")


def main() -> int:
    """Prints the breaches and the medians; 1 where there is a breach."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    breaches = [f"{path}:1: {n} lines, at most {FILE_LINES}" for path, n in lengths.items() if n > FILE_LINES]
    for path in lengths:
        if path.suffix == ".py":
            breaches += long_functions(path)
    bind = sum(n for path, n in lengths.items() if BIND in path.parents)
    if bind > BIND_LINES:
        breaches.append(f"{BIND}: {bind} lines in all, at most {BIND_LINES}")
    print(*breaches, sep="\n", end="\n" if breaches else "")
    for suffix, language in ((".rs", "Rust"), (".py", "Python")):
        of_language = [n for path, n in lengths.items() if path.suffix == suffix] or [0]
        print(f"{language}: {len(of_language)} files, median {median(of_language):.0f} lines, most {max(of_language)}")
    print(f"bind: {bind} lines")
    return 1 if breaches else 0


def sources() -> Iterator[Path]:
    """Every Rust and Python file that git has or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.rs", "*.py", "*.pyi"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    yield from (path for path in map(Path, sorted(set(listed))) if path.exists())


def long_functions(path: Path) -> Iterator[str]:
    """One line per function that is too long, counted from `def` to its last line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}"


if __name__ == "__main__":
    sys.exit(main())

"""What `make lint` asks of the repository's files beside Python style: python .ci/files.py <check> [<file> ...]

Without files: all that git knows or would add. Prints what is wrong, a line each, and exits with 1 if anything is.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

LARGEST = 2_000_000  # bytes: the report with its gallery has half of that, a model would have more
WRITTEN_BY_HAND = {".cff", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}  # results are left as they are
GOLDEN = Path("tests/golden")  # files of earlier versions, byte by byte


def formats(path: Path, content: bytes) -> Iterator[str]:
    """YAML, TOML and JSON that their own readers cannot read."""
    try:
        text = content.decode() if path.suffix in READERS else ""
        READERS.get(path.suffix, str)(text)
    except (ValueError, yaml.YAMLError) as error:  # JSON's, TOML's and UTF-8's errors are ValueErrors
        yield f"{path}: cannot be read: {' '.join(str(error).split())}"


def size(path: Path, content: bytes) -> Iterator[str]:
    if len(content) > LARGEST:
        yield f"{path}: {len(content)} bytes are more than {LARGEST}; weights and data do not belong into git"


def markers(path: Path, content: bytes) -> Iterator[str]:
    """What a merge leaves where it was not finished."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if re.match(rb"(<{7}|>{7}|\|{7}) ", line) or line == b"=" * 7:
            yield f"{path}:{number}: a merge was not finished here"


def whitespace(path: Path, content: bytes) -> Iterator[str]:
    """Blanks at the end of a line, and an end of file that is not one line break."""
    if path.suffix not in WRITTEN_BY_HAND or b"\0" in content or not content:
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line != line.rstrip():
            yield f"{path}:{number}: blanks at the end of the line"
    if not content.endswith(b"\n") or content.endswith(b"\n\n"):
        yield f"{path}: must end with one line break"


def _toml(text: str) -> object:
    if sys.version_info < (3, 11):  # ruff reads pyproject.toml, the only one, in any version
        return None
    import tomllib

    return tomllib.loads(text)


READERS: dict[str, Callable[[str], object]] = {
    ".cff": yaml.safe_load,
    ".ipynb": json.loads,
    ".json": json.loads,
    ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    ".toml": _toml,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}
CHECKS = {check.__name__: check for check in (formats, size, markers, whitespace)}


def tracked() -> list[Path]:
    """Files that git knows, or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in names.split("\0") if name]


def main(check: str, *files: str) -> int:
    """How many files are wrong, at most 1: the exit status."""
    found = []
    for path in map(Path, files) if files else tracked():
        if path.is_file() and not path.is_symlink() and not path.is_relative_to(GOLDEN):
            found += CHECKS[check](path, path.read_bytes())
    print(*found, sep="\n", end="\n" if found else "")
    return min(1, len(found))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in CHECKS:
        sys.exit(f"usage: python .ci/files.py {'|'.join(CHECKS)} [<file> ...]")
    sys.exit(main(*sys.argv[1:]))

"""Prose unlike captions, taken out of packages that are installed here; none of it lies in this repository.

prose.yaml names each text by its package, its file in there, and the sha256 of the file. What is missing, or another
version, is left out and told. Of a Python file the docstrings are read, of any other file all of it; of either those
paragraphs that are plain English prose.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from src.errors import UserError
from src.probes.files import read_probe

LEAST = 25  # words of a paragraph
LETTERS = 0.93  # share of letters and spaces in it
CAPITALS = 0.1  # of its letters at most: no shouted disclaimers
ODD = re.compile(r"[^A-Za-z0-9 ,.;:'\"()?!-]|--")  # what no plain prose has: markup, formulas, code


@dataclass(frozen=True)
class Prose:
    """One text. ``name``: package and file."""

    domain: str
    name: str
    sha256: str
    text: str


def read_prose() -> tuple[list[Prose], list[str]]:
    """The texts that are here as they were, and sentences about the others. Raises UserError where there is none."""
    found, told = [], []
    for domain, entries in read_probe("prose").items():
        for entry in entries:
            package, file, sha256 = entry["package"], entry["file"], entry["sha256"]
            content = _content(package, file)
            if content is None:
                told.append(f"{file} is left out of {domain}: package {package} with that file is not installed.")
            elif hashlib.sha256(content).hexdigest() != sha256:
                told.append(f"{file} is left out of {domain}: its sha256 is not that of the pinned {package}.")
            else:
                found.append(Prose(domain, f"{package}: {file}", sha256, prose(content.decode(), Path(file).suffix)))
    if not found:
        raise UserError(
            f"None of the {len(told)} texts of src/probes/prose.yaml is installed as it was pinned, so that nothing "
            "can be measured on prose; install the versions of constraints.txt."
        )
    return found, told


def _content(package: str, file: str) -> bytes | None:
    try:
        return Path(str(distribution(package).locate_file(file))).read_bytes()
    except (PackageNotFoundError, OSError):
        return None


def prose(content: str, suffix: str) -> str:
    """The paragraphs of plain prose of a file, each once, in their order."""
    parts = _docstrings(content) if suffix == ".py" else [content]
    return "\n\n".join(dict.fromkeys(one for part in parts for one in paragraphs(part)))


def paragraphs(text: str) -> Iterator[str]:
    """Those of some length that begin with a capital letter, end with a full stop and hold nothing but words."""
    for block in re.split(r"\n\s*\n", text):
        one = " ".join(block.split())
        if len(one.split()) < LEAST or not one[0].isupper() or one[-1] != "." or ODD.search(one):
            continue
        letters = sum(map(str.isalpha, one))
        if letters + one.count(" ") >= LETTERS * len(one) and sum(map(str.isupper, one)) <= CAPITALS * letters:
            yield one


def _docstrings(source: str) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return [ast.get_docstring(node) or "" for node in nodes]

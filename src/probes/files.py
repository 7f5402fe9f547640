"""The files of what is asked, which are never edited: whoever compares two models has asked both the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml

from src.errors import UserError

FOLDER = Path(__file__).parent
SHA256 = {
    "cloze": "69fead4820086c8f5e90bf8e60df45190155448e7ec5c01499a7db899e04d56d",
    "grammar": "fc690ed20dc69a98d09f5ea8691ee03fd67ce546f6a1b540090d0d3a50b7792c",
    "knowledge": "14771aa99013ec537cfa33fafd636ed32843a3682b864c56c55790a022273a7d",
    "prose": "bcd7a299b964398b7f19ee6d0b70ad9e4ee5f50179e107cf7bff6928f3707fbb",
}


def read_probe(name: str) -> dict:
    """The content of <name>.yaml. Raises UserError where the file is missing or was changed."""
    path = FOLDER / f"{name}.yaml"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(
            f"{path} is not as it was when its sha256 was noted in src/probes/files.py; restore it (git checkout), as "
            "numbers of different questions cannot be compared."
        )
    return yaml.safe_load(content)

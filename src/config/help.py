"""What ``python -m src.<verb> --help`` says: the verb's own options, as its file in conf/ explains them."""

from __future__ import annotations

import re
import textwrap

from omegaconf import OmegaConf

from src.config.checks import choices, groups
from src.config.classes import HOME

FLAGS = ("-h", "--help")  # --hydra-help is left to Hydra
WIDTH = 120


def help_text(command: str, about: str) -> str:
    """``about``: the docstring of the verb's file. After it come its choices, and conf/<command>.yaml for people."""
    parts = [about.strip(), _choices(command), _options(command)]
    parts.append("Where ??? stands a value must be given. What Hydra itself can do: --hydra-help.")
    return "\n\n".join(filter(None, parts))


def _choices(command: str) -> str:
    """One line for each group; the word that holds without a choice comes first."""
    if not groups(command):
        return ""
    defaults = OmegaConf.to_container(OmegaConf.load(HOME / "conf" / f"{command}.yaml").defaults)  # ${...} as it stands
    chosen: dict[str, str | None] = {}
    for entry in (one for one in defaults if isinstance(one, dict)):
        chosen |= {str(group).removeprefix("optional "): word for group, word in entry.items()}
    example = f"conf/{groups(command)[0]}/{choices(groups(command)[0])[0]}.yaml"
    lines = [f"Choices; what each has is explained in conf/<choice>/<word>.yaml, for example {example}:"]
    for group in groups(command):
        words = [word for word in choices(group) if word != chosen[group]]
        said = f"{chosen[group] or '(none)'} | {' | '.join(words)}" if words else chosen[group]
        lines.append(textwrap.fill(said, WIDTH, initial_indent=f"  {group + '=':<12}", subsequent_indent=" " * 14))
    return "\n".join(lines)


def _options(command: str) -> str:
    """The file's lines with their comments, without the nodes that only Hydra reads."""
    text = (HOME / "conf" / f"{command}.yaml").read_text(encoding="utf-8")
    blocks = re.split(r"^(?=\S)", text, flags=re.M)  # of one key, with what is indented below it
    own = [block for block in blocks if not block.startswith(("defaults:", "hydra:", "#"))]
    return "Options:\n" + textwrap.indent("".join(own).strip(), "  ")

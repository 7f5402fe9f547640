"""What looks like a secret, and a command line without any: nothing that is written may hold one."""

from __future__ import annotations

import os
import re

# --------------------------------------------------------------------------------------------------------------------
# secrets
# --------------------------------------------------------------------------------------------------------------------
MASK = "***"
SECRET = r"(?:(?:api|access|private)[_-]?key|secret(?:[_-]?key)?|pass(?:word|wd|phrase)|token|credentials?)"
_NAMED = re.compile(rf"(?:.*[._-])?{SECRET}", re.IGNORECASE | re.DOTALL)
# What may follow such a name inside of a value, such as {api_key: abc}.
_GIVEN = re.compile(rf"((?<![a-z]){SECRET}[\"']?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s,}}\]]+)", re.IGNORECASE)
_LOGIN = re.compile(r"(\w://[^/\s:@]*:)[^/\s@]+(?=@)")  # https://user:password@host
SHORTEST = 8  # characters of an environment variable's value that is taken for a secret; shorter ones occur by chance


def names_secret(key: str) -> bool:
    """Whether the last part of ``key`` is what secrets are called: "logger.api_key", "HF_TOKEN"; not "max_tokens"."""
    return _NAMED.fullmatch(key.lstrip("+~")) is not None


def masked(argument: str) -> str:
    """A command-line argument without the secrets in it: values named like one, logins, and those of the environment.

    Other text is left as it is.
    """
    key, equals, _ = argument.partition("=")
    if equals and names_secret(key):
        return f"{key}={MASK}"
    argument = _LOGIN.sub(rf"\1{MASK}", _GIVEN.sub(rf"\1{MASK}", argument))
    for name, value in os.environ.items():
        if names_secret(name) and len(value) >= SHORTEST:
            argument = argument.replace(value, MASK)
    return argument


def is_secret(key: str, value) -> bool:
    """Whether ``value``, which stands under ``key`` in a configuration, must not be written down."""
    if isinstance(value, list):
        return any(is_secret(key, one) for one in value)
    return isinstance(value, str) and value != "" and (names_secret(key) or masked(value) != value)

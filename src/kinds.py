"""What an option may be: the words that annotations of constructors are made of, so that each rule is stated once.

    def __init__(self, vision: VisionSpec, language: LanguageSpec, layers: Size, width: Size | None,
                 pool: Literal["mean", "last"], tau: Annotated[float, Ge(0), Lt(0.5)]): ...

    @staticmethod
    def refusals(fusion, language):                      the options by their group, and what the other parts are like
        if fusion.width is not None and fusion.width > language.width:
            yield f"fusion.width={fusion.width} is more than the language model's {language.width}."

``Checked`` applies both when a class is made. ``src.config`` reads both from the source and applies them to the command
line, before anything heavy is imported. So ``refusals`` is arithmetic on its arguments, without any other name; what
needs the least of the other parts comes first, as they may be unknown. Other annotations say nothing about a value.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from src.errors import UserError


@dataclass(frozen=True)
class Rule:
    """``description``: what is allowed, as it stands behind "must be"; ``fits``: whether a value is."""

    description: str
    fits: Callable[[Any], bool]


def is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_text(value) -> bool:
    return isinstance(value, str | os.PathLike) or is_number(value)  # a folder may be called 2024


Size = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # what numpy takes
Rate = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]  # dropout, for example
Name = Annotated[str, Rule("text", is_text)]
Project = Annotated[
    str,
    Rule(
        "at most 128 characters without / \\ # ? % : (a team is named by logger.entity=, src.dashboard entity=)",
        lambda value: is_text(value) and re.fullmatch(r"[^/\\#?%:]{1,128}", str(value)) is not None,
    ),
]

KINDS = {"Annotated": Annotated, "Literal": Literal, "Sequence": Sequence, "Ge": Ge, "Gt": Gt, "Le": Le, "Lt": Lt}
KINDS |= {"Size": Size, "Count": Count, "Seed": Seed, "Rate": Rate, "Positive": Positive, "Share": Share}
KINDS |= {"BelowOne": BelowOne, "Name": Name, "Project": Project, "int": int, "float": float, "bool": bool, "str": str}
BOUNDS = {Ge: "of at least", Gt: "above", Le: "at most", Lt: "below"}
SIMPLE = {
    int: Rule("a whole number", is_whole),
    float: Rule("a number", is_number),
    bool: Rule("true or false", lambda value: isinstance(value, bool)),
    str: Rule("text", lambda value: isinstance(value, str | os.PathLike)),
    NoneType: Rule("null", lambda value: value is None),
    None: Rule("null", lambda value: value is None),
}


@functools.cache
def rule(kind) -> Rule | None:
    """The rule of an annotation, or of its text; None where other words than those above stand in it."""
    if isinstance(kind, str):
        try:
            return rule(eval(kind, {"__builtins__": {}}, KINDS))
        except (NameError, AttributeError, SyntaxError, TypeError):
            return None
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((mark for mark in inside[1:] if isinstance(mark, Rule)), None) or _bounded(*inside)
    if origin is Literal:
        *others, last = map(str, inside)
        return Rule(f"{', '.join(others)} or {last}" if others else last, lambda value: value in inside)
    if origin not in (Union, UnionType, Sequence, list, tuple):
        return SIMPLE.get(kind)
    rules = list(map(rule, inside))
    if None in rules:
        return None
    if origin in (Union, UnionType):
        return Rule(" or ".join(one.description for one in rules), lambda value: any(one.fits(value) for one in rules))
    return _several(rules[0], len(rules) if origin is tuple else None)


def _bounded(number: type, *marks) -> Rule:
    """Numbers between the bounds that marks of annotated_types give."""
    kind, marks = SIMPLE[number], [mark for mark in marks if type(mark) in BOUNDS]
    found = {type(mark): getattr(mark, type(mark).__name__.lower()) for mark in marks}
    said = " and ".join(f"{BOUNDS[mark]} {bound:g}" for mark, bound in found.items())
    if number is int and found.keys() == {Ge, Le}:
        said = f"from {found[Ge]} to {found[Le]}"
    tests = [(getattr(operator, mark.__name__.lower()), bound) for mark, bound in found.items()]

    def fits(value) -> bool:
        return kind.fits(value) and all(test(value, bound) for test, bound in tests)

    return Rule(f"{kind.description} {said}", fits)


def _several(one: Rule, length: int | None) -> Rule:
    many = "" if length is None else f"{length} times "

    def fits(value) -> bool:
        right = isinstance(value, Sequence) and not isinstance(value, str) and length in (None, len(value))
        return right and all(map(one.fits, value))

    return Rule(f"a list [...] with {many}{one.description}", fits)


def as_written(value) -> str:
    """A value as it is written on the command line, at most 60 characters of it; text in quotes."""
    text = {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_kinds(group: str, kinds: Mapping[str, object], values: Mapping[str, object]) -> None:
    """Refuse values that are not what their annotations say. Raises UserError."""
    for name, kind in kinds.items():
        if name in values and (asked := rule(kind)) is not None and not asked.fits(values[name]):
            raise UserError(f"{group}.{name} must be {asked.description}; got {as_written(values[name])}.")


# --------------------------------------------------------------------------------------------------------------------
# options that exclude each other
# --------------------------------------------------------------------------------------------------------------------
class Unknown(Exception):
    """Something was asked for that is not known yet."""


class KnownOptions:
    """Options, or sizes of a part, as attributes, as far as they are known."""

    def __init__(self, options: Mapping[str, object]):
        self._options = options

    def __getattr__(self, name: str):
        value = self._options.get(name, "???")
        if value == "???":
            raise Unknown(name)
        return value


def evaluate(rules: Callable, parts: Mapping[str, object]):
    """What ``rules`` gives for the parts that it names as its arguments. Raises Unknown for what is not known."""
    names = inspect.signature(rules).parameters
    return rules(**{name: parts.get(name, KnownOptions({})) for name in names})


def check_refusals(refusals: Callable, parts: Mapping[str, object]) -> None:
    """Raises UserError with the first sentence; what depends on anything unknown is left to later."""
    try:
        sentence = next(iter(evaluate(refusals, parts)), None)
    except Unknown:
        return
    if sentence is not None:
        raise UserError(sentence)


# --------------------------------------------------------------------------------------------------------------------
# the same for Python callers
# --------------------------------------------------------------------------------------------------------------------
class Checked:
    """Base of the classes that configurations name: a constructor is only run with what its annotations say.

    ``group``: of the options of the class and those derived from it, as sentences name them.
    """

    group: ClassVar[str]

    def __init_subclass__(cls, group: str | None = None, **options):
        super().__init_subclass__(**options)
        if group is not None:
            cls.group = group
        if "__init__" in vars(cls):
            cls.__init__ = _guarded(cls.__init__)


def _guarded(made: Callable) -> Callable:
    @functools.wraps(made)
    def wrapped(self, *args, **options):
        if type(self).__init__ is wrapped:  # and not the constructor of a base, which is given what it needs
            _check_call(made, self.group, getattr(self, "refusals", None), (self, *args), options)
        made(self, *args, **options)

    return wrapped


def checked(group: str) -> Callable[[Callable], Callable]:
    """The same as a decorator of a function with the options of ``group``."""

    def decorate(made: Callable) -> Callable:
        @functools.wraps(made)
        def wrapped(*args, **options):
            _check_call(made, group, None, args, options)
            return made(*args, **options)

        return wrapped

    return decorate


def _check_call(made: Callable, group: str, refusals: Callable | None, args: tuple, options: dict) -> None:
    signature = inspect.signature(made)
    bound = signature.bind(*args, **options)
    bound.apply_defaults()
    kinds = {name: p.annotation for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    check_kinds(group, kinds, bound.arguments)
    if refusals is not None:
        check_refusals(refusals, {**bound.arguments, group: SimpleNamespace(**bound.arguments)})

"""Command lines from the signatures and docstrings of functions, with argparse alone so that help is fast."""

import argparse
import dataclasses
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

from tsfm_data.errors import InputError, check_seed, unknown_name

TRUTH = {"true": True, "yes": True, "false": False, "no": False}


@dataclasses.dataclass(frozen=True)
class Columns:
    """How a table is read: options that several commands share.

    Args:
        time_column: name of the time column; inferred by default.
        item_column: name of the column with the ids of the series in a long table; inferred by default.
        target: name of the column or columns to forecast; inferred by default.
        past_covariates: columns known only up to the present, for models that take covariates.
        known_covariates: columns whose future is known, too. Their future values come from --future, or from rows with
            an empty target at the end of the table.
        freq: pandas frequency of the series; inferred by default.
        no_item_column: read the table as wide, with one series per value column, whatever the column names.
        future: a second table with future values of the known covariates.
        season: season length in steps; by default that of the frequency (7 for days, 24 for hours, 12 for months).
        resample: frequency to resample to before forecasting, such as h or D.
        aggregate: how resampling combines the values of a period; mean by default.
        on_bad_series: what to do with series that cannot be read: stop (error, the default), leave them out (skip), or
            repair them (fix).
        timezone: time zone of timestamps without one, such as Europe/Berlin.
        dayfirst: whether 01/02/2024 is 1 February; inferred from the whole column by default.
        decimal: decimal mark; inferred from the whole column by default.
        holidays: dates that are not business days, or a file with one date per line.
    """

    time_column: str | None = None
    item_column: str | None = None
    target: list[str] | None = None
    past_covariates: list[str] | None = None
    known_covariates: list[str] | None = None
    freq: str | None = None
    no_item_column: bool | None = None
    future: Path | None = None
    season: int | None = None
    resample: str | None = None
    aggregate: Literal["mean", "sum", "last", "max"] | None = None
    on_bad_series: Literal["error", "skip", "fix"] | None = None
    timezone: str | None = None
    dayfirst: bool | None = None
    decimal: Literal[".", ","] | None = None
    holidays: list[str] | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as keyword arguments of ``read_series``.

        Raises:
            InputError: two options contradict each other.
        """
        options = {name: value for name, value in vars(self).items() if value is not None}
        if options.pop("no_item_column", False):
            if self.item_column is not None:
                raise InputError("expected --item-column or --no-item-column, found both: leave one out")
            options["item_column"] = ""
        return options


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``InputError``: one line, no usage text around it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to get help."""
        raise InputError(f"{message}; {self.prog} --help lists the options")


def parse(program: str, function: Callable[..., object], words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a command function, from the words on its command line.

    A parameter without a default is positional unless it is keyword-only. Every other one is an option, written with
    ``-`` or ``_``. A list takes several words; numbers may also be separated by commas. A parameter that is a
    dataclass, such as ``Columns``, gives one option per field.

    Args:
        program: the command, for help.
        function: its annotations give the types, its Google-style docstring the help.
        words: the words after the command.

    Raises:
        InputError: an option is unknown, missing or of the wrong type.
    """
    doc = inspect.getdoc(function) or ""
    about = re.split(r"\n(?=Args:|Returns:|Raises:)", doc)[0].strip()
    parser = Parser(prog=program, description=about, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    groups: dict[str, Any] = {
        name: kind for name, kind in typing.get_type_hints(function).items() if dataclasses.is_dataclass(kind)
    }
    add_all(parser, function)
    options = [option for action in parser._actions for option in action.option_strings]
    for word in itertools.takewhile(lambda word: word != "--", words):
        if word.startswith("--") and word.split("=")[0] not in options:
            raise unknown_name(f"option of {program}", word, options)
    values = vars(parser.parse_args(list(words)))
    if "seed" in values:
        check_seed(values["seed"], "--seed")
    for name, kind in groups.items():
        names = [field.name for field in dataclasses.fields(kind) if field.name in values]
        values[name] = kind(**{field: values.pop(field) for field in names})
    return values


def add_all(parser: argparse.ArgumentParser, function: Callable[..., object]) -> None:
    """Add the parameters of a function, or the fields of a dataclass, to a parser."""
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(function) or "", re.MULTILINE))
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if dataclasses.is_dataclass(hints[parameter.name]):
            add_all(parser, hints[parameter.name])
        else:
            add(parser, parameter, hints[parameter.name], texts.get(parameter.name, "").replace("%", "%%"))


def add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, annotation: Any, text: str) -> None:
    """Add one parameter of a function to its parser.

    Args:
        parser: to add to.
        parameter: its name and default.
        annotation: its type: str, int, float, bool, Path, Literal, a list of one of them, or one of these or None.
        text: its help.
    """
    kind, several = word_type(annotation)
    options: dict[str, Any] = {"type": kind, "help": text}
    if several:
        options |= {"nargs": "+", "action": Joined, "type": splitter(kind)}
    if typing.get_origin(kind) is Literal:
        options |= {"type": str, "choices": typing.get_args(kind)}
        if "true" in options["choices"]:
            options |= {"nargs": "?", "const": "true"}
    required = parameter.default is inspect.Parameter.empty
    if required and parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        parser.add_argument(parameter.name, **options)
        return
    if kind is bool:
        options |= {"type": truth, "nargs": "?", "const": True, "metavar": "true|false"}
    elif "choices" not in options:
        options["metavar"] = parameter.name.upper()
    if not required and parameter.default is not None and parameter.default is not False:
        options["help"] += f" Default: {'true' if kind is bool else parameter.default}."
    names = dict.fromkeys((f"--{parameter.name.replace('_', '-')}", f"--{parameter.name}"))
    parser.add_argument(*names, dest=parameter.name, required=required, **options)


class Joined(argparse.Action):
    """The words of a list, each of which may hold several values, as one list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store them."""
        setattr(namespace, self.dest, [value for part in values for value in part])


def word_type(annotation: Any) -> tuple[Any, bool]:
    """The type of one word, and whether several are taken; ``| None`` is left out."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) in (list, Sequence):
        return typing.get_args(annotation)[0], True
    return annotation, False


def splitter(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A function that splits one word into values: at commas if these are numbers or in brackets."""

    def split(word: str) -> list[Any]:
        bracketed = word.startswith("[") and word.endswith("]")
        parts = [word] if kind is str and not bracketed else word.strip("[]").split(",")
        return [kind(part.strip()) for part in parts if part.strip()]

    split.__name__ = f"list of {getattr(kind, '__name__', 'word')}"  # argparse's name for it in errors
    return split


def truth(word: str) -> bool:
    """A truth value."""
    if word.lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"expected true or false, found {word!r}")
    return TRUTH[word.lower()]

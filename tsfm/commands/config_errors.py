"""Turns errors of the config parser into one line: expected, found, file and line, similar names."""

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from tsfm.configs import config_path
from tsfm.models import Forecaster, model_classes
from tsfm_data.errors import InputError, unknown_name
from tsfm_data.io import read_yaml

# Keys of a config whose values are classes, and the base of these classes.
BASES = {
    "model": pl.LightningModule,
    "data": pl.LightningDataModule,
    "forecaster": Forecaster,
    "callbacks": pl.Callback,
    "logger": Logger,
}
CONFIG_OPTIONS = ("--config", "-c")
SECTIONS = ("seed_everything", "model", "data", "trainer", "optimizer", "lr_scheduler", "ckpt_path", "config")
UNKNOWN_KEY = re.compile(
    r"does not accept option '([^']+)'|Option '([^']+)' is not accepted|unrecognized arguments: (\S+)"
)
UNKNOWN_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'|Expected a dot import path string: (\S+)")
EXPECTED = re.compile(r"Expected a (<class '[\w.]+'>|typing\.Literal\[[^\]]*\]|[\w.\[\], ]+)")
VALUE = re.compile(r"(?:Got value|Given value): (.*?)(?: - Expected a | Given value|\. Got value|$)")


def with_config_files(words: Sequence[str]) -> list[str]:
    """The arguments, with the names of configs after ``--config`` replaced by their files.

    Raises:
        InputError: there is no such file or config; similar names are listed.
    """
    paths = list(words)
    for index, word in enumerate(words):
        option, joined, value = word.partition("=")
        if option in CONFIG_OPTIONS and joined:
            paths[index] = f"{option}={config_path(value)}"
        elif option in CONFIG_OPTIONS:
            after = slice(index + 1, index + 2)
            paths[after] = [str(config_path("".join(words[after])))]
    return paths


def config_files(words: Sequence[str]) -> list[Path]:
    """The files given by ``--config``."""
    files = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, joined, value = word.partition("=")
        if option in CONFIG_OPTIONS:
            files.append(Path(value if joined else after))
    return files


def check_files(words: Sequence[str]) -> None:
    """Check that every config file is YAML with keys and values.

    Raises:
        InputError: a file is not YAML, or not a mapping.
    """
    for path in config_files(words):
        read_yaml(path, "sections such as model, data and trainer")


def explain(error: BaseException, words: Sequence[str]) -> InputError:
    """The one-line error for an error of the parser, or of a class that it instantiated.

    Args:
        error: the exception.
        words: arguments of the command line, to locate the mistake.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    if match := UNKNOWN_KEY.search(text):
        return unknown_key(text, match, words)
    if (match := UNKNOWN_CLASS.search(text)) and (not match[3] or section_of(text, match) in BASES):
        return unknown_class(text, match, words)
    if match := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return InputError(
            f"expected a subclass of {match[2]}, found {match[1]}{location(match[1], words)}: name another"
        )
    if match := re.search(r"the following arguments are required: ([\w., ]+)", text):
        return missing_key(text[: match.start()], [name.strip() for name in match[1].split(",")])
    if (value := VALUE.search(text)) and EXPECTED.search(text[: value.start()]) and "Parser key" in text:
        return wrong_value(text, value, words)
    return InputError(f"{text.split(' Subtypes:')[0][:300]}{location('', words)}")


def unknown_key(text: str, match: re.Match[str], words: Sequence[str]) -> InputError:
    """The error for an unknown key or option."""
    option = next(group for group in match.groups() if group)
    if match[3] and not option.startswith("-"):
        return InputError(f"expected options such as --config FILE, found the word {option!r}: leave it out")
    *groups, key = option.lstrip("-").split("=")[0].split(".")
    if named := re.search(r"Group '([\w.]+)' does not", text):
        groups = named[1].split(".")
    owners = re.findall(r"given class_path '([\w.]+)'", text[: match.start()])
    if inner := re.search(r"Got value: Namespace\(.*?class_path='([\w.]+)'", text[match.start() :]):
        owners.append(inner[1])
    if owners:
        owner = load_class(owners[-1])
        if owner in BASES.values():
            return InputError(
                f"expected --config with a class for {option.lstrip('-').split('.')[0]} before the option {option}, "
                "found none: move the option after it; a config that adds to another has that one before it, as "
                "tsfm configs show NAME says"
            )
        for group in groups:
            owner = parameter_class(owner, group)
        kind, known = f"key of {getattr(owner, '__name__', owners[-1])}", parameters(owner)
    elif groups[:1] == ["trainer"]:
        kind, known = "key of trainer", parameters(pl.Trainer)
    else:
        key = groups[0] if groups else key
        kind, known = "section of the config", list(SECTIONS)
    return InputError(f"{unknown_name(kind, key, known)}{location(key, words)}")


def missing_key(head: str, names: Sequence[str]) -> InputError:
    """The error for a missing required key."""
    keys = ".".join(re.findall(r'Parser key "([\w.]+)"', head))
    if not keys:
        sections = " and ".join(name.split(".", 1)[-1] for name in names)
        hint = "give --config FILE, or --config NAME (tsfm configs list)"
        return InputError(f"expected a config with sections {sections}, found none: {hint}")
    return InputError(f"expected a value for {names[0]} of {keys}, found none: give --{keys}.{names[0]} VALUE")


def unknown_class(text: str, match: re.Match[str], words: Sequence[str]) -> InputError:
    """The error for an unknown class, or a class in an unknown module."""
    if match[3]:
        name = match[3].rstrip(".")
        section = section_of(text, match)
        models = {kind.__name__ for kind in model_classes().values()}
        known = models if section == "forecaster" else subclasses(BASES[section])
        return InputError(f"{unknown_name(f'class for {section}', name, known)}{location(name, words)}")
    module = importlib.import_module(match[1])
    return InputError(f"{unknown_name(f'name in {match[1]}', match[2], public(module))}{location(match[2], words)}")


def section_of(text: str, match: re.Match[str]) -> str:
    """The last part of the key that the parser's message names before a mistake.

    If a value may have several types, the parser reports a class error for each of them; only a key in ``BASES`` really
    needs a class.
    """
    return (re.findall(r'Parser key "([\w.]+)"', text[: match.start()]) or [""])[-1].split(".")[-1]


def wrong_value(text: str, value: re.Match[str], words: Sequence[str]) -> InputError:
    """The error for a value of the wrong type."""
    head = text[: value.start()]
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', head))
    kinds = [readable(kind) for kind in EXPECTED.findall(head[head.rfind('Parser key "') :])]
    expected = " or ".join(dict.fromkeys(kind for kind in kinds if kind != "NoneType"))
    shown = value[1].rstrip(". ")
    return InputError(f"expected {expected} at key {key}, found {shown!r:.80}{location(key, words)}: correct it")


def readable(kind: str) -> str:
    """The name of a type for users."""
    if match := re.match(r"<class '([\w.]+)'>", kind):
        return match[1].split(".")[-1]
    if match := re.match(r"typing\.Literal\[(.*)\]", kind):
        return "one of " + match[1].replace("'", "")
    return kind.strip()


def location(key: str, words: Sequence[str]) -> str:
    """The place of a key, for a message: the command line, or file and line of a config."""
    last = key.split(".")[-1]
    for word in words:
        if last and word.startswith("--") and last in re.split(r"[.=]", word.lstrip("-")):
            return f" (on the command line, {word.split('=')[0]})"
    for path in reversed(config_files(words)):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if last and re.search(rf"(?<![\w.]){re.escape(last)}\s*:|[ .]{re.escape(last)}\s*$", line.split(" #")[0]):
                return f" ({path}, line {number})"
    files = ", ".join(map(str, config_files(words)))
    return f" (in {files})" if files else ""


def load_class(path: str) -> Any:
    """Import a class by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameter_class(owner: Any, name: str) -> Any:
    """The annotated type of a parameter of a class; the class itself if there is none."""
    return typing.get_type_hints(owner.__init__).get(name, owner)


def parameters(owner: Any) -> list[str]:
    """Names of the parameters of a class."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, p in inspect.signature(owner).parameters.items() if p.kind not in kinds]


def subclasses(base: type) -> set[str]:
    """Names of all public subclasses of a class that have been imported."""
    children: list[type] = base.__subclasses__()
    return {child.__name__ for child in children if not child.__name__.startswith("_")}.union(
        *(subclasses(child) for child in children)
    )


def public(module: ModuleType) -> Iterable[str]:
    """Names of the classes and modules of a module, and of its exports."""
    classes = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__]
    return [
        *classes,
        *getattr(module, "__all__", ()),
        *(inner.name for inner in pkgutil.iter_modules(getattr(module, "__path__", []))),
    ]

"""From a ``ConfigDict`` to frozen dataclasses, and to JSON and back.

A ``ConfigDict`` lives only in ``configs/`` and ``experiments/``; everything below takes the
frozen dataclasses that ``build`` makes from its sub-trees.
"""

import dataclasses
import io
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from llama2_jax.files import write_text

T = TypeVar("T")


class UserError(Exception):
    """Something that who starts a program can mend: it prints the message, and no traceback."""


class ConfigError(UserError, ValueError):
    """A mistake in a config: the message names the field, the rule and the fix."""


def build(cls: type[T], section: Any, *, name: str) -> T:
    """Make the frozen dataclass ``cls`` from a config sub-tree (a mapping).

    Raises:
      ConfigError: a key ``cls`` does not have, or a required one that is missing.
    """
    given = dict(section)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise ConfigError(
            f"config.{name} has unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(fields))}"
        )
    required = {
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(given))
    if missing:
        raise ConfigError(f"config.{name} lacks {', '.join(missing)}; set each of them in the config file")
    return cls(**{key: _plain(value) for key, value in given.items()})


def _plain(value: Any) -> Any:
    """ConfigDict and list leaves as plain dicts and tuples (hashable, JSON-able)."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError(message)`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ``ConfigError`` unless ``value`` is one of ``choices``, listing them."""
    known = list(choices)
    require(value in known, f"{name} is {value!r}; choose one of {', '.join(map(repr, known))}")


def ready_streams() -> None:
    """Let a program print anything, before it opens a file.

    What the terminal's encoding lacks is printed as an escape. Where an output was closed, what is printed is
    thrown away: the next file to be opened would otherwise take its number, and what libraries log with it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_arguments(arguments: Iterable[str]) -> None:
    """Check a command line before anything is written: ``gs://bucket/run`` would become the folder ``gs:``.

    Raises:
      ConfigError: an argument, or the value of a flag, is an address of an object store, or begins with the
        ``~`` that a shell leaves alone within a word.
    """
    for argument in arguments:
        require(
            re.search(r"""(^|[=,]|[(,=]\s*["'])~[^/\s]*(/|$)""", argument) is None,
            f"{argument}: a folder of that name is meant here, as the shell expands ~ at the beginning of a "
            "word only; write $HOME",
        )
        require(
            re.search(r"(^|[=,])(gs|gcs|s3|az|hdfs|abfss?)://\S*$", argument, re.IGNORECASE) is None,
            f"{argument}: only paths of a file system are read and written; mount the bucket (gcsfuse, "
            "mountpoint-s3) and give its path there, or use a shared file system",
        )


def named_paths(texts: Iterable[str], *, field: str) -> dict[str, str]:
    """``name=path`` texts as a mapping, in order; the names can be parts of file names.

    Raises:
      ConfigError: a text of another form, or a name that stands twice.
    """
    paths: dict[str, str] = {}
    for text in texts:
        name, _, path = text.partition("=")
        require(
            bool(name and path) and "/" not in name,
            f"{field} has {text!r}; each must be name=path, the name without /",
        )
        require(name not in paths, f"{field} names {name!r} twice; names must be unique")
        paths[name] = path
    return paths


def parse_arg(arg: str, **defaults: Any) -> types.SimpleNamespace:
    """Parse the text after ``:`` in ``--config=FILE:ARG``.

    A bare word sets ``variant`` (``7b``), ``key=value`` pairs set typed defaults:
    ``parse_arg("7b,tokens=1e9", variant="tiny", tokens=0.0)``.

    Raises:
      ConfigError: an unknown key or a value of the wrong type.
    """
    values = dict(defaults)
    for part in filter(None, (piece.strip() for piece in arg.split(","))):
        key, _, text = part.rpartition("=")
        key = key or "variant"
        require(key in values, f"config argument {part!r}: unknown key {key!r}; known: {', '.join(values)}")
        try:
            values[key] = _parse_bool(text) if isinstance(values[key], bool) else type(values[key])(text)
        except ValueError as error:
            raise ConfigError(f"config argument {part!r}: {error}") from error
    return types.SimpleNamespace(**values)


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is not true or false")
    return text.lower() == "true"


def to_plain(config: Any) -> Any:
    """A ConfigDict, dataclass, named tuple, mapping or sequence as JSON-able Python values."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if hasattr(config, "_asdict"):
        config = config._asdict()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; the file appears when it is complete."""
    write_text(path, json.dumps(to_plain(value), indent=2) + "\n")


def read_json(path: Path, *, default: Any = dataclasses.MISSING) -> Any:
    """The value in a JSON file; ``default``, if one is given, where there is no file.

    Raises:
      ConfigError: the file is damaged, as after a power cut.
    """
    if default is not dataclasses.MISSING and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # Unicode and JSON errors are ValueErrors
        raise ConfigError(
            f"{path} is not JSON ({error}); put a sound copy in its place, or delete it to have it made again"
        ) from error


def changes(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Leaves that differ between two plain configs, as ``path: old -> new`` lines."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(set(old) | set(new)):
            lines += changes(
                old.get(key, "(absent)"), new.get(key, "(absent)"), f"{prefix}.{key}".lstrip(".")
            )
        return lines
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]


def keep_config(config: Any, workdir: Path) -> None:
    """Store the resolved config, once everything was checked: a refused start leaves the old one."""
    write_json(workdir / "config.json", config)

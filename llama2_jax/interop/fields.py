"""The named values of a checkpoint's header, a JSON file or that of a GGUF file, each checked when read."""

import json
import math
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llama2_jax.interop.imported import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``.

    Raises:
      FormatError: not UTF-8, not JSON (with line and column), or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # Unicode and JSON errors are ValueErrors
        raise FormatError(f"{path} is not valid JSON: {error}; download or copy it again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, an object is needed; copy it again")
    return value


def require_keys(settings: dict[str, Any], keys: Iterable[str], *, where: Path) -> None:
    """Raise FormatError, naming all that are missing, unless ``settings`` has every key."""
    missing = [key for key in keys if key not in settings]
    if missing:
        raise FormatError(
            f"{where} lacks {', '.join(missing)}; it must describe the whole model, download or copy it again"
        )


def require_plain(settings: dict[str, Any], plain: dict[str, Any], *, where: Path) -> None:
    """Raise FormatError unless every key of ``plain`` is absent, or has that value, as in plain Llama."""
    for key, wanted in plain.items():
        if settings.get(key, wanted) != wanted:
            raise not_plain(where, f"{key} is {_shown(settings[key])}, only {_shown(wanted)} can be loaded")


def not_plain(where: Path, fact: str) -> FormatError:
    """The error for a model of another architecture, which no change of the file could mend."""
    return FormatError(f"{where}: {fact}; take a checkpoint of the plain Llama architecture")


def read_field(
    settings: dict[str, Any],
    key: str,
    default: Any = None,
    *,
    fits: Callable[[Any], bool],
    rule: str,
    where: Path,
) -> Any:
    """The value under ``key``; ``default``, unless None, where the key is absent.

    Raises:
      FormatError: the key is missing, or ``fits`` is false of its value; ``rule`` says what it must be.
    """
    if default is None:
        require_keys(settings, [key], where=where)
    value = settings.get(key, default)
    if not fits(value):
        raise FormatError(f"{where}: {key} is {_shown(value)}; it must be {rule}")
    return value


def read_count(settings: dict[str, Any], key: str, default: int | None = None, *, where: Path) -> int:
    """A positive whole number; see ``read_field``."""
    return read_field(
        settings, key, default, fits=_is_positive_int, rule="a positive whole number", where=where
    )


def read_number(settings: dict[str, Any], key: str, default: float | None = None, *, where: Path) -> float:
    """A finite number >= 0; see ``read_field``."""
    rule = "a finite number, not negative"
    return float(read_field(settings, key, default, fits=_is_finite, rule=rule, where=where))


def read_text(settings: dict[str, Any], key: str, default: str | None = None, *, where: Path) -> str:
    """A text; see ``read_field``."""
    return read_field(settings, key, default, fits=is_a(str), rule="text", where=where)


def read_flag(settings: dict[str, Any], key: str, default: bool, *, where: Path) -> bool:
    """True or false; see ``read_field``."""
    return read_field(settings, key, default, fits=is_a(bool), rule="true or false", where=where)


def read_token_id(
    settings: dict[str, Any], key: str, default: int | None = None, *, count: int, where: Path
) -> int:
    """The number of one of ``count`` tokens, or -1 for none; see ``read_field``."""
    return read_field(
        settings,
        key,
        default,
        fits=lambda value: type(value) is int and -1 <= value < count,
        rule=f"the number of a token, below {count}, or -1 for none",
        where=where,
    )


def read_list(
    settings: dict[str, Any],
    key: str,
    default: list[Any] | None = None,
    *,
    fits: Callable[[Any], bool],
    of: str,
    where: Path,
) -> list[Any]:
    """A list of values that fit, which ``of`` describes; see ``read_field``."""
    return read_field(
        settings,
        key,
        default,
        fits=lambda value: isinstance(value, list) and all(map(fits, value)),
        rule=f"a list of {of}",
        where=where,
    )


def read_object(settings: dict[str, Any], key: str, *, where: Path) -> dict[str, Any]:
    """A JSON object, empty where the key is absent or null; see ``read_field``."""
    fits = is_a(dict | None)
    return read_field(settings, key, {}, fits=fits, rule="an object or null", where=where) or {}


def is_a(kind: type | types.UnionType) -> Callable[[Any], bool]:
    """For ``fits``: whether a value is of this type."""
    return lambda value: isinstance(value, kind)


def _is_positive_int(value: Any) -> bool:
    return type(value) is int and value > 0  # bool is an int to isinstance


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _shown(value: Any) -> str:
    """The value as JSON spells it, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."

"""Settings of a run that goes on where it was stopped, of programs with flags instead of a config."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from llama2_jax.config import ConfigError, changes, read_json, write_json
from llama2_jax.data.shards import file_sha256
from llama2_jax.files import hold
from llama2_jax.sharding.processes import files_at_rest


def flag_values(names: Iterable[str]) -> dict[str, Any]:
    """What the flags of these names were set to."""
    return {name: flags.FLAGS[name].value for name in names}


def file_version(path: str | Path) -> str:
    """Name and hash of a file's content, cut: ``facts.jsonl 0123456789ab``."""
    return f"{Path(path).name} {file_sha256(Path(path))[:12]}"


def keep_settings(output: Path, settings: dict[str, Any], *, results: str) -> None:
    """Keep the folder for this process, and write ``config.json``; or refuse results of other settings.

    Args:
      results: glob pattern of the files in ``output`` that later runs build on.

    Raises:
      ConfigError: what differs.
      InUseError: another process works in the folder.
    """
    path = output / "config.json"
    with files_at_rest(output):
        lines = changes(read_json(path), settings) if path.exists() else []
        has_results = any(output.glob(results))
    if lines and has_results:
        raise ConfigError(
            f"{output} has results of other settings:\n  " + "\n  ".join(lines) + "\ngive another folder"
        )
    hold(output, another="folder")
    write_json(path, settings)

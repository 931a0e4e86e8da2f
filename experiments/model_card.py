"""The model card of a trained model (Llama 2, A.7, Table 52; REL-1).

python -m experiments.model_card --checkpoint=runs/demo/v5/sft --statements=card.json \
    --evaluations=runs/demo/evaluation --output=MODEL_CARD.md

The card says what the runs know: the architecture, the chain of stages from the first checkpoint to this
one (``config.init_from`` of each), their tokens, hours and carbon, and the reports of the --evaluations,
folders with a report.md. What only people know comes from the --statements, a JSON object of texts; its keys
are those of ``STATED``, beside "name", "license" and "language" (identifiers as on the hub of Hugging Face).
What is missing is "not stated" on the card and is named at the end. It begins with the metadata that the hub
reads: as README.md in a folder that ``convert`` wrote it is the card of the model there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.report import included, quote, table
from llama2_jax.config import ConfigError, build, read_json, require
from llama2_jax.files import write_text
from llama2_jax.interop.detect import checkpoint_kind
from llama2_jax.launch import launch
from llama2_jax.model.config import ModelConfig, parameter_count
from llama2_jax.pretrained import REWARD_MODEL
from llama2_jax.train.checkpoint import read_meta

STATED = {
    "developers": "Model developers",
    "variations": "Variations",
    "dates": "Model dates",
    "status": "Status",
    "comments": "Where to send comments",
    "intended_use": "Intended use",
    "out_of_scope": "Out-of-scope uses",
    "training_factors": "Training factors",
    "training_data": "Training data",
    "data_freshness": "Data freshness",
    "ethics": "Ethical considerations and limitations",
}
"""Fields of Table 52 that only people can fill in, by their keys."""
METADATA = ("license", "language")
KEYS = ("name", *METADATA, *STATED)
NOT_STATED = "not stated"


class Stage(NamedTuple):
    """A checkpoint on the way to the model."""

    path: Path
    title: str
    results: Mapping[str, Any]  # of a training stage: see ``training_report.py``


def main() -> None:
    """Read, write, say what is missing."""
    args = flags.FLAGS
    statements = read_statements(Path(args.statements)) if args.statements else {}
    reports = [Path(folder) / "report.md" for folder in args.evaluations]
    for report in reports:
        require(report.is_file(), f"{report} does not exist; --evaluations are folders with a report.md")
    lines = card(Path(args.checkpoint), statements, reports, Path(args.output).parent)
    write_text(args.output, "\n".join(lines) + "\n")
    missing = [key for key in KEYS if key not in statements]
    print(f"{args.output} is written" + (f"; not stated: {', '.join(missing)}" if missing else ""))


def read_statements(path: Path) -> dict[str, str]:
    """What people say.

    Raises:
      ConfigError: no JSON object of texts, or an unknown key.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--statements={path} cannot be read as JSON: {error}") from error
    texts = isinstance(found, dict) and all(isinstance(value, str) and value for value in found.values())
    require(texts, f"{path} must be a JSON object whose values are texts")
    unknown = [key for key in found if key not in KEYS]
    known = ", ".join(KEYS)
    require(not unknown, f"{path} has the unknown key(s) {', '.join(unknown)}; known are {known}")
    return found


def card(checkpoint: Path, statements: Mapping[str, str], reports: Sequence[Path], folder: Path) -> list[str]:
    """The lines of the card.

    Args:
      reports: whose contents stand under the evaluation results.
      folder: of the card; pictures of the reports are named from it.

    Raises:
      ConfigError: the checkpoint is not a workdir of ours, or a reward model; a report is empty.
    """
    kind = checkpoint_kind(checkpoint)
    require(kind == "native", f"{checkpoint} is a {kind} checkpoint; a card is made from a workdir of ours")
    _, meta = read_meta(checkpoint)
    require(
        meta.get("kind") != REWARD_MODEL,
        f"{checkpoint} is a reward model; a card is made of a model that writes text",
    )
    stages = lineage(checkpoint)
    return [
        *_metadata(statements),
        f"# {quote(statements.get('name', checkpoint.name))}",
        "",
        *table(("", ""), _fields(build(ModelConfig, meta["model"], name="model"), meta, stages, statements)),
        "",
        "## Training",
        "",
        "From the first checkpoint to this one:",
        "",
        *_stage_table(stages),
        "",
        "## Evaluation results",
        "",
        *(line for report in reports for line in _evaluation(report, folder)),
        *([] if reports else [NOT_STATED.capitalize() + "."]),
    ]


def _evaluation(report: Path, folder: Path) -> list[str]:
    lines = report.read_text(encoding="utf-8").splitlines()
    require(bool(lines), f"{report} is empty; make it again, or leave it out of --evaluations")
    return ["##" + lines[0], *included(report, folder), ""]


def lineage(checkpoint: Path) -> list[Stage]:
    """The checkpoint and those it was made from, the first one first, as far as they are here."""
    found: list[Stage] = []
    path: Path | None = checkpoint
    while path is not None:
        stage, path = _stage(path)
        found.insert(0, stage)
    return found


def _stage(path: Path) -> tuple[Stage, Path | None]:
    """A stage, and the checkpoint that it started from."""
    if not path.exists():
        return Stage(path, "not found here", {}), None
    if checkpoint_kind(path) != "native":
        return Stage(path, f"a {checkpoint_kind(path)} checkpoint", {}), None
    config = read_json(path / "config.json", default={})
    if "imported_from" in config:
        return Stage(path, f"imported from {config['imported_from']}", {}), None
    report, start = path / "report.md", config.get("init_from")
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    title = lines[0].lstrip("# ") if lines else "no report"
    results = read_json(path / "results.json", default={})
    return Stage(path, title, results), Path(start) if start else None


def _metadata(statements: Mapping[str, str]) -> list[str]:
    """The block that the hub reads; a JSON text is one of YAML."""
    given = [f"{key}: {json.dumps(statements[key])}" for key in METADATA if key in statements]
    return ["---", *given, "library_name: llama2_jax", "pipeline_tag: text-generation", "---", ""]


def _fields(
    config: ModelConfig, meta: Mapping[str, Any], stages: Sequence[Stage], statements: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Table 52: what the checkpoint says, then what people say."""
    shared = f", {config.num_kv_heads} key/value heads" if config.num_kv_heads < config.num_heads else ""
    known = {
        "Parameters": f"{parameter_count(config):,}",
        "Input and output": "text only",
        "Architecture": (
            f"auto-regressive transformer (Llama 2): {config.num_layers} layers of width "
            f"{config.model_width:,}, {config.num_heads} heads{shared}, context of {config.max_context:,} "
            f"tokens, vocabulary of {config.vocab_size:,}"
        ),
        "Chat format": meta["template"],
        "Carbon footprint": _carbon(stages),
        "License": statements.get("license", NOT_STATED),
    }
    stated = {title: statements.get(key, NOT_STATED) for key, title in STATED.items()}
    return [(title, quote(text)) for title, text in (known | stated).items()]


def _carbon(stages: Sequence[Stage]) -> str:
    timed = [stage.results for stage in stages if "device_hours" in stage.results]
    if not timed:
        return "not known: no stage that is here measured its hours"
    powered = [results for results in timed if "tonnes_co2eq" in results]
    hours, known = (sum(one["device_hours"] for one in several) for several in (timed, powered))
    text = f"{hours:,.2f} device hours in updates of next-token training"
    if powered:
        text += f", {sum(one['tonnes_co2eq'] for one in powered):,.3g} tCO2eq"
    if len(powered) < len(timed):
        text += f"; the power is known for {known:,.2f} of them"
    if len(timed) < len(stages):
        text += f"; the hours of {len(stages) - len(timed)} of the {len(stages)} stages are not known"
    return text


def _stage_table(stages: Sequence[Stage]) -> list[str]:
    def number(results: Mapping[str, Any], key: str, form: str) -> str:
        return format(results[key], form) if key in results else ""

    columns = {"updates": ",", "tokens_seen": ",", "device_hours": ",.2f", "tonnes_co2eq": ",.3g"}
    return table(
        ("stage", "checkpoint", "updates", "tokens", "device hours", "tCO2eq", "device"),
        [
            (
                quote(stage.title),
                quote(str(stage.path)),
                *(number(stage.results, key, form) for key, form in columns.items()),
                stage.results.get("device", ""),
            )
            for stage in stages
        ],
    )


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_string("checkpoint", None, "Workdir of the model.")
    flags.DEFINE_string("statements", None, "JSON object of what people say.")
    flags.DEFINE_list("evaluations", [], "Folders whose report.md stands on the card.")
    flags.DEFINE_string("output", None, "Markdown file to write.")
    flags.mark_flags_as_required(["checkpoint", "output"])
    launch(main)

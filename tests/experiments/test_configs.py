"""Every config file, every variant; the paper's numbers as goldens."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from llama2_jax.config import ConfigError, build
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.model.config import SIZES, ModelConfig, parameter_count
from llama2_jax.sharding.mesh import MeshConfig
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.run import TrainConfig
from tests.experiments.runs import REPOSITORY

NAMES = sorted({path.stem for path in (REPOSITORY / "configs").glob("*.py")} - {"common"})
STAGES = ("pretrain", "sft")
PAPER = ("7b", "13b", "34b", "70b")
VARIANTS = [(stage, variant) for stage in STAGES for variant in (*PAPER, "tiny")]


def get_config(name: str, arg: str = "") -> Any:
    return importlib.import_module(f"configs.{name}").get_config(arg)


def leaves(section: Any) -> int:
    return sum(leaves(value) if hasattr(value, "items") else 1 for value in section.values())


@pytest.mark.parametrize("name", NAMES)
def test_config_loads_is_locked_and_short(name: str) -> None:
    config = get_config(name)
    assert config.is_locked
    assert config.accept_changed_config is False
    if "sampling" in config:
        build(SamplingConfig, config.sampling, name="sampling")
    # the recipe joins the configs of its stages
    parts = config.values() if name == "llama2_chat" else [config]
    assert all(leaves(part) < 100 for part in parts if hasattr(part, "items"))
    with pytest.raises(AttributeError):
        config.a_key_that_is_not_there = 1


def fields_of(section: Any, prefix: str = "config") -> set[str]:
    found = {prefix}
    for name, value in section.items():
        dotted = f"{prefix}.{name}"
        found |= fields_of(value, dotted) if hasattr(value, "items") else {dotted}
    return found


def test_fields_that_the_docs_name_exist() -> None:
    texts = [
        page.read_text(encoding="utf-8") for page in (*REPOSITORY.glob("docs/*.md"), REPOSITORY / "README.md")
    ]
    named = {field for text in texts for field in re.findall(r"`(?:--)?(config\.[a-z_.]+)[=`]", text)}
    assert len(named) > 40
    assert named - set.union(*map(fields_of, map(get_config, NAMES))) == {"config.json"}  # a file


@pytest.mark.parametrize(("stage", "variant"), VARIANTS)
def test_sub_trees_build_their_dataclasses(stage: str, variant: str) -> None:
    config = get_config(stage, variant)
    assert config.is_locked
    build(OptimizerConfig, config.optimizer, name="optimizer")
    build(MeshConfig, config.mesh, name="mesh")
    if stage == "pretrain":
        build(ModelConfig, config.model, name="model")
        build(TrainConfig, config.train, name="train")
    else:
        build(TrainConfig, {**config.train, "num_steps": 1}, name="train")
        ModelConfig(**{**SIZES["nano"], **config.model})


@pytest.mark.parametrize("stage", STAGES)
def test_default_variant_is_7b_and_unknown_ones_are_listed(stage: str) -> None:
    assert get_config(stage).to_json() == get_config(stage, "7b").to_json()
    with pytest.raises(ConfigError, match=r"'8b'; choose one of '7b', '13b', '34b', '70b', 'tiny'"):
        get_config(stage, "8b")
    with pytest.raises(ConfigError, match="unknown key 'size'"):
        get_config(stage, "size=7b")


# Table 1 and section 2.2; billions of parameters of the released models.
TABLE_1 = {"7b": (3.0e-4, 6.74), "13b": (3.0e-4, 13.02), "34b": (1.5e-4, 33.7), "70b": (1.5e-4, 68.98)}


@pytest.mark.parametrize("size", PAPER)
def test_pretraining_numbers_of_the_paper(size: str) -> None:
    config = get_config("pretrain", size)
    learning_rate, billions = TABLE_1[size]
    assert config.optimizer.learning_rate == learning_rate
    assert parameter_count(ModelConfig(**config.model)) / 1e9 == pytest.approx(billions, abs=0.06)
    assert config.data.sequence_length == config.model.max_context == 4096
    assert config.data.batch_size * config.data.sequence_length == 4_194_304  # "4M tokens"
    assert config.train.num_steps * 4_194_304 == pytest.approx(2.0e12, rel=1e-5)
    assert config.model.vocab_size == 32_000
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.warmup_steps == 2000
    assert config.optimizer.final_fraction == 0.1
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.95)
    assert config.optimizer.epsilon == 1e-5
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.grad_clip_norm == 1.0


@pytest.mark.parametrize("size", PAPER)
def test_fine_tuning_numbers_of_the_paper(size: str) -> None:
    """Section 3.1, "Fine-Tuning Details"."""
    config = get_config("sft", size)
    assert config.optimizer.learning_rate == 2e-5
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.weight_decay == 0.1
    assert config.data.batch_size == 64
    assert config.data.sequence_length == 4096
    assert config.data.epochs == 2.0
    assert config.data.train_on == "all"
    assert config.template == ""  # the checkpoint's own


def test_grouped_query_attention_is_for_34b_and_70b_only() -> None:
    groups = {}
    for size in PAPER:
        model = get_config("pretrain", size).model
        groups[size] = model.num_heads // model.num_kv_heads
    assert groups == {"7b": 1, "13b": 1, "34b": 8, "70b": 8}


@pytest.mark.parametrize("name", NAMES)
def test_config_file_explains_itself(name: str) -> None:
    text = (REPOSITORY / "configs" / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert f"--config=configs/{name}.py" in text


@pytest.mark.parametrize("stage", STAGES)
def test_files_a_tiny_variant_names_are_there(stage: str) -> None:
    data = get_config(stage, "tiny").data
    path = data.dialogues if stage == "sft" else data.heldout
    assert Path(REPOSITORY / path).is_file()

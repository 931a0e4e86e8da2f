"""``config.json`` of Hugging Face's Llama, read and written (HFW-4).

Every spelling of the rotary base is read: ``rope_theta`` (transformers 4), in ``rope_parameters``
(transformers 5), or in ``rope_scaling``; the first two are written.
"""

import functools
from pathlib import Path
from typing import Any

from llama2_jax.config import ConfigError
from llama2_jax.interop.fields import (
    read_count,
    read_flag,
    read_number,
    read_object,
    require_keys,
    require_plain,
)
from llama2_jax.interop.imported import FormatError
from llama2_jax.model.config import ModelConfig

CLASSIFIER = "LlamaForSequenceClassification"
"""The architecture of reward models; language models are ``LlamaForCausalLM``."""

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
_NULLABLE = ("num_key_value_heads", "head_dim")  # null says the same as no field
_PLAIN = {
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
}
_PLAIN_ROPE = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}


def read_model_config(settings: dict[str, Any], *, where: Path) -> ModelConfig:
    """The model shape that ``settings`` (a parsed config.json) describe.

    Raises:
      FormatError: another architecture, quantised weights, biases, scaled rotary
        frequencies, another activation, or fields that are missing, of the wrong type or at
        odds with each other.
    """
    settings = {key: value for key, value in settings.items() if value is not None or key not in _NULLABLE}
    _refuse_variants(settings, where)
    require_keys(settings, _REQUIRED, where=where)
    count = functools.partial(read_count, settings, where=where)
    number = functools.partial(read_number, settings, where=where)
    heads = count("num_attention_heads")
    try:
        return ModelConfig(
            vocab_size=count("vocab_size"),
            model_width=count("hidden_size"),
            num_layers=count("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=count("num_key_value_heads", heads),
            feed_forward_width=count("intermediate_size"),
            max_context=count("max_position_embeddings", 2048),
            head_dim=count("head_dim") if "head_dim" in settings else 0,
            norm_epsilon=number("rms_norm_eps", 1e-6),
            rope_base=_rope_base(settings, where),
            tie_embeddings=read_flag(settings, "tie_word_embeddings", False, where=where),
            init_stddev=number("initializer_range", 0.02),
        )
    except ConfigError as error:
        raise FormatError(f"{where}: {error}") from error


def _refuse_variants(settings: dict[str, Any], where: Path) -> None:
    require_keys(settings, ["model_type"], where=where)
    require_plain(settings, _PLAIN, where=where)
    quantisation = read_object(settings, "quantization_config", where=where)
    if quantisation:
        method = quantisation.get("quant_method", "unknown")
        raise FormatError(f"{where}: weights are quantised ({method}); take the unquantised checkpoint")


def _rope_base(settings: dict[str, Any], where: Path) -> float:
    """The rotary base; refuses every rule that changes the frequencies."""
    parameters, scaling = (
        read_object(settings, key, where=where) for key in ("rope_parameters", "rope_scaling")
    )
    for rule in (parameters, scaling):
        require_plain(rule, _PLAIN_ROPE, where=where)
    rope = scaling or parameters  # as ``transformers`` 5 reads them, where the one stands for the other
    return read_number(rope if "rope_theta" in rope else settings, "rope_theta", 10_000.0, where=where)


def is_classifier(settings: dict[str, Any]) -> bool:
    """Whether ``settings`` are of a model that gives scores instead of text."""
    return CLASSIFIER in (settings.get("architectures") or ())


def model_settings(
    config: ModelConfig, *, dtype: str, bos_id: int | None, eos_id: int | None
) -> dict[str, Any]:
    """The config.json that describes ``config`` to transformers 4 and 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_stddev,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "torch_dtype": dtype,
    }

"""``config.json`` of Hugging Face's Llama, read and written (HFW-4).

Both spellings of the rotary base are read: ``rope_theta`` (transformers 4) and
``rope_parameters`` (transformers 5); both are written.
"""

from pathlib import Path
from typing import Any

from llama2_jax.interop.imported import FormatError
from llama2_jax.model.config import ModelConfig

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


def read_model_config(settings: dict[str, Any], *, where: Path) -> ModelConfig:
    """The model shape that ``settings`` (a parsed config.json) describe.

    Raises:
      FormatError: another architecture, quantised weights, biases, scaled rotary
        frequencies, another activation, or missing fields.
    """
    _refuse_variants(settings, where)
    missing = [key for key in _REQUIRED if key not in settings]
    if missing:
        raise FormatError(f"{where} lacks {', '.join(missing)}; it must describe the whole model")
    heads = settings["num_attention_heads"]
    return ModelConfig(
        vocab_size=settings["vocab_size"],
        model_width=settings["hidden_size"],
        num_layers=settings["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=settings.get("num_key_value_heads") or heads,
        feed_forward_width=settings["intermediate_size"],
        max_context=settings.get("max_position_embeddings", 2048),
        head_dim=settings.get("head_dim") or 0,
        norm_epsilon=settings.get("rms_norm_eps", 1e-6),
        rope_base=_rope_base(settings, where),
        tie_embeddings=settings.get("tie_word_embeddings", False),
        init_stddev=settings.get("initializer_range", 0.02),
    )


def _refuse_variants(settings: dict[str, Any], where: Path) -> None:
    kind = settings.get("model_type")
    if kind != "llama":
        raise FormatError(f"{where}: model_type {kind!r}; only 'llama' is supported")
    if settings.get("quantization_config"):
        method = settings["quantization_config"].get("quant_method", "unknown")
        raise FormatError(f"{where}: weights are quantised ({method}); take the unquantised checkpoint")
    for key, plain in {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}.items():
        if settings.get(key, plain) != plain:
            raise FormatError(f"{where}: {key} is {settings[key]!r}; only {plain!r} is supported")


def _rope_base(settings: dict[str, Any], where: Path) -> float:
    """The rotary base; refuses every rule that changes the frequencies."""
    rope = settings.get("rope_parameters") or {}
    for rule in (rope, settings.get("rope_scaling") or {}):
        kind = rule.get("rope_type", rule.get("type", "default"))
        if kind != "default":
            raise FormatError(f"{where}: rope type {kind!r}; only 'default' (no scaling) is supported")
    fraction = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", 1.0))
    if fraction != 1.0:
        raise FormatError(f"{where}: partial_rotary_factor is {fraction}; only 1.0 is supported")
    return float(rope.get("rope_theta", settings.get("rope_theta", 10_000.0)))


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

"""The attention variants that the paper compares (A.2.1, ABL-2): many, one, or a few key/value heads."""

from llama2_jax.config import require
from llama2_jax.model.config import feed_forward_width

FEED_FORWARD_FACTORS = {"MHA": None, "MQA": 1.33, "GQA": 1.3}
"""By which the feed-forward width grows for the weights that attention loses."""


def attention_variants(
    *, model_width: int, num_heads: int, grouped_kv_heads: int = 8, multiple_of: int = 256
) -> dict[str, dict[str, int]]:
    """Fields of ``ModelConfig`` that differ between MHA, MQA and GQA, by the name of the variant.

    The factors are the paper's. They give back more than attention lost: with F = 8D/3 and 8 of 64 heads, GQA
    saves 1.75 of a layer's 12 D^2 parameters and gains 2.4, MQA saves 1.97 and gains 2.64.

    Args:
      grouped_kv_heads: of GQA.
      multiple_of: to which feed-forward widths are rounded up.

    Raises:
      ConfigError: heads that do not divide into so many groups, or groups of one or of all heads.
    """
    require(
        1 < grouped_kv_heads < num_heads and num_heads % grouped_kv_heads == 0,
        f"GQA with {grouped_kv_heads} key/value heads of {num_heads} heads is not between MHA and MQA; "
        f"give a divisor of {num_heads} between 1 and {num_heads}",
    )
    kv_heads = {"MHA": num_heads, "MQA": 1, "GQA": grouped_kv_heads}
    return {
        name: {
            "num_kv_heads": kv_heads[name],
            "feed_forward_width": feed_forward_width(model_width, multiple_of=multiple_of, multiplier=factor),
        }
        for name, factor in FEED_FORWARD_FACTORS.items()
    }

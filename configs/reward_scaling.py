"""Accuracy of reward models by size and amount of data (Llama 2, section 3.2.2, Figure 6; RM-14).

python -m experiments.reward_scaling --config=configs/reward_scaling.py:paper --workdir=... \
    --config.models="('7B=PATH','13B=PATH','70B=PATH')" --config.data.preferences=preferences.jsonl
python -m experiments.reward_scaling --config=configs/reward_scaling.py:tiny --workdir=runs/reward_scaling

Models are chat models, small ones first. Amounts are the comparisons up to and with each batch, in the order
that they were collected in (``batch`` of the rows), or random shares of all where ``data.shares`` is set.
Variants: paper, and tiny: two smaller models beside that of ``make demo``, which has to be there, and 14
batches that the simulated people compare. With "tiny,seed=1" all is drawn from another seed.
"""

from ml_collections import ConfigDict

from configs import llama2_chat, reward_model
from configs.common import new_config, set_seeds
from llama2_jax.config import parse_arg, require_choice

DEMO = "runs/demo"


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    parsed = parse_arg(arg, variant="paper", seed=0)
    require_choice("config variant", parsed.variant, ("paper", "tiny"))
    config = new_config()
    config.models = ()  # name=path
    config.learning_rates = ("70B=5e-6",)  # of models that do not take reward_model's (RM-10)

    config.data = ConfigDict()  # files or patterns, separated by commas
    config.data.preferences = ""
    config.data.heldout = ""  # empty = heldout_fraction of the prompts
    config.data.heldout_fraction = 0.01  # PREF-6: 1000 of each batch
    config.data.batches = ()  # amounts: up to each of these; () = every batch there is, 14 in the paper
    config.data.shares = ()  # amounts of data without batches, such as (0.25, 0.5, 1.0)
    config.data.seed = 0
    config.data.on_bad_line = "error"

    config.reward_model = reward_model.get_config("helpfulness,size=7b")  # the same for all
    config.shapes = ConfigDict()  # of models to be made as well: name -> fields of pretrain.model
    config.unlock()
    if parsed.variant == "tiny":
        _make_tiny(config)
    set_seeds(config, parsed.seed)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    recipe = llama2_chat.get_config("tiny")
    config.models = (f"1300K={DEMO}/sft",)
    config.learning_rates = ()
    config.data.heldout_fraction = 0.25  # enough pairs of every rating
    config.data.batches = (1, 2, 4, 7, 10, 14)
    config.reward_model = recipe.helpfulness_rm

    # pretrained and fine-tuned as the model of the demo is
    config.shapes["150K"] = _shape(
        model_width=32, num_layers=2, num_heads=2, num_kv_heads=1, init_stddev=0.18
    )
    config.shapes["400K"] = _shape(
        model_width=64, num_layers=3, num_heads=4, num_kv_heads=2, init_stddev=0.125
    )
    config.pretrain, config.sft, config.annotate = recipe.pretrain, recipe.sft, recipe.annotate
    config.pretrain.data.update(tokenizer=f"{DEMO}/pretrain/tokenizer", tokenizer_dialogues="")
    config.annotate.new = ConfigDict({"name": "SFT", "path": f"{DEMO}/sft"})
    config.annotate.collection.update(num_batches=14, prompts_in_first=0, prompts_per_batch=210)
    config.annotate.heldout.fraction = config.data.heldout_fraction


def _shape(*, model_width: int, **changes: float) -> ConfigDict:
    return ConfigDict({"model_width": model_width, "feed_forward_width": 11 * model_width // 4, **changes})

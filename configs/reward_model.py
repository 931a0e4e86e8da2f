"""Reward models (Llama 2, section 3.2.2; RM-1..10).

python -m experiments.reward_model --config=configs/reward_model.py:helpfulness,size=7b --workdir=... \
    --config.init_from=CHECKPOINT --config.data.preferences=preferences.jsonl

CHECKPOINT is the chat model of the round, in any format (D31). Preferences: JSONL, one comparison per
row, see ``llama2_jax/data/preferences.py``. Variants: helpfulness, safety and guard (a third model on
other data, to notice when the first two are gamed, RM-18). Sizes: 7b, 13b, 34b, 70b (the paper's
numbers) and tiny.
"""

from ml_collections import ConfigDict

from configs.common import mesh, new_config, optimizer
from llama2_jax.config import parse_arg, require_choice
from llama2_jax.model.config import PAPER_SIZES
from llama2_jax.rlhf.reward_model import KINDS

SIZES = (*PAPER_SIZES, "tiny")


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant and size."""
    parsed = parse_arg(arg, variant="helpfulness", size="7b")
    kind, size = parsed.variant, parsed.size
    require_choice("config variant", kind, KINDS)
    require_choice("config size", size, SIZES)
    config = new_config()
    config.kind = kind
    config.init_from = ""
    config.template = ""  # of chats; "" = the checkpoint's own
    config.head = "normal"  # D32: N(0, 1/(D+1)), or "zero"

    config.model = ConfigDict()  # the rest comes from the checkpoint
    config.model.compute_dtype = "bfloat16"  # D7
    config.model.remat_policy = "full"
    config.model.attention_impl = "auto"  # by platform; names in llama2_jax/kernels/implementations.py

    config.data = ConfigDict()  # files or patterns, separated by commas
    config.data.preferences = ""  # our own, of both tracks
    config.data.public = ""  # public sets
    config.data.main_fraction = 0.9 if kind == "safety" else 0.5  # of the kind's own track (RM-7, RM-8)
    config.data.heldout = ""  # empty = heldout_fraction of the prompts
    config.data.heldout_fraction = 0.05
    config.data.answers = ""  # that people rated (data/rated_answers.py), for Figure 29
    config.data.unrated_sources = ()  # D34: sources that nobody graded, which get margin 0
    config.data.sequence_length = 4096  # longest dialogue with its answer
    config.data.batch_size = 512  # pairs (RM-10), packed into rows
    config.data.epochs = 1.0  # RM-10: more over-fits
    config.data.seed = 0
    config.data.on_bad_line = "error"

    config.loss = ConfigDict()
    config.loss.margin = "large" if kind == "helpfulness" else "none"  # D28
    config.loss.safety_weight = 1.0 if kind == "safety" else 0.0  # RM-6, D27

    # RM-10: at least five updates of warm-up
    config.optimizer = optimizer(5e-6 if size == "70b" else 1e-5, warmup_steps=5, warmup_fraction=0.03)

    config.mesh = mesh()

    config.train = ConfigDict()  # the number of updates follows from data.epochs
    config.train.seed = 0
    config.train.accumulation_steps = 1
    config.train.log_every_steps = 10
    config.train.eval_every_steps = 0
    config.train.checkpoint_every_steps = 200
    config.train.keep_last = 2
    config.train.keep_every_steps = 0
    config.train.profile_steps = ""
    config.train.peak_flops = 0.0

    config.eval = ConfigDict()
    config.eval.batch_size = 64  # responses scored together
    config.eval.num_examples = 5  # disagreements shown in the report
    if size == "tiny":
        _make_tiny(config)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.init_from = "runs/tiny_sft"
    config.model.compute_dtype = "float32"
    config.model.remat_policy = "none"
    config.data.sequence_length = 256
    config.data.batch_size = 16
    config.data.heldout_fraction = 0.2
    config.optimizer.learning_rate = 1e-3
    config.train.checkpoint_every_steps = 50
    config.eval.batch_size = 32

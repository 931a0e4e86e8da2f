"""From raw text to a chat model in one run (Llama 2, Figure 4).

python -m experiments.llama2_chat --config=configs/llama2_chat.py:demo --workdir=runs/demo

Variants: demo (about eight minutes on 2 cores; real text that ``make demo`` fetches) and tiny (about
a minute, on this repository's own documentation).
"""

from ml_collections import ConfigDict

from configs import pretrain, sft
from llama2_jax.config import parse_arg, require_choice


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant: a config per stage. ``sft.init_from`` is set by the programme."""
    variant = parse_arg(arg, variant="demo").variant
    require_choice("config variant", variant, ("demo", "tiny"))
    config = ConfigDict({"pretrain": pretrain.get_config("tiny"), "sft": sft.get_config("tiny")}).unlock()
    config.train = ConfigDict({"accept_changed_config": False})
    if variant == "demo":
        _demo_pretrain(config.pretrain)
        _demo_sft(config.sft)
    return config.lock()


def _demo_pretrain(config: ConfigDict) -> None:
    # 1.3 M parameters: what 2 cores can train in four minutes on 2 M tokens
    config.model.update(model_width=128, num_layers=4, num_heads=4, num_kv_heads=2, feed_forward_width=352)
    config.model.update(vocab_size=2048, max_context=256)
    config.data.sources = ConfigDict(
        {
            # the Bible is a third of the text and gets half of the tokens: up-sampled (DATA-2)
            "kjv": {"path": "runs/demo/data/kjv/documents_train.jsonl", "weight": 1.0},
            "chitchat": {"path": "runs/demo/data/chitchat/documents_train.jsonl", "weight": 1.0},
        }
    )
    config.data.heldout = "runs/demo/data/*/documents_heldout.jsonl"
    config.data.sequence_length = 256
    config.data.batch_size = 16  # 4,096 tokens per update
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 50
    config.train.num_steps = 500
    config.train.log_every_steps = 50
    config.train.eval_every_steps = 125
    config.train.checkpoint_every_steps = 125
    config.eval.batch_size = 32
    config.eval.sample_prompts = ("And God said", "Hello, how are you?\n", "The king")
    config.eval.sample_tokens = 60


def _demo_sft(config: ConfigDict) -> None:
    config.data.dialogues = "runs/demo/data/chitchat/dialogues_train.jsonl"
    config.data.heldout = "runs/demo/data/chitchat/dialogues_heldout.jsonl"
    config.data.sequence_length = 256
    config.data.batch_size = 16
    config.data.epochs = 0.2
    config.optimizer.learning_rate = 2e-3
    config.train.log_every_steps = 50
    config.train.eval_every_steps = 80
    config.train.checkpoint_every_steps = 80
    config.eval.batch_size = 32
    config.eval.sample_prompts = (
        "Hi! How are you?",
        "What do you like to do at the weekend?",
        "Where are you from?",
    )
    config.eval.sample_tokens = 40

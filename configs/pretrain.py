"""Pretraining (Llama 2, section 2.2, Table 1; OPT-1..4, FAM-1, FAM-2).

python -m experiments.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny
python -m experiments.pretrain --config=configs/pretrain.py:7b --workdir=... \
    --config.data.tokenizer=tokenizer.model --config.data.sources.main.path=CORPUS

Variants: 7b, 13b, 34b, 70b (Table 1) and tiny (about a minute on 2 cores, on this repository's
own documentation). CORPUS is a folder made by ``python -m tools.tokenize_corpus``, or a pattern of several.
More sources: docs/pretraining.md.
"""

from ml_collections import ConfigDict

from configs.common import mesh, new_config, optimizer
from llama2_jax.config import parse_arg, require_choice
from llama2_jax.model.config import PAPER_SIZES, SIZES

PEAK_LEARNING_RATE = {"7b": 3e-4, "13b": 3e-4, "34b": 1.5e-4, "70b": 1.5e-4}  # Table 1


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    variant = parse_arg(arg, variant="7b").variant
    require_choice("config variant", variant, (*PAPER_SIZES, "tiny"))
    config = new_config()
    config.model = ConfigDict(SIZES["nano" if variant == "tiny" else variant])
    config.model.compute_dtype = "bfloat16"  # D7
    config.model.remat_policy = "full"
    config.model.attention_impl = "auto"  # by platform; names in llama2_jax/kernels/implementations.py

    config.data = ConfigDict()
    config.data.tokenizer = ""  # a tokenizer file; empty: train one on the sources
    config.data.tokenizer_dialogues = (
        ""  # and on these in the chat format, so that it has pieces for the tags
    )
    config.data.sources = ConfigDict({"main": {"path": "", "weight": 1.0}})  # share of tokens (DATA-7)
    config.data.heldout = ""  # evaluated whole; empty: none
    config.data.sequence_length = 4096
    config.data.batch_size = 1024  # rows per update: 4,194,304 tokens (D2)
    config.data.document_mask = False  # D8: full causal attention over packed documents
    config.data.seed = 0
    config.data.on_bad_line = "error"  # or "skip": count and report

    config.optimizer = optimizer(PEAK_LEARNING_RATE.get(variant, 3e-4), warmup_steps=2000)

    config.mesh = mesh()

    config.train = ConfigDict()
    config.train.num_steps = 476_837  # 2.0e12 tokens (FAM-2)
    config.train.seed = 0
    config.train.accumulation_steps = 1
    config.train.loss_chunk = 512  # positions of a row whose logits exist at once
    config.train.log_every_steps = 10
    config.train.eval_every_steps = 1000
    config.train.checkpoint_every_steps = 1000
    config.train.keep_last = 2
    config.train.keep_every_steps = 10_000
    config.train.profile_steps = ""  # "10:13" traces three updates
    config.train.peak_flops = 0.0

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.sample_prompts = ()  # texts continued at every evaluation, into samples.jsonl
    config.eval.sample_tokens = 64
    if variant == "tiny":
        _make_tiny(config)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.model.compute_dtype = "float32"
    config.model.remat_policy = "none"
    config.data.sources.main.path = "docs/*.md"
    config.data.heldout = "README.md"
    config.data.sequence_length = 128
    config.data.batch_size = 8
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 10
    config.train.num_steps = 100
    config.train.loss_chunk = 0
    config.train.eval_every_steps = 50
    config.train.checkpoint_every_steps = 50
    config.train.keep_every_steps = 0
    config.eval.batch_size = 8
    config.eval.sample_prompts = ("The model",)
    config.eval.sample_tokens = 32

"""Supervised fine-tuning (Llama 2, section 3.1; SFT-4, SFT-5, D21..D25).

python -m experiments.sft --config=configs/sft.py:tiny --workdir=runs/tiny_sft
python -m experiments.sft --config=configs/sft.py:7b --workdir=... \
    --config.init_from=CHECKPOINT --config.data.dialogues=dialogues.jsonl

CHECKPOINT is a workdir, a Hugging Face folder, a Meta folder or a GGUF file; the model's shape and
tokenizer come from it. Dialogues: JSONL, ``{"messages": [{"role": ..., "content": ...}]}``; a row
may add ``"train_on"``, "all" or "last", which then holds for it instead of the config's.
Variants: 7b, 13b, 34b, 70b (the same numbers, as in the paper) and tiny, which first needs
``python -m experiments.pretrain --config=configs/pretrain.py:tiny --workdir=runs/tiny``.
"""

from ml_collections import ConfigDict

from configs.common import mesh, new_config, optimizer
from llama2_jax.config import parse_arg, require_choice
from llama2_jax.model.config import PAPER_SIZES


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    variant = parse_arg(arg, variant="7b").variant
    require_choice("config variant", variant, (*PAPER_SIZES, "tiny"))
    config = new_config()
    config.init_from = ""
    config.template = ""  # of chats; "" = the checkpoint's own

    config.model = ConfigDict()  # the rest comes from the checkpoint
    config.model.compute_dtype = "bfloat16"  # D7
    config.model.remat_policy = "full"
    config.model.attention_impl = "auto"  # by platform; names in llama2_jax/kernels/implementations.py

    config.data = ConfigDict()
    config.data.dialogues = ""  # files or patterns, separated by commas
    config.data.heldout = ""
    config.data.sequence_length = 4096
    config.data.batch_size = 64  # packed sequences (D22)
    config.data.document_mask = False  # D24
    config.data.train_on = "all"  # D25: every assistant turn; "last" for Ghost Attention
    config.data.epochs = 2.0
    config.data.seed = 0
    config.data.on_bad_line = "error"

    config.optimizer = optimizer(2e-5, warmup_fraction=0.03)  # D23

    config.mesh = mesh()

    config.train = ConfigDict()
    config.train.num_steps = 0  # 0: as many updates as data.epochs asks for; else so many (RS-8)
    config.train.seed = 0
    config.train.accumulation_steps = 1
    config.train.loss_chunk = 512
    config.train.log_every_steps = 10
    config.train.eval_every_steps = 200
    config.train.checkpoint_every_steps = 200
    config.train.keep_last = 2
    config.train.keep_every_steps = 0
    config.train.profile_steps = ""
    config.train.peak_flops = 0.0

    config.eval = ConfigDict()
    config.eval.batch_size = 64
    config.eval.sample_prompts = ()  # user messages answered at every evaluation
    config.eval.sample_tokens = 64
    if variant == "tiny":
        _make_tiny(config)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.init_from = "runs/tiny"
    config.model.compute_dtype = "float32"
    config.model.remat_policy = "none"
    config.data.dialogues = "tests/dialogues.jsonl"
    config.data.heldout = "tests/dialogues.jsonl"
    config.data.sequence_length = 128
    config.data.batch_size = 4
    config.data.epochs = 10.0
    config.optimizer.learning_rate = 1e-3
    config.train.loss_chunk = 0
    config.train.eval_every_steps = 0
    config.train.checkpoint_every_steps = 20
    config.eval.batch_size = 4
    config.eval.sample_prompts = ("What is a token?",)
    config.eval.sample_tokens = 24

"""Architecture ablations: attention and context length (Llama 2, A.2.1, Tables 16 to 18; ABL-1 to ABL-3).

python -m experiments.ablations --config=configs/ablations.py:attention,size=tiny --workdir=runs/attention
python -m experiments.ablations --config=configs/ablations.py:context,size=tiny --workdir=runs/context
python -m experiments.ablations --config=configs/ablations.py:attention,size=34b --workdir=... \
    --config.pretrain.data.tokenizer=tokenizer.model --config.pretrain.data.sources.main.path=CORPUS \
    --config.pretrain.data.heldout=HELDOUT_CORPUS

``config.pretrain`` is what all variants share, ``config.variants`` what each has of its own; all are compared
with ``config.baseline``. Other ablations are other variants: any field of ``configs/pretrain.py`` may vary as
long as all see equally many tokens.

Sizes: 7b, 13b, 34b, 70b, on the 150B tokens of the paper, and tiny, on the text of ``make demo`` (or of
``python -m tools.fetch_assets kjv chitchat && python -m tools.prepare_demo_data --output=runs/demo/data``).
The paper varies attention in a 30B model and does not say in which the context; of neither it gives the
shape, the batch or the schedule. With "tiny,seed=1" all is drawn from another seed.

``config.tasks`` are tasks of lm_eval with their shots, those of the paper's tables that it has; its scrolls_*
need the package transformers, before version 5, as well. HumanEval executes what the model writes and has a
program of its own, ``experiments/evaluate_code.py``.
"""

from ml_collections import ConfigDict

from configs import pretrain
from configs.common import new_config, set_seeds
from llama2_jax.config import parse_arg, require_choice
from llama2_jax.model.config import PAPER_SIZES
from llama2_jax.model.variants import attention_variants

KINDS = {"attention": "34b", "context": "7b"}  # with the size that is taken if none is named
TOKENS = 150e9
Variants = dict[str, dict[str, dict[str, int]]]
TASKS = {
    "attention": (
        "boolq=0", "piqa=0", "social_iqa=0", "hellaswag=0", "arc_easy=0", "arc_challenge=0", "nq_open=0",
        "triviaqa=0", "mmlu=5", "gsm8k=8",
    ),
    "context": (
        "scrolls_narrativeqa=0", "scrolls_qasper=0", "scrolls_quality=0", "scrolls_qmsum=0",
        "scrolls_contractnli=0", "llama2_squad=0", "hellaswag=0", "nq_open=64", "triviaqa=64", "gsm8k=8",
    ),
}  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The config of one ablation."""
    parsed = parse_arg(arg, variant="attention", size="", seed=0)
    require_choice("config variant", parsed.variant, KINDS)
    size = parsed.size or KINDS[parsed.variant]
    require_choice("size", size, (*PAPER_SIZES, "tiny"))
    is_tiny = size == "tiny"
    config = new_config()
    config.kind = parsed.variant
    config.pretrain = pretrain.get_config(size)
    config.tasks = () if is_tiny else TASKS[parsed.variant]
    config.batch_size = 64  # windows of held-out text, and requests of tasks, computed together
    config.unlock()
    shared = config.pretrain
    shared.train.eval_every_steps = 0  # before and after
    if is_tiny:
        _make_tiny(shared)
    else:
        shared.train.num_steps = round(TOKENS / (shared.data.sequence_length * shared.data.batch_size))
    set_seeds(config, parsed.seed)
    variants = _attention(shared, is_tiny) if parsed.variant == "attention" else _context(shared)
    if is_tiny:
        variants |= _again(shared, variants)
    config.variants = ConfigDict(variants)
    config.baseline = next(iter(variants))
    return config.lock()


def _attention(shared: ConfigDict, is_tiny: bool) -> Variants:
    """MHA, MQA and GQA."""
    fine = {"grouped_kv_heads": 2, "multiple_of": 8} if is_tiny else {}
    fields = attention_variants(
        model_width=shared.model.model_width, num_heads=shared.model.num_heads, **fine
    )
    return {name: {"model": changes} for name, changes in fields.items()}


def _context(shared: ConfigDict) -> Variants:
    """Half of the context in twice as many rows, and the whole."""
    whole, rows = shared.data.sequence_length, shared.data.batch_size
    return {
        f"context_{length}": {
            "model": {"max_context": length},
            "data": {"sequence_length": length, "batch_size": rows * whole // length},
        }
        for length in (whole // 2, whole)
    }


def _again(shared: ConfigDict, variants: Variants) -> Variants:
    """The baseline from other seeds: what these alone do, other differences must exceed."""
    name, baseline = next(iter(variants.items()))
    seed = shared.train.seed + 1
    return {
        f"{name}_again": {
            **baseline,
            "data": {**baseline.get("data", {}), "seed": seed},
            "train": {"seed": seed},
        }
    }


def _make_tiny(config: ConfigDict) -> None:
    # about a million parameters, as the base model of the demo
    config.model.update(model_width=128, num_layers=4, num_heads=8, num_kv_heads=8, feed_forward_width=344)
    config.model.update(vocab_size=2048, max_context=256, init_stddev=0.08)
    config.data.sources.main.path = "runs/demo/data/kjv/documents_train.jsonl"
    config.data.heldout = "runs/demo/data/kjv/documents_heldout.jsonl"
    config.data.update(sequence_length=256, batch_size=4)
    config.mesh.preset = "single"  # so few rows do not divide over devices
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 50
    config.train.update(num_steps=600, checkpoint_every_steps=300)
    config.eval.sample_prompts = ()

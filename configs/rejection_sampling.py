"""Rejection sampling (Llama 2, section 3.2.3; RS-1..9, D40..D42).

python -m experiments.rejection_sampling --config=configs/rejection_sampling.py:7b --workdir=... \
    --config.init_from=CHECKPOINT --config.helpfulness_rm=WORKDIR --config.safety_rm=WORKDIR \
    --config.prompts=prompts.jsonl --config.round=2 --config.archives="('round1/archive.jsonl',)"

The workdir gets ``dialogues.jsonl``, the best answer to every prompt, which ``experiments.sft`` trains
on: from the base model (RS-8, the default of the recipe) or from the previous version. A smaller model
learns from a bigger one's picks (RS-4) in the same way: ``--config.init_from`` of sft names the small
model, the dialogues are the big one's. Texts are what is passed on, so it may have another tokenizer.

Variants: 7b, 13b, 34b, 70b (the paper samples from 70b only) and tiny, whose files the recipe makes.
"""

from ml_collections import ConfigDict

from configs.common import new_config, sampling_mesh
from llama2_jax.config import parse_arg, require_choice
from llama2_jax.model.config import PAPER_SIZES


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    variant = parse_arg(arg, variant="7b").variant
    require_choice("config variant", variant, (*PAPER_SIZES, "tiny"))
    config = new_config()
    config.init_from = ""  # the newest model
    config.helpfulness_rm = ""  # the newest reward models
    config.safety_rm = ""  # "": the helpfulness score alone, where no prompt is tagged
    config.prompts = ""
    config.skip_prompts = 0  # of the file, from its start
    config.num_prompts = 0  # so many after those; 0 = all
    config.round = 1  # 1: the samples that RLHF-V1 is made from
    config.archives = ()  # archive.jsonl of earlier rounds; each holds all before it that it was given

    config.model = ConfigDict({"compute_dtype": "bfloat16", "attention_impl": "auto"})

    config.samples_per_prompt = 32  # K; D40: not stated, "20-32"
    # the temperature: if nothing is searched
    config.sampling = ConfigDict({"max_new_tokens": 1024, "temperature": 1.0, "top_p": 1.0, "top_k": 0})
    config.batch_size = 64  # answers sampled together
    config.seed = 0  # of a prompt's first sample

    config.search = ConfigDict()  # of the temperature, on the first prompts (RS-7)
    config.search.temperatures = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)  # Figure 8; empty: no search
    config.search.num_prompts = 200
    config.search.samples_per_prompt = 32  # Figure 8 goes on to 100; at least what is drawn

    config.pick = ConfigDict()
    config.pick.rounds = "all"  # RS-5; "last": of this round's samples alone, as up to V3
    config.pick.unfinished = "exclude"  # answers that the limit cut off; or "keep"

    config.reward = ConfigDict()
    config.reward.threshold = 0.15  # PPO-3: what ranks the samples is the combined score (D41)
    config.reward.batch_size = 64

    config.mesh = sampling_mesh(variant)
    if variant == "tiny":
        _make_tiny(config)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.model.compute_dtype = "float32"
    config.samples_per_prompt = 16
    config.sampling.max_new_tokens = 48
    config.batch_size = 128
    config.search.temperatures = ()
    config.search.num_prompts = 32
    config.search.samples_per_prompt = 16
    config.reward.batch_size = 128

"""Versions of a chat model compared (Llama 2, sections 3.4.1 and 3.4.2; MBE-1..5, D53, D54).

python -m experiments.evaluate_chat --config=configs/evaluate_chat.py:tiny --workdir=... \
    --config.versions="('sft=runs/sft', 'v1=runs/v1/sft')" --config.reference=sft \
    --config.prompts=evaluation.jsonl --config.helpfulness_rm=WORKDIR --config.safety_rm=WORKDIR

Judges: the reward models; with --config.judge.path=CHECKPOINT a chat model, as GPT-4 is in the paper; and
where the prompts are of the simulated world its truth, in the place of the paper's human evaluation. One of
them is enough. Prompts tagged ``is_safety`` are judged for harmlessness, the others for helpfulness, those of
the borderline family for false refusals only.

Variants: paper (any real model) and tiny (the simulated world).
"""

from ml_collections import ConfigDict

from configs.common import new_config, sampling_mesh
from llama2_jax.config import parse_arg, require_choice


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    variant = parse_arg(arg, variant="paper").variant
    require_choice("config variant", variant, ("paper", "tiny"))
    config = new_config()
    config.versions = ("",)  # "name=checkpoint", in the order of the report
    config.reference = ""  # name of the version that all are compared with; ChatGPT in Figure 11
    config.prompts = ""
    config.helpfulness_rm = ""  # the newest reward models; empty: none judges
    config.safety_rm = ""  # or this one alone is empty: harmlessness is not judged by them
    config.truth = "none"  # "simulated": prompts of the simulated world are graded by its truth
    config.judge = ConfigDict({"path": "", "name": "a language model", "batch_size": 16})
    config.borderline_family = "borderline"  # prompts that only look unsafe

    config.model = ConfigDict({"compute_dtype": "bfloat16", "attention_impl": "auto"})

    # one answer per prompt, with the same seed for all versions; not in the paper, but for the 1000 of HUM-4
    config.sampling = ConfigDict({"max_new_tokens": 1000, "temperature": 1.0, "top_p": 0.9, "top_k": 0})
    config.batch_size = 64  # answers sampled together
    config.seed = 0

    config.reward = ConfigDict({"threshold": 0.15, "batch_size": 64})
    config.num_transcripts = 12  # prompts whose answers are shown for every version

    config.mesh = sampling_mesh()
    if variant == "tiny":
        config.truth = "simulated"
        config.model.compute_dtype = "float32"
        config.sampling.max_new_tokens = 48
        config.batch_size = 128
        config.reward.batch_size = 128
    return config.lock()

"""Safety context distillation (Llama 2, section 4.2.4; CD-1..7, D72).

python -m experiments.context_distillation --config=configs/context_distillation.py:7b --workdir=runs/cd \
    --config.init_from=CHECKPOINT --config.safety_rm=WORKDIR --config.prompts=prompts.jsonl

Only prompts with ``is_safety`` are used. Then fine-tune on runs/cd/dialogues.jsonl mixed with the SFT
data. Variants: 7b (any size) and tiny (short preprompts, which the model's SFT data must contain).
"""

from ml_collections import ConfigDict

from configs.common import new_config, sampling_mesh
from llama2_jax.config import parse_arg, require_choice


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant. The paper gives none of these numbers."""
    variant = parse_arg(arg, variant="7b").variant
    require_choice("config variant", variant, ("7b", "tiny"))
    config = new_config()
    config.init_from = ""
    config.safety_rm = ""
    config.prompts = ""
    config.num_prompts = 0  # the first so many adversarial ones; 0 = all
    config.model = ConfigDict({"compute_dtype": "bfloat16", "attention_impl": "auto"})

    config.data = ConfigDict()
    config.data.wording = "long"  # of preprompts and templates, see data/context_distillation.py; or "short"
    config.data.seed = 0

    config.sampling = ConfigDict({"max_new_tokens": 512, "temperature": 1.0, "top_p": 0.9, "top_k": 0})
    config.batch_size = 64  # prompts answered or scored together
    config.mesh = sampling_mesh()
    if variant == "tiny":
        config.model.compute_dtype = "float32"
        config.data.wording = "short"
        config.sampling.update(max_new_tokens=48, temperature=0.7)
        config.mesh.preset = "single"
    return config.lock()

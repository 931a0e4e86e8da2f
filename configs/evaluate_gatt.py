"""Ghost Attention, evaluation before and after (Llama 2, Table 30, Figure 10; GATT-6..9, D57..D59).

python -m experiments.evaluate_gatt --config=configs/evaluate_gatt.py:7b --workdir=runs/gatt_evaluation \
    --config.models.without=CHECKPOINT --config.models.with_gatt=CHECKPOINT \
    --config.prompts=prompts.jsonl

The prompts are what users say between the instruction and the question: give held-out ones.
Variants: 7b (any size) and tiny (the personas of the simulated world).
"""

from ml_collections import ConfigDict

from configs.common import new_config, sampling_mesh
from llama2_jax.config import parse_arg, require_choice


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    variant = parse_arg(arg, variant="7b").variant
    require_choice("config variant", variant, ("7b", "tiny"))
    config = new_config()
    config.models = ConfigDict({"without": "", "with_gatt": ""})
    config.prompts = ""
    config.model = ConfigDict({"compute_dtype": "bfloat16", "attention_impl": "auto"})

    config.data = ConfigDict()
    config.data.attributes = "general"  # as in configs/gatt.py
    config.data.max_turn_tokens = 0  # longer messages of users are left out; 0: none
    config.data.seed = 0

    config.eval = ConfigDict()
    config.eval.num_dialogues = 100  # for each of the two lists of values, and each constraint
    config.eval.turns = (2, 4, 6, 20)  # of the questions (Table 30)
    config.eval.constraint_turns = 3
    config.eval.attention_turns = 6

    # greedy, so that a version has one answer; not in the paper
    config.sampling = ConfigDict({"max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0, "top_k": 0})
    config.batch_size = 50  # dialogues answered together
    config.mesh = sampling_mesh()
    if variant == "tiny":
        config.model.compute_dtype = "float32"
        config.data.attributes = "world"
        config.data.max_turn_tokens = 12
        config.sampling.max_new_tokens = 24
        config.mesh.preset = "single"
    return config.lock()

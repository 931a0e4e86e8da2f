"""Ghost Attention, synthesis of the dialogues (Llama 2, section 3.3; GATT-1..5, D55, D56).

python -m experiments.gatt --config=configs/gatt.py:7b --workdir=runs/gatt \
    --config.init_from=CHECKPOINT --config.prompts=prompts.jsonl

CHECKPOINT is the latest chat model (after RLHF-V3 in the paper). Then fine-tune on the result,
mixed with the SFT data so that nothing else is forgotten, and compare:
python -m experiments.sft ... --config.data.dialogues=dialogues.jsonl,runs/gatt/dialogues.jsonl
python -m experiments.evaluate_gatt --config=configs/evaluate_gatt.py ...
Variants: 7b (any size) and tiny (the personas of the simulated world, which its model must have learned).
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
    config.prompts = ""  # prompts.jsonl: the users' messages are drawn from it
    config.model = ConfigDict({"compute_dtype": "bfloat16", "attention_impl": "auto"})

    config.data = ConfigDict()
    config.data.attributes = "general"  # lists of figures, hobbies, languages; or "world"
    config.data.num_dialogues = 10_000
    config.data.min_turns = 2
    config.data.max_turns = 8
    config.data.max_turn_tokens = 0  # longer messages of users are left out; 0: none
    config.data.question_fraction = 0.3  # dialogues that end with a question for what was set
    config.data.check = False  # keep only those whose last answer is right, where a program can tell
    config.data.tries = 1  # of a last answer that is not right, where check is on
    config.data.seed = 0

    config.sampling = ConfigDict({"max_new_tokens": 256, "temperature": 1.0, "top_p": 0.9, "top_k": 0})
    config.batch_size = 64  # dialogues answered together
    config.mesh = sampling_mesh()
    if variant == "tiny":
        _make_tiny(config)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.model.compute_dtype = "float32"
    config.data.attributes = "world"
    config.data.num_dialogues = 400
    config.data.max_turns = 5
    config.data.max_turn_tokens = 12
    config.data.question_fraction = 0.9
    config.sampling.update(max_new_tokens=24, temperature=0.7)
    config.mesh.preset = "single"

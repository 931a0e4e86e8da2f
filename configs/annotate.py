"""Collecting human preferences (Llama 2, section 3.2.1; PREF-1..6, PREF-11).

python -m experiments.annotate --config=configs/annotate.py:tiny --workdir=runs/preferences_1 \
    --config.new.path=CHECKPOINT --config.prompts=runs/demo/data/world/prompts_train.jsonl

CHECKPOINT is the newest chat model; --config.previous.path is the one before it, of which every second
answer is then sampled. Annotators: "simulated" (people of the simulated world, for its prompts only),
"model" (two reward models), "file" (people: the first run writes sheet.csv, the second reads it).
Variants: paper (the numbers of the paper where it gives them) and tiny.
"""

from ml_collections import ConfigDict

from configs.common import new_config, sampling_mesh
from llama2_jax.config import parse_arg, require_choice


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    variant = parse_arg(arg, variant="paper").variant
    require_choice("config variant", variant, ("paper", "tiny"))
    config = new_config()
    config.new = ConfigDict({"name": "new", "path": ""})
    config.previous = ConfigDict({"name": "previous", "path": ""})  # "": only the new one is sampled
    config.model = ConfigDict({"compute_dtype": "bfloat16", "attention_impl": "auto"})
    config.prompts = ""  # prompts.jsonl, in the order in which they are to be asked

    config.collection = ConfigDict()
    config.collection.first_batch = 1  # batches are numbered through all rounds; 14 in the paper
    config.collection.num_batches = 1
    config.collection.prompts_per_batch = 100_000  # 1.4 M in 14 batches (Table 6)
    config.collection.prompts_in_first = 0  # of batch 1; 0 = as many as in every other
    config.collection.first_prompt = 0  # of this run, from 1; 0 = behind earlier batches of these sizes
    config.collection.temperatures = (0.7, 1.0)  # the paper: varied, without numbers
    config.collection.max_resamples = 2  # of a pair whose answers are equal or cannot be used
    config.collection.unfinished = "exclude"  # answers that the limit cut off; or "keep"
    config.collection.seed = 0

    config.sampling = ConfigDict({"max_new_tokens": 512, "top_p": 1.0, "top_k": 0})
    config.batch_size = 64  # answers sampled, or dialogues scored, together

    config.annotator = "file"
    config.raters = ConfigDict()  # of "simulated"
    config.raters.num_raters = 8
    config.raters.raters_per_item = 3
    config.raters.noise = 0.25
    config.raters.thresholds = (0.7, 2.0, 4.0)
    config.raters.leniency_spread = 0.2
    config.raters.length_bias_spread = 0.02
    config.raters.label_error = 0.02
    config.raters.seed = 0
    config.judge = ConfigDict()  # of "model"
    config.judge.name = "reward models"
    config.judge.helpfulness_rm = ""
    config.judge.safety_rm = ""
    config.judge.thresholds = (0.5, 1.5, 3.0)  # differences of raw scores between the four ratings

    config.heldout = ConfigDict({"fraction": 0.01, "seed": 0})  # 1000 examples per batch (PREF-6)
    config.source = "own"
    config.mesh = sampling_mesh()
    if variant == "tiny":
        _make_tiny(config)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.model.compute_dtype = "float32"
    config.collection.prompts_per_batch = 600
    config.sampling.max_new_tokens = 32
    config.annotator = "simulated"
    config.heldout.fraction = 0.1
    config.source = "simulated"
    config.mesh.preset = "single"

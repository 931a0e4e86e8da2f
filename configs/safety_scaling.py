"""Scaling of safety data, and false refusals (Llama 2, sections 4.2.3 and A.4.5; SAFE-7, SAFE-8, D69, D70).

python -m experiments.safety_scaling --config=configs/safety_scaling.py:tiny --workdir=runs/safety_scaling
python -m experiments.safety_scaling --config=configs/safety_scaling.py:7b --workdir=... \
    --config.init_from=BASE_CHECKPOINT \
    --config.data.helpfulness=helpful.jsonl --config.data.safety=safe.jsonl \
    --config.evaluate_chat.prompts=prompts.jsonl --config.evaluate_chat.helpfulness_rm=WORKDIR \
    --config.evaluate_chat.safety_rm=WORKDIR

Dialogues are those that sft reads. Of the prompts (``llama2_jax/data/prompts.py``) those tagged ``is_safety``
are adversarial, those of the family "borderline" only look unsafe, the others are for helpfulness.
Variants: 7b, 13b, 34b, 70b (the numbers of the paper) and tiny, in the simulated world, which first needs the
base model and the reward models of ``make demo``. With "tiny,seed=1" all is drawn from another seed.
"""

from ml_collections import ConfigDict

from configs import evaluate_chat, llama2_chat, sft
from configs.common import new_config, set_seeds
from llama2_jax.config import parse_arg, require_choice
from llama2_jax.model.config import PAPER_SIZES

DEMO = "runs/demo"
WORLD = f"{DEMO}/data/world"


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    parsed = parse_arg(arg, variant="7b", seed=0)
    require_choice("config variant", parsed.variant, (*PAPER_SIZES, "tiny"))
    is_tiny = parsed.variant == "tiny"
    config = new_config()
    config.init_from = ""  # the pretrained model: each share starts from it, not from a chat model (D69)

    config.data = ConfigDict()
    config.data.helpfulness = ""  # dialogues of every model; about 0.9 million in the paper
    config.data.safety = ""  # those that shares are taken of; about 0.1 million
    config.data.shares = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)
    config.data.seed = 0  # of the order that the shares are beginnings of

    config.sft = sft.get_config(parsed.variant)  # two epochs of each mixture
    config.evaluate_chat = evaluate_chat.get_config("tiny" if is_tiny else "paper")
    config.unlock()
    if is_tiny:
        _make_tiny(config)
    set_seeds(config, parsed.seed)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.init_from = f"{DEMO}/pretrain"
    config.data.helpfulness = f"{WORLD}/dialogues_helpful.jsonl"
    config.data.safety = f"{WORLD}/dialogues_safe.jsonl"
    config.sft = llama2_chat.get_config("tiny").sft
    config.sft.data.update(heldout="", epochs=2.0)
    config.sft.eval.sample_prompts = ()
    config.evaluate_chat.prompts = f"{WORLD}/prompts_scaling.jsonl"
    config.evaluate_chat.sampling.max_new_tokens = 32
    # of the first round: later ones see hardly any unsafe answer
    config.evaluate_chat.helpfulness_rm = f"{DEMO}/v1/helpfulness_rm"
    config.evaluate_chat.safety_rm = f"{DEMO}/v1/safety_rm"

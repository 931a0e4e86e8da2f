"""PPO on top of rejection sampling (Llama 2, section 3.2.3; PPO-1..9, D43..D51).

python -m experiments.ppo --config=configs/ppo.py:7b --workdir=... \
    --config.init_from=CHECKPOINT --config.helpfulness_rm=RM --config.safety_rm=RM \
    --config.prompts=prompts.jsonl --config.heldout_prompts=heldout.jsonl
python -m experiments.ppo --config=configs/ppo.py:tiny --workdir=runs/tiny_ppo ...

CHECKPOINT is the model after rejection sampling: where the policy starts, and the frozen reference
(D44). Variants: 7b, 13b (beta 0.01), 34b, 70b (beta 0.005) and tiny, which takes about a minute on
models of the sizes of ``configs/pretrain.py:tiny``.
"""

from ml_collections import ConfigDict

from configs.common import mesh, new_config, optimizer, sampling_mesh
from llama2_jax.config import parse_arg, require_choice

KL_COEF = {"7b": 0.01, "13b": 0.01, "34b": 0.005, "70b": 0.005, "tiny": 0.01}  # PPO-6


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant."""
    variant = parse_arg(arg, variant="7b").variant
    require_choice("config variant", variant, KL_COEF)
    config = new_config()
    config.init_from = ""
    config.helpfulness_rm = ""
    config.safety_rm = ""  # "": the helpfulness score alone, where no prompt is tagged
    config.guard_rm = ""  # a reward model that nothing is trained on; "" = none
    config.prompts = ""
    config.heldout_prompts = ""

    config.model = ConfigDict()  # the rest comes from the checkpoint
    config.model.compute_dtype = "bfloat16"  # D7
    config.model.remat_policy = "full"
    config.model.attention_impl = "auto"  # by platform; names in llama2_jax/kernels/implementations.py

    config.ppo = ConfigDict()
    config.ppo.prompt_length = 1024  # tokens, not in the paper; longer prompts are refused
    config.ppo.response_length = 1024  # most new tokens (D43)
    config.ppo.batch_size = 512
    config.ppo.mini_batch_size = 64
    config.ppo.accumulation_steps = 1  # of a mini-batch
    config.ppo.sample_batch_size = 0  # answers made at a time, whose keys and values fill the memory; 0 = all
    config.ppo.forward_batch_size = 64  # answers per pass without gradient
    config.ppo.temperature = 1.0  # D43
    config.ppo.kl_coef = KL_COEF[variant]
    config.ppo.kl_placement = "reward"  # D45
    config.ppo.kl_estimator = "k1"
    config.ppo.safety_threshold = 0.15
    config.ppo.whitening = "shift_and_scale"  # D46
    config.ppo.missing_eos = "none"  # or "penalty", "replace": not in the paper
    config.ppo.missing_eos_value = 0.0  # in standard deviations of the batch
    config.ppo.truncation = "terminal"  # or "bootstrap"
    config.ppo.discount = 1.0  # D43
    config.ppo.gae_lambda = 0.95  # D43
    config.ppo.clip_range = 0.2
    config.ppo.value_clip_range = 0.2  # D43
    config.ppo.value_coef = 0.1  # D43

    config.value = ConfigDict()
    config.value.init_from = "reward_model"  # D43: body of the helpfulness model; or "policy"
    config.value.learning_rate = 1e-6

    # of both models, apart from the value model's learning rate
    config.optimizer = optimizer(1e-6, schedule="constant", final_fraction=1.0)

    config.mesh = mesh()
    config.sampler_mesh = sampling_mesh(variant)  # while answers are made
    config.sampler_mesh.update(data=-1, fsdp=1)

    config.train = ConfigDict()  # a step is an iteration here
    config.train.num_iterations = 400  # PPO-7: 200 to 400
    config.train.seed = 0
    config.train.checkpoint_every_steps = 10
    config.train.keep_last = 2
    config.train.num_samples = 8  # answers per iteration written to samples.jsonl

    config.eval = ConfigDict()
    config.eval.every_steps = 10
    config.eval.patience = 5  # evaluations without a new best reward before stopping; 0 = never
    config.eval.guard_drop = 1.0  # in raw scores, how far the guard may fall while the reward rises
    if variant == "tiny":
        _make_tiny(config)
    return config.lock()


def _make_tiny(config: ConfigDict) -> None:
    config.model.compute_dtype = "float32"
    config.model.remat_policy = "none"
    config.ppo.prompt_length = 64
    config.ppo.response_length = 24
    config.ppo.batch_size = 32
    config.ppo.mini_batch_size = 8
    config.ppo.forward_batch_size = 0
    config.value.learning_rate = 1e-3
    config.optimizer.learning_rate = 1e-4
    config.mesh.preset = "single"
    config.sampler_mesh.preset = "single"
    config.train.num_iterations = 20
    config.train.checkpoint_every_steps = 10
    config.eval.every_steps = 5
    config.eval.patience = 0

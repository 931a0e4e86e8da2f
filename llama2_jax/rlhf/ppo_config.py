"""The numbers of PPO (Llama 2, section 3.2.3; PPO-5, PPO-6), and what of them makes no sense together."""

import dataclasses

from llama2_jax.config import require, require_choice
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.losses.ppo import KL_ESTIMATORS
from llama2_jax.losses.preference import SAFETY_THRESHOLD
from llama2_jax.rlhf.rewards import MISSING_EOS

KL_PLACEMENTS = ("reward", "loss")
WHITENINGS = ("shift_and_scale", "scale", "none")
TRUNCATIONS = ("terminal", "bootstrap")

# Expected gradients at one token, of samples of pi, with pi_0 the reference (tests/losses/test_ppo.py).
_WRONG_GRADIENT = {
    ("reward", "k2"): "its gradient is not that of a divergence; as a loss it is",
    ("reward", "k3"): "its gradient is that of KL(pi||pi_0) - KL(pi_0||pi), which vanishes at the reference",
    ("loss", "k1"): "its gradient is zero in expectation: nothing would hold the policy",
    ("loss", "k3"): "its gradient is that of KL(pi_0||pi), the other direction",
}


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Defaults: the paper's where it has them, else D43 to D49."""

    prompt_length: int  # tokens that prompts are padded to; longer ones are refused
    response_length: int  # most new tokens
    batch_size: int = 512  # prompts per iteration, one answer each
    mini_batch_size: int = 64  # answers per gradient step; every answer is used once
    accumulation_steps: int = 1  # of a mini-batch
    sample_batch_size: int = 0  # answers made at a time; 0 = all
    forward_batch_size: int = 0  # answers per pass without gradient; 0 = all
    temperature: float = 1.0  # of sampling and of every log-probability
    kl_coef: float = 0.01  # beta
    kl_placement: str = "reward"
    kl_estimator: str = "k1"
    safety_threshold: float = SAFETY_THRESHOLD
    whitening: str = "shift_and_scale"  # of the combined scores, over the batch (D46)
    missing_eos: str = "none"
    missing_eos_value: float = 0.0  # in standard deviations of the batch
    truncation: str = "terminal"  # value after an answer that was cut off: 0, or the value model's
    discount: float = 1.0
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1  # see ``update.value_loss``

    def __post_init__(self) -> None:
        for name in (
            "prompt_length", "response_length", "batch_size", "mini_batch_size", "accumulation_steps",
            "kl_coef", "clip_range", "value_clip_range", "value_coef",
        ):  # fmt: skip
            require(getattr(self, name) > 0, f"ppo.{name} = {getattr(self, name)} must be positive")
        require(
            self.temperature > 0,
            f"ppo.temperature = {self.temperature} must be positive: greedy answers explore nothing",
        )
        for name in ("discount", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, f"ppo.{name} = {getattr(self, name)} must be in [0, 1]")
        require_choice("ppo.kl_placement", self.kl_placement, KL_PLACEMENTS)
        require_choice("ppo.kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        require_choice("ppo.whitening", self.whitening, WHITENINGS)
        require_choice("ppo.missing_eos", self.missing_eos, MISSING_EOS)
        require_choice("ppo.truncation", self.truncation, TRUNCATIONS)
        reason = _WRONG_GRADIENT.get((self.kl_placement, self.kl_estimator), "")
        require(
            not reason,
            f"{self.kl_estimator} in the {self.kl_placement}: {reason}; "
            "set ppo.kl_placement and ppo.kl_estimator to reward and k1, or to loss and k2, which "
            "leaves out what a token does to the divergence of later ones",
        )
        self._check_sizes()

    def _check_sizes(self) -> None:
        for whole, part in (
            ("batch_size", "mini_batch_size"),
            ("mini_batch_size", "accumulation_steps"),
            ("batch_size", "sample_batch_size"),
            ("batch_size", "forward_batch_size"),
        ):
            size, divisor = getattr(self, whole), getattr(self, part)
            require(
                divisor == 0 or size % divisor == 0,
                f"ppo.{whole} = {size} is not divisible by ppo.{part} = {divisor}; change one of them",
            )
        require(
            self.batch_size > 1 or self.whitening == "none",
            "ppo.batch_size = 1 has no deviation to whiten with; raise it or set ppo.whitening to none",
        )

    @property
    def num_updates(self) -> int:
        """Gradient steps per iteration: 8 in the paper."""
        return self.batch_size // self.mini_batch_size

    @property
    def row_length(self) -> int:
        """Tokens of a row: the prompt and the response."""
        return self.prompt_length + self.response_length

    @property
    def forward_parts(self) -> int:
        """Passes without gradient that a batch takes."""
        return self.batch_size // (self.forward_batch_size or self.batch_size)

    @property
    def sampling(self) -> SamplingConfig:
        """How answers are drawn: from the whole vocabulary, or the KL could turn negative."""
        return SamplingConfig(self.response_length, self.temperature, top_p=1.0)

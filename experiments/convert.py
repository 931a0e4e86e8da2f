"""Any checkpoint to a Hugging Face folder or to our own format.

python -m experiments.convert --from=PATH --to=DIR --format=huggingface

Weights keep the dtype of the source, bit for bit, unless --dtype is given. A reward model becomes a folder of
``LlamaForSequenceClassification``.
"""

from absl import flags

from llama2_jax.config import require
from llama2_jax.data.chat import TEMPLATES
from llama2_jax.launch import launch
from llama2_jax.model.config import parameter_count
from llama2_jax.pretrained import FORMATS, convert
from llama2_jax.rlhf.reward_checkpoint import is_reward_model, load_reward_model, save_reward_model


def main() -> None:
    """Load and write."""
    given = flags.FLAGS
    source = getattr(given, "from")
    if is_reward_model(source):
        require(
            given.format == "huggingface" and given.template is None,
            f"{source} is a reward model; it is written by --format=huggingface, with its own chat template",
        )
        reward_model = load_reward_model(source, dtype=None)
        save_reward_model(given.to, reward_model, dtype=given.dtype)
        print(f"reward model {reward_model.version} -> {given.to}")
        return
    loaded = convert(source, given.to, output_format=given.format, dtype=given.dtype, template=given.template)
    size = f"{parameter_count(loaded.config):,} parameters"
    print(f"{loaded.source} -> {given.to} ({given.format}), {size}")


if __name__ == "__main__":  # flags are global: defined here, so that the module can be imported
    flags.DEFINE_string("from", None, "Workdir, Hugging Face folder, Meta folder or GGUF file.")
    flags.DEFINE_string("to", None, "Folder to write; must not exist or be empty.")
    flags.DEFINE_enum("format", "huggingface", FORMATS, "What to write.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Cast the weights first.")
    chat = "Chat template, where the checkpoint's own is unknown or not wanted."
    flags.DEFINE_enum("template", None, list(TEMPLATES), chat)
    flags.mark_flags_as_required(["from", "to"])
    launch(main)

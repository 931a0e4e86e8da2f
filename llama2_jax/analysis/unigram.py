"""What a model that only counts tokens would reach: the yardstick for a language model's loss."""

import numpy as np

from llama2_jax.data.corpus import TokenisedCorpus


def unigram_entropy(corpus: TokenisedCorpus) -> float:
    """Entropy in nats per token of the corpus's own token frequencies: -sum_v p_v log p_v.

    No model that ignores context can have a lower loss on this text. All tokens count, BOS and
    EOS too, as in the loss over concatenated documents.
    """
    counts = np.zeros(corpus.manifest["vocab_size"], np.int64)
    for index in range(len(corpus)):
        counts += np.bincount(corpus[index], minlength=counts.size)
    probabilities = counts[counts > 0] / counts.sum()
    return float(-(probabilities * np.log(probabilities)).sum())

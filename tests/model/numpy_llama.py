"""The decoder once more, in float64 numpy with a loop over everything (ARCH-2..7): slow and obvious."""

from typing import Any

import numpy as np

from llama2_jax.model.config import ModelConfig


def rms_norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


def rotate(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """One head at one position: pairs (2i, 2i+1) as complex numbers times exp(i * position * frequency)."""
    width = len(x)
    z = x[0::2] + 1j * x[1::2]
    for i in range(width // 2):
        z[i] *= np.exp(1j * position / base ** (2 * i / width))
    out = np.empty(width)
    out[0::2], out[1::2] = z.real, z.imag
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    g = x @ gate
    return (g / (1 + np.exp(-g)) * (x @ up)) @ down


def attention(
    x: np.ndarray, weights: dict[str, np.ndarray], config: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
    """One document (T, D) -> (T, D), and the probabilities (N, T, T)."""
    length, group = len(x), config.num_heads // config.num_kv_heads
    out = np.zeros((length, config.model_width))
    probs = np.zeros((config.num_heads, length, length))
    for n in range(config.num_heads):
        q = [rotate(x[t] @ weights["w_q_DNH"][:, n], t, config.rope_base) for t in range(length)]
        k = [rotate(x[t] @ weights["w_k_DKH"][:, n // group], t, config.rope_base) for t in range(length)]
        v = x @ weights["w_v_DKH"][:, n // group]
        for t in range(length):
            scores = np.array([q[t] @ k[s] / np.sqrt(config.head_dim) for s in range(t + 1)])
            probs[n, t, : t + 1] = softmax(scores)
            out[t] += (probs[n, t, : t + 1] @ v[: t + 1]) @ weights["w_o_NHD"][n]
    return out, probs


def layer_weights(params: Any, layer: int) -> dict[str, dict[str, np.ndarray]]:
    return {
        module: {name: np.asarray(leaf[layer], np.float64) for name, leaf in leaves.items()}
        for module, leaves in params["layers"].items()
    }


def block(
    x: np.ndarray, weights: dict[str, dict[str, np.ndarray]], config: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
    normed = rms_norm(x, weights["attention_norm"]["scale_D"], config.norm_epsilon)
    attended, probs = attention(normed, weights["attention"], config)
    h = x + attended
    normed = rms_norm(h, weights["feed_forward_norm"]["scale_D"], config.norm_epsilon)
    ffn = weights["feed_forward"]
    return h + swiglu(normed, ffn["w_gate_DF"], ffn["w_up_DF"], ffn["w_down_FD"]), probs


def forward(params: Any, tokens: Any, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """One document of ids -> logits (T, V) and attention probabilities (L, N, T, T)."""
    x = np.asarray(params["embedding_VD"], np.float64)[np.asarray(tokens)]
    probs = []
    for layer in range(config.num_layers):
        x, p = block(x, layer_weights(params, layer), config)
        probs.append(p)
    x = rms_norm(x, np.asarray(params["final_norm"]["scale_D"], np.float64), config.norm_epsilon)
    head = params["embedding_VD"].T if config.tie_embeddings else params["unembedding_DV"]
    return x @ np.asarray(head, np.float64), np.stack(probs)


def token_scores(params: Any, tokens: Any, config: ModelConfig) -> np.ndarray:
    """Scores (T,) of the parameters of a ``ScoreModel``: a decoder with a vocabulary of one."""
    one_output = params["body"] | {"unembedding_DV": np.asarray(params["w_score_D"])[:, None]}
    return forward(one_output, tokens, config)[0][:, 0]


def log_softmax(x: np.ndarray) -> np.ndarray:
    return np.log(softmax(np.asarray(x, np.float64)))


def next_logprobs(params: Any, tokens: Any, config: ModelConfig) -> np.ndarray:
    """log p(token t | tokens before t) for t = 1, 2, ..."""
    logprobs = log_softmax(forward(params, tokens, config)[0])
    return np.array([logprobs[t - 1, tokens[t]] for t in range(1, len(tokens))])


def greedy(params: Any, prompt: list[int], config: ModelConfig, new_tokens: int) -> list[int]:
    """The argmax continuation, by a full forward pass per token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        ids.append(int(forward(params, ids, config)[0][-1].argmax()))
    return ids[len(prompt) :]

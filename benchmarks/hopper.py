"""Everything that is measured on a Hopper GPU, in one command.

python -m benchmarks.hopper [--parts attention layer ...] [--beside cudnn ...] [--seconds=450]

Numbers first, then speeds: attention, attention to a cache, a layer and a step of the 7B, generation, tiles.
Each part is a result file, written when it is done; one that fails is recorded and does not stop the others,
and none is begun after so many seconds. The last lines are the goals of benchmarks/hopper.md beside what was
measured.
"""

import argparse
import functools
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import attention, decode, decode_attention, hopper_tiles, train_step
from benchmarks.attention import tried
from benchmarks.record import record
from llama2_jax.config import ConfigError

IMPL = "hopper"
BESIDE = ["cudnn", "triton", "xla", "chunked"]


def parts(beside: list[str]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name; attention beside these implementations."""
    return {
        "attention": functools.partial(attention.measure, attention.GPU.only(IMPL, *beside)),
        "decode_attention": decode_attention.measure,
        "layer": functools.partial(train_step.large_layer, IMPL),
        "generate": functools.partial(decode.large, IMPL),
        "step": functools.partial(train_step.large_step, IMPL, "attention"),
        "tiles": hopper_tiles.measure,
        "step_full_remat": functools.partial(train_step.large_step, IMPL, "full"),
    }


TEXTS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "attention": attention.texts,
    "decode_attention": decode_attention.texts,
    "generate": decode.large_texts,
    "tiles": hopper_tiles.texts,
}


def main() -> None:
    """Measure every part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = list(parts(BESIDE))
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    parser.add_argument("--beside", nargs="*", default=BESIDE, choices=BESIDE, help="attention")
    parser.add_argument("--seconds", type=float, default=450)
    given = parser.parse_args()
    # a 7B step takes 110 GiB; jax would keep to three quarters of the memory
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")
    device, start = jax.devices()[0], time.monotonic()
    if getattr(device, "compute_capability", "") != "9.0":
        raise ConfigError(f"benchmarks.hopper needs an H100 or H200, this is {device.device_kind}")
    found: dict[str, Any] = {}
    for name in given.parts:
        if time.monotonic() - start > given.seconds:
            print(f"{name} not begun: {given.seconds:.0f} s had passed")
            continue
        found[name] = tried(parts(given.beside)[name])
        line = tried(functools.partial(_line, name, found[name]))
        text = line.get("line") or line["error"]
        reached = [goal for goal in goals({name: found[name]}) if goal["measured"] is not None]
        spent = f"{time.monotonic() - start:.0f} s"
        record(f"hopper_{name}", {**found[name], "goals": reached}, line=f"{spent} {name}: {text}")
        jax.clear_caches()
        gc.collect()  # what an error still holds
    for goal in goals(found):
        print(goal)


def _line(name: str, result: dict[str, Any]) -> dict[str, str]:
    if "error" in result:
        return {"line": result["error"][:1000]}
    texts = TEXTS.get(name)
    return {"line": "; ".join(texts(result)) if texts else train_step.large_text(name, result)}


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured beside what was wanted; ``measured`` is None where it was not."""
    table: list[dict[str, Any]] = []

    def add(what: str, measured: float | None, must: float, goal: float, stretch: float) -> None:
        table.append({"what": what, "measured": measured, "must": must, "goal": goal, "stretch": stretch})

    heads = {name: _row(found.get("attention"), "shape", name) for name in ("mha", "gqa", "packed")}
    caches = {name: _row(found.get("decode_attention"), "cache", name) for name in ("mha", "gqa")}

    def rate(name: str, way: str) -> float | None:
        measured = heads[name].get(f"{way}_flops_per_sec")
        return None if measured is None else measured / 1e12

    def median(name: str) -> float | None:
        return heads[name].get("forward_and_backward_secs", {}).get("median")

    whole, packed = median("mha"), median("packed")
    step = found.get("step", {}).get("mfu") or found.get("step_full_remat", {}).get("mfu")
    one, many = found.get("generate", {}).get("rows", ({}, {}))
    add("forward B4 T4096 H32, TFLOP/s", rate("mha", "forward"), 450, 540, 600)
    cudnn = _row(found.get("attention"), "shape", "mha", "cudnn").get("forward_flops_per_sec")
    forward = rate("mha", "forward")
    add("forward, share of cuDNN", forward / cudnn * 1e12 if forward and cudnn else None, 0, 0.92, 1.0)
    add("backward, same", rate("mha", "backward"), 330, 420, 500)
    add("GQA 64/8 forward, TFLOP/s", rate("gqa", "forward"), 450, 560, 620)
    add("GQA 64/8 backward, TFLOP/s", rate("gqa", "backward"), 320, 410, 490)
    # the ideal is to compute the pairs that are seen and nothing else
    ideal = 1 / heads["packed"].get("seen_share", 1.0)
    ratio = whole / packed if whole and packed else None
    add("packed documents, times faster than plain causal", ratio, 1.0, 1.6, 0.85 * ideal)
    add("decode MHA, share of copying", caches["mha"].get("copy_rate_share"), 0.65, 0.82, 0.90)
    add("decode GQA, share of copying", caches["gqa"].get("copy_rate_share"), 0.55, 0.75, 0.85)
    add("7B layer, MFU", found.get("layer", {}).get("mfu"), 0.45, 0.53, 0.58)
    add("7B step, MFU", step, 0.36, 0.45, 0.52)
    add("7B generate, batch 1, tok/s", one.get("tokens_per_sec"), 190, 240, 270)
    add("7B generate, batch 32, share of roof", many.get("roof_share"), 0.50, 0.65, 0.75)
    return table


def _row(result: dict[str, Any] | None, kind: str, name: str, impl: str = IMPL) -> dict[str, Any]:
    """A row of a table, ours by default; empty where it is missing or failed."""
    rows = (result or {}).get("rows", [])
    return next((row for row in rows if row["impl"] == impl and row[kind]["name"] == name), {})


if __name__ == "__main__":
    main()

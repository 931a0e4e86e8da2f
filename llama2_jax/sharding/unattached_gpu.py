"""GPUs that are not attached: programs are compiled for them by the real compilers.

Needs the CUDA plugin of jax's own version X, and tools of CUDA 13:
``pip install --no-deps jax-cuda13-plugin==X jax-cuda13-pjrt==X`` and
``pip install 'nvidia-cuda-runtime>=13,<13.1' 'nvidia-cuda-nvcc>=13,<13.1' nvidia-cuda-nvdisasm``.
Start Python with JAX_PLATFORMS=cpu: once jax has looked for a GPU and found none the plugin is gone.
"""

import importlib.util
import mmap
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from llama2_jax.config import ConfigError, require_choice
from llama2_jax.sharding.unattached import compile_on

CHIPS = ("h200", "a100", "a10")
"""What a chip is to the compiler stands in ``CHIP.txtpb``; an A10 is as the GeForce RTX 30 and the A40."""
_ARRIVE_INJECTED = "C7519"  # an instruction before a product that it may use the registers; costs nothing


def gpu_devices(chip: str, count: int = 1, *, hosts: int = 1) -> list[Any]:
    """GPUs of ``CHIPS`` to compile for, ``count`` on each host.

    Raises:
      ConfigError: there is no such chip, the CUDA plugin is not installed, or jax was started without
        JAX_PLATFORMS=cpu.
    """
    require_choice("chip", chip, CHIPS)
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ConfigError(
            "the CUDA compiler is not installed; pip install --no-deps "
            f"jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__} brings it"
        )
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        raise ConfigError("to compile for a GPU that is not attached start Python with JAX_PLATFORMS=cpu")
    from jax.experimental import topologies

    target = Path(__file__).with_name(f"{chip}.txtpb").read_text()
    found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x{hosts}x{count}")
    return list(found.devices)


def compile_for_gpu(chip: str, function: Callable[..., Any], *arrays: tuple[tuple[int, ...], Any]) -> Any:
    """Compile a function of arrays of these (shape, dtype) for one GPU of ``CHIPS``.

    The compiler does not refuse what does not fit: compare ``memory_analysis()`` with the memory of the chip.
    """
    return compile_on(gpu_devices(chip)[0], function, *arrays)


class KernelFacts(NamedTuple):
    """What the compiler says of one Pallas kernel."""

    name: str
    registers: int  # most that a thread uses
    spill_bytes: int  # stores and loads
    is_serialized: bool  # products wait for one another, mostly for want of registers (C7510 and its like)
    warnings: list[str]  # codes of ptxas, that one included
    hgmma: int  # products of a warpgroup
    hmma: int  # products of a warp: the slow path
    shared_bytes: int


def kernel_facts(compile_it: Callable[[], Any]) -> tuple[Any, list[KernelFacts]]:
    """Run something that compiles, and return what it gives and the facts of every Pallas kernel in it.

    With jax 0.12 a process compiles equal kernels once: those compiled before are not in the list.

    Raises:
      ConfigError: the disassembler is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        try:
            made = compile_it()
        finally:
            del os.environ["MOSAIC_GPU_DUMP_TO"]
        return made, [_facts(path) for path in sorted(Path(folder).glob("*.ptxas"))]


def _facts(ptxas: Path) -> KernelFacts:
    log, code = ptxas.read_text(), ptxas.with_suffix(".sass_ctrl")
    if not code.exists() or not (instructions := code.read_text()).strip():
        raise ConfigError("the disassembler is missing; pip install 'nvidia-cuda-nvdisasm>=13' brings it")

    def total(pattern: str, text: str) -> int:
        return sum(int(number) for number in re.findall(pattern, text))

    return KernelFacts(
        name=ptxas.stem.rpartition("_")[0],
        registers=1 + max((int(number) for number in re.findall(r"\bR(\d+)\b", instructions)), default=0),
        spill_bytes=total(r"(\d+) bytes spill", log),
        is_serialized="serialized" in log,
        warnings=sorted(set(re.findall(r"\((C\d+)\)", log)) - {_ARRIVE_INJECTED}),
        hgmma=len(re.findall(r"\bHGMMA\b", instructions)),
        hmma=len(re.findall(r"\bHMMA\b", instructions)),
        shared_bytes=_shared_bytes(ptxas.with_suffix(".mlir-passes.log")),
    )


def _shared_bytes(passes: Path) -> int:
    with passes.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as log:  # 70 MB
        found = re.search(rb"dynamic_shared_memory_size %c(\d+)_i32", log)
        return int(found[1]) if found else 0

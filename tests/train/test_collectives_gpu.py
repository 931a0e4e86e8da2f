"""What GPUs tell each other in an update: a program for eight H200s, by the real compiler."""

import pytest

from tests.kernels.aot_model import needs_gpu_compilers, run_with_gpu_compilers
from tests.train.programs import inside_loops, parse

pytestmark = needs_gpu_compilers

UPDATE = """
from llama2_jax.model.config import model_config
from llama2_jax.model.transformer import Transformer
from llama2_jax.sharding.mesh import MeshConfig, make_mesh
from llama2_jax.sharding.rules import Partitioner
from llama2_jax.sharding.unattached_gpu import gpu_devices
from tests.kernels.aot_model import update_of

partitioner = Partitioner(make_mesh(MeshConfig(), gpu_devices("h200", 8)), "fsdp")
config = model_config("mini", head_dim=64, num_layers=9, compute_dtype="bfloat16", remat_policy="{policy}")
print(update_of(Transformer(config, partitioner), num_rows=8, length=512))
"""


@pytest.mark.parametrize("policy", ["full", "none"])
def test_a_pass_gathers_every_weight_once(policy: str) -> None:
    ran = run_with_gpu_compilers(["-c", UPDATE.replace("{policy}", policy)])
    assert ran.returncode == 0, ran.stderr[-3000:]

    def gathered(text: str) -> int:
        operations = [one for line in text.splitlines() if (one := parse(line))]
        return sum(len(one.operands) for one in operations if one.kind == "all-gather")

    # forward and backward: four weights of attention, three of the feed-forward layer, two norms
    in_loops = [gathered(body) for body in inside_loops(ran.stdout)]
    assert sorted(filter(None, in_loops)) == [9, 9]
    # outside: the embedding, the final norm and the head, whose gradient follows at once
    assert gathered(ran.stdout) == 9 + 9 + 3

"""The train step of jax_step.py compiled for a slice of TPUs that isn't here: the yardstick for `bert-xla plan`.

The state is replicated and the batch is split, as JAX's own data-parallel examples have it. It prints one JSON line:
seconds to compile, memory per device, the compiler's count of operations and bytes, and the sum of its estimated
cycles over the entry computation.

    pip install jax==0.8.0
    python jax_plan.py --libtpu ~/.cache/bert-xla/plugins/tpu/0.0.52/libtpu.so --topology v3:2x2x1
"""

import argparse
import json
import os
import re
import time
from functools import partial


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libtpu", required=True, help="the plugin file that bert-xla uses")
    parser.add_argument("--topology", default="v3:2x2x1")
    parser.add_argument("--size", choices=["base", "tiny"], default="base")
    parser.add_argument("--batch-size", type=int, default=16, help="over all devices")
    parser.add_argument("--max-length", type=int, default=140)
    parser.add_argument("--prng", default="rbg", help="rbg is XLA's rng-bit-generator; or threefry2x32")
    args = parser.parse_args()
    # Away from a TPU VM, libtpu must not ask the metadata server where it is.
    os.environ.update(TPU_LIBRARY_PATH=os.path.expanduser(args.libtpu), TPU_SKIP_MDS_QUERY="1",
                      TPU_ACCELERATOR_TYPE="v3-8", TPU_WORKER_HOSTNAMES="localhost", JAX_PLATFORMS="cpu")
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jax_step

    jax.config.update("jax_default_prng_impl", args.prng)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = Mesh(np.array(devices), ("batch",))
    replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in [(), ("batch",)])
    size = jax_step.SIZES[args.size]

    params = jax.eval_shape(lambda key: jax_step.init_params(key, size, args.max_length), jax.random.key(0))
    state = {"params": params, "m": params, "v": params, "step": jax.ShapeDtypeStruct((), jnp.int32)}
    place = lambda tree, sharding: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
    input_ids = jax.ShapeDtypeStruct((args.batch_size, args.max_length), jnp.int32)
    labels = jax.ShapeDtypeStruct((args.batch_size,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(1))

    step = jax.jit(
        partial(jax_step.train_step, heads=size.heads, layers=size.layers),
        donate_argnums=0, out_shardings=replicated)
    lowered = step.lower(place(state, replicated), place(input_ids, split), place(labels, split),
                         place(key, replicated))
    lap = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - lap

    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    entry = compiled.as_text().split("\nENTRY ", 1)[1].split("\n}", 1)[0]
    print(json.dumps({
        "jax": jax.__version__, "topology": args.topology, "devices": len(devices), "size": args.size,
        "batch_size": args.batch_size, "prng": args.prng, "compile_seconds": round(compile_seconds, 2),
        "argument_mib": round(memory.argument_size_in_bytes / 2**20, 1),
        "temporary_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "code_mib": round(memory.generated_code_size_in_bytes / 2**20, 1),
        "flops": cost["flops"], "bytes_accessed": cost["bytes accessed"],
        "estimated_cycles": sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry))),
    }))


if __name__ == "__main__":
    main()

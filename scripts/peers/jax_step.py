"""The train step in plain JAX: the yardstick for bert-xla's step time and memory.

Multilingual BERT with the flattened dense head, dropout, Keras' crossentropy and Keras' Adam, as one jitted function in
float32 whose state is donated. Weights and data are random. It prints one JSON line: compile and step seconds, and peak
memory.

    pip install jax==0.8.0
    python jax_step.py                                   # on jaxlib's own CPU backend
    python jax_step.py --plugin xla_cpu_pjrt.so          # on the PJRT plugin file that bert-xla loads
    taskset -c 0 python jax_step.py --size tiny          # on one core
"""

import argparse
import json
import resource
import statistics
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Size(NamedTuple):
    vocab: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    max_positions: int = 512
    token_types: int = 2


SIZES = {
    "base": Size(vocab=119547, hidden=768, layers=12, heads=12, intermediate=3072),  # bert-base-multilingual-cased
    "tiny": Size(vocab=1000, hidden=128, layers=2, heads=2, intermediate=512),
}
HEAD = (512, 440, 4)
ENCODER_DROPOUT, HEAD_DROPOUT = 0.1, 0.3
LAYER_NORM_EPSILON = 1e-12
LEARNING_RATE, BETA_1, BETA_2, ADAM_EPSILON = 1e-5, 0.9, 0.999, 1e-7


# Parameters: a tree of {"kernel": [in, out], "bias": [out]} and {"scale", "bias"}, every leaf drawn from a normal
# distribution or constant.

def dense_params(key, inputs, outputs, deviation=0.02):
    return {"kernel": deviation * jax.random.normal(key, (inputs, outputs)), "bias": jnp.zeros(outputs)}


def norm_params(width):
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def init_params(key, size, max_length):
    keys = iter(jax.random.split(key, 7 + 6 * size.layers))
    embedding = lambda rows: 0.02 * jax.random.normal(next(keys), (rows, size.hidden))
    square = lambda: dense_params(next(keys), size.hidden, size.hidden)
    layer = lambda: {
        "query": square(), "key": square(), "value": square(), "attention_output": square(),
        "attention_norm": norm_params(size.hidden),
        "intermediate": dense_params(next(keys), size.hidden, size.intermediate),
        "output": dense_params(next(keys), size.intermediate, size.hidden),
        "output_norm": norm_params(size.hidden),
    }
    widths = (max_length * size.hidden, *HEAD)
    return {
        "embeddings": {
            "word": embedding(size.vocab), "position": embedding(size.max_positions),
            "token_type": embedding(size.token_types), "norm": norm_params(size.hidden),
        },
        "layers": [layer() for _ in range(size.layers)],
        "pooler": square(),  # kept in the state as the recipe keeps it, unused
        "head": [dense_params(next(keys), i, o, (2 / (i + o)) ** 0.5) for i, o in zip(widths, widths[1:])],
    }


# The model, with dropout on.

def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def layer_norm(params, x):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON) * params["scale"] + params["bias"]


def dropout(keys, x, rate):
    keep = jax.random.bernoulli(next(keys), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def attention(params, x, keys, heads):
    """[batch, seq, hidden] -> the same; no mask, so padding is attended to."""
    batch, seq, hidden = x.shape
    split = lambda name: dense(params[name], x).reshape(batch, seq, heads, hidden // heads)
    scores = jnp.einsum("bqhd,bkhd->bhqk", split("query"), split("key")) / (hidden // heads) ** 0.5
    weights = dropout(keys, jax.nn.softmax(scores), ENCODER_DROPOUT)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, split("value")).reshape(batch, seq, hidden)


def encoder_layer(params, x, keys, heads):
    update = dense(params["attention_output"], attention(params, x, keys, heads))
    x = layer_norm(params["attention_norm"], x + dropout(keys, update, ENCODER_DROPOUT))
    update = dense(params["output"], jax.nn.gelu(dense(params["intermediate"], x), approximate=False))
    return layer_norm(params["output_norm"], x + dropout(keys, update, ENCODER_DROPOUT))


def classify(params, input_ids, keys, heads):
    """[batch, seq] -> [batch, class], positive and not normalised."""
    embeddings = params["embeddings"]
    x = embeddings["word"][input_ids] + embeddings["position"][: input_ids.shape[1]] + embeddings["token_type"][0]
    x = dropout(keys, layer_norm(embeddings["norm"], x), ENCODER_DROPOUT)
    for layer in params["layers"]:
        x = encoder_layer(layer, x, keys, heads)
    x = x.reshape(len(x), -1)
    for layer in params["head"][:-1]:
        x = dropout(keys, jax.nn.relu(dense(layer, x)), HEAD_DROPOUT)
    return jax.nn.softplus(dense(params["head"][-1], x))


# The train step.

def loss_and_accuracy(params, input_ids, labels, keys, heads):
    """Keras' categorical_crossentropy of outputs that are not logits."""
    output = classify(params, input_ids, keys, heads)
    probabilities = jnp.clip(output / output.sum(-1, keepdims=True), 1e-7, 1 - 1e-7)
    loss = -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], axis=1)).mean()
    return loss, (output.argmax(-1) == labels).mean()


def train_step(state, input_ids, labels, key, heads, layers):
    step = state["step"] + 1
    dropout_sites = 1 + 3 * layers + 2
    keys = iter(jax.random.split(jax.random.fold_in(key, step), dropout_sites))
    value_and_grad = jax.value_and_grad(loss_and_accuracy, has_aux=True)
    (loss, accuracy), grads = value_and_grad(state["params"], input_ids, labels, keys, heads)

    rate = LEARNING_RATE * jnp.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
    m = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, state["m"], grads)
    v = jax.tree.map(lambda v, g: BETA_2 * v + (1 - BETA_2) * g * g, state["v"], grads)
    params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + ADAM_EPSILON), state["params"], m, v)
    return {"params": params, "m": m, "v": v, "step": step}, loss, accuracy


def use_plugin(path):
    from jax._src import xla_bridge

    # Without the option the plugin shows four devices.
    xla_bridge.register_plugin("xla_cpu_pjrt", library_path=path, options={"cpu_device_count": 1})
    jax.config.update("jax_platforms", "xla_cpu_pjrt")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", help="a PJRT plugin file for the CPU; without it, jaxlib's own backend")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=140)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prng", default="rbg", help="rbg is XLA's rng-bit-generator; or threefry2x32")
    args = parser.parse_args()
    if args.plugin:
        use_plugin(args.plugin)
    else:
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_prng_impl", args.prng)
    size = SIZES[args.size]

    @jax.jit
    def init_state(key):
        params = init_params(key, size, args.max_length)
        zeros = partial(jax.tree.map, jnp.zeros_like)
        return {"params": params, "m": zeros(params), "v": zeros(params), "step": jnp.int32(0)}

    state = jax.block_until_ready(init_state(jax.random.key(0)))
    random = np.random.default_rng(0)
    input_ids = jnp.asarray(random.integers(0, size.vocab, (args.batch_size, args.max_length), dtype=np.int32))
    labels = jnp.asarray(random.integers(1, 4, args.batch_size, dtype=np.int32))
    key = jax.random.key(1)

    lap = time.perf_counter()
    step = jax.jit(partial(train_step, heads=size.heads, layers=size.layers), donate_argnames="state")
    lowered = step.lower(state, input_ids, labels, key)
    trace_seconds, lap = time.perf_counter() - lap, time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - lap

    step_seconds, cpu_seconds, losses = [], [], []
    for _ in range(args.steps):
        lap, cpu_lap = time.perf_counter(), time.process_time()
        state, loss, _ = jax.block_until_ready(compiled(state, input_ids, labels, key))
        step_seconds.append(round(time.perf_counter() - lap, 4))
        cpu_seconds.append(round(time.process_time() - cpu_lap, 4))  # of all threads: steadier on a shared machine
        losses.append(round(float(loss), 5))
    print(json.dumps({
        "jax": jax.__version__, "backend": "plugin" if args.plugin else "jaxlib", "size": args.size,
        "batch_size": args.batch_size, "max_length": args.max_length, "prng": args.prng,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state["params"])),
        "trace_seconds": round(trace_seconds, 2), "compile_seconds": round(compile_seconds, 2),
        "step_seconds": step_seconds, "median_step_seconds": statistics.median(step_seconds),
        "cpu_seconds": cpu_seconds, "losses": losses,
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }))


if __name__ == "__main__":
    main()

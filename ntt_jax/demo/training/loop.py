"""One training loop for both models: AdamW with a moving average of the weights, many steps per dispatch, resumable.

A step is a pure function of the state, the data and the step's number, so a run is repeated by its seed and goes on
from a checkpoint as if it had never stopped.
"""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from PIL import Image, ImageDraw

Parameters = Any
# (parameters, data, key, progress in [0, 1]) -> loss, metrics
LossFunction = Callable[[Parameters, Any, Array, Array], tuple[Array, dict[str, Array]]]
# parameters -> metrics by name
Evaluation = Callable[[Parameters], dict[str, float]]
# parts of a model's arrays -> the model
Build = Callable[..., Any]

_UNKNOWN_STEPS = 2**30


@dataclasses.dataclass(frozen=True)
class Schedule:
    """steps: in all, or 0 for as many as fit into `minutes` from `started` (`time.monotonic`). learning_rate: its peak,
    after `warmup` steps; then a cosine to zero. head_rate: what it is multiplied by for the "head", which starts anew.
    average: decay of the weight average. steps_per_call: steps in one dispatch. save_seconds: time between checkpoints,
    each with an evaluation."""

    learning_rate: float
    steps: int = 0
    minutes: float = 0.0
    started: float = 0.0
    warmup: int = 200
    weight_decay: float = 0.02
    clip: float = 1.0
    average: float = 0.998
    head_rate: float = 1.0
    steps_per_call: int = 50
    save_seconds: float = 60.0


def builder(model: nnx.Module, dtype: DTypeLike = jnp.float32) -> Build:
    """A function that makes models like `model`, of type `dtype`, from parts of its arrays in float32."""
    kind: Any = type(model)
    config: Any = model.config  # type: ignore[attr-defined]
    graph, like = nnx.split(nnx.eval_shape(lambda: kind(config, dtype=dtype, rngs=nnx.Rngs(0))))

    def build(*parts: nnx.State) -> nnx.Module:
        arrays = jax.tree.map(lambda x, y: x.astype(y.dtype), nnx.merge_state(*parts), like)
        return nnx.merge(graph, arrays)

    return build


def train(
    parameters: Parameters,
    loss: LossFunction,
    shapes: Any,
    data: Callable[[], Any],
    schedule: Schedule,
    *,
    seed: int,
    out: Path,
    checkpoints: Path,
    evaluate: Evaluation,
    export: Callable[[Parameters], nnx.State],
) -> Parameters:
    """Train and return the averaged parameters.

    Args:
      parameters: pytrees of arrays to start from, "model" and "head" (what only training needs). loss: see
        `LossFunction`. shapes: what is handed to `loss`, as `jax.ShapeDtypeStruct`. data: called once, after
        compilation, for the arrays themselves.
      out: gets `log.jsonl`, `curves.png` and `weights.npz` (float16, the part that `export` returns), renewed at every
        checkpoint. checkpoints: folder of orbax checkpoints; a run found there goes on.
      evaluate: metrics of averaged parameters, logged at every checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    optimiser = optax.chain(
        optax.clip_by_global_norm(schedule.clip),
        optax.scale_by_adam(b1=0.9, b2=0.98),
        optax.add_decayed_weights(schedule.weight_decay, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
    )
    steps = jnp.asarray(schedule.steps or _UNKNOWN_STEPS, jnp.int32)
    state = {"step": jnp.zeros((), jnp.int32), "steps": steps, "parameters": parameters, "average": parameters}
    state["optimiser"] = optimiser.init(parameters)
    manager = ocp.CheckpointManager(checkpoints.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1))
    if manager.latest_step() is not None:
        state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
        if schedule.steps:
            state = {**state, "steps": steps}  # may be changed between two starts; the schedule follows it
        print(f"going on from step {int(state['step'])} of {checkpoints}", flush=True)

    def one_step(data: Any, state: dict[str, Any], _: None) -> tuple[dict[str, Any], dict[str, Array]]:
        step = state["step"]
        key = jax.random.fold_in(jax.random.key(seed), step)
        progress = step / state["steps"]
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state["parameters"], data, key, progress)
        updates, moments = optimiser.update(gradient, state["optimiser"], state["parameters"])
        rate = schedule.learning_rate * jnp.minimum(1.0, (step + 1) / schedule.warmup)
        rate = rate * 0.5 * (1 + jnp.cos(math.pi * progress))
        changes: Any = updates
        rates = {"model": rate, "head": rate * schedule.head_rate}
        new = {
            name: optax.tree.add_scale(part, -rates[name], changes[name]) for name, part in state["parameters"].items()
        }
        decay = jnp.minimum(schedule.average, (step + 1) / (step + 10))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state["average"], new)
        metrics = metrics | {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
        done = {"step": step + 1, "steps": state["steps"]}
        return done | {"parameters": new, "average": average, "optimiser": moments}, metrics

    @functools.partial(jax.jit, donate_argnums=0)
    def several_steps(state: dict[str, Any], data: Any) -> tuple[dict[str, Any], dict[str, Array]]:
        state, metrics = jax.lax.scan(functools.partial(one_step, data), state, length=schedule.steps_per_call)
        return state, jax.tree.map(jnp.mean, metrics)

    # Compilation takes a minute on a GPU: both programs at once, and while the data is still being made.
    with ThreadPoolExecutor() as pool:
        before = pool.submit(evaluate, state["average"])
        step_program = several_steps.lower(state, shapes).compile()
        print(f"compiled after {time.monotonic() - schedule.started:.0f} s; {_line(before.result())}", flush=True)
    arrays = data()
    print(f"data after {time.monotonic() - schedule.started:.0f} s", flush=True)

    state = jax.tree.map(jnp.copy, state)  # parameters and average must not share a donated buffer
    log = out / "log.jsonl"
    began = saved = time.monotonic()
    step = first = int(state["step"])
    total = schedule.steps or _UNKNOWN_STEPS
    while step < total:
        called = time.monotonic()
        state, metrics = step_program(state, arrays)
        values = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss is {values['loss']} after step {step}: {values}")
        step += schedule.steps_per_call
        now = time.monotonic()
        if not schedule.steps:
            # Evaluations take time too: what counts is the mean speed, once there is one.
            calls = (step - first) // schedule.steps_per_call
            pace = (now - began) / calls if calls > 20 else now - called
            left = schedule.started + 60 * schedule.minutes - now
            total = step + max(0, int(left / pace)) * schedule.steps_per_call
            state["steps"] = jnp.asarray(total, jnp.int32)
        seconds = round(now - schedule.started, 1)
        _append(log, {"step": step, "seconds": seconds, **values})
        if now - saved > schedule.save_seconds or step >= total:
            rate = (step - first) / (now - began)
            print(f"step {step} of {total}, {seconds} s, {rate:.1f} steps/s: {_line(values)}", flush=True)
            save_weights(out / "weights.npz", export(state["average"]))
            quality = evaluate(state["average"])
            print(f"  evaluation: {_line(quality)}", flush=True)
            _append(log, {"step": step, "seconds": seconds, **quality})
            manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()  # the next call donates the very buffers being written
            draw_curves(log, out / "curves.png")
            saved = time.monotonic()
    manager.close()
    return state["average"]


def save_weights(path: Path, parameters: Any) -> None:
    """Write arrays of an NNX state as float16 under `/`-joined names. In one move: a killed run leaves a whole file."""
    flat = {"/".join(map(str, names)): leaf for names, leaf in nnx.to_flat_state(parameters)}
    arrays = {name: np.asarray(leaf[...], np.float16) for name, leaf in flat.items()}
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_weights(path: Path, model: nnx.Module) -> nnx.Module:
    """The model with the arrays of `save_weights`, as float32. Every array of the model must be there, and no other.

    `no_mem_embed`, which training does not touch, may be missing; it is 0 then.
    """
    graph, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    with np.load(path, allow_pickle=False) as arrays:
        names = {"/".join(map(str, parts)): (parts, leaf) for parts, leaf in flat}
        if different := sorted((set(names) ^ set(arrays.files)) - ({"no_mem_embed"} & set(names))):
            raise ValueError(f"{path}: other arrays than the model's: {different[:4]}")
        new = [
            (parts, leaf.replace(jnp.asarray(arrays[name] if name in arrays else np.zeros(leaf.shape), jnp.float32)))
            for name, (parts, leaf) in names.items()
        ]
    return nnx.merge(graph, nnx.from_flat_state(new))


def draw_curves(log: Path, path: Path) -> None:
    """One panel per logged quantity over the steps, as a small PNG."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in log.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name not in ("step", "seconds"):
                series.setdefault(name, []).append((row["step"], value))
    width, height, columns = 300, 150, 4
    rows = -(-len(series) // columns)
    picture = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(picture)
    for index, (name, points) in enumerate(series.items()):
        left, top = index % columns * width, index // columns * height
        values = [value for _, value in points]
        low, high, last = min(values), max(values), max(step for step, _ in points)
        span = (high - low) or 1.0
        box = (left + 8, top + 22, left + width - 8, top + height - 8)
        draw.rectangle(box, outline=(200, 200, 200))
        line = [
            (box[0] + step / last * (box[2] - box[0]), box[3] - (value - low) / span * (box[3] - box[1]))
            for step, value in points
        ]
        draw.line(line, fill=(20, 80, 200)) if len(line) > 1 else draw.point(line, fill=(20, 80, 200))
        draw.text((left + 8, top + 6), f"{name}: {values[-1]:.4g}  [{low:.4g}, {high:.4g}]", fill="black")
    picture.save(path)


def _append(path: Path, row: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def _line(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())

"""Train one of the two small models that the package ships. See docs/small_models.md.

python scripts/train_small.py --model sam2   --out out/sam2
python scripts/train_small.py --model dinov2 --out out/dinov2
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Defaults: for both models at once on two CPU cores, about 1.8 hours. On a GPU take larger batches.
_STEPS = {"sam2": 2800, "dinov2": 1800}
_BATCH = {"sam2": 6, "dinov2": 1}
_RATE = {"sam2": 6e-4, "dinov2": 1e-3}
_HEAD_RATE = {"sam2": 1.0, "dinov2": 4.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sam2", "dinov2"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, the log and the curves")
    parser.add_argument("--cache", type=Path, help="folder for the made scenes, shared by both models (OUT/../scenes)")
    parser.add_argument("--checkpoints", type=Path, help="folder for the checkpoints to go on from (OUT/checkpoints)")
    parser.add_argument("--init", type=Path, help="weights.npz of an earlier run to start from (default: random)")
    parser.add_argument(
        "--start", type=float, default=0.0, help="SAM 2 with --init: how far the losses are, 0.6 to go on"
    )
    parser.add_argument("--freeze-trunk", action="store_true", help="SAM 2 with --init: train all but Hiera")
    parser.add_argument(
        "--freeze-blocks", type=int, default=0, help="DINOv2 with --init: keep the first blocks as they are"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help=f"in all (default: {_STEPS})")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="instead of --steps: as many as fit, compilation included"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the kernels in a step (their master copy and the averages are float32); bfloat16 is for GPUs",
    )
    parser.add_argument("--batch", type=int, help=f"scenes (DINOv2: groups of scenes) per step (default: {_BATCH})")
    parser.add_argument("--points", type=int, default=8, help="prompts per scene (SAM 2)")
    parser.add_argument("--learning-rate", type=float, help=f"its peak (default: {_RATE})")
    parser.add_argument("--steps-per-call", type=int, default=25, help="steps in one dispatch")
    parser.add_argument("--save-seconds", type=float, default=600.0, help="time between checkpoints and evaluations")
    parser.add_argument("--scenes", type=int, default=6000, help="made training scenes")
    parser.add_argument(
        "--novel-scenes", type=int, default=160, help="made scenes of novel classes, for evaluation only"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that make scenes (default: all cores)")
    args = parser.parse_args()

    started = time.monotonic()
    from ntt_jax.demo.training.data import array_shapes, novel_arrays, training_arrays, training_classes

    cache = args.cache or args.out.parent / "scenes"
    novel = novel_arrays(cache, args.novel_scenes, args.seed, args.workers)
    pool = ThreadPoolExecutor()
    made = pool.submit(training_arrays, cache, args.scenes, args.seed, args.workers)

    import jax
    from flax import nnx

    from ntt_jax.config import to_dict
    from ntt_jax.demo.training import dinov2, sam2
    from ntt_jax.demo.training.loop import Schedule, builder, load_weights, train

    print(f"devices: {jax.devices()}", flush=True)
    training = sam2 if args.model == "sam2" else dinov2
    model: Any = training.new_model(args.seed)
    if args.init:
        model = load_weights(args.init, model)
    config, batch = model.config, args.batch or _BATCH[args.model]
    build, exact = builder(model, args.dtype), builder(model)
    fixed: dict[str, Any] = {}
    if args.model == "sam2":
        names = ("images", "instances")
        parameters, rest = sam2.initialise(model, args.seed, args.freeze_trunk)
        loss = sam2.make_loss(build, rest, batch, args.points, args.start)
        evaluate = sam2.make_evaluation(exact, rest, {name: novel[name][:96] for name in names})
    else:
        names = ("images", "instances", "labels", "crops", "crop_grids", "crop_labels")
        parameters, rest = dinov2.initialise(model, args.seed, args.freeze_blocks)
        loss = dinov2.make_loss(build, rest, batch)
        evaluate = dinov2.make_evaluation(exact, rest, {name: novel[name][:] for name in names})
        fixed = {"classes": jax.tree.map(jax.device_put, dinov2.class_table(training_classes()))}
    count = sum(x.size for x in jax.tree.leaves(parameters["model"]))
    print(f"{config.name}: {count} parameters to train", flush=True)
    shapes = {name: jax.ShapeDtypeStruct(*array_shapes(args.scenes)[name]) for name in names}
    shapes |= jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fixed)
    schedule = Schedule(
        steps=0 if args.minutes else args.steps or _STEPS[args.model],
        minutes=args.minutes,
        started=started,
        learning_rate=args.learning_rate or _RATE[args.model],
        head_rate=_HEAD_RATE[args.model],
        steps_per_call=args.steps_per_call,
        save_seconds=args.save_seconds,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
    train(
        parameters,
        loss,
        shapes,
        lambda: {name: jax.device_put(made.result()[name][:]) for name in names} | fixed,
        schedule,
        seed=args.seed,
        out=args.out,
        checkpoints=args.checkpoints or args.out / "checkpoints",
        evaluate=evaluate,
        export=lambda trained: nnx.merge_state(trained["model"], rest),
    )


if __name__ == "__main__":
    main()

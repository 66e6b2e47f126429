# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The training scripts on one GPU: how fast they are, and what Fashion-MNIST's model learns in three minutes.

    python scripts/benchmark/gpu_training.py speed outputs/gpu/training.json
    python scripts/benchmark/gpu_training.py fashion_mnist outputs/gpu/fashion_mnist.json --data data/fashion-mnist

`speed` starts both scripts for 100 steps in bf16, fp16 and bf16 with `torch.compile`, on generated JPEG files.
`fashion_mnist` trains by the recipe of that name, in the last two thirds of `--seconds`, and its teacher in the first,
for as many epochs as fit at the speed of short runs before; both output folders lie in a .tar.gz beside the JSON, for
`scripts/release_fashion_mnist.py`.
`--tiny` is for trying this on a CPU.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from report import read_json

from cait_hf.files import write_json


SCRIPTS = Path(__file__).resolve().parents[1]
TRAINER, LOOP = "run_image_classification", "run_image_classification_no_trainer"
XXS24 = "hidden_size=192,num_hidden_layers=24,num_attention_heads=4,intermediate_size=768"
TINY = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,image_size=32,patch_size=8"
# the accelerator scales gradients in fp16; compiling takes longest, so it is last
RUNS = [
    (script, name, flags)
    for name, flags in (("bf16", "--bf16"), ("fp16", "--fp16"), ("bf16, compiled", "--bf16 --torch_compile"))
    for script in (TRAINER, LOOP)
]
# fp16 needs a GPU, and compiling a C++ compiler
TINY_RUNS = [(TRAINER, "bf16", "--bf16"), (LOOP, "bf16, compiled", "--bf16 --torch_compile_backend eager")]
METRICS = ("train_loss", "train_images_per_second", "train_data_wait_fraction", "train_peak_memory_mib")
METRICS += ("train_first_step_seconds",)
START_SECONDS = 20  # of a script, until its second step


def main(argv: list[str] | None = None):
    """Run the script; it exits with 1 if a training failed."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        ok = {"speed": speed, "fashion_mnist": fashion_mnist}[args.what](args, Path(folder))
    sys.exit(not ok)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "fashion_mnist"))
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--data", type=Path, help="fashion_mnist: the folder that prepare_fashion_mnist.py wrote")
    parser.add_argument("--seconds", type=float, default=150, help="of training, fashion_mnist (%(default)s)")
    workers = max(1, (os.cpu_count() or 2) - 2)
    parser.add_argument("--workers", type=int, default=workers, help="processes that load images (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="speed: of each training (%(default)s)")
    parser.add_argument("--compiled_only", action="store_true", help="speed: of the compiled ones, to fill caches")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args(argv)


def train(script: str, output_dir: Path, flags: list) -> dict:
    """Start one of the training scripts; the metrics it wrote, or {"failure": the last line it printed}."""
    command = [sys.executable, SCRIPTS / f"{script}.py", *flags, "--output_dir", output_dir, "--disable_tqdm", "true"]
    print("$", *command[1:], flush=True)
    finished = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    print(finished.stdout, flush=True)
    if finished.returncode:
        lines = finished.stdout.strip().splitlines()
        return {"failure": lines[-1] if lines else f"exit status {finished.returncode}"}
    return {"failure": None, **read_json(output_dir / "all_results.json")}


# 100 steps


def speed(args: argparse.Namespace, folder: Path) -> bool:
    from data_loading import write_images

    images = folder / "images"
    images.mkdir()
    write_images(images, 8 if args.tiny else 1024)
    size, batch, steps = (32, 4, 2) if args.tiny else (224, 128, args.steps)
    overrides = TINY if args.tiny else f"{XXS24},image_size={size}"
    flags = f"--train_dir {images} --do_train --config_overrides {overrides} --per_device_train_batch_size {batch}"
    flags += f" --max_steps {steps} --dataloader_num_workers {0 if args.tiny else args.workers} --save_strategy no"
    flags += f" --logging_steps {steps} --dataloader_drop_last true"
    flags += " --use_cpu" if args.tiny else " --dataloader_persistent_workers true"
    result = {"model": "tiny" if args.tiny else "XXS24-224", "batch_size": batch, "steps": steps, "runs": []}
    for index, (script, name, precision) in enumerate(TINY_RUNS if args.tiny else RUNS):
        if args.compiled_only and "compile" not in precision:
            continue
        metrics = train(script, folder / str(index), [*flags.split(), *precision.split()])
        run = {"script": script, "precision": name, "failure": metrics["failure"]}
        run |= {key: metrics[key] for key in METRICS if key in metrics}
        result["runs"].append(run)
        print(f"{script}, {name}: {run['failure'] or f'{run[METRICS[1]]:.0f} images/s'}", flush=True)
        write_json(args.output, result, indent=1)
    return not any(run["failure"] for run in result["runs"])


# Three minutes


def fashion_mnist(args: argparse.Namespace, folder: Path) -> bool:
    flags = ["--config_name", SCRIPTS / "fashion_mnist_teacher"]
    teacher = as_long_as_fits("fashion_mnist_teacher", flags, args, args.seconds / 3, folder)
    metrics = {"teacher": teacher, "failure": teacher["failure"]}
    if teacher["failure"] is None:
        flags = ["--teacher_model_name_or_path", folder / "fashion_mnist_teacher" / "ema"]
        metrics |= as_long_as_fits("fashion_mnist", flags, args, args.seconds * 2 / 3, folder)
    write_json(args.output, metrics, indent=1)
    if metrics["failure"]:
        return False
    with tarfile.open(args.output.with_suffix(".tar.gz"), "w:gz") as archive:
        for path in sorted(folder.glob("fashion_mnist*/**/*")):
            if path.is_file() and not any(part.startswith("checkpoint-") for part in path.parts):
                archive.add(path, path.relative_to(folder))
    print(f"{metrics['epochs']} epochs, top-1 {metrics['eval_ema_top1']:.2%} of the validation split", flush=True)
    return True


def as_long_as_fits(recipe: str, flags: list, args: argparse.Namespace, seconds: float, folder: Path) -> dict:
    """Train by a recipe for as many epochs as fit at the speed of a short run before; the metrics, as of [`train`]."""
    start = time.perf_counter()
    flags = [recipe, *flags, "--dataset_name", args.data, "--torch_compile", "false"]
    flags += ["--dataloader_num_workers", 0 if args.tiny else min(args.workers, 4)]
    if args.tiny:
        flags += ["--use_cpu", "--max_train_samples", "128", "--max_eval_samples", "20"]
    short = ["--do_eval", "false", "--save_strategy", "no", "--logging_steps", "1000"]
    metrics = train(TRAINER, folder / f"short_{recipe}", [*flags, *short, "--max_steps", 1 if args.tiny else 200])
    epochs = 1
    if metrics["failure"] is None:
        if not args.tiny:
            left = seconds - (time.perf_counter() - start) - START_SECONDS
            # saving and starting workers at the end of each epoch take their part
            epochs = max(1, int(0.8 * left * metrics["train_images_per_second"] / 55_000))
        metrics = train(TRAINER, folder / recipe, [*flags, "--num_train_epochs", epochs])
    return {"epochs": epochs, "seconds": round(time.perf_counter() - start, 1), **metrics}


if __name__ == "__main__":
    main()

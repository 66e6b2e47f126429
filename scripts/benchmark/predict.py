# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""How many images a second `cait-hf predict` takes, beside a pipeline of Transformers and the loop of timm.

    python scripts/benchmark/predict.py --rounds 1 --output outputs/benchmark/predict.json

From JPEG files of 500 x 375 pixels to the five best classes of each, with random weights of XXS24 at 224 pixels that
all baselines share. The baselines take turns; each run of this script adds rounds to those in the file, and ratios
are taken within a round. Needs timm and torchvision.

- cait-hf: the command's engine with its defaults, in float32 and in bfloat16, the table in Parquet included.
- pipeline: `pipeline("image-classification", batch_size=8)` on the same files.
- timm: the loop of timm's `inference.py`, with its dataset and loader; --search finds its best batch and workers.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from baselines import build_model, cait_config, random_state
from data_loading import write_images
from report import Work

from cait_hf import CaitForImageClassification, CaitImageProcessorPil
from cait_hf.files import read_json, write_json
from cait_hf.image_datasets import load_folder
from cait_hf.prediction.inputs import files_of, from_files
from cait_hf.prediction.predictor import Predictor
from cait_hf.prediction.run import Settings, predict


def main(argv: list[str] | None = None) -> dict:
    """Measure, print and return images a second of each baseline, and ratios with their spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="to add (default: %(default)s)")
    parser.add_argument("--model", default="XXS24", help="without its resolution (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=Settings.batch_size)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--timm_batch_size", type=int, default=8)
    parser.add_argument("--timm_num_workers", type=int, default=1)
    parser.add_argument("--baselines", default="cait-hf,cait-hf bfloat16,pipeline,timm", help="(%(default)s)")
    parser.add_argument("--search", action="store_true", help="only try batches and workers of cait-hf and timm")
    parser.add_argument("--output", type=Path, help="JSON with all rounds")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        (args.folder / "images").mkdir()
        write_images(args.folder / "images", args.images)
        model = write_model(args)
        if args.search:
            return search(args, model)
        names = args.baselines.split(",")
        before = read_json(args.output) if args.output and args.output.exists() else {}
        if before and before["settings"] != settings_of(args):
            sys.exit(f"error: --output is {args.output}, but its rounds are of other settings: {before['settings']}")
        seconds = before.get("seconds", {})
        runs = {name: make_run(name, args, model) for name in names}
        for number in range(args.rounds):
            for name in names if number % 2 == 0 else reversed(names):
                start = time.perf_counter()
                runs[name]()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    result = summarize(args, seconds)
    print(json.dumps({name: value for name, value in result.items() if name != "seconds"}, indent=1))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, result, indent=1)
    return result


def summarize(args: argparse.Namespace, seconds: dict[str, list[float]]) -> dict:
    speeds = {name: args.images / statistics.median(values) for name, values in seconds.items()}
    ratios = {}
    for ours in (name for name in seconds if name.startswith("cait-hf")):
        for theirs in (name for name in seconds if not name.startswith("cait-hf")):
            values = [other / own for own, other in zip(seconds[ours], seconds[theirs])]
            ratios[f"{ours} / {theirs}"] = [statistics.median(values), min(values), max(values)]
    return {"settings": settings_of(args), "images_per_second": speeds, "ratios": ratios, "seconds": seconds}


def settings_of(args: argparse.Namespace) -> dict[str, str]:
    settings = {name: str(value) for name, value in vars(args).items() if name not in ("folder", "output", "rounds")}
    return settings | {"torch": torch.__version__, "threads": str(torch.get_num_threads())}


def work_of(args: argparse.Namespace) -> Work:
    return Work("inference", args.model, args.image_size, args.batch_size)


def write_model(args: argparse.Namespace) -> CaitForImageClassification:
    """The model, and in the folder `model` what the pipeline loads."""
    work = work_of(args)
    model = CaitForImageClassification(cait_config(work)).eval()
    model.load_state_dict(random_state(work))
    model.save_pretrained(args.folder / "model")
    processor = CaitImageProcessorPil(size=args.image_size, crop_size=args.image_size)
    processor.save_pretrained(args.folder / "model")
    return model


def make_run(name: str, args: argparse.Namespace, model: CaitForImageClassification) -> Callable[[], None]:
    if name == "pipeline":
        return pipeline_run(args)
    if name == "timm":
        return timm_run(args, model, args.timm_batch_size, args.timm_num_workers)
    return our_run(args, getattr(torch, name.partition(" ")[2] or "float32"), args.batch_size, args.num_workers)


def our_run(args: argparse.Namespace, dtype: torch.dtype, batch_size: int, num_workers: int) -> Callable[[], None]:
    model = CaitForImageClassification.from_pretrained(args.folder / "model")
    processor = CaitImageProcessorPil.from_pretrained(args.folder / "model")
    predictor = Predictor(model, dtype=dtype)

    def run() -> None:
        inputs = from_files(files_of(str(args.folder / "images")))
        settings = Settings(batch_size=batch_size, num_workers=num_workers)
        with tempfile.TemporaryDirectory(dir=args.folder) as output_dir:
            summary = predict(inputs, predictor, processor, Path(output_dir), settings, model_name="")
        assert summary.counts.images == args.images and summary.counts.corrupt == 0

    return run


def pipeline_run(args: argparse.Namespace) -> Callable[[], None]:
    from transformers import pipeline
    from transformers.pipelines.pt_utils import KeyDataset

    classify = pipeline("image-classification", str(args.folder / "model"), device="cpu")

    images = KeyDataset(load_folder(str(args.folder / "images"), "images", labeled=False), "image")

    def run() -> None:
        assert sum(len(best) == 5 for best in classify(images, batch_size=8, top_k=5)) == args.images

    return run


def timm_run(args: argparse.Namespace, model: torch.nn.Module, batch_size: int, num_workers: int) -> Callable:
    from timm.data import create_dataset, create_loader, resolve_data_config

    network = build_model("timm", work_of(args), dict(model.state_dict())).eval()
    config = {**resolve_data_config({}, model=network), "input_size": (3, args.image_size, args.image_size)}
    loader = create_loader(
        create_dataset("", root=str(args.folder / "images")),
        batch_size=batch_size,
        use_prefetcher=False,
        num_workers=num_workers,
        device=torch.device("cpu"),
        **{name: config[name] for name in ("input_size", "interpolation", "mean", "std", "crop_pct")},
    )

    @torch.inference_mode()
    def run() -> None:
        rows = []
        for images, _ in loader:
            best = network(images).softmax(-1).topk(5)
            rows += zip(best.values.tolist(), best.indices.tolist())
        assert len(rows) == args.images

    return run


def search(args: argparse.Namespace, model: CaitForImageClassification) -> dict:
    found = {}
    for batch_size in (8, 16, 32):
        for num_workers in (0, 1, 2):
            for name, run in {
                "cait-hf": our_run(args, torch.float32, batch_size, num_workers),
                "cait-hf bfloat16": our_run(args, torch.bfloat16, batch_size, num_workers),
                "timm": timm_run(args, model, batch_size, num_workers),
            }.items():
                if name not in args.baselines.split(","):
                    continue
                start = time.perf_counter()
                run()
                found[f"{name}, batch {batch_size}, workers {num_workers}"] = args.images / (
                    time.perf_counter() - start
                )
                print(list(found.items())[-1], flush=True)
    return found


if __name__ == "__main__":
    main()

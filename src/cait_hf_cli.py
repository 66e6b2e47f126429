# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The command `cait-hf`: list, classify, predict, app, convert, verify, push, info, env, train, evaluate, export.

Results go to the standard output, errors and progress bars to the standard error.
"""

# Beside the package, not in it: `import cait_hf` registers its classes with Transformers' Auto classes, which take no
# names of classes, so it imports torch and costs seconds. Help, --version and bad flags need the standard library
# alone; each subcommand imports what it needs when it runs. `MODULES` have their flags in a module of their name.

import argparse
import json
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


DEFAULT_MODEL = "XXS24_224"
MODEL_HELP = "Folder or repository of a CaiT, ours or timm's, an official name such as XXS24_224, or fashion_mnist"
ENV_PACKAGES = ("torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "huggingface-hub", "triton")
MODULES = {
    "train": "Fine-tune, train or evaluate an image classifier, by a recipe: cait-hf train finetune --help",
    "evaluate": "Accuracy on ImageNet-1k, -Real or -V2: cait-hf evaluate --help",
    "export": "Export a CaiT classifier to ONNX, torch.export or OpenVINO: cait-hf export --help",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or [""]
    args = None if name in MODULES else parse_args(argv)
    if argv is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up when terminated, too
    if args is None:
        code = import_module(f"cait_hf.commands.{name}").main(flags)
        return code if isinstance(code, int) else 0  # training returns metrics
    from cait_hf.command_line import run_command

    return run_command(args.command, args)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cait-hf",
        description="CaiT models for Hugging Face Transformers.\n\nexample:\n  cait-hf classify image.jpg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="Show the version and exit.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def subcommand(
        name: str, command: Callable[[argparse.Namespace], int | None], text: str, example: str
    ) -> argparse.ArgumentParser:
        subparser = subparsers.add_parser(
            name,
            help=text,
            description=f"{text}\n\nexample:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.add_argument("--debug", action="store_true", help="Show where an error comes from.")
        subparser.set_defaults(command=command)
        return subparser

    subcommand("list", list_checkpoints, "The ten official checkpoints, their sizes and accuracies.", "cait-hf list")

    text = (
        "Classify images. A file that cannot be read is reported, the others are classified; the exit code is then 1."
    )
    example = "cait-hf classify cat.jpg holidays/ 'more/*.png' --model XXS24_224 --top_k 3"
    classifying = subcommand("classify", classify, text, example)
    classifying.add_argument(
        "images", nargs="+", metavar="IMAGE", help="File, URL, folder (and all below) or pattern."
    )
    classifying.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: %(default)s).")
    classifying.add_argument("--top_k", type=positive, default=5, help="Classes to show (default: %(default)s).")
    classifying.add_argument("--batch_size", type=positive, default=8, help="Images at a time (default: %(default)s).")
    classifying.add_argument("--json", action="store_true", help="Print a JSON list.")

    text = (
        "Predict on any number of images and write a table: labels and scores, embeddings, logits. The same command "
        "resumes after an interruption. The exit code is 1 if images are corrupt; the table says which."
    )
    example = "cait-hf predict holidays/ 'more/*.png' --model XXS24_224 --output_dir predictions"
    add_predict_arguments(subcommand("predict", predict, text, example))

    text = "Serve a page on this machine to look with: classes, attention, two checkpoints. Or write it as a Space."
    looking = subcommand("app", app, text, "cait-hf app fashion_mnist XXS24_224 --port 7860")
    looking.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help=f"Checkpoints to choose from. {MODEL_HELP} (default: fashion_mnist and the official ones).",
    )
    looking.add_argument("--host", help="Address to listen on; 0.0.0.0: all (default: 127.0.0.1).")
    looking.add_argument("--port", type=positive, help="Default: the first free one from 7860 on.")
    looking.add_argument("--space", metavar="OWNER/NAME", help="Write the page as this Hugging Face Space instead.")
    looking.add_argument("--output_dir", type=Path, help="Folder to write the Space to.")
    looking.add_argument("--overwrite", action="store_true", help="Replace an output folder that is not empty.")
    looking.add_argument("--push", action="store_true", help="Upload the Space to the Hub.")
    looking.add_argument("--private", action="store_true", help="Create the Space as a private one.")

    text = "Convert an official checkpoint, or timm's copy of one, to a folder that from_pretrained loads."
    example = "cait-hf convert --source XXS24_224.pth --output_dir cait-xxs24-224 --verify"
    add_convert_arguments(subcommand("convert", convert, text, example))

    text = "Compare a model with timm's CaiT on random images with the same weights (needs timm)."
    verifying = subcommand("verify", verify, text, "cait-hf verify cait-xxs24-224")
    verifying.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}.")

    text = "Upload a converted or trained model to the Hub, in one commit, or none where nothing has changed."
    pushing = subcommand("push", push, text, "cait-hf push cait-xxs24-224 me/cait-xxs24-224 --private")
    pushing.add_argument(
        "folder", metavar="FOLDER", help="What `cait-hf convert` or a training wrote, or fashion_mnist."
    )
    pushing.add_argument("repo", metavar="REPO", help="Repository, OWNER/NAME.")
    add_push_arguments(pushing)
    add_remote_code_argument(pushing)

    text = "Parameters, MACs, input size and memory of a model; of an official one without its weights."
    subcommand("info", info, text, "cait-hf info S24_224").add_argument(
        "model", metavar="MODEL", help=f"{MODEL_HELP}."
    )

    text = "Versions, hardware, and what computes the attention here and why: for a report of a bug."
    subcommand("env", env, text, "cait-hf env")

    for name, text in MODULES.items():
        subparsers.add_parser(name, help=text)
    return parser.parse_args(argv)


class Version(argparse.Action):
    """Print the installed version; argparse's own action would look it up for every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        print(f"cait-hf {metadata.version('cait-hf')}")
        parser.exit()


def positive(text: str) -> int:
    """An integer > 0 of the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"it is {text!r}, but it must be an integer > 0.")
    return int(text)


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="File, URL, folder (and all below) or pattern.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: %(default)s).")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder to write to, or to finish.")
    table = parser.add_argument_group("the table")
    table.add_argument("--format", choices=("parquet", "csv", "jsonl"), default="parquet", help="default: %(default)s")
    table.add_argument("--top_k", type=positive, default=5, help="Classes of each image (default: %(default)s).")
    table.add_argument("--embeddings", action="store_true", help="Add a column of them.")
    table.add_argument(
        "--pool",
        choices=("class", "mean"),
        help="Embeddings: class token or mean of the patches, after the last LayerNorm (default: class).",
    )
    table.add_argument("--embedding_dtype", choices=("float32", "float16"), help="(default: float32)")
    table.add_argument("--logits", action="store_true", help="Add a column of them.")
    table.add_argument("--shard_size", type=positive, default=2048, help="Images in a file (default: %(default)s).")
    table.add_argument(
        "--corrupt_images",
        choices=("record", "raise"),
        default="record",
        help="An image that cannot be decoded is a row with an error, or ends the command (default: %(default)s).",
    )
    data = parser.add_argument_group("a dataset, in the place of INPUT")
    data.add_argument(
        "--dataset_name",
        help="Hub id or folder for `load_dataset`, folder of `Dataset.save_to_disk`, or a format of `load_dataset` "
        "such as parquet, json, csv or webdataset, whose files --data_files names.",
    )
    data.add_argument("--dataset_config_name", help="Configuration of that dataset.")
    data.add_argument("--data_files", help="Pattern of its files, such as 'data/*.tar'.")
    data.add_argument("--split", help="Its split (default: test; with --data_files: train, as `datasets` calls it).")
    data.add_argument("--image_column_name", help="Column of the images. Without it: found by its type.")
    data.add_argument(
        "--streaming",
        action="store_true",
        help="Read it without storing it; several processes share its files, one of which is read by one process.",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: an accelerator if there is one).")
    how.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the model (default: bfloat16 on GPUs that have it and CPUs with AMX, else float32)",
    )
    how.add_argument("--compile", action="store_true", help="Compile the model by torch.compile.")
    how.add_argument("--batch_size", type=positive, default=32, help="Images at a time (default: %(default)s).")
    how.add_argument(
        "--num_workers",
        type=not_negative,
        help="Processes that decode images, for each process that predicts (default: one a CPU core, at most 8; where "
        "the model is on the CPU half of them, and on fewer than 4 cores none: it decodes in threads, in turn).",
    )


def not_negative(text: str) -> int:
    """An integer >= 0 of the command line."""
    return 0 if text == "0" else positive(text)


# Options that the scripts in conversion/ have as well


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help="File, official name, timm repository or timm folder.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder to write.")
    parser.add_argument("--ema", action="store_true", help="Take the EMA weights of a checkpoint of a training.")
    parser.add_argument("--push_to_hub", metavar="REPO", help="Upload the folder to this repository on the Hub.")
    add_folder_arguments(parser)
    add_push_arguments(parser)


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="Replace an output folder that is not empty.")
    parser.add_argument("--verify", action="store_true", help="Compare the logits with timm's before writing.")
    add_remote_code_argument(parser)


def add_remote_code_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--remote_code",
        action="store_true",
        help="Add the modeling files, for trust_remote_code=True where this package is not installed.",
    )


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--private", action="store_true", help="Create the repository as a private one.")
    parser.add_argument("--revision", metavar="BRANCH", help="Branch to push to, created if need be (default: main).")
    parser.add_argument("--tag", help="Name to give the pushed revision.")


# The subcommands


def list_checkpoints(args: argparse.Namespace) -> None:
    from cait_hf.checkpoints import CHECKPOINTS, SECOND_HAND

    print("                          MACs           file       top-1 in %          top-5 in %")
    print("checkpoint    parameters  in 1e9         in MB      published  by timm  by timm")
    for checkpoint in CHECKPOINTS:
        published = "-" if checkpoint.published_top1 is None else f"{checkpoint.published_top1:.1f}"
        published += "*" if checkpoint.published_top1_source == SECOND_HAND else ""
        top1, top5 = ("-", "-")
        if checkpoint.timm_accuracy is not None:
            top1, top5 = (f"{accuracy:.3f}" for accuracy in checkpoint.timm_accuracy.imagenet)
        print(
            f"{checkpoint.official_name:<12}  {checkpoint.num_parameters:>10,}  {checkpoint.timm_gmacs or '-':<13}  "
            f"{4e-6 * checkpoint.num_parameters:<9.1f}  {published:<9}  {top1:<7}  {top5}"
        )
    print("ImageNet-1k. MACs as timm counts them. * quoted by others, not in the authors' own files.")


def classify(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from cait_hf.prediction.inputs import files_of

    files = [file for image in args.images for file in files_of(image) or [image]]
    failed, before = False, "["
    with tqdm(total=len(files), unit="image", disable=None) as progress:  # None: only on a terminal
        try:
            for results in classified(args, files):
                for result in results:
                    if "error" in result:
                        failed = True
                        progress.write(f"error: {result['file']}: {result['error']}", file=sys.stderr)
                    if args.json:
                        text = textwrap.indent(json.dumps(result, indent=2), "  ")
                        progress.write(f"{before}\n{text}", file=sys.stdout, end="")
                        before = ","
                    elif "error" not in result:
                        progress.write(result["file"], file=sys.stdout)
                        for prediction in result["predictions"]:
                            progress.write(f"  {prediction['score']:.4f}  {prediction['label']}", file=sys.stdout)
                sys.stdout.flush()
                progress.update(len(results))
        finally:  # after Ctrl-C what there is is a list, too
            if args.json:
                progress.write("[]" if before == "[" else "\n]", file=sys.stdout)
    return int(failed)


def classified(args: argparse.Namespace, files: list[str]) -> Iterator[list[dict[str, Any]]]:
    """For each file `{"file", "predictions"}` or `{"file", "error"}`, batch by batch."""
    from cait_hf.checkpoints import resolve_model
    from cait_hf.image_processing_pil_cait import CaitImageProcessorPil
    from cait_hf.loading import load_model
    from cait_hf.prediction.inputs import Prepare, from_files
    from cait_hf.prediction.predictor import Predictor, find_device

    source = resolve_model(args.model)
    predictor = Predictor(load_model(source), device=find_device(None), top_k=args.top_k)
    inputs = from_files(files)
    inputs.prepare = Prepare(CaitImageProcessorPil.from_pretrained(source))
    for batch in inputs.batches(len(inputs), args.batch_size):
        loaded = inputs[batch]
        columns = {} if loaded.pixel_values is None else predictor.columns(predictor(loaded.pixel_values))
        rows = zip(*(columns[name].tolist() for name in ("labels", "scores"))) if columns else iter(())
        yield [
            {"file": name, "predictions": [{"label": label, "score": score} for label, score in zip(*next(rows))]}
            if error is None
            else {"file": name, "error": error}
            for name, error in zip(loaded.names, loaded.errors)
        ]


def predict(args: argparse.Namespace) -> int:
    from cait_hf.commands.predict import predict_command

    return predict_command(args)


def app(args: argparse.Namespace) -> None:
    """Serve the page, or write and push it as a Space."""
    of_space = {"--output_dir": args.output_dir, "--overwrite": args.overwrite, "--push": args.push}
    of_page = {"--host": args.host, "--port": args.port}
    for flag, value in ({**of_space, "--private": args.private} if args.space is None else of_page).items():
        if value:
            raise ValueError(
                f"{flag} is {value}, but it has a meaning {'with' if args.space is None else 'without'} --space only."
            )
    if args.space is None:
        from cait_hf.app.page import MODELS, launch

        launch(args.models or MODELS, args.host or "127.0.0.1", args.port)
        return
    if not (args.output_dir or args.push):
        raise ValueError("--space needs --output_dir, --push, or both.")
    from cait_hf.app.page import MODELS
    from cait_hf.app.space import push_space, write_space

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output_dir or Path(temporary, "space")
        write_space(folder, args.space, args.models or MODELS, args.overwrite)
        if args.output_dir:
            print(f"Wrote {folder}.")
        if args.push:
            print(f"Pushed: {push_space(folder, args.space, args.private)}")
            requirement = (folder / "requirements.txt").read_text(encoding="utf-8").strip()
            print(f"The Space installs {requirement} from the package index: it starts once that is released.")


def convert(args: argparse.Namespace) -> None:
    """Convert, report, and push if asked to."""
    from cait_hf.configuration_cait import as_pair
    from cait_hf.conversion import convert as convert_source
    from cait_hf.verify import difference_text

    model_name = args.push_to_hub or args.output_dir.resolve().name
    converted = convert_source(
        args.source, args.output_dir, model_name, None, args.overwrite, args.verify, args.remote_code, args.ema
    )
    if converted.largest_difference is not None:
        print(f"Verified: {difference_text(converted.largest_difference)}.")
        known = "the published one" if converted.has_known_sha256 else "compare it with its publisher's"
        print(f"SHA-256 of the source: {converted.source_sha256} ({known}).")
    if not converted.has_image_processor:
        print("No preprocessor_config.json: the package prepares square RGB images, which are not this model's.")
    height, width = as_pair(converted.config.image_size)
    print(f"Wrote {args.output_dir}: {converted.num_parameters:,} parameters, images of {height} x {width} pixels.")
    if args.push_to_hub:
        from cait_hf.publish import push_folder

        url = push_folder(args.output_dir, args.push_to_hub, args.private, args.revision, args.tag)
        print(f"Pushed to {url}.")


def verify(args: argparse.Namespace) -> None:
    from cait_hf.checkpoints import resolve_model
    from cait_hf.loading import load_model
    from cait_hf.verify import compare_model_with_timm, difference_text, require_timm

    require_timm()
    print(f"Verified: {difference_text(compare_model_with_timm(load_model(resolve_model(args.model))))}.")


def push(args: argparse.Namespace) -> None:
    from cait_hf.checkpoints import resolve_model
    from cait_hf.loading import check_folder
    from cait_hf.publish import PACKAGE, add_remote_code, push_folder

    folder = Path(resolve_model(args.folder))
    if args.remote_code:
        check_folder(folder)
        if folder.resolve().parent == PACKAGE.resolve():
            raise ValueError(f"--remote_code adds files, but {folder} is part of the installed package: copy it.")
        add_remote_code(folder)
    print(f"Pushed: {push_folder(folder, args.repo, args.private, args.revision, args.tag)}")


def info(args: argparse.Namespace) -> None:
    import torch

    from cait_hf.checkpoints import CHECKPOINTS, resolve_model
    from cait_hf.configuration_cait import CaitConfig, as_pair
    from cait_hf.macs import macs
    from cait_hf.modeling_cait import CaitForImageClassification

    source = resolve_model(args.model)
    official = {} if Path(source).exists() else {checkpoint.timm_repo: checkpoint for checkpoint in CHECKPOINTS}
    if source in official:
        config = CaitConfig(**official[source].config_kwargs, num_labels=1000)
    elif Path(source).is_dir() and not Path(source, "config.json").is_file():  # Transformers takes the defaults
        raise FileNotFoundError(f"MODEL is {args.model}, but this folder has no config.json.")
    else:
        config = CaitConfig.from_pretrained(source)
    with torch.device("meta"):
        parameters = CaitForImageClassification(config).num_parameters()
    height, width = as_pair(config.image_size)
    for name, value in {
        "parameters": f"{parameters:,}",
        "MACs": f"{macs(config):,} for one image",
        "input size": f"{height} x {width} pixels, {config.num_channels} channels",
        "classes": f"{config.num_labels:,}",
        "weights in memory": f"{4e-6 * parameters:,.1f} MB in float32, {2e-6 * parameters:,.1f} MB in bfloat16",
    }.items():
        print(f"{name:<18} {value}")


def env(args: argparse.Namespace) -> None:
    import platform
    from importlib import metadata

    import torch

    from cait_hf import attention_backend

    for package in ("cait-hf", *ENV_PACKAGES):
        try:
            print(f"{package:<18} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package:<18} not installed")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    for name, value in {
        "Python": platform.python_version(),
        "system": platform.platform(),
        "threads": f"{torch.get_num_threads()} of PyTorch",
        "CUDA of PyTorch": torch.version.cuda or "none",
        "GPU": ", ".join(gpus) or "none that PyTorch sees",
        "attention on CPU": attention_backend(),
    }.items():
        print(f"{name:<18} {value}")


if __name__ == "__main__":
    sys.exit(main())

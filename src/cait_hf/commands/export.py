# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Export a CaiT classifier to ONNX, to torch.export's format or to OpenVINO, and compare what was written with torch.

    cait-hf export cait-xxs24-224 cait-xxs24-224-onnx
    cait-hf export cait-xxs24-224 cait-xxs24-224-any-size --dynamic_size

The batch size is free. With --dynamic_size height and width are free too: multiples of the patch size, at least two
patches each; the position embeddings are resized inside the graph. Transformers' exporters do the work; the folder
contains the program, its export.json and config.json, the image processor, and loads with

    import cait_hf
    from transformers.exporters.base import ExportedModel

    logits = ExportedModel.from_pretrained("cait-xxs24-224-onnx")(pixel_values=pixel_values).logits

A torch.export program may hold pickles, which can run code: since Transformers 5.24 it loads with
`trust_remote_code=True` only, which is for folders that you trust. OpenVINO rounds to bfloat16 on processors that can,
unless from_pretrained gets `config={"INFERENCE_PRECISION_HINT": "f32"}`.

ONNX needs onnx, onnxscript and onnxruntime, OpenVINO needs openvino. The folder appears complete or not at all.
"""

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from ..checkpoints import resolve_model
from ..command_line import one_line, run_command
from ..configuration_cait import as_pair
from ..files import new_folder
from ..image_processing_pil_cait import CaitImageProcessorPil
from ..loading import load_model
from ..modeling_cait import CaitForImageClassification
from ..verify import compare_logits, difference_text, logits_of, random_images


TORCH = "torch's"
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": (), "openvino": ("openvino",)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    parser = argparse.ArgumentParser(
        prog="cait-hf export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="FOLDER_OR_ID", help="Folder or repository with a CaitForImageClassification."
    )
    parser.add_argument("output_dir", metavar="OUTPUT", type=Path, help="Folder to write.")
    parser.add_argument("--format", choices=sorted(PACKAGES), default="onnx", help="default: %(default)s")
    parser.add_argument("--dynamic_size", action="store_true", help="Leave height and width of the images free.")
    parser.add_argument("--opset", type=int, help="Version of ONNX's operators (default: the exporter's newest).")
    parser.add_argument("--overwrite", action="store_true", help="Replace an output folder that is not empty.")
    return run_command(export_command, parser.parse_args(argv))


def export_command(args: argparse.Namespace) -> None:
    """Load, export to a temporary folder, load and run what was written, and only then give it its name."""
    if args.opset is not None and args.format != "onnx":
        raise ValueError(f"--opset is {args.opset}, but --format {args.format} has no opsets: pass it with onnx only.")
    require_packages(args.format)
    args.source = resolve_model(args.source)
    with new_folder(args.output_dir, args.source, args.overwrite) as folder:
        model = load_model(args.source).float().eval()
        if model.config.num_labels == 0:
            raise ValueError(
                f"num_labels of {args.source} is 0, but it must be at least 1: there are no logits to export."
            )
        write(model, folder, args.format, args.dynamic_size, args.opset)
        if args.opset is not None:
            require_opset(folder, args.opset)
        with contextlib.suppress(OSError):  # a model without an image processor
            CaitImageProcessorPil.from_pretrained(args.source).save_pretrained(folder)
        difference = compare(model, folder, args.format, args.dynamic_size)
    print(f"Wrote {args.output_dir}: {difference_text(difference, TORCH)}.")


def require_packages(export_format: str) -> None:
    """Raises ImportError with what to install, before a large model is loaded."""
    missing = []
    for package in PACKAGES[export_format]:
        try:
            __import__(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise ImportError(f"--format {export_format} needs {', '.join(missing)}: pip install {' '.join(missing)}.")
    try:
        from transformers.exporters.base import ExportedModel  # noqa: F401
    except ImportError as error:
        raise ImportError(f"This Transformers has no exporters that save, install a newer one: {error}.") from error


def write(
    model: CaitForImageClassification, folder: Path, export_format: str, dynamic_size: bool, opset: int | None
) -> None:
    """Export the model, in evaluation mode, with a free batch size and perhaps free height and width.

    Raises:
        ValueError: if the exporter fails, with its reason.
    """
    from transformers import exporters

    exporter, config_class = {
        "onnx": lambda: (exporters.OnnxExporter, exporters.OnnxConfig),
        "torch": lambda: (exporters.DynamoExporter, exporters.DynamoConfig),
        "openvino": lambda: (exporters.OpenVINOExporter, exporters.OpenVINOConfig),
    }[export_format]()
    options = {"opset_version": opset} if opset is not None else {}
    config = config_class(dynamic_shapes={"pixel_values": free_axes(model, dynamic_size)}, **options)
    # The program's config.json says what it takes.
    model.config.interpolate_pos_encoding = model.config.interpolate_pos_encoding or dynamic_size
    with quiet(), torch.no_grad():
        try:
            exported = exporter().export(model, {"pixel_values": example(model, dynamic_size)}, config)
        except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            raise ValueError(f"The exporter to {export_format} failed: {one_line(error)}") from error
        exported.save_pretrained(folder)


def require_opset(folder: Path, opset: int) -> None:
    """Raise ValueError if the file has other operators than asked for: the exporter only warns of what it cannot."""
    import onnx

    written = onnx.load(folder / "model.onnx", load_external_data=False).opset_import
    found = next(entry.version for entry in written if entry.domain in ("", "ai.onnx"))
    if found != opset:
        raise ValueError(
            f"--opset is {opset}, with which the exporter cannot write this model (it took {found}): leave it out or "
            "pass another."
        )


def free_axes(model: CaitForImageClassification, dynamic_size: bool) -> dict[int, Dim]:
    """The axes of `pixel_values` whose size the graph leaves open."""
    axes = {0: Dim("batch")}
    if dynamic_size:
        # torch.export treats a size of one as another program, and ONNX's exporter resizes to one row wrongly.
        for axis, name, patch in zip((2, 3), ("rows", "columns"), as_pair(model.config.patch_size)):
            axes[axis] = patch * Dim(name, min=2)
    return axes


def example(model: CaitForImageClassification, dynamic_size: bool) -> torch.Tensor:
    """Images to trace with: more than one, and not square, so that no two sizes are taken for the same."""
    return random_images(model.config, patches_more=(2, 1) if dynamic_size else (0, 0))


# How from_pretrained takes what `write` has just written; not for files of unknown origin.
LOAD: dict[str, dict[str, Any]] = {
    "onnx": {},
    "torch": {"trust_remote_code": True},  # asked for whatever the pickles hold: here tensors alone
    "openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}},  # what is compared is the program, not the rounding
}


def compare(model: CaitForImageClassification, folder: Path, export_format: str, dynamic_size: bool) -> float:
    """The largest difference of the written program's logits from torch's on random images, see `compare_logits`.

    Raises:
        ValueError: if its runtime cannot load or run the program, or its logits are not torch's.
    """
    from transformers.exporters.base import ExportedModel

    batches = [random_images(model.config, batch_size) for batch_size in (1, 3)]
    if dynamic_size:
        batches += [random_images(model.config, 1, more) for more in ((3, 1), (1, 4))]
    with quiet(), torch.no_grad():
        expected = [logits_of(model, batch) for batch in batches]
        try:
            exported = ExportedModel.from_pretrained(folder, **LOAD[export_format])
            found = [torch.as_tensor(exported(pixel_values=batch).logits) for batch in batches]
        except Exception as error:  # every runtime has classes of its own
            raise ValueError(f"The exported program does not run: {one_line(error)}") from error
    return compare_logits(torch.cat(found), torch.cat(expected), TORCH, smallest_scale=1.0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress on the standard output and their warnings about versions and deprecations."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

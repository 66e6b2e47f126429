# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Draw where a CaiT looks, over the images themselves: a PNG with a row for each image, or an animated GIF.

    python scripts/visualize_attention.py cait-xxs24-224 image.jpg --output attention.png
    python scripts/visualize_attention.py cait-xxs24-224 image.jpg --what patch --patch 5 7 --layer 12
    python scripts/visualize_attention.py cait-xxs24-224 *.jpg --what rollout --whole --output rollout.gif

MODEL is a folder of this package or of timm, a repository on the Hub, or an official name. Layers, heads, rows and
columns count from 0; a negative layer or head counts from the end.

    class    what the class token looks at, in each class layer: the mean over heads, then each head
    patch    what one patch (framed) looks at in the patch layers: the mean over heads, with --layer each head too.
             Magnitudes: the heads are mixed, so that weights can be negative (see `attention_fractions`)
    rollout  which patches the class token draws on through all layers together (see `attention_rollout`); with
             --layer N back to the output of N patch layers only, 0 being the embeddings. A GIF goes through all

The model sees the largest centered part of the image that has the shape of --image_size, the rest is dimmed; with
--whole it sees everything, its position embeddings resized. Each map is colored from its own lowest to its highest
value. In Python the same comes as numpy arrays from `cait_hf.visualization`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from cait_hf import CaitImageProcessorPil, CaitModel
from cait_hf.checkpoints import resolve_model
from cait_hf.command_line import run_command
from cait_hf.configuration_cait import as_pair
from cait_hf.image_input import open_image, to_rgb
from cait_hf.loading import load_weights, require_none_missing
from cait_hf.visualization import (
    attention_fractions,
    attention_grid,
    attention_rollout,
    check_drawing_file,
    class_attention_maps,
    outline_patch,
    overlay_attention,
    patch_attention_maps,
    save_drawing,
)


PANEL, GIF_PANEL = 192, 384  # pixels of the longer edge of a drawn image
COLUMNS = 8  # of maps in a line, where lines are not layers


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="Folder, repository or official name.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="File or URL.")
    parser.add_argument("--output", type=Path, default=Path("attention.png"), help=".png or .gif (%(default)s)")
    parser.add_argument("--what", choices=("class", "patch", "rollout"), default="class", help="default: %(default)s")
    parser.add_argument("--layer", type=int, help="One layer (default: all).")
    parser.add_argument("--head", type=int, help="One head (default: the mean and, of few layers, all).")
    parser.add_argument("--patch", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="The patch of --what patch.")
    parser.add_argument(
        "--image_size", type=int, nargs="+", metavar="PIXELS", help="Edge, or height and width (default: the model's)."
    )
    parser.add_argument("--whole", action="store_true", help="Show the model the whole image, not its center.")
    return run_command(visualize, parser.parse_args(argv))


def visualize(args: argparse.Namespace):
    """Everything that can be wrong with the command line is found before a large model is loaded."""
    check(args)
    images = [to_rgb(open_image(file, "IMAGE"), name=file) for file in args.images]
    source = resolve_model(args.model)
    model = load(source, patches_only=args.what == "patch")
    image_processor = load_image_processor(source)

    panel = GIF_PANEL if is_gif(args) else PANEL
    captions, overlays, small_images = [], [], []
    for image in images:
        height, width = seen_size(image, model.config, args.image_size, args.whole)
        maps = attention_maps(model, preprocess(image, image_processor, model, height, width), args)
        captions = list(maps)
        small = ImageOps.contain(image, (panel, panel), Image.Resampling.BICUBIC)
        row = [overlay_attention(small, one, patch_size=model.config.patch_size) for one in maps.values()]
        if args.what == "patch":
            shape = next(iter(maps.values())).shape
            small, *row = (outline_patch(one, args.patch, shape, model.config.patch_size) for one in (small, *row))
        small_images.append(small)
        overlays.append(row)
    save_drawing(draw(args, small_images, overlays, captions), args.output)
    print(f"Wrote {args.output}: {args.what} attention, {len(images)} image(s), {len(captions)} map(s) each.")


def is_gif(args: argparse.Namespace) -> bool:
    return args.output.suffix.lower() == ".gif"


def check(args: argparse.Namespace):
    check_drawing_file(args.output)
    if not args.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output is {args.output}, but the folder to write it to does not exist.")
    if (args.what == "patch") != (args.patch is not None):
        raise ValueError(f"--what is {args.what} and --patch is {args.patch}, but the one goes with the other only.")
    if args.what == "rollout" and args.head is not None:
        raise ValueError(f"--head is {args.head}, but a rollout is over all heads: leave it out.")
    if args.image_size is not None and (len(args.image_size) > 2 or min(args.image_size) < 1):
        raise ValueError(f"--image_size is {args.image_size}, but it must be one or two numbers of pixels >= 1.")
    if args.whole and len(args.image_size or [0]) == 2:
        raise ValueError(f"--image_size is {args.image_size}, but with --whole it must be one number: the short edge.")


def load(source: str, patches_only: bool) -> CaitModel:
    """The model without its classifier, in float32. For patches alone it may lack the class stage.

    Raises:
        ValueError: if it lacks tensors that are needed, or they are damaged or of other shapes.
        OSError: if `source` does not exist or has no weights.
    """
    model, missing = load_weights(CaitModel, source, torch.float32)
    class_stage = {key for key in missing if key.startswith(("class_layers.", "embeddings.cls_token"))}
    if class_stage and not patches_only:
        raise ValueError(f"MODEL is {source}, which has no class-attention: only --what patch can be drawn.")
    require_none_missing(source, missing - class_stage)
    return model.eval()


def load_image_processor(source: str) -> CaitImageProcessorPil:
    try:
        return CaitImageProcessorPil.from_pretrained(source)
    except OSError:
        print(f"{source} has no image processor: the mean and deviation of ImageNet are taken.", file=sys.stderr)
        return CaitImageProcessorPil()


def seen_size(image: Image.Image, config, image_size: list[int] | None, whole: bool) -> tuple[int, int]:
    """(height, width) in pixels of what the model is given."""
    height, width = as_pair(config.image_size) if image_size is None else (image_size[0], image_size[-1])
    if not whole:
        return height, width
    scale = min(height, width) / min(image.size)
    sizes = zip((image.height, image.width), as_pair(config.patch_size))
    return tuple(max(1, round(pixels * scale / patch)) * patch for pixels, patch in sizes)


def preprocess(
    image: Image.Image, image_processor: CaitImageProcessorPil, model: CaitModel, height: int, width: int
) -> torch.Tensor:
    """Resize until the image just covers height and width, and cut out the center.

    For a square that is the evaluation of the official checkpoints, pixel for pixel: shortest edge, center crop.
    """
    if model.config.num_channels == 1:
        image = image.convert("L")
    if height * image.width < width * image.height:
        size = (int(width * image.height / image.width), width)
    else:
        size = (height, int(height * image.width / image.height))
    return image_processor(
        image,
        do_resize=True,
        size={"height": max(size[0], height), "width": max(size[1], width)},
        do_center_crop=True,
        crop_size={"height": height, "width": width},
        return_tensors="pt",
    ).pixel_values


def attention_maps(model: CaitModel, pixel_values: torch.Tensor, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The maps `(rows, columns)` of one image that are asked for, by their captions."""
    if args.what == "rollout":
        return rollout_maps(attention_rollout(model, pixel_values, True)[0], args)
    if args.what == "class":
        maps = class_attention_maps(model, pixel_values, True)[0]
    else:
        maps = attention_fractions(patch_attention_maps(model, pixel_values, args.patch, True)[0])
    # maps: (layers, heads, rows, columns)
    layers = chosen("--layer", args.layer, len(maps))
    heads = chosen("--head", args.head, maps.shape[1])
    if args.head is not None:
        return {f"layer {layer}, head {head}": maps[layer, head] for layer in layers for head in heads}
    found = {}
    for layer in layers:
        found[f"layer {layer}, mean"] = maps[layer].mean(axis=0)
        if args.what == "class" or args.layer is not None:
            found |= {f"layer {layer}, head {head}": maps[layer, head] for head in heads}
    return found


def rollout_maps(maps: np.ndarray, args: argparse.Namespace) -> dict[str, np.ndarray]:
    layers = chosen("--layer", args.layer, len(maps))
    if args.layer is None:
        layers = reversed(layers) if is_gif(args) else [0]
    return {f"rollout to {f'layer {layer}' if layer else 'the embeddings'}": maps[layer] for layer in layers}


def chosen(name: str, index: int | None, count: int) -> range:
    """All of `count`, or the one asked for, counted from the end where negative."""
    if index is None:
        return range(count)
    if not -count <= index < count:
        raise ValueError(f"{name} is {index}, but it must be from 0 to {count - 1}, or from {-count} to -1.")
    return range(index % count, index % count + 1)


def draw(
    args: argparse.Namespace, images: list[Image.Image], overlays: list[list[Image.Image]], captions: list[str]
) -> Image.Image | list[Image.Image]:
    """One drawing with all maps, or for a GIF a frame for each map."""
    names = [Path(file).name for file in args.images]
    titles = {"class": "What the class token looks at", "rollout": "What the class token draws on"}
    title = titles.get(args.what) or "What the patch in row {}, column {} looks at".format(*args.patch)
    if is_gif(args):
        return [
            attention_grid(images, [[row[index]] for row in overlays], [caption], names, title, panel_size=GIF_PANEL)
            for index, caption in enumerate(captions)
        ]
    layers = {caption.split(",")[0] for caption in captions}
    # a line for each layer, so that a head stands below itself
    columns = len(captions) // len(layers) if len(captions) > len(layers) else COLUMNS
    return attention_grid(images, overlays, captions, names, title, columns, PANEL)


if __name__ == "__main__":
    sys.exit(main())

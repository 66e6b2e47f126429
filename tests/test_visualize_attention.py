# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`scripts/visualize_attention.py`: what it writes, from which models, and what it says to wrong input."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import warm_process
from official_files import write_xxs24_timm_folder
from PIL import Image
from random_weights import randomize_, tiny_config

from cait_hf import CaitForImageClassification, CaitForMaskedImageModeling, CaitImageProcessorPil, CaitModel
from cait_hf.visualization import attention_rollout


SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "visualize_attention.py"
spec = importlib.util.spec_from_file_location("visualize_attention", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A classifier with its image processor, models without, a wide and a high image, and a text."""
    folder = tmp_path_factory.mktemp("attention")
    randomize_(CaitForImageClassification(tiny_config())).save_pretrained(folder / "model")
    CaitImageProcessorPil(size=32, crop_size=32).save_pretrained(folder / "model")
    wide_patches = tiny_config(image_size=(32, 48), patch_size=(8, 16), num_channels=1)
    randomize_(CaitModel(wide_patches)).save_pretrained(folder / "wide-patches")
    processor = CaitImageProcessorPil(do_convert_rgb=False, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(folder / "wide-patches")
    randomize_(CaitForMaskedImageModeling(tiny_config())).save_pretrained(folder / "masked")
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "wide.png")
    Image.fromarray(noise.transpose(1, 0, 2)[:, :, 0]).save(folder / "high.png")
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture(autouse=True)
def _in_workplace(workplace, monkeypatch, tmp_path):
    monkeypatch.chdir(workplace)


def size_and_frames(file: Path) -> tuple[tuple[int, int], int]:
    with Image.open(file) as drawing:
        return drawing.size, getattr(drawing, "n_frames", 1)


def grid_size(images: list[tuple[int, int]], columns: int, lines: int = 1, panel: int = 192) -> tuple[int, int]:
    """Of panels for images of these sizes, the first as the image's own."""
    heights = [round(panel * height / max(width, height)) + 26 for width, height in images]
    return 32 + (columns + 1) * (panel + 8) - 8, 36 + 32 - 8 + lines * sum(heights)


def draw(folder: Path, *arguments: str) -> int:
    """Run the script; it writes `drawing.png` into the folder unless it is told otherwise."""
    return script.main(["--output", str(folder / "drawing.png"), *map(str, arguments)])


def test_a_process_of_its_own_draws_an_image_that_is_not_square(tmp_path):
    output = tmp_path / "attention.png"
    finished = warm_process.run_script(SCRIPT, "model", "wide.png", "high.png", "--output", output)
    assert finished.returncode == 0, finished.stderr
    assert "10 map(s) each" in finished.stdout
    # two class layers, each a line of the mean and four heads
    assert size_and_frames(output) == (grid_size([(90, 60), (60, 90)], columns=5, lines=2), 1)
    assert os.listdir(tmp_path) == ["attention.png"]


@pytest.mark.parametrize(
    "arguments, columns, lines, frames",
    [
        ("--layer -1", 5, 1, 1),
        ("--head 3", 2, 1, 1),
        ("--layer 0 --head -1 --image_size 64", 1, 1, 1),
        ("--what patch --patch 3 3", 3, 1, 1),
        ("--what patch --patch 4 1 --layer 2 --image_size 40 24", 5, 1, 1),
        ("--what rollout --whole", 1, 1, 1),
        ("--what rollout --layer 3 --whole --image_size 16", 1, 1, 1),
        ("--output {}.gif --what rollout", 1, 1, 4),
        ("--output {}.gif --head 2", 1, 1, 2),
    ],
)
def test_what_is_drawn(tmp_path, arguments, columns, lines, frames):
    assert draw(tmp_path, "model", "wide.png", *arguments.format(tmp_path / "drawing").split()) == 0
    (file,) = tmp_path.iterdir()
    panel = 384 if file.suffix == ".gif" else 192
    assert size_and_frames(file) == (grid_size([(90, 60)], columns, lines, panel), frames)


@pytest.mark.parametrize("what", ["class", "rollout", "patch --patch 1 2"])
def test_base_model_with_wide_patches_and_one_channel(what, tmp_path):
    assert draw(tmp_path, "wide-patches", "high.png", "--what", *what.split()) == 0
    assert os.listdir(tmp_path) == ["drawing.png"]


def test_folder_of_timm(tmp_path):
    write_xxs24_timm_folder(tmp_path / "timm")
    assert draw(tmp_path, tmp_path / "timm", "wide.png", "--image_size", "48") == 0
    assert size_and_frames(tmp_path / "drawing.png") == (grid_size([(90, 60)], columns=5, lines=2), 1)


def test_model_for_masked_images_has_patches_only(tmp_path, capsys):
    assert draw(tmp_path, "masked", "wide.png", "--what", "patch", "--patch", "0", "0") == 0
    assert "masked has no image processor" in capsys.readouterr().err
    assert draw(tmp_path, "masked", "wide.png", "--output", tmp_path / "other.png") == 1
    assert "MODEL is masked, which has no class-attention" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["drawing.png"]


@pytest.mark.parametrize("size", [(90, 60), (60, 91), (32, 32), (20, 300)])
def test_preprocessing_of_a_square_is_the_evaluation_of_the_checkpoint(size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    image_processor = CaitImageProcessorPil(size=32, crop_size=32)
    model = CaitModel(tiny_config())
    found = script.preprocess(image, image_processor, model, 32, 32)
    assert torch.equal(found, image_processor(image, return_tensors="pt").pixel_values)


def test_a_lit_corner_of_a_whole_image_is_its_corner(tmp_path, monkeypatch):
    """What the model was given and what the map is laid over are the same part of the image."""
    given = {}

    def rollout(model, pixel_values, interpolate_pos_encoding):
        given["pixel_values"] = pixel_values
        maps = np.zeros((1, 4, *(edge // 8 for edge in pixel_values.shape[-2:])), dtype=np.float32)
        maps[..., -1, -1] = 1.0
        return maps

    assert script.attention_rollout is attention_rollout
    monkeypatch.setattr(script, "attention_rollout", rollout)
    image = np.zeros((60, 90, 3), dtype=np.uint8)
    image[40:, 70:] = 255
    Image.fromarray(image).save(tmp_path / "corner.png")
    assert draw(tmp_path, "model", tmp_path / "corner.png", "--what", "rollout", "--whole") == 0
    assert given["pixel_values"].shape == (1, 3, 32, 48)
    assert given["pixel_values"][0, 0, -8:, -8:].min() > given["pixel_values"][0, 0, :16, :24].max()
    drawing = Image.open(tmp_path / "drawing.png").convert("RGB").crop((216, 70, 408, 198))
    drawing = np.asarray(drawing, dtype=int)
    lit = np.argwhere((drawing[..., 0] - drawing[..., 2]) > 80)  # pale yellow
    assert lit[:, 0].min() > 80 and lit[:, 1].min() > 120 and lit[:, 0].max() >= 110 and lit[:, 1].max() >= 175


def test_16_bits_and_exif_orientation(tmp_path):
    ramp = np.linspace(0, 255, 40 * 60).astype(np.uint8).reshape(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 3
    drawings = []
    for image, options in ((ramp[::-1, ::-1], {}), (ramp.astype(np.uint16) * 257, {"exif": exif})):
        Image.fromarray(image).save(tmp_path / "image.png", **options)
        assert draw(tmp_path, "model", tmp_path / "image.png") == 0
        drawings.append(np.asarray(Image.open(tmp_path / "drawing.png")))
    assert np.array_equal(*drawings)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("model missing.png", "IMAGE is 'missing.png', but a text must be the path of an existing image file"),
        ("model text.png", "IMAGE is text.png, from which no image could be read"),
        ("model wide.png text.png", "IMAGE is text.png"),
        ("missing/model/of/mine wide.png", "missing/model/of/mine"),
        ("model wide.png --output {}/drawing.jpg", "drawing.jpg, but its name must end in .png or .gif"),
        ("model wide.png --output {}/no/drawing.png", "the folder to write it to does not exist"),
        ("model wide.png --head 4", "--head is 4, but it must be from 0 to 3, or from -4 to -1"),
        ("model wide.png --layer 2", "--layer is 2, but it must be from 0 to 1, or from -2 to -1"),
        ("model wide.png --what rollout --layer 4", "--layer is 4, but it must be from 0 to 3"),
        ("model wide.png --what rollout --head 0", "--head is 0, but a rollout is over all heads"),
        ("model wide.png --what patch", "--what is patch and --patch is None"),
        ("model wide.png --patch 0 0", "--what is class and --patch is [0, 0]"),
        ("model wide.png --what patch --patch 4 0", "patch is (4, 0), but the row must be from 0 to 3"),
        ("model wide.png --image_size 30", "30 x 30, but both must be multiples of the patch size 8 x 8"),
        ("model wide.png --image_size 0", "--image_size is [0], but it must be one or two numbers"),
        ("model wide.png --image_size 8 8 8", "--image_size is [8, 8, 8], but"),
        ("model wide.png --image_size 32 32 --whole", "with --whole it must be one number"),
    ],
)
def test_wrong_input_ends_with_an_error_message_and_no_file(tmp_path, capsys, arguments, message):
    assert draw(tmp_path, *arguments.format(tmp_path).split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []

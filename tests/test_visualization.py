# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Maps are the model's own, and lie where the model saw them."""

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import pictures, randomize_, tiny_config

from cait_hf import CaitForImageClassification, CaitImageProcessorPil, CaitModel
from cait_hf.visualization import class_attention_maps, overlay_attention, prediction_grid


GRAY = (128, 128, 128)
PREDICTION = [{"label": "cat", "score": 0.7}, {"label": "a label too long for its column", "score": 0.3}]


@pytest.fixture(scope="module")
def model():
    return randomize_(CaitForImageClassification(tiny_config(image_size=(32, 48))))


@pytest.mark.parametrize("base_model", [False, True])
def test_maps_are_those_of_the_model(model, base_model):
    pixel_values = pictures(2, 32, 48)
    maps = class_attention_maps(model.cait if base_model else model, pixel_values)
    assert maps.shape == (2, 2, 4, 4, 6) and maps.dtype == np.float32
    with torch.no_grad():
        layers = model(pixel_values, output_class_attentions=True).class_attentions
    for layer, attention in enumerate(layers):
        assert np.array_equal(maps[:, layer].reshape(2, 4, 24), attention[:, :, 0, 1:].numpy())
        own = attention[:, :, 0, 0].numpy()
        np.testing.assert_allclose(maps[:, layer].sum(axis=(-1, -2)) + own, 1, atol=1e-6)


def test_maps_at_another_resolution_and_in_training(model):
    model.train()
    try:
        maps = class_attention_maps(model, pictures(1, 64, 40), interpolate_pos_encoding=True)
        assert maps.shape == (1, 2, 4, 8, 5) and model.training
        with pytest.raises(ValueError, match="interpolate_pos_encoding"):
            class_attention_maps(model, pictures(1, 64, 40))
        assert model.training
    finally:
        model.eval()


@torch.no_grad()
@pytest.mark.parametrize("row, column", [(0, 0), (1, 3), (3, 5)])
def test_a_patch_that_draws_attention_lights_up(row, column):
    """Weights by which the class token looks only for bright patches; one white patch in a black, wide picture."""
    config = tiny_config(image_size=(32, 48), num_class_attention_layers=1, qkv_bias=False)
    model = CaitModel(config).eval()
    for parameter in model.parameters():
        parameter.zero_()
    # A patch is a direction times its brightness less a little, so that after LayerNorm a black one points the other
    # way; queries and keys of all heads are what LayerNorm gives, the class token's query is that direction.
    direction = torch.tensor([1.0, -1.0]).repeat(config.hidden_size // 2)
    model.embeddings.patch_embeddings.projection.weight += direction[:, None, None, None] / 10
    model.embeddings.position_embeddings -= direction / 10
    model.embeddings.cls_token += direction
    attention = model.class_layers[0].attention
    model.class_layers[0].layernorm_before.weight.fill_(1.0)
    attention.q_proj.weight += torch.eye(config.hidden_size)
    attention.k_proj.weight += torch.eye(config.hidden_size)

    picture = np.zeros((32, 48, 3), dtype=np.uint8)
    picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
    processor = CaitImageProcessorPil(do_resize=False, do_center_crop=False, do_normalize=False)
    maps = class_attention_maps(model, processor(picture, return_tensors="pt").pixel_values)
    assert maps.shape == (1, 1, 4, 4, 6)
    for head in maps[0, 0]:
        assert np.unravel_index(head.argmax(), head.shape) == (row, column)
        assert head.max() > 0.4


def hottest(overlay: Image.Image) -> tuple[float, float]:
    """(x, y) of the middle of what is brightest in an overlay on a gray picture."""
    values = np.asarray(overlay, dtype=float).sum(axis=-1)
    y, x = np.nonzero(values > values.max() - 10)
    return x.mean(), y.mean()


@pytest.mark.parametrize("size", [(60, 60), (120, 60), (60, 120), (101, 67)])
@pytest.mark.parametrize("cell", [(0, 0), (2, 1), (3, 3)])
def test_overlay_lies_on_the_part_that_the_model_saw(size, cell):
    """A picture loses what exceeds the centred square: a lit cell must appear in its place of that square."""
    attention = np.zeros((4, 4))
    attention[cell] = 1.0
    overlay = overlay_attention(Image.new("RGB", size, GRAY), attention)
    assert overlay.size == size and overlay.mode == "RGB"
    edge = min(size)
    x, y = hottest(overlay)
    assert abs(x - ((size[0] - edge) / 2 + (cell[1] + 0.5) * edge / 4)) < edge / 8
    assert abs(y - ((size[1] - edge) / 2 + (cell[0] + 0.5) * edge / 4)) < edge / 8

    pixels = np.asarray(overlay, dtype=int)
    if size == (120, 60):
        assert pixels[:, :30].max() < 40 and pixels[:, 90:].max() < 40  # not seen by the model
        assert pixels[:, 30:90].min() > 20


def test_overlay_of_a_map_that_is_not_square_covers_a_picture_of_its_ratio():
    attention = np.zeros((2, 6))
    attention[1, 5] = 1.0
    x, y = hottest(overlay_attention(Image.new("L", (180, 60), 128), attention))
    assert x > 150 and y > 30


def test_flat_maps_and_no_strength_leave_the_picture():
    image = Image.new("RGB", (10, 10), GRAY)
    flat = np.asarray(overlay_attention(image, np.full((2, 2), 0.5)))
    assert (flat == flat[0, 0]).all()
    peak = np.eye(2)
    assert np.array_equal(np.asarray(overlay_attention(image, peak, strength=0.0)), flat)
    assert not np.array_equal(np.asarray(overlay_attention(image, peak, strength=1.0)), flat)


@pytest.mark.parametrize(
    "image, attention, strength, message",
    [
        (np.zeros((4, 4, 3)), np.eye(2), 0.5, "image is a ndarray"),
        (Image.new("L", (4, 4)), np.zeros((2, 2, 2)), 0.5, r"attention_map has shape \(2, 2, 2\)"),
        (Image.new("L", (4, 4)), np.zeros((0, 2)), 0.5, "attention_map has shape"),
        (Image.new("L", (4, 4)), np.full((2, 2), np.nan), 0.5, "NaN"),
        (Image.new("L", (4, 4)), np.eye(2), 1.5, "strength is 1.5"),
    ],
)
def test_overlay_refuses_wrong_input(image, attention, strength, message):
    with pytest.raises(ValueError, match=message):
        overlay_attention(image, attention, strength)


def test_maps_refuse_wrong_input(model):
    with pytest.raises(ValueError, match=r"pixel_values has shape \(3, 32, 48\)"):
        class_attention_maps(model, pictures(1, 32, 48)[0])


def test_grid_shows_pictures_and_colours_of_right_and_wrong():
    red, blue = Image.new("RGB", (8, 8), "#ff0000"), Image.new("RGB", (30, 10), "#0000ff")
    grid = prediction_grid([red, blue], 2 * [PREDICTION], references=["cat", "dog"], overlays=[blue, red], title="Two")
    colours = {colour: count for count, colour in grid.getcolors(1 << 24)}
    # a square panel is filled, a picture three times as wide as high fills a third of its panel
    assert colours[255, 0, 0] == 2 * 128 * 128
    assert colours[0, 0, 255] == 2 * 128 * 43
    right, wrong = (26, 127, 55), (207, 34, 46)
    assert colours[right] > 500 and colours[wrong] > 500
    assert grid.getbbox() == (0, 0, *grid.size)

    plain = prediction_grid(3 * [red], 3 * [PREDICTION], columns=2)
    assert plain.width < grid.width and plain.height > grid.height - 36


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"images": [], "predictions": []}, "images is empty"),
        ({"predictions": []}, "predictions has 0 entries, but there are 1 images"),
        ({"references": ["a", "b"]}, "references has 2 entries"),
        ({"overlays": []}, "overlays has 0 entries"),
    ],
)
def test_grid_refuses_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        prediction_grid(**{"images": [Image.new("L", (4, 4))], "predictions": [PREDICTION], **arguments})

# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Maps are the model's own, and lie where the model saw them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import images, randomize_, tiny_config
from transformers import ViTConfig, ViTModel

from cait_hf import (
    CaitBackbone,
    CaitForImageClassification,
    CaitForMaskedImageModeling,
    CaitImageProcessorPil,
    CaitModel,
    modeling_cait,
    visualization,
)
from cait_hf.visualization import (
    attention_fractions,
    attention_grid,
    attention_rollout,
    class_attention_maps,
    outline_patch,
    overlay_attention,
    patch_attention_maps,
    prediction_grid,
    save_drawing,
)


GRAY = (128, 128, 128)
PREDICTION = [{"label": "cat", "score": 0.7}, {"label": "a label too long for its column", "score": 0.3}]


@pytest.fixture(scope="module")
def model():
    return randomize_(CaitForImageClassification(tiny_config(image_size=(32, 48))))


@pytest.mark.parametrize("base_model", [False, True])
def test_maps_are_those_of_the_model(model, base_model):
    pixel_values = images(2, 32, 48)
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
        maps = class_attention_maps(model, images(1, 64, 40), interpolate_pos_encoding=True)
        assert maps.shape == (1, 2, 4, 8, 5) and model.training
        with pytest.raises(ValueError, match="interpolate_pos_encoding"):
            class_attention_maps(model, images(1, 64, 40))
        assert model.training
    finally:
        model.eval()


def test_no_map_of_the_patch_stage_is_made_for_the_class_token(model, monkeypatch):
    seen = {}
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: seen.update(kwargs) or forward(*args, **kwargs))
    class_attention_maps(model, images(1, 32, 48))
    assert seen["output_class_attentions"] and not seen.get("output_attentions")


@pytest.mark.parametrize("patch", [(0, 0), (1, 4), (3, 5)])
def test_patch_maps_are_the_rows_of_the_model(model, patch):
    pixel_values = images(2, 32, 48)
    maps = patch_attention_maps(model, pixel_values, patch)
    assert maps.shape == (2, 3, 4, 4, 6) and maps.dtype == np.float32
    with torch.no_grad():
        layers = model(pixel_values, output_attentions=True).attentions
    for layer, attention in enumerate(layers):
        row = attention[:, :, 6 * patch[0] + patch[1]].numpy()
        np.testing.assert_allclose(maps[:, layer].reshape(2, 4, 24), row, atol=1e-6)
    assert maps.min() < 0, "the mixed heads of the random model must have negative weights"


@pytest.mark.parametrize("model_class", [CaitModel, CaitBackbone, CaitForMaskedImageModeling])
def test_patch_maps_of_every_model_with_a_patch_stage(model_class):
    model = randomize_(model_class(tiny_config(patch_size=(8, 4))))
    maps = patch_attention_maps(model, images(1, 24, 40), (2, 9), interpolate_pos_encoding=True)
    assert maps.shape == (1, 3, 4, 3, 10)


@pytest.mark.parametrize("maps", [attention_rollout, patch_attention_maps])
def test_no_map_of_all_patches_is_recorded(maps, monkeypatch):
    """At 48 x 48 patches one map of a head has 21 MB: neither the model nor a rollout ever has one."""
    model = randomize_(CaitModel(tiny_config()))
    largest = []
    attend = visualization.talking_heads_attention_forward
    monkeypatch.setattr(
        visualization,
        "talking_heads_attention_forward",
        lambda *args, **kwargs: largest.append(args[0].shape[2]) or attend(*args, **kwargs),
    )
    monkeypatch.setattr(modeling_cait, "talking_heads_attention_forward", None)  # would be called for recorded maps
    monkeypatch.setattr(visualization, "_MAP_NUMBERS", 2**20)
    maps(model, images(1, 384), *([(0, 0)] if maps is patch_attention_maps else []), interpolate_pos_encoding=True)
    assert 1 <= max(largest) <= 2**20 // (4 * 48 * 48)


def rollout_by_hand(attentions: list, class_attentions: list) -> np.ndarray:
    """By whole matrices in float64: weights `(1 + layers, N)` of the patches, and what is left on the class token."""
    tokens = class_attentions[0].shape[-1]
    class_stage = np.eye(tokens)
    for attention in class_attentions:  # (heads, 1, 1 + N)
        step = np.eye(tokens)
        step[0] = 0.5 * step[0] + 0.5 * sum(head[0] for head in attention) / len(attention)
        class_stage = step @ class_stage
    found = []
    for first in range(len(attentions) + 1):
        patch_stage = np.eye(tokens - 1)
        for attention in attentions[first:]:  # (heads, N, N)
            heads = [np.array([np.abs(row) / np.abs(row).sum() for row in head]) for head in attention]
            patch_stage = (0.5 * np.eye(tokens - 1) + 0.5 * sum(heads) / len(heads)) @ patch_stage
        found.append(class_stage[0, 1:] @ patch_stage)
    return np.array(found), class_stage[0, 0]


@pytest.mark.parametrize("size", [(32, 48), (40, 24)])
def test_rollout_equals_the_product_of_whole_matrices_in_float64(size, monkeypatch):
    monkeypatch.setattr(visualization, "_MAP_NUMBERS", 4 * 5 * size[0] * size[1] // 64)  # slices of 5 rows
    model = randomize_(CaitForImageClassification(tiny_config(image_size=(32, 48)))).double()
    pixel_values = images(2, *size)
    rollout = attention_rollout(model, pixel_values, interpolate_pos_encoding=True)
    rows, columns = size[0] // 8, size[1] // 8
    assert rollout.shape == (2, 4, rows, columns) and rollout.dtype == np.float32
    with torch.no_grad():
        outputs = model(pixel_values.double(), interpolate_pos_encoding=True, output_attentions=True)
    assert all((attention < 0).any() for attention in outputs.attentions)
    for index in range(2):
        expected, rest = rollout_by_hand(
            [attention[index].numpy() for attention in outputs.attentions],
            [attention[index].numpy() for attention in outputs.class_attentions],
        )
        np.testing.assert_allclose(rollout[index].reshape(4, -1), expected, rtol=1e-5)
        np.testing.assert_allclose(rollout[index].sum(axis=(1, 2)) + rest, 1, rtol=1e-5)


@torch.no_grad()
def test_rollout_does_not_depend_on_how_a_head_shares_its_factor_with_its_values():
    """A mixed head times a factor, its values divided by it: the same logits, and the same rollout."""
    model = randomize_(CaitForImageClassification(tiny_config()))
    pixel_values = images(1, 32)
    logits, rollout = model(pixel_values).logits, attention_rollout(model, pixel_values)
    for layer in model.cait.layers:
        for head, factor in ((0, -1.0), (2, 3.0), (3, -0.5)):
            layer.attention.proj_w_weight[head] *= factor
            layer.attention.proj_w_bias[head] *= factor
            channels = slice(12 * head, 12 * head + 12)
            layer.attention.v_proj.weight[channels] /= factor
            layer.attention.v_proj.bias[channels] /= factor
    torch.testing.assert_close(model(pixel_values).logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(attention_rollout(model, pixel_values), rollout, rtol=1e-3)


@torch.no_grad()
def test_rollout_through_layers_without_weights_is_that_of_the_class_stage():
    model = randomize_(CaitModel(tiny_config()))
    for layer in model.layers:
        layer.attention.proj_w_weight.zero_()
        layer.attention.proj_w_bias.zero_()
    rollout = attention_rollout(model, images(1, 32))[0]
    np.testing.assert_allclose(rollout, np.broadcast_to(rollout[-1:], rollout.shape), rtol=1e-6)
    assert rollout[0].std() > 0


def test_fractions():
    fractions = attention_fractions(np.array([[[1.0, -3.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    np.testing.assert_array_equal(fractions, [[[0.25, 0.75], [0, 0]], [[0, 0], [0, 0]]])
    weights = np.random.default_rng(0).normal(size=(3, 4, 5))
    np.testing.assert_allclose(attention_fractions(weights, axis=-1).sum(axis=-1), 1)


@torch.no_grad()
def model_that_looks_for_bright_patches(image_size: tuple[int, int], patch_size: int | tuple[int, int]) -> CaitModel:
    """One class layer, and one patch layer whose mixed heads are negative; both look for what is bright."""
    config = tiny_config(
        image_size=image_size, patch_size=patch_size, num_hidden_layers=1, num_class_attention_layers=1
    )
    model = CaitModel(config).eval()
    for parameter in model.parameters():
        parameter.zero_()
    # A patch is a direction times its brightness less a little, so that after LayerNorm a black one points the other
    # way; keys of all heads are what LayerNorm gives, and every query is that direction.
    direction = torch.tensor([1.0, -1.0]).repeat(config.hidden_size // 2)
    model.embeddings.patch_embeddings.projection.weight += direction[:, None, None, None] / 10
    model.embeddings.position_embeddings -= direction / 10
    for layer in (model.layers[0], model.class_layers[0]):
        layer.layernorm_before.weight.fill_(1.0)
        layer.attention.q_proj.bias += direction
        layer.attention.k_proj.weight += torch.eye(config.hidden_size)
    model.layers[0].attention.proj_l_weight += torch.eye(config.num_attention_heads)
    model.layers[0].attention.proj_w_weight -= torch.eye(config.num_attention_heads)
    return model


@pytest.mark.parametrize("patch_size", [8, (4, 8), (16, 4)])
@pytest.mark.parametrize("y, x", [(0, 0), (20, 30), (31, 47)])
@pytest.mark.parametrize("what", ["class", "patch", "rollout", "rollout of the patch stage"])
@torch.no_grad()
def test_a_patch_that_draws_attention_lights_up(what, y, x, patch_size):
    """One white patch in a black, wide image: the hottest place of the overlay on a gray image is that patch."""
    model = model_that_looks_for_bright_patches((32, 48), patch_size)
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    row, column = y // height, x // width
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[row * height : (row + 1) * height, column * width : (column + 1) * width] = 255
    processor = CaitImageProcessorPil(do_resize=False, do_center_crop=False, do_normalize=False)
    pixel_values = processor(image, return_tensors="pt").pixel_values
    if what == "class":
        maps = class_attention_maps(model, pixel_values)[0, 0]
    elif what == "patch":
        maps = attention_fractions(patch_attention_maps(model, pixel_values, (1, 2))[0, 0])
    else:
        if what != "rollout":  # the class token looks at all patches alike: what remains is what they look at
            model.class_layers[0].attention.q_proj.bias.zero_()
        maps = attention_rollout(model, pixel_values)[0, :1]
    assert maps.shape[1:] == (32 // height, 48 // width)
    for attention in maps:
        assert np.unravel_index(attention.argmax(), attention.shape) == (row, column)
        assert attention.max() > 5 * np.median(attention)
        overlay = overlay_attention(Image.new("RGB", (480, 320), GRAY), attention, patch_size=patch_size)
        hot_x, hot_y = hottest(overlay)
        assert 10 * width * column <= hot_x < 10 * width * (column + 1)
        assert 10 * height * row <= hot_y < 10 * height * (row + 1)


def hottest(overlay: Image.Image) -> tuple[float, float]:
    """(x, y) of the middle of what is brightest in an overlay on a gray image."""
    values = np.asarray(overlay, dtype=float).sum(axis=-1)
    y, x = np.nonzero(values > values.max() - 10)
    return x.mean(), y.mean()


@pytest.mark.parametrize("size", [(60, 60), (120, 60), (60, 120), (101, 67)])
@pytest.mark.parametrize("cell", [(0, 0), (2, 1), (3, 3)])
def test_overlay_lies_on_the_part_that_the_model_saw(size, cell):
    """An image loses what exceeds the centered square: a lit cell must appear in its place of that square."""
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


def test_drawings_show_16_bits_and_exif_orientation(tmp_path):
    """Wherever an image goes in, what comes out is that of its upright image of 8 bits."""
    ramp = np.linspace(0, 255, 20 * 40).astype(np.uint8).reshape(20, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "image.png", exif=exif)
    deep, plain = Image.open(tmp_path / "image.png"), Image.fromarray(np.ascontiguousarray(np.rot90(ramp, -1)))
    assert deep.mode == "I;16" and deep.size == (40, 20)
    for draw in (
        lambda image: overlay_attention(image, np.eye(2)),
        lambda image: outline_patch(image, (0, 0), (2, 2)),
        lambda image: prediction_grid([image], [PREDICTION], overlays=[overlay_attention(plain, np.eye(2))]),
        lambda image: attention_grid([image], [[overlay_attention(plain, np.eye(2))]], ["map"]),
    ):
        assert np.array_equal(draw(deep), draw(plain))
    save_drawing(deep, tmp_path / "drawing.gif")
    with Image.open(tmp_path / "drawing.gif") as drawing:
        assert np.asarray(drawing.convert("L")).std() > 60


def test_outline_leaves_the_image_as_it_was():
    image = Image.new("RGB", (16, 16), GRAY)
    assert not np.array_equal(outline_patch(image, (0, 0), (2, 2)), image)
    assert (np.asarray(image) == 128).all()


def test_flat_maps_and_no_strength_leave_the_image():
    image = Image.new("RGB", (10, 10), GRAY)
    flat = np.asarray(overlay_attention(image, np.full((2, 2), 0.5)))
    assert (flat == flat[0, 0]).all()
    peak = np.eye(2)
    assert np.array_equal(np.asarray(overlay_attention(image, peak, strength=0.0)), flat)
    assert not np.array_equal(np.asarray(overlay_attention(image, peak, strength=1.0)), flat)


IMAGE = Image.new("L", (4, 4))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: overlay_attention(np.zeros((4, 4, 3)), np.eye(2)), "image is a ndarray"),
        (lambda: overlay_attention(IMAGE, np.zeros((2, 2, 2))), r"attention_map has shape \(2, 2, 2\)"),
        (lambda: overlay_attention(IMAGE, np.zeros((0, 2))), "attention_map has shape"),
        (lambda: overlay_attention(IMAGE, np.full((2, 2), np.nan)), "NaN"),
        (lambda: overlay_attention(IMAGE, np.eye(2), 1.5), "strength is 1.5"),
        (lambda: outline_patch(IMAGE, (4, 0), (4, 6)), r"patch is \(4, 0\), but"),
        (lambda: outline_patch(IMAGE, (0, 6), (4, 6)), r"patch is \(0, 6\), but"),
        (lambda: outline_patch(IMAGE, (-1, 0), (4, 6)), "the row must be from 0 to 3 and the column from 0 to 5"),
        (lambda: prediction_grid([], []), "images is empty"),
        (lambda: prediction_grid([IMAGE], []), "predictions has 0 entries, but there are 1 images"),
        (lambda: prediction_grid([IMAGE], [PREDICTION], references=["a", "b"]), "references has 2 entries"),
        (lambda: prediction_grid([IMAGE], [PREDICTION], overlays=[]), "overlays has 0 entries"),
        (lambda: attention_grid([], [], ["a"]), "images is empty"),
        (lambda: attention_grid([IMAGE], [[]], []), "captions is empty"),
        (lambda: attention_grid([IMAGE], [], ["a"]), "overlays has 0 entries, but there are 1 images"),
        (lambda: attention_grid([IMAGE], [[]], ["a"]), r"overlays\[0\] has 0 entries, but there are 1 captions"),
        (lambda: attention_grid([IMAGE], [[IMAGE]], ["a"], ["a", "b"]), "names has 2 entries"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("maps", [class_attention_maps, attention_rollout, patch_attention_maps])
def test_maps_refuse_wrong_input(model, maps):
    more = [(0, 0)] if maps is patch_attention_maps else []
    with pytest.raises(ValueError, match=r"pixel_values has shape \(3, 32, 48\)"):
        maps(model, images(1, 32, 48)[0], *more)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    vit = ViTModel(ViTConfig(**sizes, image_size=32, attn_implementation="eager"))
    with pytest.raises(ValueError, match="model is a ViTModel, but only"):
        maps(vit, images(1, 32), *more)
    if maps is patch_attention_maps:
        with pytest.raises(ValueError, match=r"patch is \(4, 0\), but the row must be from 0 to 3"):
            maps(model, images(1, 32, 48), (4, 0))
    else:
        with pytest.raises(ValueError, match="model is a CaitForMaskedImageModeling, but only .* class-attention"):
            maps(CaitForMaskedImageModeling(tiny_config()), images(1, 32))


@pytest.mark.parametrize("patch_size, edges", [(1, (110, 30, 119, 39)), ((1, 2), (90, 30, 109, 39))])
def test_frame_lies_around_the_patch(patch_size, edges):
    """4 x 8 patches on an image 180 pixels wide and 40 high: the model saw the middle 80, or 160, pixels of it."""
    framed = outline_patch(Image.new("L", (180, 40), 128), (3, 6 if patch_size == 1 else 4), (4, 8), patch_size)
    white = np.argwhere((np.asarray(framed) == 255).all(axis=-1))
    assert framed.size == (180, 40)
    left, top, right, bottom = edges
    # the lower edge lies outside the image
    assert white[:, 1].min() == left - 1 and white[:, 1].max() == right + 1 and white[:, 0].min() == top - 1


def test_grid_shows_images_and_colors_of_right_and_wrong():
    red, blue = Image.new("RGB", (8, 8), "#ff0000"), Image.new("RGB", (30, 10), "#0000ff")
    grid = prediction_grid([red, blue], 2 * [PREDICTION], references=["cat", "dog"], overlays=[blue, red], title="Two")
    colors = {color: count for count, color in grid.getcolors(1 << 24)}
    # a square panel is filled, an image three times as wide as high fills a third of its panel
    assert colors[255, 0, 0] == 2 * 128 * 128
    assert colors[0, 0, 255] == 2 * 128 * 43
    right, wrong = (26, 127, 55), (207, 34, 46)
    assert colors[right] > 500 and colors[wrong] > 500
    assert grid.getbbox() == (0, 0, *grid.size)

    def green(rank: int) -> bool:  # bars stand below the image, 18 pixels each
        top = 16 + 128 + 6 + 18 * rank
        bars = prediction_grid([red], [PREDICTION], references=[PREDICTION[1]["label"]]).crop((0, top, 160, top + 18))
        return right in {color for _, color in bars.getcolors(1 << 24)}

    assert [green(rank) for rank in range(len(PREDICTION))] == [rank == 1 for rank in range(len(PREDICTION))]

    plain = prediction_grid(3 * [red], 3 * [PREDICTION], columns=2)
    assert plain.width < grid.width and plain.height > grid.height - 36


def test_attention_grid_has_a_panel_for_every_overlay():
    """Seven maps in lines of three: each has its own color and stands where its caption says."""
    wide, high = Image.new("RGB", (64, 16), "#ff0000"), Image.new("L", (16, 32), 77)
    colors = [(0, 0, 250), (0, 250, 0), (250, 250, 0), (0, 250, 250), (250, 0, 250), (9, 99, 9), (99, 9, 9)]
    overlays = [[Image.new("RGB", image.size, color) for color in colors] for image in (wide, high)]
    captions = [f"layer {number}" for number in range(7)]
    grid = attention_grid([wide, high], overlays, captions, ["wide", "high"], "A title", columns=3, panel_size=40)
    pixels = np.asarray(grid)
    corners = []
    for color in [(255, 0, 0), *colors]:
        here = np.argwhere((pixels == color).all(axis=-1))
        corners.append(tuple(int(place) for place in here.min(axis=0)))
        expected = 40 * 10 if color == (255, 0, 0) else 40 * 10 + 20 * 40
        assert len(here) == expected
    y, x = zip(*corners)
    assert x == (16, 64, 112, 160, 64, 112, 160, 64)
    assert y[0] == y[1] == y[2] == y[3] < y[4] == y[5] == y[6] < y[7]
    assert grid.width == 160 + 40 + 16


def test_animation_has_a_frame_for_each_drawing(tmp_path):
    frames = [Image.new("RGB", (20, 10), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    save_drawing(frames, tmp_path / "a.gif", duration=250)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3 and animation.size == (20, 10) and animation.info["loop"] == 0
        for index, frame in enumerate(frames):
            animation.seek(index)
            assert animation.info["duration"] == 250
            assert np.array_equal(np.asarray(animation.convert("RGB")), np.asarray(frame))
    save_drawing(frames[0], tmp_path / "b.PNG")
    with Image.open(tmp_path / "b.PNG") as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), np.asarray(frames[0]))
    assert sorted(os.listdir(tmp_path)) == ["a.gif", "b.PNG"]


def test_colors_of_an_animation_are_mixed_by_dithering(tmp_path):
    """A fine gradient, more colors than the 256 of a GIF: each place keeps its mean color, no bands."""
    across, down = np.meshgrid(np.linspace(0, 255, 256), np.linspace(0, 255, 256))
    gradient = np.stack([across, down, 255 - (across + down) / 2], axis=-1).round().astype(np.uint8)
    save_drawing([Image.fromarray(gradient)], tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        found = np.asarray(animation.convert("RGB"), dtype=float)
    blocks = (found - gradient).reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))[1:-1, 1:-1]
    assert np.abs(blocks).mean() < 0.7  # 2.2 with the nearest colors


def test_an_interrupted_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.gif"
    file.write_text("old")

    def half(self, path, **options):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_drawing(Image.new("RGB", (2, 2)), file)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.gif"]


@pytest.mark.parametrize(
    "name, sizes, message",
    [
        ("a.jpg", [4], "a.jpg, but its name must end in .png or .gif"),
        ("a.png", [4, 4], "2 frames need a file that ends in .gif"),
        ("a.gif", [4, 5], "2 frames of 2 sizes"),
        ("a.gif", [], "0 frames"),
    ],
)
def test_drawings_that_no_file_can_hold(tmp_path, name, sizes, message):
    with pytest.raises(ValueError, match=message):
        save_drawing([Image.new("L", (size, 4)) for size in sizes], tmp_path / name)
    assert os.listdir(tmp_path) == []

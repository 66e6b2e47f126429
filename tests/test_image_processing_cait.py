# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Image processors: parity with timm's evaluation transform, every kind of image, what is refused, timm's files."""

import base64
import http.server
import io
import json
import threading
from functools import cache, partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import image_processing_base
from transformers.image_utils import IMAGENET_DEFAULT_STD
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

import cait_hf
from cait_hf import CaitConfig, CaitImageProcessorPil, image_processing_pil_cait
from cait_hf.image_input import to_pixels, to_rgb


CaitImageProcessor = cait_hf.CaitImageProcessor if is_torchvision_available() else None
needs_torchvision = pytest.mark.skipif(CaitImageProcessor is None, reason="CaitImageProcessor needs torchvision")

# (width, height): offsets of the crop with every rounding, tiny, long, square, large
SIZES = [(1, 1), (2, 3), (16, 17), (224, 224), (225, 224), (226, 224), (224, 227), (231, 224), (384, 384), (448, 451)]
SIZES += [(375, 500), (640, 427), (997, 991), (50, 700), (700, 50), (468, 1288), (1288, 468), (1500, 1100)]
LEVEL = 1 / 255 / min(IMAGENET_DEFAULT_STD)  # one 8-bit step after normalization


@pytest.fixture(params=[CaitImageProcessorPil, pytest.param(CaitImageProcessor, marks=needs_torchvision)])
def processor_class(request):
    return request.param


def synthetic(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise beside a smooth part, the same for the same size."""
    rng = np.random.default_rng([width, height])
    smooth = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((width, height), 3)
    pixels = np.array(smooth)
    pixels[: height // 2] = rng.integers(0, 256, (height // 2, width, 3))
    return Image.fromarray(pixels).convert(mode)


@cache
def real_images() -> tuple[Image.Image, ...]:
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        return (synthetic(640, 427),)
    return tuple(Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))


def run(processor_class, images, size: int = 224, **kwargs) -> torch.Tensor:
    return processor_class(size=size, crop_size=size)(images, return_tensors="pt", **kwargs).pixel_values


def assert_equal(processor_class, images, reference, **kwargs):
    """The class makes of `images` what the Pil class makes of the RGB image: bit-equal, or within 2/255."""
    actual, expected = run(processor_class, images, **kwargs), run(CaitImageProcessorPil, reference)
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= (0 if processor_class is CaitImageProcessorPil else 2.01 * LEVEL)


@pytest.mark.parametrize("size", [224, 384, 448])
def test_parity_with_timm(size):
    reason = "parity needs timm, which needs torchvision"
    pytest.importorskip("timm", reason=reason)
    create_transform = pytest.importorskip("timm.data", reason=reason).create_transform
    reference = create_transform((3, size, size), is_training=False, interpolation="bicubic", crop_pct=1.0)
    std = torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None]
    for image in [*(synthetic(*wh) for wh in SIZES), *real_images()]:
        expected = reference(image)
        assert torch.equal(run(CaitImageProcessorPil, image, size)[0], expected), image.size
        difference = (run(CaitImageProcessor, image, size)[0] - expected).abs() * std * 255
        assert difference.max() < 2.01, image.size
        assert difference.mean() < 0.05, image.size  # two processors that are off by one level fail here


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "1", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
)
def test_every_mode_is_converted_as_pillow_does(processor_class, mode):
    image = synthetic(61, 50, "L" if mode in ("I", "F") else "RGB").convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(synthetic(61, 50, "L"))
    assert_equal(processor_class, image, image.convert("RGB"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_transparency_is_dropped(processor_class, transparency):
    image = synthetic(61, 50).quantize(64)
    opaque = image.convert("RGB")
    image.info["transparency"] = transparency
    assert_equal(processor_class, image, opaque)
    assert image.info["transparency"] == transparency  # the user's image is left alone


def test_16_bits_are_scaled_not_clipped(processor_class, tmp_path):
    gray = synthetic(61, 50, "L")
    wide = np.asarray(gray).astype(np.uint16) * 257
    image = Image.fromarray(wide)
    assert image.mode == "I;16"
    image.save(tmp_path / "16.png")
    rgb = np.stack([wide] * 3, -1)
    for images in (
        image,
        Image.open(tmp_path / "16.png"),
        str(tmp_path / "16.png"),
        Image.frombytes("I;16B", image.size, wide.astype(">u2").tobytes()),
        Image.fromarray(wide.astype(np.int32)),  # mode I
        wide,
        rgb,
        rgb.astype(">u2"),
        rgb.astype(np.int64),
        torch.from_numpy(rgb).permute(2, 0, 1),
    ):
        assert_equal(processor_class, images, gray.convert("RGB"))


def test_16_bits_round_to_nearest_and_8_bits_in_wide_types_stay():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(to_pixels(values)[0], expected)
    assert np.array_equal(to_pixels(values[:1])[0], expected[:1])  # uint16 is 16 bits even where it is dark
    assert np.array_equal(to_pixels(Image.fromarray(values[:1].astype(np.int32)))[0], values[:1])


def test_mode_f_is_cut_off_or_scaled_from_1(processor_class):
    gray = synthetic(61, 50, "L")
    unit = Image.fromarray(np.asarray(gray, dtype=np.float32) / 255)
    assert_equal(processor_class, unit, gray.convert("RGB"))
    fractions = Image.fromarray(np.asarray(gray, dtype=np.float32) * 0.9)
    assert_equal(processor_class, fractions, fractions.convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(processor_class, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    synthetic(90, 50).save(tmp_path / "image.png", exif=exif)
    stored = np.asarray(Image.open(tmp_path / "image.png"))
    # what a viewer does with the stored rows (EXIF 2.3, tag Orientation)
    upright = stored.transpose(1, 0, 2) if orientation > 4 else stored
    upright = upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright
    upright = upright[::-1] if orientation in (3, 4, 7, 8) else upright
    expected = Image.fromarray(np.ascontiguousarray(upright))
    for images in (Image.open(tmp_path / "image.png"), tmp_path / "image.png"):
        assert_equal(processor_class, images, expected)
        assert_equal(processor_class, images, Image.fromarray(stored), do_exif_transpose=False)
    processor_class(do_exif_transpose=False).save_pretrained(tmp_path)
    loaded = processor_class.from_pretrained(tmp_path)
    pixels = loaded(tmp_path / "image.png", return_tensors="pt").pixel_values
    assert torch.equal(pixels, run(processor_class, Image.fromarray(stored)))


def test_photo_with_exif_orientation_equals_timm_without_the_transpose(tmp_path):
    pytest.importorskip("timm", reason="the reference is timm's evaluation transform")
    from timm.data import create_transform

    exif = Image.Exif()
    exif[0x0112] = 6
    synthetic(90, 50).save(tmp_path / "photo.jpg", exif=exif)
    expected = create_transform((3, 224, 224), interpolation="bicubic", crop_pct=1.0)(
        Image.open(tmp_path / "photo.jpg").convert("RGB")
    )
    assert torch.equal(run(CaitImageProcessorPil, tmp_path / "photo.jpg", do_exif_transpose=False)[0], expected)
    assert not torch.equal(run(CaitImageProcessorPil, tmp_path / "photo.jpg")[0], expected)  # upright


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_to_rgb(mode, orientation):
    if mode == "I;16":
        expected = synthetic(61, 50, "L").convert("RGB")
        image = Image.fromarray(np.asarray(expected)[..., 0].astype(np.uint16) * 257)
    else:
        image = synthetic(61, 50, mode)
        expected = image.convert("RGB")
    assert image.mode == mode
    if orientation is not None:
        image.getexif()[0x0112] = orientation
    upright = expected.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else expected
    for do_exif_transpose, reference in ((True, upright), (False, expected)):
        converted = to_rgb(image, do_exif_transpose)
        assert converted.mode == "RGB" and np.array_equal(converted, reference)
        assert np.array_equal(to_rgb(converted), reference)  # the orientation is gone, applied or not


def test_to_rgb_of_unusual_gray_images():
    image = synthetic(61, 50, "L")
    image.info["transparency"] = 7
    converted = to_rgb(image)
    assert np.array_equal(converted, synthetic(61, 50, "L").convert("RGB")) and "transparency" not in converted.info
    with pytest.raises(ValueError, match="image is an image of 0 x 5 pixels, but it must have some"):
        to_rgb(Image.new("L", (0, 5)))


def test_layouts_and_types_of_arrays(processor_class):
    image = synthetic(61, 50)
    hwc = np.asarray(image)
    chw = hwc.transpose(2, 0, 1)
    rgba = np.concatenate([hwc, hwc[..., :1]], -1)
    layouts = [hwc, chw, rgba, rgba.transpose(2, 0, 1), hwc.astype(np.int64), hwc[None], chw[None], [hwc], ((chw,),)]
    for images in layouts:
        assert_equal(processor_class, images, image)
        if not isinstance(images, list | tuple):
            assert_equal(processor_class, torch.tensor(images), image)
    assert_equal(processor_class, hwc[::-1], image.transpose(Image.Transpose.FLIP_TOP_BOTTOM))

    gray = synthetic(61, 50, "L")
    values = np.asarray(gray)
    for images in (values, values[None], values[..., None], torch.tensor(values), [values, values]):
        assert_equal(processor_class, images, gray.convert("RGB"))
    assert_equal(processor_class, values > 99, Image.fromarray(values > 99).convert("RGB"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_follow_do_rescale(processor_class, dtype):
    """[0, 255] with do_rescale and [0, 1] without are the 8-bit image."""
    image = synthetic(61, 50)
    hwc = np.asarray(image).astype(dtype)
    for images, do_rescale in ((hwc, True), (torch.tensor(hwc), True), (hwc / dtype(255), False)):
        assert_equal(processor_class, images, image, do_rescale=do_rescale)
    # values outside the range are neither clipped nor rounded: a user may have normalized them before
    signed = hwc[..., 0] / dtype(255) - dtype(0.5)
    options = {"do_rescale": False, "do_normalize": False}
    expected = Image.fromarray(signed.astype(np.float32)).resize((273, 224), Image.Resampling.BICUBIC)
    actual = run(processor_class, signed, do_center_crop=False, **options)[0]
    assert actual.min() < -0.5 and np.allclose(actual, np.asarray(expected), atol=1e-5)


def test_channels_axis_of_thin_arrays(processor_class):
    row, column = synthetic(50, 1), synthetic(1, 50)
    for image in (row, column):
        hwc = np.asarray(image)
        assert_equal(processor_class, hwc, image)
        assert_equal(processor_class, hwc.transpose(2, 0, 1), image)
    three = synthetic(50, 3)  # 3 x 50 x 3: only the caller can know
    assert_equal(processor_class, np.asarray(three), three, input_data_format="channels_last")
    assert_equal(processor_class, np.asarray(three).transpose(2, 0, 1), three, input_data_format="channels_first")


@pytest.mark.parametrize("wh", [(1, 300), (300, 1), (2, 301), (3, 500), (500, 3), (7, 499)])
def test_window_of_a_strip_equals_the_full_resize(processor_class, wh, monkeypatch):
    image = synthetic(*wh)
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        kwargs = {"size": 64, "resample": resample}
        expected = run(CaitImageProcessorPil, image, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(image_processing_pil_cait, "_MAX_RESIZED_PIXELS", 64)
            patch.setattr(processor_class, "_resize_full", None)
            difference = (run(processor_class, image, **kwargs) - expected).abs()
        if processor_class is CaitImageProcessorPil:
            assert difference.max() < 1.01 * LEVEL
            assert (difference > 0).float().mean() < 0.002
        assert difference.max() < 2.01 * LEVEL


def test_very_long_strips(processor_class):
    strip = synthetic(1, 5000, "L")
    channel = strip.resize((224, 224 * 5000), Image.Resampling.BICUBIC)  # a quarter of a GB, RGB would take one
    middle = 224 * 2499 + 112
    expected = run(CaitImageProcessorPil, channel.crop((0, middle, 224, middle + 224)))
    turned = strip.transpose(Image.Transpose.TRANSPOSE)
    exact = processor_class is CaitImageProcessorPil
    for image, pixels in ((strip, expected), (turned, expected.mT)):
        assert (run(processor_class, image) - pixels).abs().max() <= (0 if exact else 2.01 * LEVEL)
    assert run(processor_class, synthetic(1, 65535), 448).shape == (1, 3, 448, 448)  # resized 39 GB


def test_mixed_batch_equals_its_images(processor_class):
    images = [synthetic(61, 50), synthetic(300, 400, "CMYK"), np.asarray(synthetic(30, 31)), *real_images()]
    batch = processor_class()(images, return_tensors="np")["pixel_values"]
    assert isinstance(batch, np.ndarray) and batch.shape == (len(images), 3, 224, 224) and batch.dtype == np.float32
    for image, pixels in zip(images, batch, strict=True):
        assert np.array_equal(run(processor_class, image)[0], pixels)


def data_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_paths_texts_and_urls(processor_class, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    image, file = synthetic(61, 50), tmp_path / "image.png"
    file.write_bytes(data_of(image))
    text = base64.encodebytes(data_of(image)).decode()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for images in (file, str(file), text, f"data:image/png;base64,{text}", f"{address}/image.png"):
            assert_equal(processor_class, images, image)
        with pytest.raises(OSError, match=r"images is http://.*missing.png, from which no image could be read"):
            processor_class()(f"{address}/missing.png")
        server.shutdown()
    (opened,) = processor_class().fetch_images([str(file)])
    assert np.array_equal(opened, image)


NAN = np.full((8, 8, 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "images is of type NoneType, but it must be a PIL image"),
        ({"image": 1}, "images is of type dict, but it must be a PIL image"),
        ([[1, 2], [3, 4]], r"images\[0\]\[0\] is of type int, but"),
        ([], "images is empty, but"),
        (np.zeros((0, 8, 8, 3), np.uint8), "images is empty, but"),
        ("a cat", "images is 'a cat', but a text must be the path of an existing image file, a URL or"),
        (base64.b64encode(b"x" * 99).decode(), r"images is 'eHh4.{76}\.\.\.', but a text"),
        ([synthetic(9, 9), None], r"images\[1\] is of type NoneType"),
        (np.array(1), r"images has the shape \(\), but it must be \(height, width\)"),
        (np.zeros((1, 1, 8, 8, 3)), r"images has the shape \(1, 1, 8, 8, 3\), but .* 1, 3 or 4 channels"),
        (np.zeros((2, 8, 8)), r"images has the shape \(2, 8, 8\), but"),
        (torch.zeros(2, 8, 8, 7), r"images\[0\] has the shape \(8, 8, 7\), but"),
        (np.zeros((0, 8, 3), np.uint8), r"images has the shape \(0, 8, 3\), but .* at least one pixel"),
        (Image.new("RGB", (0, 8)), "images is an image of 0 x 8 pixels, but"),
        (NAN, "images has values that are NaN or infinite, but"),
        ([torch.tensor(NAN)], r"images\[0\] has values that are NaN or infinite"),
        (Image.fromarray(NAN[..., 0]), "images is an image of mode F with values from nan to nan, but"),
        (np.full((8, 8), 1e300), "images has values that are NaN or infinite"),
        (Image.new("F", (8, 8), 256), r"images is an image of mode F with values from 256.0 to 256.0, but"),
        (Image.new("I", (8, 8), 65536), "images has integers from 65536 to 65536, but they must lie in"),
        (np.full((8, 8), -1), "images has integers from -1 to -1, but they must lie in"),
        (torch.zeros(8, 8, dtype=torch.complex64), "images is of type Tensor, but"),
        (np.full((8, 8), None), "images is an array of dtype object, but"),
    ],
)
def test_what_is_no_image_is_refused(processor_class, images, words):
    with pytest.raises(ValueError, match=words):
        processor_class()(images)


def test_damaged_files_are_refused(processor_class, tmp_path):
    data = data_of(synthetic(61, 50))
    for name, content in (("text.png", b"not an image"), ("cut.png", data[: len(data) // 2]), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=rf"images\[0\] is .*{name}, from which no image could be read"):
            processor_class()([tmp_path / name])
    with pytest.raises(OSError, match="images is an image of mode RGB which Pillow cannot read"):
        processor_class()(Image.open(tmp_path / "cut.png"))  # Pillow reads the pixels only now


def test_arguments_of_a_call(processor_class):
    image = synthetic(61, 50)
    processor = processor_class()
    plain = processor(image, do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    assert np.array_equal(plain["pixel_values"][0], np.asarray(image).transpose(2, 0, 1))
    assert processor(image, size=32, do_center_crop=False)["pixel_values"][0].shape == (3, 32, 39)
    assert processor(image, size=(20, 30), do_center_crop=False)["pixel_values"][0].shape == (3, 20, 30)
    unit = processor(image, do_resize=False, do_center_crop=False, do_normalize=False)["pixel_values"][0]
    assert np.allclose(unit, np.asarray(image).transpose(2, 0, 1) / 255, atol=1e-6)
    # smaller than the crop: zeros around, one more after than before, as torchvision pads
    padded = processor(image, do_resize=False, crop_size=64, do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert np.array_equal(padded, np.pad(np.asarray(image).transpose(2, 0, 1), ((0, 0), (7, 7), (1, 2))))
    cropped = processor(image, do_resize=False, crop_size=47, do_rescale=False, do_normalize=False)
    assert np.array_equal(cropped["pixel_values"][0], plain["pixel_values"][0][:, 2:49, 7:54])  # 1.5 rounds to 2
    for resample in Image.Resampling:
        by_pillow = run(CaitImageProcessorPil, image, resample=resample)
        assert (run(processor_class, image, resample=resample) - by_pillow).abs().max() < 2.01 * LEVEL
    gray = processor(synthetic(61, 50, "L"), do_convert_rgb=False, image_mean=[0.5], image_std=[0.25])
    assert gray["pixel_values"][0].shape == (1, 224, 224)
    assert processor.size == {"shortest_edge": 224} and processor.do_resize  # a call changes nothing for the next


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0}, "size is {'shortest_edge': 0}, but it must be an int >= 1"),
        ({"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}, but"),
        ({"crop_size": {"shortest_edge": 224}}, "crop_size is {'shortest_edge': 224}, but .* {height, width}"),
        ({"crop_size": -1}, "crop_size is .*-1"),
        ({"resample": 9}, "resampl"),
        ({"image_mean": [0.5, 0.5]}, "image_mean has 2 numbers, but the image has 3 channels"),
        ({"do_convert_rgb": False, "images": synthetic(9, 9, "L")}, "image_mean has 3 numbers, but .* 1 channels"),
        ({"input_data_format": "channels_first"}, "shape .* with input_data_format='channels_first', but"),
        ({"input_data_format": "middle"}, "middle"),
    ],
)
def test_wrong_arguments_are_refused(processor_class, arguments, words):
    with pytest.raises(ValueError, match=words):
        processor_class()(**{"images": np.asarray(synthetic(9, 9)), **arguments})
    with pytest.raises(ValueError, match="resample is 'cubic', but it must be a PIL.Image.Resampling: NEAREST, "):
        processor_class(resample="cubic")


def test_round_trip_and_auto_class(processor_class, tmp_path):
    processor_class(size=384, crop_size=384, image_mean=[0.5, 0.4, 0.3]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    steps = ("exif_transpose", "convert_rgb", "resize", "center_crop", "rescale", "normalize")
    flags = {f"do_{name}": True for name in steps}
    assert saved == flags | {
        "image_processor_type": "CaitImageProcessor",
        "size": {"shortest_edge": 384},
        "crop_size": {"height": 384, "width": 384},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": list(IMAGENET_DEFAULT_STD),
    }
    image = synthetic(61, 50)
    expected = run(processor_class, image, 384, image_mean=[0.5, 0.4, 0.3])
    assert torch.equal(processor_class.from_pretrained(tmp_path)(image, return_tensors="pt").pixel_values, expected)

    CaitConfig().save_pretrained(tmp_path)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), CaitImageProcessor or CaitImageProcessorPil)
    backend = "pil" if processor_class is CaitImageProcessorPil else "torchvision"
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is processor_class and loaded.to_dict() == saved | {
        "image_mean": (0.5, 0.4, 0.3),
        "image_std": tuple(IMAGENET_DEFAULT_STD),
    }


def timm_folder(folder, architecture="cait_xxs24_224", model_args=None, **pretrained_cfg):
    """config.json as timm writes it beside the weights of a CaiT."""
    defaults = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    defaults |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"architecture": architecture, "num_classes": 10, "pretrained_cfg": defaults | pretrained_cfg}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | ({"model_args": model_args} if model_args else {})))
    return folder


@pytest.mark.parametrize(
    ("arguments", "size", "crop", "resample"),
    [
        ({}, 224, 224, 3),
        ({"input_size": [3, 384, 384]}, 384, 384, 3),
        ({"crop_pct": 0.9, "interpolation": "bilinear"}, 248, 224, 2),  # 224 / 0.9 = 248.9 is rounded down
        ({"model_args": {"img_size": 448}}, 448, 448, 3),
        ({"model_args": {"img_size": [128, 128], "drop_path_rate": 0.1}, "crop_pct": None}, 146, 128, 3),
    ],
)
def test_timm_folder(processor_class, arguments, size, crop, resample, tmp_path):
    processor = processor_class.from_pretrained(timm_folder(tmp_path, **arguments))
    assert processor.size == {"shortest_edge": size} and processor.crop_size == {"height": crop, "width": crop}
    assert processor.resample == resample
    assert processor.image_mean == (0.1, 0.2, 0.3) and processor.image_std == (0.4, 0.5, 0.6)
    assert processor_class.from_pretrained(tmp_path, size=99, do_normalize=False).size == {"shortest_edge": 99}
    processor.save_pretrained(tmp_path)  # from now on there is a preprocessor_config.json, which wins
    timm_folder(tmp_path, crop_pct=0.5)
    assert processor_class.from_pretrained(tmp_path).to_dict() == processor.to_dict()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"architecture": "vit_tiny_patch16_224"}, "architecture is 'vit_tiny_patch16_224' in timm's .* cait_*"),
        ({"crop_mode": "squash"}, "crop_mode is 'squash' in timm's config.json, but .* 'center'"),
        ({"interpolation": "random"}, "interpolation is 'random' in timm's config.json, but .* bicubic"),
        ({"input_size": [3, 224, 384]}, r"input_size is \(3, 224, 384\) in timm's config.json, but"),
        ({"input_size": [1, 224, 224]}, r"input_size is \(1, 224, 224\)"),
        ({"crop_pct": -1}, "crop_pct is -1 in timm's"),
    ],
)
def test_timm_folder_that_no_processor_fits(processor_class, arguments, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        processor_class.from_pretrained(timm_folder(tmp_path, **arguments))


def test_folder_without_a_processor(processor_class, tmp_path):
    with pytest.raises(OSError, match="has no preprocessor_config.json and no config.json of timm"):
        processor_class.from_pretrained(tmp_path)
    CaitConfig().save_pretrained(tmp_path)  # a config.json, not timm's
    with pytest.raises(OSError, match="preprocessor_config.json"):
        processor_class.from_pretrained(tmp_path)


def test_hub_arguments_reach_every_file(processor_class, tmp_path, monkeypatch):
    asked = []

    def cached_file(repo, filename, **kwargs):
        asked.append((repo, filename, {name: kwargs[name] for name in hub}))
        return str(timm_folder(tmp_path) / "config.json") if filename == "config.json" else None

    hub = {"revision": "0" * 40, "token": "t", "cache_dir": "c", "subfolder": "s", "local_files_only": True}
    monkeypatch.setattr(image_processing_base, "cached_file", cached_file)
    processor = processor_class.from_pretrained("timm/cait_xxs24_224.fb_dist_in1k", **hub)
    assert processor.image_mean == (0.1, 0.2, 0.3)
    assert "config.json" in [filename for _, filename, _ in asked]
    assert all(repo == "timm/cait_xxs24_224.fb_dist_in1k" and kwargs == hub for repo, _, kwargs in asked)


def test_folder_written_by_timm(tmp_path):
    timm = pytest.importorskip("timm", reason="needs timm to write its own config.json")
    model = timm.create_model("cait_xxs24_224", depth=1, img_size=160)
    timm.models.save_for_hf(model, tmp_path, model_config={"pretrained_cfg": {"crop_pct": 0.8}})
    processor = CaitImageProcessorPil.from_pretrained(tmp_path)
    data_config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}"))
    for image in (synthetic(61, 50), *real_images()):
        pixels = processor(image, return_tensors="pt").pixel_values[0]
        assert pixels.shape == (3, 160, 160)
        assert torch.equal(pixels, timm.data.create_transform(**data_config)(image))

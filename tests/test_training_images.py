# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The order of the images, their augmentation and mixup: what `cait_hf.training` draws depends on the place alone.

Mixup is checked by its own pixels: images of one color tell which fraction of each image a mixed one has. Where timm
does the work, the values expected are timm's own (1.0.31) or follow from the definition of what was asked for.
"""

import random
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image, ImageOps
from transformers import (
    BitImageProcessor,
    BitImageProcessorPil,
    ConvNextImageProcessor,
    DeiTImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileViTImageProcessor,
    PerceiverImageProcessor,
    PPLCNetImageProcessor,
    Siglip2ImageProcessorPil,
    TimmWrapperImageProcessor,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from cait_hf.image_processing_cait import CaitImageProcessor
from cait_hf.image_processing_pil_cait import CaitImageProcessorPil
from cait_hf.training.arguments import RecipeArguments
from cait_hf.training.randomness import Randomness
from cait_hf.training.sampling import TrainSampler
from cait_hf.training.transforms import EvalTransform, TrainCollator, TrainTransform, collate, random_part, smooth


NO_TIMM = "RandAugment, erasing, mixup and repeated augmentation are timm's"


def streams() -> tuple:
    """Where the random streams of Python, numpy and torch are."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def processor(size: int = 16) -> CaitImageProcessorPil:
    return CaitImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def augmenting(size: int = 16, seed: int = 0, **recipe) -> TrainTransform:
    return TrainTransform(processor(size), Randomness(seed), RecipeArguments(**recipe))


def mixing(num_labels: int = 8, seed: int = 0, smoothing: float = 0.0, **recipe) -> TrainCollator:
    return TrainCollator(num_labels, Randomness(seed), smoothing, RecipeArguments(**recipe))


def make_image(width: int = 24, height: int = 24, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# Random numbers


def test_generators_depend_on_seed_epoch_and_place():
    def draw(seed: int, epoch: int, *place: int) -> float:
        randomness = Randomness(seed)
        randomness.epoch = epoch
        with randomness.seeded(*place):
            seeded = random.random(), np.random.rand(), torch.rand(()).item()
        return randomness.generator(*place).random(), *seeded

    places = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2), (0, 0, 1, 1)]
    for index in range(4):
        draws = [draw(*place)[index] for place in places]
        assert len(set(draws)) == len(places) and draws == [draw(*place)[index] for place in places]


def test_seeded_leaves_the_streams_as_they_were():
    for _ in range(2):  # also after an error
        before = streams()
        with pytest.raises(KeyError), Randomness(0).seeded(3):
            random.random(), np.random.rand(), torch.rand(1)
            assert all(one != other for one, other in zip(streams(), before))
            raise KeyError
        assert streams() == before


def test_seeded_within_seeded_continues_afterwards():
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(()).item()

    randomness = Randomness(0)
    with randomness.seeded(3):
        expected = draw(), draw()
    with randomness.seeded(3):
        first = draw()
        with randomness.seeded(4):
            assert draw() not in expected
        assert (first, draw()) == expected


# Order


def orders(sampler: TrainSampler, epochs: int) -> list[list[int]]:
    found = []
    for epoch in range(epochs):
        sampler.randomness.epoch = epoch
        found.append(list(sampler))
    return found


def test_sampler_permutes_again_each_epoch():
    before = streams()
    found = orders(TrainSampler(50, Randomness(7)), 3)
    assert [sorted(order) for order in found] == 3 * [list(range(50))]
    assert found[0] != found[1] != found[2] != found[0]
    assert found == orders(TrainSampler(50, Randomness(7)), 3) and found != orders(TrainSampler(50, Randomness(8)), 3)
    assert len(TrainSampler(50, Randomness(7))) == 50 and streams() == before


def test_repeated_augmentation_in_one_process():
    """Three views after each other; from 256 images on, the length is a multiple of 256, as in timm."""
    pytest.importorskip("timm", reason=NO_TIMM)
    for num_images, length in ((50, 50), (600, 512)):
        sampler = TrainSampler(num_images, Randomness(7), views=3)
        first, second = orders(sampler, 2)
        assert len(sampler) == len(first) == len(set(first)) == length
        assert [key // num_images for key in first] == [place % 3 for place in range(length)]
        images = [key % num_images for key in first]
        assert images[::3][: length // 3] == images[1::3][: length // 3] == images[2::3]
        assert len(set(images)) == -(-length // 3)
        assert first == orders(TrainSampler(num_images, Randomness(7), views=3), 1)[0] and first != second


@pytest.mark.parametrize("num_processes, views", [(2, 2), (2, 3), (3, 3)])
def test_views_of_an_image_go_to_different_processes(num_processes, views):
    """As timm's sampler gives each process every n-th of the views; accelerate deals whole batches instead."""
    distributed_sampler = pytest.importorskip("timm.data.distributed_sampler", reason=NO_TIMM)
    num_images, batch_size = 48, 4
    sampler = TrainSampler(num_images, Randomness(0), views, batch_size, num_processes)
    batches = torch.utils.data.BatchSampler(sampler, batch_size, drop_last=False)
    dealt = []
    for process in range(num_processes):
        dealt.append([key for batch in BatchSamplerShard(batches, num_processes, process) for key in batch])
        reference = distributed_sampler.RepeatAugSampler(
            range(num_images), num_replicas=num_processes, rank=process, num_repeats=views
        )
        reference.set_epoch(sampler._repeated.epoch)
        assert [key % num_images for key in dealt[-1]] == list(reference)
    assert sorted(sum(dealt, [])) == sorted(set(sampler))
    for image in {key % num_images for key in sampler}:
        counts = [sum(key % num_images == image for key in keys) for keys in dealt]
        assert max(counts) - min(counts) <= 1


# Augmentation


def views(transform: TrainTransform, keys: list[int]) -> torch.Tensor:
    return torch.stack([transform(make_image(seed=key % 3), key) for key in keys])


@pytest.mark.parametrize("augmentation", [{}, {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}])
def test_pixels_do_not_depend_on_the_workers(augmentation):
    if augmentation:
        pytest.importorskip("timm", reason=NO_TIMM)
    epochs = {}
    for workers in (0, 1, 2):
        torch.manual_seed(workers), np.random.seed(workers), random.seed(workers)
        transform = augmenting(seed=3, **augmentation)
        options = {"num_workers": workers, "persistent_workers": workers > 0, "collate_fn": partial(views, transform)}
        loader = torch.utils.data.DataLoader(range(6), 2, **options)
        for epoch in (0, 1):
            transform.randomness.epoch = epoch
            epochs[workers, epoch] = torch.cat(list(loader))
    for epoch in (0, 1):
        assert torch.equal(epochs[0, epoch], epochs[1, epoch]) and torch.equal(epochs[0, epoch], epochs[2, epoch])
    for key in range(6):
        assert not torch.equal(epochs[0, 0][key], epochs[0, 1][key])
    assert not torch.equal(epochs[0, 0][0], epochs[0, 0][3])  # another view of the same image
    assert not torch.equal(epochs[0, 0][0], views(augmenting(seed=4, **augmentation), [0])[0])


@pytest.mark.parametrize("width, height", [(24, 24), (32, 24), (24, 32)])
def test_whole_image_without_randomness(width, height):
    """All of its area is all of the image, where its shape is one of the crop's; the pixels are the evaluation's."""
    image = make_image(width, height)
    square = image.resize((16, 16), Image.Resampling.BICUBIC)
    for flip, expected in ((0.0, square), (1.0, ImageOps.mirror(square))):
        transform = augmenting(crop_area=1.0, flip_probability=flip)
        for key in range(5):
            own = EvalTransform(processor())(expected, key)
            torch.testing.assert_close(transform(image, key), own, rtol=0, atol=1e-6)  # its own order of rounding


BIT = {"size": {"shortest_edge": 24}, "crop_size": {"height": 16, "width": 16}}
SQUARE = {"size": {"height": 16, "width": 16}}
PROCESSORS = {
    "crops less than it resizes": (CaitImageProcessor, BIT),
    "crops less than it resizes, Pillow": (CaitImageProcessorPil, BIT),
    "crops another shape": (CaitImageProcessorPil, {**BIT, "crop_size": {"height": 8, "width": 16}}),
    "DINOv2": (BitImageProcessor, BIT),
    "DINOv2, Pillow": (BitImageProcessorPil, BIT),
    "ConvNeXt": (ConvNextImageProcessor, {"size": {"shortest_edge": 16}, "crop_pct": 0.8}),
    "DeiT": (DeiTImageProcessorPil, {**SQUARE, "size": {"height": 20, "width": 20}, "crop_size": SQUARE["size"]}),
    "crops, then resizes": (PerceiverImageProcessor, {**SQUARE, "crop_size": {"height": 20, "width": 20}}),
    "normalizes twice": (EfficientNetImageProcessorPil, {**SQUARE, "rescale_offset": True, "rescale_factor": 2 / 255}),
    "blue first": (MobileViTImageProcessor, BIT),
    "blue first, normalized": (PPLCNetImageProcessor, {"resize_short": 20, "crop_size": SQUARE["size"]}),
    "one number for all channels": (ViTImageProcessorPil, {**SQUARE, "image_mean": 0.4, "image_std": 0.3}),
    "pixels to 255": (ViTImageProcessorPil, {**SQUARE, "do_rescale": False, "image_mean": 120.0, "image_std": 60.0}),
    "pixels as they are": (ViTImageProcessor, {**SQUARE, "do_rescale": False, "do_normalize": False}),
}


@pytest.mark.parametrize("processor_class, fields", PROCESSORS.values(), ids=PROCESSORS)
def test_pixels_are_those_of_any_processor(processor_class, fields):
    """A training image of the whole area of an image of the model's size is what the processor makes of its pixels."""
    if processor_class in (CaitImageProcessor, PPLCNetImageProcessor):
        pytest.importorskip("torchvision", reason="this image processor works on torchvision")
    image_processor = processor_class(**fields)
    transform = TrainTransform(image_processor, Randomness(0), RecipeArguments(crop_area=1.0, flip_probability=0.0))
    evaluated = EvalTransform(image_processor)(make_image(40, 30), 0)
    assert transform.size == evaluated.shape[1:] == (8 if fields.get("crop_size", {}).get("height") == 8 else 16, 16)
    image = make_image(16, 16)
    if transform.size == (16, 16):
        own = image_processor(image, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(transform(image, 0), own.float(), rtol=1e-5, atol=1e-5)
    color = Image.new("RGB", (40, 30), (200, 100, 50))
    own = EvalTransform(image_processor)(color, 0)
    torch.testing.assert_close(transform(color, 0), own, rtol=1e-5, atol=1e-5)


def test_pixels_are_those_of_timms_processor():
    pytest.importorskip("timm", reason="a processor of timm")
    config = {"input_size": (3, 16, 16), "crop_pct": 0.7, "mean": (0.5, 0.4, 0.3), "std": (0.3, 0.2, 0.1)}
    image_processor = TimmWrapperImageProcessor(config)
    color = Image.new("RGB", (40, 30), (200, 100, 50))
    found = TrainTransform(image_processor, Randomness(0))(color, 0)
    torch.testing.assert_close(found, EvalTransform(image_processor)(color, 0), rtol=1e-5, atol=1e-5)


class Equalizing(ViTImageProcessorPil):
    def rescale(self, image, scale, **kwargs):
        return super().rescale(image, scale, **kwargs) ** 2


WRONG_PROCESSORS = [
    (ViTImageProcessorPil(**SQUARE, image_mean=[0.5]), "ViTImageProcessorPil does not make pixel values .*: .*mean"),
    (BitImageProcessorPil(**{**BIT, "do_center_crop": False}), "BitImageProcessorPil .* of 24 x 32 or 32 x 24 .*crop"),
    (BitImageProcessorPil(**{**BIT, "size": {"shortest_edge": 12}}), "BitImageProcessorPil does more .* padding"),
    (Equalizing(**SQUARE), "Equalizing does more than to resize, crop and normalize"),
    (Siglip2ImageProcessorPil(), r"Siglip2ImageProcessorPil makes values of shape \(256, 768\)"),
]


@pytest.mark.parametrize("image_processor, message", WRONG_PROCESSORS)
def test_processors_that_do_more_are_named(image_processor, message):
    with pytest.raises(ValueError, match=f"the image processor {message}"):
        TrainTransform(image_processor, Randomness(0))


def test_16_bits_reach_the_model_as_the_image_of_8_bits():
    ramp = np.linspace(0, 255, 24 * 24).astype(np.uint8).reshape(24, 24)
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    for transform in (augmenting(), EvalTransform(processor())):
        assert torch.equal(transform(deep, 0), transform(Image.fromarray(ramp), 0))


def test_images_are_mirrored_as_often_as_asked():
    image = make_image()
    transform = augmenting(crop_area=1.0, flip_probability=0.3)
    mirrored = augmenting(crop_area=1.0, flip_probability=1.0)(image, 0)
    fraction = sum(torch.equal(transform(image, key), mirrored) for key in range(400)) / 400
    assert abs(fraction - 0.3) < 0.1  # more than four standard deviations


def test_crop_takes_the_area_that_was_asked_for():
    """Colors that grow along both axes tell which part of the image is seen."""
    ramp = np.linspace(0, 255, 128)
    image = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, None], 0 * ramp), -1).astype(np.uint8))
    for least in (0.25, 0.9):
        transform = augmenting(crop_area=least, flip_probability=0.0)
        plain = processor()
        mean, std = (torch.tensor(values)[:2, None, None] for values in (plain.image_mean, plain.image_std))
        areas = []
        for key in range(200):
            seen = transform(image, key)[:2] * std + mean
            spread = torch.stack([seen[0].mean(0).diff().mean(), seen[1].mean(1).diff().mean()]) * 16
            areas.append(spread.prod().item())
        assert least - 0.06 < min(areas) < least + 0.06 and max(areas) > 0.9


def test_erasing_puts_noise_into_one_rectangle():
    pytest.importorskip("timm", reason=NO_TIMM)
    plain, erasing, seldom = (augmenting(64, random_erasing=probability) for probability in (0.0, 1.0, 0.25))
    before = streams()
    noise = []
    for key in range(20):
        changed = (plain(make_image(), key) != erasing(make_image(), key)).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.015 < changed.float().mean() < 0.35  # timm: 2 % to a third
        noise.append(erasing(make_image(), key)[:, changed].flatten())
    noise = torch.cat(noise)
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05  # as the pixels that the model gets
    assert streams() == before
    fraction = sum(not torch.equal(plain(make_image(), key), seldom(make_image(), key)) for key in range(200)) / 200
    assert abs(fraction - 0.25) < 0.13


def test_auto_augment_acts_before_the_normalization():
    """What reaches the model are still 256 levels of color, normalized."""
    pytest.importorskip("timm", reason=NO_TIMM)
    image, plain = make_image(), augmenting()
    before = streams()
    for policy in ("rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2", "original", "3a"):
        transform = augmenting(auto_augment=policy)
        changed = [not torch.equal(plain(image, key), transform(image, key)) for key in range(20)]
        assert sum(changed) > 10, policy
        pixels = transform(image, 1) * torch.tensor(processor().image_std)[:, None, None]
        pixels = 255 * (pixels + torch.tensor(processor().image_mean)[:, None, None])
        torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
        assert 0 <= pixels.round().min() and pixels.round().max() <= 255
    assert streams() == before


@pytest.mark.parametrize("width, height", [(200, 150), (1, 1), (10, 4000), (4000, 10)])
def test_random_part_has_the_asked_area_and_shape(width, height):
    rng = np.random.default_rng(0)
    left, top, right, bottom = np.array([random_part(width, height, rng) for _ in range(500)]).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= width and bottom.max() <= height
    ratios, areas = (right - left) / (bottom - top), (right - left) * (bottom - top) / (width * height)
    assert ratios.min() >= 3 / 4 - 1e-9 and ratios.max() <= 4 / 3 + 1e-9
    if width == 200:
        assert 0.08 <= areas.min() < 0.1 and 0.9 < areas.max() <= 1
        assert ratios.min() < 0.8 and ratios.max() > 1.3
        assert left.min() < 5 and right.max() > 195


# Batches


def items(count: int, first_key: int = 10) -> list[dict]:
    """Images of one color, `index + 1`, each of a class of its own."""
    return [
        {"pixel_values": torch.full((3, 16, 16), index + 1.0), "labels": index, "key": first_key + index}
        for index in range(count)
    ]


def test_smoothing_needs_no_timm():
    expected = torch.tensor([[0.925, 0.025, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]])
    torch.testing.assert_close(smooth(torch.tensor([0, 3]), 4, 0.1), expected)
    batch = mixing(4, smoothing=0.1)(items(3))
    torch.testing.assert_close(batch["labels"], smooth(torch.arange(3), 4, 0.1), rtol=0, atol=0)
    assert torch.equal(batch["pixel_values"], collate(items(3))["pixel_values"])
    plain = mixing(4)(items(3))
    assert plain.keys() == {"pixel_values", "labels"} and torch.equal(plain["labels"], torch.arange(3))


MIXES = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.8, "cutmix": 1.0},
    "pair": {"mixup": 0.8, "cutmix": 1.0, "mixup_mode": "pair"},
    "elem": {"mixup": 0.8, "cutmix": 1.0, "mixup_mode": "elem"},
    "smoothed": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1},
    "seldom": {"mixup": 0.8, "mixup_prob": 0.5},
}


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("arguments", MIXES.values(), ids=MIXES)
def test_targets_tell_what_is_in_the_pixels(arguments, count):
    """The mean color of a mixed image is the mean of the colors that its target names, each with its fraction."""
    pytest.importorskip("timm", reason=NO_TIMM)
    smoothing, num_labels = arguments.get("smoothing", 0.0), 8
    collator = mixing(num_labels, **arguments)
    one_fraction, mixed = "mixup_mode" not in arguments, 0
    for key in range(0, 400, 10):
        batch = collator(items(count, key))
        targets = batch["labels"]
        torch.testing.assert_close(targets.sum(1), torch.ones(count), rtol=0, atol=1e-6)
        fractions = (targets - smoothing / num_labels) / (1 - smoothing)
        colors = torch.arange(num_labels) + 1.0
        torch.testing.assert_close(fractions @ colors, batch["pixel_values"].mean((1, 2, 3)), rtol=1e-5, atol=1e-5)
        if count % 2:  # the last of an odd number has no partner
            torch.testing.assert_close(fractions[-1], torch.eye(num_labels)[count - 1], rtol=0, atol=1e-6)
            assert (batch["pixel_values"][-1] == count).all()
        mixed += fractions[0, 0].item() < 1
    if count > 1 and one_fraction:
        assert 10 < mixed < 30 if "mixup_prob" in arguments else mixed > 30


@pytest.mark.parametrize("mode, draws", [("batch", 1), ("pair", 2), ("elem", 4)])
def test_batches_pairs_or_images_share_a_draw(mode, draws):
    """Of four images the first is mixed with the last, and the second with the third."""
    pytest.importorskip("timm", reason=NO_TIMM)
    collator = mixing(4, mixup=0.8, mixup_mode=mode)
    fractions = torch.stack([collator(items(4, key))["labels"].diagonal() for key in range(20)])
    assert {len(set(row.tolist())) for row in fractions} == {draws}
    if mode != "elem":
        assert torch.equal(fractions, fractions.flip(1))


def test_cutmix_and_mixup_alternate_as_asked():
    pytest.importorskip("timm", reason=NO_TIMM)
    for probability in (0.0, 0.25, 1.0):
        collator = mixing(mixup=0.8, cutmix=1.0, mixup_switch_prob=probability)
        pixels = [collator(items(2, key))["pixel_values"] for key in range(0, 400, 2)]
        cut = sum(bool(((values == 1) | (values == 2)).all()) for values in pixels) / len(pixels)
        assert abs(cut - probability) < 0.15


@pytest.mark.parametrize("flag", ["mixup", "cutmix"])
def test_each_mixes_alone_and_as_evenly_as_asked(flag):
    """Mixup leaves an image of one color, cutmix the colors as they are; the larger alpha, the nearer to a half."""
    pytest.importorskip("timm", reason=NO_TIMM)
    distances = []
    for alpha in (0.05, 50.0):
        batches = [mixing(**{flag: alpha})(items(2, key)) for key in range(0, 200, 2)]
        pixels, labels = (torch.cat([batch[name] for batch in batches]) for name in ("pixel_values", "labels"))
        if flag == "mixup":
            assert torch.equal(pixels.amin((1, 2, 3)), pixels.amax((1, 2, 3)))
        else:
            assert pixels.unique().tolist() == [1, 2]
        distances.append((labels[:, 0] - 0.5).abs().mean().item())
    assert distances[0] > 1.5 * distances[1]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_depends_on_seed_epoch_and_keys_alone(mode):
    pytest.importorskip("timm", reason=NO_TIMM)

    def mix(seed: int = 0, epoch: int = 0, key: int = 10) -> torch.Tensor:
        collator = mixing(seed=seed, mixup=0.8, cutmix=1.0, mixup_mode=mode)
        collator.randomness.epoch = epoch
        return collator(items(4, key))["labels"]

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = streams()
    first = mix()
    assert streams() == before
    torch.manual_seed(2), np.random.seed(2), random.seed(2)
    assert torch.equal(first, mix())
    for other in (mix(seed=1), mix(epoch=1), mix(key=11)):
        assert not torch.equal(first, other)


WRONG = [
    ("crop_area", 0.0, "above 0 and at most 1"),
    ("flip_probability", 1.5, "from 0 to 1"),
    ("random_erasing", -0.1, "from 0 to 1"),
    ("auto_augment", "plenty", "no such policy"),
    ("auto_augment", "rand-q9", "no such policy"),
    ("mixup", -1.0, "0 or more"),
    ("cutmix", float("nan"), "0 or more"),
    ("mixup_prob", 2.0, "from 0 to 1"),
    ("mixup_switch_prob", 2.0, "from 0 to 1"),
    ("mixup_mode", "half", "batch, pair or elem"),
    ("label_smoothing_factor", 1.5, "from 0 to 1"),
]


@pytest.mark.parametrize("flag, value, allowed", WRONG)
def test_wrong_values_end_with_an_error_message(flag, value, allowed):
    if flag == "auto_augment":
        pytest.importorskip("timm", reason=NO_TIMM)
    with pytest.raises(ValueError, match=f"--{flag} is {value}, but .*{allowed}"):
        mixing(smoothing=value) if flag == "label_smoothing_factor" else (
            mixing(**{flag: value}),
            augmenting(**{flag: value}),
        )

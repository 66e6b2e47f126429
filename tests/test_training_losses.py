# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What a step of training computes: losses, a teacher's part, the average of the weights, and what is dropped.

References are formulas written here. Tolerances: 1e-12 where both sides compute in float64, 1e-6 relative where the
code under test computes in float32, and none where both sides are the same computation.
"""

import copy
import math

import pytest
import torch
from random_weights import images, randomize_, tiny_config
from torch.nn import functional as F
from transformers import MobileViTImageProcessorPil, TrainingArguments, ViTConfig, ViTImageProcessorPil

from cait_hf import CaitConfig, CaitForImageClassification
from cait_hf.image_processing_pil_cait import CaitImageProcessorPil
from cait_hf.labels import imagenet_1k_labels
from cait_hf.losses import image_classification_loss
from cait_hf.training.arguments import RecipeArguments
from cait_hf.training.distillation import Distillation
from cait_hf.training.ema import EMA_FILE, ModelEma
from cait_hf.training.randomness import seed_forward_pass
from cait_hf.training.trainer import ImageClassificationTrainer


def cait(**fields) -> CaitForImageClassification:
    """3 patch layers and 2 class layers, with weights under which every part matters."""
    return randomize_(CaitForImageClassification(tiny_config(**fields)))


# Losses


@pytest.mark.parametrize("config_class", [CaitConfig, ViTConfig])
def test_loss_of_classes_and_of_soft_labels(config_class):
    """Minus the sum of fractions times logarithms of the softmax."""
    config = config_class(num_labels=5)
    logits = torch.randn(6, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    soft = torch.softmax(torch.randn(6, 5, dtype=torch.float64), dim=1)
    for targets, given in ((torch.eye(5, dtype=torch.float64)[labels], labels), (soft, soft)):
        of_each = -(targets * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1)
        for reduction, expected in (("mean", of_each.mean()), ("none", of_each)):
            loss = image_classification_loss(given, logits, config, reduction=reduction)
            torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    half = image_classification_loss(labels, logits.bfloat16(), config)
    assert torch.equal(half, image_classification_loss(labels, logits.bfloat16().float(), config))


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft labels"])
def test_training_computes_the_loss_of_the_model(soft, tmp_path):
    """Bit for bit, with labels of any dtype that the model takes."""
    model = cait(num_labels=5)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    labels = torch.randn(4, 5).softmax(1).half() if soft else torch.tensor([0, 4, -100, 2], dtype=torch.int32)
    inputs = {"pixel_values": images(4, 32), "labels": labels}
    loss = ImageClassificationTrainer(model, args).compute_loss(model, inputs)
    assert torch.equal(loss, model(**inputs).loss)


CLASSES = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}


def teacher(labels: dict[int, str] = CLASSES) -> CaitForImageClassification:
    """A classifier in training mode, in which it would drop much; it does not like one class best of all images."""
    model = cait(num_labels=len(labels), id2label=labels, hidden_dropout_prob=0.5)
    with torch.no_grad():
        model.classifier.bias -= model(pixel_values=images(16, 32, seed=2)).logits.mean(0)
    return model.train()


HALF = ViTImageProcessorPil(size={"height": 32, "width": 32})  # mean and standard deviation 0.5
BLUE_FIRST = MobileViTImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


def distillation(
    model: torch.nn.Module, kind: str = "hard", alpha: float = 0.5, tau: float = 1.0, labels=None, processor=HALF
):
    recipe = RecipeArguments(distillation_type=kind, distillation_alpha=alpha, distillation_tau=tau)
    return Distillation(model, recipe, CaitImageProcessorPil(), processor, labels or CLASSES)


@pytest.mark.parametrize("kind, alpha, tau", [("hard", 0.3, 1.0), ("soft", 0.3, 1.0), ("soft", 0.8, 3.0)])
def test_distillation_is_the_formula(kind, alpha, tau):
    """facebookresearch/deit, losses.py, written out; gradients too, and the labels may be mixed ones."""
    model = teacher()
    distil = distillation(model.double(), kind, alpha, tau)
    seen = images(6, 32).double()
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    fractions = torch.softmax(torch.randn(6, 5, dtype=torch.float64), dim=1)
    loss = distil(seen, logits, F.cross_entropy(logits, fractions))
    (gradient,) = torch.autograd.grad(loss, logits)

    with torch.no_grad():
        reference = copy.deepcopy(model).eval()
        theirs = reference(pixel_values=seen * distil.scale + distil.shift).logits
        own, soft, target = (z.exp() / z.exp().sum(1, keepdim=True) for z in (logits, logits / tau, theirs / tau))
        best = torch.eye(5, dtype=torch.float64)[theirs.argmax(1)]
        assert best.sum(0).max() < 6  # not one class for all
        taught = {
            "hard": -(best * own.log()).sum() / 6,
            "soft": tau**2 * (target * (target.log() - soft.log())).sum() / (6 * 5),
        }
        slope = {"hard": (own - best) / 6, "soft": tau * (soft - target) / (6 * 5)}
        expected = (1 - alpha) * -(fractions * own.log()).sum() / 6 + alpha * taught[kind]
        expected_slope = (1 - alpha) * (own - fractions) / 6 + alpha * slope[kind]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_slope, rtol=1e-12, atol=1e-12)


def test_teacher_never_trains():
    model = teacher()
    distil = distillation(model, "soft")
    logits = torch.randn(2, 5, requires_grad=True)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    losses = [distil(images(2, 32), logits, logits.sum()) for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_teacher_has_no_part_in_the_loss_of_an_evaluation(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model, inputs = cait(num_labels=5), {"pixel_values": images(4, 32), "labels": torch.arange(4)}
    trainer = ImageClassificationTrainer(model, args, distillation=distillation(teacher()))
    for training in (True, False):
        loss = trainer.compute_loss(model.train(training), inputs)
        assert torch.equal(loss, model(**inputs).loss) != training


@pytest.mark.parametrize("processor", [HALF, BLUE_FIRST], ids=["another mean", "blue first"])
def test_teacher_sees_its_own_normalization(processor):
    """Of the same pixels, to 1e-5 of values of a few units."""
    model, seen = teacher(), []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    student_sees, teacher_sees = (
        sees(list(pixels), **options).pixel_values for sees in (CaitImageProcessorPil(), processor)
    )
    assert not torch.allclose(student_sees, teacher_sees, atol=0.1)
    distillation(model, processor=processor)(student_sees, torch.zeros(2, 5), torch.zeros(()))
    torch.testing.assert_close(seen[0], teacher_sees, rtol=0, atol=1e-5)


def test_teacher_has_its_own_order_of_classes():
    mixed = {0: "dog", 1: "ant", 2: "elk", 3: "bee", 4: "cat"}
    assert distillation(teacher(mixed)).order.tolist() == [1, 3, 4, 0, 2]
    nameless = {index: f"LABEL_{index}" for index in range(5)}
    assert distillation(teacher(nameless)).order.tolist() == [0, 1, 2, 3, 4]
    # ImageNet-1k has two classes that WordNet calls crane: they keep their order
    twice = {0: "crane", 1: "bee", 2: "crane", 3: "dog", 4: "elk"}
    assert distillation(teacher(twice), labels=twice).order.tolist() == [0, 1, 2, 3, 4]
    assert distillation(teacher({**twice, 1: "crane", 2: "bee"}), labels=twice).order.tolist() == [0, 2, 1, 3, 4]

    model, logits = teacher(mixed), torch.randn(4, 5)
    loss = distillation(model, alpha=1.0)(images(4, 32), logits, torch.zeros(()))
    distil = distillation(copy.deepcopy(model))
    with torch.no_grad():
        best = model(pixel_values=images(4, 32) * distil.scale + distil.shift).logits.argmax(1).tolist()
    index_of = {name: index for index, name in CLASSES.items()}
    classes = torch.tensor([index_of[mixed[index]] for index in best])
    torch.testing.assert_close(loss, F.cross_entropy(logits, classes), rtol=1e-6, atol=0)


def test_teachers_of_imagenet_may_spell_its_classes_otherwise():
    """As timm's do, whose 1000 names differ from ours in the two cranes; folders of images are called by synsets."""
    data = pytest.importorskip("timm.data", reason="the names of timm's teachers, and the list of synsets")
    info, ours = data.ImageNetInfo(), imagenet_1k_labels()
    theirs = dict(enumerate(info.label_descriptions()))
    synsets = dict(enumerate(info.label_names()))
    turned = dict(enumerate([*info.label_names()[1:], info.label_names()[0]]))
    assert ours[134] == "crane (bird)" and theirs[134] == theirs[517] == "crane"
    straight, after, before = ([(index + step) % 1000 for index in range(1000)] for step in (0, 1, -1))
    for student, teachers, expected in (
        (ours, theirs, straight),
        (synsets, theirs, straight),
        (turned, theirs, after),
        (turned, synsets, after),
        (ours, turned, before),
    ):
        assert distillation(teacher(teachers), labels=student).order.tolist() == expected
    with pytest.raises(ValueError, match="the teacher does not have the class 'ant 0'"):
        distillation(teacher(theirs), labels={index: f"ant {index}" for index in range(1000)})


WRONG_TEACHERS = [
    ({"kind": "strict"}, "--distillation_type is strict, "),
    ({"alpha": 1.5}, "--distillation_alpha is 1.5, "),
    ({"kind": "soft", "tau": 0.0}, "--distillation_tau is 0.0, "),
    ({"labels": {**CLASSES, 5: "fox"}}, "the teacher has 5 classes and the model 6"),
    ({"labels": {**CLASSES, 4: "eel"}}, "the teacher does not have the class 'eel'"),
    ({"labels": {**CLASSES, 1: "ant"}}, "the teacher does not have the class 'ant'"),
]


@pytest.mark.parametrize("arguments, message", WRONG_TEACHERS)
def test_wrong_teacher_ends_with_an_error_message(arguments, message):
    with pytest.raises(ValueError, match=message):
        distillation(teacher(), **arguments)


# Average of the weights


def batch_norm() -> torch.nn.Module:
    """With buffers that are numbers and one that counts."""
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).double()


def steps(model: torch.nn.Module, count: int):
    """Weights and buffers of a training that moves."""
    for step in range(1, count + 1):
        model(torch.randn(8, 3, dtype=torch.float64))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        yield step


@pytest.mark.parametrize("decay, warmup", [(0.9, False), (0.9, True), (0.5, True)])
def test_average_is_the_recursion(decay, warmup):
    """average = d * average + (1 - d) * weights; the first step's weights are the first average.

    With warm-up d is at most 1 - step ** (-2 / 3), as timm's documentation of `ModelEmaV3` has it.
    """
    pytest.importorskip("timm", reason="the average is timm's ModelEmaV3")
    model = batch_norm()
    average, expected = ModelEma(model, decay, warmup), {}
    for step in steps(model, 12):
        average.update(model, step)
        kept = min(decay, 1 - step ** (-2 / 3)) if warmup else decay
        for name, value in model.state_dict().items():
            moves = value.is_floating_point() and step > 1
            expected[name] = kept * expected[name] + (1 - kept) * value if moves else value.clone()
    with average.in_place_of(model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    assert int(expected["1.num_batches_tracked"]) == 12


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_average_takes_the_place_of_the_weights_for_a_while(tmp_path):
    """One that was saved and loaded, too, which continues as if it had never been."""
    pytest.importorskip("timm", reason="the average is timm's ModelEmaV3")
    model = batch_norm()
    average, loaded = (ModelEma(batch_norm(), 0.9, warmup=True) for _ in range(2))
    for step in steps(model, 6):
        average.update(model, step)
        if step == 3:
            average.save(tmp_path)
            loaded.load(tmp_path)
        if step > 3:
            loaded.update(model, step)
    own, parameters = state(model), [id(parameter) for parameter in model.parameters()]
    with average.in_place_of(model):
        averaged = state(model)
    assert_same(state(model), own)
    with pytest.raises(KeyError), loaded.in_place_of(model):
        assert_same(state(model), averaged)
        raise KeyError
    assert_same(state(model), own)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert all(not torch.equal(own[name], averaged[name]) for name in own if own[name].is_floating_point())
    assert [path.name for path in tmp_path.iterdir()] == [EMA_FILE]
    with pytest.raises(ValueError, match=f"nowhere contains no {EMA_FILE}: it was written without --ema_decay"):
        average.load(tmp_path / "nowhere")


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan])
def test_wrong_decay_ends_with_an_error_message(decay):
    with pytest.raises(ValueError, match=f"--ema_decay is {decay}, but it must be between 0 and 1"):
        ModelEma(batch_norm(), decay)


# Drop path


def test_same_place_in_training_drops_the_same_branches():
    model = cait(drop_path_rate=0.5, hidden_dropout_prob=0.1).train()

    def logits(*place: int) -> torch.Tensor:
        seed_forward_pass(*place)
        with torch.no_grad():
            return model(pixel_values=images(8, 32)).logits

    first = logits(0, 3, 1, 0)
    torch.randn(7)
    assert torch.equal(first, logits(0, 3, 1, 0))
    places = [(1, 3, 1, 0), (0, 4, 1, 0), (0, 3, 0, 0), (0, 3, 1, 1), (3, 0, 0, 1), (0, 1, 3, 0)]
    others = [first, *(logits(*place) for place in places)]
    assert not any(torch.equal(one, other) for i, one in enumerate(others) for other in others[:i])


def test_activation_checkpointing_drops_the_same_branches():
    """The layers that are computed again for the gradient drop what they dropped before, to the bit."""
    results = []
    for checkpointing in (False, True):
        model = cait(drop_path_rate=0.5, hidden_dropout_prob=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        seed_forward_pass(0, 1, 0, 0)
        model(pixel_values=images(8, 32), labels=torch.arange(8) % 5).loss.backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same(*results)

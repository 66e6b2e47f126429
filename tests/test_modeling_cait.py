# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaitModel and CaitForImageClassification: outputs, losses, resolutions, dtypes, gradients, groups, Auto classes."""

import copy
import importlib
import math
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from random_weights import images, randomize_, tiny_config
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModel, AutoModelForImageClassification, pipeline

import cait_hf
from cait_hf import (
    CaitBackbone,
    CaitForImageClassification,
    CaitForMaskedImageModeling,
    CaitImageProcessorPil,
    CaitModel,
)
from cait_hf.attention_cait import class_attention_forward
from cait_hf.losses import image_classification_loss


IMPLEMENTATIONS = ("eager", "sdpa")


@pytest.fixture
def model() -> CaitForImageClassification:
    return randomize_(CaitForImageClassification(tiny_config()))


# --- outputs


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_outputs(implementation):
    model = CaitModel(tiny_config())
    model.set_attn_implementation(implementation)
    randomize_(model)
    outputs = model(images(2, 32), output_hidden_states=True, output_attentions=True)
    assert outputs.last_hidden_state.shape == (2, 17, 48)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    assert [state.shape for state in outputs.hidden_states] == [(2, 16, 48)] * 4
    assert [attention.shape for attention in outputs.attentions] == [(2, 4, 16, 16)] * 3
    assert [attention.shape for attention in outputs.class_attentions] == [(2, 4, 1, 17)] * 2
    for attention in outputs.class_attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 1))
    # the last patch layer's output is what the class stage and the final norm read
    patches = model.layernorm(outputs.hidden_states[-1])
    torch.testing.assert_close(patches, outputs.last_hidden_state[:, 1:])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_maps_asked_for_are_never_empty(tmp_path, implementation):
    model = randomize_(CaitForImageClassification(tiny_config()))
    model.set_attn_implementation(implementation)
    expected = model(images(1, 32)).logits
    outputs = model(images(1, 32), output_attentions=True)
    assert (len(outputs.attentions), len(outputs.class_attentions)) == (3, 2)
    torch.testing.assert_close(outputs.logits, expected)

    only_class = model(images(1, 32), output_class_attentions=True)
    assert len(only_class.class_attentions) == 2 and only_class.attentions is None

    # the same asked of the configuration, when it is built and when it is loaded
    model.save_pretrained(tmp_path)
    loaded = CaitForImageClassification.from_pretrained(
        tmp_path, attn_implementation=implementation, output_attentions=True
    )
    loaded_outputs = loaded(images(1, 32))
    for ours, theirs in zip(
        outputs.attentions + outputs.class_attentions,
        loaded_outputs.attentions + loaded_outputs.class_attentions,
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    loaded.config.output_attentions = False
    assert loaded(images(1, 32)).attentions is None


def test_tuple_and_selected_outputs(model):
    loss, logits = model(images(2, 32), labels=torch.tensor([0, 1]), return_dict=False)
    assert loss.shape == () and logits.shape == (2, 5)
    as_tuple = model(images(2, 32), output_hidden_states=True, output_attentions=True, return_dict=False)
    assert [type(output) for output in as_tuple] == [torch.Tensor, tuple, tuple, tuple]
    assert model.config.return_dict is True


FUSED = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
FROM_THE_HUB = ("kernels-community/flash-attn2", "someone/attention@v1:forward")
PAGED = ("paged|eager", "sdpa_paged", "paged|flash_attention_2")
REASONS = {
    **dict.fromkeys(FUSED + FROM_THE_HUB, ": talking heads mix .* before and after"),
    **dict.fromkeys(PAGED, ": paged attention reads .* no cache"),
    "magic": r"\.$",
}


@pytest.mark.parametrize("value", [*REASONS, 3, True, ["eager"]], ids=str)
def test_unusable_implementations_are_refused_with_the_reason(model, value, tmp_path):
    """With or without the packages installed, and before a kernel is fetched: the tests' Hub sees no request."""
    quoted = f'"{value}"' if isinstance(value, str) else repr(value)
    reason = REASONS[value] if isinstance(value, str) else r"\.$"
    message = (
        rf"attn_implementation={re.escape(quoted)}` is not supported, it must be one of eager, [^:]*sdpa[^:]*{reason}"
    )
    model.save_pretrained(tmp_path)
    attempts = [
        lambda: CaitModel(tiny_config(attn_implementation=value)),
        lambda: model.set_attn_implementation(value),
    ]
    if isinstance(value, str):
        attempts.append(lambda: AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation=value))
    for attempt in attempts:
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        allowed = re.search("must be one of ([^:.]*)", str(error.value))[1]
        assert not re.search("flash|flex|paged|/", allowed)
    assert model.config._attn_implementation == "sdpa"
    assert not (model._supports_flash_attn or model._supports_flex_attn)


# --- inputs


def test_images_of_any_size():
    model = randomize_(CaitForImageClassification(tiny_config()))
    for height, width in ((32, 32), (24, 48), (64, 64), (8, 8)):
        outputs = model(images(1, height, width), interpolate_pos_encoding=True, output_attentions=True)
        patches = (height // 8) * (width // 8)
        assert outputs.attentions[0].shape == (1, 4, patches, patches)
    flagged = randomize_(CaitForImageClassification(tiny_config(interpolate_pos_encoding=True)))
    asked = model(images(1, 24, 48), interpolate_pos_encoding=True).logits
    assert torch.equal(flagged(images(1, 24, 48)).logits, asked)
    with pytest.raises(ValueError, match="interpolate_pos_encoding"):
        flagged(images(1, 24, 48), interpolate_pos_encoding=False)


def test_positions_are_interpolated_bicubically_over_the_grid():
    """Against an interpolation written down here by PyTorch's definition: a = -0.75, half-pixel centers, clamping."""
    model = CaitModel(tiny_config(image_size=(24, 40)))  # a grid of 3 x 5
    randomize_(model)
    table = model.embeddings.position_embeddings.detach().double().view(3, 5, 48)

    def weights(old: int, new: int) -> torch.Tensor:
        matrix = torch.zeros(new, old, dtype=torch.float64)
        for target in range(new):
            center = (target + 0.5) * old / new - 0.5
            first = int(center // 1) - 1
            for source in range(first, first + 4):
                x = abs(center - source)
                a = -0.75
                weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
                matrix[target, min(max(source, 0), old - 1)] += weight
        return matrix

    for rows, columns in ((4, 4), (2, 7), (3, 10), (6, 5)):
        expected = torch.einsum("ra,cb,abd->rcd", weights(3, rows), weights(5, columns), table).reshape(1, -1, 48)
        actual = model.embeddings.interpolate_pos_encoding(rows * 8, columns * 8)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    # the stored grid is returned as it is, and half precision is interpolated in float32
    assert model.embeddings.interpolate_pos_encoding(24, 40) is model.embeddings.position_embeddings
    exact = model.embeddings.interpolate_pos_encoding(32, 32)
    half = copy.deepcopy(model).bfloat16()
    in_float32 = half.float().embeddings.interpolate_pos_encoding(32, 32).bfloat16()
    assert torch.equal(half.bfloat16().embeddings.interpolate_pos_encoding(32, 32), in_float32)
    assert exact.dtype == torch.float32


@pytest.mark.parametrize("image_size", [48, (24, 40)])
def test_resize_position_embeddings(model, image_size, tmp_path):
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    expected = model(images(1, height, width), interpolate_pos_encoding=True).logits
    model.save_pretrained(tmp_path / "before")
    model.cait.embeddings.position_embeddings.requires_grad_(False)
    model.resize_position_embeddings(image_size)
    assert model.config.image_size == image_size
    assert model.get_position_embeddings().shape == (1, height * width // 64, 48)
    assert not model.get_position_embeddings().requires_grad
    assert torch.equal(model(images(1, height, width)).logits, expected)
    model.save_pretrained(tmp_path / "after")
    for folder, arguments in (("after", {}), ("before", {"image_size": image_size})):
        for auto_class in (CaitForImageClassification, AutoModelForImageClassification):
            loaded = auto_class.from_pretrained(tmp_path / folder, **arguments)
            assert loaded.config.image_size == image_size
            assert torch.equal(loaded.get_position_embeddings(), model.get_position_embeddings())
            # weights mapped from a file are aligned otherwise than allocated ones, which changes the order of sums
            torch.testing.assert_close(loaded(images(1, height, width)).logits, expected, rtol=1e-6, atol=1e-6)


def test_resize_refuses_what_the_patches_do_not_divide(model):
    with pytest.raises(ValueError, match="multiple of patch_size"):
        model.resize_position_embeddings(33)
    assert model.config.image_size == 32


@pytest.mark.parametrize(
    ("pixel_values", "words"),
    [
        (None, ["pixel_values is None"]),
        (torch.zeros(3, 32, 32), ["(3, 32, 32)", "(batch, 3, height, width)"]),
        (torch.zeros(1, 1, 32, 32), ["(1, 1, 32, 32)", "(batch, 3, height, width)"]),
        (torch.zeros(1, 3, 40, 32), ["40 x 32", "image_size is 32 x 32", "interpolate_pos_encoding=True"]),
        (torch.zeros(1, 3, 36, 32), ["36 x 32", "multiples of the patch size 8 x 8"]),
        (torch.zeros(1, 3, 32, 36), ["32 x 36", "multiples of the patch size 8 x 8"]),
    ],
)
def test_wrong_images_are_refused_with_an_error_message(model, pixel_values, words):
    with pytest.raises(ValueError) as error:
        model(pixel_values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_are_cast_to_the_weights(model, dtype):
    model.to(dtype)
    outputs = model(images(2, 32), labels=torch.tensor([0, 1]), output_hidden_states=True)
    assert outputs.logits.dtype == dtype
    assert outputs.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert all(state.dtype == dtype and state.isfinite().all() for state in outputs.hidden_states)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_softmax_runs_in_float32_or_wider(model, dtype):
    """Asked of the operator: its result on a CPU, whose kernel accumulates in float32 anyway, would not show it."""
    softmax_dtypes = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.aten._softmax.default:
                softmax_dtypes.append(result.dtype)
            return result

    model.to(dtype)
    with Recorder(), torch.no_grad():
        model(images(1, 32), output_attentions=True)
    assert softmax_dtypes == [torch.promote_types(dtype, torch.float32)] * 5


# --- losses


def test_losses_equal_their_definitions(model):
    x = images(4, 32)
    logits = model(x).logits.double()
    hard = torch.tensor([0, 4, 2, -100])
    soft = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    expected_hard = -logits.log_softmax(-1)[range(3), hard[:3]].mean()
    expected_soft = -(soft.double() * logits.log_softmax(-1)).sum(-1).mean()
    before = model.config.to_dict()
    # hard after soft and soft after hard
    for labels, expected in ((soft, expected_soft), (hard, expected_hard), (soft, expected_soft)):
        torch.testing.assert_close(model(x, labels=labels).loss.double(), expected, rtol=1e-6, atol=0)
    assert model.config.to_dict() == before
    # integer dtypes other than int64, and half-precision soft labels, are what datasets and autocast give
    assert torch.equal(model(x[:3], labels=hard[:3].int()).loss, model(x[:3], labels=hard[:3]).loss)
    torch.testing.assert_close(model(x, labels=soft.half()).loss, model(x, labels=soft).loss, rtol=1e-3, atol=0)

    model.config.problem_type = "single_label_classification"
    torch.testing.assert_close(model(x, labels=soft).loss.double(), expected_soft, rtol=1e-6, atol=0)

    model.config.problem_type = "multi_label_classification"
    several = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    expected = F.binary_cross_entropy(logits.sigmoid(), several.double())
    torch.testing.assert_close(model(x, labels=several).loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(model(x, labels=several.float()).loss.double(), expected, rtol=1e-6, atol=0)

    model.config.problem_type = "regression"
    torch.testing.assert_close(model(x, labels=soft).loss.double(), (logits - soft).square().mean(), rtol=1e-6, atol=0)


def test_one_label_is_a_regression():
    model = randomize_(CaitForImageClassification(tiny_config(num_labels=1)))
    x, targets = images(3, 32), torch.tensor([0.5, -1.0, 2.0])
    expected = (model(x).logits[:, 0] - targets).square().mean()
    for labels in (targets, targets[:, None]):
        torch.testing.assert_close(model(x, labels=labels).loss, expected)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (None, torch.tensor([[0], [1]])),
        (None, torch.tensor([0.0, 1.0])),
        (None, torch.zeros(2, 4)),
        (None, torch.tensor([0, 1, 2])),
        ("multi_label_classification", torch.tensor([0, 1])),
        ("regression", torch.zeros(2, 4)),
        ("regression", torch.zeros(5, 2)),
    ],
)
def test_wrong_labels_are_refused_with_an_error_message(model, problem_type, labels):
    model.config.problem_type = problem_type
    with pytest.raises(ValueError, match=rf"labels has shape {re.escape(str(tuple(labels.shape)))} .* must be \(2,"):
        model(images(2, 32), labels=labels)
    model.config.problem_type = "multilabel"
    with pytest.raises(ValueError, match="problem_type is 'multilabel'"):
        model(images(2, 32), labels=labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", [[1, 0, 1, 0, 0], [0] * 5, [0.5, 0.4, 0, 0, 0], [1.5, -0.5, 0, 0, 0], [math.nan] * 5])
def test_float_labels_that_are_no_distribution_are_refused_with_an_error_message(model, row, dtype):
    """Among them multi-hot labels, for which ViT without `problem_type` chooses binary cross-entropy."""
    labels = torch.tensor([[0, 0, 1, 0, 0], row], dtype=dtype)
    with pytest.raises(ValueError, match=r"labels\[1\] sums to .* problem_type to 'multi_label_classification'"):
        model(images(2, 32), labels=labels)
    model.config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match=r"labels\[1\] sums to"):
        image_classification_loss(labels, torch.zeros(2, 5, requires_grad=True), model.config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounded_distributions_are_soft_labels(dtype):
    """Smoothed, mixed and smoothed again over 1000 classes in `dtype`, and what a teacher's softmax gives."""
    config = tiny_config(num_labels=1000)
    smooth = torch.full((64, 1000), 1e-4, dtype=dtype).scatter(1, torch.arange(64)[:, None], 1 - 0.1 + 1e-4)
    fraction = torch.rand(64, 1).to(dtype)
    mixed = fraction * smooth + (1 - fraction) * smooth.flip(0)
    for labels in (smooth, mixed, (3 * torch.randn(64, 1000)).to(dtype).softmax(1), smooth.float(), mixed.float()):
        loss = image_classification_loss(labels, torch.zeros(64, 1000), config)
        torch.testing.assert_close(loss, torch.tensor(math.log(1000)), rtol=1e-2, atol=0)


def test_labels_are_checked_where_nothing_waits_for_values():
    """In a compiled graph without breaks, in an exported program, and not in `vmap`, for which there is no rule."""
    config, logits = tiny_config(), torch.randn(2, 5)

    class Loss(torch.nn.Module):
        def forward(self, labels):
            return image_classification_loss(labels, logits, config)

    good, wrong = torch.eye(5)[:2], torch.ones(2, 5)
    torch.compiler.reset()
    compiled = torch.compile(Loss(), backend="aot_eager", fullgraph=True)
    for call in (compiled, torch.export.export(Loss(), (good,)).module()):
        assert torch.equal(call(good), Loss()(good))
        with pytest.raises(RuntimeError, match="problem_type"):
            call(wrong)
    assert torch.func.vmap(Loss())(torch.stack([good, wrong])).shape == (2,)


@pytest.mark.parametrize("wrong", [5, -1, -101])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_class_indices_out_of_range_are_refused_with_an_error_message(model, wrong, dtype):
    with pytest.raises(ValueError, match=rf"labels contains {wrong}, .* \[0, 5\) or -100"):
        model(images(3, 32), labels=torch.tensor([-100, wrong, 4], dtype=dtype))


def test_labels_need_a_classifier():
    model = CaitForImageClassification(tiny_config(num_labels=0))
    assert model(images(2, 32)).logits.shape == (2, 48)  # the features
    for labels in (torch.tensor([0, 1]), torch.zeros(2, 48)):
        with pytest.raises(ValueError, match="num_labels is 0"):
            model(images(2, 32), labels=labels)


def test_loss_does_not_depend_on_the_class_name():
    class MyBackboneWithOpinions(CaitForImageClassification):
        pass

    model = randomize_(MyBackboneWithOpinions(tiny_config()))
    labels = torch.tensor([1, 3])
    outputs = model(images(2, 32), labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))


# --- training behavior


def test_every_parameter_gets_a_gradient(model):
    model.train()
    model(images(4, 32), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    largest = max(parameter.grad.abs().max() for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if name.endswith(("proj_l_bias", "k_proj.bias")):  # softmax ignores what is equal over the keys
            assert parameter.grad.abs().max() <= 1e-6 * largest, name
        else:
            assert (parameter.grad != 0).any(), name


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")  # its name before v6
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(model, use_reentrant):
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for candidate in (model, other):
        candidate.train()
        candidate(images(2, 32), labels=torch.tensor([0, 1])).loss.backward()
    recomputed = [module for module in other.modules() if getattr(module, "gradient_checkpointing", False)]
    assert len(recomputed) == 5
    # reentrant checkpointing adds up the gradients of shared inputs in another order
    tolerance = 1e-5 if use_reentrant else 0.0
    for parameter, reference in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=tolerance, atol=tolerance)


def test_drop_path_is_constant_over_depth_and_off_in_evaluation():
    model = randomize_(CaitForImageClassification(tiny_config(drop_path_rate=0.3, num_hidden_layers=4)))
    rates = [module.drop_prob for name, module in model.named_modules() if name.endswith("drop_path")]
    assert rates == [0.3] * 4
    x = images(2, 32)
    assert torch.equal(model(x).logits, model(x).logits)
    without = CaitForImageClassification(tiny_config(num_hidden_layers=4))
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(x).logits, without.eval()(x).logits)

    # in training whole images are dropped, and the mean over many draws is the branch
    drop_path = model.cait.layers[0].drop_path.train()
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(20000, 2, 3))
    kept = dropped[:, 0, 0] != 0
    assert torch.equal(dropped, kept[:, None, None] * torch.full_like(dropped, 1 / 0.7))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.015)


def test_dropout_is_in_the_patch_stage_only():
    model = CaitModel(tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, drop_path_rate=0.5))
    randomize_(model).train()
    torch.manual_seed(0)
    patches, class_token = torch.randn(2, 16, 48), torch.randn(2, 1, 48)
    for layer in model.class_layers:
        assert torch.equal(layer(class_token, patches), layer(class_token, patches))
    for layer in model.layers:
        assert not torch.equal(layer(patches), layer(patches))
    attention = model.layers[0].attention
    _, maps = attention(patches, output_attentions=True)
    assert 0.3 < (maps == 0).float().mean() < 0.7  # attention dropout, after the post-softmax projection
    _, maps = attention.eval()(patches, output_attentions=True)
    assert (maps != 0).all()


def test_no_weight_decay_and_layer_groups(model):
    assert model.no_weight_decay() == {"cait.embeddings.position_embeddings", "cait.embeddings.cls_token"}
    assert model.cait.no_weight_decay() == {"embeddings.position_embeddings", "embeddings.cls_token"}
    names = ["embeddings", *(f"layers.{i}" for i in range(3)), "class_layers.0", "class_layers.1", "head"]
    for candidate in (model, model.cait):
        groups = candidate.layer_groups()
        assert list(groups) == names
        grouped = [(name, id(parameter)) for group in groups.values() for name, parameter in group.items()]
        assert sorted(grouped) == sorted((name, id(parameter)) for name, parameter in candidate.named_parameters())
    groups = model.layer_groups()
    assert "cait.embeddings.cls_token" in groups["class_layers.0"]
    head = ("cait.layernorm.weight", "cait.layernorm.bias", "classifier.weight", "classifier.bias")
    assert set(groups["head"]) == set(head)


def test_subclasses_may_add_parameters():
    class Warm(CaitForImageClassification):
        def __init__(self, config):
            super().__init__(config)
            self.temperature = torch.nn.Parameter(torch.ones(()))
            self.extra = torch.nn.Conv2d(3, 3, 1, bias=False)
            self.post_init()

    groups = Warm(tiny_config()).layer_groups()
    assert {"temperature", "extra.weight"} <= set(groups["head"])


def test_parallel_plans_name_what_is_there():
    """Every rule of both plans fits modules of every model, and every MLP and every layer is in them."""
    for model_class in (CaitModel, CaitForImageClassification, CaitForMaskedImageModeling, CaitBackbone):
        model = model_class(tiny_config())
        names = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules()}
        assert model.tp_plan.keys() | model.fsdp_plan.keys() <= names, model_class
        assert model.tp_plan.keys() == {name for name in names if name.endswith((".fc1", ".fc2"))}
        layers = {name for name in names if name.endswith("layers.*")}
        assert model.fsdp_plan.keys() == layers | {name for name in names if name.split(".")[-1] == "layernorm"}
        assert all(style == ("colwise" if "fc1" in rule else "rowwise") for rule, style in model.tp_plan.items())
        styles = {rule: "free" if rule.endswith("layers.*") else "keep" for rule in model.fsdp_plan}
        assert model.fsdp_plan == {rule: f"{style}_full_weight" for rule, style in styles.items()}


def test_empty_batch(model):
    model.set_attn_implementation("eager")  # Transformers' function for "sdpa" refuses it
    assert model(images(0, 32)).logits.shape == (0, 5)


def test_class_attention_takes_any_registered_implementation(model):
    calls = []

    def counted(module, query, key, value, attention_mask, **kwargs):
        calls.append(query.shape)
        return class_attention_forward(module, query, key, value, attention_mask, **kwargs)

    expected = model(images(1, 32)).logits
    AttentionInterface.register("counted", counted)
    model.set_attn_implementation("counted")
    torch.testing.assert_close(model(images(1, 32)).logits, expected)
    assert calls == [(1, 4, 1, 12)] * 2


def test_input_embeddings_are_the_projection_of_the_patches():
    for model_class in (CaitModel, CaitForImageClassification, CaitForMaskedImageModeling, CaitBackbone):
        model = model_class(tiny_config())
        patch_embeddings = model.base_model.embeddings.patch_embeddings
        assert model.get_input_embeddings() is patch_embeddings.projection
        another = copy.deepcopy(patch_embeddings.projection)
        model.set_input_embeddings(another)
        assert model.get_input_embeddings() is patch_embeddings.projection is another


# --- Auto classes, saving, pipelines


def test_registration_is_idempotent():
    importlib.reload(cait_hf)
    assert isinstance(AutoModel.from_config(tiny_config()), CaitModel)
    assert isinstance(AutoModelForImageClassification.from_config(tiny_config()), CaitForImageClassification)


def test_saved_model_gives_the_same_logits_in_a_fresh_process(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = CaitForImageClassification.from_pretrained(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    torch.save((images(2, 32), loaded(images(2, 32)).logits.detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, cait_hf\n"
        "from transformers import AutoConfig, AutoModel, AutoModelForImageClassification\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "x, expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "model = AutoModelForImageClassification.from_pretrained(sys.argv[1] + '/model')\n"
        "assert torch.equal(model(x).logits, expected), 'classifier'\n"
        "base = AutoModel.from_pretrained(sys.argv[1] + '/model')\n"
        "assert torch.equal(model.classifier(base(x).pooler_output), expected), 'base model'\n"
        "assert AutoConfig.from_pretrained(sys.argv[1] + '/model').model_type == 'cait'\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(torch.get_num_threads())]
    subprocess.run(command, check=True, cwd=tmp_path)


@pytest.fixture
def processor(model, tmp_path) -> CaitImageProcessorPil:
    """The one of `tmp_path`, which contains the model too."""
    model.config.id2label = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
    model.save_pretrained(tmp_path)
    processor = CaitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    return processor


IMAGE = Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def test_pipeline_that_classifies(model, processor, tmp_path):
    predictions = pipeline("image-classification", model=str(tmp_path), top_k=5, use_fast=False)(IMAGE)
    expected = model(processor(IMAGE, return_tensors="pt").pixel_values).logits.softmax(-1)[0]
    assert {prediction["label"] for prediction in predictions} == {"ant", "bee", "cat", "dog", "elk"}
    for prediction in predictions:
        index = next(i for i, label in model.config.id2label.items() if label == prediction["label"])
        assert prediction["score"] == pytest.approx(expected[index].item(), abs=0.02)


@torch.no_grad()
def test_pipeline_that_extracts_features_with_pooling(model, processor, tmp_path):
    extract = pipeline("image-feature-extraction", model=str(tmp_path), use_fast=False)
    expected = model.cait(processor(IMAGE, return_tensors="pt").pixel_values)
    torch.testing.assert_close(torch.tensor(extract(IMAGE)), expected.last_hidden_state, rtol=0.1, atol=0.1)
    pooled = torch.tensor(extract(IMAGE, pool=True))
    assert pooled.shape == (1, 48)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=0.1, atol=0.1)
    batch = extract([IMAGE, IMAGE.rotate(90)], pool=True, batch_size=2, return_tensors=True)
    torch.testing.assert_close(batch[0], pooled, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(batch[1], pooled, rtol=0.1, atol=0.1)

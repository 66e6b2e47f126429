# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What trains and how fast: optimizer groups, learning rates, freezing, adapters.

References are timm's schedule and weight decay (1.0.31), to 1e-12, and rules written out here.
"""

import math

import pytest
import torch
from random_weights import images, randomize_, tiny_config
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from cait_hf import CaitForImageClassification
from cait_hf.image_processing_pil_cait import CaitImageProcessorPil
from cait_hf.state_dict import convert_to_official_state_dict
from cait_hf.training.arguments import ModelArguments, RecipeArguments, TrainingArguments
from cait_hf.training.models import add_lora, load_config, load_model, plain_model, save_model
from cait_hf.training.optimization import (
    cosine_schedule,
    decayed_parameter_names,
    freeze_all_but,
    make_optimizer,
    parameter_groups,
)


def cait(**fields) -> CaitForImageClassification:
    """3 patch layers and 2 class layers, with weights under which every part matters."""
    return randomize_(CaitForImageClassification(tiny_config(**fields)))


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def vit(**fields) -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VIT, image_size=32, patch_size=8, **fields))


def clip() -> CLIPForImageClassification:
    """Its parts are `vision_model` and `classifier`; nothing is called by its `base_model_prefix`."""
    return CLIPForImageClassification(CLIPConfig(vision_config={**VIT, "image_size": 32, "patch_size": 8}))


def test_weights_of_half_precision_train_in_float32(tmp_path):
    cait().bfloat16().save_pretrained(tmp_path)
    CaitImageProcessorPil().save_pretrained(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    model, _ = load_model(load_config(arguments), arguments)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# Optimizer groups


def by_parameter(groups: list[dict]) -> dict[int, dict]:
    """The group of each parameter; fails if one is in two."""
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


def assert_groups_are_right(model: torch.nn.Module, layer_decay: float):
    """Trainable parameters exactly once, the rule of weight decay, and lr * decay ** (groups after)."""
    group_of = by_parameter(parameter_groups(model, 1e-3, 0.05, layer_decay))
    assert set(group_of) == {id(p) for p in model.parameters() if p.requires_grad}
    layers = model.layer_groups() if layer_decay != 1 else {"all": dict(model.named_parameters())}
    for later, parameters in enumerate(reversed(layers.values())):
        for name, parameter in parameters.items():
            if parameter.requires_grad:
                spared = parameter.ndim < 2 or name.endswith(("position_embeddings", "cls_token"))
                assert group_of[id(parameter)]["weight_decay"] == (0.0 if spared else 0.05), name
                assert group_of[id(parameter)]["lr"] == pytest.approx(1e-3 * layer_decay**later, rel=1e-12), name


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
@pytest.mark.parametrize("trainable", ["all", "head", "attention", "2"])
def test_groups_hold_each_trainable_parameter_once(trainable, layer_decay):
    model = cait()
    freeze_all_but(model, trainable)
    assert_groups_are_right(model, layer_decay)


def test_groups_with_adapters():
    pytest.importorskip("peft", reason="LoRA is PEFT's")
    adapted = add_lora(cait(), RecipeArguments(lora_rank=2))
    groups = parameter_groups(plain_model(adapted), 1e-3, 0.05)
    group_of = by_parameter(groups)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert set(group_of) == {id(parameter) for parameter in trained.values()}
    assert {name.split(".")[-3] for name in trained if "lora" in name} == {"lora_A", "lora_B"}
    assert [name for name in trained if "lora" not in name] == [
        f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")
    ]
    assert sum("lora" in name for name in trained) == 2 * 2 * 5  # queries and values of five layers
    assert {name for name, p in trained.items() if group_of[id(p)]["weight_decay"] == 0} == {list(trained)[-1]}


def test_weight_decay_is_timms():
    timm = pytest.importorskip("timm", reason="the reference is timm's optimizer factory")
    from timm.optim import param_groups_weight_decay

    ours = CaitForImageClassification(tiny_config())
    decayed = decayed_parameter_names(ours)
    marks = {name: torch.full_like(p, float(name in decayed)) for name, p in ours.named_parameters()}
    marks = {name: bool(mark.all()) for name, mark in convert_to_official_state_dict(marks).items()}
    reference = timm.models.cait.Cait(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2.0, num_classes=5
    )
    groups = param_groups_weight_decay(reference, 0.05, no_weight_decay_list=reference.no_weight_decay())
    group_of = by_parameter(groups)
    assert marks == {name: group_of[id(p)]["weight_decay"] > 0 for name, p in reference.named_parameters()}


def test_weight_decay_of_a_model_without_rules_of_its_own():
    names = decayed_parameter_names(vit())
    assert "classifier.weight" in names and not any(name.endswith("bias") or "layernorm" in name for name in names)
    assert len(by_parameter(parameter_groups(vit(), 1e-3, 0.05, 1.0))) == len(list(vit().parameters()))


# Schedule


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("num_warmup_steps", [0, 1, 7, 60])
@pytest.mark.parametrize("warmup_lr, min_lr", [(1e-6, 1e-5), (0.0, 0.0), (5e-4, 5e-4)])
def test_cosine_schedule_is_timms(num_warmup_steps, warmup_lr, min_lr):
    """Also of groups with a fraction of the learning rate (timm's `lr_scale`): minimum and warm-up have it too.

    timm takes the plain learning rate of such a group and scales what it sets; here the group has the scaled one.
    """
    scheduler = pytest.importorskip("timm.scheduler", reason="the reference is timm's CosineLRScheduler")
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    fractions = (1.0, 0.75, 0.05)
    ours = torch.optim.SGD([{"params": [p], "lr": 5e-4 * fraction} for p, fraction in zip(parameters, fractions)])
    reference = torch.optim.SGD(
        [{"params": [p], "lr": 5e-4, "lr_scale": fraction} for p, fraction in zip(parameters, fractions)]
    )
    schedule = cosine_schedule(ours, 50, num_warmup_steps, 5e-4, warmup_lr, min_lr)
    timms = scheduler.CosineLRScheduler(
        reference,
        t_initial=50,
        lr_min=min_lr,
        warmup_t=num_warmup_steps,
        warmup_lr_init=warmup_lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    for step in range(65):  # also after the end
        timms.step_update(step)
        assert rates(ours) == pytest.approx(rates(reference), rel=1e-12, abs=0), step
        ours.step()
        schedule.step()
    assert rates(ours) == pytest.approx([min_lr * fraction for fraction in fractions], rel=1e-12)


# Freezing


def trained_names(model: torch.nn.Module, trainable: str) -> set[str]:
    names = freeze_all_but(model, trainable)
    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return set(names)


def test_freezing_of_a_cait():
    everything = {name for name, _ in cait().named_parameters()}
    head = {"classifier.weight", "classifier.bias"}
    assert trained_names(cait(), "all") == everything
    assert trained_names(cait(), "head") == head
    final = head | {"cait.layernorm.weight", "cait.layernorm.bias"}
    assert trained_names(cait(), "0") == final
    of_class_layers = {name for name in everything if name.startswith("cait.class_layers.")}
    assert len(of_class_layers) > 20
    last = {name for name in of_class_layers if name.startswith("cait.class_layers.1.")}
    assert trained_names(cait(), "1") == final | last
    class_stage = final | of_class_layers | {"cait.embeddings.cls_token"}
    assert trained_names(cait(), "2") == class_stage
    assert trained_names(cait(), "3") == class_stage | {n for n in everything if n.startswith("cait.layers.2.")}
    embeddings = {n for n in everything if n.startswith("cait.embeddings.")} - {"cait.embeddings.cls_token"}
    assert trained_names(cait(), "5") == everything - embeddings


def test_attention_only_is_the_official_rule():
    """facebookresearch/deit, main.py: what has ".attn." in its official name, the positions and the head."""
    model = cait()
    chosen = trained_names(model, "attention")
    marks = {name: torch.full_like(p, float(name in chosen)) for name, p in model.named_parameters()}
    marks = convert_to_official_state_dict(marks)
    assert {name for name, mark in marks.items() if mark.all()} == {
        name for name in marks if ".attn." in name or name in ("pos_embed", "head.weight", "head.bias")
    }
    assert all(mark.unique().numel() == 1 for mark in marks.values())


def test_freezing_of_other_models():
    assert trained_names(vit(), "head") == {"classifier.weight", "classifier.bias"}
    attention = trained_names(vit(), "attention")
    assert {"classifier.weight", "vit.embeddings.position_embeddings"} < attention
    assert not any("mlp" in name or "layernorm" in name or "patch" in name for name in attention)


# Optimizers of timm


def of_timm(name: str, optim_args: str | None = None) -> torch.optim.Optimizer:
    pytest.importorskip("timm", reason="the optimizers are timm's")
    args = TrainingArguments(learning_rate=2e-3, weight_decay=0.05, optim_args=optim_args)
    return make_optimizer(cait(), RecipeArguments(timm_optimizer=name, layer_decay=0.75), args)


def test_optimizer_of_timm_has_our_groups_and_the_arguments_of_the_flag():
    optimizer = of_timm("adamw", "betas=(0.8, 0.95), eps=1e-6")
    assert type(optimizer).__name__.startswith("AdamW")
    expected = parameter_groups(cait(), 2e-3, 0.05, 0.75)
    assert [group["name"] for group in optimizer.param_groups] == [group["name"] for group in expected]
    for group, like in zip(optimizer.param_groups, expected):
        assert (group["lr"], group["weight_decay"]) == (like["lr"], like["weight_decay"])
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)
    assert {group["betas"] for group in of_timm("adamw").param_groups} == {(0.9, 0.999)}


# Adapters


def test_adapters_are_merged_when_saved(tmp_path):
    pytest.importorskip("peft", reason="LoRA is PEFT's")
    adapted = add_lora(cait(), RecipeArguments(lora_rank=2, lora_target_modules="q_proj, fc1"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2)
    seen = images(2, 32)
    with torch.no_grad():
        expected, plain = adapted.eval()(pixel_values=seen).logits, cait()(pixel_values=seen).logits
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    save_model(adapted, CaitImageProcessorPil(), tmp_path)
    after = adapted.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    loaded = CaitForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=seen).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=0.1)


def schedule(lr: float, warmup_lr: float, min_lr: float):
    return cosine_schedule(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3), 10, 2, lr, warmup_lr, min_lr
    )


def lora(model: torch.nn.Module, targets: str = "q_proj"):
    pytest.importorskip("peft", reason="LoRA is PEFT's")
    add_lora(model, RecipeArguments(lora_rank=2, lora_target_modules=targets))


WRONG = [
    *((lambda v=v: parameter_groups(cait(), 1e-3, 0.05, v), f"--layer_decay is {v}, ") for v in (0.0, 1.5, math.nan)),
    (lambda: parameter_groups(vit(), 1e-3, 0.05, 0.5), "--layer_decay is 0.5, but ViTForImageClassification does not"),
    (lambda: of_timm("adamax2"), "--timm_optimizer is adamax2, but it must be one of .*adamw"),
    *(
        (lambda v=v: of_timm("adamw", v), "--optim_args is .*, but it must be NAME=VALUE, .* timm's adamw")
        for v in ("0.9", "eps", "eps=abs(1)", "**{}", "speed=1", "eps=-1.0", "eps=1)")
    ),
    (lambda: schedule(1e-3, 0.0, 1e-2), "--min_lr is 0.01, but it must be from 0 to .* 0.001"),
    (lambda: schedule(1e-3, -1.0, 0.0), "--warmup_lr is -1.0, but it must be from 0 to .* 0.001"),
    (lambda: schedule(0.0, 0.0, 0.0), "--learning_rate is 0.0, "),
    *((lambda v=v: freeze_all_but(cait(), v), f"--trainable is {v}, ") for v in ("6", "neck", "-1", "1.5", "")),
    (lambda: freeze_all_but(vit(), "1"), "--trainable is 1, but ViTForImageClassification does not"),
    # taken for a head, the whole model would train
    (lambda: freeze_all_but(clip(), "head"), "CLIPForImageClassification does not name its classifier"),
    (lambda: lora(clip()), "CLIPForImageClassification does not name its classifier"),
    # PEFT itself leaves out a name that fits nothing beside one that does
    *((lambda v=v: lora(cait(), f"q_proj,{v}"), f"--lora_target_modules has '{v}', ") for v in ("query", "roj", "")),
]


@pytest.mark.parametrize("act, message", WRONG, ids=[message for _, message in WRONG])
def test_wrong_values_end_with_an_error_message(act, message):
    with pytest.raises(ValueError, match=message):
        act()

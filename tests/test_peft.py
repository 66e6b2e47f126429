# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA on queries and values with the classifier trained: PEFT's own model and `model.add_adapter`."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from random_weights import images, randomize_, tiny_config
from transformers import AutoModelForImageClassification
from transformers.integrations.peft import MIN_PEFT_VERSION

from cait_hf import CaitForImageClassification


peft = pytest.importorskip("peft", reason="adapters need PEFT")

LINEARS = 2 * (3 + 2)  # queries and values of three patch layers and two class layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    randomize_(CaitForImageClassification(tiny_config())).save_pretrained(folder)
    return folder


@pytest.fixture
def base(folder) -> CaitForImageClassification:
    return CaitForImageClassification.from_pretrained(folder)


@pytest.fixture
def lora_config() -> "peft.LoraConfig":
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model.eval()(images(2, 32, seed=9)).logits


def fit(model) -> list[float]:
    """Learn the labels of eight images by heart; the loss of each step."""
    x, labels = images(8, 32), torch.arange(8) % 5
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.train()(x, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_trained(model, base_weights: dict[str, torch.Tensor]):
    """The adapter and the classifier's copy have moved, and everything else is as it was."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-3] for name in trainable if "lora_" in name} == {"lora_A", "lora_B"}
    assert len([name for name in trainable if "lora_" in name]) == 2 * LINEARS
    assert len([name for name in trainable if "classifier.modules_to_save" in name]) == 2
    assert len(trainable) == 2 * LINEARS + 2
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            assert parameter.abs().max() > 1e-3, name  # starts at zero
    now = model.state_dict()
    for name, tensor in base_weights.items():
        kept = [key for key in now if key.endswith(wrapped(name))]
        assert len(kept) == 1 and torch.equal(now[kept[0]], tensor), name


def wrapped(name: str) -> str:
    """The name that PEFT gives to a parameter of the base model."""
    module, _, parameter = name.rpartition(".")
    if module.endswith(("q_proj", "v_proj")):
        return f"{module}.base_layer.{parameter}"
    return f"classifier.original_module.{parameter}" if module == "classifier" else name


def test_peft_model_trains_merges_and_reloads(base, lora_config, folder, tmp_path):
    base_weights = copy.deepcopy(base.state_dict())
    before = logits_of(base)
    model = peft.get_peft_model(base, lora_config)
    assert torch.equal(logits_of(model), before)  # an untrained adapter adds nothing
    losses = fit(model)
    assert losses[-1] < 0.5 * losses[0]
    check_trained(model, base_weights)
    expected = logits_of(model)
    assert (expected - before).abs().max() > 0.1

    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    again = CaitForImageClassification.from_pretrained(folder)
    torch.testing.assert_close(logits_of(peft.PeftModel.from_pretrained(again, tmp_path / "adapter")), expected)
    for cls in (CaitForImageClassification, AutoModelForImageClassification):
        loaded = cls.from_pretrained(tmp_path / "adapter")
        assert isinstance(loaded, CaitForImageClassification)
        torch.testing.assert_close(logits_of(loaded), expected)

    merged = model.merge_and_unload()
    assert isinstance(merged, CaitForImageClassification)
    assert merged.state_dict().keys() == base_weights.keys()
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = CaitForImageClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits_of(loaded), logits_of(merged))


@pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"add_adapter of transformers {transformers.__version__} needs peft {MIN_PEFT_VERSION}, not "
    f"{peft.__version__}",
)
def test_added_adapter_trains_and_reloads(base, lora_config, tmp_path):
    base_weights = copy.deepcopy(base.state_dict())
    before = logits_of(base)
    base.add_adapter(lora_config)
    losses = fit(base)
    assert losses[-1] < 0.5 * losses[0]
    check_trained(base, base_weights)
    expected = logits_of(base)

    base.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    torch.testing.assert_close(logits_of(CaitForImageClassification.from_pretrained(tmp_path)), expected)

    base.disable_adapters()
    torch.testing.assert_close(logits_of(base), before)


def test_adapters_leave_the_talking_heads_projections_alone(base):
    """`all-linear` is what many recipes say; the (heads, heads) matrices are parameters and no targets."""
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear"))
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted - {"classifier"} == {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}

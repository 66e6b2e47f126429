# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Quantized through `from_pretrained(quantization_config=...)`, a trained model says the same about real images.

The model is trained here, in seconds, on scikit-learn's handwritten digits; the images are the 360 last of the set,
which it has not seen. `modules_to_not_convert=["classifier"]` has to be passed: Transformers' own list of what not to
convert names the classifier's bias instead of the classifier.
"""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from cait_hf import CaitConfig, CaitForImageClassification


HELD_OUT = 360
LINEARS = 6 * (3 + 2)  # q, k, v, o, fc1 and fc2 of three patch layers and two class layers


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1,797 scans, enlarged to 16 x 16 pixels, and which digit each shows."""
    data = pytest.importorskip("sklearn.datasets", reason="the images come with scikit-learn").load_digits()
    scans = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    pixel_values = nn.functional.interpolate(scans, size=(16, 16), mode="bilinear").expand(-1, 3, -1, -1)
    return pixel_values.contiguous(), torch.tensor(data.target)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = CaitConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=16,
        patch_size=4,
        initializer_range=0.1,
        layer_scale_init_value=1.0,
        num_labels=10,
    )
    model = CaitForImageClassification(config).train()
    pixel_values, labels = (part[:-HELD_OUT] for part in digits)
    steps = 7 * len(labels) // 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(labels), (64,))
        optimizer.zero_grad()
        model(pixel_values[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        schedule.step()
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    return folder


def torchao(name: str):
    quantization = pytest.importorskip("torchao.quantization", reason="int8 of torchao needs torchao")
    return TorchAoConfig(getattr(quantization, name)(), modules_to_not_convert=["classifier"])


def bitsandbytes(**flags):
    pytest.importorskip("bitsandbytes", reason="this quantization needs bitsandbytes")
    return BitsAndBytesConfig(**flags, llm_int8_skip_modules=["classifier"])


QUANTIZATIONS = {
    "torchao int8 weights": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao int8 weights and activations": lambda: torchao("Int8DynamicActivationInt8WeightConfig"),
    "bitsandbytes int8": lambda: bitsandbytes(load_in_8bit=True),
}


def is_quantized(linear: nn.Linear) -> bool:
    """Whether the weight is stored as integers of a quantization library."""
    return type(linear.weight) is not nn.Parameter or linear.weight.dtype in (torch.int8, torch.uint8)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of torchao's, which show themselves as float32, those of the tensors they are made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def bytes_of(model: nn.Module) -> int:
    return sum(map(stored_bytes, model.parameters()))


@torch.no_grad()
def logits_of(model, pixel_values: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(batch).logits for batch in pixel_values.split(120)])


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_top1_agrees_on_real_images(quantization, trained, digits):
    quantization_config = QUANTIZATIONS[quantization]()
    pixel_values, labels = (part[-HELD_OUT:] for part in digits)
    original = CaitForImageClassification.from_pretrained(trained)
    expected = logits_of(original, pixel_values)
    assert (expected.argmax(-1) == labels).float().mean() > 0.85  # it has learnt something
    assert not any(is_quantized(module) for module in original.modules() if isinstance(module, nn.Linear))

    model = CaitForImageClassification.from_pretrained(trained, quantization_config=quantization_config)
    found = logits_of(model, pixel_values)
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.99
    assert not torch.equal(found, expected)

    assert type(model.classifier) is nn.Linear and not is_quantized(model.classifier)
    assert model.classifier.weight.dtype == torch.float32
    linears = [m for m in model.cait.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == LINEARS and all(map(is_quantized, linears))
    assert bytes_of(model) < 0.5 * bytes_of(original)
    attention, unquantized = model.cait.layers[0].attention, original.cait.layers[0].attention
    assert torch.equal(attention.proj_l_weight, unquantized.proj_l_weight)


def test_quantized_model_saves_and_reloads(trained, digits, tmp_path):
    model = CaitForImageClassification.from_pretrained(trained, quantization_config=torchao("Int8WeightOnlyConfig"))
    model.save_pretrained(tmp_path)
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert stored < 0.5 * (trained / "model.safetensors").stat().st_size
    loaded = CaitForImageClassification.from_pretrained(tmp_path)
    pixel_values = digits[0][-8:]
    assert torch.equal(logits_of(loaded, pixel_values), logits_of(model, pixel_values))

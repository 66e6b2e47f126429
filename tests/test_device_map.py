# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`device_map="auto"` with offload: no layer is split, and logits are those of the model in memory.

Without an accelerator the devices are memory ("cpu") and disk. Accelerate brings a module's own parameters when its
forward begins, those of `CaitSelfAttention` (talking-heads projections) and `CaitEmbeddings` (class token, positions)
among them.
"""

import pytest
import torch
from random_weights import images, randomize_, tiny_config
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

from cait_hf import CaitBackbone, CaitForImageClassification, CaitForMaskedImageModeling, CaitModel


LAYER_BYTES = 4 * sum(p.numel() for p in CaitModel(tiny_config()).layers[0].parameters())


@pytest.fixture
def folder(tmp_path):
    randomize_(CaitForImageClassification(tiny_config(num_hidden_layers=6))).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def offloaded(model_class, folder, layers_in_memory: float, **kwargs):
    return model_class.from_pretrained(
        folder,
        device_map="auto",
        max_memory={"cpu": int(layers_in_memory * LAYER_BYTES)},
        offload_folder=folder.parent / "offload",
        **kwargs,
    )


def devices_of_layers(model) -> dict[str, str]:
    """Device by name of every module that must not be split, after it was seen that it is not."""
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    unsplit = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    assert len(unsplit) == 1 + len(model.base_model.layers) + len(getattr(model.base_model, "class_layers", ()))
    devices = {}
    for name in unsplit:
        places = [place for place in model.hf_device_map if name == place or name.startswith(f"{place}.")]
        assert len(places) == 1, f"{name} is split: {model.hf_device_map}"
        devices[name] = model.hf_device_map[places[0]]
        on_disk = {parameter.device.type == "meta" for parameter in model.get_submodule(name).parameters()}
        assert on_disk == {devices[name] == "disk"}
    return devices


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layers_in_memory", [3.5, 5.5])
@torch.no_grad()
def test_logits_with_layers_on_disk(layers_in_memory, attn_implementation, folder):
    model = offloaded(
        AutoModelForImageClassification, folder, layers_in_memory, attn_implementation=attn_implementation
    )
    devices = devices_of_layers(model)
    assert {device for name, device in devices.items() if ".layers." in name} == {"cpu", "disk"}
    in_memory = CaitForImageClassification.from_pretrained(folder, attn_implementation=attn_implementation)
    inputs = images(2, 32)
    for _ in range(2):  # the weights are brought and put away again for each call
        assert torch.equal(model(inputs).logits, in_memory(inputs).logits)
    maps = model(inputs, output_attentions=True)
    for ours, reference in zip(maps.attentions, in_memory(inputs, output_attentions=True).attentions, strict=True):
        assert torch.equal(ours, reference)
    assert devices == devices_of_layers(model)


@torch.no_grad()
def test_embeddings_on_disk(folder):
    """Class token and positions are the embeddings' own parameters."""
    device_map = {"cait.embeddings": "disk", "cait.layers": "cpu", "cait.class_layers": "disk"}
    device_map |= {"cait.layernorm": "cpu", "classifier": "disk"}
    model = CaitForImageClassification.from_pretrained(
        folder, device_map=device_map, offload_folder=folder.parent / "offload"
    )
    assert model.cait.embeddings.cls_token.device.type == "meta"
    in_memory = CaitForImageClassification.from_pretrained(folder)
    inputs = images(2, 32)
    assert torch.equal(model(inputs).logits, in_memory(inputs).logits)
    wide = images(2, 40, 48)
    assert torch.equal(
        model(wide, interpolate_pos_encoding=True).logits, in_memory(wide, interpolate_pos_encoding=True).logits
    )
    with pytest.raises(ValueError, match="position embeddings are offloaded"):
        model.resize_position_embeddings(64)


@torch.no_grad()
def test_other_models(folder):
    inputs = images(2, 32)
    model = offloaded(AutoModel, folder, 3.5)
    devices_of_layers(model)
    assert torch.equal(model(inputs).pooler_output, CaitModel.from_pretrained(folder)(inputs).pooler_output)

    backbone = offloaded(CaitBackbone, folder, 3.5, out_indices=[1, 6])
    devices_of_layers(backbone)
    expected = CaitBackbone.from_pretrained(folder, out_indices=[1, 6])(inputs).feature_maps
    assert all(map(torch.equal, backbone(inputs).feature_maps, expected))

    masked = randomize_(CaitForMaskedImageModeling(tiny_config(num_hidden_layers=6)))
    masked.save_pretrained(folder.parent / "masked")
    masks = torch.arange(16).expand(2, 16) < 5
    model = offloaded(CaitForMaskedImageModeling, folder.parent / "masked", 3.5)
    devices_of_layers(model)
    assert torch.equal(model(inputs, masks).reconstruction, masked(inputs, masks).reconstruction)


def test_offloaded_model_is_saved_completely(folder, tmp_path):
    offloaded(CaitForImageClassification, folder, 2.5).save_pretrained(tmp_path / "again")
    saved, original = load_file(tmp_path / "again/model.safetensors"), load_file(folder / "model.safetensors")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in original.items())

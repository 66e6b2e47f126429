# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""CaitForMaskedImageModeling: where the mask enters, what is reconstructed, the loss, training, checkpoints."""

import pytest
import torch
from official_files import write_xxs24_timm_folder
from random_weights import images, randomize_, tiny_config
from transformers import AutoModelForMaskedImageModeling

from cait_hf import CaitForImageClassification, CaitForMaskedImageModeling, CaitModel


@pytest.fixture
def model() -> CaitForMaskedImageModeling:
    return randomize_(CaitForMaskedImageModeling(tiny_config()))


def masks(batch_size: int, num_patches: int) -> torch.Tensor:
    return torch.rand(batch_size, num_patches, generator=torch.Generator().manual_seed(2)) < 0.5


@torch.no_grad()
def test_what_is_hidden_does_not_matter_and_what_is_seen_does(model):
    x, mask = images(2, 32), masks(2, 16)
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    expected = model(x, bool_masked_pos=mask).reconstruction
    assert expected.shape == x.shape
    torch.testing.assert_close(model(torch.where(hidden, 7.0, x), bool_masked_pos=mask).reconstruction, expected)
    assert (model(torch.where(hidden, x, 7.0), bool_masked_pos=mask).reconstruction - expected).abs().max() > 0.1
    # the mask may be given as numbers, and each patch has its own
    assert torch.equal(model(x, bool_masked_pos=mask.long()).reconstruction, expected)
    assert (model(x, bool_masked_pos=~mask).reconstruction - expected).abs().max() > 0.1


@torch.no_grad()
def test_mask_token_is_positioned(model):
    """Where everything is masked the layers read mask token + position."""
    embeddings = model.cait.embeddings
    everything = torch.ones(1, 16, dtype=torch.bool)
    expected = embeddings.mask_token + embeddings.position_embeddings
    assert torch.equal(embeddings(images(1, 32), bool_masked_pos=everything)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize(("patch_size", "image_size"), [(8, (32, 32)), (8, (24, 40)), ((8, 4), (24, 40))])
def test_pixels_return_to_their_patch(patch_size, image_size):
    """Against a loop: outputs c * h * w of the decoder are the patch's pixels, channel by channel, row by row."""
    model = randomize_(CaitForMaskedImageModeling(tiny_config(patch_size=patch_size, image_size=image_size)))
    x = images(1, *image_size)
    outputs = model(x)
    assert outputs.loss is None
    decoded = model.decoder(model.cait(x).last_hidden_state)
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    columns = image_size[1] // width
    for patch in range(decoded.shape[1]):
        top, left = patch // columns * height, patch % columns * width
        region = outputs.reconstruction[0, :, top : top + height, left : left + width]
        assert torch.equal(region, decoded[0, patch].view(3, height, width))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 48)])
def test_loss_is_the_mean_error_of_the_hidden_pixels(model, height, width):
    x, mask = images(2, height, width), masks(2, height * width // 64)
    outputs = model(x, bool_masked_pos=mask, interpolate_pos_encoding=True)
    total, count = 0.0, 0
    for image in range(2):
        for patch in mask[image].nonzero().flatten().tolist():
            top, left = patch // (width // 8) * 8, patch % (width // 8) * 8
            region = (image, slice(None), slice(top, top + 8), slice(left, left + 8))
            total += (x[region] - outputs.reconstruction[region]).abs().sum().item()
            count += 3 * 8 * 8
    assert outputs.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert model(x, bool_masked_pos=torch.zeros_like(mask), interpolate_pos_encoding=True).loss == 0
    half = model.bfloat16()(x, bool_masked_pos=mask, interpolate_pos_encoding=True)
    assert half.loss.dtype == torch.float32 and half.loss.item() == pytest.approx(total / count, rel=0.02)


def test_every_parameter_learns(model):
    model.train()
    x, mask = images(2, 32), masks(2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(x, bool_masked_pos=mask).loss
        loss.backward()
        for name, parameter in model.named_parameters():
            if not name.endswith(("proj_l_bias", "k_proj.bias")):  # softmax ignores what is equal over the keys
                assert (parameter.grad != 0).any(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any("class" in name or "cls" in name for name, _ in model.named_parameters())
    assert model.no_weight_decay() == {"cait.embeddings.position_embeddings", "cait.embeddings.mask_token"}
    assert set(model.layer_groups()) == {"embeddings", "layers.0", "layers.1", "layers.2", "head"}


def test_recorded_outputs(model):
    outputs = model(images(1, 32), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in outputs.hidden_states] == [(1, 16, 48)] * 4
    assert [attention.shape for attention in outputs.attentions] == [(1, 4, 16, 16)] * 3
    base = model.cait(images(1, 32))
    assert base.pooler_output is None and base.last_hidden_state.shape == (1, 16, 48)


def test_wrong_masks_are_refused_with_an_error_message(model):
    with pytest.raises(ValueError, match=r"bool_masked_pos has shape \(1, 4, 4\).* \(1, 16\)"):
        model(images(1, 32), bool_masked_pos=masks(1, 16).view(1, 4, 4))
    with pytest.raises(ValueError, match="no mask token"):
        CaitModel(tiny_config())(images(1, 32), bool_masked_pos=masks(1, 16))
    with pytest.raises(ValueError, match="pixel_values is None"):
        model(bool_masked_pos=masks(1, 16))


# --- checkpoints


@pytest.fixture(params=["ours", "timm"])
def folder(request, tmp_path):
    if request.param == "timm":
        return write_xxs24_timm_folder(tmp_path / "cait_xxs24_224.fb_dist_in1k")
    randomize_(CaitForImageClassification(tiny_config())).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_checkpoint_of_a_classifier_starts_the_patch_stage(folder):
    model, info = CaitForMaskedImageModeling.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {"cait.embeddings.mask_token", "decoder.weight", "decoder.bias"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    for fresh in (model, CaitForMaskedImageModeling(model.config)):
        assert 0.01 < fresh.cait.embeddings.mask_token.std() < 0.03 and 0.01 < fresh.decoder.weight.std() < 0.03
    classifier = CaitForImageClassification.from_pretrained(folder)
    stored = classifier.state_dict()
    for name, tensor in model.cait.state_dict().items():
        if "mask_token" not in name:
            assert torch.equal(tensor, stored[f"cait.{name}"]), name
    assert set(model.cait.state_dict()) - {"embeddings.mask_token"} == {
        name.removeprefix("cait.") for name in stored if "class_layers" not in name and "cls_token" not in name
    } - {"classifier.weight", "classifier.bias"}


def test_round_trip_and_on_to_a_classifier(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is CaitForMaskedImageModeling
    assert not any(info.values()), info
    with torch.no_grad():
        assert torch.equal(loaded(images(1, 32)).reconstruction, model(images(1, 32)).reconstruction)
    classifier, info = CaitForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    fresh = {key.removeprefix("cait.").split(".")[0] for key in info["missing_keys"]}
    assert fresh == {"class_layers", "classifier", "embeddings"}
    assert "cait.embeddings.cls_token" in info["missing_keys"]
    for name, tensor in model.cait.state_dict().items():
        if "mask_token" not in name:
            assert torch.equal(classifier.cait.state_dict()[name], tensor), name

# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Both conversion scripts on real files of the official and of timm's format, and what they refuse.

The weights are random and such that every part matters (see `random_weights`); where timm is installed they are drawn
in timm's own model, so that nothing of this package is on the side of the reference.
"""

import argparse
import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import safetensors.torch
import torch
import warm_process
from huggingface_hub import ModelCard
from official_files import (
    TINY_TIMM,
    official_tensors,
    tiny_checkpoint,
    tiny_official_tensors,
    write_pth,
    write_timm_folder,
    write_tiny_timm_folder,
)
from random_weights import images, randomize_, tiny_config
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from cait_hf import CaitConfig, CaitForImageClassification, CaitImageProcessorPil, files, loading, sources
from cait_hf.labels import imagenet_1k_labels
from cait_hf.state_dict import convert_official_state_dict


CONVERSION = Path(__file__).parent.parent / "conversion"
sys.path.insert(0, str(CONVERSION))
import convert_cait_to_hf  # noqa: E402
import convert_hf_to_timm  # noqa: E402


WRITTEN = [files.MANIFEST, "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
IN_USE = "which is not empty; empty it or pass --overwrite"


@torch.no_grad()
def random_timm_model(timm, **kwargs):
    model = timm.create_model("cait_xxs24_224", **kwargs)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = "gamma" in name or "norm" in name and name.endswith("weight")
        is_matrix = parameter.ndim in (2, 4)  # else biases, class token and positions
        scale = 0.2 if is_scale else parameter[0].numel() ** -0.5 if is_matrix else 0.3
        parameter.copy_(0.8 * is_scale + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def logits_of(model, config) -> torch.Tensor:
    output = model(images(2, config.image_size))
    return getattr(output, "logits", output)


def assert_equal_logits(logits, expected):
    """Up to the rounding of float32, which differs between equal tensors at other places in memory."""
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def official():
    return official_tensors(tiny_config())


@pytest.fixture
def pth(official, tmp_path):
    return write_pth(tmp_path / "weights.pth", official)


@pytest.fixture
def workplace(tmp_path):
    """An otherwise empty folder, in which a failed conversion must leave nothing."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    return folder


@pytest.fixture
def ours(pth, workplace):
    """An output folder of an earlier conversion, with other weights."""
    assert to_hf(write_pth(pth.with_name("earlier.pth"), official_tensors(tiny_config(), 1)), workplace / "model") == 0
    return workplace / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def to_hf(source, output_dir, *options):
    return convert_cait_to_hf.main(["--source", str(source), "--output_dir", str(output_dir), *options])


def to_timm(source, output_dir, *options):
    return convert_hf_to_timm.main(["--source", str(source), "--output_dir", str(output_dir), *options])


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def load(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_equal_tensors(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[key].dtype == expected[key].dtype and torch.equal(found[key], expected[key]) for key in found)


@pytest.fixture
def refused(workplace, capsys):
    """Checks that a conversion ends with one error message, exit code 1, and nothing left in `workplace`."""

    def check(message, source, *options, convert=to_hf, output="model"):
        capsys.readouterr()
        assert convert(source, workplace / output, *options) == 1
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert error.startswith("error: ") and message in error
        assert names(workplace) == []

    return check


# What is written


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_file(official, pth, suffix, tmp_path, workplace, capsys):
    safetensors.torch.save_file(official, tmp_path / "weights.safetensors")
    folder = workplace / "new" / "model"
    assert to_hf(pth.with_suffix(suffix), folder) == 0
    assert names(folder) == WRITTEN and list(workplace.rglob(".*")) == [folder / files.MANIFEST]
    assert "32 x 32 pixels" in capsys.readouterr().out
    assert f"SHA-256 `{files.sha256_of(pth.with_suffix(suffix))}`" in (folder / "README.md").read_text()

    assert_equal_tensors(load(folder), convert_official_state_dict(official))
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(model, CaitForImageClassification)
    original = randomize_(CaitForImageClassification(tiny_config()))
    assert_equal_logits(logits_of(model, model.config), logits_of(original, model.config))
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == processor.crop_size["width"] == 32


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_timm_folder(weights, official, tmp_path):
    pretrained_cfg = {"input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5] * 3}
    folder = write_timm_folder(
        tmp_path / "timm", official, label_names=["a", "b", "c", "d", "e"], pretrained_cfg=pretrained_cfg
    )
    if weights == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save(official, folder / weights)
    assert to_hf(folder, tmp_path / "model") == 0
    assert AutoConfig.from_pretrained(tmp_path / "model").id2label == {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    processor = CaitImageProcessorPil.from_pretrained(tmp_path / "model")
    assert processor.size["shortest_edge"] == 40 and list(processor.image_mean) == [0.5] * 3
    assert processor.resample.name == "BILINEAR"


@pytest.mark.parametrize(
    "overrides",
    [{"num_labels": 0}, {"qkv_bias": False}, {"num_channels": 1}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}],
    ids=str,
)
def test_unusual_networks_come_back(overrides, tmp_path):
    dtype = overrides.pop("dtype", torch.float32)
    official = {key: tensor.to(dtype) for key, tensor in official_tensors(tiny_config(**overrides)).items()}
    assert to_hf(write_pth(tmp_path / "weights.pth", official), tmp_path / "model") == 0
    assert (tmp_path / "model" / "preprocessor_config.json").exists() == ("num_channels" not in overrides)
    assert AutoConfig.from_pretrained(tmp_path / "model").dtype == dtype
    assert to_timm(tmp_path / "model", tmp_path / "timm") == 0
    assert to_hf(tmp_path / "timm", tmp_path / "again") == 0
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "again"))
    assert second == first
    assert_equal_tensors(load(tmp_path / "timm"), official)


def test_images_that_are_not_square_come_back(tmp_path):
    config = tiny_config(image_size=(16, 40), id2label=dict(enumerate("abcde")))
    model = randomize_(CaitForImageClassification(config))
    model.save_pretrained(tmp_path / "model")
    assert to_timm(tmp_path / "model", tmp_path / "timm") == 0
    assert to_hf(tmp_path / "timm", tmp_path / "again") == 0
    again = CaitForImageClassification.from_pretrained(tmp_path / "again")
    assert again.config.image_size == (16, 40) and again.config.id2label == config.id2label
    pixel_values = images(1, 16, 40)
    assert_equal_logits(again(pixel_values).logits, model(pixel_values).logits)


def test_preparation_of_the_images_comes_back(pth, tmp_path):
    assert to_hf(pth, tmp_path / "model") == 0
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    processor = CaitImageProcessorPil(
        size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}, resample=2, **statistics
    )
    processor.save_pretrained(tmp_path / "model")
    assert to_timm(tmp_path / "model", tmp_path / "timm") == 0
    assert CaitImageProcessorPil.from_pretrained(tmp_path / "timm").to_dict() == processor.to_dict()


@pytest.mark.parametrize("crop", [32, 224, 384])
def test_crop_pct_finds_every_edge(crop):
    for edge in range(crop, 2 * crop):
        processor = CaitImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop})
        assert int(crop / convert_hf_to_timm.crop_pct(processor)) == edge


def test_as_a_command(pth, official, tmp_path):
    """In a child process, which finds the other script beside this one."""
    assert to_hf(pth, tmp_path / "model") == 0
    script, source, output = CONVERSION / "convert_hf_to_timm.py", tmp_path / "model", tmp_path / "timm"
    command = [sys.executable, script, "--source", source, "--output_dir", output]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0 and child.stdout.startswith("Wrote "), child.stderr
    assert_equal_tensors(load(output), official)


# Checkpoints of a training


def training_checkpoint(code: str, official, ema) -> dict:
    """What the training code of deit, or timm's, stores after an epoch; `ema` may be `None`."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    args = argparse.Namespace(
        lr=5e-4, opt_betas=None, mean=(0.5, 0.5), nested=argparse.Namespace(output_dir=Path("x"))
    )
    states = {"optimizer": optimizer.state_dict(), "epoch": 3, "args": args}
    if code == "deit":
        states |= {"lr_scheduler": {"base_values": [5e-4]}, "scaler": {"scale": 65536.0}}
        return {"model": official, **states, "model_ema": ema}
    states |= {"arch": "cait_xxs24_224", "version": 2, "amp_scaler": {}, "metric": np.float64(71.2)}
    return {**states, "state_dict": official} | ({"state_dict_ema": ema} if ema else {})


@pytest.mark.parametrize(
    "code, prefix", [("deit", ""), ("deit", "module."), ("timm", "_orig_mod."), ("timm", "module._orig_mod.")]
)
def test_checkpoint_of_a_training(code, prefix, official, tmp_path, caplog):
    ema = {key: tensor + 1 for key, tensor in official.items()}
    source = tmp_path / "checkpoint.pth.tar"
    wrapped = {prefix + key: tensor for key, tensor in official.items()}
    torch.save(training_checkpoint(code, wrapped, ema), source)
    assert to_hf(source, tmp_path / "model") == 0
    assert caplog.messages == ["checkpoint.pth.tar has EMA weights, too, which --ema converts."]
    assert to_hf(source, tmp_path / "ema", "--ema") == 0
    assert len(caplog.messages) == 1
    assert_equal_tensors(load(tmp_path / "model"), convert_official_state_dict(official))
    assert_equal_tensors(load(tmp_path / "ema"), convert_official_state_dict(ema))
    cards = [(tmp_path / name / "README.md").read_text() for name in ("model", "ema")]
    assert ["checkpoint.pth.tar (EMA weights)" in card for card in cards] == [False, True]


@pytest.mark.parametrize("code", ["deit", "timm", "weights alone"])
def test_ema_weights_that_are_absent(code, official, tmp_path, workplace, refused, caplog):
    source = tmp_path / "weights.pth"
    torch.save(official if code == "weights alone" else training_checkpoint(code, official, None), source)
    refused("--ema is given, but the checkpoint has no EMA weights: it contains ", source, "--ema")
    assert to_hf(source, workplace / "model") == 0
    assert caplog.messages == []


def test_ema_weights_alone(official, tmp_path, refused):
    torch.save({"state_dict_ema": official, "args": argparse.Namespace()}, tmp_path / "weights.pth")
    refused("has EMA weights only, pass --ema: it contains state_dict_ema, args", tmp_path / "weights.pth")


def test_tensor_with_and_without_a_prefix(official, tmp_path, refused):
    twice = official | {"module.norm.bias": official["norm.bias"]}
    torch.save({"state_dict": twice}, tmp_path / "weights.pth")
    refused("with and without the prefix", tmp_path / "weights.pth")


# Against timm


@pytest.mark.parametrize(
    "kwargs",
    [TINY_TIMM, {**TINY_TIMM, "mlp_ratio": 2.5, "mlp_ratio_token_only": 2.5, "depth_token_only": 1}, {}],
    ids=["tiny", "other MLP and class stage", "XXS24"],
)
def test_timm_to_us_and_back(kwargs, tmp_path, capsys):
    timm = pytest.importorskip("timm", reason="the reference is timm's CaiT")
    from timm.models._hub import save_for_hf

    reference = random_timm_model(timm, **kwargs)
    save_for_hf(reference, tmp_path / "timm", safe_serialization=True)
    pth = write_pth(tmp_path / "weights.pth", reference.state_dict())
    assert to_hf(tmp_path / "timm", tmp_path / "from_folder", "--verify") == 0
    assert to_hf(pth, tmp_path / "from_pth", "--verify") == 0
    output = capsys.readouterr().out
    assert output.count("Verified: the logits differ from timm's by at most") == 2
    assert f"SHA-256 of the source: {files.sha256_of(pth)} (compare it with its publisher's)." in output
    assert to_timm(tmp_path / "from_pth", tmp_path / "back") == 0
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()

    config = AutoConfig.from_pretrained(tmp_path / "from_pth")
    expected = logits_of(reference, config)
    assert expected.std() > 0.3  # the logits tell the classes and, below, the images apart
    assert (expected[0] - expected[1]).abs().max() > 0.1
    ours = (tmp_path / name for name in ("from_pth", "from_folder", "timm", "back"))
    for loaded in (back, *map(CaitForImageClassification.from_pretrained, ours)):
        assert_equal_logits(logits_of(loaded, config), expected)


@pytest.mark.parametrize("first, second", [("q_proj", "k_proj"), ("proj_l", "proj_w"), ("scale1", "scale2")])
def test_verify_finds_swapped_tensors(first, second, pth, refused, monkeypatch):
    pytest.importorskip("timm", reason="the reference is timm's CaiT")

    def swapped(state_dict):
        converted = convert_official_state_dict(state_dict)
        swap = {first: second, second: first}
        return {re.sub(f"{first}|{second}", lambda found: swap[found[0]], key): converted[key] for key in converted}

    monkeypatch.setattr(loading, "convert_official_state_dict", swapped)
    refused("The logits differ from timm's by at most", pth, "--verify")


def test_verify_without_timm(pth, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("needs timm, which cannot be imported", pth, "--verify")


# Sources on the network


@pytest.fixture
def tiny_xxs24(monkeypatch):
    """XXS24_224, as small as a test wants it."""
    checkpoint = tiny_checkpoint("XXS24_224")
    monkeypatch.setattr(sources, "find_checkpoint", lambda name: checkpoint)
    return checkpoint


@pytest.fixture
def torch_hub(tmp_path, monkeypatch):
    """Files that `torch.hub` fetches instead of those on the network, and the addresses that it was asked for."""
    files, fetched = {}, []

    def fetch(url, destination):
        fetched.append(url)
        if url not in files:
            raise URLError("no route")
        Path(destination).write_bytes(files[url].read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    return files, fetched


def test_official_name_is_downloaded_once(tiny_xxs24, torch_hub, tmp_path, refused):
    """A file that is too short is not kept."""
    files, fetched = torch_hub
    complete = write_pth(tmp_path / "source.pth", tiny_official_tensors(tiny_xxs24))
    files[tiny_xxs24.url] = tmp_path / "short.pth"
    too_short = 4 * tiny_xxs24.num_parameters - 1
    files[tiny_xxs24.url].write_bytes(complete.read_bytes()[:too_short])
    refused(f"The download of XXS24_224 has {too_short:,} bytes, but it must have", "XXS24_224")
    files[tiny_xxs24.url] = complete
    assert to_hf("xxs24_224", tmp_path / "model") == 0
    assert to_hf("cait_XXS24_224", tmp_path / "model", "--overwrite") == 0
    assert fetched == [tiny_xxs24.url] * 2  # the third time it is in the cache
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets == ["imagenet-1k"]
    assert "XXS24_224.pth" in card.text and "78.4" in card.text and str(tmp_path) not in card.text
    assert AutoConfig.from_pretrained(tmp_path / "model").id2label == imagenet_1k_labels()


def test_sources_out_of_reach(hub, torch_hub, refused):
    refused("https://dl.fbaipublicfiles.com/deit/M48_448.pth could not be downloaded", "M48_448")
    refused("nobody/cait_nowhere, neither a local path nor a repository", "nobody/cait_nowhere")


def publish(hub, folder, repo_id, **more):
    """Put a folder to the loopback Hub in a repository of its own name, new where there was one."""
    hub.create(repo_id)
    hub.write(repo_id, {file.name: file.read_bytes() for file in folder.iterdir()} | more)


def test_timm_repository(hub, tiny_xxs24, tmp_path):
    in_no_cache = tiny_official_tensors(tiny_xxs24, seed=7)
    folder = write_tiny_timm_folder(tmp_path / "timm", tiny_xxs24, in_no_cache)
    publish(hub, folder, tiny_xxs24.timm_repo, **{"pytorch_model.bin": b"not needed"})
    assert to_hf(tiny_xxs24.timm_repo, tmp_path / "model") == 0
    assert hub.count(r"GET .*resolve/.*/model\.safetensors") == 1 and hub.count(r"resolve/.*pytorch_model") == 0
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.base_model == tiny_xxs24.timm_repo
    assert AutoConfig.from_pretrained(tmp_path / "model").id2label == imagenet_1k_labels()


@pytest.mark.parametrize("known", ["sha256", "size"])
def test_timm_repository_with_other_weights(known, hub, tmp_path, workplace, refused, monkeypatch):
    """The SHA-256 where one is known at first hand, else the size; what was refused is fetched again."""
    checkpoint = tiny_checkpoint("XXS24_224")
    official = tiny_official_tensors(checkpoint)
    good = write_tiny_timm_folder(tmp_path / "good", checkpoint, official)
    if known == "sha256":
        checkpoint = replace(checkpoint, timm_file_sha256=files.sha256_of(good / "model.safetensors"))
        other = tiny_official_tensors(checkpoint, seed=1)
        message = f"but it must have SHA-256 {checkpoint.timm_file_sha256}"
    else:
        other = {key: tensor.half() for key, tensor in official.items()}
        message = f"but it must have {4 * checkpoint.num_parameters:,} bytes"
    monkeypatch.setattr(sources, "find_checkpoint", lambda name: checkpoint)
    publish(hub, write_tiny_timm_folder(tmp_path / "bad", checkpoint, other), checkpoint.timm_repo)
    for _ in range(2):
        hub.requests.clear()
        refused(message, checkpoint.timm_repo)
        assert hub.count(r"GET .*resolve/.*/model\.safetensors") == 1
    publish(hub, good, checkpoint.timm_repo)
    assert to_hf(checkpoint.timm_repo, workplace / "model") == 0


@pytest.mark.parametrize("kind", ["timm", "ours"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("change", ["same length", "longer"])
def test_download_that_is_not_what_the_hub_states(change, name, kind, hub, repo_id, tmp_path, workplace, refused):
    """It is refused, and fetched again at the next try."""
    config = tiny_config(num_labels=7)
    folder, convert = tmp_path / "source", to_hf if kind == "timm" else to_timm
    official = official_tensors(config)
    if kind == "timm":
        write_timm_folder(folder, official, num_classes=7, model_args={**TINY_ARGS, "num_classes": 7})
    else:
        assert to_hf(write_pth(tmp_path / "weights.pth", official), folder) == 0
    publish(hub, folder, repo_id)
    place = hub.blob_path(hub.repositories[repo_id].branches["main"].files[name])
    stated = place.read_bytes()
    place.write_bytes(stated[:-1] + (b"\x01" if name == "model.safetensors" else b" ") + b" " * (change == "longer"))
    for _ in range(2):
        hub.requests.clear()
        refused(f"The download of {name} from {repo_id} has ", repo_id, convert=convert)
        assert hub.count(f"GET .*resolve/.*/{name}") == 1
    place.write_bytes(stated)
    assert convert(repo_id, workplace / "model") == 0


def test_official_download_that_is_damaged(tiny_xxs24, torch_hub, tmp_path, refused):
    """It does not stay in the cache; nor does another network."""
    fetchable, fetched = torch_hub
    fetchable[tiny_xxs24.url] = source = write_pth(tmp_path / "source.pth", tiny_official_tensors(tiny_xxs24))
    content = bytearray(source.read_bytes())
    complete = bytes(content)
    content[len(content) // 2] ^= 1
    source.write_bytes(content)
    refused("the CRC-32 of ", "XXS24_224")
    deeper = CaitConfig(**{**tiny_xxs24.config_kwargs, "num_hidden_layers": 4}, num_labels=1000)
    write_pth(source, official_tensors(deeper))
    refused("num_hidden_layers is 4 in the source, but in XXS24_224 it is 3", "XXS24_224")
    source.write_bytes(complete)
    assert to_hf("XXS24_224", tmp_path / "model") == 0
    assert len(fetched) == 3


def test_local_file_of_timms_that_is_another(official, tmp_path):
    """Whose SHA-256 is known: what `convert_all` says the folder is, it must be."""
    checkpoint = tiny_checkpoint("XXS24_224")
    folder = write_tiny_timm_folder(tmp_path / "timm", checkpoint, tiny_official_tensors(checkpoint))
    sha256 = files.sha256_of(folder / "model.safetensors")
    load_source = sources.load_source
    load_source(str(folder), replace(checkpoint, timm_file_sha256=sha256))
    load_source(str(folder), replace(checkpoint, timm_file_sha256="0", timm_file_sha256_source=sources.SECOND_HAND))
    with pytest.raises(ValueError, match=f"of XXS24_224 has SHA-256 {sha256}, but timm's has 0"):
        load_source(str(folder), replace(checkpoint, timm_file_sha256="0"))


def test_file_names_that_leave_the_folder(hub, repo_id, official, tmp_path, workplace):
    folder = write_timm_folder(tmp_path / "timm", official)
    evil = ("../evil.txt", "../../model.safetensors", "/tmp/cait-hf-evil.txt", "..\\config.json")
    publish(hub, folder, repo_id, **dict.fromkeys(evil, b"1"))
    before = set(tmp_path.rglob("*"))
    assert to_hf(repo_id, workplace / "model") == 0
    written = {workplace / "model", *(workplace / "model" / name for name in WRITTEN)}
    assert set(tmp_path.rglob("*")) == before | written
    assert hub.count("evil") == 0 and not Path("/tmp/cait-hf-evil.txt").exists()


def test_model_card_of_weights_of_ones_own(pth, tmp_path):
    """It claims neither ImageNet, nor a license, nor the published accuracies."""
    assert to_hf(pth, tmp_path / "model") == 0
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license is None and card.data.datasets is None and card.data.library_name == "transformers"
    assert "ImageNet" not in card.text and str(tmp_path) not in card.text
    assert "| layers, patch stage + class stage | 3 + 2 |" in card.text


# What is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("source", ["pth", "timm", "ours"])
def test_values_that_are_not_finite(value, source, official, tmp_path, refused):
    official["blocks.1.attn.qkv.weight"][0, 1] = official["head.bias"][0] = value
    path = tmp_path / "weights.pth"
    if source == "pth":
        write_pth(path, official)
    elif source == "timm":
        path = write_timm_folder(tmp_path / "timm", official)
    else:
        model = CaitForImageClassification(tiny_config())
        model.load_state_dict(convert_official_state_dict(official))
        model.save_pretrained(tmp_path / "ours")
        refused(
            "in 2 tensors: cait.layers.1.attention.q_proj.weight, classifier.bias", tmp_path / "ours", convert=to_timm
        )
        return
    refused("NaN or infinite values in 2 tensors: blocks.1.attn.qkv.weight, head.bias", path)


@pytest.mark.parametrize("part", ["a tensor", "the pickle"])
def test_flipped_bit(part, pth, refused):
    """A file of torch's is a zip archive, with a checksum of each member."""
    content = bytearray(pth.read_bytes())
    with zipfile.ZipFile(pth) as archive:
        members = {member.filename.split("/", 1)[1]: member for member in archive.infolist()}
    member = members["data/3" if part == "a tensor" else "data.pkl"]
    if part == "a tensor":
        content[content.index(torch.load(pth)["model"]["module.patch_embed.proj.bias"].numpy().tobytes())] ^= 1
    else:
        content[content.index(b"norm.bias", member.header_offset)] ^= 0x20  # the name remains a text
    pth.write_bytes(content)
    refused(f"{pth} is damaged", pth)
    if find_spec("timm") is not None:
        refused(f"{pth} is damaged", pth, "--verify")
    refused("the CRC-32 of ", pth)


@pytest.mark.parametrize("change", ["shrinks", "is overwritten", "is replaced", "disappears"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_source_that_changes_while_it_is_read(change, suffix, official, tmp_path, refused, monkeypatch):
    """A file that is mapped would end the process when it shrinks, and be a mixture when it is overwritten."""
    source = tmp_path / f"weights{suffix}"
    write_pth(source, official) if suffix == ".pth" else safetensors.torch.save_file(official, source)
    module, name = (torch, "load") if suffix == ".pth" else (safetensors.torch, "load")
    parse = getattr(module, name)

    def changed(*args, **kwargs):
        content = parse(*args, **kwargs)
        if change == "shrinks":
            os.truncate(source, 1000)
        elif change == "is overwritten":
            source.write_bytes(bytes(source.stat().st_size))
        elif change == "is replaced":
            (tmp_path / "other").write_bytes(source.read_bytes())
            (tmp_path / "other").rename(source)
        else:
            source.unlink()
        return content

    monkeypatch.setattr(module, name, changed)
    refused(f"{source} changed while it was read", source)


def test_configuration_that_changes_while_the_weights_are_read(official, tmp_path, refused, monkeypatch):
    folder, parse = write_timm_folder(tmp_path / "timm", official), safetensors.torch.load

    def changed(content):
        (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        return parse(content)

    monkeypatch.setattr(safetensors.torch, "load", changed)
    refused(f"{folder / 'config.json'} changed while it was read", folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_model_that_changes_while_it_is_read(name, pth, tmp_path, refused, monkeypatch):
    """On the way back to timm."""
    assert to_hf(pth, tmp_path / "model") == 0
    load_pretrained = loading.CaitForImageClassification.from_pretrained

    def changed(*args, **kwargs):
        loaded = load_pretrained(*args, **kwargs)
        os.utime(tmp_path / "model" / name, ns=(1, 1))
        return loaded

    monkeypatch.setattr(loading.CaitForImageClassification, "from_pretrained", changed)
    refused(f"{tmp_path / 'model' / name} changed while it was read", tmp_path / "model", convert=to_timm)


def test_what_is_verified_and_hashed_is_what_was_converted(pth, tmp_path, monkeypatch):
    """The source is not read again, whatever becomes of it."""
    sha256, infer = files.sha256_of(pth), sources.infer_config_kwargs

    def then_gone(tensors):
        pth.unlink()
        return infer(tensors)

    monkeypatch.setattr(sources, "infer_config_kwargs", then_gone)
    assert to_hf(pth, tmp_path / "model") == 0
    assert sha256 in (tmp_path / "model" / "README.md").read_text()


CODE = "open(%r, 'w').close()"
OPCODES = {  # each calls exec with a text
    "REDUCE": b"cbuiltins\nexec\n(V%s\ntR.",
    "INST": b"(V%s\nibuiltins\nexec\n.",
    "OBJ": b"(cbuiltins\nexec\nV%s\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93V%s\n\x85R.",
    "after a dictionary": b"}0cbuiltins\nexec\n(V%s\ntR.",
}


def write_pickle(file: Path, content: bytes, container: str):
    """A pickle by itself, as torch's files before 1.6 (header pickles in front) or as its zip files."""
    if container == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        header = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}]
        legacy = b"".join(pickle.dumps(value, protocol=2) for value in header)
        file.write_bytes((legacy if container == "legacy" else b"") + content)


@pytest.mark.parametrize("container", ["bare pickle", "legacy", "zip"])
@pytest.mark.parametrize("opcode", OPCODES)
def test_code_in_a_pickle_does_not_run(opcode, container, tmp_path, refused):
    marker, source = tmp_path / "marker", tmp_path / "weights.pth"
    write_pickle(source, OPCODES[opcode] % (CODE % str(marker)).encode(), container)
    refused("contains more than tensors", source)
    assert not marker.exists()
    if container == "bare pickle":
        pickle.loads(source.read_bytes())
    else:
        with suppress(Exception):  # there is no model behind the code
            torch.load(source, weights_only=False)
    assert marker.exists()  # the file does have the code


class RunsCode:
    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


@pytest.mark.parametrize("place", ["args", "optimizer", "metric"])
def test_code_in_a_checkpoint_of_a_training_does_not_run(place, official, tmp_path, refused):
    marker = tmp_path / "marker"
    code = RunsCode(CODE % str(marker))
    states = {place: argparse.Namespace(lr=code) if place == "args" else code}
    torch.save(training_checkpoint("timm", official, None) | states, tmp_path / "weights.pth")
    refused("contains more than tensors", tmp_path / "weights.pth")
    assert not marker.exists()
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert marker.exists()  # the file does have the code


def test_code_in_a_pickle_of_a_repository_does_not_run(official, tmp_path, refused):
    """timm's format has pickles too, and `from_pretrained` reads it by itself."""
    marker, folder = tmp_path / "marker", write_timm_folder(tmp_path / "timm", official)
    (folder / "model.safetensors").unlink()
    write_pickle(folder / "pytorch_model.bin", OPCODES["REDUCE"] % (CODE % str(marker)).encode(), "zip")
    refused("contains more than tensors", folder)
    with pytest.raises(Exception, match="(?i)weights_only|unsupported"):
        CaitForImageClassification.from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.parametrize("member", ["../evil.txt", "/tmp/cait-hf-evil.txt", "archive/../../evil.txt"])
def test_archive_members_that_leave_the_folder(member, pth, tmp_path, refused):
    """A file of torch's is a zip archive; nothing is ever unpacked from it."""
    with zipfile.ZipFile(pth, "a") as archive:
        archive.writestr(member, b"evil")
    files = set(tmp_path.rglob("*"))
    refused(f"{pth} is damaged", pth)
    assert set(tmp_path.rglob("*")) == files and not Path("/tmp/cait-hf-evil.txt").exists()


LIES = {  # the entry of a tensor, from its offsets
    "beyond the end": lambda start, stop: {"data_offsets": [start, 2**40]},
    "overlap": lambda start, stop: {"data_offsets": [0, stop - start]},
    "shape": lambda *_: {"shape": [2**40]},
    "product overflows": lambda *_: {"shape": [2**32, 2**32, 48]},
    "negative": lambda *_: {"shape": [-48]},
}


def with_header(content: bytes, lie) -> bytes:
    """A safetensors file whose header says something else than is there."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header["norm.bias"] |= lie(*header["norm.bias"]["data_offsets"])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("lie", [*LIES, "length"])
def test_safetensors_header_that_lies(lie, official, tmp_path, refused):
    source = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(official, source)
    honest = with_header(source.read_bytes(), lambda *_: {})
    source.write_bytes(honest)
    assert to_hf(source, tmp_path / "honest") == 0
    source.write_bytes(
        (2**63).to_bytes(8, "little") + honest[8:] if lie == "length" else with_header(honest, LIES[lie])
    )
    refused(f"{source} is damaged", source)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file(official, fraction, suffix, tmp_path, refused):
    source = tmp_path / f"weights{suffix}"
    write_pth(source, official) if suffix == ".pth" else safetensors.torch.save_file(official, source)
    content = source.read_bytes()
    source.write_bytes(content[: int(fraction * len(content))])
    refused(f"{source} is damaged", source)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda official: {key: official[key] for key in official if key != "norm.bias"}, "1 missing: norm.bias (48)"),
        (lambda official: official | {"extra": torch.zeros(1)}, "1 unknown: extra"),
        (lambda official: official | {"norm.bias": 3}, "another shape: norm.bias () instead of (48)"),
        (lambda official: official | {"head.bias": torch.zeros(4)}, "another shape: head.bias (4) instead of (5)"),
        (lambda official: official | {"pos_embed": torch.zeros(1, 15, 48)}, "pos_embed has 15 patches"),
        (
            lambda official: {key: official[key] for key in official if "token_only" not in key},
            "not a CaiT checkpoint",
        ),
        (convert_official_state_dict, "not a CaiT checkpoint in the official format"),
        (lambda official: {}, "not be empty"),
    ],
    ids=["missing", "unknown", "no tensor", "shape", "patches", "ViT", "ours", "empty"],
)
def test_weights_that_do_not_fit(official, change, message, tmp_path, refused):
    refused(message, write_pth(tmp_path / "weights.pth", change(official)))


TIMM = {"architecture": "cait_s24_224", "pretrained_cfg": {}}
TINY_ARGS = {**TINY_TIMM, "mlp_ratio": 2.0, "mlp_ratio_token_only": 2.0}


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "vit"}, "is of model_type 'vit', but it must be timm's"),
        ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}, "architecture is 'vit_tiny_patch16_224'"),
        ([], "is of model_type None"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ({**TIMM, "model_args": {"depth": "4"}}, "num_hidden_layers"),
        ({**TIMM, "model_args": {"num_heads": 7}}, "hidden_size is 384"),
        ({**TIMM, "model_args": {**TINY_ARGS, "img_size": 64}}, "position_embeddings is (1, 16, 48), not (1, 64, 48)"),
        *(
            ({**TIMM, "model_args": {**TINY_ARGS, size: 10**9}}, "is 1000000000, but it must be")
            for size in ("depth", "depth_token_only", "embed_dim", "num_heads")
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_configuration_that_does_not_fit(official, config, message, tmp_path, refused):
    folder = write_timm_folder(tmp_path / "timm", official)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    refused(message, folder)


@pytest.mark.parametrize(
    "source, message",
    [
        ("{tmp}/empty", "it has no config.json"),
        ("{tmp}/no_weights", "neither model.safetensors nor pytorch_model.bin"),
        ("{tmp}/missing.pth", "there is no such file"),
        ("XXS24_224.pth", "there is no such file"),
        ("{tmp}/missing", "neither a file nor a folder nor a repository"),
        ("XXS99", "neither a file nor a folder nor a repository"),
    ],
)
def test_source_that_does_not_exist(source, message, official, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (write_timm_folder(tmp_path / "no_weights", official) / "model.safetensors").unlink()
    refused(message, source.format(tmp=tmp_path))


BIAS = "cait.layernorm.bias"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config.json": b'{"model_type": "vit"}'}, "model_type='vit'"),
        ({"model.safetensors": None}, "no file named model.safetensors"),
        ({"model.safetensors": b"{"}, "cannot be loaded"),
        ({BIAS: None}, "lacks 1 tensors, the first are cait.layernorm.bias"),
        ({BIAS: torch.zeros(47)}, "cannot be loaded"),
    ],
    ids=["another model", "no weights", "truncated", "missing tensor", "shape"],
)
def test_the_way_back_refuses(changes, message, pth, tmp_path, refused):
    folder = tmp_path / "model"
    assert to_hf(pth, folder) == 0
    ((name, content),) = changes.items()
    if name == BIAS:
        tensors = {key: tensor for key, tensor in (load(folder) | changes).items() if tensor is not None}
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    refused(message, folder, convert=to_timm)


def test_the_way_back_names_what_it_lacks(tmp_path, refused):
    refused("neither a folder nor the id of a repository", tmp_path / "missing", convert=to_timm)
    CaitForImageClassification(tiny_config(hidden_act="relu")).save_pretrained(tmp_path / "model")
    refused("hidden_act is 'relu'", tmp_path / "model", convert=to_timm)


# All or nothing


INTERRUPTIONS = [
    KeyboardInterrupt(),
    OSError(28, "No space left on device"),
    safetensors.SafetensorError("I/O error: No space left on device"),
    RuntimeError("of whatever library"),
]


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=repr)
@pytest.mark.parametrize("moment", [CaitForImageClassification, CaitImageProcessorPil, Path])
def test_interrupted_while_writing(moment, interruption, pth, refused, monkeypatch):
    def interrupt(*args, **kwargs):
        raise interruption

    monkeypatch.setattr(moment, "rename" if moment is Path else "save_pretrained", interrupt)
    refused("error: ", pth, output="new/model")


def killed_while_writing(pth, output, kill, *options):
    """A real signal in a child process, after the weights were written."""
    program = f"""
import os, runpy, signal, sys
from cait_hf import CaitImageProcessorPil
def terminate(self, folder):
    assert os.path.exists(os.path.join(folder, "model.safetensors"))
    os.kill(os.getpid(), signal.{kill})
CaitImageProcessorPil.save_pretrained = terminate
sys.argv = ["convert", "--source", {str(pth)!r}, "--output_dir", {str(output)!r}, *{options!r}]
runpy.run_path({str(CONVERSION / "convert_cait_to_hf.py")!r}, run_name="__main__")
"""
    return warm_process.run(program)


def test_killed_while_writing(pth, workplace, ours):
    """Not even then is the target half-written; what was begun stays as a hidden folder."""
    before = contents(ours)
    child = killed_while_writing(pth, ours, "SIGKILL", "--overwrite")
    assert child.returncode == -signal.SIGKILL
    assert contents(ours) == before
    assert [file.name[:7] for file in workplace.iterdir() if file != ours] == [".model."]


def test_terminated_while_writing(pth, workplace):
    child = killed_while_writing(pth, workplace / "model", "SIGTERM")
    assert (child.returncode, child.stderr.strip().splitlines()[-1]) == (1, "error: interrupted.")
    assert names(workplace) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_at_once_do_not_mix(overwrite, tmp_path, workplace, capsys, monkeypatch):
    """The second begins and ends while the first writes: without --overwrite it is there to stay."""
    slow, fast = (
        write_pth(tmp_path / f"{labels}.pth", official_tensors(tiny_config(num_labels=labels))) for labels in (3, 4)
    )
    options = ["--overwrite"] if overwrite else []
    save_pretrained, begun = CaitImageProcessorPil.save_pretrained, []

    def meanwhile(self, folder):
        if not begun:
            begun.append(folder)
            assert to_hf(fast, workplace / "model", *options) == 0
        return save_pretrained(self, folder)

    monkeypatch.setattr(CaitImageProcessorPil, "save_pretrained", meanwhile)
    assert to_hf(slow, workplace / "model", *options) == (0 if overwrite else 1)
    assert (IN_USE in capsys.readouterr().err) == (not overwrite)
    assert names(workplace) == ["model"] and names(workplace / "model") == WRITTEN
    model = CaitForImageClassification.from_pretrained(workplace / "model")
    assert model.config.num_labels == model.classifier.out_features == (3 if overwrite else 4)


def test_output_folder_that_is_in_use(pth, workplace, ours, capsys):
    before = contents(ours)
    assert to_hf(pth, ours) == 1
    assert IN_USE in capsys.readouterr().err and contents(ours) == before
    (ours / "notes.txt").write_text("mine")
    assert to_hf(pth, ours, "--overwrite") == 1
    assert "that no earlier run wrote, or that have changed since: notes.txt" in capsys.readouterr().err
    assert contents(ours) == before | {"notes.txt": b"mine"}
    (ours / "notes.txt").unlink()
    assert to_hf(pth, ours, "--overwrite") == 0
    assert names(ours) == WRITTEN and names(workplace) == ["model"] and contents(ours) != before
    (workplace / "empty").mkdir()
    assert to_hf(pth, workplace / "empty") == 0


@pytest.mark.parametrize("method, call", [("open", 5), ("write_text", 1), ("rename", 2)])
def test_full_disk_leaves_the_old_folder(method, call, pth, workplace, ours, capsys, monkeypatch):
    """Where the source is read, the last file is written, and the new folder takes the name of the old one."""
    works, calls, before = getattr(Path, method), [], contents(workplace)

    def full(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return works(self, *args, **kwargs)

    monkeypatch.setattr(Path, method, full)
    assert to_hf(pth, ours, "--overwrite") == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert contents(workplace) == before and names(workplace) == ["model"]


def test_output_dir_that_is_the_source_or_a_file(pth, tmp_path, capsys):
    model = tmp_path / "model"
    assert to_hf(pth, tmp_path, "--overwrite") == 1
    assert to_hf(pth, model) == 0
    assert to_timm(model, model, "--overwrite") == 1
    assert capsys.readouterr().err.count("must not be or contain the source") == 2
    assert names(model) == WRITTEN
    before = pth.read_bytes()
    assert to_hf(model, pth) == 1
    assert "a file, but it must be a folder or not exist" in capsys.readouterr().err
    assert pth.read_bytes() == before

# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Both conversion scripts on real files of the official and of timm's format, and what they refuse.

The weights are random and such that every part matters (see `random_weights`); where timm is installed they are drawn
in timm's own model, so that nothing of this package is on the side of the reference.
"""

import errno
import json
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

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

from cait_hf import CaitConfig, CaitForImageClassification, CaitImageProcessorPil
from cait_hf.labels import imagenet_1k_labels
from cait_hf.state_dict import convert_official_state_dict


CONVERSION = Path(__file__).parent.parent / "conversion"
sys.path.insert(0, str(CONVERSION))
import convert_cait_to_hf  # noqa: E402
import convert_hf_to_timm  # noqa: E402

from cait_hf import files, loading, sources  # noqa: E402


WRITTEN = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


@torch.no_grad()
def random_timm_model(timm, **kwargs):
    model = timm.create_model("cait_xxs24_224", **kwargs)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "gamma" in name or "norm" in name and name.endswith("weight"):
            parameter.copy_(0.8 + 0.2 * noise)
        elif parameter.ndim == 1 or parameter.ndim == 3:  # biases, class token and positions
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model.eval()


@torch.no_grad()
def logits_of(model, config) -> torch.Tensor:
    output = model(images(2, config.image_size))
    return getattr(output, "logits", output)


@pytest.fixture
def official():
    return official_tensors(tiny_config())


@pytest.fixture
def workplace(tmp_path):
    """An otherwise empty folder, in which a failed conversion must leave nothing."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    return folder


def assert_equal_logits(logits, expected):
    """Up to the rounding of float32, which differs between equal tensors at other places in memory."""
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def to_hf(source, output_dir, *options):
    return convert_cait_to_hf.main(["--source", str(source), "--output_dir", str(output_dir), *options])


def to_timm(source, output_dir, *options):
    return convert_hf_to_timm.main(["--source", str(source), "--output_dir", str(output_dir), *options])


def assert_refused(exit_code, capsys, message, folder):
    """One error message on the standard error, exit code 1, and nothing left in `folder`."""
    errors = capsys.readouterr().err.strip().splitlines()
    assert exit_code == 1
    assert len(errors) == 1 and errors[0].startswith("error: "), errors
    assert message in errors[0]
    assert list(folder.iterdir()) == []


# What is written


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_file(official, suffix, tmp_path, workplace, capsys):
    source = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        write_pth(source, official)
    else:
        safetensors.torch.save_file(official, source)
    assert to_hf(source, workplace / "new" / "model") == 0
    folder = workplace / "new" / "model"
    assert sorted(file.name for file in folder.iterdir()) == WRITTEN
    assert list(workplace.rglob(".*")) == []
    assert "32 x 32 pixels" in capsys.readouterr().out

    stored = safetensors.torch.load_file(folder / "model.safetensors")
    expected = convert_official_state_dict(official)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[key], expected[key]) for key in expected)
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(model, CaitForImageClassification)
    original = randomize_(CaitForImageClassification(tiny_config()))
    assert_equal_logits(logits_of(model, model.config), logits_of(original, model.config))
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == processor.crop_size["width"] == 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_kept_both_ways(official, dtype, tmp_path):
    half = {key: tensor.to(dtype) for key, tensor in official.items()}
    assert to_hf(write_pth(tmp_path / "half.pth", half), tmp_path / "model") == 0
    assert AutoConfig.from_pretrained(tmp_path / "model").dtype == dtype
    assert to_timm(tmp_path / "model", tmp_path / "timm") == 0
    back = safetensors.torch.load_file(tmp_path / "timm" / "model.safetensors")
    assert all(back[key].dtype == dtype and torch.equal(back[key], half[key]) for key in half)


def test_1000_classes_get_the_imagenet_names(tmp_path):
    source = write_pth(tmp_path / "weights.pth", official_tensors(tiny_config(num_labels=1000)))
    assert to_hf(source, tmp_path / "model") == 0
    assert AutoConfig.from_pretrained(tmp_path / "model").id2label == imagenet_1k_labels()


def test_timm_folder(official, tmp_path):
    folder = write_timm_folder(
        tmp_path / "timm",
        official,
        label_names=["a", "b", "c", "d", "e"],
        pretrained_cfg={"input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5] * 3},
    )
    assert to_hf(folder, tmp_path / "model") == 0
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.id2label == {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    processor = CaitImageProcessorPil.from_pretrained(tmp_path / "model")
    assert processor.size["shortest_edge"] == 40 and list(processor.image_mean) == [0.5] * 3
    assert processor.resample.name == "BILINEAR"


def test_timm_folder_with_a_pickle(official, tmp_path):
    folder = write_timm_folder(tmp_path / "timm", official)
    (folder / "model.safetensors").unlink()
    torch.save(official, folder / "pytorch_model.bin")
    assert to_hf(folder, tmp_path / "model") == 0


@pytest.mark.parametrize("overrides", [{"num_labels": 0}, {"qkv_bias": False}, {"num_channels": 1}], ids=str)
def test_unusual_networks_come_back(overrides, tmp_path):
    official = official_tensors(tiny_config(**overrides))
    assert to_hf(write_pth(tmp_path / "weights.pth", official), tmp_path / "model") == 0
    assert (tmp_path / "model" / "preprocessor_config.json").exists() == ("num_channels" not in overrides)
    assert to_timm(tmp_path / "model", tmp_path / "timm") == 0
    assert to_hf(tmp_path / "timm", tmp_path / "again") == 0
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "again"))
    assert second == first
    tensors = safetensors.torch.load_file(tmp_path / "timm" / "model.safetensors")
    assert list(tensors.keys()).sort() == list(official).sort()
    assert all(torch.equal(tensors[key], official[key]) for key in official)


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


def test_preparation_of_the_images_comes_back(official, tmp_path):
    assert to_hf(write_pth(tmp_path / "weights.pth", official), tmp_path / "model") == 0
    processor = CaitImageProcessorPil(
        size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}, resample=2, image_mean=[0.1, 0.2, 0.3]
    )
    processor.save_pretrained(tmp_path / "model")
    assert to_timm(tmp_path / "model", tmp_path / "timm") == 0
    assert CaitImageProcessorPil.from_pretrained(tmp_path / "timm").to_dict() == processor.to_dict()


@pytest.mark.parametrize("crop", [32, 224, 384])
def test_crop_pct_finds_every_edge(crop):
    for edge in range(crop, 2 * crop):
        processor = CaitImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop})
        assert int(crop / convert_hf_to_timm.crop_pct(processor)) == edge


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
    assert capsys.readouterr().out.count("Verified: the logits differ from timm's by at most") == 2
    assert to_timm(tmp_path / "from_pth", tmp_path / "back") == 0
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()

    config = AutoConfig.from_pretrained(tmp_path / "from_pth")
    expected = logits_of(reference, config)
    assert expected.std() > 0.3  # the logits tell the classes and, below, the images apart
    assert (expected[0] - expected[1]).abs().max() > 0.1
    for loaded in (
        back,
        CaitForImageClassification.from_pretrained(tmp_path / "from_pth"),
        CaitForImageClassification.from_pretrained(tmp_path / "from_folder"),
        CaitForImageClassification.from_pretrained(tmp_path / "timm"),
        CaitForImageClassification.from_pretrained(tmp_path / "back"),
    ):
        assert_equal_logits(logits_of(loaded, config), expected)


@pytest.mark.parametrize("first, second", [("q_proj", "k_proj"), ("proj_l", "proj_w"), ("scale1", "scale2")])
def test_verify_finds_swapped_tensors(first, second, official, tmp_path, workplace, capsys, monkeypatch):
    pytest.importorskip("timm", reason="the reference is timm's CaiT")

    def swapped(state_dict):
        converted = convert_official_state_dict(state_dict)
        swap = {first: second, second: first}
        renamed = {}
        for key, tensor in converted.items():
            name = next((name for name in swap if name in key), None)
            renamed[key.replace(name, swap[name]) if name else key] = tensor
        return renamed

    monkeypatch.setattr(loading, "convert_official_state_dict", swapped)
    exit_code = to_hf(write_pth(tmp_path / "weights.pth", official), workplace / "model", "--verify")
    assert_refused(exit_code, capsys, "The logits differ from timm's by at most", workplace)


def test_verify_without_timm(official, tmp_path, workplace, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    exit_code = to_hf(write_pth(tmp_path / "weights.pth", official), workplace / "model", "--verify")
    assert_refused(exit_code, capsys, "needs timm, which cannot be imported", workplace)


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


def test_official_name_is_downloaded(tiny_xxs24, torch_hub, tmp_path):
    files, fetched = torch_hub
    files[tiny_xxs24.url] = write_pth(tmp_path / "source.pth", tiny_official_tensors(tiny_xxs24))
    assert to_hf("xxs24_224", tmp_path / "model") == 0
    assert to_hf("cait_XXS24_224", tmp_path / "model", "--overwrite") == 0
    assert fetched == [tiny_xxs24.url]  # the second time it is in the cache
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets == ["imagenet-1k"]
    assert "XXS24_224.pth" in card.text and "78.4" in card.text and str(tmp_path) not in card.text


def test_download_that_is_too_short_is_fetched_again(tiny_xxs24, torch_hub, tmp_path, workplace, capsys):
    files, fetched = torch_hub
    whole = write_pth(tmp_path / "source.pth", tiny_official_tensors(tiny_xxs24))
    files[tiny_xxs24.url] = tmp_path / "short.pth"
    files[tiny_xxs24.url].write_bytes(whole.read_bytes()[: 4 * tiny_xxs24.num_parameters - 1])
    message = f"The download of XXS24_224 has {4 * tiny_xxs24.num_parameters - 1:,} bytes, but it must have"
    assert_refused(to_hf("XXS24_224", workplace / "model"), capsys, message, workplace)
    files[tiny_xxs24.url] = whole
    assert to_hf("XXS24_224", workplace / "model") == 0
    assert len(fetched) == 2


def test_download_of_another_checkpoint(tiny_xxs24, torch_hub, tmp_path, workplace, capsys):
    files, _ = torch_hub
    deeper = CaitConfig(**{**tiny_xxs24.config_kwargs, "num_hidden_layers": 4}, num_labels=1000)
    files[tiny_xxs24.url] = write_pth(tmp_path / "source.pth", official_tensors(deeper))
    message = "num_hidden_layers is 4 in the source, but in XXS24_224 it is 3"
    assert_refused(to_hf("XXS24_224", workplace / "model"), capsys, message, workplace)


def publish(hub, folder, repo_id, **more):
    """Put a folder to the loopback Hub in a repository of its own name, new where there was one."""
    hub.create(repo_id)
    hub.write(repo_id, {file.name: file.read_bytes() for file in folder.iterdir()} | more)


def test_timm_repository(hub, tiny_xxs24, tmp_path):
    folder = write_tiny_timm_folder(
        tmp_path / "timm", tiny_xxs24, tiny_official_tensors(tiny_xxs24, seed=7)
    )  # in no cache
    publish(hub, folder, tiny_xxs24.timm_repo, **{"pytorch_model.bin": b"not needed"})
    assert to_hf(tiny_xxs24.timm_repo, tmp_path / "model") == 0
    assert hub.count(r"GET .*resolve/.*/model\.safetensors") == 1 and hub.count(r"resolve/.*pytorch_model") == 0
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.base_model == tiny_xxs24.timm_repo
    assert AutoConfig.from_pretrained(tmp_path / "model").id2label == imagenet_1k_labels()


@pytest.mark.parametrize("known", ["sha256", "size"])
def test_timm_repository_with_other_weights(known, hub, tmp_path, workplace, capsys, monkeypatch):
    """The SHA-256 where one is known at first hand, else the size; what was refused is fetched again."""
    checkpoint = tiny_checkpoint("XXS24_224")
    official = tiny_official_tensors(checkpoint)
    good = write_tiny_timm_folder(tmp_path / "good", checkpoint, official)
    if known == "sha256":
        checkpoint = replace(checkpoint, timm_file_sha256=files.sha256_of(good / "model.safetensors"))
        bad = write_tiny_timm_folder(tmp_path / "bad", checkpoint, tiny_official_tensors(checkpoint, seed=1))
        message = f"but it must have SHA-256 {checkpoint.timm_file_sha256}"
    else:
        half = {key: tensor.half() for key, tensor in official.items()}
        bad = write_tiny_timm_folder(tmp_path / "bad", checkpoint, half)
        message = f"but it must have {4 * checkpoint.num_parameters:,} bytes"
    monkeypatch.setattr(sources, "find_checkpoint", lambda name: checkpoint)
    publish(hub, bad, checkpoint.timm_repo)
    assert_refused(to_hf(checkpoint.timm_repo, workplace / "model"), capsys, message, workplace)
    hub.requests.clear()
    assert to_hf(checkpoint.timm_repo, workplace / "model") == 1
    assert hub.count(r"GET .*resolve/.*/model\.safetensors") == 1
    publish(hub, good, checkpoint.timm_repo)
    assert to_hf(checkpoint.timm_repo, workplace / "model") == 0


def test_file_names_that_leave_the_folder(hub, repo_id, official, tmp_path, workplace):
    folder = write_timm_folder(tmp_path / "timm", official)
    evil = {
        "../evil.txt": b"1",
        "../../model.safetensors": b"1",
        "/tmp/cait-hf-evil.txt": b"1",
        "..\\config.json": b"1",
    }
    publish(hub, folder, repo_id, **evil)
    before = set(tmp_path.rglob("*"))
    assert to_hf(repo_id, workplace / "model") == 0
    assert set(workplace.rglob("*")) == {workplace / "model", *(workplace / "model" / name for name in WRITTEN)}
    assert set(tmp_path.rglob("*")) - set(workplace.rglob("*")) == before - {workplace} | {workplace}
    assert hub.count("evil") == 0 and not Path("/tmp/cait-hf-evil.txt").exists()


def test_download_that_fails(torch_hub, workplace, capsys):
    exit_code = to_hf("M48_448", workplace / "model")
    assert_refused(
        exit_code, capsys, "https://dl.fbaipublicfiles.com/deit/M48_448.pth could not be downloaded", workplace
    )


def test_repository_out_of_reach(hub, workplace, capsys):
    exit_code = to_hf("nobody/cait_nowhere", workplace / "model")
    assert_refused(exit_code, capsys, "nobody/cait_nowhere, neither a local path nor a repository", workplace)


def test_model_card_of_weights_of_ones_own(official, tmp_path):
    """It claims neither ImageNet, nor a license, nor the published accuracies."""
    assert to_hf(write_pth(tmp_path / "weights.pth", official), tmp_path / "model") == 0
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license is None and card.data.datasets is None and card.data.library_name == "transformers"
    assert "ImageNet" not in card.text and str(tmp_path) not in card.text
    assert "| layers, patch stage + class stage | 3 + 2 |" in card.text


# What is refused


def without(official, key):
    return {name: tensor for name, tensor in official.items() if name != key}


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
def test_code_in_a_pickle_does_not_run(opcode, container, tmp_path, workplace, capsys):
    marker, source = tmp_path / "marker", tmp_path / "weights.pth"
    write_pickle(source, OPCODES[opcode] % (CODE % str(marker)).encode(), container)
    assert_refused(to_hf(source, workplace / "model"), capsys, "contains more than tensors", workplace)
    assert not marker.exists()
    if container == "bare pickle":
        pickle.loads(source.read_bytes())
    else:
        with suppress(Exception):  # there is no model behind the code
            torch.load(source, weights_only=False)
    assert marker.exists()  # the file does have the code


def test_code_in_a_pickle_of_a_repository_does_not_run(official, tmp_path, workplace, capsys):
    """timm's format has pickles too, and `from_pretrained` reads it by itself."""
    marker, folder = tmp_path / "marker", write_timm_folder(tmp_path / "timm", official)
    (folder / "model.safetensors").unlink()
    write_pickle(folder / "pytorch_model.bin", OPCODES["REDUCE"] % (CODE % str(marker)).encode(), "zip")
    assert_refused(to_hf(folder, workplace / "model"), capsys, "contains more than tensors", workplace)
    with pytest.raises(Exception, match="(?i)weights_only|unsupported"):
        CaitForImageClassification.from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.parametrize("member", ["../evil.txt", "/tmp/cait-hf-evil.txt", "archive/../../evil.txt"])
def test_archive_members_that_leave_the_folder(member, official, tmp_path, workplace, capsys):
    """A file of torch's is a zip archive; nothing is ever unpacked from it."""
    source = write_pth(tmp_path / "weights.pth", official)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(member, b"evil")
    files = set(tmp_path.rglob("*"))
    assert_refused(to_hf(source, workplace / "model"), capsys, f"{source} is damaged", workplace)
    assert set(tmp_path.rglob("*")) == files and not Path("/tmp/cait-hf-evil.txt").exists()


def lying_header(content: bytes, lie: str) -> bytes:
    """A safetensors file whose header says something else than is there."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if lie == "length":
        return (2**63).to_bytes(8, "little") + content[8:]
    entry = header["norm.bias"]
    start, stop = entry["data_offsets"]
    if lie == "beyond the end":
        entry["data_offsets"] = [start, 2**40]
    elif lie == "overlap":
        entry["data_offsets"] = [0, stop - start]
    elif lie == "shape":
        entry["shape"] = [2**40]
    elif lie == "product overflows":
        entry["shape"] = [2**32, 2**32, 48]
    elif lie == "negative":
        entry["shape"] = [-48]
    header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize("lie", ["length", "beyond the end", "overlap", "shape", "product overflows", "negative"])
def test_safetensors_header_that_lies(lie, official, tmp_path, workplace, capsys):
    source = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(official, source)
    assert lying_header(source.read_bytes(), "none")[8:9] == b"{"
    source.write_bytes(lying_header(source.read_bytes(), "none"))
    assert to_hf(source, workplace / "honest") == 0
    shutil.rmtree(workplace / "honest")
    capsys.readouterr()
    source.write_bytes(lying_header(source.read_bytes(), lie))
    assert_refused(to_hf(source, workplace / "model"), capsys, f"{source} is damaged", workplace)


@pytest.mark.parametrize("size", ["depth", "depth_token_only", "embed_dim", "num_heads"])
def test_configuration_of_a_billion(size, official, tmp_path, workplace, capsys):
    folder = write_timm_folder(tmp_path / "timm", official, model_args={**TINY_TIMM, size: 10**9})
    assert_refused(to_hf(folder, workplace / "model"), capsys, "is 1000000000, but it must be", workplace)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file(official, fraction, suffix, tmp_path, workplace, capsys):
    source = tmp_path / f"weights{suffix}"
    write_pth(source, official) if suffix == ".pth" else safetensors.torch.save_file(official, source)
    content = source.read_bytes()
    source.write_bytes(content[: int(fraction * len(content))])
    assert_refused(to_hf(source, workplace / "model"), capsys, f"{source} is damaged", workplace)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda official: without(official, "norm.bias"), "1 missing: norm.bias (48)"),
        (lambda official: {**official, "extra": torch.zeros(1)}, "1 unknown: extra"),
        (
            lambda official: {**official, "head.bias": torch.zeros(4)},
            "1 of another shape: head.bias (4) instead of (5)",
        ),
        (lambda official: {**official, "pos_embed": torch.zeros(1, 15, 48)}, "pos_embed has 15 patches"),
        (lambda official: {key: t for key, t in official.items() if "token_only" not in key}, "not a CaiT checkpoint"),
        (lambda official: convert_official_state_dict(official), "not a CaiT checkpoint in the official format"),
        (lambda official: {}, "not be empty"),
    ],
    ids=["missing", "unknown", "shape", "patches", "ViT", "ours", "empty"],
)
def test_weights_that_do_not_fit(official, change, message, tmp_path, workplace, capsys):
    source = write_pth(tmp_path / "weights.pth", change(official))
    assert_refused(to_hf(source, workplace / "model"), capsys, message, workplace)


def test_weights_and_configuration_that_disagree(official, tmp_path, workplace, capsys):
    folder = write_timm_folder(tmp_path / "timm", official, model_args={**TINY_TIMM, "img_size": 64})
    message = "cait.embeddings.position_embeddings is (1, 16, 48), not (1, 64, 48)"
    assert_refused(to_hf(folder, workplace / "model"), capsys, message, workplace)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "vit"}, "is of model_type 'vit', but it must be timm's"),
        ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}, "architecture is 'vit_tiny_patch16_224'"),
        ([], "is of model_type None"),
        ("{", "is not valid JSON"),
        ({"architecture": "cait_s24_224", "pretrained_cfg": {}, "model_args": {"depth": "4"}}, "num_hidden_layers"),
        ({"architecture": "cait_s24_224", "pretrained_cfg": {}, "model_args": {"num_heads": 7}}, "hidden_size is 384"),
    ],
    ids=str,
)
def test_configuration_of_another_model(official, config, message, tmp_path, workplace, capsys):
    folder = write_timm_folder(tmp_path / "timm", official)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert_refused(to_hf(folder, workplace / "model"), capsys, message, workplace)


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
def test_source_that_does_not_exist(source, message, official, tmp_path, workplace, capsys):
    (tmp_path / "empty").mkdir()
    (write_timm_folder(tmp_path / "no_weights", official) / "model.safetensors").unlink()
    exit_code = to_hf(source.format(tmp=tmp_path), workplace / "model")
    assert_refused(exit_code, capsys, message, workplace)


@pytest.mark.parametrize(
    "how, message",
    [
        ("missing", "neither a folder nor the id of a repository"),
        ("empty", "no file named model.safetensors"),
        ("another model", "model_type='vit'"),
        ("missing tensor", "lacks 1 tensors, the first are cait.layernorm.bias"),
        ("wrong shape", "cannot be loaded"),
        ("truncated", "cannot be loaded"),
    ],
)
def test_the_way_back_refuses(how, message, official, tmp_path, workplace, capsys):
    source = tmp_path / "model"
    if how == "empty":
        source.mkdir()
    elif how != "missing":
        assert to_hf(write_pth(tmp_path / "weights.pth", official), source) == 0
        damage(source, how)
    capsys.readouterr()
    assert_refused(to_timm(source, workplace / "timm"), capsys, message, workplace)


def damage(folder, how):
    weights = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    if how == "another model":
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        del tensors["cait.layernorm.bias"]
        if how == "wrong shape":
            tensors["cait.layernorm.bias"] = torch.zeros(47)
        safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})


def test_the_way_back_names_options_that_timm_lacks(tmp_path, workplace, capsys):
    CaitForImageClassification(tiny_config(hidden_act="relu")).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert_refused(to_timm(tmp_path / "model", workplace / "timm"), capsys, "hidden_act is 'relu'", workplace)


# All or nothing


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
@pytest.mark.parametrize("moment", [CaitForImageClassification, CaitImageProcessorPil, "rename"])
def test_interrupted_while_writing(moment, interruption, official, tmp_path, workplace, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise interruption

    pth = write_pth(tmp_path / "weights.pth", official)
    if moment == "rename":
        monkeypatch.setattr(Path, "rename", interrupt)
    else:
        monkeypatch.setattr(moment, "save_pretrained", interrupt)
    assert_refused(to_hf(pth, workplace / "new" / "model"), capsys, "error: ", workplace)


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


def test_killed_while_writing(official, tmp_path, workplace):
    """Not even then is the target half-written; what was begun stays as a hidden folder."""
    folder = workplace / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    child = killed_while_writing(write_pth(tmp_path / "weights.pth", official), folder, "SIGKILL", "--overwrite")
    assert child.returncode == -signal.SIGKILL
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    assert [file.name[:7] for file in workplace.iterdir() if file != folder] == [".model."]


def test_terminated_while_writing(official, tmp_path, workplace):
    child = killed_while_writing(write_pth(tmp_path / "weights.pth", official), workplace / "model", "SIGTERM")
    assert (child.returncode, child.stderr.strip().splitlines()[-1]) == (1, "error: interrupted.")
    assert list(workplace.iterdir()) == []


def test_full_disk_leaves_the_old_folder(official, tmp_path, workplace, capsys, monkeypatch):
    pth, folder = write_pth(tmp_path / "weights.pth", official), workplace / "model"
    assert to_hf(pth, folder) == 0
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(self, *args, **kwargs):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)  # the last file
    assert to_hf(pth, folder, "--overwrite") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(workplace.iterdir()) == [folder]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


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
    assert ("is not empty" in capsys.readouterr().err) == (not overwrite)
    assert [file.name for file in workplace.iterdir()] == ["model"]
    assert sorted(file.name for file in (workplace / "model").iterdir()) == WRITTEN
    model = CaitForImageClassification.from_pretrained(workplace / "model")
    assert model.config.num_labels == model.classifier.out_features == (3 if overwrite else 4)


def test_output_folder_that_is_in_use(official, tmp_path, workplace, capsys):
    pth = write_pth(tmp_path / "weights.pth", official)
    folder = workplace / "model"
    folder.mkdir()
    assert to_hf(pth, folder) == 0  # an empty folder is fine
    (folder / "notes.txt").write_text("mine")
    assert to_hf(pth, folder) == 1
    assert "which is not empty; empty it or pass --overwrite" in capsys.readouterr().err
    assert to_hf(tmp_path / "missing.pth", folder, "--overwrite") == 1
    assert (folder / "notes.txt").read_text() == "mine"  # the old folder survives a failed run
    assert to_hf(pth, folder, "--overwrite") == 0
    assert sorted(file.name for file in folder.iterdir()) == WRITTEN
    assert list(workplace.iterdir()) == [folder]


def test_old_folder_survives_when_the_new_one_cannot_take_its_name(official, tmp_path, workplace, monkeypatch):
    pth = write_pth(tmp_path / "weights.pth", official)
    folder = workplace / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("cannot rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    assert to_hf(pth, folder, "--overwrite") == 1
    assert [file.name for file in workplace.rglob("*")] == ["model", "notes.txt"]


def test_output_folder_that_holds_the_source(official, tmp_path, capsys):
    pth = write_pth(tmp_path / "weights.pth", official)
    assert to_hf(pth, tmp_path, "--overwrite") == 1
    assert "must not be or hold the source" in capsys.readouterr().err
    assert to_hf(pth, tmp_path / "model") == 0
    assert to_timm(tmp_path / "model", tmp_path / "model", "--overwrite") == 1
    assert "must not be or hold the source" in capsys.readouterr().err
    assert (tmp_path / "model" / "preprocessor_config.json").exists() and pth.exists()


def test_output_dir_that_is_a_file(official, tmp_path, capsys):
    output = tmp_path / "model"
    output.write_text("mine")
    assert to_hf(write_pth(tmp_path / "weights.pth", official), output) == 1
    assert "a file, but it must be a folder or not exist" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_as_a_command(official, tmp_path):
    """In a child process, which finds the other script beside this one."""
    assert to_hf(write_pth(tmp_path / "weights.pth", official), tmp_path / "model") == 0
    script, source, output = CONVERSION / "convert_hf_to_timm.py", tmp_path / "model", tmp_path / "timm"
    command = [sys.executable, script, "--source", source, "--output_dir", output]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0 and child.stdout.startswith("Wrote "), child.stderr
    tensors = safetensors.torch.load_file(output / "model.safetensors")
    assert all(torch.equal(tensors[key], official[key]) for key in official)

# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""What is pushed, in how many commits, under which name, and what an interrupted push leaves; the remote code.

Everything goes through the real client to the loopback Hub.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import remote_code
import safetensors.torch
import torch
import warm_process
from huggingface_hub import HfApi
from official_files import official_tensors, write_pth
from random_weights import images, tiny_config
from transformers import AutoModelForImageClassification

from cait_hf import CaitBackbone, CaitForImageClassification, CaitForMaskedImageModeling, CaitModel
from cait_hf.files import foreign_files, new_folder
from cait_hf.publish import add_remote_code, push_folder, remote_code_files


CONVERSION = Path(__file__).parent.parent / "conversion"
sys.path.insert(0, str(CONVERSION))
import convert_cait_to_hf  # noqa: E402


WRITTEN = [".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
CODE = sorted(remote_code.MODEL | remote_code.IMAGE_PROCESSORS)
api = HfApi()


@pytest.fixture
def pth(tmp_path):
    return write_pth(tmp_path / "weights.pth", official_tensors(tiny_config()))


@pytest.fixture
def folder(pth, tmp_path):
    assert to_hf(pth, tmp_path / "model") == 0
    return tmp_path / "model"


def to_hf(source, output_dir, *options):
    return convert_cait_to_hf.main(["--source", str(source), "--output_dir", str(output_dir), *options])


def titles(repo_id, revision="main"):
    return [commit.title for commit in api.list_repo_commits(repo_id, revision=revision)]


def other_weights(folder, seed=1):
    torch.manual_seed(seed)
    CaitForImageClassification(tiny_config()).save_pretrained(folder)


# Pushing


def test_push_of_a_conversion(hub, repo_id, pth, tmp_path, capfd):
    assert to_hf(pth, tmp_path / "model", "--push_to_hub", repo_id, "--private") == 0
    output = capfd.readouterr()
    assert f"Pushed to {hub.url}/{repo_id}/commit/" in output.out
    assert sorted(api.list_repo_files(repo_id)) == WRITTEN
    assert titles(repo_id) == ["Upload CaiT", "initial commit"]
    assert api.model_info(repo_id).private
    assert f'"{repo_id}"' in (tmp_path / "model" / "README.md").read_text()
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert hub.token not in output.out + output.err and hub.token.encode() not in written


def test_push_without_change_makes_no_commit(hub, repo_id, folder):
    first = push_folder(folder, repo_id)
    assert push_folder(folder, repo_id) == first
    assert hub.count("POST .*/commit/") == 1
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Another\n")
    assert push_folder(folder, repo_id) != first
    assert len(titles(repo_id)) == 3


def test_files_of_the_model_before_go_and_others_stay(hub, repo_id, folder, tmp_path):
    """A model.safetensors beside shards would be loaded instead of them."""
    push_folder(folder, repo_id)
    hub.write(repo_id, {"image.png": b"mine", "notes/modeling_cait.py": b"mine", "modeling_cait.py": b"old"})
    sharded = tmp_path / "sharded"
    CaitForImageClassification.from_pretrained(folder).save_pretrained(sharded, max_shard_size="50KB")
    (sharded / "training_args.bin").write_bytes(b"of a training")
    (sharded / "checkpoint-5").mkdir()
    (sharded / "checkpoint-5" / "model.safetensors").write_bytes(b"of a training")
    push_folder(sharded, repo_id)
    shards = sorted(file.name for file in sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    expected = [".gitattributes", "config.json", "model.safetensors.index.json", *shards]
    assert sorted(api.list_repo_files(repo_id)) == sorted([*expected, "image.png", "notes/modeling_cait.py"])


@pytest.mark.parametrize(
    "fault", [("PUT ", "drop", 6), ("POST .*/preupload/", 500, 6), ("POST .*/commit/",)], ids=lambda fault: fault[0]
)
def test_interrupted_push(fault, hub, repo_id, folder, no_waiting):
    """The old revision stays as it was, and the push can be repeated."""
    push_folder(folder, repo_id)
    before, weights = api.model_info(repo_id).sha, hub.read(repo_id, "model.safetensors")
    other_weights(folder)
    hub.fail_next(*fault)
    with pytest.raises(OSError, match=f"{folder} .*{repo_id}"):
        push_folder(folder, repo_id)
    hub.faults.clear()  # the client may give up before all of them are met
    assert api.model_info(repo_id).sha == before and hub.read(repo_id, "model.safetensors") == weights
    push_folder(folder, repo_id)
    assert hub.read(repo_id, "model.safetensors") == (folder / "model.safetensors").read_bytes() != weights
    assert len(titles(repo_id)) == 3


def test_killed_push(hub, repo_id, folder):
    """The process dies when the weights are uploaded and the commit is not yet made."""
    push_folder(folder, repo_id)
    before = api.model_info(repo_id).sha
    other_weights(folder)
    program = f"""
import os, signal
from pathlib import Path
from huggingface_hub import HfApi
from cait_hf.publish import push_folder
upload = HfApi.preupload_lfs_files
def kill(self, *args, **kwargs):
    upload(self, *args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
HfApi.preupload_lfs_files = kill
push_folder(Path({str(folder)!r}), {repo_id!r})
"""
    assert warm_process.run(program).returncode == -9
    assert hub.count("PUT ") == 2 and api.model_info(repo_id).sha == before
    push_folder(folder, repo_id)
    assert len(titles(repo_id)) == 3


def test_revision_and_tag(hub, repo_id, folder):
    push_folder(folder, repo_id, tag="v1")
    other_weights(folder)
    push_folder(folder, repo_id, revision="try/out", tag="v2")
    assert len(titles(repo_id)) == 2 and len(titles(repo_id, "try/out")) == 3
    first, second, tagged = (
        AutoModelForImageClassification.from_pretrained(repo_id, revision=revision).classifier.weight
        for revision in ("v1", "try/out", "v2")
    )
    assert torch.equal(tagged, second) and not torch.equal(first, second)
    push_folder(folder, repo_id, revision="try/out", tag="v2")  # nothing to do
    with pytest.raises(ValueError, match="--tag is v1"):
        push_folder(folder, repo_id, revision="try/out", tag="v1")


def test_private_and_public(hub, repo_id, folder, tmp_path):
    push_folder(folder, repo_id, private=True)
    push_folder(folder, repo_id)  # an existing repository stays what it is
    assert api.model_info(repo_id).private
    load = AutoModelForImageClassification.from_pretrained
    with pytest.raises(OSError):
        load(repo_id, token=False, cache_dir=tmp_path / "cache")
    load(repo_id, cache_dir=tmp_path / "cache")
    api.create_repo(f"{repo_id}-public")
    with pytest.raises(ValueError, match="--private .*-public"):
        push_folder(folder, f"{repo_id}-public", private=True)
    assert hub.count(f"POST /api/models/{repo_id}-public") == 0


@pytest.mark.parametrize("how", ["wrong token", "no connection", "name"])
def test_push_that_cannot_work(how, hub, repo_id, pth, tmp_path, capfd, no_waiting, monkeypatch):
    """One error message, without the token; the folder is there."""
    token = hub.token
    if how == "wrong token":
        token = "hf_" + 30 * "x"
        monkeypatch.setenv("HF_TOKEN", token)
    elif how == "no connection":
        hub.fail_next("POST /api/repos/create", times=6)
    assert to_hf(pth, tmp_path / "model", "--push_to_hub", "a/b/c" if how == "name" else repo_id) == 1
    hub.faults.clear()  # the client may give up before all of them are met
    output, error = capfd.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert "model was written, but it could not be pushed to" in error and token not in output + error
    assert (tmp_path / "model" / "model.safetensors").exists()


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damage(path, content=lambda content: b""):
    path.write_bytes(content(path.read_bytes()))


def renamed_shard(folder, name):
    """The index names a shard outside, which is there."""
    index = folder / "model.safetensors.index.json"
    (folder / SHARDS[0]).rename(folder / name)
    index.write_text(index.read_text().replace(SHARDS[0], name))


def another_shard(folder):
    (folder / SHARDS[0]).write_bytes((folder / SHARDS[1]).read_bytes())


def without_a_tensor(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["cait.layernorm.bias"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARDS = [f"model-0000{number}-of-00005.safetensors" for number in (1, 2)]
CANNOT_LOAD = {  # what makes the folder so, what the error message says beside the folder
    "no folder": (lambda folder: shutil.rmtree(folder), "config.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "neither model.safetensors nor"),
    "another model": (lambda folder: edit_json(folder / CONFIG, model_type="vit"), "config.json is not a CaiT's"),
    "not JSON": (lambda folder: (folder / CONFIG).write_text("["), "config.json is not valid JSON"),
    "nested": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "nested too deeply"),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "config.json is not a CaiT's"),
    "another width": (lambda folder: edit_json(folder / CONFIG, hidden_size=96), r"is \(1, 1, 48\), not \(1, 1, 96\)"),
    "deeper": (lambda folder: edit_json(folder / CONFIG, num_hidden_layers=4), "cait.layers.3.*is None, not"),
    "impossible": (lambda folder: edit_json(folder / CONFIG, num_attention_heads=7), "num_attention_heads"),
    "another class": (lambda folder: edit_json(folder / CONFIG, architectures=["CaitModel"]), "tensors do not fit"),
    "empty": (lambda folder: damage(folder / WEIGHTS), "model.safetensors is damaged"),
    "truncated": (
        lambda folder: damage(folder / WEIGHTS, lambda content: content[:-1]),
        "model.safetensors is damaged",
    ),
    "longer": (
        lambda folder: damage(folder / WEIGHTS, lambda content: content + b"0"),
        "model.safetensors is damaged",
    ),
    "a tensor less": (without_a_tensor, "1 tensors .* cait.layernorm.bias is None, not"),
    "processor": (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "preprocessor_config"),
    "shard missing": (lambda folder: (folder / SHARDS[1]).unlink(), SHARDS[1]),
    "shard empty": (lambda folder: damage(folder / SHARDS[1]), f"{SHARDS[1]} is damaged"),
    "shard of others": (another_shard, f"{SHARDS[0]} has other tensors than"),
    "shard outside": (lambda folder: renamed_shard(folder, f"../{SHARDS[0]}"), f"names ../{SHARDS[0]}"),
    "shard not pushed": (lambda folder: renamed_shard(folder, "shard.safetensors"), "names shard.safetensors"),
    "index": (lambda folder: (folder / INDEX).write_text("[" * 100_000), "index.json is not valid JSON"),
    "index empty": (lambda folder: edit_json(folder / INDEX, weight_map={}), "has no weight_map"),
    "index of names": (lambda folder: edit_json(folder / INDEX, weight_map={"a": 1}), "names 1, but"),
}


@pytest.mark.parametrize("change, message", CANNOT_LOAD.values(), ids=CANNOT_LOAD)
def test_folder_that_cannot_be_loaded(change, message, hub, repo_id, tmp_path, request):
    """Nothing is asked of the Hub."""
    folder = tmp_path / "model"
    sharded = request.node.callspec.id.startswith(("shard", "index"))
    CaitForImageClassification(tiny_config()).save_pretrained(folder, max_shard_size="100KB" if sharded else "1GB")
    assert (folder / SHARDS[0]).exists() == sharded
    change(folder)
    with pytest.raises(ValueError, match=f"folder is {folder}, but .*{message}"):
        push_folder(folder, repo_id)
    assert hub.requests == []


@pytest.mark.parametrize("model_class", [CaitModel, CaitForMaskedImageModeling, CaitBackbone])
def test_push_of_the_other_classes(model_class, hub, repo_id, tmp_path):
    model_class(tiny_config()).save_pretrained(tmp_path / "model")
    push_folder(tmp_path / "model", repo_id)
    model_class.from_pretrained(repo_id)


# Remote code


LOAD = """
import sys

sys.modules.update(dict.fromkeys({hidden!r}))  # as if not installed
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoModel, pipeline
from transformers import AutoModelForImageClassification, AutoModelForMaskedImageModeling
from transformers.models.auto.image_processing_auto import AutoImageProcessor

source = {source!r}
try:
    AutoConfig.from_pretrained(source, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded without trust")
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
backbone = type(AutoBackbone.from_config(config, trust_remote_code=True))  # from_pretrained: a folder is a repository
autos = (AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling, AutoImageProcessor)
loaded = [auto.from_pretrained(source, trust_remote_code=True) for auto in autos]
classify = pipeline("image-classification", model=source, trust_remote_code=True, top_k=1)
image = Image.radial_gradient("L").convert("RGB")
with torch.no_grad():
    results = dict(
        logits=loaded[1](torch.load({images!r})).logits,
        pixel_values=loaded[-1](image, return_tensors="pt").pixel_values,
        label=classify(image)[0]["label"],
        classes=[(type(thing).__module__, type(thing).__name__) for thing in (config, backbone(config), *loaded)],
    )
torch.save(results, {output!r})
"""


@pytest.mark.parametrize("where, backend", [("folder", "pil"), ("hub", "torchvision")])
def test_remote_code(where, backend, hub, repo_id, pth, tmp_path):
    """In a process that cannot import the package, with the image processor of either backend."""
    if backend == "torchvision":
        pytest.importorskip("torchvision", reason="the other backend has a test of its own", exc_type=ImportError)
    source = tmp_path / "model"
    options = ["--push_to_hub", repo_id] if where == "hub" else []
    assert to_hf(pth, source, "--remote_code", *options) == 0
    assert sorted(file.name for file in source.glob("*.py")) == CODE == [file.name for file in remote_code_files()]
    if where == "hub":
        assert sorted(api.list_repo_files(repo_id)) == sorted([*WRITTEN, *CODE])
        source = repo_id
    torch.save(images(2, 32), tmp_path / "images.pt")
    places = {"source": str(source), "images": str(tmp_path / "images.pt"), "output": str(tmp_path / "results.pt")}
    program = LOAD.format(**places, hidden=["cait_hf"] + ["torchvision"] * (backend == "pil"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stderr
    results = torch.load(places["output"])

    modules, names = zip(*results["classes"])
    models = ("CaitModel", "CaitForImageClassification", "CaitForMaskedImageModeling")
    processor = "CaitImageProcessorPil" if backend == "pil" else "CaitImageProcessor"
    assert names == ("CaitConfig", "CaitBackbone", *models, processor)
    assert all(module.startswith("transformers_modules.") for module in modules)
    model = CaitForImageClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = model(images(2, 32)).logits
    assert (results["logits"] - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert results["pixel_values"].shape == (1, 3, 32, 32) and results["pixel_values"].std() > 0.5
    assert results["label"] in model.config.id2label.values()


def test_remote_code_beside_the_package(pth, tmp_path):
    """Where the package is installed its own classes are taken, with and without trust."""
    assert to_hf(pth, tmp_path / "model", "--remote_code") == 0
    for trust in (None, True, False):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "model", trust_remote_code=trust)
        assert type(model) is CaitForImageClassification
    auto_map = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]
    models = {"AutoModel", "AutoModelForImageClassification", "AutoModelForMaskedImageModeling", "AutoBackbone"}
    assert set(auto_map) == {"AutoConfig", *models}


def test_added_code_is_part_of_what_was_written(tmp_path):
    """So that a conversion may still replace the folder."""
    with new_folder(tmp_path / "model", "source", overwrite=False) as folder:
        (folder / "config.json").write_text("{}")
    add_remote_code(tmp_path / "model")
    assert foreign_files(tmp_path / "model") == []
    (tmp_path / "model" / "notes.txt").write_text("mine")
    add_remote_code(tmp_path / "model")
    assert foreign_files(tmp_path / "model") == ["notes.txt"]

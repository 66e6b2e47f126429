# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""torch.export, Transformers' exporters and `scripts/export.py`: what was written, loaded again, gives torch's logits.

The weights make every part matter, and the images have sizes and numbers other than those traced.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_weights import images, randomize_, tiny_config
from test_scripts import load_script
from torch.export import Dim

from cait_hf import CaitForImageClassification, CaitImageProcessorPil


export = load_script("export")
TOLERANCE = {"rtol": 0, "atol": 1e-4}
SIZES = ((3, 32, 32), (1, 32, 32), (2, 40, 64), (1, 72, 16))  # batch, height, width; 32 is the model's own


def require(export_format: str):
    pytest.importorskip("transformers.exporters.metadata", reason="this Transformers has no exporters that save")
    for package in export.PACKAGES[export_format]:
        pytest.importorskip(package, reason=f"export to {export_format} needs {package}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint in bfloat16, which the script exports in float32."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config(num_hidden_layers=1, num_class_attention_layers=1)
    randomize_(CaitForImageClassification(config)).bfloat16().save_pretrained(folder)
    CaitImageProcessorPil(size=32, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> CaitForImageClassification:
    return CaitForImageClassification.from_pretrained(folder, dtype=torch.float32)


class Logits(torch.nn.Module):
    def __init__(self, model: CaitForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values, interpolate_pos_encoding=True).logits


@torch.no_grad()
def assert_equal_logits(exported, model, sizes=SIZES):
    for size in sizes:
        logits = torch.as_tensor(exported(images(*size)))
        torch.testing.assert_close(logits, Logits(model)(images(*size)), **TOLERANCE)


@pytest.fixture
def refused(folder, tmp_path, capsys):
    """Checks that the script ends with one error message and leaves nothing."""

    def check(message: str, flags: str, source: str = str(folder)):
        before = sorted(tmp_path.rglob("*")), sorted(folder.iterdir())
        assert export.main([source, *flags.split()]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
        assert before == (sorted(tmp_path.rglob("*")), sorted(folder.iterdir()))

    return check


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_torch_export_leaves_batch_height_and_width_free(model, attn_implementation, tmp_path):
    model.set_attn_implementation(attn_implementation)
    axes = {0: Dim("batch"), 2: 8 * Dim("rows", min=2), 3: 8 * Dim("columns", min=2)}
    program = torch.export.export(Logits(model), (images(2, 48, 40),), dynamic_shapes={"pixel_values": axes})
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    assert_equal_logits(exported, model)
    with pytest.raises(AssertionError, match="Guard failed"):
        exported(images(2, 36, 40))  # not a multiple of the patch size


def test_traced_file_needs_nothing_but_torch(model, tmp_path):
    """`torch.jit.trace`, deprecated, is what some converters to other formats still start from."""
    model.set_attn_implementation("sdpa")
    torch.jit.trace(Logits(model), images(2, 32)).save(tmp_path / "model.pt")
    torch.save([images(3, 32), Logits(model)(images(3, 32))], tmp_path / "expected.pt")
    code = """
import torch
pixel_values, expected = torch.load("expected.pt")
torch.testing.assert_close(torch.jit.load("model.pt")(pixel_values), expected, rtol=0, atol=1e-4)
"""
    command = [sys.executable, "-c", code]  # a process that does not know the package
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_onnx_by_tracing(model, tmp_path):
    pytest.importorskip("onnxruntime", reason="runs what was written")
    import onnxruntime

    model.set_attn_implementation("sdpa")
    axes = {"pixel_values": {0: "batch"}}
    options = {"dynamo": False, "input_names": ["pixel_values"], "dynamic_axes": axes}
    torch.onnx.export(Logits(model), (images(2, 32),), tmp_path / "model.onnx", **options)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"pixel_values": images(3, 32).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), Logits(model)(images(3, 32)), **TOLERANCE)


def test_resizing_positions_to_their_own_grid_changes_nothing(model, monkeypatch):
    """An exported program resizes always, so that its size stays free."""
    embeddings = model.cait.embeddings
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    resized = embeddings.interpolate_pos_encoding(32, 32)
    assert resized is not embeddings.position_embeddings
    torch.testing.assert_close(resized, embeddings.position_embeddings, rtol=0, atol=0)


def onnx_runner(folder: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(["logits"], {"pixel_values": pixel_values.numpy()})[0]


def openvino_runner(folder: Path):
    import openvino

    # else it may round to bfloat16 where the processor can
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixel_values: compiled({"pixel_values": pixel_values.numpy()})["logits"]


def torch_runner(folder: Path):
    from transformers.exporters.base import ExportedModel

    exported = ExportedModel.from_pretrained(folder, trust_remote_code=True)
    return lambda pixel_values: exported(pixel_values=pixel_values).logits


RUNNERS = {"onnx": onnx_runner, "openvino": openvino_runner, "torch": torch_runner}


@pytest.mark.parametrize("export_format", RUNNERS)
@pytest.mark.parametrize("dynamic_size", [False, True], ids=["own size", "any size"])
def test_script_writes_what_its_runtime_runs(export_format, dynamic_size, folder, model, tmp_path, capfd, monkeypatch):
    require(export_format)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # a pickle of more than tensors is refused
    flags = ["--format", export_format] + ["--dynamic_size"] * dynamic_size
    assert export.main([str(folder), str(tmp_path / "exported"), *flags]) == 0
    printed = capfd.readouterr().out
    assert printed.startswith(f"Wrote {tmp_path / 'exported'}: the logits differ from torch's by at most ")
    assert printed.count("\n") == 1

    run = RUNNERS[export_format](tmp_path / "exported")
    assert_equal_logits(run, model, SIZES if dynamic_size else SIZES[:2])
    if not dynamic_size:
        with pytest.raises(Exception, match="(?i)shape|size|dimension"):
            run(images(1, 40))
    assert CaitImageProcessorPil.from_pretrained(tmp_path / "exported").crop_size["height"] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_script_takes_an_opset(folder, tmp_path):
    require("onnx")
    import onnx

    assert export.main([str(folder), str(tmp_path / "exported"), "--opset", "18"]) == 0
    opsets = {opset.domain: opset.version for opset in onnx.load(tmp_path / "exported" / "model.onnx").opset_import}
    assert opsets[""] == 18


@pytest.mark.parametrize("opset", [5, -1, 99])
def test_an_opset_that_cannot_be_written(opset, tmp_path, refused):
    """The exporter warns and writes another one, for 99 with operators that this one does not have."""
    require("onnx")
    message = f"--opset is {opset}, with which the exporter cannot write this model (it took "
    refused(message, f"{tmp_path / 'exported'} --opset={opset}")


@pytest.mark.parametrize("export_format, file", [("onnx", "model.onnx"), ("torch", "model.pt2")])
def test_a_program_that_does_not_load(export_format, file, tmp_path, refused, monkeypatch):
    require(export_format)
    write = export.write

    def damaged(model, target, *args):
        write(model, target, *args)
        (target / file).write_bytes(b"no program")

    monkeypatch.setattr(export, "write", damaged)
    refused("error: The exported program does not run: ", f"{tmp_path / 'exported'} --format {export_format}")


def test_onnx_with_recorded_outputs(model, tmp_path):
    require("onnx")
    from transformers.exporters import OnnxConfig, OnnxExporter
    from transformers.exporters.base import ExportedModel

    asked = {"pixel_values": images(2, 32), "output_attentions": True, "output_hidden_states": True}
    config = OnnxConfig(dynamic_shapes={"pixel_values": {0: Dim("batch")}})
    OnnxExporter().export(model, dict(asked), config).save_pretrained(tmp_path)
    exported = ExportedModel.from_pretrained(tmp_path)
    asked["pixel_values"] = images(3, 32)
    with torch.no_grad():
        expected = model(**asked)
    found = exported(pixel_values=asked["pixel_values"])
    assert type(found).__name__ == "CaitForImageClassificationOutput"
    for name, count in {"hidden_states": 2, "attentions": 1, "class_attentions": 1}.items():
        assert len(found[name]) == len(expected[name]) == count
        torch.testing.assert_close(found[name], expected[name], **TOLERANCE)


def test_a_wrong_export_is_not_written(tmp_path, refused, monkeypatch):
    require("torch")
    load, write = export.load_model, export.write

    def another_model(source):  # what is compared is not what is written
        monkeypatch.setattr(export, "write", lambda _, *args: write(randomize_(load(source).float(), seed=1), *args))
        return load(source)

    monkeypatch.setattr(export, "load_model", another_model)
    refused("error: The logits differ from torch's by ", f"{tmp_path / 'exported'} --format torch")


WRONG_INPUT = {
    "no source": ("absent", "{out}/new --format torch", "source is absent"),
    "source is a file": ("{folder}/config.json", "{out}/new --format torch", "config.json, a file, but it must"),
    "no classifier": ("{out}/headless", "{out}/new --format torch", "is 0, but it must be at least 1"),
    "opset": ("{folder}", "{out}/new --format torch --opset 18", "--opset is 18, but --format torch has no opsets"),
    "output is a file": ("{folder}", "{out}/file --format torch", "a file, but it must be a folder"),
    "output is the source": ("{folder}", "{folder} --format torch", "must not be or contain the source"),
    "output in use": ("{folder}", "{out} --format torch", "not empty; empty it or pass --overwrite"),
    "packages": ("{folder}", "{out}/new --format onnx", "needs no_such, nor_this: pip install no_such nor_this."),
}


@pytest.mark.parametrize("source, flags, message", WRONG_INPUT.values(), ids=WRONG_INPUT)
def test_wrong_input(source, flags, message, folder, tmp_path, refused, monkeypatch):
    require("torch")
    monkeypatch.setitem(export.PACKAGES, "onnx", ("no_such", "nor_this"))
    CaitForImageClassification(tiny_config(num_hidden_layers=1, num_labels=0)).save_pretrained(tmp_path / "headless")
    (tmp_path / "file").touch()
    refused(message, flags.format(folder=folder, out=tmp_path), source.format(folder=folder, out=tmp_path))

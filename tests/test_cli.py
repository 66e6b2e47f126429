# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The command `cait-hf`: what each subcommand prints, which errors it reports, and that help is quick."""

import http.server
import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from official_files import official_tensors, write_pth, write_timm_folder
from PIL import Image
from random_weights import randomize_, tiny_config
from test_scripts import SCRIPTS, load_script

import cait_hf
import cait_hf_cli as cli
from cait_hf import (
    CHECKPOINTS,
    CaitConfig,
    CaitForImageClassification,
    CaitImageProcessorPil,
    attention_native,
    loading,
)
from cait_hf.checkpoints import resolve_model
from cait_hf.fashion_mnist import CHECKPOINT
from cait_hf.macs import macs
from cait_hf.prediction.predictor import Predictor


CONVERSION = SCRIPTS.parent / "conversion"
SUBCOMMANDS = ["list", "classify", "predict", "app", "convert", "verify", "push", "info", "env"]
# Those whose flags are in modules that need torch, with a flag of each.
WITH_MODULES = {"train": "--train_dir", "evaluate": "--data_dir", "export": "--dynamic_size"}
SCRIPTS_OF = {"train": "run_image_classification", "evaluate": "evaluate_imagenet", "export": "export"}


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def pth(tmp_path):
    return write_pth(tmp_path / "weights.pth", official_tensors(tiny_config()))


@pytest.fixture
def model(pth, tmp_path, capsys):
    assert run("convert", "--source", pth, "--output_dir", tmp_path / "model") == 0
    capsys.readouterr()
    return tmp_path / "model"


@pytest.fixture
def images(tmp_path):
    """Five images in two folders, and a text."""
    (tmp_path / "images" / "below").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index, name in enumerate(["a.png", "b.jpg", "c.PNG", "below/d.png", "below/e.webp"]):
        pixels = generator.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_has_an_example(subcommand, capsys):
    with pytest.raises(SystemExit) as exit:
        run(subcommand, "--help")
    assert exit.value.code == 0
    example = re.search(r"example:\n +cait-hf (.+)", capsys.readouterr().out)[1]
    assert cli.parse_args(re.sub("'", "", example).split()).command is not None
    assert example.startswith(subcommand)


def test_help_and_version_load_nothing_outside_the_standard_library():
    """What the installed command does: it imports the module that setup.py names and calls its function."""
    setup = (Path(cli.__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
    module, function = re.search(r'"cait-hf = ([\w.]+):(\w+)"', setup).groups()
    program = f"""
import sys
before = set(sys.modules)
from {module} import {function}
for arguments in {[["--version"], ["--help"], ["convert"], *([name, "--help"] for name in SUBCOMMANDS)]}:
    try:
        {function}(arguments)
    except SystemExit as exit:
        print("exit code", exit.code)
loaded = {{name.split(".")[0] for name in sys.modules.keys() - before}}
print(sorted(loaded - sys.stdlib_module_names))
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = child.stdout.splitlines()
    assert child.returncode == 0 and lines[-1] == f"['{module}']", child.stdout + child.stderr
    assert lines[0] == f"cait-hf {cait_hf.__version__}"
    assert re.findall(r"^exit code (\d)$", child.stdout, re.MULTILINE) == ["0", "0", "2", *"0" * len(SUBCOMMANDS)]
    listed = [*SUBCOMMANDS, *WITH_MODULES]
    assert all(re.search(rf"^    {name} ", child.stdout, re.MULTILINE) for name in listed)


@pytest.mark.parametrize("name, flag", WITH_MODULES.items())
def test_commands_with_modules_show_their_flags(name, flag, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bin/cait-hf"])
    with pytest.raises(SystemExit) as exit:
        run(name, "--help")
    printed = capsys.readouterr().out
    assert exit.value.code == 0 and printed.startswith(f"usage: cait-hf {name} ") and f" {flag}" in printed
    assert name != "train" or "finetune, " in printed and "variants/s24" in printed


def test_commands_with_modules_are_what_the_scripts_run(model, tmp_path, capsys):
    assert {name: load_script(script).__name__ for name, script in SCRIPTS_OF.items()} == {
        name: f"cait_hf.commands.{name}" for name in cli.MODULES
    }
    assert run("evaluate", model, "--data_dir", tmp_path / "missing") == 1
    assert run("export", tmp_path / "missing", tmp_path / "out", "--format", "torch") == 1
    with pytest.raises(SystemExit, match="there is nothing to do"):
        run("train", "--output_dir", tmp_path / "out")
    printed = capsys.readouterr().err
    assert printed.count("error: ") == 2 and not (tmp_path / "out").exists()


def test_list(capsys):
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    for line, checkpoint in zip(lines[2:12], CHECKPOINTS, strict=True):
        name, parameters, gmacs, megabytes, published, *accuracies = line.split()
        assert (name, parameters) == (checkpoint.official_name, f"{checkpoint.num_parameters:,}")
        assert (float(gmacs), *map(float, accuracies)) == (checkpoint.timm_gmacs, *checkpoint.timm_accuracy.imagenet)
        assert published == "-" or float(published.rstrip("*")) == checkpoint.published_top1
        assert published.endswith("*") == (
            checkpoint.published_top1_source is not None and "others" in checkpoint.published_top1_source
        )
        if checkpoint.timm_file_megabytes is not None:
            assert float(megabytes) == pytest.approx(checkpoint.timm_file_megabytes, abs=0.6)


# classify


def classified(capsys, *arguments) -> list[dict]:
    assert run("classify", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def files(results: list[dict], folder: Path) -> list[str]:
    return [str(Path(result["file"]).relative_to(folder)) for result in results]


def test_classify(model, images, capsys):
    """The batches, the order and the preparation change nothing."""
    network = CaitForImageClassification.from_pretrained(model)
    processor = CaitImageProcessorPil.from_pretrained(model)
    results = classified(capsys, images, "--model", model, "--top_k", 3, "--batch_size", 2)
    assert files(results, images) == ["a.png", "b.jpg", "below/d.png", "below/e.webp", "c.PNG"]
    for result in results:
        with torch.no_grad():
            logits = network(processor(Image.open(result["file"]), return_tensors="pt").pixel_values).logits[0]
        scores, indices = logits.softmax(-1).topk(3)
        labels, found = zip(*(prediction.values() for prediction in result["predictions"]))
        assert list(labels) == [network.config.id2label[index] for index in indices.tolist()]
        assert (torch.tensor(found) - scores).abs().max() < 1e-5
    assert len({json.dumps(result["predictions"]) for result in results}) == 5
    some = classified(capsys, images / "b.jpg", f"{images}/**/*.png", images / "below", "--model", model)
    assert files(some, images) == ["b.jpg", "a.png", "below/d.png", "below/e.webp"]
    assert run("classify", images / "a.png", "--model", model, "--top_k", 2) == 0
    text = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(str(images))}/a\.png\n(  0\.\d{{4}}  LABEL_\d\n){{2}}", text)


def test_classify_goes_on_after_an_unreadable_file(model, images, capsys):
    (images / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    bad = [images / name for name in ("damaged.png", "missing.png", "*.gif", "notes.txt")]
    assert run("classify", *bad[:2], images / "a.png", *bad[2:], "--json", "--model", model, "--batch_size", 2) == 1
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert ["error" in result for result in results] == [True, True, False, True, True]
    assert len(results[2]["predictions"]) == 5
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4 and all(str(file) in error for file, error in zip(bad, errors))


def test_classify_with_a_repository_of_timm_and_multi_label(hub, repo_id, images, tmp_path, capsys):
    folder = write_timm_folder(tmp_path / "timm", official_tensors(tiny_config()), label_names=list("abcde"))
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
    single = classified(capsys, images / "a.png", "--model", repo_id, "--top_k", 99)[0]["predictions"]
    assert sum(prediction["score"] for prediction in single) == pytest.approx(1, abs=1e-5) and len(single) == 5
    config = tiny_config(problem_type="multi_label_classification", id2label=dict(enumerate("abcde")))
    randomize_(CaitForImageClassification(config)).save_pretrained(tmp_path / "multi")
    CaitImageProcessorPil.from_pretrained(repo_id).save_pretrained(tmp_path / "multi")
    multi = classified(capsys, images / "a.png", "--model", tmp_path / "multi")[0]["predictions"]
    assert [p["label"] for p in multi] == [p["label"] for p in single]
    odds = [p["score"] / (1 - p["score"]) for p in multi]  # exp(logit), which the softmax normalizes
    assert [odd / sum(odds) for odd in odds] == pytest.approx([p["score"] for p in single], rel=1e-3)


def test_classify_takes_urls(model, images, capsys):
    """Each once, in the order given; one that gives no image is reported."""
    with http_server(images) as address:
        urls = [f"{address}/a.png", f"{address}//b.jpg", f"{address}/missing.png"]
        assert run("classify", "--json", *urls, urls[0], "--model", model) == 1
    results = json.loads(capsys.readouterr().out)
    assert [result["file"] for result in results] == urls
    local = classified(capsys, images / "a.png", images / "b.jpg", "--model", model)
    assert [result["predictions"] for result in results[:2]] == [result["predictions"] for result in local]
    assert "404" in results[2]["error"]


@contextmanager
def http_server(folder: Path):
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_hidden_files_are_no_images_of_a_folder(model, images, capsys):
    """Those that macOS leaves beside each file on other disks are named like images."""
    for hidden in ("._a.png", ".thumbnails/a.png", "__MACOSX/._a.png"):
        (images / hidden).parent.mkdir(exist_ok=True)
        (images / hidden).write_bytes(b"not an image")
    results = classified(capsys, images, "--model", model)
    assert files(results, images) == ["a.png", "b.jpg", "below/d.png", "below/e.webp", "c.PNG"]
    (images / ".c.png").write_bytes((images / "a.png").read_bytes())  # named, it is one
    assert len(classified(capsys, images / ".c.png", "--model", model)) == 1


def test_a_folder_without_images_is_an_error(model, images, capsys):
    (images / "empty").mkdir()
    assert run("classify", images / "empty", images / "a.png", "--model", model, "--json") == 1
    captured = capsys.readouterr()
    assert ["error" in result for result in json.loads(captured.out)] == [True, False]
    assert f"error: {images / 'empty'}: it is a folder that contains no images." in captured.err


def test_json_keeps_what_there_is_when_interrupted(model, images, capsys, monkeypatch):
    predict = Predictor.__call__
    batches = []

    def interrupted(self, pixel_values):
        batches.append(pixel_values)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return predict(self, pixel_values)

    monkeypatch.setattr(Predictor, "__call__", interrupted)
    assert run("classify", images, "--model", model, "--json", "--batch_size", 2) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 4 and "interrupted" in captured.err
    assert run("classify", images, "--model", model, "--json") == 0  # and the format is that of `json.dumps`
    printed = capsys.readouterr().out
    assert printed == json.dumps(json.loads(printed), indent=2) + "\n"


@pytest.mark.parametrize("arguments", ["list", "classify {images}/*.png --model {model} --json"])
def test_a_reader_that_leaves_ends_the_command_quietly(arguments, model, images, tmp_path):
    """As `head` does; a message would come at the exit at the latest, so this is a process of its own."""
    program = "import sys; from cait_hf_cli import main; sys.stdin.readline(); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *arguments.format(images=images, model=model).split()]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    child.stdout.close()
    _, errors = child.communicate("go on\n")
    assert (child.returncode, errors) == (128 + 13, "")


def test_other_broken_pipes_are_errors(model, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(loading, "load_model", broken)
    assert run("classify", "a.png", "--model", model) == 1
    assert "Broken pipe" in capsys.readouterr().err


def test_names_of_models_that_every_command_takes(images, tmp_path, monkeypatch, capsys):
    assert resolve_model("xs24_384") == "timm/cait_xs24_384.fb_dist_in1k"
    assert resolve_model("someone/model") == "someone/model"
    assert resolve_model("fashion_mnist") == CHECKPOINT
    (tmp_path / "XS24_384").mkdir()
    (tmp_path / "fashion_mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [resolve_model(name) for name in ("XS24_384", "fashion_mnist")] == ["XS24_384", "fashion_mnist"]
    with pytest.raises(OSError, match="XS24_384, .* no config.json"):  # the folder is meant
        run("info", "XS24_384", "--debug")


def test_the_checkpoint_in_the_package_has_a_short_name(images, tmp_path, hub, repo_id, capsys):
    (result,) = classified(capsys, images / "a.png", "--model", "fashion_mnist")
    labels = CaitConfig.from_pretrained(CHECKPOINT).label2id
    assert {prediction["label"] for prediction in result["predictions"]} < labels.keys()
    for script, folder, arguments in (
        ("visualize_attention", SCRIPTS, ["fashion_mnist", images / "a.png", "--output", tmp_path / "a.png"]),
        ("convert_hf_to_timm", CONVERSION, ["--source", "fashion_mnist", "--output_dir", tmp_path / "timm"]),
    ):
        assert load_script(script, folder).main([str(argument) for argument in arguments]) == 0
    assert run("info", "fashion_mnist") == 0
    assert run("push", "fashion_mnist", repo_id) == 0
    assert hub.read(repo_id, "model.safetensors") == Path(CHECKPOINT, "model.safetensors").read_bytes()
    before = sorted(path.name for path in Path(CHECKPOINT).iterdir())
    assert run("push", "fashion_mnist", repo_id, "--remote_code") == 1  # no change of installed files
    assert "part of the installed package" in capsys.readouterr().err
    assert sorted(path.name for path in Path(CHECKPOINT).iterdir()) == before


# convert, push, verify, info


def test_convert_and_push(hub, repo_id, pth, tmp_path, capfd):
    folder = tmp_path / "model"
    assert run("convert", "--source", pth, "--output_dir", folder, "--remote_code") == 0
    assert run("push", folder, repo_id, "--private", "--tag", "v1") == 0
    output = capfd.readouterr()
    assert f"Pushed: {hub.url}/{repo_id}/commit/" in output.out and hub.token not in output.out + output.err
    info = HfApi().model_info(repo_id, revision="v1")
    assert info.private and {"modeling_cait.py", "model.safetensors"} <= {file.rfilename for file in info.siblings}
    assert run("push", folder, repo_id) == 0
    assert hub.count("POST .*/commit/") == 1


def test_verify(model, capsys, monkeypatch):
    pytest.importorskip("timm", reason="the reference is timm's CaiT")
    assert run("verify", model) == 0
    assert "Verified: the logits differ from timm's by at most" in capsys.readouterr().out
    forward = CaitForImageClassification.forward
    monkeypatch.setattr(CaitForImageClassification, "forward", lambda self, images: forward(self, 1.01 * images))
    assert run("verify", model) == 1
    assert "more than the 1e-04 allowed" in capsys.readouterr().err


def test_verify_without_timm(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert run("verify", model) == 1
    assert "needs timm, which cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.official_name)
def test_info_of_an_official_checkpoint(checkpoint, capsys):
    """Nothing is downloaded."""
    assert run("info", checkpoint.official_name) == 0
    text = capsys.readouterr().out
    assert f" {checkpoint.num_parameters:,}\n" in text
    assert f"{checkpoint.image_size} x {checkpoint.image_size} pixels, 3 channels" in text
    counted = int(re.search(r"MACs +([\d,]+) ", text)[1].replace(",", ""))
    assert counted == pytest.approx(1e9 * checkpoint.timm_gmacs, rel=0.02)
    assert f"{4e-6 * checkpoint.num_parameters:,.1f} MB in float32" in text


def test_info_of_a_folder(model, capsys):
    assert run("info", model) == 0
    network = CaitForImageClassification.from_pretrained(model)
    text = capsys.readouterr().out
    assert f" {network.num_parameters():,}\n" in text and f" {macs(network.config):,} for" in text


@pytest.mark.parametrize("native", ["0", "none"])
def test_env(native, monkeypatch, capsys):
    """Versions, and why the attention is computed as it is; an environment variable with a wrong value is an error."""
    monkeypatch.setenv("CAIT_HF_NATIVE", native)
    attention_native._load.cache_clear()
    code = run("env")
    attention_native._load.cache_clear()
    printed = capsys.readouterr()
    assert re.search(rf"^cait-hf +{re.escape(cait_hf.__version__)}\n", printed.out)
    assert re.search(rf"^torch +{re.escape(metadata.version('torch'))}$", printed.out, re.M)
    if native == "0":
        assert code == 0 and printed.out.endswith("blocked (CAIT_HF_NATIVE=0)\n")
    else:
        assert code == 1 and "CAIT_HF_NATIVE is none" in printed.err


# Errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["classify", "a.png", "--model", "{tmp}/nowhere"], "which is neither a folder nor the id of a repository"),
        (["classify", "a.png", "--model", "tester/nowhere"], "tester/nowhere"),
        (["convert", "--source", "{tmp}/missing.pth", "--output_dir", "{tmp}/out"], "there is no such file"),
        (["push", "{tmp}/nowhere", "tester/repo"], "it must hold config.json and the complete weights"),
        (["info", "{tmp}/nowhere"], "nowhere"),
        (["verify", "{tmp}/nowhere"], "which is neither a folder nor the id of a repository"),
    ],
)
def test_errors_without_a_traceback(arguments, message, hub, tmp_path, capsys):
    if arguments[0] == "verify":
        pytest.importorskip("timm", reason="its absence is reported first")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert run(*arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    with pytest.raises((OSError, ValueError)):
        run(*arguments, "--debug")


def test_unexpected_error_names_its_kind(model, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no\nidea")

    monkeypatch.setattr(loading, "load_model", broken)
    assert run("classify", "a.png", "--model", model) == 1
    assert capsys.readouterr().err == "error: RuntimeError: no idea (see --debug)\n"
    with pytest.raises(RuntimeError, match="no\nidea"):
        run("classify", "a.png", "--model", model, "--debug")


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_numbers_of_the_command_line(value, capsys):
    with pytest.raises(SystemExit) as exit:
        run("classify", "a.png", f"--top_k={value}")
    assert exit.value.code == 2 and "must be an integer > 0" in capsys.readouterr().err

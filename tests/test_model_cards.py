# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`cait_hf.cards`: metadata, numbers and text of each card, and code that runs."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import UndefinedError
from PIL import Image
from random_weights import randomize_, tiny_config
from transformers import ViTConfig, ViTForImageClassification

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification, CaitImageProcessorPil, find_checkpoint
from cait_hf.cards import render, training
from cait_hf.cards.checkpoint import TEST_SETS, render_model_card
from cait_hf.cards.training import Dataset, write_model_card
from cait_hf.fashion_mnist import CHECKPOINT
from cait_hf.macs import macs
from cait_hf.publish import add_remote_code
from cait_hf.training.report import environment


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "conversion"))

import render_model_cards  # noqa: E402


@cache
def official_card(checkpoint, **kwargs) -> ModelCard:
    config = CaitConfig(**checkpoint.config_kwargs, num_labels=1000)
    return ModelCard(render_model_card(config, checkpoint.hub_name, checkpoint=checkpoint, **kwargs))


def rows(card: ModelCard) -> dict[str, list[str]]:
    """Cells of the card's tables by the first one of their row."""
    lines = [line for line in card.text.splitlines() if line.startswith("| ")]
    return {first: cells for first, *cells in (line.strip("| ").split(" | ") for line in lines)}


def code_blocks(card: ModelCard) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card.text, re.MULTILINE | re.DOTALL)


def test_a_name_without_a_value_is_an_error():
    with pytest.raises(UndefinedError, match="marker"):
        render("training.md", ModelCardData())


def test_no_name_breaks_the_code():
    name = 'odd "name" \\'
    blocks = code_blocks(ModelCard(render_model_card(tiny_config(), name)))
    assert len(blocks) == 2
    for block in blocks:
        assert name in {node.value for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)}


# The files in model_cards/


def test_files_are_up_to_date(capsys):
    assert render_model_cards.main(["--check"]) == 0, capsys.readouterr().err


def test_render_and_check(tmp_path, capsys):
    assert render_model_cards.main(["--output_dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{each.hub_name}.md" for each in CHECKPOINTS)
    assert render_model_cards.main(["--check", "--output_dir", str(tmp_path)]) == 0

    changed = tmp_path / "cait-s24-224.md"
    changed.write_text(changed.read_text().replace("83.5", "83.6"))
    (tmp_path / "cait-m48-448.md").unlink()
    (tmp_path / "cait-b12-224.md").write_text("a checkpoint that does not exist")
    assert render_model_cards.main(["--check", "--output_dir", str(tmp_path)]) == 1
    assert "cait-b12-224.md, cait-m48-448.md, cait-s24-224.md" in capsys.readouterr().err


# Cards of the official checkpoints


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.hub_name)
def test_metadata_and_numbers(checkpoint):
    """Each number is the checkpoint's, and those of others come with their source."""
    card = official_card(checkpoint)
    data, table = card.data, rows(card)
    assert (data.license, data.library_name) == ("apache-2.0", "transformers")
    assert (data.pipeline_tag, data.tags) == ("image-classification", ["cait", "vision", "image-classification"])
    assert (data.datasets, data.metrics) == (["imagenet-1k"], ["accuracy"])
    assert (data.base_model, data.model_name) == (checkpoint.timm_repo, checkpoint.hub_name)
    reported = {}
    for result in data.eval_results:
        assert result.task_type == "image-classification" and result.metric_type == "accuracy"
        assert "timm" in result.source_name and result.source_url.endswith(".csv")
        reported.setdefault(result.dataset_type, []).append(result.metric_value)
    assert reported == {each.type: list(getattr(checkpoint.timm_accuracy, each.field)) for each in TEST_SETS}

    for test_set in TEST_SETS:
        published, *measured = table[test_set.name]
        assert [float(value) for value in measured] == list(getattr(checkpoint.timm_accuracy, test_set.field))
        known = checkpoint.published_top1 if test_set.field == "imagenet" else None
        assert published == ("-" if known is None else str(known))
    assert checkpoint.published_top1_source is None or checkpoint.published_top1_source in card.text
    assert ("has no row for this checkpoint" in card.text) == (checkpoint.published_top1 is None)
    assert f"{checkpoint.published_gmacs} ({checkpoint.published_gmacs_source})" in card.text
    assert (f"{checkpoint.published_top5}, is in deit README_deit.md" in card.text) == bool(checkpoint.published_top5)

    config = CaitConfig(**checkpoint.config_kwargs, num_labels=1000)
    assert table["parameters"] == [f"{checkpoint.num_parameters:,}"]
    assert table["bytes of the parameters in float32"] == [f"{4 * checkpoint.num_parameters:,}"]
    assert table["MACs for one image"] == [f"{macs(config):,}"]
    assert table["the same by timm, in 1e9"] == [str(checkpoint.timm_gmacs)]
    assert f"the shortest edge to {checkpoint.image_size} pixels (bicubic)" in card.text

    assert "rendered without a conversion" in card.text and "Converted from" not in card.text
    hashes = re.findall(r"\b[0-9a-f]{64}\b", card.text)
    assert hashes == [checkpoint.timm_file_sha256][: bool(checkpoint.timm_file_sha256)]
    assert not hashes or f"({checkpoint.timm_file_sha256_source})" in card.text


def test_what_only_some_cards_say():
    texts = {each.official_name: " ".join(official_card(each).text.split()) for each in CHECKPOINTS}

    def having(sentence: str) -> set[str]:
        return {name for name, text in texts.items() if sentence in text}

    assert having("The authors advise to evaluate this model in float32") == {"M48_448"}
    assert having("Fine-tuning at 448 pixels, with distillation") == {"M48_448"}
    assert having("where the paper's rule by depth gives 1e-6") == {"XXS36_224", "XXS36_384"}
    assert having("`README_cait.md` does not list this checkpoint") == {name for name in texts if name[:2] == "XX"}
    assert having("how the resolution of 384 pixels was reached") == {name for name in texts if "384" in name}
    for sentence in ("The teacher is not named there", "400 epochs", "crop ratio 1.0", "Apache-2.0", "issue 226"):
        assert having(sentence) == texts.keys()
    claims = r"state[- ]of[- ]the[- ]art|SOTA|outperform|best|recent|currently|novel|new model"  # overtaken by time
    assert not any(re.search(claims, text, re.IGNORECASE) for text in texts.values())


# Where the weights come from


def test_card_of_a_conversion():
    converted = {"source_name": "timm/x", "source_file": "model.safetensors", "source_sha256": "ab" * 32}
    checkpoint = find_checkpoint("XS24_384")
    text = official_card(checkpoint, **converted).text
    assert f"Converted from `timm/x`, `model.safetensors` (SHA-256 `{'ab' * 32}`)" in text
    assert "were not compared" in text and "without a conversion" not in text
    text = official_card(checkpoint, **converted, largest_difference=2.34e-6).text
    assert "differ by at most 2.3e-06 of\nthe largest logit" in text and "logits were not compared" not in text


def test_card_of_weights_of_ones_own():
    config = tiny_config(image_size=(32, 48))
    source = {"source_name": "me/cait_x", "source_file": "model.safetensors", "source_sha256": "0" * 64}
    card = ModelCard(render_model_card(config, "me/mine", **source, has_image_processor=False))
    assert card.data.license is None and card.data.datasets is None and card.data.eval_results is None
    assert card.data.base_model == "me/cait_x" and card.data.pipeline_tag == "image-classification"
    assert "ImageNet" not in card.text and "Accuracy" not in card.text and "License" not in card.text
    assert rows(card)["image size in pixels"] == ["32 x 48"]
    file = ModelCard(render_model_card(config, "mine", **source | {"source_name": "model.safetensors"}))
    assert file.data.base_model is None


# Cards of trainings


LABELS = {"num_labels": 3, "id2label": dict(enumerate("abc"))}
RAW = {"top1": 0.6, "mean_class_accuracy": 7 / 12, "loss": 0.5, "confusion_matrix": np.array([[2, 1], [1, 1]])}
EMA = {**RAW, "top1": 1.0, "mean_class_accuracy": 1.0, "loss": float("nan")}


def write_card(folder: Path, **changes) -> Path | None:
    arguments = {
        "model": CaitForImageClassification(tiny_config(**LABELS)),
        "num_parameters": 1234,
        "num_trainable": 1234,
        "model_name": "owner/my-cait",
        "base_model": "timm/cait_xxs24_224.fb_dist_in1k",
        "dataset": Dataset("owner/images", config="large"),
        "evaluated": Dataset("owner/images", config="large", split="test"),
        "results": {"raw": RAW, "ema": EMA},
        "settings": {"learning_rate": 5e-5, "seed": 3, "layers": None, "note": "a | b"},
        "train_metrics": {"train_images_per_second": 12.345, "train_peak_memory_mib": 512.0},
        "environment": environment(4),
    }
    return write_model_card(folder, **{**arguments, **changes})


def test_card_states_what_was_measured(tmp_path):
    path = write_card(tmp_path / "new")
    card = ModelCard.load(path)
    metadata, results, text = card.data.to_dict(), card.data.eval_results, card.text
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "image-classification"
    assert metadata["tags"] == ["cait", "image-classification", "vision", training.MARKER]
    assert metadata["base_model"] == "timm/cait_xxs24_224.fb_dist_in1k"
    assert metadata["datasets"] == ["owner/images"] and metadata["metrics"] == ["accuracy"]
    assert {(result.metric_name, result.metric_value) for result in results} == {
        ("top-1 accuracy", 0.6),
        ("mean accuracy of the classes", 7 / 12),
        ("top-1 accuracy, EMA", 1.0),
        ("mean accuracy of the classes, EMA", 1.0),
    }
    identity = {(result.dataset_type, result.dataset_config, result.dataset_split) for result in results}
    assert identity == {("owner/images", "large", "test")} and card.data.model_name == "my-cait"

    assert "| as trained, in this repository | 60.00% | 58.33% | 0.5000 |" in text
    assert "| their moving average (EMA) | 100.00% | 100.00% | nan |" in text
    assert "Measured on 5 images of [owner/images]" in text
    assert "It has 1,234 parameters\nand 3 classes: a, b, c." in text and "resumed" not in text
    assert "import cait_hf  # registers CaiT" in text and 'from_pretrained("owner/my-cait")' in text
    assert "| learning_rate | `5e-05` |" in text and "| note | `a \\| b` |" in text and "| seed | `3` |" in text
    assert "layers" not in text and "top-5" not in text and "license" not in text.lower()
    assert "| images per second in training, all processes | 12.35 |" in text and "| processes | 4 |" in text
    assert list(path.parent.iterdir()) == [path] and path.read_text().endswith("|\n")


def test_card_of_another_model_without_hub_names(tmp_path):
    (tmp_path / "beans/test").mkdir(parents=True)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**sizes, num_labels=50))
    path = write_card(
        tmp_path / "out",
        results={},
        model=model,
        num_trainable=450,
        model_name=str(tmp_path / "out"),
        base_model=None,
        dataset=Dataset(str(tmp_path / "beans")),
        changes=[("from step 3", "`num_train_epochs` 2 instead of 1")],
        resumed_at=3,
        settings={"train_dir": tmp_path / "beans", "hub_token": "hf_secret", "average_tokens_across_devices": False},
        command=["python", str(tmp_path / "run.py"), f"--train_dir={tmp_path / 'beans'}", "--hub_token", "hf_secret"]
        + ["--push_token=hf_secret", "--seed", "-1", "--note", "two words --x"],
    )
    text, metadata = path.read_text(), ModelCard.load(path).data.to_dict()
    assert str(tmp_path) not in text and "secret" not in text
    assert "| average_tokens_across_devices | `False` |" in text  # no token of the Hub
    flags = ("--train_dir=beans", "--hub_token ...", "--push_token=...", "--seed -1", "--note 'two words --x'")
    assert " \\\n    ".join(("python run.py", *flags)) + "\n```" in text
    assert metadata["tags"][0] == "vit"
    assert "| from step 3 | `num_train_epochs` 2 instead of 1 |" in text and "Measured after step 3, at" in text
    assert not {"base_model", "datasets", "license", "metrics", "model-index"} & set(metadata)
    assert "Nothing was measured" in text and "trained from random weights on `beans`" in text
    assert "cait_hf" not in text and "It has 1,234 parameters (450 were trained)\nand 50 classes." in text
    assert 'Image.open("image.jpg").convert("RGB")' in text  # its image processor takes RGB images alone


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/finetuned").mkdir(parents=True)
    assert training.is_hub_id("timm/cait_xxs24_224.fb_dist_in1k")
    for local in (None, "imagefolder", "outputs/finetuned", str(tmp_path), "a/b/c", "../b", "a b/c"):
        assert not training.is_hub_id(local), local


@pytest.mark.parametrize(
    "text",
    ["# Mine\n", "---\ntags:\n- cait\n---\n# Mine\n", "---\ntags: 5\n---\n", "---\na: [\n---\n", "---\n- 1\n---\n"],
)
def test_card_of_the_user_stays(text, tmp_path, caplog):
    path = tmp_path / "README.md"
    path.write_text(text)
    assert write_card(tmp_path) is None
    assert path.read_text() == text and list(tmp_path.iterdir()) == [path]
    assert f"{path} is not a card that cait-hf wrote" in caplog.text


def test_our_card_is_replaced(tmp_path):
    write_card(tmp_path, results={})
    path = write_card(tmp_path)
    assert "Measured on 5 images" in path.read_text()
    kept = path.read_text().replace(f"- {training.MARKER}\n", "")  # as its comment says
    path.write_text(kept)
    assert write_card(tmp_path, results={}) is None and path.read_text() == kept


# The code on the cards


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A working directory with an image; cards name folders in it."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(folder: Path, image_processor: bool = True) -> Path:
    config = tiny_config(id2label={index: f"class {index}" for index in range(5)})
    randomize_(CaitForImageClassification(config)).save_pretrained(folder)
    if image_processor:
        CaitImageProcessorPil(size=config.image_size, crop_size=config.image_size).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("auto_image_processor")
@pytest.mark.parametrize("kind", ["checkpoint", "training"])
def test_code_with_the_package(kind, workplace, capsys):
    checkpoint = find_checkpoint("M48_448")
    save(workplace / checkpoint.hub_name)
    trained = {"model_name": checkpoint.hub_name}
    card = official_card(checkpoint) if kind == "checkpoint" else ModelCard.load(write_card(workplace, **trained))
    pipelined, stepwise = code_blocks(card)
    exec(compile(pipelined, "card", "exec"), {})
    scores = capsys.readouterr().out
    exec(compile(stepwise, "card", "exec"), variables := {})
    label = capsys.readouterr().out
    assert scores.count("'score'") == 5 and re.fullmatch(r"class \d\n", label)
    assert f"'label': '{label.strip()}'" in scores.partition("}")[0]

    ramp = np.arange(50 * 61, dtype=np.uint16).reshape(50, 61) * 20  # 16 bits survive: no conversion that clips
    Image.fromarray(ramp).save("image.jpg", format="PNG")
    exec(compile(stepwise, "card", "exec"), variables)
    assert variables["inputs"]["pixel_values"].unique().numel() > 100


def test_code_without_an_image_processor(workplace, capsys):
    save(workplace / "mine", image_processor=False)
    (block,) = code_blocks(ModelCard(render_model_card(tiny_config(), "mine", has_image_processor=False)))
    exec(compile(block, "card", "exec"), {})
    assert re.fullmatch(r"class \d\n", capsys.readouterr().out)


def test_code_without_the_package(workplace):
    """In a process that cannot import it; it is the only block that works there."""
    checkpoint = find_checkpoint("XXS24_224")
    add_remote_code(save(workplace / checkpoint.hub_name))
    card = official_card(checkpoint, remote_code=True)
    assert card.data.tags[-1] == "custom_code"
    *others, block = code_blocks(card)
    assert all("import cait_hf" in other for other in others)
    assert "cait_hf" not in block and "trust_remote_code=True" in block
    script = f"import sys\nsys.modules['cait_hf'] = None\n{block}"
    environment = {**os.environ, "HF_MODULES_CACHE": str(workplace / "modules")}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("'score'") == 5


CARDS = [*render_model_cards.MODEL_CARDS.glob("*.md"), Path(CHECKPOINT, "README.md")]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_every_program_of_a_card_imports_the_package(card):
    """Without, Transformers does not know the model type and asks for an upgrade of itself."""
    programs = re.findall(r"^```python\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert programs and all("cait_hf" in program or "trust_remote_code=True" in program for program in programs)
    assert "which has to be imported first" in card.read_text(encoding="utf-8") or card.stem == "README"

# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards: metadata, numbers, text and code that runs; and the count of MACs in them."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from random_weights import randomize_, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from cait_hf import CHECKPOINTS, CaitConfig, CaitForImageClassification, CaitImageProcessorPil, find_checkpoint
from cait_hf.configuration_cait import as_pair
from cait_hf.model_card import TEST_SETS, macs, render_model_card
from cait_hf.publish import add_remote_code


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "conversion"))

import render_model_cards  # noqa: E402


all_checkpoints = pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.hub_name)


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
    assert "cait-b12-224.md, cait-m48-448.md, cait-s24-224.md: run python" in capsys.readouterr().err


# Cards of the official checkpoints


@all_checkpoints
def test_metadata(checkpoint):
    data = official_card(checkpoint).data
    assert data.license == "apache-2.0" and data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["cait", "vision", "image-classification"]
    assert data.datasets == ["imagenet-1k"] and data.metrics == ["accuracy"]
    assert data.base_model == checkpoint.timm_repo and data.model_name == checkpoint.hub_name

    reported = {}
    for result in data.eval_results:
        assert result.task_type == "image-classification" and result.metric_type == "accuracy"
        assert "timm" in result.source_name and result.source_url.endswith(".csv")
        reported.setdefault(result.dataset_type, []).append(result.metric_value)
    assert reported == {
        test_set.type: list(getattr(checkpoint.timm_accuracy, test_set.field)) for test_set in TEST_SETS
    }


@all_checkpoints
def test_accuracy_table(checkpoint):
    table = rows(official_card(checkpoint))
    for test_set in TEST_SETS:
        published, *measured = table[test_set.name]
        assert [float(value) for value in measured] == list(getattr(checkpoint.timm_accuracy, test_set.field))
        known = checkpoint.published_top1 if test_set.field == "imagenet" else None
        assert published == ("-" if known is None else str(known))


@all_checkpoints
def test_a_published_number_names_its_source(checkpoint):
    card = official_card(checkpoint)
    for sentence in (checkpoint.published_top1_source, checkpoint.published_gmacs_source):
        assert sentence is None or sentence in card.text
    assert ("has no row for this checkpoint" in card.text) == (checkpoint.published_top1 is None)
    assert f"{checkpoint.published_gmacs} ({checkpoint.published_gmacs_source})" in card.text
    assert (f"{checkpoint.published_top5}, is in deit README_deit.md" in card.text) == bool(checkpoint.published_top5)


@all_checkpoints
def test_sizes(checkpoint):
    card = official_card(checkpoint)
    table = rows(card)
    config = CaitConfig(**checkpoint.config_kwargs, num_labels=1000)
    assert table["parameters"] == [f"{checkpoint.num_parameters:,}"]
    assert table["bytes of the parameters in float32"] == [f"{4 * checkpoint.num_parameters:,}"]
    assert table["MACs for one image"] == [f"{macs(config):,}"]
    assert table["the same by timm, in 1e9"] == [str(checkpoint.timm_gmacs)]
    assert f"the shortest edge to {checkpoint.image_size} pixels (bicubic)" in card.text


def test_what_only_some_cards_say():
    texts = {each.official_name: " ".join(official_card(each).text.split()) for each in CHECKPOINTS}

    def having(sentence: str) -> set[str]:
        return {name for name, text in texts.items() if sentence in text}

    assert having("The authors advise to evaluate this model in float32") == {"M48_448"}
    assert having("Fine-tuning at 448 pixels, with distillation") == {"M48_448"}
    assert having("where the paper's rule by depth gives 1e-6") == {"XXS36_224", "XXS36_384"}
    assert having("`README_cait.md` does not list this checkpoint") == {name for name in texts if name[0] == "X"} - {
        "XS24_384"
    }
    assert having("how the resolution of 384 pixels was reached") == {name for name in texts if "384" in name}
    for sentence in ("The teacher is not named there", "400 epochs", "crop ratio 1.0", "Apache-2.0", "issue 226"):
        assert having(sentence) == texts.keys()


@all_checkpoints
def test_nothing_is_claimed_that_time_has_overtaken(checkpoint):
    claims = r"state[- ]of[- ]the[- ]art|SOTA|outperform|best|recent|currently|novel|new model"
    assert re.findall(claims, official_card(checkpoint).text, re.IGNORECASE) == []


# Where the weights come from


@all_checkpoints
def test_card_without_a_conversion_invents_none(checkpoint):
    card = official_card(checkpoint)
    assert "rendered without a conversion" in card.text and "Converted from" not in card.text
    hashes = re.findall(r"\b[0-9a-f]{64}\b", card.text)
    assert hashes == [checkpoint.timm_file_sha256][: bool(checkpoint.timm_file_sha256)]
    assert not hashes or f"({checkpoint.timm_file_sha256_source})" in card.text


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


@pytest.mark.skipif(
    hasattr(transformers.AutoImageProcessor, "_backends"),
    reason="the cards' code needs torchvision in Transformers 5.17, where AutoImageProcessor is a stand-in without it",
)
def test_code_with_the_package(workplace, capsys):
    checkpoint = find_checkpoint("M48_448")
    save(workplace / checkpoint.hub_name)
    blocks = code_blocks(official_card(checkpoint))
    assert len(blocks) == 2
    printed = []
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
        printed.append(capsys.readouterr().out)
    assert printed[0].count("'score'") == 5 and re.fullmatch(r"class \d\n", printed[1])
    assert f"'label': '{printed[1].strip()}'" in printed[0].partition("}")[0]


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


# MACs


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_hidden_layers": 1, "num_class_attention_layers": 1, "num_attention_heads": 3},
        {"image_size": (24, 40), "patch_size": (4, 8), "num_channels": 1, "num_labels": 7},
        {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 80, "num_class_attention_layers": 4},
    ],
    ids=["tiny", "one layer each", "not square", "wide"],
)
def test_macs_are_what_torch_counts(overrides):
    assert_counted(tiny_config(**overrides))


def test_macs_of_an_official_checkpoint():
    assert_counted(CaitConfig(**find_checkpoint("XXS24_224").config_kwargs, num_labels=1000))


def assert_counted(config: CaitConfig) -> None:
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = CaitForImageClassification(config).eval().requires_grad_(False)
        image = torch.zeros(1, config.num_channels, *as_pair(config.image_size))
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert counter.get_total_flops() == 2 * macs(config)


@all_checkpoints
def test_macs_agree_with_timm_and_with_the_published(checkpoint):
    counted = macs(CaitConfig(**checkpoint.config_kwargs, num_labels=1000)) / 1e9
    assert counted == pytest.approx(checkpoint.timm_gmacs, rel=0.01)
    assert counted == pytest.approx(checkpoint.published_gmacs, rel=0.015)

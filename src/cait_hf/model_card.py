# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards of CaiT, and the MACs that they state.

The text is `model_card_template.md` beside this file; every number in it comes from the configuration or from
`checkpoints.py`. What the card says of the training is from the authors' own words: deit's `README_cait.md` and the
issues of facebookresearch/deit that it names.
"""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .checkpoints import CaitCheckpoint
from .configuration_cait import CaitConfig, as_pair


TEMPLATE = Path(__file__).with_name("model_card_template.md")
TIMM_RESULTS_URL = "https://github.com/huggingface/pytorch-image-models/blob/main/results/"
TIMM_RESULTS_SOURCE = "timm's evaluation of its copy of these weights"


class _TestSet(NamedTuple):
    """One test set of timm's results: a field of `TimmAccuracy`, its name, kind and part on cards, timm's file."""

    field: str
    name: str
    type: str
    split: str
    timm_file: str


TEST_SETS = (
    _TestSet("imagenet", "ImageNet-1k", "imagenet-1k", "validation", "results-imagenet.csv"),
    _TestSet("real", "ImageNet-ReaL", "imagenet-real", "validation", "results-imagenet-real.csv"),
    _TestSet("v2", "ImageNet-V2 matched frequency", "imagenet-v2", "test", "results-imagenetv2-matched-frequency.csv"),
    _TestSet("a", "ImageNet-A", "imagenet-a", "test", "results-imagenet-a.csv"),
    _TestSet("r", "ImageNet-R", "imagenet-r", "test", "results-imagenet-r.csv"),
    _TestSet("sketch", "ImageNet-Sketch", "imagenet-sketch", "test", "results-sketch.csv"),
)


def render_model_card(
    config: CaitConfig,
    model_name: str,
    *,
    checkpoint: CaitCheckpoint | None = None,
    source_name: str | None = None,
    source_file: str | None = None,
    source_sha256: str | None = None,
    largest_difference: float | None = None,
    has_image_processor: bool = True,
    remote_code: bool = False,
) -> str:
    """The `README.md` of a repository with a converted CaiT, its metadata on top.

    Args:
        config: of the model, labels included.
        model_name: repository, or folder, that the examples load.
        checkpoint: the official checkpoint, where the weights are its authors'. Only then does the card state a
            license, training data and accuracies.
        source_name: what was converted: a file's name or a repository.
        source_file: the file that held the tensors. `None` for a card without a conversion, which says so.
        source_sha256: SHA-256 of that file, in hexadecimal.
        largest_difference: of the logits from timm's, in units of the largest logit; `None` if not compared.
        has_image_processor: whether there is a `preprocessor_config.json`.
        remote_code: whether the modeling files lie in the repository.
    """
    card = ModelCard.from_template(
        _metadata(model_name, checkpoint, source_name, remote_code),
        template_path=str(TEMPLATE),
        model_name=model_name,
        config=config,
        image_size=as_pair(config.image_size),
        macs=macs(config),
        checkpoint=checkpoint,
        test_sets=TEST_SETS,
        timm_results_url=TIMM_RESULTS_URL,
        source_name=source_name,
        source_file=source_file,
        source_sha256=source_sha256,
        largest_difference=largest_difference,
        has_image_processor=has_image_processor,
        remote_code=remote_code,
    )
    return str(card).rstrip("\n") + "\n"


def macs(config: CaitConfig) -> int:
    """MACs of one image of `config.image_size`: the patch projection, every linear layer, and the two products and
    the two talking-heads projections of each attention. Norms, softmax, activations and additions are not counted."""
    rows, columns = (size // patch for size, patch in zip(as_pair(config.image_size), as_pair(config.patch_size)))
    patch_height, patch_width = as_pair(config.patch_size)
    patches, width, hidden = rows * columns, config.hidden_size, config.intermediate_size
    tokens = 1 + patches  # what the class token attends to

    embeddings = patches * width * config.num_channels * patch_height * patch_width
    patch_layer = (
        4 * patches * width**2  # queries, keys, values, output
        + 2 * patches**2 * width  # scores, attended values
        + 2 * patches**2 * config.num_attention_heads**2  # talking-heads projections
        + 2 * patches * width * hidden
    )
    class_layer = (
        2 * width**2  # query and output of the class token
        + 2 * tokens * width**2  # keys, values
        + 2 * tokens * width
        + 2 * width * hidden
    )
    return (
        embeddings
        + config.num_hidden_layers * patch_layer
        + config.num_class_attention_layers * class_layer
        + width * config.num_labels
    )


def _metadata(
    model_name: str, checkpoint: CaitCheckpoint | None, source_name: str | None, remote_code: bool
) -> ModelCardData:
    tags = ["cait", "vision", "image-classification", *(["custom_code"] if remote_code else [])]
    common = {"library_name": "transformers", "pipeline_tag": "image-classification", "tags": tags}
    if checkpoint is None:
        return ModelCardData(**common, base_model=source_name if "/" in (source_name or "") else None)
    return ModelCardData(
        **common,
        license="apache-2.0",
        datasets=["imagenet-1k"],
        metrics=["accuracy"],
        base_model=checkpoint.timm_repo,
        model_name=model_name.rpartition("/")[2],
        eval_results=_eval_results(checkpoint),
    )


def _eval_results(checkpoint: CaitCheckpoint) -> list[EvalResult]:
    """Top-1 and top-5 in percent as timm reports them. The authors' numbers are in the text only: huggingface_hub
    gives all results of a test set one source."""
    if checkpoint.timm_accuracy is None:
        return []
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=test_set.type,
            dataset_name=test_set.name,
            dataset_split=test_set.split,
            metric_type="accuracy",
            metric_name=f"{metric} accuracy in percent, as reported by timm",
            metric_value=value,
            source_name=TIMM_RESULTS_SOURCE,
            source_url=TIMM_RESULTS_URL + test_set.timm_file,
        )
        for test_set in TEST_SETS
        for metric, value in zip(("top-1", "top-5"), getattr(checkpoint.timm_accuracy, test_set.field))
    ]


__all__ = ["TEST_SETS", "macs", "render_model_card"]

# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Values of `checkpoint.md`, the card of an official checkpoint or of any converted CaiT.

Every number comes from the configuration or from `checkpoints.py`. What the card says of the training is from the
authors' own words: deit's `README_cait.md` and the issues of facebookresearch/deit that it names.
"""

from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from ..checkpoints import CaitCheckpoint
from ..configuration_cait import CaitConfig, as_pair
from ..macs import macs
from . import render


TIMM_RESULTS_URL = "https://github.com/huggingface/pytorch-image-models/blob/main/results/"


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
    return render(
        "checkpoint.md",
        _metadata(model_name, checkpoint, source_name, remote_code),
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


def _metadata(
    model_name: str, checkpoint: CaitCheckpoint | None, source_name: str | None, remote_code: bool
) -> ModelCardData:
    """Accuracies are top-1 and top-5 in percent as timm reports them. The authors' numbers are in the text only:
    huggingface_hub gives all results of a test set one source."""
    tags = ["cait", "vision", "image-classification", *(["custom_code"] if remote_code else [])]
    common = {"library_name": "transformers", "pipeline_tag": "image-classification", "tags": tags}
    if checkpoint is None:
        return ModelCardData(**common, base_model=source_name if "/" in (source_name or "") else None)
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=test_set.type,
            dataset_name=test_set.name,
            dataset_split=test_set.split,
            metric_type="accuracy",
            metric_name=f"{metric} accuracy in percent, as reported by timm",
            metric_value=value,
            source_name="timm's evaluation of its copy of these weights",
            source_url=TIMM_RESULTS_URL + test_set.timm_file,
        )
        for test_set in TEST_SETS
        if checkpoint.timm_accuracy is not None
        for metric, value in zip(("top-1", "top-5"), getattr(checkpoint.timm_accuracy, test_set.field))
    ]
    return ModelCardData(
        **common,
        license="apache-2.0",
        datasets=["imagenet-1k"],
        metrics=["accuracy"],
        base_model=checkpoint.timm_repo,
        model_name=model_name.rpartition("/")[2],
        eval_results=results,
    )

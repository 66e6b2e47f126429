# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The page as a Hugging Face Space: a card, the requirements, and a program that imports this package."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCardData

from ..checkpoints import resolve_model
from ..files import new_folder, write_text
from ..loading import HUB_ERRORS, REPO_ID


GRADIO = "6.31.0"  # the version that passed the tests: Spaces install the one that the card states
PYTHON = "3.12"
TEXT = """
# Where CaiT looks

CaiT (class-attention image transformers, [arXiv 2103.17239](https://arxiv.org/abs/2103.17239)) on images of your
choice: the most probable classes, where the class token looks in each class layer and head, where a patch looks in
each layer, and attention rollout. Written by `cait-hf app --space`.
"""


def write_space(output_dir: Path, repo_id: str, models: Sequence[str], overwrite: bool = False) -> None:
    """Write the files of a Space. The folder appears complete or not at all.

    Args:
        models (sequence of `str`): checkpoints to choose from: repositories on the Hub, official names, or
            `"fashion_mnist"`.

    Raises:
        ValueError: if `repo_id` is no OWNER/NAME, or a model is a folder of this machine.
        OSError: if `output_dir` is not empty and may not be overwritten, or cannot be written.
    """
    from .. import __version__

    if not REPO_ID.fullmatch(repo_id):
        raise ValueError(f"--space is {repo_id}, but it must be OWNER/NAME.")
    repositories = []
    for name in models:
        source = resolve_model(name)
        if Path(name).exists() or not (Path(source).exists() or REPO_ID.fullmatch(source)):
            raise ValueError(f"MODEL is {name}, but a Space needs a repository on the Hub: push the model first.")
        repositories += [] if Path(source).exists() else [source]
    card = SpaceCardData(
        title="Where CaiT looks",
        emoji="👀",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        license="apache-2.0",
        models=repositories or None,
    )
    with new_folder(output_dir, repo_id, overwrite) as folder:
        write_text(folder / "README.md", f"---\n{card}\n---\n{TEXT}")
        write_text(folder / "requirements.txt", f"cait-hf[app]=={__version__}\n")
        write_text(folder / "app.py", f"from cait_hf.app import launch\n\n\nlaunch({list(models)!r})\n")


def push_space(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload the files of [`write_space`] in one commit, or none where nothing has changed; return its address.

    Raises:
        OSError: if the Hub cannot be reached or refuses.
    """
    api = HfApi()
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    try:
        repo_id = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        ).repo_id
        operations = [CommitOperationAdd(name, folder / name) for name in names]
        commit = api.create_commit(repo_id, operations, repo_type="space", commit_message="Upload cait-hf's page")
    except (*HUB_ERRORS, RuntimeError) as error:  # RuntimeError: of an upload that broke off
        raise OSError(f"The Space was written, but it could not be pushed to {repo_id}: {error}") from error
    return commit.commit_url

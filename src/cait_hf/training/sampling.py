# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The order in which training meets the images, with or without repeated augmentation."""

from collections import Counter
from collections.abc import Iterator

import torch

from .arguments import RecipeArguments, TrainingArguments
from .randomness import Randomness


class TrainSampler(torch.utils.data.Sampler[int]):
    """All images in another order each epoch or, with `views`, some of them several times.

    Yields the keys that `LabeledImages` takes: `image + view * num_images`.

    Repeated augmentation (arXiv 1902.05509; facebookresearch/deit, `samplers.py`) is timm's `RepeatAugSampler`: each
    image of an epoch comes in three views, and the epoch stays as long as before, so it contains a third of the
    images. As there, the views of an image go to different processes if there are several.

    Args:
        num_images (`int`): of the whole dataset.
        randomness ([`Randomness`]): seed and epoch.
        views (`int`): of each image in an epoch; 1 is plain shuffling.
        batch_size, num_processes (`int`): accelerate deals batches of `batch_size` to the processes in turn.
    """

    def __init__(
        self, num_images: int, randomness: Randomness, views: int = 1, batch_size: int = 1, num_processes: int = 1
    ) -> None:
        self.num_images, self.randomness, self.views = num_images, randomness, views
        self.batch_size, self.num_processes = batch_size, num_processes
        self._repeated = None
        if views > 1:
            from timm.data.distributed_sampler import RepeatAugSampler

            self._repeated = RepeatAugSampler(range(num_images), num_replicas=1, rank=0, num_repeats=views)

    def __len__(self) -> int:
        return self.num_images if self._repeated is None else len(self._repeated)

    def __iter__(self) -> Iterator[int]:
        rng = self.randomness.generator()
        if self._repeated is None:
            return iter(rng.permutation(self.num_images).tolist())
        self._repeated.set_epoch(int(rng.integers(2**62)))  # what it seeds its order with
        views: Counter[int] = Counter()
        keys = []
        for image in self._repeated:
            keys.append(image + views[image] * self.num_images)
            views[image] += 1
        return iter(self._deal(keys))

    def _deal(self, keys: list[int]) -> list[int]:
        """Each process's batch takes every `num_processes`-th of what the processes see in a step together."""
        together = self.batch_size * self.num_processes
        steps = (keys[start : start + together] for start in range(0, len(keys), together))
        return [
            key
            for step in steps
            for process in range(self.num_processes)
            for key in step[process :: self.num_processes]
        ]


def make_sampler(
    num_images: int, randomness: Randomness, recipe: RecipeArguments, args: TrainingArguments
) -> TrainSampler:
    """The order of the images for all processes together."""
    return TrainSampler(
        num_images, randomness, recipe.repeated_augmentation, args.train_batch_size, max(1, args.world_size)
    )

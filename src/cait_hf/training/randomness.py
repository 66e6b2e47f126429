# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Randomness of training as a function of seed and position, independent of earlier draws.

So a training that was interrupted repeats it, whatever the number of worker processes, and two scripts agree on it.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Randomness:
    """Random numbers that depend on a seed, on the epoch and on a place in it, such as the key of an image.

    Args:
        seed (`int`): at least 0.

    Attributes:
        epoch (`int`): the epoch that trains, from 0; worker processes see it change.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers may outlive an epoch
        self._spare = [np.random.MT19937()]  # for numpy in `seeded`; making one takes long

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def generator(self, *place: int) -> np.random.Generator:
        """A generator of its own for a place in the epoch: integers, at least 0."""
        return np.random.default_rng((self.seed, self.epoch, *place))

    @contextmanager
    def seeded(self, *place: int) -> Iterator[None]:
        """For libraries that draw from the streams of Python, numpy and torch (CPU), which are left as they were."""
        states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
        seeds = map(int, np.random.SeedSequence((self.seed, self.epoch, *place)).generate_state(3))
        random.seed(next(seeds))
        # another generator for a while: getting and setting numpy's state takes a fifth of a small image's time
        own = self._spare.pop() if self._spare else np.random.MT19937()
        np.random.set_bit_generator(own)
        np.random.seed(next(seeds))
        torch.default_generator.manual_seed(next(seeds))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_bit_generator(states[1])
            self._spare.append(own)
            torch.set_rng_state(states[2])


def seed_forward_pass(seed: int, step: int, micro_step: int, process_index: int) -> None:
    """Seed torch, on all devices, for the dropout and drop path of one forward pass in training.

    Args:
        seed (`int`): of the training.
        step (`int`): optimizer steps taken before.
        micro_step (`int`): forward passes since the last optimizer step, with gradient accumulation.
        process_index (`int`): of the parallel process, which drops other branches than the others.
    """
    words = np.random.SeedSequence((seed, step, micro_step, process_index)).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))

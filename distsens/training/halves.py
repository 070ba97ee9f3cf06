"""The input of a training forward: benign images above their adversarial twins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distsens.objectives import Objective
from distsens.sensitivity import PairRows


@dataclass(frozen=True)
class Halves:
    """Images of one forward, benign ones first.

    A half holds all images of the batch where the objective uses it, else those that SNS compares, else none.

    images : (B, C, H, W), in the memory format in which the model runs.
    boundary : rows of the benign half.
    pairs : rows of the pairs that SNS compares; None while it sleeps.
    """

    images: Tensor
    boundary: int
    pairs: PairRows | None

    def noise_source(self) -> Tensor:
        """For each image the one whose random numbers it gets: a twin that is compared, those of its benign image."""
        source = torch.arange(len(self.images))
        if self.pairs is not None:
            source[self.pairs.adversarial] = source[self.pairs.benign]
        return source

    @classmethod
    def of(
        cls, objective: Objective, images: Tensor, twins: Tensor, compared: slice | None, layout: torch.memory_format
    ) -> Halves:
        """What the objective and SNS need of a batch's images; ``compared`` says which of them SNS compares.

        ``twins`` are those of all images where the objective uses any, else of the compared ones.
        """
        benign = images if objective.uses_benign else images[compared or slice(0)]
        both = torch.cat([benign, twins]).to(memory_format=layout)
        if compared is None:
            return cls(both, len(benign), None)
        first = compared if objective.uses_benign else slice(0, len(benign))
        second = compared if objective.uses_adversarial else slice(0, len(twins))
        below = slice(len(benign) + second.start, len(benign) + second.stop, second.step)
        return cls(both, len(benign), PairRows(first, below))

"""Clean and robust accuracy and sensitivity of a classifier on a split, summed exactly over workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distsens.attacks import GradientAttack, attack_view
from distsens.data import Images, rank_share, to_pixels
from distsens.logits import NO_CLASS, NotFiniteError, predictions
from distsens.precision import full_float32
from distsens.randomness import sample_keys
from distsens.sensitivity import (
    ActivationProbe,
    LayerSensitivity,
    PairSums,
    SensitivityMeter,
    SharedNoise,
    pair_noise,
    pair_sums,
)


@dataclass(frozen=True)
class Measurement:
    """Counts over all images of a split, each counted once, whatever the number of workers.

    clean_correct : images classified right; robust_correct : per attack, images still right under it and clean.
    sensitivity : per layer, between the images and their twins under the first attack.
    not_finite : images whose logits, as they are or attacked, were NaN or infinite: these are wrong, and their pairs
        are not in the sensitivities.
    """

    images: int
    clean_correct: int
    robust_correct: dict[str, int]
    sensitivity: dict[str, LayerSensitivity]
    not_finite: int = 0

    @property
    def clean_accuracy(self) -> float:
        """Part of the images classified right, in [0, 1]."""
        return self.clean_correct / self.images

    @property
    def robust_accuracies(self) -> dict[str, float]:
        """Per attack, the part of the images classified right both as they are and attacked."""
        return {name: correct / self.images for name, correct in self.robust_correct.items()}

    @property
    def robust_accuracy(self) -> float:
        """Under the first attack."""
        return next(iter(self.robust_accuracies.values()))


@full_float32()
def measure(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    attacks: Mapping[str, GradientAttack],
    *,
    layers: Sequence[str],
    neurons: Mapping[str, int],
    batch_size: int,
    seed: int,
    device: torch.device,
    on_images: Callable[[int], None] = lambda _: None,
) -> Measurement:
    """Judge a classifier on a split: this worker takes its share, and all get the sums over everyone's.

    Parameters
    ----------
    model : any classifier of [0, 1] images; judged in float32 and eval mode, left as it was.
    images, labels : the whole split, uint8 (N, C, H, W), in memory or in files, and int64 (N,), the same on every
        worker.
    attacks : by name; the first one's examples are the twins that sensitivity is measured on.
    layers, neurons : what to measure, and the number of neurons of each layer (see ``neuron_counts``); may be none.
    batch_size : images at a time on this worker.
    seed : random starts depend on it, the attack's name and the image's number alone.
    on_images : told after every batch how many images this worker has done.

    Raises
    ------
    InputError : what the model returns is not logits.
    NotFiniteError : they are finite for no image.
    """
    rank, workers = (
        (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    )
    share = rank_share(len(images), rank, workers)
    meter = SensitivityMeter(neurons, device)
    counts = torch.zeros(2 + len(attacks), dtype=torch.float64, device=device)
    for start in range(share.start, share.stop, batch_size):
        rows = slice(start, min(start + batch_size, share.stop))
        x, y = to_pixels(images[rows].to(device)), labels[rows].to(device)
        samples = torch.arange(rows.start, rows.stop, device=device)
        taken_for: list[Tensor] = []
        for name, attack in attacks.items():
            twins = attack(model, x, y, keys=sample_keys(samples, seed, "evaluate", name))
            if taken_for:
                taken_for.append(predictions(_logits(model, twins)))
            else:
                logits, sums = _measured_logits(model, torch.cat([x, twins]), layers)
                if layers:
                    meter.add(sums)
                taken_for += [predictions(half) for half in logits.chunk(2)]
        predicted = torch.stack(taken_for)
        right = (predicted == y) & (predicted[0] == y)
        counts += torch.cat([right, (predicted == NO_CLASS).any(0, keepdim=True)]).sum(1)
        on_images(rows.stop - share.start)
    if workers > 1:
        dist.all_reduce(counts)
    if layers:
        meter.reduce()
    clean, *robust, not_finite = (int(count) for count in counts.tolist())
    if layers and meter.pairs == 0:
        raise NotFiniteError("model", "logits that are NaN or infinite", "they must be finite; those of no image are")
    sensitivity = {layer: values.cpu() for layer, values in meter.compute().items()} if layers else {}
    return Measurement(len(images), clean, dict(zip(attacks, robust, strict=True)), sensitivity, not_finite)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with attack_view(model) as logits, torch.no_grad():
        return logits(images)


def _measured_logits(model: nn.Module, pairs: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, PairSums]]:
    """Logits of benign and adversarial images, one above the other, and every layer's sums over the finite pairs."""
    probe = ActivationProbe(model, layers, read=lambda _, outputs: pair_sums(*outputs.chunk(2)))
    with probe, SharedNoise(model, pair_noise(len(pairs) // 2)):
        logits = _logits(model, pairs)
    finite = (predictions(logits) != NO_CLASS).view(2, -1).all(0)
    if finite.all():
        return logits, probe.outputs
    with probe, SharedNoise(model, pair_noise(int(finite.sum()))):
        _logits(model, pairs[finite.repeat(2)])
    return logits, probe.outputs

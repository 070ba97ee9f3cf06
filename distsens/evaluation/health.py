"""What makes a verdict on a classifier wrong or misleading, looked for on a few images before it is judged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distsens.attacks import AttackLoss, attack_view, cross_entropy, margin
from distsens.attacks.view import Logits
from distsens.data import representatives, to_pixels
from distsens.errors import InputError
from distsens.logits import NO_CLASS, predictions, too_many_not_finite
from distsens.precision import full_float32

# Of the largest logit. A forward repeats itself but for the last bits; with another batch size it may add in another
# order, which costs a few more of the 24 bits.
_REPEATED = 1e-5
_REBATCHED = 1e-4
_SUM_OF_PROBABILITIES = 1e-3
_ALONE = 8
_MANY = 0.1


@full_float32()
def inspect(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> list[str]:
    """Examine a classifier on a few images: what no attack could judge is refused, what misleads some is told.

    Parameters
    ----------
    model : any classifier of [0, 1] images; left as it was (see :func:`distsens.attacks.attack_view`).
    images : (N, C, H, W) in [0, 1], float32, on the model's device; a few dozen, which all go through at once.
    labels : (N,) classes.
    classes : number of logits that the model must return.

    Returns
    -------
    A line for each finding; none for a classifier that is in order:

    - Some logits are NaN or infinite; the rest is looked for on the other images.
    - The outputs are probabilities. The difference of logits ratio (DLR) and the margin are losses of logits; after a
      softmax they saturate with it.
    - The model is random: two forwards of the same images differ. An attack must then average gradients over its noise
      (expectation over transformation: Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of
      Security", ICML 2018, section 4.3).
    - An image's logits depend on the others in its batch, so a verdict belongs to the batch.
    - The gradient of the margin, or of the cross-entropy alone, is zero or not finite for a tenth of the images or
      more: attacks along it do not see where to go, and overstate robustness (gradient masking, the same paper).

    Raises
    ------
    InputError
        The model returns no logits, another number of them, or for too many images some that are not finite, or the
        images are not in [0, 1].
    """
    images = to_pixels(images)
    with attack_view(model) as logits:
        with torch.no_grad():
            outputs, again = logits(images), logits(images)
            _check_logits(outputs, len(images), classes)
            finite = predictions(outputs) != NO_CLASS
            if not finite.all():
                images, labels, outputs, again = (part[finite] for part in (images, labels, outputs, again))
            random = _difference(outputs, again, _REPEATED)
            some = torch.from_numpy(representatives(labels.cpu().numpy(), _ALONE)).to(images.device)
            alone = torch.cat([logits(image[None]) for image in images[some]])
        warnings = [_not_finite(finite), _probabilities(outputs)]
        if random is not None:
            warnings.append(
                f"the model is random: two forwards of the same images differ by up to {random:.2g}; use AutoAttack's "
                "rand version, which averages gradients over the randomness (EOT)"
            )
        elif (dependent := _difference(outputs[some], alone, _REBATCHED)) is not None:
            warnings.append(
                f"an image's logits depend on the others in its batch: alone they differ by up to {dependent:.2g}; "
                "verdicts then hold for one way of batching"
            )
        warnings.append(_masked(logits, images, labels))
    return [warning for warning in warnings if warning is not None]


def has_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """Whether the margin of these images, (N, C, H, W) in [0, 1], leads back to them at all, be it with zeros."""
    with attack_view(model) as logits:
        return margin(logits(images.detach().clone().requires_grad_()), labels).requires_grad


def _check_logits(outputs: Tensor, images: int, classes: int) -> None:
    if outputs.shape != (images, classes):
        raise InputError("model", tuple(outputs.shape), f"for {images} images it must return logits {images, classes}")
    faulty = int((predictions(outputs) == NO_CLASS).sum())
    if too_many_not_finite(faulty, images):
        allowed = f"they must be finite; those of {faulty} of {images} images are not"
        raise InputError("model", "logits with NaN or infinity", allowed)


def _difference(outputs: Tensor, others: Tensor, tolerance: float) -> float | None:
    """The largest difference of two logits, None where it is within a tolerance relative to the largest logit."""
    difference = (outputs - others).abs().max().item()
    return difference if not difference <= tolerance * outputs.abs().max().item() else None


def _not_finite(finite: Tensor) -> str | None:
    count = int((~finite).sum())
    if count == 0:
        return None
    return f"the logits of {count} of {len(finite)} images are NaN or infinite, which counts as misclassified"


def _probabilities(outputs: Tensor) -> str | None:
    sums_to_one = ((outputs.sum(1) - 1.0).abs() <= _SUM_OF_PROBABILITIES).all()
    if not (sums_to_one and (outputs >= 0.0).all()):
        return None
    return (
        "the model's outputs are probabilities (never negative, with sum 1): DLR and margin losses are undefined or "
        "misleading on them, and the cross-entropy is flat; return the logits before the softmax"
    )


def _masked(logits: Logits, images: Tensor, labels: Tensor) -> str | None:
    for name, loss, advice in (
        ("margin", margin, "trust attacks without gradients (Square) or around it (BPDA, transfer) more"),
        ("cross-entropy", cross_entropy, "trust attacks with margin or DLR losses more than those with cross-entropy"),
    ):
        zero, faulty = _useless_gradients(logits, images, labels, loss)
        if zero + faulty >= _MANY * len(images):
            return (
                f"gradients are masked: that of the {name} with respect to the image is zero for {zero} and not finite "
                f"for {faulty} of {len(images)} images, so attacks along it overstate robustness; {advice}"
            )
    return None


def _useless_gradients(logits: Logits, images: Tensor, labels: Tensor, loss: AttackLoss) -> tuple[int, int]:
    """Numbers of images whose gradient is zero, and whose gradient is not finite."""
    points = images.detach().clone().requires_grad_()
    values = loss(logits(points), labels)
    if not values.requires_grad:  # The model cuts the graph, by rounding in NumPy or the like.
        return len(images), 0
    (gradients,) = torch.autograd.grad(values.sum(), points, allow_unused=True, materialize_grads=True)
    rows = gradients.flatten(1)
    return int((rows == 0.0).all(1).sum()), int((~rows.isfinite()).any(1).sum())

"""When a run is lost, and the line that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from distsens.logits import NotFiniteError, too_many_not_finite
from distsens.sensitivity import LayerSensitivity

# Networks that only wait on a plateau at chance were seen to keep a quarter of it, crushed ones less than 1/100.
_VANISHED = 1e-2
CHANCE_MARGIN = 1.2
"""Accuracy up to this many times chance is none."""


class TrainingStoppedError(RuntimeError):
    """Training cannot go on and a restart would not help: one clear line says where and why."""


def check_finite(gradient_norm: float, *, epoch: int, step: int) -> None:
    """Stop when the loss or its gradient is NaN or infinite."""
    if not gradient_norm < float("inf"):
        raise TrainingStoppedError(
            f"the loss or its gradient became NaN or infinite at epoch {epoch}, step {step}: "
            "lower training.lr or set training.gradient_clip"
        )


@contextmanager
def stopping_at_nan(where: str) -> Iterator[None]:
    """Stop where it is found in the block that the network has finite logits for no image, on every worker."""
    try:
        yield
    except NotFiniteError as error:
        raise TrainingStoppedError(
            f"the network has {error.value} {where} ({error.allowed}): lower training.lr or set training.gradient_clip"
        ) from None


def check_classified(not_finite: int, images: int, where: str) -> None:
    """Stop when the network's logits are NaN or infinite for too many of the images that it is judged on."""
    if (line := too_many_not_finite(not_finite, images)) is not None:
        raise TrainingStoppedError(f"{line} ({where}): lower training.lr")


def check_collapse(
    initial: Mapping[str, LayerSensitivity],
    current: Mapping[str, LayerSensitivity],
    *,
    epoch: int,
    accuracy: float,
    chance: float,
) -> None:
    """Stop when a layer fell silent while accuracy is at chance: the network says the same about every image.

    A layer is silent when its mean sensitivity, or its mean absolute output, is below 1/100 of what the untrained
    network had. Either alone can be healthy (a robust layer is insensitive, a young network is at chance).

    Parameters
    ----------
    initial, current : sensitivity on the validation pairs before training and now.
    epoch : for the message.
    accuracy : clean validation accuracy, in [0, 1].
    chance : share of the most frequent class of the validation set.
    """
    if accuracy > CHANCE_MARGIN * chance:
        return
    for layer, before in initial.items():
        now = current[layer]
        for what, first, last in (
            ("sensitivity", before.absolute, now.absolute),
            ("output", before.magnitude, now.magnitude),
        ):
            if last.mean().item() < _VANISHED * first.mean().item():
                raise TrainingStoppedError(
                    f"the network collapsed by epoch {epoch}: accuracy is at chance ({accuracy:.1%}) and the {what} of "
                    f"layer {layer} fell to {last.mean().item():.1e} from {first.mean().item():.1e}: lower "
                    "stabilize.weight or raise stabilize.warmup_start"
                )

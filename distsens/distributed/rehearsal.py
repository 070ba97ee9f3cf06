"""A training step of the smallest share of a batch, tried on the CPU before anything is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from distsens import assembly
from distsens.data import ImageSet, rank_share, to_pixels
from distsens.errors import InputError, said
from distsens.experiment import Experiment
from distsens.logits import NO_CLASS, plain_logits, predictions, too_many_not_finite
from distsens.networks import evaluate, in_eval_mode, keeping_buffers
from distsens.sensitivity import Stabilizer
from distsens.training import Batch, TrainingState

# What a step holds for its backward pass, so that large networks on large shares are tried on fewer images.
_MOST_BYTES = 512 * 2**20
_JUDGED = 8
_CPU = torch.device("cpu")

_DECIDING = (
    "attack.name attack.precision data. model. objective.name stabilize.layers stabilize.measure stabilize.pairs "
    "threat.norm training.batch_norm training.batch_size training.precision training.sync_batch_norm workers."
).split()

Decisive = tuple[tuple[str, object], ...]

Share = tuple[int, int]
"""Position in the global batch of a worker's first image, and how many it has."""


def rehearse(experiment: Experiment, model: nn.Module, neurons: Mapping[str, int], images: ImageSet) -> None:
    """Take a training step as the worker with the smallest share does, and with the fewest pairs to compare.

    Forwards are those of the step: in training mode, over the same halves, under the objective's loss and with SNS
    where it has a weight; examples take a single gradient. The weights stay as they are, and so do the model's buffers
    and modes and the global generator.

    Parameters
    ----------
    model : the classifier, on the CPU.
    neurons : number of neurons of each layer that SNS may compare.
    images : the training images, of which the first ones are taken.

    Raises
    ------
    InputError : whatever goes wrong, as one line.
    """
    stabilizer = assembly.build_stabilizer(experiment, neurons, _CPU)
    with _as_it_was(model):
        for share in _decisive_shares(experiment, stabilizer):
            _rehearse(experiment, model, neurons, images, share)
        whole = (0, experiment.training.batch_size)
        halved = experiment.training.batch_norm != "joint"
        if _shares_statistics(experiment) and halved and _pairs(stabilizer, whole) == 1:
            # Also of all workers together a norm may see a single image, where it takes halves by themselves.
            _rehearse(experiment, model, neurons, images, whole)
        _judge(experiment, model, images)


def what_decides(experiment: Experiment) -> Decisive:
    """The fields that a rehearsal goes by: of two experiments that agree in them, one is enough to rehearse."""
    fields = [(name, value) for name, value in experiment.flat().items() if name.startswith(tuple(_DECIDING))]
    return (*fields, ("stabilizes", experiment.stabilize.weight > 0))


def _decisive_shares(experiment: Experiment, stabilizer: Stabilizer | None) -> list[Share]:
    """The workers' shares with the fewest images, and with the fewest pairs that SNS compares, though one."""
    size, workers = experiment.training.batch_size, experiment.workers.num
    parts = [rank_share(size, rank, workers) for rank in range(workers)]
    shares = [(part.start, part.stop - part.start) for part in parts]
    decisive = {min(shares, key=lambda share: share[1])}
    if stabilizer is not None:
        compared = {share: count for share in shares if (count := _pairs(stabilizer, share))}
        decisive.add(min(compared, key=lambda share: compared[share]))
    return sorted(decisive)


def _shares_statistics(experiment: Experiment) -> bool:
    return experiment.training.sync_batch_norm and experiment.workers.num > 1


def _pairs(stabilizer: Stabilizer | None, share: Share) -> int:
    return 0 if stabilizer is None else len(range(share[1])[stabilizer.pairs(*share)])


def _rehearse(
    experiment: Experiment, model: nn.Module, neurons: Mapping[str, int], images: ImageSet, share: Share
) -> None:
    size = share[1]
    fewer = _affordable(experiment, model, images, size)
    if fewer < size:
        try:
            _step(experiment, model, neurons, images, (share[0], fewer))
        except InputError:  # perhaps of the number of images, which in truth is another
            pass
        else:
            return
    _step(experiment, model, neurons, images, share)


def _affordable(experiment: Experiment, model: nn.Module, images: ImageSet, size: int) -> int:
    """How many of the images a step on this machine can hold in little memory; two at the least, if there are."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.eval()
    pixels, _ = _first(images, 1)
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            _outputs = model(pixels)  # held, so that no memory is used, and counted, twice
    except Exception:  # what it says to one image in eval mode was heard before, and to more is heard next
        return size
    objective = assembly.build_objective(experiment)
    halves = 2 if objective.uses_benign and objective.uses_adversarial else 1
    return min(size, max(2, _MOST_BYTES // (halves * max(sum(kept.values()), 1))))


def _step(experiment: Experiment, model: nn.Module, neurons: Mapping[str, int], images: ImageSet, share: Share) -> None:
    start, size = share
    pixels, labels = _first(images, size)
    stabilizer = assembly.build_stabilizer(experiment, neurons, _CPU)
    quick = _quick(experiment)
    try:
        average = assembly.build_average(experiment, model)
        state = TrainingState(model, SGD(model.parameters(), lr=0.0), average, stabilizer)
        step = assembly.build_step(quick, state, model, tuple(neurons))
        if experiment.objective.name in ("standard", "free_at"):  # These attack in validation alone.
            assembly.build_attack(quick, quick.attack)(model, pixels, labels)
        step.begin_epoch()
        if _shares_statistics(experiment) and size < experiment.training.batch_size:
            _let_norms_be(model)
        batch = Batch(pixels, labels, torch.arange(size), experiment.training.batch_size, start)
        weight = None if stabilizer is None else experiment.stabilize.weight
        result = step(batch, eps_factor=1.0, sns_weight=weight, awp_gamma=0.0)
    except Exception as problem:  # A network refuses, or is wrong, in any way it likes.
        raise _refusal(experiment, problem, share, _pairs(stabilizer, share)) from problem
    if not result.finite:
        raise _of_model(experiment, f"its loss or gradient is NaN or infinite on {_images(size)}, before any step")
    _check_gradients(experiment, model)


def _judge(experiment: Experiment, model: nn.Module, images: ImageSet) -> None:
    """Refuse a network that says nothing of the images it will be judged on, in eval mode, whatever it learns."""
    pixels, _ = _first(images, _JUDGED)
    evaluate(model)
    with torch.no_grad():
        lost = int((predictions(plain_logits(model, pixels)) == NO_CLASS).sum())
    if (line := too_many_not_finite(lost, len(pixels))) is not None:
        raise _of_model(experiment, f"in eval mode {line}, before any step")


def _refusal(experiment: Experiment, problem: Exception, share: Share, pairs: int) -> InputError:
    """What went wrong, as a value that the user gave."""
    training, workers = experiment.training, experiment.workers.num
    where = (
        f"(on {_images(share[1])} in training mode, the smallest share of training.batch_size {training.batch_size} "
        f"over {workers} workers)"
    )
    if isinstance(problem, InputError):
        if problem.field == "model":
            allowed = f"it cannot be trained: it gives {problem.value}; {problem.allowed} {where}"
            return _of_model(experiment, allowed)
        if problem.field == "layers":
            return InputError("stabilize.layers", problem.value, problem.allowed)
        return problem
    if str(problem).startswith("Expected more than 1 value per channel"):
        if share[1] > 1 and pairs == 1 and training.batch_norm != "joint":
            who = "a batch" if _shares_statistics(experiment) else "a worker"
            allowed = f"joint, or more stabilize.pairs: {who} compares one pair, and one image has no statistics here"
            return InputError("training.batch_norm", training.batch_norm, allowed)
        instead = (
            "more" if workers == 1 else f"more, fewer workers than workers.num {workers}, or training.sync_batch_norm"
        )
        allowed = (
            f"{instead}: of {_images(share[1])} in a share a batch norm sees one value a channel ({said(problem)})"
        )
        return InputError("training.batch_size", training.batch_size, allowed)
    return _of_model(experiment, f"it cannot be trained: {said(problem)} {where}")


def _of_model(experiment: Experiment, allowed: str) -> InputError:
    if experiment.model.weights is not None:
        return InputError("model.weights", str(experiment.model.weights), allowed)
    return InputError("model.name", experiment.model.name, allowed)


def _check_gradients(experiment: Experiment, model: nn.Module) -> None:
    """For several workers refuse what DDP does, which waits for every parameter's gradient."""
    unused = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    if unused and experiment.workers.num > 1:
        raise InputError(
            "model.name",
            experiment.model.name,
            f"several workers need a gradient of every parameter, and {unused[0]} has none: freeze it "
            f"(requires_grad_(False)), or take workers.num 1",
        )


def _quick(experiment: Experiment) -> Experiment:
    """The same with one gradient for an example, and in float32 where the workers have a GPU: a CPU may know less."""
    precision = {"precision": "fp32"} if experiment.workers.gpus else {}
    changes = {"attack": {"steps": 1, "restarts": 1, **precision}, "objective": {"replays": 1}, "training": precision}
    sections = {name: getattr(experiment, name).model_copy(update=change) for name, change in changes.items()}
    return experiment.model_copy(update=sections)


def _let_norms_be(model: nn.Module) -> None:
    """Norms that share statistics see the images of all workers, which are not here: in eval mode they need none."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()


def _first(images: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    pictures, labels = images.tensors()
    return to_pixels(pictures[slice(0, count)]), labels[:count]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Give the model its modes and buffers back afterwards, and take its gradients."""
    with in_eval_mode(model), keeping_buffers(model), torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)

"""A model as MLflow keeps it: a traced program (pt2), free of pickle, that runs without the model's Python class."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distsens.errors import InputError
from distsens.scratch import scratch_folder
from distsens.tracking.run import MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import Model


class ExportError(RuntimeError):
    """The model cannot be traced for every batch size; its message says why."""


def log_model(client: MlflowClient, run_id: str, model: nn.Module, example: NDArray[np.float32], step: int) -> str:
    """Export the model and make it the run's one logged model; see `TrackedRun.log_model`.

    Raises
    ------
    ExportError : nothing has been logged.
    """
    from mlflow.entities import LoggedModelOutput

    if example.ndim != 4 or len(example) < 2:
        raise InputError("example", example.shape, "allowed: (n, C, H, W) with n of at least 2, to trace a free batch")
    experiment = client.get_run(run_id).info.experiment_id
    with scratch_folder() as folder:
        exported = folder / MODEL_NAME
        description = _export(model, example, exported)
        earlier = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{MODEL_NAME}'")
        if earlier:  # A resumed run logs its model again.
            logged = earlier[0]
        else:
            logged = client.create_logged_model(experiment, MODEL_NAME, run_id)
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        description.run_id = run_id
        description.model_id = description.model_uuid = logged.model_id
        description.artifact_path = logged.artifact_location
        description.save(exported / "MLmodel")
        client.log_model_artifacts(logged.model_id, str(exported))
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_uri)


def _export(model: nn.Module, example: NDArray[np.float32], folder: Path) -> Model:
    """Write an MLflow model to the folder; returns its description (the content of ``MLmodel``)."""
    import mlflow.pytorch
    from mlflow.models import Model, infer_signature

    description = Model()
    try:
        # A copy on the CPU: it loads on any machine, and the caller's mode, device and gradients stay as they are.
        portable = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        with torch.no_grad():
            logits = portable(torch.from_numpy(example)).numpy()
        with warnings.catch_warnings():
            # Layers that share storage, on the CPU as they are, make PyTorch warn about weights that are not.
            warnings.filterwarnings("ignore", message="No complete tensor found in the group", category=UserWarning)
            mlflow.pytorch.save_model(
                portable,
                folder,
                serialization_format="pt2",
                mlflow_model=description,
                signature=infer_signature(example, logits),
                input_example=example,
                pip_requirements=mlflow.pytorch.get_default_pip_requirements(),
            )
        # Tracing may settle on the example's batch size in silence.
        loaded = mlflow.pytorch.load_model(str(folder))
        for batch in (example[:1], np.concatenate([example, example[:1]])):
            loaded(torch.from_numpy(batch))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:500]}") from error
    return description

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distsens.models import PixelModel


@pytest.mark.parametrize(("mean", "std"), [((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.4,), (0.2,))])
def test_the_network_sees_normalised_images(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    seen = PixelModel(nn.Identity(), mean, std)(torch.from_numpy(images)).numpy()
    for channel in range(3):
        expected = (images[:, channel] - mean[channel % len(mean)]) / std[channel % len(std)]
        np.testing.assert_allclose(seen[:, channel], expected, rtol=1e-5, atol=1e-6)


def test_a_weights_file_holds_the_normalisation_but_the_optimiser_does_not_see_it() -> None:
    model = PixelModel(nn.Linear(2, 2), (0.1,), (0.5,))
    assert set(model.state_dict()) == {"mean", "std", "network.weight", "network.bias"}
    assert {name for name, _ in model.named_parameters()} == {"network.weight", "network.bias"}
    other = PixelModel(nn.Linear(2, 2), (0.9,), (0.9,))
    other.load_state_dict(model.state_dict())
    images = torch.rand(3, 1, 4, 2)
    assert torch.equal(other(images), model(images))


def test_the_gradient_reaches_the_pixels() -> None:
    images = torch.rand(1, 1, 2, 2, requires_grad=True)
    PixelModel(nn.Identity(), (0.3,), (0.25,))(images).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.full((1, 1, 2, 2), 4.0))

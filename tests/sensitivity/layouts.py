"""Networks in whose layers images lie in all kinds of places, of images (N, 3, 8, 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Written(nn.Module):
    """A network whose layers and forward are said in one line each."""

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Windows(Written):
    """Attention within windows, as Swin's: (4 N, 16, C), those of one image one after the other.

    One layer is silent as yet, as the last of a residual branch often is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 6)
        self.silent = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)
        nn.init.zeros_(self.silent.weight)
        nn.init.zeros_(self.silent.bias)

    def forward(self, images: Tensor) -> Tensor:
        n = len(images)
        x = self.stem(images).reshape(n, 8, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(4 * n, 16, 8)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = self.proj((q @ k.transpose(1, 2)).softmax(-1) @ v)
        return self.head((x + self.silent(x)).reshape(n, 64, 6).mean(1))


class Flattened(Written):
    """Positions (64 N, C) as a batch, and patches (4 N, 3, 4, 4) that are convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 3, padding=1)
        self.positions = nn.Linear(4, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, images: Tensor) -> Tensor:
        n = len(images)
        x = images.reshape(n, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(4 * n, 3, 4, 4)
        x = self.patches(x).permute(0, 2, 3, 1).reshape(64 * n, 4)
        return self.head(self.positions(x).relu().reshape(n, 64, 7).mean(1))


class Views(Written):
    """Two views of each image, those of all images one after the other: (2 N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(192, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        views = self.body(torch.cat([images, images.flip(-1)]).flatten(1)).tanh()
        return self.head(sum(views.chunk(2)) / 2)


class SequenceFirst(Written):
    """Torch's encoder as it is by default, (T, N, C)."""

    def __init__(self, tokens: int = 4) -> None:
        super().__init__()
        self.tokens = tokens
        self.embed = nn.Linear(192 // tokens, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16), num_layers=1, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.reshape(len(images), self.tokens, -1)).movedim(0, 1)
        return self.head(self.encoder(tokens).mean(0))


class Mixing(Written):
    """The images of a batch in another order inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(192, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images.flip(0).flatten(1)).relu().flip(0))


class Plain(Written):
    """(N, C, H, W), then (N, T, C), then (N, C), with everything that has no rows of images beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Linear(2, 6)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)
        self.tokens = nn.Linear(6, 4)
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images)).flatten(2).transpose(1, 2)
        x = x + self.places(torch.arange(128.0).reshape(64, 2) / 64)
        return self.head(self.body(self.tokens(x.tanh()).mean(1)).relu())

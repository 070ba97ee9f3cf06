from __future__ import annotations

import torch

from distsens.benchmark import Scale, Subject


def test_a_subject_has_learnt_its_images_a_little(subject: Subject) -> None:
    with torch.no_grad():
        accuracy = (subject.network(subject.images).argmax(1) == subject.labels).float().mean()
    assert accuracy > 0.3  # Guessing gives a tenth.


def test_batches_follow_one_another_and_begin_again(subject: Subject) -> None:
    images, size = len(subject.images), subject.scale.batch
    first, _ = subject.batch(0)
    again, _ = subject.batch(images // size)
    second, labels = subject.batch(1)
    assert first.shape == (size, 1, 28, 28)
    assert torch.equal(first, again)
    assert torch.equal(second, subject.images[size : 2 * size])
    assert torch.equal(labels, subject.labels[size : 2 * size])


def test_images_are_resized_and_repeated_for_colour() -> None:
    scale = Scale("resnet18", (3, 32, 32), "", batch=2, eps=0.1, epochs=0, images=4)
    subject = Subject.train(scale, {}, torch.device("cpu"), "fp32")
    assert subject.images.shape == (4, 3, 32, 32)
    assert torch.equal(subject.images[:, 0], subject.images[:, 2])
    assert 0.0 <= subject.images.min() < 0.1
    assert 0.9 < subject.images.max() <= 1.0


def test_training_a_fresh_network_leaves_the_subject_alone(subject: Subject) -> None:
    before = [p.clone() for p in subject.network.parameters()]
    for network in (subject.fresh(), subject.plain()):
        for parameter in network.parameters():
            parameter.data.zero_()
    assert all(torch.equal(p, old) for p, old in zip(subject.network.parameters(), before, strict=True))

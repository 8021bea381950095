"""Losses of masked modelling: which patches count, and the cross-entropy of captions."""

import math

import pytest
import torch

from tok1d.losses.masked import bag_of_words, caption_loss, masked_mse


def test_only_masked_patches_count_and_their_number_does_not() -> None:
    prediction, target = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    mask = torch.tensor([[True, False, True, False, False], [False, True, False, False, False]])
    loss = masked_mse(prediction, target, mask)
    torch.testing.assert_close(loss, (prediction - target)[mask].square().mean())
    target[~mask] = 100.0
    torch.testing.assert_close(masked_mse(prediction, target, mask), loss)
    assert masked_mse(prediction, target, torch.zeros_like(mask)).item() == 0
    torch.testing.assert_close(masked_mse(prediction, target), (prediction - target).square().mean())


def test_words_of_a_caption() -> None:
    words = bag_of_words(torch.tensor([[2, 0, 2, -1], [-1, -1, -1, -1]]), 4)
    assert words.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_caption_loss_is_a_cross_entropy() -> None:
    logits, words = torch.randn(2, 4), torch.tensor([[1.0, 0, 1, 0], [0, 3, 0, 0]])
    log_p = logits.log_softmax(-1)
    expected = -((log_p[0, 0] + log_p[0, 2]) / 2 + log_p[1, 1]) / 2
    torch.testing.assert_close(caption_loss(logits, words), expected)
    assert caption_loss(torch.zeros(2, 4), words).item() == pytest.approx(math.log(4))
    assert caption_loss(logits, torch.zeros(2, 4)).item() == 0

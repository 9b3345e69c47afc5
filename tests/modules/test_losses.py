"""Losses against torch's own, and against numbers worked out by hand. Float32, CPU."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from lit_transfer.modules._losses import ClassLoss, LabelFocalLoss

WEIGHTS = [None, torch.tensor([0.2, 1.0, 5.0])]


@pytest.fixture
def answer() -> Tensor:
    return 3 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classes() -> Tensor:
    return torch.tensor([0, 2, 1, 1, 0, 2])


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_torchs_cross_entropy_for_numbers_and_for_whole_shares(
    answer: Tensor, classes: Tensor, weight: Tensor | None, smoothing: float
) -> None:
    expected = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(answer, classes)
    whole = F.one_hot(classes, 3).float()
    for gamma in (None, 0.0):
        loss = ClassLoss(weight=weight, label_smoothing=smoothing, focal_gamma=gamma)
        torch.testing.assert_close(loss(answer, classes), expected)
        torch.testing.assert_close(loss(answer, whole), expected)
    assert list(loss.state_dict()) == ([] if weight is None else ["weight"])


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("gamma", [None, 2.0])
def test_a_mixed_image_counts_as_its_two_parts(answer: Tensor, weight: Tensor | None, gamma: float | None) -> None:
    loss = ClassLoss(weight=weight, focal_gamma=gamma)
    one, other = F.one_hot(torch.tensor([0] * 6), 3).float(), F.one_hot(torch.tensor([2] * 6), 3).float()
    parts = [loss(answer, target) * (1 if weight is None else weight[c]) for target, c in ((one, 0), (other, 2))]
    total = 1 if weight is None else 0.3 * weight[0] + 0.7 * weight[2]
    torch.testing.assert_close(loss(answer, 0.3 * one + 0.7 * other), (0.3 * parts[0] + 0.7 * parts[1]) / total)


def test_focal_loss_by_hand() -> None:
    """Logits of log 0.7, log 0.2, log 0.1: equation 5 with alpha 2 is -2 * (1 - 0.7)**2 * log 0.7, mean over alpha."""
    answer = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).log()
    loss = ClassLoss(weight=torch.tensor([2.0, 1.0, 1.0]), focal_gamma=2.0)
    right, wrong = -(0.3**2) * math.log(0.7), -(0.9**2) * math.log(0.1)
    expected = (2 * right + wrong) / 3
    assert loss(answer, torch.tensor([0, 2])).item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_of_certain_answers_has_gradients() -> None:
    answer = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ClassLoss(focal_gamma=0.5)(answer, torch.tensor([0, 0]))
    loss.backward()
    assert answer.grad is not None
    assert answer.grad.isfinite().all()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_focal_loss_of_labels(answer: Tensor, weight: Tensor | None) -> None:
    target = (torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    plain = nn.BCEWithLogitsLoss(pos_weight=weight)(answer, target)
    torch.testing.assert_close(LabelFocalLoss(gamma=0.0, pos_weight=weight)(answer, target), plain)
    focal = LabelFocalLoss(gamma=2.0)(answer, target)
    torch.testing.assert_close(focal, sigmoid_focal_loss(answer, target, alpha=-1, gamma=2, reduction="mean"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_answers_with_mixed_targets(answer: Tensor, dtype: torch.dtype) -> None:
    mixed = torch.full((6, 3), 1 / 3)
    for loss in (ClassLoss(focal_gamma=2.0), ClassLoss(), LabelFocalLoss(gamma=2.0)):
        assert loss(answer.to(dtype), mixed).item() == pytest.approx(loss(answer, mixed).item(), rel=0.02)

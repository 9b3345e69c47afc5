import pytest
import torch
from torch import nn

from lit_transfer.heads import check_head, create_head, set_bias_from_counts, set_bias_from_rates


@pytest.mark.parametrize("name", ["linear", "mlp"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_named_heads_give_the_wanted_width(name: str, dropout: float) -> None:
    head = create_head(name, 16, 3, dropout=dropout)
    assert head(torch.zeros(2, 16)).shape == (2, 3)
    assert any(isinstance(module, nn.Dropout) and module.p == dropout for module in head.modules()) or dropout == 0


def test_a_module_is_taken_as_it_is() -> None:
    head = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert create_head(head, 16, 3) is head
    assert all(module.training for module in head.modules())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"head='linaer' is unknown.*Did you mean 'linear'"):
        create_head("linaer", 16, 3)


def test_head_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="head does not take the backbone's 512 features"):
        create_head(nn.Linear(256, 3), 512, 3)
    with pytest.raises(ValueError, match="head gives 7 outputs where 3 are needed"):
        create_head(nn.Linear(512, 7), 512, 3)


def test_dropout_beside_a_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout=0\.5"):
        create_head(nn.Linear(16, 3), 16, 3, dropout=0.5)


def test_checking_leaves_no_trace() -> None:
    head = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 3))
    head[0].eval()
    check_head(head, 4)
    assert [module.training for module in head] == [False, True, True]


def test_bias_gives_the_class_frequencies() -> None:
    head = create_head("mlp", 8, 3, dropout=0.1)
    set_bias_from_counts(head, [10, 30, 60])
    assert torch.allclose(head[-1].bias.softmax(0), torch.tensor([0.1, 0.3, 0.6]))


def test_bias_gives_the_rate_of_each_label_which_is_never_zero_or_one() -> None:
    head = create_head("linear", 8, 3)
    set_bias_from_rates(head, [0, 4, 8], 8)
    assert torch.allclose(head.bias.sigmoid(), torch.tensor([0.1, 0.5, 0.9]))


def test_bias_of_a_head_with_another_width_is_left_alone() -> None:
    head = nn.Linear(8, 3)
    before = head.bias.detach().clone()
    set_bias_from_counts(head, [1, 1])
    assert torch.equal(head.bias, before)

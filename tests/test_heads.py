import pytest
import torch
from torch import nn

from lit_transfer.heads import (
    AttentionHead,
    CosineLinear,
    check_head,
    create_head,
    set_bias_from_counts,
    set_bias_from_rates,
)


@pytest.mark.parametrize("name", ["linear", "mlp", "cosine"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_named_heads_give_the_wanted_width(name: str, dropout: float) -> None:
    head = create_head(name, 16, 3, dropout=dropout)
    assert head(torch.zeros(2, 16)).shape == (2, 3)
    assert any(isinstance(module, nn.Dropout) and module.p == dropout for module in head.modules()) or dropout == 0


def test_cosines_depend_on_directions_alone_and_are_bounded_by_the_scale() -> None:
    torch.manual_seed(0)
    head = CosineLinear(16, 3)
    features = torch.randn(4, 16)
    expected = 10 * torch.nn.functional.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    assert torch.allclose(head(features), expected, atol=1e-5)
    assert torch.allclose(head(1000 * features), head(features), atol=1e-5)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.1], [7.0], [100.0]]))
    assert torch.allclose(head(features), expected, atol=1e-5)
    assert head(features).abs().max() <= 10
    head(features).sum().backward()
    assert head.scale.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_feature_of_zeros_has_no_direction_and_no_nan(dtype: torch.dtype) -> None:
    head = CosineLinear(16, 3).to(dtype)
    features = torch.zeros(2, 16, dtype=dtype, requires_grad=True)
    answer = head(features)
    answer.sum().backward()
    assert answer.dtype == dtype
    assert (answer == 0).all()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("channels", [16, 12, 7])
def test_attention_begins_as_the_average_of_the_places(channels: int) -> None:
    torch.manual_seed(0)
    head = create_head("attention", channels, 3, dropout=0.5).eval()
    nn.init.normal_(head.linear.weight)
    features = torch.randn(2, channels, 4, 5)
    expected = head.linear(features.mean((2, 3)))
    assert torch.allclose(head(features), expected, atol=1e-6)
    assert torch.allclose(head(features.flatten(2).transpose(1, 2)), expected, atol=1e-6)  # tokens


def test_attention_pools_as_torch_does_with_one_query() -> None:
    """The formula in the docstring: the product of query and keys is one matrix, values are not projected."""
    torch.manual_seed(0)
    head = AttentionHead(16, 3)
    nn.init.normal_(head.score.weight)
    nn.init.normal_(head.linear.weight)
    tokens = torch.randn(2, 6, 16)
    keys = torch.nn.functional.layer_norm(tokens, (16,))[:, None].expand(-1, 8, -1, -1)
    values = tokens.unflatten(2, (8, 2)).transpose(1, 2)
    query = head.score.weight[None, :, None].expand(2, -1, -1, -1)
    pooled = torch.nn.functional.scaled_dot_product_attention(query, keys, values, scale=1.0)
    assert torch.allclose(head(tokens), head.linear(pooled.flatten(1)), atol=1e-5)


def test_attention_learns_which_places_matter() -> None:
    torch.manual_seed(0)
    features, head = torch.randn(64, 8, 4, 4), AttentionHead(8, 2)
    features[:, 1] = -1.0
    labels = torch.arange(64) % 2
    for image, label in enumerate(labels):  # one place of 16 tells the class, and another channel marks it
        row, column = divmod(image % 16, 4)
        features[image, :2, row, column] = torch.tensor([6.0 * label - 3.0, 6.0])
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    weights = head.weights(features.flatten(2).transpose(1, 2)).mean(2)
    marked = torch.tensor([image % 16 for image in range(64)])
    assert (head(features).argmax(1) == labels).all()
    assert (weights.argmax(1) == marked).float().mean() > 0.9


def test_a_module_that_takes_a_map_is_checked_with_one() -> None:
    class Own(nn.Conv2d):
        takes_map = True

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward(features).amax((2, 3))

    assert isinstance(create_head(Own(16, 3, 1), 16, 3), Own)
    with pytest.raises(ValueError, match="head does not take the backbone's 12 features"):
        create_head(Own(16, 3, 1), 12, 3)


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


@pytest.mark.parametrize("name", ["mlp", "cosine", "attention"])
def test_bias_gives_the_class_frequencies(name: str) -> None:
    head = create_head(name, 8, 3, dropout=0.1)
    set_bias_from_counts(head, [10, 30, 60])
    zeros = torch.zeros(1, 8, 2, 2) if name == "attention" else torch.zeros(1, 8)
    assert torch.allclose(head.eval()(zeros).softmax(1), torch.tensor([0.1, 0.3, 0.6]))


def test_bias_gives_the_rate_of_each_label_which_is_never_zero_or_one() -> None:
    head = create_head("linear", 8, 3)
    set_bias_from_rates(head, [0, 4, 8], 8)
    assert torch.allclose(head.bias.sigmoid(), torch.tensor([0.1, 0.5, 0.9]))


def test_bias_of_a_head_with_another_width_is_left_alone() -> None:
    head = nn.Linear(8, 3)
    before = head.bias.detach().clone()
    set_bias_from_counts(head, [1, 1])
    assert torch.equal(head.bias, before)

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lit_transfer.backbones import Preprocessing
from lit_transfer.data._transforms import resize_to_crop, training_transform

COLOUR = Preprocessing(resize=40, crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
GREY = Preprocessing(resize=40, crop=32, mean=(0.5,), std=(0.2,))


def photo(mode="RGB", size=(60, 50)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def default(preprocessing):
    return [resize_to_crop(preprocessing), v2.RandomHorizontalFlip()]


@pytest.mark.parametrize("preprocessing", [COLOUR, GREY])
@pytest.mark.parametrize("augment", ["default", "none", "trivial", "rand"])
def test_every_name_gives_what_the_backbone_takes(augment, preprocessing):
    transform = training_transform(augment, preprocessing, default(preprocessing))
    out = transform(photo(preprocessing.mode))
    assert type(out) is torch.Tensor
    assert (out.shape, out.dtype) == ((len(preprocessing.mean), 32, 32), torch.float32)
    assert -3 < out.min() < 0 < out.max() < 4


def test_none_is_the_transform_of_evaluation():
    transform = training_transform("none", COLOUR, default(COLOUR))
    assert torch.equal(transform(photo()), COLOUR.transform()(photo()))


@pytest.mark.parametrize(("augment", "policy"), [("trivial", v2.TrivialAugmentWide), ("rand", v2.RandAugment)])
def test_policies_are_those_of_torchvision_after_the_default(augment, policy):
    transform = training_transform(augment, COLOUR, default(COLOUR))
    by_hand = [*default(COLOUR), policy(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(COLOUR.mean, COLOUR.std)]
    expected, plain = v2.Compose([v2.ToImage(), *by_hand]), COLOUR.transform()(photo())
    differ = 0
    for seed in range(5):
        torch.manual_seed(seed)
        out = transform(photo())
        torch.manual_seed(seed)
        assert torch.equal(out, expected(photo()))
        differ += not torch.equal(out, plain) and not torch.equal(out, plain.flip(-1))
    assert differ >= 3


def test_policies_refuse_an_alpha_channel():
    four = Preprocessing(resize=40, crop=32, mean=(0.5,) * 4, std=(0.2,) * 4)
    with pytest.raises(ValueError, match=r"data\.augment='rand' works on images of 1 or 3 channels"):
        training_transform("rand", four, default(four))
    assert training_transform("default", four, default(four))(photo("RGBA")).shape == (4, 32, 32)


@pytest.mark.parametrize(
    "augment",
    [
        v2.Grayscale(1),
        v2.Compose([v2.RandomCrop(20), v2.PILToTensor()]),
        v2.Compose([v2.Resize((32, 32)), v2.ToImage()]),
    ],
)
def test_a_free_transform_is_brought_to_size_and_normalised(augment):
    out = training_transform(augment, COLOUR, [])(photo())
    assert (out.shape, out.dtype) == ((3, 32, 32), torch.float32)
    assert -3 < out.min() < 0 < out.max() < 4


def test_a_free_transform_of_the_right_size_keeps_its_pixels():
    pixels = photo(size=(32, 32))
    out = training_transform(lambda image: pixels, COLOUR, [])(photo())
    expected = (torch.from_numpy(np.asarray(pixels) / 255).float() - torch.tensor(COLOUR.mean)) / 0.2
    assert torch.allclose(out, expected.permute(2, 0, 1), atol=1e-6)


def test_a_float_tensor_of_a_free_transform_is_taken_as_it_is():
    ready = torch.full((3, 32, 32), 7.0)
    assert torch.equal(training_transform(lambda image: ready, COLOUR, [])(photo()), ready)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (
            torch.zeros(3, 8, 8),
            ValueError,
            r"data\.augment must give tensors of shape \(3, 32, 32\); got .*\(3, 8, 8\)",
        ),
        (torch.zeros(1, 8, 8).byte(), ValueError, r"data\.augment must give tensors of 3 channels.*\(1, 8, 8\)"),
        (torch.zeros(8, 8).byte(), ValueError, r"data\.augment must give tensors of 3 channels.*\(8, 8\)"),
        (np.zeros((32, 32, 3)), TypeError, r"data\.augment must give a PIL image or a tensor; got ndarray"),
    ],
)
def test_a_free_transform_that_does_not_fit_is_refused(result, error, message):
    with pytest.raises(error, match=message):
        training_transform(lambda image: result, COLOUR, [])(photo())

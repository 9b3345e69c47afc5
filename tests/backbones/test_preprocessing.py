import json

import pytest
import torch
from PIL import Image
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.transforms.functional import pil_to_tensor

from lit_transfer.backbones import Preprocessing
from lit_transfer.backbones._torchvision import preprocessing_of

DEFAULTS = {
    name: get_model_weights(name)["DEFAULT"] for name in ("resnet50", "swin_v2_t", "efficientnet_v2_l", "maxvit_t")
}


def picture(mode: str, size: tuple[int, int] = (310, 283)) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    channels = len(mode)
    pixels = torch.randint(0, 256, (size[1], size[0], channels), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.squeeze(-1).numpy())


@pytest.mark.parametrize(("name", "weights"), DEFAULTS.items())
def test_it_does_what_torchvisions_own_preset_does(name: str, weights: WeightsEnum) -> None:
    ours, theirs = preprocessing_of(name, weights, 3, None), weights.transforms()
    image, transform = picture("RGB"), ours.transform()
    made = transform(image)
    # While resizing, PIL rounds otherwise than tensors are: by two of 255 values at most.
    torch.testing.assert_close(made, theirs(image), rtol=0, atol=2.01 / 255 / min(ours.std))
    assert torch.equal(transform(pil_to_tensor(image)), made)
    sized = picture("RGB", (ours.resize + 9, ours.resize))
    torch.testing.assert_close(transform(sized), theirs(sized), rtol=0, atol=1e-6)  # one multiplies by 1 / 255
    assert type(made) is torch.Tensor


def test_pixels_go_through_pil_for_what_only_pil_can() -> None:
    transform = Preprocessing(40, 32, (0.5,) * 3, (0.5,) * 3, "lanczos").transform()
    assert torch.equal(transform(picture("RGB")), transform(pil_to_tensor(picture("RGB"))))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_it_follows_the_number_of_channels(channels: int, mode: str) -> None:
    made = Preprocessing(256, 224, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3)).adapted(in_channels=channels)
    assert made.mode == mode
    assert made.transform()(picture(mode)).shape == (channels, 224, 224)
    assert made.mean == pytest.approx({1: (0.4,), 3: (0.2, 0.4, 0.6), 4: (0.2, 0.4, 0.6, 0.4)}[channels])
    assert made.std == pytest.approx({1: (0.2,), 3: (0.1, 0.2, 0.3), 4: (0.1, 0.2, 0.3, 0.2)}[channels])


def test_other_channels_have_no_mode() -> None:
    made = Preprocessing(256, 224, (0.5,) * 3, (0.5,) * 3).adapted(in_channels=7)
    with pytest.raises(ValueError, match="in_channels=7: image files are opened with 1, 3 or 4 channels"):
        _ = made.mode


def test_another_size_keeps_the_margin() -> None:
    made = Preprocessing(256, 224, (0.5,), (0.5,)).adapted(input_size=112)
    assert (made.resize, made.crop) == (128, 112)


def test_it_goes_through_json() -> None:
    made = Preprocessing(256, 224, (0.1, 0.2, 0.3), (0.5,) * 3, "bicubic")
    assert Preprocessing.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"std": (0.5, 0.5)}, "one value for each channel, got 1 and 2"),
        ({"resize": 100}, "crop=224 and resize=100"),
        ({"interpolation": "cubic"}, "interpolation='cubic'.*bicubic"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"resize": 256, "crop": 224, "mean": (0.5,), "std": (0.5,), **values})

import numpy as np
import pytest
from PIL import Image

from lit_transfer.data import convert_image, is_image, read_image
from lit_transfer.data._images import check_header


def gradient(size=(32, 24)):
    return Image.fromarray(np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8))


def test_the_orientation_tag_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    gradient().save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.size == (24, 32)
    assert np.array_equal(np.asarray(image)[..., 0], np.rot90(np.asarray(gradient()), -1))


def test_16_bit_grey_keeps_its_shades(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(np.asarray(read_image(tmp_path / name, "L")), values >> 8)
        assert np.asarray(read_image(tmp_path / name)).shape == (256, 256, 3)


def test_32_bit_integers_of_16_bits_are_grey_and_others_have_no_known_range(tmp_path):
    values = np.array([[0, 256], [512, 65535]], dtype=np.int32)
    Image.fromarray(values).save(tmp_path / "wide.tif")
    assert np.asarray(read_image(tmp_path / "wide.tif", "L")).tolist() == [[0, 1], [2, 255]]
    for array in (values + 1, values.astype(np.float32)):
        Image.fromarray(array).save(tmp_path / "unknown.tif")
        with pytest.raises(ValueError, match=r"broken image '.*unknown\.tif': .* has no known range"):
            read_image(tmp_path / "unknown.tif")


@pytest.mark.parametrize("source", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white_where_there_is_no_alpha(tmp_path, source):
    image = Image.new("RGBA", (4, 4), (10, 10, 10, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.convert(source).save(tmp_path / "cut_out.png")
    assert read_image(tmp_path / "cut_out.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "cut_out.png").getpixel((1, 1)) == (10, 10, 10)
    assert read_image(tmp_path / "cut_out.png", "L").getpixel((0, 0)) == 255
    assert read_image(tmp_path / "cut_out.png", "RGBA").getpixel((0, 0))[3] == 0


def test_cmyk_palette_and_bilevel_images_show_their_colours(tmp_path):
    Image.new("RGB", (8, 8), (200, 30, 30)).convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    assert np.allclose(read_image(tmp_path / "print.jpg").getpixel((3, 3)), (200, 30, 30), atol=4)
    Image.new("RGB", (8, 8), (200, 30, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "web.png")
    assert read_image(tmp_path / "web.png").getpixel((3, 3)) == (200, 30, 30)
    assert convert_image(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)


def test_a_broken_file_is_named(tmp_path):
    for name, content in (("empty.jpg", b""), ("page.png", b"<html>not found</html>")):
        (tmp_path / name).write_bytes(content)
        for read in (check_header, read_image):
            with pytest.raises(ValueError, match=rf"broken image '.*{name}': .*no known image format.* data\.root"):
                read(tmp_path / name)


def test_a_file_cut_short_passes_the_header_and_is_named_when_decoded(tmp_path):
    gradient((200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    check_header(tmp_path / "half.jpg")
    with pytest.raises(ValueError, match=r"broken image '.*half\.jpg': image file is truncated"):
        read_image(tmp_path / "half.jpg")


def test_an_image_is_told_by_its_name():
    assert all(map(is_image, ("a.jpg", "b.JPEG", "c/d.Png", "e.webp", "f.tiff")))
    assert not any(map(is_image, ("a.gif", "b.txt", "._c.jpg", ".hidden.png", "d", ".png")))

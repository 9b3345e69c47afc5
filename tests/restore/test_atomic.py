import errno
import io
import os
import resource
import signal
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import in_child, kill_at

from lit_transfer.restore import checkpoints_in, damage, first_whole, save_atomically
from lit_transfer.weights import open_checkpoint

OLD, NEW = ({"w": torch.full((900, 900), value), "n": int(value)} for value in (1.0, 2.0))  # several writes each


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    return torch.load(path, weights_only=True)


def test_what_is_written_is_an_ordinary_file_of_torch(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    save_atomically(NEW, path)
    assert damage(path) is None
    assert names(path.parent) == ["a.ckpt"]
    for loaded in (read(path), torch.load(path, mmap=True), torch.load(io.BytesIO(path.read_bytes()))):
        assert torch.equal(loaded["w"], NEW["w"])
    assert torch.equal(open_checkpoint(path).root["w"].read("cpu"), NEW["w"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("halfway", [False, True], ids=["before", "amid or after"])
def test_a_kill_at_any_call_leaves_the_old_file_or_the_new_one(tmp_path, halfway):
    path = tmp_path / "a.ckpt"
    number, states = 0, []
    while True:
        number += 1
        save_atomically(OLD, path)

        def write(number=number):
            kill_at(number, halfway=halfway)
            save_atomically(NEW, path)

        code = in_child(write)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert damage(path) is None
        states.append(read(path)["n"])
        assert torch.equal(read(path)["w"], (OLD if states[-1] == 1 else NEW)["w"])
        assert checkpoints_in(tmp_path) == [path]  # what the dead writer left is no checkpoint
    assert states == sorted(states)
    assert len(states) >= 8  # open, writes, fsync, rename, open and fsync of the folder
    assert set(states) == {1, 2}
    save_atomically(NEW, path)
    assert names(tmp_path) == ["a.ckpt"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    save_atomically({"w": torch.arange(40), "n": 3}, folder / "ours.ckpt")
    torch.save({"w": torch.arange(40), "n": 3}, folder / "theirs.ckpt")
    return folder


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["ours.ckpt", "theirs.ckpt"]), st.data())
def test_a_file_cut_off_anywhere_is_damaged(written, name, data):
    whole = (written / name).read_bytes()
    torn = written / "torn"
    torn.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    if len(torn.read_bytes()) >= 4 or not torn.read_bytes():
        assert damage(torn)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_byte_is_found_wherever_it_counts(written, data):
    whole = bytearray((written / "ours.ckpt").read_bytes())
    place = data.draw(st.integers(4, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    changed = written / "changed"
    changed.write_bytes(whole)
    # Only the comment itself may change unseen: then the checksums of the members are read.
    if damage(changed) is None:
        assert place >= len(whole) - 84
        assert torch.equal(read(changed)["w"], torch.arange(40))


def test_the_content_of_files_by_others_is_verified_too(written, tmp_path):
    whole = (written / "theirs.ckpt").read_bytes()
    tensor = torch.arange(40).numpy().tobytes()
    (tmp_path / "flipped.ckpt").write_bytes(whole.replace(tensor, tensor[:-1] + b"\1"))
    assert damage(written / "theirs.ckpt") is None
    assert "data/0' does not fit" in damage(tmp_path / "flipped.ckpt")
    (tmp_path / "legacy.ckpt").write_bytes(b"\x80\x02 no zip file")
    assert damage(tmp_path / "legacy.ckpt") is None


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "may not be written to")],
)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_an_error_leaves_the_old_file_and_is_told_once(tmp_path, monkeypatch, call, number, told):
    path = tmp_path / "a.ckpt"
    save_atomically(OLD, path)

    def fails(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OSError, match=f"{told}. What was there before is as it was") as caught:
            save_atomically(NEW, path)
    assert caught.value.errno == number
    assert read(path)["n"] == 1
    assert damage(path) is None
    assert names(tmp_path) == ["a.ckpt"]


def test_a_real_limit_of_the_operating_system(tmp_path):
    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        try:
            save_atomically(NEW, tmp_path / "a.ckpt")
        except OSError as error:
            (tmp_path / "told").write_text(str(error))

    assert in_child(write) == 0
    assert names(tmp_path) == ["told"]
    assert "files may not grow so large here" in (tmp_path / "told").read_text()


def test_the_newest_whole_training_is_found_and_what_was_passed_over_is_told(tmp_path):
    training = {"loops": {}, "optimizer_states": []}
    for age, (name, content) in enumerate([("a", training), ("b", training), ("c", training), ("weights", NEW)]):
        save_atomically(content, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1000 + age, 1000 + age))
    os.truncate(tmp_path / "c.ckpt", 300)
    os.utime(tmp_path / "c.ckpt", (1002, 1002))
    found, wrong = first_whole(checkpoints_in(tmp_path))
    assert found == tmp_path / "b.ckpt"
    assert [path.name for path in wrong] == ["weights.ckpt", "c.ckpt"]
    assert "no state of a training" in wrong[tmp_path / "weights.ckpt"]
    assert "cut off" in wrong[tmp_path / "c.ckpt"]
    assert first_whole(checkpoints_in(tmp_path / "nowhere")) == (None, {})

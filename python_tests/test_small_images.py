"""CIFAR-100 and ImageNet32 in all their editions, and files that are neither."""

import collections
import contextlib
import gzip
import hashlib
import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_image_files import (
    LABELS,
    NAMES,
    archive,
    cifar,
    draw,
    imagenet32,
    write_cifar,
    write_cifar_binary,
    write_imagenet32,
)

from tinyops.data import cifar100
from tinyops.data.cifar100 import read_cifar100
from tinyops.data.imagenet32 import read_imagenet32
from tinyops.data.plain_pickle import read_pickle
from tinyops.data.small_images import Augmented, SmallImages, labels_of
from tinyops.train import Order, make_loader


def assert_holds(found, data, labels):
    images, numbers = found.take(range(len(found)))
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), data.reshape(-1, 3, 32, 32))
    assert numbers.tolist() == list(labels)


@pytest.mark.parametrize("keys", [str, bytes])
@pytest.mark.parametrize("protocol", range(6))
def test_cifar_for_python(tmp_path, keys, protocol):
    write_cifar(tmp_path, keys=keys, protocol=protocol)
    for split, count, seed in (("train", 64, 0), ("val", 24, 1)):
        expected = cifar(count, seed)
        for folder in (tmp_path, tmp_path / "cifar-100-python"):
            found = read_cifar100(folder, split)
            assert_holds(found, expected["data"], expected["fine_labels"])
            assert found.classes == tuple(NAMES)


def test_cifar_binary_stays_on_the_disk(tmp_path):
    write_cifar_binary(tmp_path)
    for split, count, seed in (("train", 64, 0), ("val", 24, 1)):
        found = read_cifar100(tmp_path, split)
        assert_holds(found, cifar(count, seed)["data"], cifar(count, seed)["fine_labels"])
        assert isinstance(found.parts[0], np.memmap)


@pytest.mark.parametrize("write", [write_cifar, write_cifar_binary])
def test_cifar_from_its_archive(tmp_path, write, monkeypatch):
    path = archive(write(tmp_path / "a"), tmp_path / "cifar.tar.gz")
    before = sorted(tmp_path.rglob("*"))
    for split, count, seed in (("train", 64, 0), ("val", 24, 1)):
        found = read_cifar100(path, split)
        assert_holds(found, cifar(count, seed)["data"], cifar(count, seed)["fine_labels"])
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="with md5 eb9058c3a382ffc7106e4002c42a8d85, got "):
        read_cifar100(path, verify=True)
    with pytest.raises(ValueError, match="only an archive can be verified"):
        read_cifar100(tmp_path / "a", verify=True)
    monkeypatch.setattr(cifar100, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    assert len(read_cifar100(path, verify=True)) == 64


@pytest.mark.parametrize("write", ["pickle", "savez", "savez_compressed"])
def test_imagenet32_counts_its_labels_from_one(tmp_path, write):
    write_imagenet32(tmp_path / "some_folder", write=write)
    found = read_imagenet32(tmp_path, "train")
    batches = [imagenet32(8, k) for k in range(1, 11)]
    labels = np.concatenate([batch["labels"] for batch in batches]) - 1
    assert_holds(found, np.concatenate([batch["data"] for batch in batches]), labels)
    assert set(found.labels) <= set(LABELS)
    assert [found.classes[0], found.classes[999]] == ["1", "1000"]
    assert len(found.parts) == 10
    assert all(isinstance(part, np.memmap) == (write == "savez") for part in found.parts)
    val = imagenet32(24, 11)
    assert_holds(read_imagenet32(tmp_path, "val"), val["data"], np.array(val["labels"]) - 1)


def test_all_thousand_classes_of_imagenet32(tmp_path):
    data = np.zeros((1000, 3072), np.uint8)
    np.savez(tmp_path / "val_data", data=data, labels=np.arange(1, 1001))
    assert read_imagenet32(tmp_path, "val").labels.tolist() == list(range(1000))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pixels_are_in_memory_once(tmp_path, protocol):
    count = 8000  # 24.6 MB
    data = np.arange(count * 3072, dtype=np.int64).astype(np.uint8).reshape(count, 3072)
    content = {"data": data, "labels": [1] * count}
    (tmp_path / "val_data").write_bytes(pickle.dumps(content, protocol))
    tracemalloc.start()
    try:
        found = read_imagenet32(tmp_path, "val")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * data.nbytes
    assert np.array_equal(found.parts[0][-1].ravel(), data[-1])


def written_by_python_2(data, labels):
    """The opcodes that Python 2's cPickle wrote: texts and pixels alike are its byte strings."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85"
    array += text(b"b") + b"tR(" + number(1) + number(len(data)) + number(3072) + b"\x86"
    array += b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    state = [number(3), text(b"|"), b"N", b"N", b"N", number(-1), number(-1), number(0)]
    array += b"(" + b"".join(state) + b"tb\x89"
    array += b"T" + struct.pack("<i", data.nbytes) + data.tobytes() + b"tb"
    numbers = b"](" + b"".join(number(k) for k in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"fine_labels") + numbers + b"u."


def test_cifar_as_python_2_wrote_it(tmp_path):
    folder = write_cifar(tmp_path) / "cifar-100-python"
    expected = cifar(64)
    raw = written_by_python_2(expected["data"], expected["fine_labels"])
    assert np.array_equal(pickle.loads(raw, encoding="bytes")[b"data"], expected["data"])
    (folder / "train").write_bytes(raw)
    assert_holds(read_cifar100(tmp_path), expected["data"], expected["fine_labels"])


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["data", "extra", "deep"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol, where):
    mark = tmp_path / "executed"
    for evil, named in (
        (Evil(os.mkdir, str(mark)), "posix.mkdir"),
        (Evil(eval, f"__import__('os').mkdir({str(mark)!r})"), "eval"),
        (Evil(getattr, int, "from_bytes"), "getattr"),
        (Evil(collections.OrderedDict), "collections.OrderedDict"),
        (Evil(np.fromfile, str(tmp_path)), "numpy"),
    ):
        content = imagenet32(4)
        content[where] = [[evil]] if where == "deep" else evil
        (tmp_path / "val_data").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(ValueError, match=f"val_data: expected a pickle .*{named}") as caught:
            read_imagenet32(tmp_path, "val")
        assert "\n" not in str(caught.value)
        assert "which is not run" in str(caught.value)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(os.mkdir, str(mark)), protocol))  # it does what it says
    assert mark.exists()


def test_arrays_of_objects_are_refused():
    """Their bytes would be taken for pointers."""
    for array in (np.array([1, "a"], object), np.zeros(2, "S8"), np.zeros(2, [("a", "u1")])):
        raw = io.BytesIO(pickle.dumps({"data": array}))
        with pytest.raises(ValueError, match="arrays must consist of numbers, got the dtype"):
            read_pickle(raw, "file")


def word(text):
    return b"X" + struct.pack("<i", len(text)) + text.encode()


def nested(start, pair, levels=60):
    """An object of two references to one of two references and so on."""
    return start + b"".join(b"q%ch%c%s" % (k, k, pair) for k in range(levels))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (nested(b")", b"\x86") + b"K\x01s", "TypeError: unhashable type: 'list'"),
        (b")\x85" + b"2\x86" * 60 + b"K\x01s", "it has an instruction that these do not need"),
        (b"cnumpy.core.multiarray\nscalar\n}" + word("a") + b"K\x01sb", "no attribute 'build'"),
        (b"c_codecs\nencode\nN}" + word("__doc__") + b"K\x01s\x86b", "no attribute 'build'"),
        (b"cnumpy\ndtype\n)\x81", "it has an instruction that these do not need"),
        (b"(ios\nsystem\n", "it has an instruction that these do not need"),
        (word("x") + b"Q", "it has an instruction that these do not need"),
        (b"\x82\x01", "it has an instruction that these do not need"),
        (b"\xc3\xa9", "it has an instruction that these do not need"),
        (word("a\nb") + word("c" * 999) + b"\x93", r"it names 'a\\nb.cccc"),
        (b"\x8e" + struct.pack("<Q", 2**40) + b"abc", "Error"),
        (b"\x96" + struct.pack("<Q", 2**40) + b"abc", "Error"),
        (b"K\x01K\x02s", "expected a text, got int"),
        (b"0" * 9, "it has an instruction that these do not need"),
    ],
    ids=range(14),
)
def test_hostile_instructions_are_one_short_line(code, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        read_pickle(io.BytesIO(b"\x80\x04}" + code + b"."), "file")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_memory_is_taken_for_what_is_in_a_file_alone():
    tracemalloc.start()
    try:
        for index in (10**8, 2**32 - 1):  # of a memo, of which C's reader makes a list
            raw = io.BytesIO(b"\x80\x02}r" + struct.pack("<I", index) + b".")
            assert read_pickle(raw, "file") == {}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_labels_without_end_are_one_short_line():
    raw = b"\x80\x02}" + word("labels") + nested(b"]", b"\x86") + b"\x85s."
    labels = read_pickle(io.BytesIO(raw), "file")["labels"]
    with pytest.raises(
        ValueError, match=r"labels\[0\] must be an integer in 1\.\.9, got "
    ) as caught:
        labels_of(labels, 1, 9, "labels", first=1)
    assert len(str(caught.value)) < 999


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_damaged_pickles_are_one_error(data):
    raw = bytearray(pickle.dumps(imagenet32(1), data.draw(st.sampled_from([2, 4, 5]))))
    head = st.one_of(st.integers(0, 120), st.integers(len(raw) - 80, len(raw) - 1))
    for place in data.draw(st.lists(head, min_size=1, max_size=3)):
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for content in (bytes(raw), bytes(raw[:cut])):
        with contextlib.suppress(ValueError):  # and no other error
            assert all(type(key) is str for key in read_pickle(io.BytesIO(content), "a_file"))


def changed(**fields):
    content = imagenet32(4) | fields
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": None}, "data must be an array [N, 3072] uint8, got none"),
        ({"data": [1, 2]}, "data must be an array [N, 3072] uint8, got list"),
        ({"data": np.zeros((4, 3071), np.uint8)}, "data must be [N, 3072] uint8, got [4, 3071] ui"),
        ({"data": np.zeros(3072, np.uint8)}, "data must be [N, 3072] uint8, got [3072] uint8"),
        ({"data": np.zeros((4, 3072))}, "data must be [N, 3072] uint8, got [4, 3072] float64"),
        ({"data": np.zeros((0, 3072), np.uint8)}, "data must be [N, 3072] uint8, got [0, 3072]"),
        ({"data": np.zeros((5, 3072), np.uint8)}, "labels must be a list of 5 numbers, got list o"),
        ({"labels": None}, "labels must be a list of 4 numbers, got none"),
        ({"labels": "1234"}, "labels must be a list of 4 numbers, got str"),
        ({"labels": [1, 2, 3]}, "labels must be a list of 4 numbers, got list of 3"),
        ({"labels": [1, 0, 3, 4]}, "labels[1] must be an integer in 1..1000, got 0"),
        ({"labels": [1, 2, 1001, 4]}, "labels[2] must be an integer in 1..1000, got 1001"),
        ({"labels": [1, 2, 3, 2**80]}, f"labels[3] must be an integer in 1..1000, got {2**80}"),
        ({"labels": [1, 2, 3, True]}, "labels[3] must be an integer in 1..1000, got True"),
        ({"labels": [1, 2, 3, 1.0]}, "labels[3] must be an integer in 1..1000, got 1.0"),
        ({"labels": [[1], 2, 3, 4]}, "labels[0] must be an integer in 1..1000, got [1]"),
        ({"labels": np.array([1, 2, 3, 4.5])}, "labels[0] must be an integer in 1..1000, got 1.0"),
        ({"labels": np.ones((4, 1), int)}, "labels[0] must be an integer in 1..1000, got [1]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_fields_are_named(tmp_path, fields, message):
    path = tmp_path / "val_data"
    path.write_bytes(pickle.dumps(changed(**fields)))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_imagenet32(tmp_path, "val")
    assert str(caught.value).startswith(f"{path}: {message}")


def test_numbers_of_numpy_are_numbers(tmp_path):
    path = tmp_path / "val_data"
    path.write_bytes(pickle.dumps(changed(labels=[np.int64(1), np.uint8(2), 3, np.int32(4)])))
    assert read_imagenet32(tmp_path, "val").labels.tolist() == [0, 1, 2, 3]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected val_data or val_data\.npz in it"):
        read_imagenet32(tmp_path, "val")
    write_imagenet32(tmp_path)
    (tmp_path / "train_data_batch_7").unlink()
    with pytest.raises(FileNotFoundError, match="expected train_data_batch_7 or"):
        read_imagenet32(tmp_path)
    for read in (read_imagenet32, read_cifar100):
        with pytest.raises(FileNotFoundError, match=r"nowhere: expected a folder"):
            read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected test or test\.bin in it, found neither"):
        read_cifar100(tmp_path, "val")
    for write, name in ((write_cifar, "meta"), (write_cifar_binary, "fine_label_names.txt")):
        (file,) = write(tmp_path / name).rglob(name)
        file.unlink()
        with pytest.raises(FileNotFoundError, match=f"expected {name} in it"):
            read_cifar100(tmp_path / name)


def test_damaged_files_are_named(tmp_path):
    folder = write_cifar(tmp_path / "a") / "cifar-100-python"
    path = archive(tmp_path / "a", tmp_path / "cut.tar.gz")
    os.truncate(path, path.stat().st_size * 2 // 3)
    with pytest.raises(ValueError, match=r"cut\.tar\.gz: .*"):
        read_cifar100(path)
    path.write_text("hello")
    with pytest.raises(
        ValueError, match=r"cut\.tar\.gz: expected a complete tar archive"
    ) as caught:
        read_cifar100(path)
    assert "\n" not in str(caught.value)
    stored = gzip.compress(archive(tmp_path / "a", path, "w").read_bytes(), 0)
    path.write_bytes(stored.replace(cifar(64)["data"][0].tobytes(), bytes(3072)))
    with pytest.raises(ValueError, match="BadGzipFile: CRC check failed"):
        read_cifar100(path)
    os.truncate(folder / "train", 5000)
    with pytest.raises(ValueError, match=r"a: train: expected a pickle of"):
        read_cifar100(tmp_path / "a")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES[1:]}))
    with pytest.raises(ValueError, match="fine_label_names must be a list of 100 names, got list"):
        read_cifar100(tmp_path / "a", "val")

    binary = write_cifar_binary(tmp_path / "b") / "cifar-100-binary" / "test.bin"
    os.truncate(binary, 3074 * 3 + 1)
    with pytest.raises(ValueError, match=r"test\.bin must consist of images of 3074 bytes, got 92"):
        read_cifar100(tmp_path / "b", "val")
    raw = bytearray(3074 * 3)
    raw[3074 + 1] = 100
    binary.write_bytes(raw)
    with pytest.raises(ValueError, match=r"fine_labels\[1\] must be an integer in 0\.\.99, got 10"):
        read_cifar100(tmp_path / "b", "val")
    binary.write_bytes(b"")
    with pytest.raises(ValueError, match=r"images of 3074 bytes, got 0 bytes"):
        read_cifar100(tmp_path / "b", "val")


@pytest.mark.parametrize("write", ["savez", "savez_compressed"])
def test_damaged_npz_files_are_named(tmp_path, write):
    path = tmp_path / "val_data.npz"
    save = getattr(np, write)
    for fields, message in (
        ({"labels": np.ones(4, int)}, "data must be an array, got none"),
        ({"data": np.zeros((4, 3072), np.uint8)}, "labels must be an array, got none"),
        ({"data": np.array([1, "a"], object), "labels": np.ones(4, int)}, "data must be an array"),
        ({"data": np.zeros((4, 5)), "labels": np.ones(4, int)}, r"data must be \[N, 3072\] uint8"),
    ):
        save(path, **fields)
        with pytest.raises(ValueError, match=rf"val_data\.npz: {message}"):
            read_imagenet32(tmp_path, "val")
    save(path, **changed())
    raw = path.read_bytes()
    for cut in (10, len(raw) // 2, len(raw) - 5):
        path.write_bytes(raw[:cut])
        with pytest.raises(ValueError, match=r"val_data\.npz: data must be an array of an npz"):
            read_imagenet32(tmp_path, "val")
    if write == "savez":  # an array that says it is larger than its member
        path.write_bytes(raw.replace(b"(4, 3072)", b"(9, 3072)"))
        with pytest.raises(ValueError, match="expected 27776 bytes for"):
            read_imagenet32(tmp_path, "val")


def images(count=40):
    data, kinds = draw(count)
    data = data.reshape(-1, 3, 32, 32)
    return SmallImages((data[:7], data[7:8], data[8:]), kinds.astype(np.int64), ("a", "b"))


def test_parts_are_one_row_of_images():
    data, kinds = draw(40)
    found, labels = images().take([39, 0, 7, 8, 6, 7])
    expected = data.reshape(-1, 3, 32, 32)[[39, 0, 7, 8, 6, 7]]
    assert np.array_equal(found.numpy(), expected)
    assert labels.tolist() == kinds[[39, 0, 7, 8, 6, 7]].tolist()


def test_crops_and_flips_are_all_there_and_no_others():
    picture = np.arange(1, 3073).astype(np.uint8).reshape(1, 3, 32, 32)
    data = Augmented(SmallImages((picture,), np.zeros(1, np.int64), ("a",)))
    padded = np.pad(picture[0], ((0, 0), (4, 4), (4, 4)))
    options = {}
    for y in range(9):
        for x in range(9):
            cut = padded[:, y : y + 32, x : x + 32]
            options[cut.tobytes()] = (y, x, 0)
            options[cut[:, :, ::-1].tobytes()] = (y, x, 1)
    seeds = torch.randint(2**63 - 1, (6000,)).tolist()
    found, _ = data.batch([0] * 6000, seeds)
    counts = collections.Counter(options[x.numpy().tobytes()] for x in found)
    assert len(counts) == 2 * 81
    assert max(counts.values()) < 80  # 37 each on average


def test_without_augmentation_images_stay_as_they_are():
    data = Augmented(images(), 0, flip=False)
    found, _ = data.batch(range(40), list(range(40)))
    assert torch.equal(found, images().take(range(40))[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_what_happens_to_an_image_depends_on_seed_epoch_and_index_alone(workers):
    def seen(batch, seed=3, workers=0):
        order = Order(40, batch, seed=seed, last=80 // batch)
        loader = make_loader(Augmented(images()), order, workers=workers)
        places = [place for batch in order for place in batch]
        rows = [image for pixels, _ in loader for image in pixels]
        return dict(zip(places, rows, strict=True))

    expected, found = seen(8), seen(20, workers=workers)
    assert expected.keys() == found.keys()
    assert len(found) == 80
    assert all(torch.equal(x, found[place]) for place, x in expected.items())
    epochs = [torch.equal(found[0, k], found[1, k]) for k in range(40)]
    assert sum(epochs) < 5
    assert sum(torch.equal(x, seen(8, seed=4)[place]) for place, x in expected.items()) < 5

"""Small images of four kinds that a small network tells apart, in the formats of the data sets."""

import pickle
import tarfile

import numpy as np

LABELS = (0, 17, 42, 99)  # of the hundred classes of CIFAR-100; in ImageNet32 one more
NAMES = [f"thing_{k}" for k in range(100)]


def draw(count, seed=0):
    """[count, 3072] uint8 and which of the four kinds: stripes along x or y, reddish or bluish."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(4, size=count)
    kinds[:4] = np.arange(4)[:count]
    images = rng.integers(0, 60, (count, 3, 32, 32))
    stripes = 120 * (np.arange(32) // 4 % 2)
    for image, kind in zip(images, kinds, strict=True):
        image[0 if kind % 2 else 2] += 75
        image += stripes[:, None] if kind // 2 else stripes
    return images.astype(np.uint8).reshape(count, 3072), kinds


def cifar(count, seed=0, keys=str):
    """What a file of the edition for Python holds."""
    data, kinds = draw(count, seed)
    labels = [LABELS[k] for k in kinds]
    coarse = [k % 20 for k in labels]
    content = {"data": data, "fine_labels": labels, "coarse_labels": coarse}
    content |= {"filenames": ["x.png"] * count, "batch_label": "training batch 1 of 1"}
    return content if keys is str else {key.encode(): value for key, value in content.items()}


def write_cifar(folder, train=64, val=24, keys=str, protocol=4):
    """cifar-100-python in `folder`, which is given back."""
    inner = folder / "cifar-100-python"
    inner.mkdir(parents=True)
    meta = {"fine_label_names": NAMES, "coarse_label_names": NAMES[:20]}
    contents = {"train": cifar(train, 0, keys), "test": cifar(val, 1, keys), "meta": meta}
    for name, content in contents.items():
        (inner / name).write_bytes(pickle.dumps(content, protocol))
    return folder


def write_cifar_binary(folder, train=64, val=24):
    """cifar-100-binary in `folder`, which is given back."""
    inner = folder / "cifar-100-binary"
    inner.mkdir(parents=True)
    for name, count, seed in (("train.bin", train, 0), ("test.bin", val, 1)):
        content = cifar(count, seed)
        columns = [content["coarse_labels"], content["fine_labels"]]
        rows = np.concatenate([np.array(columns, np.uint8).T, content["data"]], 1)
        (inner / name).write_bytes(rows.tobytes())
    (inner / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def archive(folder, path, mode="w:gz"):
    """A tar.gz of what is in the folder."""
    with tarfile.open(path, mode) as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    return path


def imagenet32(count, seed=0):
    """What a batch of ImageNet32 holds."""
    data, kinds = draw(count, seed)
    return {"data": data, "labels": [1 + LABELS[k] for k in kinds], "mean": data.mean(0)}


def write_imagenet32(folder, each=8, val=24, write="pickle"):
    """Ten batches and the validation set in `folder`, which is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {f"train_data_batch_{k}": imagenet32(each, k) for k in range(1, 11)}
    contents["val_data"] = {k: v for k, v in imagenet32(val, 11).items() if k != "mean"}
    for name, content in contents.items():
        if write == "pickle":
            (folder / name).write_bytes(pickle.dumps(content))
        else:
            getattr(np, write)(folder / name, **content)  # savez or savez_compressed
    return folder

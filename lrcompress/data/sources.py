"""From what the user writes after `--data` to an `ImageSet`.

A folder of class folders, a folder of idx files, the samples that foolbox ships, and the map-style data sets of timm
(`torch/…`, `hfds/…`).
"""

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

import torch

from lrcompress.data.idx import IdxImages, find_idx_files, read_idx
from lrcompress.data.images import ImageSet
from lrcompress.data.pictures import FileImages, FitToInput, Mode, TimmImages
from lrcompress.errors import DataError

Split = Literal["train", "test"]
SAMPLE_SETS = ("imagenet", "cifar10", "cifar100", "mnist", "fashionMNIST")
SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "validation", "valid", "eval")}
# Fixed, and not the seed of a run: the images kept apart must be the same ones for every verb and every run.
KEPT_APART_SEED, KEPT_APART_FRACTION = 2025, 0.1


def describe_sources(*, labelled: bool = True) -> str:
    """Returns one line that lists what `--data` accepts, or an option that needs no labels, for hints."""
    samples = ", ".join(f"samples/{name}" for name in SAMPLE_SETS)
    folder = "a folder with train/ and test/ or val/ class folders" if labelled else "any folder of images"
    return f"{folder}, a folder of idx files, torch/…, hfds/…, {samples}"


def open_images(
    source: str,
    split: Split,
    *,
    input_size: tuple[int, int, int],
    crop_pct: float = 1.0,
    interpolation: str = "bilinear",
    labelled: bool = True,
    option: str = "--data",
) -> ImageSet:
    """Returns the images of one split, resized and cropped to the input of a network, in [0, 1].

    A folder with a single split is divided: 10 % of its images, always the same ones, are its test split. The 20 images
    of `samples/…` are the same for both splits; they are there to look at a network, not to train it.

    Args:
        source: what the user wrote after `--data`, see `describe_sources`.
        split: "train" to fine-tune on, "test" to report on.
        input_size: (channels, height, width) of the network's input.
        crop_pct: the part of the shorter side that the centre crop keeps, timm's `crop_pct`.
        interpolation: timm's name of the resampling filter.
        labelled: whether labels are wanted; if not, a folder's images need not lie in class folders.
        option: where the user wrote the source, for hints.

    Raises:
        DataError: if there is no such source, it has no classes, or its images cannot be read.
    """
    if source.startswith("samples/"):
        return _open_samples(source, FitToInput(input_size, crop_pct, interpolation), _mode(input_size))
    if re.match(r"(torch|hfds)/", source):
        return _open_timm(source, split, FitToInput(input_size, crop_pct, interpolation), _mode(input_size), option)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(f"no data at `{source}`", hint=f"{option} takes {describe_sources(labelled=labelled)}")
    pair, other = find_idx_files(folder, split), find_idx_files(folder, "test" if split == "train" else "train")
    if pair is None and other is not None:
        raise DataError(
            f"`{folder}` has `{other[0].name}` but no idx files of a {split} split", hint="put all four files there"
        )
    if pair is not None:
        dataset = IdxImages(*pair, channels=input_size[0], size=input_size[1:])
        # A split may lack the last class, so both are counted.
        largest = max(int(read_idx(labels).max()) for _, labels in filter(None, (pair, other)))
        names = tuple(str(label) for label in range(largest + 1))
        return ImageSet(dataset, names, f"{source} ({split} split)")
    fit = FitToInput(input_size, crop_pct, interpolation)
    return _open_folder(folder, split, fit, _mode(input_size), labelled=labelled, option=option)


def _mode(input_size: tuple[int, int, int]) -> Mode:
    modes: dict[int, Mode] = {1: "L", 3: "RGB"}
    if input_size[0] not in modes:
        raise DataError(
            f"image files give 1 or 3 channels, the network takes {input_size[0]}",
            hint="use the Python API with a data set of your own",
        )
    return modes[input_size[0]]


def _open_samples(source: str, fit: FitToInput, mode: Mode) -> ImageSet:
    name = source.removeprefix("samples/")
    if name not in SAMPLE_SETS:
        raise DataError(
            f"no samples named `{name}`", hint="take one of " + ", ".join(f"samples/{known}" for known in SAMPLE_SETS)
        )
    # Found without importing foolbox, which is slow and only needed for attacks.
    spec = importlib.util.find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the samples come with foolbox, which is not installed", hint="pip install foolbox")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    files = sorted(folder.glob(f"{name}_*_*.*"))
    samples = [(str(file), int(file.stem.rsplit("_", 1)[1])) for file in files]
    return ImageSet(FileImages(samples, fit, mode=mode, size=fit.size), (), f"foolbox's {len(samples)} {name} samples")


def _open_folder(folder: Path, split: Split, fit: FitToInput, mode: Mode, *, labelled: bool, option: str) -> ImageSet:
    place = next((folder / name for name in SPLIT_FOLDERS[split] if (folder / name).is_dir()), None)
    other = next((name for names in SPLIT_FOLDERS.values() for name in names if (folder / name).is_dir()), None)
    if place is None and other is not None:
        raise DataError(
            f"`{folder}` has `{other}/` but no {split} split",
            hint=f"add a folder named {' or '.join(f'`{name}/`' for name in SPLIT_FOLDERS[split])}",
        )
    samples, names = _find_files(place or folder, labelled=labelled, option=option)
    training = next((folder / name for name in SPLIT_FOLDERS["train"] if (folder / name).is_dir()), None)
    if split == "test" and training is not None:
        samples, names = _number_as_in_training(samples, names, training)
    description = f"{place or folder}"
    if place is None:
        samples = _keep_apart(samples, split)
        description = f"{folder} ({'the 10 % kept apart' if split == 'test' else 'without the 10 % kept apart'})"
    return ImageSet(FileImages(samples, fit, mode=mode, size=fit.size), names, description)


def _find_files(
    folder: Path, *, labelled: bool = True, option: str = "--data"
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    samples, classes = find_images_and_targets(str(folder))
    hint = f"give {option} a folder with {'one subfolder of images per class' if labelled else 'images'}"
    if not samples:
        raise DataError(f"`{folder}` has no images", hint=hint)
    if labelled and "" in classes:
        raise DataError(f"`{folder}` has images outside of class folders, `{samples[0][0]}` for one", hint=hint)
    return samples, tuple(classes)


def _number_as_in_training(
    samples: list[tuple[str, int]], names: tuple[str, ...], training: Path
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Returns the samples with the class indices of the training split, of which the test split may lack some."""
    trained = _find_files(training)[1]
    if unknown := sorted(set(names) - set(trained)):
        raise DataError(
            f"the test split has a class `{unknown[0]}` that `{training}` has not",
            hint="give both splits the same class folders",
        )
    return [(file, trained.index(names[label])) for file, label in samples], trained


def _keep_apart(samples: list[tuple[str, int]], split: Split) -> list[tuple[str, int]]:
    if len(samples) < 2:
        raise DataError("one image cannot be divided into a training and a test split", hint="add images")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(KEPT_APART_SEED)).tolist()
    count = max(1, round(len(samples) * KEPT_APART_FRACTION))
    chosen = sorted(order[:count] if split == "test" else order[count:])
    return [samples[index] for index in chosen]


def _open_timm(source: str, split: Split, fit: FitToInput, mode: Mode, option: str) -> ImageSet:
    from timm.data.dataset_factory import create_dataset

    root = Path.home() / ".cache" / "lrcompress" / "data"
    try:
        root.mkdir(parents=True, exist_ok=True)
        dataset: Any = create_dataset(
            source,
            root=str(root),
            split="train" if split == "train" else "validation",
            download=source.startswith("torch/"),
            input_img_mode=mode,
        )
    # timm, torchvision and huggingface raise whatever their downloads raise, bare asserts among it.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot open `{source}`: {reason}",
            hint=f"check the name and the connection, or give a folder with {option} DIR",
        ) from error
    names = tuple(str(name) for name in getattr(dataset, "classes", ()))
    return ImageSet(TimmImages(dataset, fit, mode=mode, size=fit.size), names, f"{source} ({split} split)")

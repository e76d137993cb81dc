import argparse
import collections
import gzip
import io
import json
import pathlib
import pickle
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_files import FORMATS, TORCH_FORMATS, Marking, claim_header, write_legacy, write_safetensors, write_zip
from numpy._core.multiarray import scalar as make_scalar
from torch import nn

from lrcompress.checkpoint.read import file_sha256, read_checkpoint, read_config
from lrcompress.errors import CheckpointError


def tensors():
    torch.manual_seed(0)
    return {
        "weight": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


def assert_explained(refused, path):
    assert str(path) in refused.value.message
    assert "\n" not in refused.value.message
    assert "Re-running" not in refused.value.message  # torch advises to read the file carelessly
    assert refused.value.hint


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize(
    "name", ["weights.pt", "weights.pth", "weights.bin", "weights.ckpt", "weights.safetensors", "w"]
)
def test_tensors_come_back_whatever_the_format_and_the_name(tmp_path, write, name):
    expected = tensors()
    found = read_checkpoint(write(expected, tmp_path / name))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


HARMLESS = {
    "namespace": argparse.Namespace(model="resnet18", lr=0.1),
    "path": pathlib.Path("a") / "b",
    "pure path": pathlib.PurePosixPath("a/b"),
    "windows path": pathlib.PureWindowsPath("a\\b"),
    "ordered dict": collections.OrderedDict(b=1, a=2),
    "set": {1, 2},
    "float64": np.float64(71.25),
    "float32": np.float32(0.5),
    "int64": np.int64(3),
    "bool": np.bool_(True),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "integers": np.array([1, 2], dtype=np.int64),
    "texts": np.array(["ant", "bee"]),
    "nested": {"args": argparse.Namespace(output=pathlib.Path("x"), best=np.float64(1))},
}


@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_training_checkpoints_hold_besides_tensors_is_read(tmp_path, write, value):
    found = read_checkpoint(write({"extra": value, "weight": torch.ones(2)}, tmp_path / "file"))
    read = found["extra"]
    if isinstance(value, np.ndarray):  # dropped: nothing is taken from arrays
        assert type(read).__name__ == "InertArray"
    elif isinstance(value, np.generic):
        assert (read, type(read)) == (value.item(), type(value.item()))
    elif isinstance(value, pathlib.PurePath):
        assert read == pathlib.PurePath(value) if isinstance(value, pathlib.PosixPath) else read == value
    elif isinstance(value, dict) and "args" in value:
        assert (read["args"].best, str(read["args"].output)) == (1.0, "x")
    else:
        assert type(read) is type(value)
        assert read == value


@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
@pytest.mark.parametrize("factory", [dict, list, int, None])
@pytest.mark.parametrize("items", [{}, {"loss": [0.5]}, {"state": {"step": 3}, "other": 1}])
def test_the_items_of_a_defaultdict_are_read(tmp_path, write, factory, items):
    content = {"optimizer": collections.defaultdict(factory, items), "weight": torch.ones(2)}
    assert read_checkpoint(write(content, tmp_path / "file"))["optimizer"] == items


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_values_written_by_numpy_1_are_read(tmp_path, module):
    # The same pickle under either name of the module, as the two generations of numpy write it.
    content = write_zip({"metric": np.float64(71.25)}, tmp_path / "new").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(tmp_path / "old", "w") as renamed:
        for name in archive.namelist():
            data = archive.read(name)
            renamed.writestr(name, data.replace(b"numpy._core.multiarray", module))
    assert read_checkpoint(tmp_path / "old")["metric"] == 71.25


def network_of_layers():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Conv2d(1, 2, 3))


def test_a_pickled_network_is_refused_with_the_names_of_all_its_classes(tmp_path):
    path = write_zip({"model": network_of_layers()}, tmp_path / "network.pt")
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    for name in ("container.Sequential", "linear.Linear", "activation.ReLU", "conv.Conv2d"):
        assert f"torch.nn.modules.{name}" in refused.value.message
    assert "state_dict" in refused.value.hint
    assert_explained(refused, path)


def test_a_pickled_network_in_a_legacy_file_is_refused_with_the_name_of_a_class(tmp_path):
    path = write_legacy(network_of_layers(), tmp_path / "network.pt")
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert "torch.nn.modules.container.Sequential" in refused.value.message
    assert "state_dict" in refused.value.hint
    assert_explained(refused, path)


def test_a_torchscript_archive_is_refused_as_what_it_is(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own TorchScript outdated
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), tmp_path / "scripted.pt")
    with pytest.raises(CheckpointError, match="TorchScript") as refused:
        read_checkpoint(tmp_path / "scripted.pt")
    assert "state_dict" in refused.value.hint


def write_pickle(content, path):
    path.write_bytes(pickle.dumps(content))
    return path


CARELESS = {"zip": write_zip, "legacy": write_legacy, "plain pickle": write_pickle}


@pytest.mark.parametrize("how", ["system", "eval", "open", "mkdir"])
@pytest.mark.parametrize("write", CARELESS.values(), ids=CARELESS.keys())
@pytest.mark.parametrize("place", [lambda evil: evil, lambda evil: {"state_dict": {"w": torch.ones(2)}, "args": evil}])
def test_a_malicious_file_is_refused_and_its_code_does_not_run(tmp_path, how, write, place):
    marker = tmp_path / "marker"
    path = write(place(Marking(marker, how)), tmp_path / "evil.pt")
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert not marker.exists()
    assert_explained(refused, path)
    if write is not write_pickle:
        assert {"system": "system", "eval": "eval", "open": "io.open", "mkdir": "mkdir"}[how] in str(refused.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the opened file is never closed
@pytest.mark.parametrize("how", ["system", "eval", "open", "mkdir"])
@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
def test_the_same_file_would_run_its_code_if_it_were_read_carelessly(tmp_path, how, write):
    marker = tmp_path / "marker"
    torch.load(write(Marking(marker, how), tmp_path / "evil.pt"), weights_only=False)
    assert marker.exists()


def zip_bytes():
    buffer = io.BytesIO()
    torch.save(tensors(), buffer)
    return buffer.getvalue()


def legacy_bytes():
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def safetensors_bytes():
    from safetensors.torch import save

    return save(tensors())


def broken_directory(content):
    """Overwrites the zip archive's central directory, but not the record at its end that points to it."""
    start = content.index(b"PK\x01\x02")
    return content[:start] + b"XXXX" + content[start + 4 :]


def tar_bytes(name, content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def foreign_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


def header(text, data=b""):
    return struct.pack("<Q", len(text)) + text.encode() + data


OVERLONG = json.dumps({"w": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}})
UNKNOWN_TYPE = json.dumps({"w": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}})
DAMAGED = {
    "empty": b"",
    "one byte": b"\x80",
    "text": b"these are no weights\n" * 5,
    "zeros": bytes(1000),
    "json": b'{"weight": [1, 2, 3]}',
    "web page": b"<!doctype html><html><body>404</body></html>",
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 102\n",
    "random 1": np.random.default_rng(1).bytes(3000),
    "random 2": np.random.default_rng(2).bytes(3000),
    "random after a pickle's start": b"\x80\x02" + np.random.default_rng(3).bytes(500),
    "random after a zip's start": b"PK\x03\x04" + np.random.default_rng(4).bytes(500),
    "random after a gzip's start": b"\x1f\x8b\x08" + np.random.default_rng(5).bytes(500),
    "zip cut in the middle": zip_bytes()[: len(zip_bytes()) // 2],
    "zip without its last byte": zip_bytes()[:-1],
    "zip with a broken directory": broken_directory(zip_bytes()),
    "foreign zip": foreign_zip(),
    "gzip": gzip.compress(bytes(1000)),
    "gzip cut short": gzip.compress(np.random.default_rng(6).bytes(1000))[:-400],
    "gzipped tar cut short": gzip.compress(tar_bytes("a", np.random.default_rng(7).bytes(5000)))[:-400],
    "tar": tar_bytes("a", b"hello"),
    "tar cut short": tar_bytes("storages", bytes(2000))[:1200],
    "legacy cut in the middle": legacy_bytes()[: len(legacy_bytes()) // 2],
    "legacy without its last byte": legacy_bytes()[:-1],
    "safetensors cut in the data": safetensors_bytes()[:-1],
    "safetensors cut in the header": safetensors_bytes()[:40],
    "header longer than the file": claim_header(safetensors_bytes(), len(safetensors_bytes())),
    "header of 8 exabytes": claim_header(safetensors_bytes(), 2**63 - 1),
    "header of 16 exabytes": claim_header(safetensors_bytes(), 2**64 - 1),
    "header that is no json": header("{this is no json}"),
    "header that is cut": claim_header(safetensors_bytes(), 20),
    "tensor beyond the end": header(OVERLONG, bytes(40)),
    "tensor of unknown type": header(UNKNOWN_TYPE, bytes(4)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert_explained(refused, path)


def test_a_header_that_claims_more_bytes_than_the_file_has_is_named_as_such(tmp_path):
    path = write_safetensors(tensors(), tmp_path / "weights.safetensors")
    size = path.stat().st_size
    path.write_bytes(claim_header(path.read_bytes(), 10**12))
    with pytest.raises(CheckpointError, match=f"claims a header of {10**12} bytes but has {size} bytes"):
        read_checkpoint(path)


@pytest.mark.parametrize("make", [zip_bytes, legacy_bytes, safetensors_bytes])
def test_no_cut_and_no_flipped_byte_ends_in_anything_but_an_explained_error(tmp_path, make):
    content, generator = make(), np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    path = tmp_path / "weights"
    cuts = [content[:length] for length in generator.integers(0, len(content), 30)]
    flips = []
    for _ in range(120):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] = generator.integers(256)
        flips.append(bytes(damaged))
    for damaged in [*cuts, *flips]:
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["refused"] >= len(cuts)
    assert outcomes["read"] > 0


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at") as refused:
        read_checkpoint(tmp_path / "nowhere.pt")
    assert_explained(refused, tmp_path / "nowhere.pt")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="folder without config") as refused:
        read_checkpoint(tmp_path)
    assert_explained(refused, tmp_path)


def test_the_hash_is_that_of_the_files_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # The test vector of FIPS 180-2.
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01", '"resnet18"'])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as refused:
        read_config(tmp_path)
    assert_explained(refused, tmp_path / "config.json")


def test_a_config_in_no_known_encoding_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CheckpointError) as refused:
        read_config(tmp_path)
    assert_explained(refused, tmp_path / "config.json")


class Built:
    """A pickle of it calls a function, and sets the state of what it returns if there is one."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def structured_dtype_with_an_object():
    """numpy.dtype('V8') turned into one with an object at its start: its scalar's bytes are then an address."""
    return Built(np.dtype, "V8", False, True, state=(4, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))


# What numpy rebuilds from the file's word alone; every one of these but the plain numbers could lead astray.
SCALARS = {
    "an address as a structure": (Built(make_scalar, structured_dtype_with_an_object(), b"AAAAAAAA"), None),
    "an address as an object": (Built(make_scalar, np.dtype("O"), b"AAAAAAAA"), None),
    "object": (Built(make_scalar, np.dtype("O"), {"a": 1}), None),
    "structure": (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0], None),
    "text": (np.str_("ant"), None),
    "date": (np.datetime64("2025-05-01"), None),
    "complex": (np.complex128(1 + 2j), None),
    "too few bytes": (Built(make_scalar, np.dtype("f8"), b"AAAA"), None),
    "too many bytes": (Built(make_scalar, np.dtype("f4"), b"AAAAAAAA"), None),
    "no bytes": (Built(make_scalar, np.dtype("f8"), 3), None),
    "no type": (Built(make_scalar, "f8", b"AAAAAAAA"), None),
    "big-endian float64": (Built(make_scalar, np.dtype(">f8"), struct.pack(">d", 71.25)), 71.25),
    "big-endian int16": (Built(make_scalar, np.dtype(">i2"), b"\x01\x02"), 258),
    "little-endian int16": (Built(make_scalar, np.dtype("<i2"), b"\x01\x02"), 513),
}


@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
@pytest.mark.parametrize(("value", "expected"), SCALARS.values(), ids=SCALARS.keys())
def test_scalars_of_plain_number_types_are_read_and_all_others_are_nothing(tmp_path, write, value, expected):
    found = read_checkpoint(write({"extra": value, "weight": torch.ones(2)}, tmp_path / "file"))
    assert (found["extra"], type(found["extra"])) == (expected, type(expected))
    assert torch.equal(found["weight"], torch.ones(2))


@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
def test_a_made_up_type_or_array_makes_nothing_of_numpys(tmp_path, write):
    array = np.array([1.0, 2.0])
    content = {"dtype": structured_dtype_with_an_object(), "array": array, "weight": torch.ones(2)}
    found = read_checkpoint(write(content, tmp_path / "file"))
    for name in ("dtype", "array"):
        assert type(found[name]).__module__ == "lrcompress.checkpoint.inert"


@pytest.mark.parametrize("write", TORCH_FORMATS.values(), ids=TORCH_FORMATS.keys())
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pathlib.WindowsPath, pathlib.PureWindowsPath("C:\\data", "imagenet")),
        (pathlib.PosixPath, pathlib.PurePosixPath("C:\\data", "imagenet")),
    ],
    ids=["windows", "posix"],
)
def test_a_path_of_any_system_is_read_on_this_one(tmp_path, write, kind, expected):
    content = {"data": Built(kind, "C:\\data", "imagenet"), "weight": torch.ones(2)}
    found = read_checkpoint(write(content, tmp_path / "file"))["data"]
    assert (found, type(found)) == (expected, type(expected))  # pure: it cannot be opened

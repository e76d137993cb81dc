import ctypes
import mmap
import sys

import pytest
import torch

from lrcompress.memory import MADV_PAGEOUT, release_pages, trim_heap

PAGE = mmap.PAGESIZE
PER_PAGE = PAGE // 4  # float32


class Recorder:
    """Stands in for the C library and takes down what it is asked for."""

    def __init__(self):
        self.calls = []

    def madvise(self, address, length, advice):
        self.calls.append((address.value, length.value, advice))
        return 0

    def malloc_trim(self, pad):
        self.calls.append(("trim", pad))
        return 1


class Empty:
    """A C library that has neither function."""


@pytest.fixture
def library(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: recorder)
    monkeypatch.setattr(sys, "platform", "linux")
    return recorder


@pytest.fixture
def mapped(tmp_path):
    """Five pages of a file."""
    file = tmp_path / "values"
    values = torch.arange(5 * PER_PAGE, dtype=torch.float32)
    file.write_bytes(values.numpy().tobytes())
    return torch.from_file(str(file), shared=False, size=len(values)), values


def test_the_values_of_a_mapped_tensor_are_read_again_from_its_file(mapped):
    tensor, values = mapped
    assert torch.equal(tensor, values)
    for part in (tensor, tensor[3:-5], tensor[:1], tensor.reshape(5, -1)[:, ::2]):
        release_pages(part)
    assert torch.equal(tensor, values)


@pytest.mark.parametrize("shape", [(7,), (3, 5000), (0,), (0, 4)])
def test_the_values_of_a_tensor_in_memory_stay_as_they_are(shape):
    tensor = torch.randn(shape)
    before = tensor.clone()
    release_pages(tensor)
    trim_heap()
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(
    ("first", "last", "pages"),
    [
        (0, 5 * PER_PAGE, range(5)),
        (1, 5 * PER_PAGE, range(1, 5)),  # a page that is not all the tensor's stays
        (0, 5 * PER_PAGE - 1, range(4)),
        (PER_PAGE, 3 * PER_PAGE, range(1, 3)),
        (PER_PAGE - 1, 3 * PER_PAGE + 1, range(1, 3)),
    ],
)
def test_whole_pages_of_the_tensor_are_released_and_no_others(library, mapped, first, last, pages):
    tensor, _ = mapped
    assert tensor.data_ptr() % PAGE == 0  # as the system maps files
    release_pages(tensor[first:last])
    assert library.calls == [(tensor.data_ptr() + pages[0] * PAGE, len(pages) * PAGE, MADV_PAGEOUT)]


@pytest.mark.parametrize(("first", "last"), [(0, PER_PAGE - 1), (1, 2 * PER_PAGE - 1), (3, 4), (5, 5)])
def test_a_tensor_without_a_whole_page_is_left_alone(library, mapped, first, last):
    release_pages(mapped[0][first:last])
    assert library.calls == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8])
def test_the_length_is_counted_in_bytes(library, dtype):
    tensor = torch.zeros(4 * PAGE // dtype.itemsize, dtype=dtype)
    release_pages(tensor)
    ((address, length, _),) = library.calls
    assert address % PAGE == 0
    assert address - tensor.data_ptr() in range(PAGE)
    assert length == (4 if tensor.data_ptr() % PAGE == 0 else 3) * PAGE


def test_a_tensor_that_is_not_in_memory_has_no_pages(library):
    release_pages(torch.zeros(10**6, device="meta"))
    assert library.calls == []


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_the_hint_is_given_on_linux_only(library, mapped, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    release_pages(mapped[0])
    assert library.calls == []


def test_the_heap_is_trimmed_down_to_nothing(library):
    trim_heap()
    assert library.calls == [("trim", 0)]


def raise_an_error(name):
    raise OSError("no library")


@pytest.mark.parametrize("load", [lambda name: Empty(), raise_an_error])
def test_where_there_is_no_such_function_nothing_happens(monkeypatch, mapped, load):
    tensor, values = mapped
    monkeypatch.setattr(ctypes, "CDLL", load)
    release_pages(tensor)
    trim_heap()
    assert torch.equal(tensor, values)

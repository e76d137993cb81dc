"""Types and shapes are checked while the tests run; one thread, so that results do not depend on the machine."""

import jaxtyping

jaxtyping.install_import_hook("lrcompress", "typechecking.typechecker")

import functools  # noqa: E402
import shutil  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _fixed_numbers():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _short_timing():
    """`compress` times both models for a moment only: what it finds is no matter of tests."""
    from lrcompress.pipeline import compression

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "measure_latency", functools.partial(compression.measure_latency, seconds=0))
        yield


@pytest.fixture(scope="session")
def _made(tmp_path_factory, _short_timing):
    """A folder with a network of one's own and images, compressed without data and with fine-tuning."""
    import workshop

    from lrcompress.pipeline import CompressOptions, compress
    from lrcompress.plan import Tolerance

    folder = tmp_path_factory.mktemp("made")
    workshop.fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        load = workshop.load_options(folder.relative_to(folder))
        compress("w.pt", "out.safetensors", CompressOptions(policy=Tolerance(0.1), load=load))
        tuned = CompressOptions(load=load, data="data", training=workshop.training())
        compress("w.pt", "tuned.safetensors", tuned)
    return folder


@pytest.fixture
def shop(_made, tmp_path, monkeypatch):
    """A fresh copy of that folder, which is also the current one."""
    folder = tmp_path / "shop"
    shutil.copytree(_made, folder)
    monkeypatch.chdir(folder)
    return folder

"""Types and shapes are checked while the tests run; one thread, so that results do not depend on the machine."""

import jaxtyping

jaxtyping.install_import_hook("lrcompress", "typechecking.typechecker")

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _fixed_numbers():
    torch.set_num_threads(1)
    torch.manual_seed(0)

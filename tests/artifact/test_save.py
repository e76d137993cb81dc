import hashlib
import json
import os
import struct

import pytest
import safetensors.torch
import timm
import torch
from artifacts import FAMILIES, compressed, disturbed, family, save

from lrcompress.artifact import load, pack_artifact, save_artifact
from lrcompress.errors import ArtifactError, OutputError
from lrcompress.models import Architecture
from lrcompress.plan import Smallest, UniformRank

OWN = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.inner = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.twin = nn.Linear(16, 16)
        self.twin.weight = self.again.weight
        self.head = nn.Linear(16, 3)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("most", torch.tensor(1.0))

    def forward(self, images):
        x = torch.relu(self.first(images.flatten(1)))
        x = torch.relu(self.inner(x))
        return self.head(torch.relu(self.twin(torch.relu(self.again(x)).clamp(max=self.most))))
"""


def own_network(folder):
    """Returns a network of one's own with shared weights, and its architecture."""
    (folder / "net.py").write_text(OWN)
    namespace = {"__name__": "own"}
    exec(OWN, namespace)
    torch.manual_seed(0)
    model = namespace["Tied"]()
    model.steps.fill_(7)
    return model, Architecture("custom", f"{folder / 'net.py'}:Tied")


def timm_network(name, size, **arguments):
    torch.manual_seed(0)
    # Statistics as after training: not the ones that any new network has.
    model = disturbed(timm.create_model(name, num_classes=10, **arguments))
    return model, Architecture("timm", name, {"num_classes": 10, **arguments}), (3, size, size)


NETWORKS = {
    "resnet": lambda folder: timm_network("resnet18", 32, channels=[8, 12, 16, 24]),
    "vit": lambda folder: timm_network("vit_tiny_patch16_224", 32, img_size=32, depth=2),
    "efficientnet": lambda folder: timm_network("test_efficientnet", 32),
    "own, with shared weights": lambda folder: (*own_network(folder), (3, 2, 2)),
}


def arch_of(architecture):
    return architecture.name if architecture.framework == "custom" else None


def assert_same_logits(dense, model, path, architecture, size):
    loaded = load(path, arch=arch_of(architecture))
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(loaded(images), expected)
        assert not torch.equal(dense(images), expected)
    assert {v.dtype for v in loaded.state_dict().values() if v.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_logits_of_the_file_are_those_of_the_model_in_memory_bit_for_bit(tmp_path, make, dtype):
    dense, architecture, size = make(tmp_path)
    model, manifest = compressed(dense, architecture, size, dtype=dtype, scheme="auto", policy=Smallest())
    assert any(layer.scheme != "dense" for layer in manifest.layers)
    save(tmp_path / "out.safetensors", model, manifest)
    assert_same_logits(dense, model, tmp_path / "out.safetensors", architecture, size)


# Families of networks with a layer that a scheme fits; the matrix form fits some layer of each.
FORMS = [
    *((name, "matrix") for name in FAMILIES),
    *((name, scheme) for name in ("standardised", "one and three axes") for scheme in ("spatial", "tucker2")),
    ("grouped", "tucker2"),
    *((name, "split") for name in ("multihead attention", "swin", "swin v2", "beit")),
]


@pytest.mark.parametrize(("name", "scheme"), FORMS)
def test_every_form_of_layer_and_every_stand_in_is_loaded_bit_for_bit(tmp_path, name, scheme):
    dense, architecture, size = family(name)
    model, manifest = compressed(dense, architecture, size, policy=UniformRank(2), scheme=scheme)
    assert scheme in {layer.scheme for layer in manifest.layers}
    save(tmp_path / "out.safetensors", model, manifest)
    assert_same_logits(dense, model, tmp_path / "out.safetensors", architecture, size)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_whose_layers_all_stay_dense_is_loaded_without_stand_ins(tmp_path, name):
    dense, architecture, size = family(name)
    model, manifest = compressed(dense, architecture, size, policy=UniformRank(10**6))
    save(tmp_path / "out.safetensors", model, manifest)
    loaded = load(tmp_path / "out.safetensors", arch=architecture.name)
    assert [type(module) for module in loaded.modules()] == [type(module) for module in dense.modules()]
    images = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.equal(loaded(images), dense(images))


@pytest.mark.parametrize(
    ("name", "scheme"), [("resnet", "auto"), ("vit", "split"), ("own, with shared weights", "matrix")]
)
def test_the_same_model_gives_the_same_bytes(tmp_path, name, scheme):
    digests = set()
    for file in ("one.safetensors", "two.safetensors"):
        dense, architecture, size = NETWORKS[name](tmp_path)
        save(tmp_path / file, *compressed(dense, architecture, size, scheme=scheme, policy=Smallest()))
        digests.add(hashlib.sha256((tmp_path / file).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_what_is_packed_is_what_is_written_and_is_not_a_copy(tmp_path):
    dense, architecture, size = timm_network("test_resnet", 32)
    model, manifest = compressed(dense, architecture, size)
    packed = pack_artifact(model, manifest)
    save_artifact(tmp_path / "out.safetensors", packed)
    content = (tmp_path / "out.safetensors").read_bytes()
    assert b"".join(packed.content()) == content
    assert (packed.size, packed.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    own = {value.data_ptr() for value in model.state_dict().values()}
    assert {value.data_ptr() for value in packed.tensors.values()} <= own
    # Piece by piece: no piece is more than a tensor, or the header.
    largest = max(value.nbytes for value in packed.tensors.values())
    assert all(len(piece) <= largest for piece in list(packed.content())[1:])


@pytest.mark.parametrize(("name", "scheme"), [("standardised", "tucker2"), ("beit", "split"), ("swin v2", "matrix")])
def test_the_file_is_read_by_safetensors_with_equal_tensors_each_at_a_multiple_of_its_size(tmp_path, name, scheme):
    dense, architecture, size = family(name)
    model, manifest = compressed(dense, architecture, size, policy=UniformRank(2), scheme=scheme)
    save(tmp_path / "out.safetensors", model, manifest)
    read = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert dict.fromkeys(read, True) == {key: torch.equal(read[key], v) for key, v in model.state_dict().items()}
    content = (tmp_path / "out.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for key, value in read.items():
        begin, end = header[key]["data_offsets"]
        assert (8 + length + begin) % value.element_size() == 0
        assert end - begin == value.nbytes
    assert max(header[key]["data_offsets"][1] for key in read) == len(content) - 8 - length


def test_the_file_is_an_ordinary_safetensors_file_with_the_sources_names(tmp_path):
    dense, architecture, size = timm_network("test_resnet", 32)
    model, manifest = compressed(dense, architecture, size)
    save(tmp_path / "out.safetensors", model, manifest)
    tensors = safetensors.torch.load_file(tmp_path / "out.safetensors")
    replaced = {layer.name for layer in manifest.layers if layer.scheme == "matrix"}
    source = dense.state_dict()
    kept = [name for name in source if name.rpartition(".")[0] not in replaced]
    assert 0 < len(kept) < len(source)
    for name in kept:
        assert torch.equal(tensors[name], source[name]), name
    for name in replaced:
        product = tensors[f"{name}.expand.weight"].flatten(1) @ tensors[f"{name}.reduce.weight"].flatten(1)
        assert product.shape == source[f"{name}.weight"].flatten(1).shape
        assert f"{name}.weight" not in tensors


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_weights_are_stored_in_the_type_of_the_source(tmp_path, dtype, width):
    dense, architecture = own_network(tmp_path)
    save(tmp_path / "out.safetensors", *compressed(dense, architecture, (3, 2, 2), dtype=dtype))
    tensors = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert {value.element_size() for name, value in tensors.items() if name != "steps"} == {width}
    assert (tensors["steps"].dtype, int(tensors["steps"])) == (torch.int64, 7)


def test_shared_weights_are_stored_once_and_stay_shared(tmp_path):
    dense, architecture = own_network(tmp_path)
    final = save(tmp_path / "out.safetensors", *compressed(dense, architecture, (3, 2, 2)))
    tensors = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert ("again.weight" in tensors) != ("twin.weight" in tensors)
    assert dict(final.shared) == {"twin.weight": "again.weight"}
    loaded = load(tmp_path / "out.safetensors", arch=architecture.name)
    assert loaded.twin.weight is loaded.again.weight


def test_the_header_is_sorted_json_padded_to_eight_bytes(tmp_path):
    dense, architecture = own_network(tmp_path)
    save(tmp_path / "out.safetensors", *compressed(dense, architecture, (3, 2, 2)))
    content = (tmp_path / "out.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert list(header) == sorted(header)
    assert header["__metadata__"]["format"] == "pt"
    manifest = json.loads(header["__metadata__"]["lrcompress"])
    assert manifest["schema"] == 2
    assert list(manifest) == sorted(manifest)


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("existing", [None, b"the old file"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ArtifactError("the disk lies")]
)
def test_a_write_that_fails_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path, monkeypatch, existing, error):
    dense, architecture = own_network(tmp_path)
    model, manifest = compressed(dense, architecture, (3, 2, 2))
    if existing:
        (tmp_path / "out.safetensors").write_bytes(existing)
    before = listing(tmp_path)

    def failing(_):
        raise error

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        save(tmp_path / "out.safetensors", model, manifest)
    assert listing(tmp_path) == before


def test_a_file_that_does_not_read_back_as_the_model_is_not_kept(tmp_path, monkeypatch):
    dense, architecture = own_network(tmp_path)
    model, manifest = compressed(dense, architecture, (3, 2, 2))
    (tmp_path / "out.safetensors").write_bytes(b"the old file")
    before = listing(tmp_path)

    def damaging(_, sync=os.fsync):
        for file in tmp_path.glob(".out*"):
            content = bytearray(file.read_bytes())
            content[-3] ^= 1
            file.write_bytes(content)

    monkeypatch.setattr(os, "fsync", damaging)
    with pytest.raises(ArtifactError, match="the written file differs from the model"):
        save(tmp_path / "out.safetensors", model, manifest)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_type_is_not_to_blame_for_values_that_are_not_finite_before_they_are_stored(tmp_path, value):
    dense, architecture = own_network(tmp_path)
    with torch.no_grad():
        dense.head.weight[1, 2] = value
    model, manifest = compressed(dense, architecture, (3, 2, 2))
    with pytest.raises(ArtifactError, match=r"^`head\.weight` is not finite$") as refused:
        pack_artifact(model, manifest)
    assert refused.value.hint


@pytest.mark.parametrize("value", [7e4, -7e4])
def test_values_that_overflow_the_type_they_are_stored_in_are_refused_by_name(tmp_path, value):
    dense, architecture = own_network(tmp_path)
    with torch.no_grad():
        dense.head.weight[1, 2] = value  # the largest of float16 is 65504
    model, manifest = compressed(dense, architecture, (3, 2, 2), dtype="float16")
    with pytest.raises(ArtifactError, match=r"`head\.weight` does not fit into float16") as refused:
        pack_artifact(model, manifest)
    assert "float32" in refused.value.hint
    for dtype in ("float32", "bfloat16"):
        pack_artifact(*compressed(dense, architecture, (3, 2, 2), dtype=dtype))


def test_limits_that_do_not_limit_are_kept_and_what_is_no_number_is_not(tmp_path):
    dense, architecture = own_network(tmp_path)
    dense.most.fill_(float("inf"))
    model, manifest = compressed(dense, architecture, (3, 2, 2))
    save(tmp_path / "out.safetensors", model, manifest)
    loaded = load(tmp_path / "out.safetensors", arch=architecture.name)
    assert float(loaded.most) == float("inf")
    model.most.fill_(float("nan"))
    with pytest.raises(ArtifactError, match="`most` is not finite"):
        pack_artifact(model, manifest)


def test_a_variance_that_has_overflowed_is_no_limit(tmp_path):
    dense, architecture, size = NETWORKS["resnet"](tmp_path)
    dense.bn1.running_var[0] = float("inf")
    model, manifest = compressed(dense, architecture, size)
    with pytest.raises(ArtifactError, match=r"`bn1\.running_var` is not finite"):
        pack_artifact(model, manifest)

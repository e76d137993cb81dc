import json
from importlib import metadata

import pytest
from artifacts import changed, compressed, family
from networks import tiny_cnn

from lrcompress.artifact import Manifest, installed_versions
from lrcompress.errors import ArtifactError
from lrcompress.models import Architecture


@pytest.fixture
def manifest():
    return compressed(tiny_cnn(), Architecture("custom", "net.py:build", {"width": 3}), (3, 8, 8), tol=0.1)[1]


def test_a_manifest_is_the_same_after_a_trip_through_its_text(manifest):
    manifest = changed(manifest, class_names=("ant", "<bee>"), shared={"a": "b"}, tensors_sha256="12")
    assert Manifest.loads(manifest.dumps(), "file") == manifest


def test_a_manifest_of_the_first_schema_is_read_with_one_rank_per_layer(manifest):
    values = json.loads(manifest.dumps()) | {"schema": 1}
    for layer in values["layers"]:
        if "ranks" in layer:
            (layer["rank"],) = layer.pop("ranks")
            del layer["parameters"]
    old = Manifest.loads(json.dumps(values), "file")
    factorized = [layer for layer in old.layers if layer.scheme == "matrix"]
    assert [(layer.name, layer.ranks) for layer in factorized] == [("3", (3,)), ("6", (3,)), ("9", (3,))]
    assert (factorized[0].parameters, factorized[2].parameters) == (3 * (12 + 72), 3 * (16 + 12))
    assert old.architecture == manifest.architecture


def test_ranks_of_several_modes_are_the_same_after_a_trip_through_the_text():
    model, architecture, size = family("standardised")
    manifest = compressed(model, architecture, size, scheme="tucker2")[1]
    assert ("tucker2", (3, 3)) in {(layer.scheme, layer.ranks) for layer in manifest.layers}
    assert Manifest.loads(manifest.dumps(), "file") == manifest


def test_the_text_is_sorted_and_does_not_depend_on_the_order_of_values(manifest):
    one = changed(manifest, recipe={"a": 1, "b": {"c": 2, "d": 3}})
    other = changed(manifest, recipe={"b": {"d": 3, "c": 2}, "a": 1})
    assert one.dumps() == other.dumps()
    assert list(json.loads(one.dumps())) == sorted(json.loads(one.dumps()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_manifest_never_holds_what_json_does_not_know(manifest, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        changed(manifest, recipe={"loss": value}).dumps()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '"text"'])
def test_a_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(ArtifactError, match="the manifest in `file` is damaged") as refused:
        Manifest.loads(text, "file")
    assert refused.value.hint


@pytest.mark.parametrize("schema", [0, 3, 99, None, "2"])
def test_a_schema_that_is_not_known_is_refused(manifest, schema):
    values = json.loads(manifest.dumps()) | {"schema": schema}
    with pytest.raises(ArtifactError, match=f"`file` has schema {schema}") as refused:
        Manifest.loads(json.dumps(values), "file")
    assert refused.value.hint == "upgrade lrcompress"


def test_versions_are_those_that_are_installed():
    assert installed_versions() == {n: metadata.version(n) for n in ("lrcompress", "timm", "torch", "torchvision")}

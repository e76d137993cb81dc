import dataclasses
import json
import math

import pytest

from lrcompress.robustness import AttackOutcome, Distances, Evaluation, Finding, ModelOutcome

CLEAN = {"baseline": "1111101110", "compressed": "1111001111"}
WORST = {"baseline": ("1110001000", "1000001000"), "compressed": ("1111000000", "0000000000")}


def flags(text):
    return tuple(bit == "1" for bit in text)


def evaluation(roles=("baseline", "compressed"), *, attacked=True):
    models = tuple(
        ModelOutcome(
            role,
            f"sha of {role}",
            flags(CLEAN[role]),
            tuple(AttackOutcome(n, (0.1, 0.2), tuple(map(flags, WORST[role]))) for n in ("pgd", "worst"))
            if attacked
            else (),
            1.23456,
        )
        for role in roles
    )
    settings = {"attacks": ["pgd"] if attacked else [], "steps": 3}
    return Evaluation(
        "the data", 10, "linf", settings, 7, models, (Finding("inconclusive", "few images", "few-images"),)
    )


def wilson(k, n, z=1.959963984540054):
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    return [centre - half, centre + half]


def assert_consistent(row, bits):
    assert row["bits"] == bits
    assert row["correct"] == bits.count("1")
    assert row["accuracy"] == bits.count("1") / len(bits)
    assert row["interval"] == pytest.approx(wilson(bits.count("1"), len(bits)), abs=1e-12)


def test_bits_counts_shares_and_intervals_agree():
    values = json.loads(json.dumps(evaluation().to_json(), allow_nan=False))
    for role in ("baseline", "compressed"):
        model = values["models"][role]
        assert model["sha256"] == f"sha of {role}"
        assert_consistent(model["clean"], CLEAN[role])
        for name in ("pgd", "worst"):
            assert [row["eps"] for row in model["attacks"][name]] == [0.1, 0.2]
            for row, bits in zip(model["attacks"][name], WORST[role], strict=True):
                assert_consistent(row, bits)


def test_models_are_compared_image_by_image():
    paired = evaluation().to_json()["paired"]
    # Clean: image 6 is lost, image 10 gained; at the first radius image 7 is lost and image 4 gained.
    assert (paired["clean"]["lost"], paired["clean"]["gained"], paired["clean"]["p_value"]) == (1, 1, 1.0)
    assert [(row["eps"], row["lost"], row["gained"]) for row in paired["attacks"]["worst"]] == [
        (0.1, 1, 1),
        (0.2, 2, 0),
    ]
    assert paired["attacks"]["worst"][1]["p_value"] == pytest.approx(0.5)


def test_without_a_baseline_nothing_is_compared():
    values = evaluation(("compressed",)).to_json()
    assert "paired" not in values
    assert set(values["models"]) == {"compressed"}


def test_without_attacks_only_clean_accuracy_is_compared():
    values = evaluation(attacked=False).to_json()
    assert values["paired"]["attacks"] == {}
    assert values["models"]["compressed"]["attacks"] == {}


def test_settings_seed_data_and_doubts_are_told():
    values = evaluation().to_json()
    assert (values["data"], values["images"], values["norm"], values["seed"]) == ("the data", 10, "linf", 7)
    assert values["findings"] == [
        {"severity": "inconclusive", "message": "few images", "check": "few-images", "model": None}
    ]
    assert values["settings"]["steps"] == 3
    assert "sampling of images only" in values["interval"]


def test_a_model_is_found_by_its_role():
    assert evaluation().model("baseline").sha256 == "sha of baseline"
    assert evaluation(("compressed",)).model("baseline") is None


def test_each_class_is_told_apart():
    labels = (0, 0, 0, 0, 0, 2, 2, 2, 2, 2)
    values = dataclasses.replace(evaluation(), labels=labels, class_names=("a", "b", "c")).to_json()
    assert (values["labels"], values["class_names"]) == (list(labels), ["a", "b", "c"])
    first, second = values["per_class"]
    assert (first["class"], first["images"], second["class"], second["images"]) == (0, 5, 2, 5)
    assert first["baseline"] == {"clean": 1.0, "worst": [0.6, 0.2]}
    assert second["compressed"] == {"clean": 0.8, "worst": [0.0, 0.0]}
    assert "per_class" not in evaluation().to_json()


def test_distances_are_told_with_quartiles_that_know_of_what_was_not_found():
    distances = Distances("l2", (0.0, 0.5, None, 0.2, None, None, 0.4, 0.3))
    model = ModelOutcome(
        "compressed", "sha", (True,) * 8, (AttackOutcome("fmn", (0.1,), ((True,) * 8,), distances),), 1.0
    )
    values = Evaluation("the data", 8, "l2", {"attacks": ["fmn"]}, 0, (model,), ()).to_json()
    told = values["models"]["compressed"]["distances"]["fmn"]
    assert told == {
        "norm": "l2",
        "median": 0.5,
        "quartiles": [0.3, 0.5, None],
        "found": 5,
        "values": [0.0, 0.5, None, 0.2, None, None, 0.4, 0.3],
    }

import pytest
from report_values import paper_evaluation, plain_evaluation, report_with

from lrcompress.report import GatePolicy, compare_reports, comparison_rows, judge, parse_gate

SIZES = {"bytes": 400, "parameters": 100, "macs": 1000}


def report(*evaluations, **changes):
    return report_with(*evaluations, **changes)


def sized(factor, **changes):
    size = report()["size"]
    return report(size=size | {"compressed": {key: int(value * factor) for key, value in SIZES.items()}}, **changes)


def test_sizes_are_those_of_the_second_model_against_the_first():
    comparison = compare_reports(sized(1), sized(0.5))
    assert comparison["size"]["removed"] == {"bytes": 0.5, "parameters": 0.5, "macs": 0.5}
    assert comparison_rows(comparison)[0] == ("bytes", "400", "200", "-50.0 %")
    assert comparison_rows(compare_reports(sized(0.5), sized(1)))[0] == ("bytes", "200", "400", "+100.0 %")


def test_flips_are_counted_between_the_compressed_models_on_the_same_images():
    # The first model is right on images 0–889, the second on 20–894: 20 lost, 5 gained.
    first, second = plain_evaluation(), plain_evaluation(clean=(900, 875), first=20)
    comparison = compare_reports(report(first), report(second))
    (evaluation,) = comparison["evaluations"]
    pair = evaluation["paired"]["clean"]
    assert (pair["lost"], pair["gained"], pair["difference"]) == (20, 5, pytest.approx(-0.015))
    assert evaluation["models"]["baseline"]["clean"]["correct"] == 890
    row = next(row for row in comparison_rows(comparison) if row[0].startswith("clean"))
    assert row[1].startswith("89.00 %")
    assert row[2].startswith("87.50 %")
    assert row[3].startswith("-1.50 points (20 lost, 5 gained, McNemar p = ")


OTHER = {
    "data": ({"data": "others"}, "not the same images"),
    "seed": ({"seed": 1}, "not the same images: another number or seed"),
    "number": (
        {"images": 500, "clean": (450, 445), "robust": ((300, 150), (295, 140))},
        "not the same images: another number or seed",
    ),
    "labels": ({"labels": [1] * 1000}, "not the same images: other pixels or labels under the same name"),
}


@pytest.mark.parametrize(("change", "told"), OTHER.values(), ids=OTHER.keys())
def test_other_images_are_not_paired(change, told):
    first, second = plain_evaluation(labels=[0] * 1000), plain_evaluation(**{"labels": [0] * 1000, **change})
    comparison = compare_reports(report(first), report(second))
    assert "paired" not in comparison["evaluations"][0]
    assert list(comparison["evaluations"][0]["models"]) == ["compressed"]
    assert len(comparison["only_first"]) == 1
    lines = comparison_rows(comparison)
    assert any(line[1] == "-" and line[3] == told for line in lines)
    theirs = [line[0] for line in lines if line[2] == "-"]
    assert theirs == [line[0] for line in lines if line[1] == "-"]  # attacks as well as clean images
    assert {"clean", "pgd@8/255 ℓ∞"} <= set(theirs)


def hashed(letter, **changes):
    return plain_evaluation(images_sha256=letter * 64, **changes)


def test_images_of_one_hash_are_the_same_whatever_their_place_is_called():
    comparison = compare_reports(report(hashed("a")), report(hashed("a", data="elsewhere")))
    assert comparison["evaluations"][0]["paired"]["clean"]
    assert comparison["only_first"] == []


def test_images_of_another_hash_are_others_whatever_their_place_is_called():
    first, second = report(hashed("a")), report(hashed("b"))
    (evaluation,) = compare_reports(first, second)["evaluations"]
    assert "paired" not in evaluation
    (outcome,) = judge(compare_reports(first, second), GatePolicy((parse_gate("clean.drop > 5", attacks=[]),)))
    assert outcome["outcome"] == "FAIL"
    assert outcome["message"].endswith("not the same images: other pixels or labels under the same name")


@pytest.mark.parametrize(
    "change", [{"input_size": [1, 9, 9]}, {"crop_pct": 0.5}, {"interpolation": "nearest"}], ids=str
)
def test_where_pictures_are_fitted_otherwise_the_hash_says_nothing(change):
    second = report(hashed("b"))
    second["preprocessing"] = second["preprocessing"] | change
    (evaluation,) = compare_reports(report(hashed("a")), second)["evaluations"]
    assert evaluation["paired"]["clean"]


def names(comparison):
    rows = comparison_rows(comparison)
    start = next(index for index, row in enumerate(rows) if not any(row[1:]))
    return {row[0] for row in rows[start + 1 :] if "of the first only" not in row[3]}


def with_settings(**changes):
    values = plain_evaluation()
    values["settings"] = {**values["settings"], **changes}
    return values


def test_attacks_are_paired_where_they_were_as_strong():
    strong = compare_reports(report(with_settings(batch_size=1)), report(with_settings(batch_size=9)))
    assert names(strong) == {"clean"} | {f"{a}@{e} ℓ∞" for a in ("fgsm", "pgd", "worst") for e in ("4/255", "8/255")}
    weaker = compare_reports(report(with_settings(steps=5)), report(plain_evaluation()))
    assert names(weaker) == {"clean", "fgsm@4/255 ℓ∞", "fgsm@8/255 ℓ∞"}  # FGSM has one step always
    other_norm = compare_reports(report(plain_evaluation(norm="l2")), report(plain_evaluation()))
    assert names(other_norm) == {"clean"}


def test_settings_of_attacks_that_only_one_of_both_ran_do_not_count():
    more = with_settings(attacks=["fgsm", "pgd", "square"], queries=500, foolbox="3.3.4 for fmn")
    assert "pgd@4/255 ℓ∞" in names(compare_reports(report(more), report(plain_evaluation())))
    assert "worst@4/255 ℓ∞" not in names(compare_reports(report(more), report(plain_evaluation())))


def test_the_worst_case_is_compared_only_over_the_same_attacks():
    fewer = with_settings(attacks=["pgd"])
    for model in fewer["models"].values():
        del model["attacks"]["fgsm"]
    compared = compare_reports(report(fewer), report(plain_evaluation()))
    assert names(compared) == {"clean", "pgd@4/255 ℓ∞", "pgd@8/255 ℓ∞"}


def test_attacks_with_an_eps_of_their_own_are_compared_where_images_are_normalised_alike():
    apart = {f"paper-jitter@{4 * n / 255:.4g} (pixels ≤ {0.8 * n:.3g}/255) ℓ∞" for n in (1, 2)}
    usual = {"clean"} | {f"{a}@{e} ℓ∞" for a in ("fgsm", "pgd", "worst") for e in ("4/255", "8/255")}
    assert names(compare_reports(report(paper_evaluation()), report(paper_evaluation()))) == usual | apart
    assert names(compare_reports(report(paper_evaluation(0.3)), report(paper_evaluation()))) == usual
    assert names(compare_reports(report(plain_evaluation(data="paper's")), report(paper_evaluation()))) == usual


def with_radii(part, *, distances=None):
    evaluation = plain_evaluation()
    for model in evaluation["models"].values():
        model["attacks"] = {name: rows[part] for name, rows in model["attacks"].items()}
        model["distances"] = distances or {}
    return evaluation


def test_radii_are_compared_up_to_the_first_that_only_one_has():
    """What withstands 8/255 after 4/255 was tried has withstood more than what was tried at 8/255 alone."""
    every, small, large = with_radii(slice(None)), with_radii(slice(0, 1)), with_radii(slice(1, 2))
    assert names(compare_reports(report(small), report(every))) == {
        "clean", "fgsm@4/255 ℓ∞", "pgd@4/255 ℓ∞", "worst@4/255 ℓ∞",
    }  # fmt: skip
    assert names(compare_reports(report(large), report(every))) == {"clean"}
    assert names(compare_reports(report(every), report(large))) == {"clean"}
    assert "pgd@8/255 ℓ∞" in names(compare_reports(report(every), report(every)))


def test_attacks_that_look_for_the_nearest_mistake_are_compared_at_all_common_radii():
    found = {"pgd": {"norm": "linf", "median": None, "quartiles": [None] * 3, "found": 0, "values": [None] * 1000}}
    every, large = (with_radii(part, distances=found) for part in (slice(None), slice(1, 2)))
    assert names(compare_reports(report(large), report(every))) == {"clean", "pgd@8/255 ℓ∞"}


def test_clean_images_of_several_attacks_are_shown_once():
    both = [plain_evaluation(), plain_evaluation(norm="l2")]
    lines = comparison_rows(compare_reports(report(*both), report(*both)))
    assert sum(line[0] == "clean" for line in lines) == 1
    assert sum("images of" in line[0] for line in lines) == 1


LATENCY = {
    "baseline_ms": 10.0, "compressed_ms": 5.0, "ratio": 0.5, "ratio_quartiles": [0.4, 0.625], "batch_size": 1,
    "rounds": 9, "device": "cpu, 1 thread",
}  # fmt: skip


def test_latencies_are_compared_through_the_same_original():
    faster = LATENCY | {"ratio": 0.25, "ratio_quartiles": [0.25, 0.4], "rounds": 5}
    latency = compare_reports(sized(1, latency=LATENCY), sized(1, latency=faster))["latency"]
    assert (latency["ratio"], latency["rounds"]) == (0.5, 5)
    assert latency["ratio_quartiles"] == pytest.approx([0.25 / 0.625, 0.4 / 0.4])


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"batch_size": 8}, None, "source"])
def test_latencies_of_other_circumstances_are_not(change):
    other = report(latency=None if change is None else LATENCY | (change if isinstance(change, dict) else {}))
    if change == "source":
        other["source"]["sha256"] = "other"
    assert compare_reports(report(latency=LATENCY), other)["latency"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("clean.drop > 5", "PASS"), ("clean.drop > 0.1", "FAIL"), ("pgd@4/255.drop > 9", "PASS"),
     ("size.bytes > 60", "PASS"), ("size.bytes > 40", "FAIL"),
     ("clean.accuracy < 80", "PASS"), ("latency.ratio > 9", "FAIL")],
)  # fmt: skip
def test_gates_read_a_comparison_like_a_report(text, expected):
    size = report()["size"]
    half = size | {"compressed": {key: value // 2 for key, value in SIZES.items()}}
    first = report(plain_evaluation(), size=size | {"compressed": SIZES}, latency=None)
    second = report(plain_evaluation(clean=(900, 875)), size=half, latency=None)
    (outcome,) = judge(compare_reports(first, second), GatePolicy((parse_gate(text, attacks=["pgd"]),)))
    assert outcome["outcome"] == expected


def test_attacks_of_other_strength_stand_under_a_heading_of_their_own():
    weak, strong = plain_evaluation(), plain_evaluation()
    strong["settings"] = strong["settings"] | {"steps": 99}
    headings = [
        row[0]
        for row in comparison_rows(compare_reports(report(weak, strong), report(weak, strong)))
        if not any(row[1:])
    ]
    assert len(headings) == 2
    assert "99 steps" in headings[1]
    assert "99 steps" not in headings[0]

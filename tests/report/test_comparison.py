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
    "data": {"data": "others"},
    "seed": {"seed": 1},
    "number": {"images": 500, "clean": (450, 445), "robust": ((300, 150), (295, 140))},
    "labels": {"labels": [1] * 1000},
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER.keys())
def test_other_images_are_not_paired(change):
    first, second = plain_evaluation(labels=[0] * 1000), plain_evaluation(**{"labels": [0] * 1000, **change})
    comparison = compare_reports(report(first), report(second))
    assert "paired" not in comparison["evaluations"][0]
    assert list(comparison["evaluations"][0]["models"]) == ["compressed"]
    assert len(comparison["only_first"]) == 1
    lines = comparison_rows(comparison)
    assert any(line[1] == "-" and line[3] == "not the same images" for line in lines)
    assert any(line[2] == "-" for line in lines)


def names(comparison):
    return {row[0].partition(",")[0] for row in comparison_rows(comparison) if "images of" in row[0]}


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


def test_radii_that_only_one_has_are_left_out():
    fewer = plain_evaluation()
    for model in fewer["models"].values():
        model["attacks"] = {name: rows[1:] for name, rows in model["attacks"].items()}
    assert "pgd@4/255 ℓ∞" not in names(compare_reports(report(fewer), report(plain_evaluation())))
    assert "pgd@8/255 ℓ∞" in names(compare_reports(report(fewer), report(plain_evaluation())))


def test_clean_images_of_several_attacks_are_shown_once():
    both = [plain_evaluation(), plain_evaluation(norm="l2")]
    lines = comparison_rows(compare_reports(report(*both), report(*both)))
    assert sum(line[0].startswith("clean") for line in lines) == 1


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

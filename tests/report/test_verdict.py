import pytest
from reports import evaluation

from lrcompress.report import accuracy_sentences, verdict
from lrcompress.report.upgrade import upgrade_evaluation
from lrcompress.robustness import Finding

SIZE = {
    "baseline": {"bytes": 4_000_000, "parameters": 1000, "macs": 2000},
    "compressed": {"bytes": 1_000_000, "parameters": 200, "macs": 900},
    "removed": {"bytes": 0.75, "parameters": 0.8, "macs": 0.55},
}
LAYERS = [
    {"name": "a", "relative_error": 0.04},
    {"name": "b", "relative_error": 0.09},
    {"name": "c", "reason": "depthwise"},
]


def report(*evaluations, **values):
    base = {
        "size": SIZE,
        "source": {"weight_bytes": 3_990_000},
        "dtype": "float32",
        "layers": LAYERS,
        "recipe": {"guaranteed_tol": 0.1},
        "latency": None,
    }
    return {**base, "evaluations": [upgrade_evaluation(e.to_json()) for e in evaluations], **values}


def test_size_and_guarantee_come_first():
    size, guarantee, accuracy = verdict(report())
    assert size == (
        "The file is 75.0 % smaller (4,000,000 → 1,000,000 bytes); of the whole model 80.0 % of the parameters and "
        "55.0 % of the multiply-accumulates are gone."
    )
    assert guarantee == "2 layers are factorised, each within a relative error of 0.1 (largest 0.0900)."
    assert accuracy.startswith("Accuracy was not measured")


@pytest.mark.parametrize(("removed", "told"), [(-0.01, True), (0.049, True), (0.051, False)])
def test_a_tolerance_that_removes_next_to_nothing_is_told_how_to_remove_more(removed, told):
    size = {**SIZE, "removed": {**SIZE["removed"], "parameters": removed}}
    assert ("--budget 0.5 --calibrate DIR" in verdict(report(size=size))[1]) == told


def test_after_fine_tuning_no_error_is_promised():
    tuned = {"guaranteed_tol": None, "fine_tuning": {}}
    assert verdict(report(recipe=tuned))[1] == "2 layers are factorised and fine-tuned."


def test_where_no_error_is_promised_the_largest_is_told():
    said = verdict(report(recipe={"guaranteed_tol": None}))[1]
    assert said == "2 layers are factorised; their largest relative error is 0.0900."


def test_what_makes_a_training_doubtful_is_told_after_what_was_done():
    warnings = ["the loss has risen from 1 to 99 by step 7 of 9", "training lost 12.00 points"]
    sentences = verdict(report(recipe={"guaranteed_tol": None, "fine_tuning": {"warnings": warnings}}))
    assert sentences[1:4] == ["2 layers are factorised and fine-tuned.", *[f"WARNING: {text}." for text in warnings]]


def test_a_single_layer_is_told_in_the_singular():
    one, tuned = LAYERS[1:], {"guaranteed_tol": None, "fine_tuning": {}}
    assert verdict(report(layers=one))[1] == "1 layer is factorised within a relative error of 0.1 (0.0900)."
    assert verdict(report(layers=one, recipe=tuned))[1] == "1 layer is factorised and fine-tuned."
    said = verdict(report(layers=one, recipe={"guaranteed_tol": None}))[1]
    assert said == "1 layer is factorised; its relative error is 0.0900."


def test_a_tolerance_that_was_computed_is_rounded():
    said = verdict(report(recipe={"guaranteed_tol": 0.1**0.5}))[1]
    assert said == "2 layers are factorised, each within a relative error of 0.316228 (largest 0.0900)."


TOO_SMALL = [{"name": "a", "reason": "what was asked for does not …; the smallest relative error is 0.412"}]


@pytest.mark.parametrize(
    ("layers", "plan", "why"),
    [
        (LAYERS[2:], {"name": "tolerance"}, "the report has the reason of each."),
        (TOO_SMALL, {"name": "tolerance"}, "none would have become smaller. The reason of a layer names the relative "
         "error at which it would."),
        (LAYERS[2:], {"name": "budget"}, "the whole network is within the budget."),
        (LAYERS[2:], {"name": "plan", "made_by": {"name": "budget"}}, "the report has the reason of each."),
    ],
    ids=["excluded", "tolerance", "budget", "plan"],
)  # fmt: skip
def test_a_model_without_factorised_layers_says_why(layers, plan, why):
    said = verdict(report(layers=layers, recipe={"guaranteed_tol": None, "plan": plan}))[1]
    assert said == f"No layer was factorised: {why}"


@pytest.mark.parametrize(("compressed", "words"), [(4_000_100, "0.0 % larger"), (4_400_000, "10.0 % larger")])
def test_a_file_that_grew_is_called_larger(compressed, words):
    size = {"compressed": {**SIZE["compressed"], "bytes": compressed}}
    size["removed"] = {**SIZE["removed"], "bytes": 1 - compressed / 4_000_000}
    said = verdict(report(size={**SIZE, **size}))[0]
    assert said.startswith(f"The file is {words} (4,000,000 → {compressed:,} bytes); ")


SEARCHED = {"name": "max drop", "points": 9.5, "images": 2000}


@pytest.mark.parametrize("plan", [SEARCHED, {"name": "plan", "made_by": SEARCHED}], ids=["at once", "plan"])
def test_a_drop_larger_than_the_one_that_was_searched_for_is_told(plan):
    said = verdict(report(evaluation(), recipe={"guaranteed_tol": None, "plan": plan}))
    assert said[3] == (
        "WARNING: 10.00 points are lost on these 20 images, more than the 9.5 allowed: the search measured on 2,000 "
        "training images."
    )


@pytest.mark.parametrize(
    ("plan", "baseline"),
    [({**SEARCHED, "points": 10}, True), (SEARCHED, False), ({"name": "tolerance"}, True)],
    ids=["within", "no baseline", "no search"],
)
def test_a_drop_within_what_was_searched_for_is_not(plan, baseline):
    said = verdict(report(evaluation(baseline=baseline), recipe={"guaranteed_tol": None, "plan": plan}))
    assert not any("WARNING" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("ratio", "quartiles", "words"),
    [
        (0.5, (0.4, 0.6), "2.00 times as fast"),
        (0.95, (0.9, 1.05), "no measurable difference"),
        (1.3, (1.2, 1.4), "1.30 of the original's time"),
        (1.3, (1.2, 1.4), ": slower."),
        (1.02, (1.01, 1.03), "no measurable difference"),
        (0.24, (0.22, 0.85), "too unsteady to tell"),
    ],
)
def test_speed_is_told_as_it_was_measured(ratio, quartiles, words):
    latency = {"ratio": ratio, "ratio_quartiles": quartiles, "rounds": 9, "batch_size": 1, "device": "cpu"}
    sentence = verdict(report(latency=latency))[2]
    assert words in sentence
    assert f"{quartiles[0]:.2f} to {quartiles[1]:.2f}" in sentence


def test_an_error_that_rounding_carries_over_the_tolerance_is_told_as_such():
    said = verdict(report(recipe={"guaranteed_tol": 0.08}, dtype="bfloat16"))[1]
    assert said == (
        "2 layers are factorised, each within a relative error of 0.08 before rounding to bfloat16; as shipped the "
        "largest is 0.09, more than that."
    )
    said = verdict(report(layers=LAYERS[1:], recipe={"guaranteed_tol": 3e-8}))[1]
    assert said.startswith("1 layer is factorised within a relative error of 3e-08 before rounding to float32; as shi")


def test_accuracy_is_told_with_difference_interval_and_flips():
    (sentence,) = accuracy_sentences(upgrade_evaluation(evaluation().to_json()))
    assert sentence == (
        "Clean accuracy 90.00 → 80.00 % [58.4, 91.9] on 20 images of the data: -10.0 points (2 images lost, "
        "0 gained, McNemar p = 0.5)."
    )


def test_accuracy_without_a_baseline_says_so():
    (sentence,) = accuracy_sentences(evaluation(baseline=False).to_json())
    assert sentence == "Clean accuracy 80.00 % [58.4, 91.9] on 20 images of the data (95 % interval); no baseline."


def test_robustness_is_told_radius_by_radius_with_its_strength():
    sentences = verdict(report(evaluation()))
    assert sentences[-3:] == [
        "Worst case of pgd, 20 steps, 2 restart(s), 20 images:",
        "ℓ∞ ε = 4/255: 50.0 → 60.0 % robust (+10.0 points, McNemar p = 0.5).",
        "ℓ∞ ε = 8/255: 20.0 → 15.0 % robust (-5.0 points, McNemar p = 1).",
    ]
    assert verdict(report(evaluation(baseline=False)))[-1] == "ℓ∞ ε = 8/255: 15.0 % robust."


@pytest.mark.parametrize("attacked", [True, False])
def test_doubts_are_told_beside_the_figures(attacked):
    doubt = Finding("inconclusive", "few images", "few-images")
    assert verdict(report(evaluation(findings=(doubt,), attacked=attacked)))[-1] == "INCONCLUSIVE: few images."


def test_bytes_that_are_no_weights_are_told_from_the_reduction_of_the_weights():
    sentences = verdict(report(source={"weight_bytes": 1_600_000}))
    assert sentences[0].startswith("The file is 75.0 % smaller")
    # 4,000,000 bytes, of which 1,600,000 are weights: 1,000,000 is 37.5 % less than those.
    assert sentences[1] == (
        "2,400,000 bytes of the original file are no weights of this network (optimiser state, for example): "
        "against its weights alone the file is 37.5 % smaller."
    )


@pytest.mark.parametrize("weight_bytes", [4_000_000, 3_990_000, 3_700_000])
def test_headers_and_the_like_are_not_worth_a_sentence(weight_bytes):
    assert not any("no weights" in sentence for sentence in verdict(report(source={"weight_bytes": weight_bytes})))


def test_the_guarantee_is_one_before_the_rounding_of_half_precision():
    assert verdict(report(dtype="float16"))[1] == (
        "2 layers are factorised, each within a relative error of 0.1 before rounding to float16 (largest 0.0900)."
    )


OUTCOMES = [{"outcome": "PASS"}, {"outcome": "FAIL"}, {"outcome": "PASS"}, {"outcome": "INCONCLUSIVE"}]


@pytest.mark.parametrize(
    ("outcomes", "first"),
    [(OUTCOMES, "Gates: 1 failed, 1 inconclusive, 2 passed."), (OUTCOMES[:1], "Gates: 1 passed.")],
)
def test_gates_come_before_everything_else(outcomes, first):
    assert verdict(report(gates=outcomes))[0] == first


def rich_sentences(**changes):
    values = upgrade_evaluation(evaluation().to_json()) | changes
    return verdict({**report(), "evaluations": [values]})


def test_an_evaluation_out_of_time_says_how_far_it_came():
    said = rich_sentences(complete=False, images_asked=1000)
    assert "A time limit ended this evaluation: 20 images of the 1,000 asked for were finished." in said
    assert "A time limit ended this evaluation: 20 images were finished." in rich_sentences(complete=False)


def test_smallest_perturbations_are_told_by_their_median():
    values = upgrade_evaluation(evaluation().to_json())
    for role, median in (("baseline", 0.0123), ("compressed", None)):
        values["models"][role]["distances"] = {"fmn": {"norm": "linf", "median": median}}
    said = verdict({**report(), "evaluations": [values]})
    assert said[-1] == "Median size of the smallest fmn perturbation (ℓ∞): 0.0123 → none."

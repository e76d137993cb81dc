from huggingface_hub import ModelCard
from report_values import paper_evaluation, plain_evaluation, report_with, rich_evaluation

from lrcompress.report import render_model_card


def card_of(report):
    return ModelCard(render_model_card(report))


def test_the_metadata_is_read_by_the_hub_s_own_library():
    data = card_of(report_with(rich_evaluation())).data
    assert (data.model_name, data.pipeline_tag) == ("out", "image-classification")
    clean, first, second = data.eval_results
    assert (clean.metric_name, clean.metric_type, clean.metric_value) == ("Accuracy", "accuracy", 89.0)
    assert (clean.dataset_name, clean.dataset_type, clean.task_type) == ("photos", "photos", "image-classification")
    assert clean.metric_args["images"] == 1000
    assert first.metric_name == "Robust accuracy, fgsm + pgd, ℓ∞ ε = 4/255"
    assert (first.metric_value, second.metric_value) == (59.0, 28.0)


def test_the_worst_case_is_named_after_the_attacks_it_is_of():
    results = card_of(report_with(paper_evaluation())).data.eval_results
    assert results[1].metric_name == "Robust accuracy, fgsm + pgd, ℓ∞ ε = 4/255"


def test_of_two_answers_to_a_question_the_latest_counts():
    results = card_of(report_with(plain_evaluation(), plain_evaluation(clean=(900, 700)))).data.eval_results
    assert [one.metric_value for one in results if one.metric_name == "Accuracy"] == [70.0]


def test_the_original_is_named_where_it_comes_from_the_hub():
    report = report_with(plain_evaluation())
    assert card_of(report).data.base_model is None
    report["source"]["path"] = "timm/resnet50.a1_in1k"
    assert card_of(report).data.base_model == "timm/resnet50.a1_in1k"


def test_without_evaluations_there_is_no_model_index():
    card = card_of(report_with())
    assert card.data.eval_results is None
    assert "Accuracy was not measured" in card.text


def test_names_cannot_leave_the_metadata():
    data = "photos\n---\nlicense: mit: 'x' \"y\" # z"
    card = card_of(report_with(plain_evaluation(data=data)))
    assert card.data.eval_results[0].dataset_name == data
    assert card.data.license is None


def test_doubts_and_limits_stand_in_the_card():
    text = card_of(report_with(rich_evaluation())).text
    assert "UNRELIABLE: PGD is too weak" in text
    assert "## Limits" in text
    assert "lrcompress.load('out.safetensors', pixels=True, arch=" in text

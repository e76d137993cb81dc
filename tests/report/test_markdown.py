import re

import markdown
import pytest
from report_values import plain_evaluation, report_with, rich_evaluation
from reports import Page

from lrcompress.report import render_markdown
from lrcompress.report.markdown import MOST_BYTES, SHOWN_ROWS, escape

NASTY = "<script>alert(1)</script> | `a` *b* [c](d) \n- e"


def as_page(text):
    return Page.parse(markdown.markdown(text, extensions=["tables", "fenced_code"]))


def test_everything_is_told_that_the_html_tells():
    text = as_page(render_markdown(report_with(plain_evaluation(), rich_evaluation()))).text
    for words in (
        "uncompressed compressed 62.50 %",
        "fog 70.0 → 70.0 60.0 → 60.0",
        "Accuracy at ε = 0, 4/255, 8/255.",
        "Image 17, labelled fox: the uncompressed model says cat",
        "lrcompress compress w.pt",
    ):
        assert words in text, words


def test_every_row_of_a_table_has_as_many_cells_as_its_heading():
    tables = re.findall(r"(?:^\|.*\n)+", render_markdown(report_with(rich_evaluation(data=NASTY))), re.MULTILINE)
    assert len(tables) > 8
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1


def test_names_are_text_and_never_markup():
    report = report_with(rich_evaluation(data=NASTY, command=f"lrcompress {NASTY} ```"))
    page = as_page(render_markdown(report))
    assert not {"script", "a", "em"} & {tag for tag, _ in page.tags}
    assert " ".join(NASTY.split()) in page.text


@pytest.mark.parametrize(
    "text", ["- a", "+ a", "1. a", "2) a", "# a", "> a", "a|b", "<b>", "&amp;", "$x$", "0.5 %", "a_b_c"]
)
def test_a_text_is_shown_as_it_is(text):
    page = as_page(escape(text))
    assert page.text.replace("\\$", "$") == text
    assert {tag for tag, _ in page.tags} == {"p"}


def test_long_tables_say_what_they_leave_out():
    layers = [
        {"name": f"layer{index}", "kind": "Linear", "dense_shape": [4, 4], "scheme": "dense", "reason": "small"}
        for index in range(SHOWN_ROWS + 50)
    ]
    text = render_markdown(report_with(layers=layers))
    assert text.count("| layer") == SHOWN_ROWS + 1  # and the heading
    assert "… and 50 more rows" in text


def test_nothing_is_drawn_nor_said_to_be():
    text = render_markdown(report_with())
    assert "σ\\_r to σ₁" in text
    assert "svg" not in text
    assert "curves" not in text


def test_a_report_that_is_too_long_is_cut_below_the_limit_and_says_so():
    report = report_with(*[rich_evaluation(command="x" * 300_000) for _ in range(5)])
    text = render_markdown(report)
    assert len(text.encode()) < MOST_BYTES
    assert "cut here" in text.splitlines()[-1]
    assert "cut here" not in render_markdown(report_with(rich_evaluation()))

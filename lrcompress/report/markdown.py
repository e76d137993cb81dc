"""The report as Markdown, small enough for the summary of a build."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrcompress.report.parts import Chart, Command, Gallery, Note, Part, Table
from lrcompress.report.sections import report_sections, title

# GitHub drops a job summary above one MiB.
MOST_BYTES = 1_000_000
SHOWN_ROWS = 200
LIST_MARKER = re.compile(r"^(\d*)([-+.)])(?=\s|$)")
SPECIAL = re.compile(r"([\\`*_{}\[\]|#~!@$])")


def render_markdown(report: Mapping[str, Any]) -> str:
    """Returns the report as GitHub's Markdown, below one megabyte.

    Long tables are cut, and so is the end of a report that is still too long; it then says so.
    """
    lines = [f"# {escape(report['artifact']['path'])}", "", escape(title(report)), ""]
    lines += [f"- {escape(sentence)}" for sentence in report["verdict"]]
    for section in report_sections(report):
        lines += ["", f"## {escape(section.title)}"]
        for part in section.parts:
            lines += ["", *part_lines(part)]
    return _cut("\n".join(lines) + "\n")


def part_lines(part: Part) -> Iterator[str]:
    """Yields a part as lines of Markdown. Curves become the sentence that tells their figures."""
    if isinstance(part, Table):
        yield from _table_lines(part)
    elif isinstance(part, Chart):
        yield escape(part.summary)
    elif isinstance(part, Gallery):
        yield from (f"- {escape(example.words)}" for example in part.examples)
    elif isinstance(part, Note):
        yield f"**{escape(part.text)}**" if part.doubt else escape(part.text)
    elif isinstance(part, Command):
        # A fence longer than any within, so that no command ends it.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", part.text)), default=0))
        yield from (f"{fence}console", _one_line(part.text), fence)


def escape(text: str) -> str:
    """Returns a text that Markdown shows as it is, on one line.

    >>> print(escape("a|b *c* <d>"))
    a\\|b \\*c\\* &lt;d&gt;
    """
    plain = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # At the beginning of a line these would begin a list: "- a", "+ a", "1. a", "1) a".
    return LIST_MARKER.sub(r"\1\\\2", SPECIAL.sub(r"\\\1", plain))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table_lines(table: Table) -> Iterator[str]:
    if table.caption:
        yield escape(table.caption)
        yield ""
    left = {0, *table.texts}
    yield _row(table.columns)
    yield "|" + "|".join("---" if index in left else "---:" for index in range(len(table.columns))) + "|"
    yield from (_row(row) for row in table.rows[:SHOWN_ROWS])
    if len(table.rows) > SHOWN_ROWS:
        yield ""
        yield f"… and {len(table.rows) - SHOWN_ROWS:,} more rows; the JSON has them all."


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _cut(text: str) -> str:
    data = text.encode()
    if len(data) < MOST_BYTES:
        return text
    notice = "\n\n… cut here: the whole report is too long for a summary.\n"
    kept = data[: MOST_BYTES - len(notice.encode()) - 1]
    return kept[: kept.rindex(b"\n")].decode() + notice

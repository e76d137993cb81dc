"""`--help` with the options under titles, as plain text: rich would more than double the time it takes."""

from typing import Any

from typer.core import TyperCommand
from typing_extensions import override


class VerbWithPanels(TyperCommand):
    """A verb whose help shows each option under the title of its panel (`in_panel`), the others first."""

    @override
    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            title = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record is not None:
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

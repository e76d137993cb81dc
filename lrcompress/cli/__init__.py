"""The command line: one file per verb; the only place with typer, rich and exit codes."""

# The environment lives in .venv and is made by whatever target needs it first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo test check docs bench clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,test,docs]'
	@touch $@

demo: $(INSTALLED) ## Compress, fine-tune, attack and report real networks (about 4 minutes)
	$(BIN)/lrcompress demo -o demo-out

test: check ## Everything: lint, types, import contracts, docs, tests and doctests
	$(BIN)/python -m pytest

check: $(INSTALLED) docs ## Lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

docs: $(INSTALLED) ## Build the documentation strictly into site/
	$(BIN)/mkdocs build --strict --quiet

bench: $(INSTALLED) ## Print the figures of all committed benchmark results
	@for file in benchmarks/*.py; do \
	  if grep -q '"--summary"' $$file; then $(BIN)/python $$file --summary; fi; \
	done

clean: ## Remove everything that was made
	rm -rf .venv site build demo-out *.egg-info

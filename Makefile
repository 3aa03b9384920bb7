# Thin: each target makes the development host ready and calls one script. See docs/developing.md.
PYTHON ?= python3
HOST = $(PYTHON) scripts/devhost.py

.PHONY: demo test quick ui bench models table

demo:
	@$(HOST) scripts/demo.py $${PROMPT:+--prompt="$$PROMPT"} $${SEED:+--seed="$$SEED"} $${OUT:+--out="$$OUT"}

test:
	@$(HOST) scripts/check.py

# What to run between two edits, in a minute: checks, and the core's tests that take no model.
quick:
	@$(HOST) scripts/check.py --quick

ui:
	@$(HOST) scripts/ui.py $${PORT:+--port="$$PORT"}

bench:
	@$(HOST) benchmarks/run.py

models:
	@$(HOST) scripts/train_models.py

table:
	@$(HOST) scripts/table.py

.PHONY: check format lint prose types test

check: format lint prose types test

format:
	uv run ruff format --check .

lint:
	uv run ruff check .

prose:
	bash .ci/prose

types:
	uv run pyright

test:
	uv run pytest -q -n logical

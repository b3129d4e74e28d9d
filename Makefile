.PHONY: check format lint types test

check: format lint types test

format:
	uv run ruff format --check .

lint:
	uv run ruff check .

types:
	uv run pyright

test:
	uv run pytest -q

# Front door to the scripts; each of them also works alone, from a fresh clone.
.PHONY: help demo test test-fast test-all check format bench soak torture model-check deb clean distclean
.DEFAULT_GOAL := help
python := .venv/bin/python

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: ## the whole product on real handwritten digits, about a minute
	@script/demo

test: ## all tests but tensorflow's, and those that boot machines or cut power
	@script/test

test-fast: ## tests that start no process
	@script/test --fast

test-all: ## all tests; installs tensorflow, boots machines and cuts power where it may
	@script/test --all

check: ## ruff, mypy and import-linter
	@script/setup dev
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	.venv/bin/lint-imports

format: ## let ruff put the sources in order
	@script/setup dev
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

bench: ## measure; ONLY=name,... for some; writes build/bench.json
	@script/setup dev
	$(python) benchmarks/run.py $(if $(ONLY),--only $(ONLY))

soak: ## a swap every two seconds at 200 frames a second, five minutes; SECONDS=3600 for longer
	@script/setup dev
	SOAK_SECONDS=$(or $(SECONDS),300) $(python) -m pytest -q -s tests/inference/test_soak.py

torture: ## kill, cut, fill up and fuzz at every durable point, an hour, root; SECONDS=60 SEED=1 ONLY=stage,... LIMIT=280
	@script/setup dev
	nice -n 5 $(python) tests/torture/campaign.py --record $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(LIMIT),--limit $(LIMIT)) $(if $(TURNS),--turns)

model-check: ## every world that few faults lead to, and years of a device's life, an hour; PLANS=next,... DAYS=180 SEEDS=1-4
	@script/setup dev
	PYTHONPATH=tests MODELAGENT_MODEL_CHECK=$(PLANS) nice -n 5 $(python) tests/model_search.py
	PYTHONPATH=tests $(if $(DAYS),MODELAGENT_SOAK_DAYS=$(DAYS)) $(if $(SEEDS),MODELAGENT_SOAK_SEEDS=$(SEEDS)) \
		nice -n 5 $(python) tests/device_soak.py

deb: ## the Debian package, in build/; DEB="--arch arm64" for other machines
	@script/deb $(DEB)

clean: ## remove what was built and cached
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and the virtual environments
	rm -rf .venv .venv-build

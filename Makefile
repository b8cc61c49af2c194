# `make run` classifies a bundled capture and serves, with pages to look at; `make test` checks everything. Both need only Python and make.
PYTHON ?= python3
PORT ?= 8000
DATA ?= .tapline
CAPTURE ?= tests/data/captures/android.pcap

SECONDS ?= 600
DAY_SECONDS ?= 20
WHICH ?= not slow
# Twice as many workers as two cores: half of its time a test waits, for a process or a socket. They take the modules in
# the order of `tests/conftest.py`.
WORKERS = -n 4 --dist loadfile --no-loadscope-reorder
# torch and scikit-learn with a thread for each core would wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: run test tests lint types test-fast check fuzz soak week notebooks site links release clean

run: .venv/installed
	.venv/bin/tapline classify $(CAPTURE)
	.venv/bin/tapline serve --port $(PORT) --replay $(CAPTURE) --speed 4 --history-content --data-dir $(DATA)

# While you work: format, lint, types, and the tests that take no time, in less than a minute.
check: lint types
	.venv-dev/bin/pytest $(WORKERS) -m "not slow and not whole"

test: lint types tests

lint: .venv-dev/installed
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/ruff check .

types: .venv-dev/installed
	.venv-dev/bin/mypy -p tapline

tests: .venv-dev/installed
	.venv-dev/bin/pytest $(WORKERS)

# Every fuzz target in turn; `make fuzz SECONDS=60 TARGETS=captures` for one of them.
fuzz: .venv-dev/installed
	.venv-dev/bin/python -m tests.fuzz $(SECONDS) $(TARGETS)

# A service under mixed traffic with faults injected; memory, descriptors, threads and accounting are checked at the end.
soak: .venv-dev/installed
	.venv-dev/bin/python -m tests.soak $(SECONDS)

# A week in minutes: rotation, swaps of models, receivers that are away, a restart, a kill; what was published, kept and
# sent is held side by side. `make week BEFORE=/opt/old/bin/tapline` lets an earlier version serve on Monday.
week: .venv-dev/installed
	.venv-dev/bin/python -m tests.week --day $(DAY_SECONDS) $(if $(BEFORE),--before $(BEFORE))

# Runs the notebooks of docs/notebooks and writes what they give; `make notebooks NOTEBOOKS=1-first-look` for one.
notebooks: .venv-dev/installed
	.venv-dev/bin/python -m tests.notebooks $(NOTEBOOKS)

# The documentation site, from the pages of the repository: open build/site/index.html. Warnings are errors.
SPHINX = .venv-dev/bin/sphinx-build --conf-dir docs --nitpicky --fail-on-warning --keep-going

site: .venv-dev/installed
	$(SPHINX) . build/site

# Asks every host that a page links to whether the page is there: needs a connection.
links: .venv-dev/installed
	$(SPHINX) --builder linkcheck . build/links

# What is published: wheel and source, the bill of materials of an install with these constraints, and their hashes.
release: .venv-dev/installed
	@test -n "$(VERSION)" || { echo "name the release: make release VERSION=1.2.3" >&2; exit 1; }
	rm -rf dist
	SETUPTOOLS_SCM_PRETEND_VERSION=$(VERSION) .venv-dev/bin/python -m hatchling build -d dist
	$(PYTHON) -m venv dist/installed
	dist/installed/bin/python -m pip install --quiet --constraint constraints.txt "$$(echo dist/*.whl)[cpu,kafka,postgresql,ui]"
	.venv-dev/bin/cyclonedx-py environment --output-reproducible -o dist/sbom.cdx.json dist/installed/bin/python
	rm -rf dist/installed
	cd dist && sha256sum *.whl *.tar.gz *.json > SHA256SUMS

# What every supported interpreter must pass, in an environment of its own: `make test-fast PYTHON=python3.13`.
test-fast: .venv-$(notdir $(PYTHON))/installed
	.venv-$(notdir $(PYTHON))/bin/pytest $(WORKERS) tests/models tests/service -m "$(WHICH)"

.venv/installed: pyproject.toml constraints.txt | python
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,ui]'
	touch $@

.venv-dev/installed: pyproject.toml constraints.txt | python
	$(PYTHON) -m venv .venv-dev
	.venv-dev/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-python%/installed: pyproject.toml constraints.txt | python
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tapline needs Python 3.11 or later, and \
	$(PYTHON) is $$($(PYTHON) -V 2>&1): name another, as in make run PYTHON=python3.12" >&2; exit 1; }

clean:
	rm -rf .venv .venv-dev .venv-python* build $(DATA)

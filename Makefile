# make book: the HTML book in _build/html.  make test: package, book and notebooks.
# make check-book: every page of the built book in Chromium, with the network closed.
# make check-links: the links to other hosts; needs a network.
# make check-binder: every chapter in Binder's environment. BINDER_TORCH=torch==2.13.0, say, takes
# PyTorch from pip's own index, where the one that .binder names is out of reach.
# make pdf: the whole book in _build/book.pdf; needs LaTeX (README.md names the packages).
# make notebooks: the .ipynb pairs anew.  make clean: all but the environment.
# make test-slow: faults that take a minute.  make test-repeat: 20 random orders, 45 minutes.
# make test-oldest: the oldest torch that the package supports.  make audit: known weaknesses.
# make bench: the training loop against its peers, five minutes; writes benchmarks/results/.
# Each of them installs .venv first, once, and again when a file that lists versions changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
OLDEST := _build/oldest
# The chapters run in a folder of their own: a relative path must not mean another one there.
ifneq ($(VAELIB_DATA),)
export VAELIB_DATA := $(abspath $(VAELIB_DATA))
endif

.PHONY: book test check-book check-links check-binder pdf notebooks models bench install clean
.DEFAULT_GOAL := book

book: models
	$(BIN)/jupyter-book build . -W -n --keep-going --all

# Two workers share the two cores of a small machine: one thread for each.
test: models
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2
	OMP_NUM_THREADS=1 $(BIN)/pytest --nbval chapters -n 2 --dist loadfile

test-slow: models
	$(BIN)/pytest -m slow

# Twenty orders of the tests, three runs of the notebooks, over 1, 2 and 4 threads. There are more
# threads than cores here: those that wait must not spin.
test-repeat: export OMP_WAIT_POLICY = passive
test-repeat: models
	for seed in $$(seq 20); do OMP_NUM_THREADS=$$((1 << seed % 3)) \
	    $(BIN)/pytest -n 2 --random-order --random-order-seed=$$seed || exit 1; done
	for threads in 1 2 4; do OMP_NUM_THREADS=$$threads \
	    $(BIN)/pytest --nbval chapters -n 2 --dist loadfile || exit 1; done

# The package's tests and the chapters' (not the notebooks) with the first torch of the range.
test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n 2

$(OLDEST)/installed: requirements.txt constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt \
	    -c constraints-oldest.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

audit:
	test -x _build/audit/bin/python || $(PYTHON) -m venv _build/audit
	_build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	_build/audit/bin/python .ci/audit.py constraints.txt

check-book: $(INSTALLED)
	$(BIN)/pytest tests/browser -n 2

# The builder leaves its reports, which it prints too, among the pages.
check-links: models
	$(BIN)/jupyter-book build . --builder linkcheck; \
	status=$$?; rm -f _build/html/output.txt _build/html/output.json; exit $$status

check-binder: $(INSTALLED)
	$(BIN)/python tests/binder/simulate.py $(if $(BINDER_TORCH),--torch $(BINDER_TORCH))

pdf: models
	$(BIN)/jupyter-book build . -W -n --keep-going --builder latex
	LATEXOPTS="-interaction=nonstopmode -halt-on-error" $(MAKE) -C _build/latex LATEXMKOPTS=-silent
	cp _build/latex/book.pdf _build/book.pdf

notebooks: models
	$(BIN)/python _ext/pair_notebooks.py

bench: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[bench]" -c constraints.txt
	$(BIN)/python -m benchmarks.training_speed

# The data and the trained models that chapters and tests share, before any of them asks.
models: $(INSTALLED)
	$(BIN)/python -m vaelib prepare

install: $(INSTALLED)
$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf _build .pytest_cache .hypothesis

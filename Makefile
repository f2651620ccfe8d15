# SPDX-License-Identifier: MIT
PYTHON ?= python3
VENV := .venv

PREFIX ?= /usr/local
DESTDIR ?=
PYTHONDIR ?= $(PREFIX)/lib/crash-hotplug
INTERPRETER ?= /usr/bin/python3
SETTINGS ?=

# The sources of kdump-utils (github.com/rhkdump/kdump-utils) and of openSUSE's kdump (github.com/openSUSE/kdump), which
# this project does not carry: a directory or a tar file each.
KDUMP_UTILS ?=
KDUMP ?=

.PHONY: run test test-pythons lint coverage mutants lab lab-arm64 lab-full lab-debian lab-redhat lab-suse fuzz oracle bench-core man docs install deb try-deb rpm try-policies clean python

# Hot-plugs and panics a machine in memory under three policies, and audits each dump.
run: python
	@PYTHONPATH=src $(PYTHON) -m crash_hotplug_lab simulate

# Every test and linter, several jobs side by side; tools/run_tests.py has the list.
test: $(VENV)/ready
	@sh tools/debian-packages.sh binutils gdb groff-base makedumpfile \
		bash fish zsh dpkg-dev debhelper dh-python lintian rpm rpmlint
	$(VENV)/bin/python tools/run_tests.py

# The same tests on the other supported Pythons only.
test-pythons: $(VENV)/ready
	$(VENV)/bin/python tools/run_tests.py Python

lint: $(VENV)/ready
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --python-version 3.10 tests tools
	$(VENV)/bin/codespell
	$(VENV)/bin/python tools/spdx.py --check

# Branch coverage of the tests that need no guest and no packaging tools, including the commands that they start.  The
# search of every bundled scenario runs the same lines for minutes, so it is left out.  It fails where core/ or linux/
# has less than 95 %.
coverage: $(VENV)/ready
	rm -rf build/coverage
	mkdir -p build/coverage
	$(VENV)/bin/coverage run -m pytest -q -m "not lab" --ignore tests/packaging --ignore tests/test_linters.py \
		--ignore tests/test_mutants.py --deselect tests/lab/model/test_explore.py::test_in_place
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report --include 'src/crash_hotplug_lab/*'
	$(VENV)/bin/coverage report --include 'src/crash_hotplug/*'
	$(VENV)/bin/coverage report --include 'src/crash_hotplug/core/*' --fail-under 95
	$(VENV)/bin/coverage report --include 'src/crash_hotplug/linux/*' --fail-under 95

# Plants each fault of tests/mutants/*.toml into a copy of the source; the tests have to notice it.
mutants: $(VENV)/ready
	$(VENV)/bin/python tools/mutants.py

# Feeds 200,000 mutated inputs to every reader, then lets every system call of the commands fail in every way.
fuzz: $(VENV)/ready
	PYTHONPATH=src $(VENV)/bin/python -m tests.fuzz --inputs 200000
	PYTHONPATH=src $(VENV)/bin/python -m tests.failing_calls

# Loads 50,000 mutated crash images into model machines, and compares `status` with the dump of a panic.
oracle: $(VENV)/ready
	$(VENV)/bin/python -m pytest -q tests/lab/model/test_status_oracle.py tests/lab/model/test_arm64_status_oracle.py --hypothesis-profile thorough

# Build, parse and compare a header of 8,192 ranges and 1,024 CPUs; commands as multiples of an empty Python process.
bench-core: $(VENV)/ready
	$(VENV)/bin/python -m tests.benchmarks.process_cost
	$(VENV)/bin/python -m pytest tests/benchmarks -q -s --benchmark-enable --benchmark-columns=min,median,max

# Man pages, generated from the parsers behind --help.
man: python
	PYTHONPATH=src $(PYTHON) -m crash_hotplug.cli.man_page build/man

# The documentation, in build/docs; a warning of Sphinx is an error.
docs: $(VENV)/ready
	$(VENV)/bin/python tools/build_docs.py build/docs
	@echo build/docs/index.html

# Installs the files of a server: command, service, man pages, completions, docs.  tools/install.py has the list.
install: python
	$(PYTHON) tools/install.py --destdir "$(DESTDIR)" --prefix "$(PREFIX)" --python-directory "$(PYTHONDIR)" \
		--interpreter "$(INTERPRETER)" $(if $(SETTINGS),--settings-file "$(SETTINGS)")

# One .deb for every Debian from 11 on, in dist/; the same bytes each time.
deb:
	@sh tools/debian-packages.sh dpkg-dev debhelper dh-python python3
	@sh tools/build-package.sh deb

# The .deb beside kdump-tools on Debian 11, 12 and 13: installed, upgraded, removed, purged, in chroots, as root.
try-deb: deb
	@sh tools/debian-packages.sh debootstrap
	@sh tools/try_deb.sh dist/crash-hotplug_*_all.deb

# Both policies in Debian 12 guests that enforce them: update, reload, a forged write.  As root; 15 minutes, emulated.
# With KDUMP_UTILS or KDUMP the guests have Red Hat's or openSUSE's tools.
try-policies: $(VENV)/ready deb
	@sh tools/debian-packages.sh apt dpkg debian-archive-keyring
	$(VENV)/bin/python tools/try_policies.py dist/crash-hotplug_*_all.deb \
		$(if $(KDUMP_UTILS),--kdump-utils "$(KDUMP_UTILS)") $(if $(KDUMP),--kdump "$(KDUMP)")

# The .rpm.  rpmlint checks its spec file first.
rpm:
	@sh tools/debian-packages.sh rpm rpmlint python3
	rpmlint -c packaging/rpm/rpmlint.toml packaging/rpm/crash-hotplug.spec
	@sh tools/build-package.sh rpm

# Real kernels under QEMU: the default scenario on 6.1 and 6.12; everything is fetched on the first run.
lab: $(VENV)/ready
	@sh tools/debian-packages.sh apt dpkg debian-archive-keyring
	$(VENV)/bin/crash-hotplug-lab run

# arm64 guests, emulated: hot-add on 6.1 and 6.12, with each way of updating.  Downloads 250 MB on the first run.
lab-arm64: $(VENV)/ready
	@sh tools/debian-packages.sh apt dpkg debian-archive-keyring
	$(VENV)/bin/crash-hotplug-lab run --arch arm64

# Every scenario on every kernel, with each kernel's own loader; the default scenario with every loader.  Hours, emulated.
lab-full: $(VENV)/ready
	@sh tools/debian-packages.sh apt dpkg debian-archive-keyring
	$(VENV)/bin/crash-hotplug-lab run --all --kernel all -j 2 -o build/lab/every-scenario
	$(VENV)/bin/crash-hotplug-lab run --kernel all --loader all -j 2 -o build/lab/every-loader

# A full Debian 12 guest with kdump-tools, without this package and with it.  The first run builds its image: 10 minutes.
lab-debian: $(VENV)/ready deb
	@sh tools/debian-packages.sh apt dpkg debian-archive-keyring
	$(VENV)/bin/crash-hotplug-lab guest --deb dist/crash-hotplug_*_all.deb

# The same guest with Red Hat's kdump-utils, whose sources KDUMP_UTILS names.
lab-redhat: $(VENV)/ready deb
	@sh tools/debian-packages.sh apt dpkg debian-archive-keyring
	@if [ -z "$(KDUMP_UTILS)" ]; then \
		echo "lab-redhat is skipped: it needs the sources of kdump-utils (make lab-redhat KDUMP_UTILS=PATH)"; \
	else \
		$(VENV)/bin/crash-hotplug-lab guest redhat --kdump-utils "$(KDUMP_UTILS)" --deb dist/crash-hotplug_*_all.deb; \
	fi

# The same guest with openSUSE's kdump, whose sources KDUMP names.
lab-suse: $(VENV)/ready deb
	@sh tools/debian-packages.sh apt dpkg debian-archive-keyring
	@if [ -z "$(KDUMP)" ]; then \
		echo "lab-suse is skipped: it needs the sources of openSUSE's kdump (make lab-suse KDUMP=PATH)"; \
	else \
		$(VENV)/bin/crash-hotplug-lab guest suse --kdump "$(KDUMP)" --deb dist/crash-hotplug_*_all.deb; \
	fi

clean:
	rm -rf $(VENV) .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@command -v $(PYTHON) >/dev/null || sh tools/debian-packages.sh python3

$(VENV)/ready: pyproject.toml | python
	@$(PYTHON) -m venv --help >/dev/null 2>&1 && $(PYTHON) -c 'import ensurepip' 2>/dev/null || sh tools/debian-packages.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[test,lab,docs]'
	@touch $@

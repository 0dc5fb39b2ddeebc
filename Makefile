# SPDX-License-Identifier: Apache-2.0
PYTHON ?= /usr/bin/python3
PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system

VENV := build/venv
RUN_NEEDS := python3-systemd python3-sdnotify python3-requests python3-jsonschema zstd
DEMO_NEEDS := $(RUN_NEEDS) gcc libc6-dev gdb
TEST_NEEDS := $(DEMO_NEEDS) age openssh-client g++ libc6-dbg make systemd python3-pytest e2fsprogs mount util-linux binutils elfutils openssl
CORPUS_NEEDS := clang musl-tools golang-go rustc xz-utils
VENV_NEEDS := python3-venv python3-dev gcc libc6-dev libsystemd-dev pkg-config
SYSTEM_NEEDS := $(DEMO_NEEDS) python3-pytest qemu-system-x86 qemu-utils mmdebstrap e2fsprogs systemd-container mount util-linux openssl
LINT_NEEDS := $(VENV_NEEDS) shellcheck

.PHONY: help demo test test-venv corpus smoke test-system proof check lint bench generate install clean

help:
	@echo 'make demo       a real program crashes; its dump goes all the way to a store'
	@echo 'make test       the tests, with $(PYTHON) and its distribution packages'
	@echo 'make test-venv  the same in a virtual environment from PyPI'
	@echo 'make corpus     hundreds of programs die; the snapshots are held against gdb, frame by frame (minutes)'
	@echo 'make smoke      the shorter tests in virtual machines with kernels of their own (minutes; root)'
	@echo 'make test-system  all tests in virtual machines with kernels of their own (tens of minutes; root)'
	@echo 'make proof      the long run: mutated cores, power cuts, crashes, by the thousand (hours; root)'
	@echo 'make check      lint, types, generated files, and make test'
	@echo 'make bench      the figures of docs/benchmarks.md (hours; root)'
	@echo 'make generate   write the files that derive from tables again'
	@echo 'make install    into DESTDIR and PREFIX ($(PREFIX))'
	@echo 'make clean      remove what was built'

demo:
	@tools/need $(DEMO_NEEDS)
	@$(PYTHON) -m tests.demo

test:
	@tools/need $(TEST_NEEDS)
	$(PYTHON) -m pytest

test-venv: $(VENV)/stamp
	@tools/need $(TEST_NEEDS)
	$(VENV)/bin/python -m pytest -m 'not walk'

corpus:
	@tools/need $(TEST_NEEDS) $(CORPUS_NEEDS)
	$(PYTHON) tests/corpus/compare.py

check: lint test

lint: $(VENV)/stamp
	@tools/need $(LINT_NEEDS)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	shellcheck coresnap/archive.sh tools/need tools/copy-package tools/after-install .ci/run

smoke:
	@tools/need $(SYSTEM_NEEDS)
	$(PYTHON) -m pytest tests/system -m 'not long and not proof'

test-system:
	@tools/need $(SYSTEM_NEEDS)
	$(PYTHON) -m pytest tests/system -m 'not proof'

proof:
	@tools/need $(SYSTEM_NEEDS) $(TEST_NEEDS) $(CORPUS_NEEDS)
	$(PYTHON) tests/corpus/compare.py
	$(PYTHON) tests/corpus/fuzz.py --count 10000
	$(PYTHON) -m pytest tests/system -m proof

bench:
	@tools/need $(SYSTEM_NEEDS)
	$(PYTHON) -m tests.bench.run --keep

generate:
	$(PYTHON) -m coresnap.ground.settings.render
	$(PYTHON) -m coresnap.ground.catalog
	$(PYTHON) -m coresnap.cli.manual

# The packages of the project come from PyPI here; nothing of the distribution's is seen.
$(VENV)/stamp: pyproject.toml
	@tools/need $(VENV_NEEDS)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[systemd,cysystemd,test,lint,lines,python]'
	touch $@

# No build tool is asked for: a program is a file of the package, and finds the package where it lies.
PROGRAMS := process process_worker send send_worker purge query hook hook_worker
ROOT := $(DESTDIR)$(PREFIX)
LIBDIR := $(ROOT)/lib/coresnap
install:
	install -d $(LIBDIR) $(ROOT)/bin $(ROOT)/sbin $(ROOT)/share/man/man1 $(ROOT)/share/man/man5 $(ROOT)/share/man/man8 \
	    $(ROOT)/share/doc/coresnap/docs
	tools/copy-package coresnap $(LIBDIR)/python/coresnap
	install -m 755 coresnap/archive.sh $(LIBDIR)/archive.new
	mv -f $(LIBDIR)/archive.new $(LIBDIR)/archive
	ln -sf python/coresnap/capture_service.py $(LIBDIR)/capture
	for program in $(PROGRAMS); do \
	    ln -sf python/coresnap/$$program.py $(LIBDIR)/$$(echo $$program | tr _ -); done
	ln -sf ../lib/coresnap/python/coresnap/cli/__main__.py $(ROOT)/bin/coresnap
	ln -sf ../lib/coresnap/python/coresnap/take_snapshot.py $(ROOT)/bin/coresnap-snapshot
	ln -sf ../lib/coresnap/python/coresnap/daemon.py $(ROOT)/sbin/coresnapd
	install -m 644 docs/man/*.1 $(ROOT)/share/man/man1
	install -m 644 docs/man/*.5 $(ROOT)/share/man/man5
	install -m 644 docs/man/*.8 $(ROOT)/share/man/man8
	install -m 644 README.md NEWS.md LICENSE coresnap/ground/settings/coresnap.conf $(ROOT)/share/doc/coresnap
	install -m 644 docs/*.md $(ROOT)/share/doc/coresnap/docs
	for unit in units/coresnap*; do sed 's|@PREFIX@|$(PREFIX)|g' "$$unit" \
	    | install -D -m 644 /dev/stdin $(DESTDIR)$(UNITDIR)/$${unit#units/}; done
	install -D -m 644 units/journal.catalog $(ROOT)/lib/systemd/catalog/coresnap.catalog
	install -D -m 644 units/90-coresnap.preset $(ROOT)/lib/systemd/system-preset/90-coresnap.preset
	install -D -m 644 sysusers.d/coresnap.conf $(ROOT)/lib/sysusers.d/coresnap.conf
	install -D -m 644 tmpfiles.d/coresnap.conf $(ROOT)/lib/tmpfiles.d/coresnap.conf
	[ -n "$(DESTDIR)" ] || tools/after-install $(PREFIX)

clean:
	rm -rf build

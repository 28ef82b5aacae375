# What is there to do: make help. Every target sets up what it needs; as root that includes Debian packages.

PYTHON ?= python3
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
CONF ?= conf/npppd.conf
# Seconds that the tests inside the guest may take.
GUEST_TIMEOUT ?= 1200
# Processes that share the tests with root, and guests: most of the time of a test is waiting. An emulated processor has
# no time left.
ROOTS ?= 3
GUESTS ?= $(if $(NPPPY_UML),3,1)

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
ROOT := $(filter 0,$(shell id -u))
# A guest that is not a given user-mode kernel is QEMU.
PACKAGES := venv run demo test $(if $(NPPPY_UML),,qemu)
SUITES := $(BIN)/python -m tests.suites --guest-timeout $(GUEST_TIMEOUT)
MAN := $(wildcard conf/*.1 conf/*.5 conf/*.8)
APP := $(PREFIX)/lib/npppy
UNIT := $(PREFIX)/lib/systemd/system/npppyd.service

export PYTHON

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: ## packages, virtual environment, the guest's kernel: all that tests and demo need
	@scripts/packages $(PACKAGES)
	@$(MAKE) -s .venv/stamp
	@$(if $(NPPPY_UML),:,$(if $(ROOT),$(BIN)/python -m tests.guest.kernel >/dev/null,:))

.PHONY: venv
venv:
	@scripts/packages venv
	@$(MAKE) -s .venv/stamp

# What a set-up left half done, or made with a Python that is gone, is made anew.
.venv/stamp: pyproject.toml
	@$(BIN)/python -c 'import pip' 2>/dev/null || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@echo "pip install -e '.[dev]'"
	@$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

.PHONY: need-root
need-root:
	@$(if $(ROOT),:,echo "make $(MAKECMDGOALS) needs root" >&2; exit 1)

.PHONY: demo
demo: need-root ## subscribers, npppyd and what it serves, on this machine (root)
	@scripts/packages venv run demo
	@$(MAKE) -s .venv/stamp
	@$(BIN)/python scripts/demo.py

# build/test has the log of each suite while it runs.
.PHONY: test
test: ## all suites, side by side; without root those that need none
	@scripts/packages $(if $(ROOT),$(PACKAGES),venv)
	@$(MAKE) -s .venv/stamp
	@$(if $(ROOT),$(if $(NPPPY_UML),:,$(BIN)/python -m tests.guest.kernel >/dev/null || :),\
	  echo "left out without root: the tests marked root, and those inside a kernel that has PPP (marked guest)")
	@$(SUITES) $(if $(ROOT),root:$(ROOTS) guest:$(GUESTS)) plain

.PHONY: test-unit
test-unit: venv ## what needs neither root nor a guest: seconds
	@$(PYTEST) tests/unit -m "not root and not guest"

.PHONY: test-root
test-root: need-root ## what needs root and network namespaces
	@scripts/packages venv run test
	@$(MAKE) -s .venv/stamp
	@$(PYTEST) -m root

.PHONY: test-guest
test-guest: need-root ## what runs inside a kernel that has PPP, with real peers (root)
	@scripts/packages $(PACKAGES)
	@$(MAKE) -s .venv/stamp
	@$(SUITES) guest:$(GUESTS)

.PHONY: test-full
test-full: need-root ## the same with nothing skipped, long random runs, and no short cut in an emulated guest (root)
	@HYPOTHESIS_PROFILE=thorough NPPPY_REQUIRE_ALL=1 NPPPY_GUEST_ALL=1 \
	  $(MAKE) -s test GUEST_TIMEOUT=5400

.PHONY: lint
lint: venv ## ruff, mypy --strict, and whether the BPF object is that of its sources
	@scripts/packages bpf
	@scripts/bpf check
	@$(BIN)/ruff check .
	@$(BIN)/mypy

.PHONY: bpf
bpf: ## the BPF programs, compiled into the object that the package has
	@scripts/packages bpf
	@scripts/bpf build

.PHONY: bench
bench: need-root ## every figure against its target, into bench/results.jsonl (root)
	@scripts/packages venv run demo bench >&2
	@$(MAKE) -s .venv/stamp >&2
	@$(BIN)/python -m bench $(BENCH_ARGS)

.PHONY: bench-peers
bench-peers: need-root ## npppyd beside Debian's l2tpns, and in a guest pppoe-server and xl2tpd, under the same load (root)
	@scripts/packages venv run demo peers $(if $(NPPPY_UML),,qemu)
	@$(MAKE) -s .venv/stamp
	@$(if $(NPPPY_UML),:,$(BIN)/python -m tests.guest.kernel >/dev/null || :)
	@$(BIN)/python -m bench.peers $(BENCH_ARGS)

.PHONY: run
run: need-root venv ## npppyd in the foreground, with CONF=conf/npppd.conf (root)
	@$(BIN)/npppyd -d -f $(CONF)

# With DESTDIR set all goes below it, and nothing of what is installed names it.
.PHONY: install
install: ## npppyd, npppyctl, npppysim, manual pages, unit and configuration: PREFIX, SYSCONFDIR, DESTDIR
	@$(if $(DESTDIR),,scripts/packages venv run)
	rm -rf build/lib build/bdist.*
	$(PYTHON) -m venv --clear $(DESTDIR)$(APP)
	$(DESTDIR)$(APP)/bin/python -m pip install --quiet .
	$(if $(DESTDIR),grep -rlIF '$(DESTDIR)$(APP)' $(DESTDIR)$(APP)/bin $(DESTDIR)$(APP)/pyvenv.cfg \
	  | xargs -r sed -i 's|$(DESTDIR)$(APP)|$(APP)|g')
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,sbin bin) $(dir $(DESTDIR)$(UNIT))
	ln -sfn $(APP)/bin/npppyd $(APP)/bin/npppyctl $(DESTDIR)$(PREFIX)/sbin/
	ln -sfn $(APP)/bin/npppysim $(DESTDIR)$(PREFIX)/bin/
	$(foreach page,$(MAN),install -D -m 644 $(page) \
	  $(DESTDIR)$(PREFIX)/share/man/man$(subst .,,$(suffix $(page)))/$(notdir $(page)) &&) :
	sed -e 's|/usr/local/sbin/|$(PREFIX)/sbin/|' -e 's|/etc/npppy/|$(SYSCONFDIR)/npppy/|' \
	  conf/npppyd.service >$(DESTDIR)$(UNIT)
	chmod 644 $(DESTDIR)$(UNIT)
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/npppy
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/npppy/ipsec
	install -m 644 conf/ipsec/* $(DESTDIR)$(SYSCONFDIR)/npppy/ipsec/
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/npppy/freeradius
	install -m 644 conf/freeradius/* $(DESTDIR)$(SYSCONFDIR)/npppy/freeradius/
	install -m 644 conf/prometheus.yml $(DESTDIR)$(SYSCONFDIR)/npppy/
	for file in npppd.conf l2tp.conf pptp.conf radius.conf npppd-users; do \
	  [ -e $(DESTDIR)$(SYSCONFDIR)/npppy/$$file ] || \
	    install -m 600 conf/$$file $(DESTDIR)$(SYSCONFDIR)/npppy/ || exit 1; \
	done

.PHONY: uninstall
uninstall: ## what install put there, but for the configuration, and what npppyd has left in the kernel
	$(if $(DESTDIR),,$(if $(ROOT),[ ! -x $(PREFIX)/sbin/npppyd ] || $(PREFIX)/sbin/npppyd --teardown))
	rm -rf $(DESTDIR)$(APP)
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,sbin/npppyd sbin/npppyctl bin/npppysim) $(DESTDIR)$(UNIT)
	rm -f $(foreach page,$(MAN),$(DESTDIR)$(PREFIX)/share/man/man$(subst .,,$(suffix $(page)))/$(notdir $(page)))
	@echo "kept: $(DESTDIR)$(SYSCONFDIR)/npppy"

.PHONY: clean
clean: ## what make has made here
	rm -rf .venv build npppy.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

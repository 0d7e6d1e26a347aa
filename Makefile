# Thin: each target is a line or two; what is longer lives in tools/.

CARGO ?= cargo
DESTDIR ?=
PREFIX ?= /usr
# A folder made by tools/musl-toolchain.sh, where rustup cannot download musl's target.
MUSL_TOOLCHAIN ?=
# Where cargo puts what it makes: it reads the same variable of the environment.
TARGET = $(or $(CARGO_TARGET_DIR),target)
# What is installed.
BINARY ?= $(TARGET)/release/glowd
# Which of rpm/*.conf the units get: el8.conf, backoff.conf, or none.
DROPINS ?=
BINDIR = $(DESTDIR)$(PREFIX)/bin
LIBDIR = $(DESTDIR)$(PREFIX)/lib
LIBEXECDIR = $(DESTDIR)$(PREFIX)/libexec/glowd
SHAREDIR = $(DESTDIR)$(PREFIX)/share
MANDIR = $(SHAREDIR)/man
DOCDIR = $(SHAREDIR)/doc/glowd
LICENSEDIR = $(SHAREDIR)/licenses/glowd
BASHDIR = $(SHAREDIR)/bash-completion/completions
ZSHDIR = $(SHAREDIR)/zsh/site-functions
FISHDIR = $(SHAREDIR)/fish/vendor_completions.d
CONFDIR = $(DESTDIR)/etc/glowd

.DEFAULT_GOAL := help

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

build: deps-build ## build the daemon (target/release/glowd)
	$(CARGO) build --release --locked

static: deps-static ## build the static binary (x86_64: target/x86_64-unknown-linux-musl/release/glowd)
	@MUSL_TOOLCHAIN="$(MUSL_TOOLCHAIN)" tools/static

run: build ## build the daemon and run it in the foreground with ./conf.json
	$(TARGET)/release/glowd --conf conf.json run

demo: deps-test ## show a marked transfer between two network namespaces (root)
	$(CARGO) build --locked --bin glowd --example demo
	$(TARGET)/debug/examples/demo

test: deps-test ## run all tests (as root none is skipped)
	tools/test

shake: deps-test ## run the tests with system calls that are held up at random (ROUNDS=1)
	tools/shake

system-test: deps-system ## run the units under a real systemd, in containers (root)
	tools/system-tree
	$(CARGO) test --locked --test system -- --test-threads=1

syscalls-test: deps-syscalls ## run the tests with glowd confined to rpm/syscalls (root)
	tools/syscalls test

lint: deps-lint ## formatting, clippy, documentation, man pages, shell scripts
	tools/lint

bench: deps-test ## print the figures beside those to reach (root)
	@MUSL_TOOLCHAIN="$(MUSL_TOOLCHAIN)" tools/static --if-possible
	$(CARGO) bench --locked

fuzz: deps-fuzz ## compile the fuzz targets, then run each for a minute (SECONDS_EACH=60)
	tools/fuzz

man: deps-build ## write man/glowd.8 and man/glowd.conf.5 anew
	tools/man

fmt: ## format the Rust code
	$(CARGO) fmt

reproducible: deps-static ## build the static binary in two places and compare
	@MUSL_TOOLCHAIN="$(MUSL_TOOLCHAIN)" tools/reproducible

test-static: ## test the static binary in an empty root folder (root)
	@tools/test-static

vm-test: deps-vm ## run the static binary's selftest on another kernel (KERNEL=x.deb, STATIC=path; ALL=dir: on all)
	@STATIC="$(STATIC)" tools/vm-test $(if $(ALL),--all "$(ALL)",$(KERNEL))

stacks-test: deps-test deps-vm ## test stacked interfaces on other kernels (KERNELS="a.deb b.deb"; root)
	tools/stacks-test $(KERNELS)

check-aarch64: deps-aarch64 ## type-check for Linux on aarch64, C included
	tools/check-aarch64

check-macos: deps-macos ## type-check for macOS
	tools/check-macos

srpm: deps-rpm ## build the source package for EL and Fedora (target/rpm)
	tools/rpm -bs

rpm: deps-rpm ## build the packages for EL and Fedora, tested and without network (target/rpm)
	tools/rpm -ba

deb: build deps-deb ## build the package for Debian and Ubuntu (target/deb)
	BINARY="$(BINARY)" tools/deb

test-packages: deps-packaging ## build, install, upgrade, verify and remove the packages (root)
	tools/test-packages

# What packages consist of: rpm/glowd.spec and tools/deb both install by this.
install: ## install the daemon and all that belongs to it (DESTDIR, PREFIX, BINARY)
	install -D -m 0755 $(BINARY) $(BINDIR)/glowd
	install -D -m 0644 man/glowd.8 $(MANDIR)/man8/glowd.8
	install -D -m 0644 man/glowd.conf.5 $(MANDIR)/man5/glowd.conf.5
	test -e $(CONFDIR)/conf.json || install -D -m 0644 conf.json $(CONFDIR)/conf.json
	install -D -m 0644 rpm/glowd.service $(LIBDIR)/systemd/system/glowd.service
	install -D -m 0644 rpm/glowd@.service $(LIBDIR)/systemd/system/glowd@.service
	for unit in glowd.service glowd@.service; do for file in $(DROPINS); do \
	    install -D -m 0644 rpm/$$file $(LIBDIR)/systemd/system/$$unit.d/$$file || exit 1; done; done
	install -D -m 0644 rpm/glowd-registry.service $(LIBDIR)/systemd/system/glowd-registry.service
	install -D -m 0644 rpm/glowd-registry.timer $(LIBDIR)/systemd/system/glowd-registry.timer
	install -D -m 0755 rpm/refresh-registry $(LIBEXECDIR)/refresh-registry
	install -D -m 0644 rpm/glowd.preset $(LIBDIR)/systemd/system-preset/90-glowd.preset
	install -D -m 0644 rpm/glowd.sysusers $(LIBDIR)/sysusers.d/glowd.conf
	install -D -m 0644 rpm/glowd.tmpfiles $(LIBDIR)/tmpfiles.d/glowd.conf
	install -d $(BASHDIR) $(ZSHDIR) $(FISHDIR)
	$(BINARY) completions bash >$(BASHDIR)/glowd
	$(BINARY) completions zsh >$(ZSHDIR)/_glowd
	$(BINARY) completions fish >$(FISHDIR)/glowd.fish
	chmod 0644 $(BASHDIR)/glowd $(ZSHDIR)/_glowd $(FISHDIR)/glowd.fish
	install -D -m 0644 data/registry.json $(SHAREDIR)/glowd/registry.json
	install -D -m 0644 dashboards/glowd.json $(SHAREDIR)/glowd/dashboards/glowd.json
	install -D -m 0644 dashboards/alerts.yml $(SHAREDIR)/glowd/dashboards/alerts.yml
	install -d $(DOCDIR) $(LICENSEDIR)
	install -m 0644 README.md CHANGELOG.md AUTHORS $(DOCDIR)
	install -m 0644 rpm/el8.conf rpm/backoff.conf $(DOCDIR)
	install -m 0644 data/README.md $(DOCDIR)/registry.md
	install -m 0644 LICENSE THIRD-PARTY $(LICENSEDIR)
	install -m 0644 bpf/COPYING $(LICENSEDIR)/COPYING.bpf

clean: ## remove what was built
	$(CARGO) clean

deps-%:
	@tools/deps $*

# Each target but the files that are made.
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' Makefile)

# Thin: each target is a line or two; what is longer lives in tools/.

CARGO ?= cargo
DESTDIR ?=
PREFIX ?= /usr
# A folder made by tools/musl-toolchain.sh, where rustup cannot download musl's target.
MUSL_TOOLCHAIN ?=
BINDIR = $(DESTDIR)$(PREFIX)/bin
MANDIR = $(DESTDIR)$(PREFIX)/share/man
CONFDIR = $(DESTDIR)/etc/glowd

.DEFAULT_GOAL := help

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

build: deps-build ## build the daemon (target/release/glowd)
	$(CARGO) build --release --locked

static: deps-static ## build the static binary (x86_64: target/x86_64-unknown-linux-musl/release/glowd)
	@MUSL_TOOLCHAIN="$(MUSL_TOOLCHAIN)" tools/static

run: build ## build the daemon and run it in the foreground with ./conf.json
	target/release/glowd --conf conf.json run

demo: deps-test ## show a marked transfer between two network namespaces (root)
	$(CARGO) build --locked --bin glowd --example demo
	target/debug/examples/demo
	target/debug/examples/demo

test: deps-test ## run all tests (as root none is skipped)
	tools/test

lint: deps-lint ## formatting, clippy, documentation, man pages, shell scripts
	tools/lint

bench: deps-test ## print the figures beside those to reach (root)
	@MUSL_TOOLCHAIN="$(MUSL_TOOLCHAIN)" tools/static --if-possible
	$(CARGO) bench --locked

fuzz: deps-build ## compile the fuzz targets, then run each for some seconds (SECONDS_EACH=10)
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

check-aarch64: deps-aarch64 ## type-check for Linux on aarch64, C included
	tools/check-aarch64

check-macos: deps-macos ## type-check for macOS
	tools/check-macos

install: ## install target/release/glowd, its pages and configuration (DESTDIR, PREFIX)
	install -D -m 0755 target/release/glowd $(BINDIR)/glowd
	install -D -m 0644 man/glowd.8 $(MANDIR)/man8/glowd.8
	install -D -m 0644 man/glowd.conf.5 $(MANDIR)/man5/glowd.conf.5
	test -e $(CONFDIR)/conf.json || install -D -m 0644 conf.json $(CONFDIR)/conf.json

clean: ## remove what was built
	$(CARGO) clean

deps-%:
	@tools/deps $*

.PHONY: help build static run demo test lint bench fuzz man fmt reproducible test-static vm-test check-aarch64 check-macos install clean

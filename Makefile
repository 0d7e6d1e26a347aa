# Thin: each target is a line or two; what is longer lives in tools/.

CARGO ?= cargo
DESTDIR ?=
PREFIX ?= /usr
BINDIR = $(DESTDIR)$(PREFIX)/bin
MANDIR = $(DESTDIR)$(PREFIX)/share/man
CONFDIR = $(DESTDIR)/etc/glowd

.DEFAULT_GOAL := help

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

build: deps-build ## build the daemon (target/release/glowd)
	$(CARGO) build --release --locked

run: build ## build the daemon and run it in the foreground with ./conf.json
	target/release/glowd --conf conf.json run

demo: deps-test ## show a marked transfer between two network namespaces (root)
	$(CARGO) build --locked --bin glowd --example demo
	target/debug/examples/demo
	target/debug/examples/demo

test: deps-test ## run all tests (as root none is skipped)
	tools/test

system-test: deps-system ## run the units under a real systemd, in containers (root)
	tools/system-tree
	$(CARGO) test --locked --test system -- --test-threads=1

syscalls-test: deps-syscalls ## run the tests with glowd confined to rpm/syscalls (root)
	tools/syscalls test

lint: deps-lint ## formatting, clippy, documentation, man pages, shell scripts
	tools/lint

bench: deps-test ## print the figures beside those to reach (root)
	$(CARGO) bench --locked

fuzz: deps-build ## compile the fuzz targets, then run each for some seconds (SECONDS_EACH=10)
	tools/fuzz

man: deps-build ## write man/glowd.8 and man/glowd.conf.5 anew
	tools/man

fmt: ## format the Rust code
	$(CARGO) fmt

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

.PHONY: help build run demo test lint bench fuzz man fmt check-macos install clean \
    system-test syscalls-test

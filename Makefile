# PipeOps. `make` alone prints this help; see README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PIPEOPS_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pipeops
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
LINT = $(PIPEOPS_CACHE)/tools/lint/$(shell awk '$$1 == "require" {$$1 = $$2; $$2 = $$3} $$1 ~ /golangci-lint/ {sub(/^v/, "", $$2); print $$2; exit}' tools/lint/go.mod)/golangci-lint
FUZZTIME ?= 5s
RACE ?= -race
# Test files that the race detector can't run, because of races in a library: each says which. They run without it.
UNRACED = grep -rl '^//go:build !race' --include='*_test.go' handlers internal

.PHONY: help up down clean build tools web test test-short test-web chaos lint fmt generate bench bench-store vuln

help: ## print this help
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: tools build ## set everything up, run PipeOps, push the sample app and wait until it serves
	@bin/pipeops up --detach --sample examples/hello --with-local-cluster

down: build ## stop everything that `make up` started; data stays
	@bin/pipeops down

clean: build ## stop everything and forget the data too
	@bin/pipeops down --forget
	@rm -rf bin build

build: web/dist/index.html ## bin/pipeops, with the dashboard in it
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/pipeops ./cmd/pipeops

tools: ## install packages and build the programs that run on this machine (cached)
	@tools/install

web/node_modules: web/package-lock.json
	cd web && npm ci --no-audit --no-fund
	@touch $@

web/dist/index.html: web/node_modules $(shell find web/src web/index.html web/*.ts -type f 2>/dev/null)
	cd web && npm run build

web: web/dist/index.html ## build the dashboard

test: ## every test, on real parts, from unit to end to end; leaves nothing running
	@tools/install test
	@$(MAKE) --no-print-directory build test-web
	@trap 'go run ./internal/testenv/testenvctl down' EXIT; \
	go run ./internal/testenv/testenvctl up; \
	export PIPEOPS_BIN=$(CURDIR)/bin/pipeops; \
	{ go test -json -p 2 $(RACE) -shuffle=on -timeout 30m $$(go list ./... | grep -v /cmd/pipeops$$) || :; \
	  $(if $(RACE),go test -json -p 1 -timeout 20m -run "^($$($(UNRACED) | xargs grep -ho '^func Test[A-Za-z0-9_]*' | cut -c6- | paste -sd'|' -))$$" \
		$$($(UNRACED) | xargs dirname | sort -u | sed 's|^|./|') || :;) \
	  go test -json $(RACE) -timeout 40m ./cmd/pipeops || :; } | go run ./internal/testenv/summary

test-short: ## the fast tests only: pure packages, no parts
	go test ./domain/... ./deploy/manifests ./deploy/diagnose ./runner/args ./internal/config

test-web: web/dist/index.html ## types, lint and component tests of the dashboard
	cd web && npm run --silent typecheck && npm run --silent lint && npm run --silent test

chaos: build ## the crash tests, thirty rounds each; SEED=n repeats one
	@tools/install test
	@trap 'go run ./internal/testenv/testenvctl down' EXIT; \
	PIPEOPS_CHAOS_ROUNDS=30 PIPEOPS_SEED=$(SEED) go test -count=1 -v -run 'TestAcceptance0[27]' ./eventstore; \
	PIPEOPS_BIN=$(CURDIR)/bin/pipeops PIPEOPS_CHAOS_ROUNDS=30 PIPEOPS_SEED=$(SEED) go test -count=1 -timeout 3h -v -run 'TestKilled|TestFrozen' ./cmd/pipeops

lint: ## golangci-lint, zero findings
	@tools/install lint
	$(LINT) run ./...

fmt: ## format Go and the dashboard
	@tools/install lint
	$(LINT) fmt ./...

generate: ## write generated code and reference again
	go generate ./...
	cd web && npm run --silent codegen

bench: build ## benchmarks, each as a ratio to a limit measured in the same run
	@tools/install test
	@trap 'go run ./internal/testenv/testenvctl down' EXIT; \
	go test -run "^$$" -bench . -benchtime 2s ./eventstore/...; \
	PIPEOPS_BIN=$(CURDIR)/bin/pipeops go test -run "^$$" -bench . -benchtime 10x -timeout 30m ./cmd/pipeops

bench-store: build ## the event store beside its peers and limits on a server of its own (npm packages and disk: tools/bench); EVENTS=n sets the large store
	@tools/install test
	@mkdir -p build/bench
	cd tools/bench && PIPEOPS_BIN=$(CURDIR)/bin/pipeops go run . -out ../../build/bench/store.json -events $(or $(EVENTS),10000000)

vuln: ## known vulnerabilities (needs the internet)
	go run golang.org/x/vuln/cmd/govulncheck@latest ./...

# Everything a developer types. `make` alone builds, lints and tests.
#
# Variables a user may set:
#   PKG       packages for test and race      (default all, those that take longest first)
#   VERSION   what the programs call themselves
#   PVE_API_SCHEMA      a PVE call schema; requests of tests are checked against it
#   PVE_RIGAUD_NO_SKIP  1: a skipped test is a failure

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PKG ?= ./tests/scenario ./tests/e2e ./...
# A tag's name, else the newest version of the changelog and the commit.
VERSION ?= $(shell git describe --tags --exact-match --dirty 2>/dev/null || \
	echo "$$(sed -n 's/^## \[\([0-9][^]]*\)\].*/\1/p' CHANGELOG.md | head -n 1 | grep . || echo 0.0.0)+$$(git describe --always --dirty 2>/dev/null || echo unknown)")

TOOL := go tool -modfile=packaging/tools/go.mod

# Tests check every request to PVE against its real call schema where there is
# one: with an empty PVE_API_SCHEMA they do not, and `make test` says so.
SCHEMA := $(abspath ../shared/pve/api/9.1.json)
PVE_API_SCHEMA ?= $(wildcard $(SCHEMA))
export PVE_API_SCHEMA

# cgo is off for what we ship and on for the race detector, which needs it.
export CGO_ENABLED ?= 0

.PHONY: all build test race crash matrix scenarios guest lint bench demo soak proto deb fmt clean schema

all: build lint test

build:
	go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

# Most tests of several agents wait more than they work: three of a package at once. With the race detector they work more.
test: schema
	go run ./tests/skips -timeout 5m -parallel 3 $(PKG)

race: export CGO_ENABLED = 1
race: schema
	go run ./tests/skips -timeout 20m -race $(PKG)

# Agents that are killed at every step of their operations, replicas whose source or target dies, and stories that dice
# make up; `make test` takes some of each.
crash: schema
	go run ./tests/skips -timeout 15m -count=1 -tags every -run '^(TestCrash|TestReplica|TestWalks|TestDrainOfFifty)' ./tests/e2e ./tests/scenario

# What becomes of each field of the manager's payloads, with all versions of PVE whose schemas are at hand.
matrix: schema
	go run ./tests/skips -timeout 10m -count=1 -tags versions ./tests/matrix

# Stories about a cluster, told with the real program in network namespaces. Root. They wait more than they work.
scenarios: schema
	go run ./tests/skips -timeout 10m -count=1 -parallel 16 -tags netns ./tests/netns

# What cloud-init makes of a request, in a Debian guest without KVM. Root; the first time it makes the guest from Debian's archive.
guest: schema
	go run ./tests/skips -timeout 10m -count=1 -tags guest -run '^TestDebianGuest$$' ./tests/e2e

schema:
	@if [ -n "$$PVE_API_SCHEMA" ]; then \
		echo "requests to PVE are checked against $$PVE_API_SCHEMA"; \
	else \
		echo "requests to PVE are not checked: no PVE_API_SCHEMA, and no $(SCHEMA)"; \
	fi

lint:
	$(TOOL) golangci-lint run

bench:
	go run ./tests/bench
	go test -count=1 -run '^TestSpread$$' -v ./cluster

demo: build
	go run ./tests/demo

# Hours, not minutes: everything, and what is tagged soak.
soak: schema
	go test -count=1 -timeout 3h -tags soak $(PKG)

# The contract and the node service as Go code, with the plugins pinned in packaging/tools/go.mod.
proto:
	$(TOOL) buf generate --config packaging/tools/buf.yaml --template packaging/tools/buf.gen.yaml

# The package lands in dist/.
deb:
	dpkg-buildpackage --unsigned-source --unsigned-changes --build=binary
	mkdir -p dist
	mv ../pve-rigaud_* dist/

fmt:
	$(TOOL) golangci-lint fmt

clean:
	rm -rf bin dist

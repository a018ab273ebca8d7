# Everything a developer or CI does is a target here; `make help` lists them.
#
# Downloads go through ordinary clients (go, apt-get, npm) by package name, so
# whatever registry or mirror the machine is set up for is the one that is used.

CONTAINERD_VERSION  := v2.4.2
BUILDKIT_VERSION    := v0.34.2
GOLANGCI_VERSION    := v2.15.0

# What tests need from the distribution. runc links libseccomp, hence a package.
APT_PACKAGES := runc cryptsetup-bin debootstrap attr acl fuse3 xz-utils zstd e2fsprogs xfsprogs btrfs-progs util-linux busybox-static
# What building erofs-utils needs.
APT_TOOLS_PACKAGES := dpkg-dev gcc make autoconf automake libtool pkg-config \
	liblz4-dev libzstd-dev liblzma-dev zlib1g-dev uuid-dev
# What booting other kernels needs, and building two modules for one of them.
APT_VM_PACKAGES := qemu-system-x86 busybox-static fuse3 debootstrap kmod xz-utils zstd e2fsprogs dpkg-dev gcc-12 make libelf1

CACHE          := $(CURDIR)/.cache
CONTAINERD_DIR := $(CACHE)/containerd-$(CONTAINERD_VERSION)
BUILDKIT_DIR   := $(CACHE)/buildkit-$(BUILDKIT_VERSION)
GOLANGCI       := $(CACHE)/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
TOOLS_DIR      := $(CACHE)/tools/bin

# Tests and benches find the pinned tools by PATH; tests/testenv looks in the
# same places when `go test` is run by hand.
export PATH := $(CONTAINERD_DIR):$(TOOLS_DIR):$(PATH)

GO        ?= go
FUZZTIME  ?= 10m
RACE      ?=
TESTFLAGS ?=
IMAGE     ?=
CMD       ?=
HOSTS_DIR ?=
FORBID    ?=
VM        ?=
BENCH     ?= starts
N         ?= 1000
DRIVER    ?= fanotify

.DEFAULT_GOAL := help
.PHONY: help build test ci lint fuzz crash demo tools bench vm deps containerd buildkit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build lazyerofsd and lazyerofs into bin/
	$(GO) build -trimpath -o bin/ ./cmd/...

# tests/trees compares the bytes of real images: the race detector finds nothing
# there and makes it take a quarter of an hour. Without cgo another encoder makes the
# frames.
test: deps containerd buildkit tools build ## run every test, as root, with real mounts
	$(GO) test -count=1 -timeout 20m $(RACE) $(TESTFLAGS) $$($(GO) list ./... | grep -v '/tests/trees$$')
	$(GO) test -count=1 -timeout 20m $(TESTFLAGS) ./tests/trees
	CGO_ENABLED=0 $(GO) test -count=1 $(TESTFLAGS) -run '^Test(Blob|Golden|Deterministic|ZstdCommand|SameFileSameChunks)$$' ./differ

# Lint runs vet over everything, tests included, so the tests need not again.
ci: lint ## what CI runs: lint, tests with -race, 20 s of every fuzz target, two old kernels
	$(MAKE) test RACE=-race TESTFLAGS=-vet=off
	tests/tools/fuzz.sh 20s
	$(MAKE) vm VM='6.1-ondemand 6.1'

lint: $(GOLANGCI) ## run golangci-lint as .golangci.yml says
	$(GOLANGCI) run ./...

fuzz: ## fuzz every target in turn for FUZZTIME (10m)
	tests/tools/fuzz.sh $(FUZZTIME)

crash: deps build ## kill the daemon N times (1000) under readers that compare every byte; DRIVER=... for another driver
	$(GO) test -count=1 -timeout 0 -v -run '^TestKilledUnderReaders$$' ./tests/crash -args -n $(N) -driver $(DRIVER)

demo: deps containerd build ## cold start, overlayfs against lazyerofs; IMAGE=... CMD='...' for any image
	$(GO) run ./tests/demo $(if $(IMAGE),-image '$(IMAGE)') $(if $(HOSTS_DIR),-hosts-dir '$(HOSTS_DIR)') $(if $(FORBID),-forbid '$(FORBID)') -- $(CMD)

bench: deps containerd tools build ## medians of 5 runs into tests/bench/results; BENCH=starts, drivers, memory, convert, pull or shared
	$(GO) run ./tests/bench $(BENCH)

vm: containerd ## run tests in the kernels of tests/vm/guests.go, or in those of VM='NAME ...'
	@tests/tools/apt-install.sh $(APT_VM_PACKAGES)
	VM='$(VM)' $(GO) test -tags vm -count=1 -v -timeout 2h -run '^TestGuests$$' ./tests/vm

tools: $(TOOLS_DIR)/mkfs.erofs ## build erofs-utils for tests and benches (never used at run time)

deps: ## install the distribution's packages that tests need
	@tests/tools/apt-install.sh $(APT_PACKAGES)

containerd: $(CONTAINERD_DIR)/containerd ## build the pinned containerd, ctr and shim

buildkit: $(BUILDKIT_DIR)/buildkitd ## build the pinned BuildKit

clean: ## remove what the targets here have made
	rm -rf bin .cache

$(CONTAINERD_DIR)/containerd:
	GOBIN=$(CONTAINERD_DIR) $(GO) install -tags 'no_btrfs no_devmapper no_zfs' \
		github.com/containerd/containerd/v2/cmd/ctr@$(CONTAINERD_VERSION) \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$(CONTAINERD_VERSION) \
		github.com/containerd/containerd/v2/cmd/containerd@$(CONTAINERD_VERSION)

# Its go.mod excludes versions, with which go install refuses to build it.
$(BUILDKIT_DIR)/buildkitd:
	$(GO) build -C "$$($(GO) mod download -json github.com/moby/buildkit@$(BUILDKIT_VERSION) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')" \
		-o $(BUILDKIT_DIR)/ ./cmd/buildctl ./cmd/buildkitd

$(GOLANGCI):
	GOBIN=$(dir $(GOLANGCI)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

$(TOOLS_DIR)/mkfs.erofs: tests/tools/erofs-utils.sh
	@tests/tools/apt-install.sh $(APT_TOOLS_PACKAGES)
	tests/tools/erofs-utils.sh $(CACHE)/tools

# What is done in this tree, from a clean clone on. Needed are Go (the version in go.mod), make and git; `make generate`
# needs protoc besides. `make` alone explains itself.

GO       ?= go
PKG      ?= ./...
DATA     ?= bin/dev-data
HTTP     ?= 127.0.0.1:8080
CLUSTER  ?= bin/cluster-data
UP       ?= bin/up-data
PORT     ?= 8080
# Tests measure leases, elections and clocks. More packages at once than this, on a small machine, wait for each other.
PARALLEL ?= 2
BENCH    ?= .
BENCHTIME ?= 1s
KILLS    ?= 20
TRIAL    ?= .
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

# The go tool writes the revision into the binary, for `muster version`. It fails where git does not answer for the tree
# (an archive, a tree owned by somebody else), so there it is told not to ask.
VCS = $(if $(shell git rev-parse HEAD 2>/dev/null),auto,false)

.DEFAULT_GOAL := help
.PHONY: help build run cluster up down deps test race chaos sim lint bench gobench generate clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'PKG=./job/... narrows test, race, lint and gobench. BENCH=REGEXP and BENCHTIME=1x are for gobench,'
	@echo 'DATA=DIR and HTTP=HOST:PORT for run, CLUSTER=DIR and PORT=N for cluster, UP=DIR and PORT=N for up and down, KILLS=N and TRIAL=TestPartitions for chaos.'

build: ## Build bin/muster, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -o bin/muster ./cmd/muster

run: build ## Run a node with a worker on this machine, until Ctrl-C
	bin/muster dev --data $(DATA) --http $(HTTP)

cluster: build ## Run three nodes and six workers on this machine, until Ctrl-C
	@sh deploy/local/cluster.sh --data $(CLUSTER) --port $(PORT)

up: build ## Run three nodes and six workers on a PostgreSQL and a Redis of their own, in the background; again: what is missing
	@if $(missing); then $(MAKE) --no-print-directory deps; fi
	@$(GO) build -o bin/muster-servers ./internal/servers/run
	@sh deploy/local/cluster.sh --data $(UP) --port $(PORT) --servers bin/muster-servers --up

down: ## Stop what make up has started; the data is kept
	@sh deploy/local/cluster.sh --data $(UP) --down

deps: ## Fetch and install what building and testing need
	@command -v $(GO) >/dev/null || { echo 'Go is missing: install it from https://go.dev/dl/ or with your system (golang-go), then try again.' >&2; exit 1; }
	@echo "Fetching the Go modules that go.mod names, into $$($(GO) env GOMODCACHE)."
	$(GO) mod download
	@sh deploy/local/deps.sh $$($(GO) run ./internal/servers/run -missing)
	@old=$$($(GO) run ./internal/servers/run -missing); \
		if [ -n "$$old" ]; then echo "What your system has is too old: $$old. PostgreSQL 14 and Redis 6.2 are needed; PostgreSQL's own packages are at https://www.postgresql.org/download/." >&2; exit 1; fi

# Without the network, the list fails exactly when a module is missing. The other one names servers that are missing.
missing = ! command -v $(GO) >/dev/null || ! GOPROXY=off $(GO) list -deps -test ./... >/dev/null 2>&1 || [ -n "$$($(GO) run ./internal/servers/run -missing)" ]

test: ## Run all tests
	@if $(missing); then $(MAKE) --no-print-directory deps; fi
	$(GO) test -timeout 10m -p $(PARALLEL) $(PKG)

race: ## Run all tests under the race detector; needs a C compiler
	@if $(missing); then $(MAKE) --no-print-directory deps; fi
	CGO_ENABLED=1 $(GO) test -race -timeout 20m -p $(PARALLEL) $(PKG)

chaos: ## Kill, pause, cut off and damage real clusters under load, for an hour, and judge what is left; TRIAL=NAME picks one
	$(GO) test ./internal/systemtest -run '$(TRIAL)' -count 1 -v -timeout 3h -chaos -kills $(KILLS)

sim: ## Simulate clusters from SEEDS seeds, for MINUTES minutes, or SEED=N once more
	$(GO) test ./internal/sim -run '^TestSim$$' -count 1 -v -timeout 0 -args $(if $(SEED),-sim.seed $(SEED)) $(if $(SEEDS),-sim.seeds $(SEEDS)) $(if $(MINUTES),-sim.minutes $(MINUTES))

lint: ## Check format, vet and staticcheck (settings: staticcheck.conf)
	@unformatted=$$(gofmt -l .); \
		if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet $(PKG)
	$(GO) run $(STATICCHECK) $(PKG)

gobench: ## Run the benchmarks of single packages
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime $(BENCHTIME) -timeout 60m -p 1 $(PKG)

# Both stores in turns: the embedded one, and private servers that wait for the disk at each commit.
bench: build ## Measure a node and a worker on this machine, without and with PostgreSQL and Redis; ARGS='batch --quick' are for muster bench
	$(GO) run ./internal/servers/run --durable --set shared_buffers=1GB --set max_wal_size=4GB \
		sh -c 'exec bin/muster bench --postgres "$$MUSTER_POSTGRES" --redis "$$MUSTER_REDIS" "$$@"' bench $(ARGS)

generate: ## Generate the protocols' Go code again; needs protoc (protobuf-compiler)
	@command -v protoc >/dev/null || { echo 'protoc is missing: install it with your system (Debian: apt-get install protobuf-compiler), then try again.' >&2; exit 1; }
	$(GO) build -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
	PATH="$(CURDIR)/bin:$$PATH" protoc --go_out=. --go_opt=paths=source_relative \
		--connect-go_out=. --connect-go_opt=paths=source_relative,package_suffix= $(shell git ls-files '*.proto')

clean: ## Remove what was built, and the data of make run, make cluster and make up
	@if [ -d $(UP) ]; then sh deploy/local/cluster.sh --data $(UP) --down; fi
	rm -rf bin

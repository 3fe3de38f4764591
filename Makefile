# `make help` lists what there is. CI runs `make ci`; a user needs `make demo` and `make test`.

CARGO ?= cargo
TOOLS := tests/tools/build.sh
INSTALL := tests/tools/install.sh
# Tests against an API server wait more than they compute.
export RUST_TEST_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? n : 4)))
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Programs that INSTALL has put there come first, so that everybody lints with the same versions.
INSTALLED := $(TARGET)/tools
export PATH := $(INSTALLED)/bin:$(INSTALLED)/python/bin:$(INSTALLED)/node/node_modules/.bin:$(PATH)
# All Markdown but what Git ignores.
MARKDOWN := git ls-files --cached --others --exclude-standard -- '*.md' | xargs ls 2>/dev/null
# What `ecr-injector version` tells: the commit, and its time.
BUILD_INFO = ECR_INJECTOR_COMMIT=$$(git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null) \
	ECR_INJECTOR_BUILD_DATE=$$(TZ=UTC0 git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
# The commit that `make mutants` compares with, the files that it takes instead of the change, and
# further arguments for cargo-mutants.
BASE ?= main
FILES ?=
MUTANTS ?=
# The targets of `make fuzz`, all if there are none, and how long each runs.
TARGETS ?=
FUZZ_SECONDS ?= 60
export FUZZ_SECONDS
# The tag, the registry and the Kubernetes (oldest or newest) of the steps of a release.
TAG ?=
REGISTRY ?= ghcr.io/ecr-injector
KUBERNETES ?= newest
PROFILE ?=
export TAG REGISTRY KUBERNETES PROFILE

# libfaketime (Debian: apt-get install libfaketime), by which a soak sets the clock of a replica.
FAKETIME ?= $(firstword $(wildcard /usr/lib/*/faketime/libfaketime.so.1))

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the binary (target/debug/ecr-injector)
	$(CARGO) build --locked

.PHONY: release
release: ## Build the optimized binary (target/release/ecr-injector) and show its size
	$(BUILD_INFO) $(CARGO) build --locked --release
	@ls -l target/release/ecr-injector | awk '{printf "target/release/ecr-injector: %.1f MB\n", $$5 / 1e6}'

.PHONY: image
image: ## Make the container image without a container engine: target/image/ecr-injector-VERSION.tar, an OCI archive
	@image/build.sh

.PHONY: image-test
image-test: control-plane image ## Unpack the image, and run it as a container would against a real API server
	$(CARGO) test --locked --test image

.PHONY: small-binary-test
small-binary-test: ## Build ecr-credentials as it is released, and see that it is static, small and needs nothing of a node
	@tests/tools/small-binary.sh

.PHONY: release-packages
release-packages: ## Install what a release needs of Debian or Ubuntu: musl, a cross compiler, qemu-user
	@image/release.sh packages

.PHONY: release-source
release-source: ## See that the sources have one version, and that of TAG
	@image/release.sh source "$$TAG"

.PHONY: release-build
release-build: ## Build binaries and image of this machine's architecture as they are released: target/release-parts
	@image/release.sh build

.PHONY: release-assemble
release-assemble: ## Make and check all files of a release from the parts of both architectures: target/release-files
	@image/release.sh assemble

.PHONY: release-login
release-login: ## Log crane, helm and cosign in to REGISTRY, as REGISTRY_USER with REGISTRY_PASSWORD
	@image/release.sh login "$$REGISTRY"

.PHONY: release-publish
release-publish: ## Push image and chart of a release to REGISTRY
	@image/release.sh publish "$$REGISTRY"

.PHONY: release-sign
release-sign: ## Sign what release-publish pushed to REGISTRY, and all files, with cosign
	@image/release.sh sign "$$REGISTRY"

.PHONY: release-try
release-try: ## Install what was released on a kind cluster of the KUBERNETES oldest or newest (needs docker)
	@image/release.sh try "$$REGISTRY" "$$KUBERNETES"

.PHONY: release-announce
release-announce: ## Create the release on GitHub, with its files
	@image/release.sh announce

.PHONY: release-dry-run
release-dry-run: control-plane ## Make a whole release of the last commit, for both architectures, publish it to a local registry and run it (40 minutes; PROFILE=quick: 10)
	@image/release.sh dry-run

.PHONY: test-clients
test-clients: ## Install skopeo, buildah, podman, docker's client and others, and have them pull with the docker credential helper
	@tests/clients/install.sh
	@$(TOOLS) crane ecr-login
	$(CARGO) test --locked --test clients

.PHONY: kubelet-lab
kubelet-lab: ## Build the kubelet, kube-scheduler, kube-proxy and containerd, once (about 5 minutes)
	@for it in runc ip unshare findmnt cc nft /usr/lib/cni/ptp; do command -v $$it >/dev/null || \
	{ echo "kubelet-lab: there is no $$it (Debian: apt-get install" \
	"runc iproute2 util-linux gcc libc6-dev nftables containernetworking-plugins)" >&2; exit 1; }; done
	@$(TOOLS) kubelet-lab

.PHONY: kubelet-test
kubelet-test: control-plane kubelet-lab helm ## Have a real kubelet pull with the credential plugin and with the webhook (as root)
	$(CARGO) test --locked --test kubelet -- --nocapture --skip chart::

.PHONY: e2e
e2e: control-plane kubelet-lab helm image ## The same, and with the chart and the image as they are installed (as root)
	$(CARGO) test --locked --test kubelet -- --nocapture

.PHONY: control-plane
control-plane: ## Build kube-apiserver, etcd, kube-controller-manager and kubectl, once (about 6 minutes)
	@$(TOOLS) control-plane

.PHONY: helm
helm: ## Build Helm, with which the chart is rendered and tested, once (about 2 minutes)
	@$(TOOLS) helm

.PHONY: control-plane-oldest
control-plane-oldest: ## Build the same of the oldest Kubernetes that is tried, once (about 6 minutes)
	@$(TOOLS) control-plane-oldest

.PHONY: helm3
helm3: ## Build Helm 3, once (about 2 minutes)
	@$(TOOLS) helm3

.PHONY: kube-score
kube-score: ## Build kube-score, which looks at what the chart renders, once (about a minute)
	@$(TOOLS) kube-score

.PHONY: promtool
promtool: ## Get promtool, which tries the alerts and the dashboard, once (seconds)
	@$(INSTALL) promtool

.PHONY: demo
demo: control-plane ## Show the main job: one Deployment, two namespaces, one of them opted in
	$(CARGO) build --locked --quiet --bin ecr-injector --example demo
	@target/debug/examples/demo

.PHONY: demo-shell
demo-shell: control-plane ## The same, left running, with a KUBECONFIG to look around with
	$(CARGO) build --locked --quiet --bin ecr-injector --example demo
	@target/debug/examples/demo --shell

.PHONY: test
test: control-plane helm kube-score promtool ## Run every test that CI runs
	$(CARGO) test --locked

.PHONY: test-helm3
test-helm3: control-plane helm helm3 kube-score promtool ## Run the chart's tests with Helm 3
	HELM=$(TARGET)/helm3/helm $(CARGO) test --locked --test chart -- --skip examples::

.PHONY: test-oldest
test-oldest: control-plane-oldest helm kube-score promtool ## Run the tests against an API server on the oldest Kubernetes
	KUBEBUILDER_ASSETS=$(TARGET)/control-plane-oldest/bin $(CARGO) test --locked --test apiserver --test chart --test stress -- \
		--skip testbed:: --skip examples:: --skip policy:: --skip policy_mode:: --skip memory:: --skip soak::

.PHONY: test-fast
test-fast: ## Run the tests that need no control plane
	$(CARGO) test --locked --lib --test offline --test cli --test nodes -- --skip model::
	$(CARGO) test --locked --test stress memory::

.PHONY: kill-rounds
kill-rounds: control-plane ## Kill the leader in the middle of its work, 19 times with a short Lease and once with the usual
	ECR_INJECTOR_KILL_ROUNDS=19 $(CARGO) test --locked --test stress leader:: -- --nocapture

.PHONY: lost-pods
lost-pods: control-plane ## Opt 1,000 namespaces in just before their first Pods, with two replicas, and look for a lost registry
	ECR_INJECTOR_LOST_PODS=1000 $(CARGO) test --locked --test apiserver first_pods_lose_no_registry

.PHONY: week
week: ## Simulate a week of 10,000 namespaces with outages (about 5 minutes)
	ECR_INJECTOR_WEEK_NAMESPACES=10000 $(CARGO) test --locked --test offline refresh::week -- --nocapture

.PHONY: soak
soak: control-plane ## Change certificates, authorities, replicas and leaders under all the load that this machine makes
	$(CARGO) build --locked --release
	ECR_INJECTOR_SOAK_BINARY=$$PWD/target/release/ecr-injector $(CARGO) test --locked --test stress soak:: -- --nocapture

.PHONY: soak-long
soak-long: control-plane ## Run for SOAK_MINUTES (240) with churn, short tokens and faults, and see that nothing grows or expires
	SOAK_FAKETIME="$(FAKETIME)" $(CARGO) bench --locked --bench soak

.PHONY: sabotage
sabotage: helm kube-score promtool ## Take guards out of the chart and the manifests and see their tests turn red
	@tests/sabotage/run.sh

.PHONY: bench
bench: ## Compare the handler with a bare one, in requests per second and CPU per request
	$(CARGO) bench --locked --bench handler

.PHONY: peers
peers: ## Build the programs that we are measured beside, once (needs Go)
	@tests/tools/build.sh peers

.PHONY: compare
compare: peers ## The same beside Kubernetes' own sample webhook
	program=$$(image/binary.sh ecr-injector) && \
	ECR_INJECTOR=$$program AGNHOST=$(TARGET)/peers/agnhost $(CARGO) bench --locked --bench handler

.PHONY: bench-exec
bench-exec: peers small-binary-test ## Measure a run of ecr-credentials beside the plugin and the helper that people come from
	ECR_CREDENTIALS=$(TARGET)/static/$(shell uname -m)-unknown-linux-musl/small/ecr-credentials \
	ECR_CREDENTIAL_PROVIDER=$(TARGET)/peers/ecr-credential-provider ECR_LOGIN=$(TARGET)/peers/docker-credential-ecr-login \
	$(CARGO) bench --locked --bench exec

.PHONY: order
order: control-plane ## Find the functions that runs of both binaries call, for the linker (image/*.order; needs valgrind)
	@tests/tools/order.sh

.PHONY: cost
cost: ## Hold the instructions and allocations of a warm admission to those recorded (needs valgrind)
	$(CARGO) test --locked --test cost -- --nocapture

.PHONY: scale
scale: control-plane ## Measure the leader with 100, 1,000 and 10,000 real namespaces (about 15 minutes)
	$(CARGO) bench --locked --bench scale

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt

.PHONY: lint
lint: ## Format check, clippy, one TLS provider, licences and bans
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test image --test clients --test cost --test kubelet -- -D warnings
	@tests/one-tls-provider.sh
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --locked check bans licenses sources; \
	else echo "lint: licences, bans and sources not checked: no cargo-deny (make cargo-deny)"; fi

.PHONY: lint-docs
lint-docs: lint-markdown lint-spelling lint-links ## Check the documents (with -k all three, whatever fails)

.PHONY: lint-markdown
lint-markdown: ## Check the Markdown by the rules in .markdownlint.yaml
	@$(INSTALL) node
	@$(MARKDOWN) | xargs markdownlint-cli2

.PHONY: lint-spelling
lint-spelling: ## Check the spelling of documents and code; exceptions are in typos.toml
	@$(INSTALL) python
	@typos

.PHONY: lint-links
lint-links: ## Check that relative links and anchors in the documents lead somewhere
	@$(INSTALL) python
	@$(MARKDOWN) | lychee --offline --include-fragments --no-progress --files-from -

.PHONY: lint-workflows
lint-workflows: ## Check .github/workflows with actionlint and zizmor
	@$(TOOLS) actionlint
	@$(INSTALL) python
	$(TARGET)/actionlint/actionlint
	@zizmor --quiet --offline --persona=pedantic --no-progress .github

.PHONY: audit
audit: cargo-deny ## Look up the dependencies in the RustSec database (needs the network)
	$(CARGO) deny --locked check advisories

.PHONY: cargo-deny
cargo-deny: ## Install cargo-deny into target/tools, once (about 2 minutes)
	@$(INSTALL) cargo-deny

.PHONY: mutants
mutants: ## Mutate what differs from BASE (main), or FILES, and expect unit tests to fail
	@$(INSTALL) cargo-mutants
	@tests/tools/mutants.sh $(if $(FILES),run $(FILES:%=--file=%),diff $(BASE)) $(MUTANTS)

.PHONY: mutants-pure
mutants-pure: ## Mutate all pure rooms, in hours; MUTANTS="--shard 0/8" takes an eighth
	@$(INSTALL) cargo-mutants
	@tests/tools/mutants.sh pure $(MUTANTS)

.PHONY: fuzz
fuzz: ## Fuzz all TARGETS (fuzz/targets), each for FUZZ_SECONDS (60), and fail if anything is found
	@$(INSTALL) cargo-fuzz
	@tests/tools/fuzz.sh run $(TARGETS)

.PHONY: fuzz-corpus
fuzz-corpus: ## Write what fuzzing found worth keeping into fuzz/corpus, the smallest inputs first
	@$(INSTALL) cargo-fuzz
	@tests/tools/fuzz.sh minimize $(TARGETS)

.PHONY: schema
schema: helm ## Write docs/reference/config.schema.json, the JSON Schema of the configuration, and the chart's copy of it
	UPDATE=1 $(CARGO) test --locked --quiet --test cli config_file::schema_in_docs
	UPDATE=1 $(CARGO) test --locked --quiet --test chart templates::schema_of_the_values

.PHONY: dashboard
dashboard: helm ## Write the dashboard of the chart from docs/reference/metrics.md
	UPDATE=1 $(CARGO) test --locked --quiet --test chart dashboard::dashboard_is_made

.PHONY: commands
commands: ## Write docs/reference/commands.md, the help of all commands
	UPDATE=1 $(CARGO) test --locked --quiet --test offline commands::reference

.PHONY: man
man: build ## Write the manual pages of all commands into target/man
	target/debug/ecr-injector man --dir target/man

.PHONY: deploy
deploy: helm ## Write the chart's policy expressions, render deploy/ and certs/cert-manager.yaml, and the table in its README; print deploy/iam
	UPDATE=1 $(CARGO) test --locked --quiet --test chart -- expressions_in_the_chart
	UPDATE=1 $(CARGO) test --locked --quiet --test chart -- deploy_is_what certs_has readme_has
	UPDATE=1 $(CARGO) test --locked --quiet --test cli iam::deploy_has_what

.PHONY: versions
versions: ## Write the version in Cargo.toml wherever else it is, and render deploy/
	UPDATE=1 $(CARGO) test --locked --quiet --test offline versions::every_place_has_the_version
	$(MAKE) deploy

.PHONY: docs
docs: ## Build the API documentation, with warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

.PHONY: book
book: ## Build the book of docs/ into target/book, with warnings as errors
	@$(INSTALL) mdbook
	@tests/tools/book.sh

.PHONY: ci
ci: lint lint-docs lint-workflows docs book test ## What CI runs

.PHONY: test-all
test-all: ci cost image-test small-binary-test test-clients e2e test-helm3 test-oldest kill-rounds lost-pods soak sabotage bench ## Everything, also what takes longer than CI has

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean

# `make test` is the whole judgement; the other targets are its parts and what a contributor needs between.
.PHONY: test test-all soak quick lint crds chart bench bench-controller cluster cluster-down

test: ## format, lints, every test, a minute of fuzzing; ends with a count
	tests/all.sh

test-all: ## the same, with everything on every supported version of RabbitMQ, and with the largest numbers
	FULL=1 tests/all.sh

soak: ## 15 minutes at 500 messages a second, the broker killed every minute, the worker every two
	SOAK_SECONDS=900 STAGEPOST_TEST_RABBITMQ=4.0 cargo test --test broker soak:: -- --nocapture

quick: ## format, lints and the tests that need nothing but the toolchain, without fuzzing
	FUZZ_SECONDS=0 RABBITMQ= CLUSTER=0 COUNT=0 tests/all.sh

lint: ## format and lints alone
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

crds: ## writes crds/ from the Rust types
	cargo run --quiet -- crds --dir crds

chart: ## writes the chart's CRDs, deploy/ and the table of values, and lints the chart (needs helm)
	charts/generate
	$${HELM:-helm} lint --strict charts/stagepost

bench: ## Stagepost beside the limits, the least that can do the job, and a peer; 20 minutes (see benches/compare/main.rs)
	cargo bench --bench compare

bench-controller: ## what 300 objects cost a controller: time, requests, memory, two idle minutes (on our cluster)
	tests/cluster/cluster up >/dev/null && tests/cluster/cluster image-rabbitmq 4.0 && tests/cluster/image-stagepost
	tests/cluster/cluster exec env STAGEPOST_TEST_CLUSTER=own STAGEPOST_TEST_FULL=1 \
	  cargo test --test kubernetes steps::what -- --nocapture

cluster: ## a real one-node Kubernetes on this machine; see tests/cluster/README.md (needs root; the first time 9 minutes)
	@kubeconfig=$$(tests/cluster/cluster up) && printf '%s\n' \
	  "Kubernetes is up. From this machine:" "  export KUBECONFIG=$$kubeconfig" \
	  "With pods and Services in reach, kubectl and helm on the path:" "  tests/cluster/cluster exec kubectl get pods -A" \
	  "To end it:" "  make cluster-down"

cluster-down: ## ends it and removes all it made
	tests/cluster/cluster down

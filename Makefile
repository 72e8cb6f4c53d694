# `make test` is the whole judgement; the other targets are its parts and what a contributor needs between.
.PHONY: test test-all quick lint crds bench

test: ## format, lints, every test, a minute of fuzzing; ends with a count
	tests/all.sh

test-all: ## the same, with everything on every supported version of RabbitMQ
	FULL=1 tests/all.sh

quick: ## format, lints and the tests that need nothing but the toolchain, without fuzzing
	FUZZ_SECONDS=0 RABBITMQ= tests/all.sh

lint: ## format and lints alone
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

crds: ## writes crds/ from the Rust types
	cargo run --quiet -- crds --dir crds

bench: ## accepted and delivered messages a second on this machine, beside wrk straight to the sink
	cargo build --release
	benches/throughput

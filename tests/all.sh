#!/usr/bin/env bash
# Format, lints, all tests, a minute of fuzzing; then one line with the count. Called by `make test`.
#
# Everything runs on RabbitMQ 4.0; what must hold on every supported version runs on the others too. What is missing is
# installed first (see tests/rabbitmq/install).
#
# FUZZ_SECONDS: how long manifests, templates, cron expressions and Retry-After values are fuzzed (default 60, 0: not).
# SOAK_SECONDS: how long broker and worker are killed by turns under load (default 120, 0: not).
# RABBITMQ: the versions (default "4.0 3.10 4.3"; the first one runs everything; empty: none, and what needs a broker is
#   left out).
# CLUSTER: 1 (default): the operator is tried on a Kubernetes, on that of KUBECONFIG if it is set, else on one of our own
#   (see tests/cluster/README.md); 0: not.
# COUNT: 1 (default): the program is built as it is shipped, and what a message costs in it is counted (see
#   tests/callgrind/count); 0: not.
# FULL=1: everything on every version, and the largest numbers where a test has some.
set -uo pipefail
cd "$(dirname "$0")/.."
fuzz_seconds=${FUZZ_SECONDS:-60}
soak_seconds=${SOAK_SECONDS:-120}
unset SOAK_SECONDS
[ -z "${FULL-}" ] || export STAGEPOST_TEST_FULL=1
cluster=${CLUSTER:-1}
count=${COUNT:-1}
read -ra versions <<<"${RABBITMQ-4.0 3.10 4.3}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed_steps=()
failed_without_a_test=0
# What one step leaves out and another one does.
done_apart='^$'

step() { # NAME COMMAND...
  local name=$1 start=$SECONDS failing_before
  failing_before=$(failing)
  shift
  printf '\n== %s\n' "$name"
  if "$@" 2>&1 | tee -a "$log"; then
    printf '== %s: ok, %s s\n' "$name" $((SECONDS - start))
  else
    printf '== %s: FAILED, %s s\n' "$name" $((SECONDS - start))
    failed_steps+=("$name")
    # Lints, an installation, a build: no test says that it failed.
    [ "$(failing)" -gt "$failing_before" ] || failed_without_a_test=$((failed_without_a_test + 1))
  fi
}

failing() { # how many tests have failed so far
  awk '/^test result:/ {f += $6} END {print f + 0}' "$log"
}

on() { # VERSION TEST-ARGUMENTS...: tests that need a broker have one of this version
  local version=$1
  shift
  STAGEPOST_TEST_RABBITMQ=$version cargo test --no-fail-fast "$@"
}

scenarios_on() { # VERSION: the scenarios, which say nothing of stores, on a broker instead of the embedded store
  STAGEPOST_TEST_STORES=rabbitmq on "$1" --test scenarios
}

chart() { # the chart and the plain manifests are as generated, and nothing in them is doubtful
  local helm
  helm=$(tests/cluster/cluster exec which helm)
  HELM=$helm charts/generate --check && "$helm" lint --strict charts/stagepost
}

kubernetes() { # the operator, installed by its chart
  if [ -n "${KUBECONFIG-}" ]; then
    STAGEPOST_TEST_CLUSTER=given cargo test --no-fail-fast --test kubernetes -- --test-threads 4
  else
    tests/cluster/image-stagepost &&
      tests/cluster/cluster exec env STAGEPOST_TEST_CLUSTER=own cargo test --no-fail-fast --test kubernetes -- --test-threads 4
  fi
}

[ ${#versions[@]} -eq 0 ] || step brokers tests/rabbitmq/install "${versions[@]}"
step format cargo fmt --check
step lints cargo clippy --quiet --all-targets -- -D warnings
step tests on "${versions[0]-}"
if [ "$count" != 0 ]; then
  step "instructions of the hot paths" tests/callgrind/count
  done_apart="$done_apart|counting instructions"
fi
for version in "${versions[@]}"; do
  if [ "$version" != "${versions[0]}" ]; then
    if [ -n "${FULL-}" ]; then
      step "contract, facts and faults on $version" on "$version" --test contract --test broker
    else
      step "contract on $version" on "$version" --test contract -- rabbitmq
      step "facts on $version" on "$version" --test broker -- confirms:: records:: facts:: failover:: r10_ r14_ m2_ m7_ m10_ e2_ a12_
    fi
  fi
  step "scenarios on $version" scenarios_on "$version"
done
if [ ${#versions[@]} -gt 0 ] && [ "$soak_seconds" -gt 0 ]; then
  step soak env SOAK_SECONDS="$soak_seconds" STAGEPOST_TEST_RABBITMQ="${versions[0]}" \
    cargo test --test broker soak:: -- --nocapture
  done_apart="$done_apart|the soak"
fi
if [ "$cluster" != 0 ]; then
  if [ -z "${KUBECONFIG-}" ]; then
    was_up=$(tests/cluster/cluster status >/dev/null 2>&1 && echo yes)
    step "a cluster" tests/cluster/cluster up && step "its broker" tests/cluster/cluster image-rabbitmq 4.0
    step chart chart
  fi
  step kubernetes kubernetes
  [ -n "${KUBECONFIG-}" ] || [ "$was_up" = yes ] || tests/cluster/cluster down
  done_apart="$done_apart|tests on Kubernetes"
fi
if [ "$fuzz_seconds" -gt 0 ]; then
  # Four targets, one after the other.
  step fuzzing env FUZZ_SECONDS=$(((fuzz_seconds + 3) / 4)) cargo test --test fuzz -- --nocapture --test-threads 1
fi

read -r passed failed ignored < <(awk '/^test result:/ {p += $4; f += $6; i += $8} END {print p + 0, f + 0, i + 0}' "$log")
grep -E '^ *(left out|LEFT OUT):' "$log" | grep -Ev "$done_apart" | sort -u
failed=$((failed + failed_without_a_test))
printf '\n'
[ ${#failed_steps[@]} -eq 0 ] || printf 'failed: %s\n' "${failed_steps[*]}"
printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$ignored"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

#!/usr/bin/env bash
# Format, lints, all tests, a minute of fuzzing; then one line with the count. Called by `make test`.
#
# FUZZ_SECONDS: how long manifests, templates, cron expressions and Retry-After values are fuzzed (default 60, 0: not).
set -uo pipefail
cd "$(dirname "$0")/.."
fuzz_seconds=${FUZZ_SECONDS:-60}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed_steps=()

step() { # NAME COMMAND...
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  if "$@" 2>&1 | tee -a "$log"; then
    printf '== %s: ok, %s s\n' "$name" $((SECONDS - start))
  else
    printf '== %s: FAILED, %s s\n' "$name" $((SECONDS - start))
    failed_steps+=("$name")
  fi
}

step format cargo fmt --check
step lints cargo clippy --quiet --all-targets -- -D warnings
step tests cargo test --no-fail-fast
if [ "$fuzz_seconds" -gt 0 ]; then
  # Four targets, one after the other.
  step fuzzing env FUZZ_SECONDS=$(((fuzz_seconds + 3) / 4)) cargo test --test fuzz -- --nocapture --test-threads 1
fi

read -r passed failed ignored < <(awk '/^test result:/ {p += $4; f += $6; i += $8} END {print p + 0, f + 0, i + 0}' "$log")
grep -E '^(left out|LEFT OUT):' "$log" | sort -u
failed=$((failed + ${#failed_steps[@]}))
printf '\n'
[ ${#failed_steps[@]} -eq 0 ] || printf 'failed: %s\n' "${failed_steps[*]}"
printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$ignored"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

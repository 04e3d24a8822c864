#!/usr/bin/env bash
# What `make test` runs, in the order in which a fault is found soonest.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/target/tools/bin:$PATH:/usr/sbin"

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
# The whole workspace is built before its first test runs; nothing has to be built again for a test of the system.
export MUSTER_BINARIES="$PWD/target/debug"
# Each test that leaves something has it searched for secrets, and notes that here.
MUSTER_SWEPT=$(mktemp)
export MUSTER_SWEPT
trap 'rm -f "$MUSTER_SWEPT"' EXIT
cargo test --workspace --locked --no-fail-fast
integration-tests/scripts/swept.sh "$MUSTER_SWEPT"

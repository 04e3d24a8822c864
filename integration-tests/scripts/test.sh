#!/usr/bin/env bash
# What `make test` runs, in the order in which a fault is found soonest.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/target/tools/bin:$PATH:/usr/sbin"

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
cargo test --workspace --locked

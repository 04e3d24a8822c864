#!/usr/bin/env bash
# A broken system made ready: the lab with faults in it, nats-server, a coordinator and an agent as processes of their own,
# and revenue-engine-rollout from its first step to its last milestone. Ends everything it started, and leaves nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/target/release:$PWD/target/tools/bin:$PATH:/usr/sbin"

say() { printf '\n== %s\n' "$*" >&2; }

say "building (the first time takes a few minutes)"
cargo build --release --locked --quiet --bin muster --bin muster-lab --bin sample-service

dir=$(mktemp -d "${TMPDIR:-/tmp}/muster-demo-XXXXXX")
chmod 755 "$dir"
pids=()
finish() {
  local status=$?
  [ $status = 0 ] || { say "something went wrong; the logs' last lines:"; tail -n 15 "$dir"/*.log >&2 || true; }
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

until_ready() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt "$end" ] || { echo "$what: not in time" >&2; return 1; }
    sleep 0.1
  done
}
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

say "the lab: PostgreSQL, PgBouncer, nginx and a sample service, with faults in them"
muster-lab up --keep --inputs-file "$dir/inputs.json" >"$dir/lab.env" 2>"$dir/lab.log" &
pids+=($!)
until_ready 60 "the lab" grep -q READY=1 "$dir/lab.env"
nats=$(sed -n 's/^NATS_URL=//p' "$dir/lab.env")

say "a coordinator and an agent"
export MUSTER_SERVER="http://127.0.0.1:$(port)" MUSTER_TOKEN_FILE="$dir/data/admin.token"
muster serve --data-dir "$dir/data" --nats "$nats" --listen "${MUSTER_SERVER#http://}" >"$dir/serve.log" 2>&1 &
pids+=($!)
until_ready 30 "the coordinator" muster agent list
muster agent run --role infra --name infra-1 --nats "$nats" --data-dir "$dir/infra-1" >"$dir/infra-1.log" 2>&1 &
pids+=($!)
until_ready 30 "the agent" sh -c 'muster agent get infra-1 -o json | grep -q READY'

say "before, by openssl, curl and psql"
muster-lab probe --inputs-file "$dir/inputs.json" || true

say "the rollout"
muster playbook submit playbooks/revenue-engine-rollout.yaml
muster run start revenue-engine-rollout --inputs "$dir/inputs.json" --watch
muster milestone list

say "after, by openssl, curl and psql"
muster-lab probe --inputs-file "$dir/inputs.json"
say "done"

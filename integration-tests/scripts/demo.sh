#!/usr/bin/env bash
# A broken system made ready: the lab with faults in it, nats-server, a coordinator and three agents as processes of their own,
# and revenue-engine-rollout from its first step to its last milestone; then once more, which has to change nothing. Ends
# everything it started, and leaves nothing. MUSTER_DEMO_PROFILE=debug takes the debug build; MUSTER_BINARIES a folder of
# programs that are built already.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${MUSTER_DEMO_PROFILE:-release}
export PATH="${MUSTER_BINARIES:-$PWD/target/$profile}:$PWD/target/tools/bin:$PATH:/usr/sbin"

say() { printf '\n== %s\n' "$*" >&2; }

if [ -z "${MUSTER_BINARIES:-}" ]; then
  say "building (the first time takes a few minutes)"
  as=(--release)
  [ "$profile" = release ] || as=()
  cargo build "${as[@]}" --locked --quiet --bin muster --bin muster-lab --bin sample-service
fi

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

# What the steps saw that change nothing.
saw() { # RUN
  muster run get "$1" -o json | jq -r '
    .steps[] | select(.undo != "auto")
    | "\(.id)\t\([.attempts[-1].observations[]? | "\(.name) \(.value // 0) \(.unit)"] | join(", "))"' |
    awk -F '\t' '{ printf "%-16s %s\n", $1, $2 }'
}

# Names the steps that could change something and are not `unchanged`; fails when there are any.
all_unchanged() { # RUN
  muster run get "$1" -o json | jq -r '
    .steps[] | select(.undo == "auto" and (.attempts | map(select(.purpose == "PURPOSE_RUN")) | last.unchanged | not))
    | "\(.id) is not unchanged"' | { ! grep . >&2; }
}

say "the lab: PostgreSQL, PgBouncer, Redis, nginx and a service with two sides, with faults in them"
muster-lab up --keep --inputs-file "$dir/inputs.json" >"$dir/lab.env" 2>"$dir/lab.log" &
pids+=($!)
until_ready 60 "the lab" grep -q READY=1 "$dir/lab.env"
nats=$(sed -n 's/^NATS_URL=//p' "$dir/lab.env")

say "a coordinator and three agents: infra, integration, deployment"
export MUSTER_SERVER="http://127.0.0.1:$(port)" MUSTER_TOKEN_FILE="$dir/data/admin.token"
muster serve --data-dir "$dir/data" --nats "$nats" --listen "${MUSTER_SERVER#http://}" >"$dir/serve.log" 2>&1 &
pids+=($!)
until_ready 30 "the coordinator" muster agent list
for role in infra integration deployment; do
  allow=$(sed -n "s/^ALLOW_${role^^}=//p" "$dir/lab.env")
  muster agent run --role "$role" --name "$role-1" --nats "$nats" --data-dir "$dir/$role-1" ${allow:+--allow "$allow"} \
    >"$dir/$role-1.log" 2>&1 &
  pids+=($!)
done
for role in infra integration deployment; do
  until_ready 30 "the agent $role-1" sh -c "muster agent get $role-1 -o json | grep -q READY"
done

say "before, by openssl, curl, psql, redis-cli and pg_verifybackup"
muster-lab probe --inputs-file "$dir/inputs.json" || true

say "the rollout"
muster playbook submit playbooks/revenue-engine-rollout.yaml
muster run start revenue-engine-rollout --inputs "$dir/inputs.json" --watch
muster milestone list

say "after, by openssl, curl, psql, redis-cli and pg_verifybackup"
muster-lab probe --inputs-file "$dir/inputs.json"

say "the same again"
run=$(muster run start revenue-engine-rollout --inputs "$dir/inputs.json" -o json | jq -r .runId)
muster run watch "$run" >"$dir/second.log" 2>&1
muster run get "$run"
say "what the steps saw that change nothing"
saw "$run"
all_unchanged "$run"
say "done"

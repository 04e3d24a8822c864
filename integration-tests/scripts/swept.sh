#!/usr/bin/env bash
# Says of the ledger of MUSTER_SWEPT what was searched for secrets in what the tests have left. Fails when nothing was: for each
# program of tests that starts the system or a server of the lab, there has to be a folder with something in it.
set -euo pipefail
ledger=$1
cd "$(dirname "$0")/../tests"

awk -F '\t' '{ folders++; files += $3; bytes += $4 }
  END { printf "searched for secrets: %d files, %d MB, in %d folders\n", files, bytes / 1e6, folders; exit !(files > 0) }' "$ledger"
missing=0
for test in $(grep -rlE 'System::start|Lab::start|lab::folder|Folder::of' --include=*.rs . | cut -d / -f 2 | sed 's/\.rs$//' | sort -u); do
  if ! awk -F '\t' -v test="$test" '$1 ~ "^" test "-[0-9a-f]+$" && $3 > 0 { found = 1 } END { exit !found }' "$ledger"; then
    echo "searched for secrets: nothing of what the test $test has left" >&2
    missing=1
  fi
done
exit $missing

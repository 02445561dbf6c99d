#!/usr/bin/env bash
# fuzz.sh PACKAGE TARGET TIME: runs one fuzz target. When its time is up, go test may say "context deadline exceeded" and
# fail although no input did; a real failure names the input that it wrote.
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "$1 $2"
if go test "./$1" -run '^$' -fuzz "^$2\$" -fuzztime "$3" -fuzzminimizetime 2s >"$log" 2>&1; then
	grep -E 'elapsed' "$log" | tail -n 1
elif grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input' "$log"; then
	echo "time was up"
else
	cat "$log"
	exit 1
fi

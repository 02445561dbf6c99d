#!/bin/bash
# Installs the files of a release and runs them: the .deb in a booted Debian 12 without a network, the .rpm with its scriptlets in a
# folder, and the arm64 builds by qemu. It needs root, and nothing but dist/ of the release.
#
#   run.sh [--only deb|rpm|arm64|archives]... DIST
set -euo pipefail

source=$(cd "$(dirname "$0")/../../.." && pwd)
cache=$source/.tools/release-test
only=
while [ "${1:-}" = --only ]; do
	only="$only $2"
	shift 2
done
dist=$(cd "${1:?usage: run.sh [--only PART] DIST}" && pwd)
[ "$(id -u)" = 0 ] || { echo "package test: it needs root: debootstrap and systemd-nspawn" >&2; exit 1; }
work=$(mktemp -d)
binfmt= mounted=
. "$source/deploy/packages/test/lib.sh"

clean() {
	halt
	[ -z "$binfmt" ] || echo -1 >"$binfmt"
	[ -z "$mounted" ] || umount "$mounted"
	rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 143' TERM INT

for part in archives deb rpm arm64; do
	case " ${only:-archives deb rpm arm64} " in
	*" $part "*)
		# shellcheck source=/dev/null
		. "$source/deploy/packages/test/$part.sh"
		;;
	esac
done
say "every part passed"

#!/bin/sh
# dpkg: remove, purge, upgrade and others; rpm: 0 when the last version is removed. The ledger and the secrets are never deleted, nor is the
# user that they belong to.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
case "$1" in
purge | 0)
	for dir in /var/lib/hsmsign /etc/hsmsign/secrets; do
		if [ -d "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
			echo "hsmsign: $dir is kept. Delete it yourself if nobody needs the record and its keys any more."
		fi
	done
	;;
esac

#!/bin/sh
# dpkg: remove, upgrade, deconfigure or failed-upgrade; rpm: 0 when the last version is removed. An upgrade stops nothing: the new version
# restarts the service.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl stop hsmsign-due.timer hsmsign-due.service hsmsign.socket hsmsign.service
fi
if command -v systemctl >/dev/null; then
	systemctl --quiet --no-reload disable hsmsign.socket hsmsign.service hsmsign-due.timer
fi

#!/bin/sh
# dpkg: configure [OLD-VERSION], or abort-*; rpm: 1 at the first installation, more at an upgrade.
# An upgrade restarts the service if it runs. A first installation enables and starts nothing: there is no key yet.
set -e

case "$1" in
configure) [ -z "$2" ] && first=yes || first= ;;
1) first=yes ;;
[2-9]*) first= ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart hsmsign.service ||
		echo "hsmsign: the service does not start; see: systemctl status hsmsign.service" >&2
fi
if [ -n "$first" ]; then
	echo "hsmsign: the service is not enabled. Configure it with: hsmsign setup"
	echo "hsmsign: then start it with: systemctl enable --now hsmsign.socket hsmsign.service hsmsign-due.timer"
fi

#!/bin/sh
# Makes the user and the group hsmsign, before files that belong to them are unpacked. The lines are those of
# /usr/lib/sysusers.d/hsmsign.conf, which is not unpacked yet.
set -e

if getent passwd hsmsign >/dev/null && getent group hsmsign >/dev/null; then
	exit 0
fi
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers --replace=/usr/lib/sysusers.d/hsmsign.conf - <<'SYSUSERS'
u hsmsign - "Signing agent of an MDM vendor" /var/lib/hsmsign /usr/sbin/nologin
SYSUSERS
	exit 0
fi
getent group hsmsign >/dev/null || groupadd --system hsmsign
getent passwd hsmsign >/dev/null || useradd --system --gid hsmsign --home-dir /var/lib/hsmsign --no-create-home \
	--shell /usr/sbin/nologin --comment "Signing agent of an MDM vendor" hsmsign

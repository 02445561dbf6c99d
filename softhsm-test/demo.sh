#!/usr/bin/env bash
# Runs docs/walkthrough.md unchanged in demo-out/: from an empty SoftHSM2 token, or a key file if SoftHSM2 is missing, to a
# push certificate as PKCS#12, with a test PKI instead of Apple.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
walkthrough=$PWD/docs/walkthrough.md
rm -rf demo-out && mkdir demo-out && cd demo-out

module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
if [ -z "$module" ] || ! command -v softhsm2-util >/dev/null; then
	echo "SoftHSM2 is missing: the vendor's key is a file"
	module=
	(umask 077 && echo 'a passphrase of the vendor' >vendor-pass)
	export HSMSIGN_KEY='file:vendor.key?passphrase-file=vendor-pass'
fi

# The blocks marked "sh", and with a token those marked "sh softhsm", with their headings. Each command is shown as bash
# reads it.
{
	echo "PS4='\$ '; set -x"
	awk -v softhsm="$module" '
		/^## [0-9]/ { printf "{ set +x; } 2>/dev/null; echo; echo \"%s\"; set -x\n", substr($0, 4) }
		/^```sh$/ || (softhsm != "" && /^```sh softhsm$/) { on = 1; next }
		/^```/ { on = 0 }
		on { print }
	' "$walkthrough" | sed "s,/usr/lib/softhsm/libsofthsm2.so,${module:-none},"
	echo "{ set +x; } 2>/dev/null"
} >walkthrough.sh
bash -euo pipefail walkthrough.sh 2>&1

echo
echo "Done: see demo-out/. The customer uploads acme.req to https://identity.apple.com/pushcert and imports"
echo "MDM_APNSCert.pfx into the MDM server. Here a test PKI issued the certificates instead of Apple."

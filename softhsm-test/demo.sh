#!/usr/bin/env bash
# Runs docs/walkthrough.md as it stands, in demo-out/: from an empty SoftHSM2 token, or a key file where there is no
# SoftHSM2, to a push certificate as PKCS#12, with a test PKI in Apple's place.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
walkthrough=$PWD/docs/walkthrough.md
rm -rf demo-out && mkdir demo-out && cd demo-out

module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
if [ -z "$module" ] || ! command -v softhsm2-util >/dev/null; then
	echo "no SoftHSM2 here: the vendor's key is a file"
	module=
	(umask 077 && echo 'a passphrase of the vendor' >vendor-pass)
	export HSMSIGN_KEY='file:vendor.key?passphrase-file=vendor-pass'
fi

# The blocks marked "sh", with "sh softhsm" where there is a token; headings on the way. Each command is shown as bash
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
echo "Done: see demo-out/. acme.req is what the customer would upload to https://identity.apple.com/pushcert, and"
echo "MDM_APNSCert.pfx what goes into the MDM server, with certificates from Apple in the test PKI's place."

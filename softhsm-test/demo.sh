#!/usr/bin/env bash
# Runs the commands of docs/walkthrough.md in demo-out/, from an empty SoftHSM2 token to a push certificate as PKCS#12,
# with a test PKI instead of Apple. Without SoftHSM2 the vendor's key is in a file.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
walkthrough=$PWD/docs/walkthrough.md
rm -rf demo-out && mkdir demo-out && cd demo-out

module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
if [ -z "$module" ] || ! command -v softhsm2-util >/dev/null; then
	echo "SoftHSM2 is not installed: the vendor's key is in a file"
	module=
	(umask 077 && echo 'a passphrase of the vendor' >vendor-pass)
	export HSMSIGN_KEY='file:vendor.key?passphrase-file=vendor-pass'
fi

# The script is the blocks marked "sh" and, with SoftHSM2, "sh softhsm". It prints the headings and each command.
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
echo "Done. The files are in demo-out/. With Apple's certificates instead of the test PKI's, the customer uploads acme.req to"
echo "https://identity.apple.com/pushcert and imports MDM_APNSCert.pfx into the MDM server."

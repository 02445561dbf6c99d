#!/usr/bin/env bash
# Runs the commands of docs/walkthrough.md in demo-out/, from an empty SoftHSM2 token to a push certificate as PKCS#12,
# with a test PKI instead of Apple. Without SoftHSM2 the vendor's key is in a file.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
walkthrough=$PWD/docs/walkthrough.md
rm -rf demo-out && mkdir demo-out && cd demo-out
unset "${!HSMSIGN_@}" # what is left of another use of hsmsign

module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
if [ -z "$module" ] || ! command -v softhsm2-util >/dev/null; then
	echo "SoftHSM2 is not installed: the vendor's key is in a file"
	module=
	(umask 077 && echo 'a passphrase of the vendor' >vendor-pass)
	export HSMSIGN_KEY='file:vendor.key?passphrase-file=vendor-pass'
fi

# The script is the blocks marked "sh" and, with SoftHSM2, "sh softhsm". It prints the headings and each command as it is
# written there.
awk -v softhsm="$module" -v quote="'" '
	function quoted(text) { gsub(quote, quote "\\" quote quote, text); return quote text quote }
	/^## [0-9]/ { print "echo; echo " quoted(substr($0, 4)) }
	/^```sh$/ || (softhsm != "" && /^```sh softhsm$/) { on = 1; next }
	/^```/ { on = 0 }
	on { command = command $0 "\n" }
	on && !/\\$/ { print "printf %s " quoted("$ " command); printf "%s", command; command = "" }
' "$walkthrough" | sed "s,/usr/lib/softhsm/libsofthsm2.so,${module:-none}," >walkthrough.sh
bash -euo pipefail walkthrough.sh 2>&1

cat <<'EOT'

Done. In demo-out/:
  vendor.csr, vendor.pem       the vendor's CSR, and its certificate with the chain
  push.key, acme.csr           the customer's key and CSR
  acme.req                     the request that the vendor signed
  MDM_Acme_Certificate.pem     the push certificate for it, and MDM_Acme_renewed.pem its renewal
  MDM_APNSCert.pfx             push certificate and key for the MDM server
  ledger.db, ledger.pub        the ledger, and its public key; acme.req.tlog-proof is the receipt of acme.req
A test PKI issued the certificates instead of Apple. With Apple's, the customer uploads acme.req to
https://identity.apple.com/pushcert.
EOT

#!/usr/bin/env bash
# Runs the commands of docs/walkthrough.md in demo-out/, from an empty SoftHSM2 token to a push certificate as PKCS#12,
# with a test PKI instead of Apple, and those of docs/service.md in demo-out/service/. Without SoftHSM2 the vendor's key is in
# a file.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
docs=$PWD/docs
rm -rf demo-out && mkdir -p demo-out/service && cd demo-out
unset "${!HSMSIGN_@}" # what is left of another use of hsmsign

module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
if [ -z "$module" ] || ! command -v softhsm2-util >/dev/null; then
	echo "SoftHSM2 is not installed: the vendor's key is in a file"
	module=
	(umask 077 && echo 'a passphrase of the vendor' | tee service/vendor-pass >vendor-pass)
	export HSMSIGN_KEY='file:vendor.key?passphrase-file=vendor-pass'
fi
kinds= # of blocks, besides those marked "sh"
[ -z "$module" ] || kinds=softhsm
! hsmsign sign --help | grep -q -e --agent || kinds="$kinds agent"

# script DOCUMENT: prints a script of the document's blocks marked "sh" and "sh KIND". It prints the headings and each command
# as it is written there.
script() {
	awk -v kinds=" $kinds " -v quote="'" '
		function quoted(text) { gsub(quote, quote "\\" quote quote, text); return quote text quote }
		/^##+ [0-9]/ { sub(/^#+ /, ""); print "echo; echo " quoted($0) }
		/^```sh$/ || (/^```sh [a-z]+$/ && index(kinds, " " $2 " ")) { on = 1; next }
		/^```/ { on = 0 }
		on { command = command $0 "\n" }
		on && /<<EOF$/ { here = 1 }
		on && $0 == "EOF" { here = 0 }
		on && !here && !/\\$/ { print "printf %s " quoted("$ " command); printf "%s", command; command = "" }
	' "$1" | sed "s,/usr/lib/softhsm/libsofthsm2.so,${module:-none},"
}

# port FIRST: prints the first port from FIRST on that nobody listens on.
port() {
	local p=$1
	while (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; do p=$((p + 1)); done
	echo "$p"
}

script "$docs/walkthrough.md" >walkthrough.sh
bash -euo pipefail walkthrough.sh 2>&1

printf '\nThe service\n'
{
	echo "service=; trap '[ -z \"\$service\" ] || kill \$service 2>/dev/null || true' EXIT" # whatever fails, no service is left
	script "$docs/service.md" | sed "s,8443,$(port 8443),g; s,9090,$(port 9090),g"
} >service/service.sh
(cd service && bash -euo pipefail service.sh 2>&1)

cat <<'EOT'

Done. In demo-out/:
  vendor.csr, vendor.pem       the vendor's CSR, and its certificate with the chain
  push.key, acme.csr           the customer's key and CSR
  acme.req                     the request that the vendor signed
  MDM_Acme_Certificate.pem     the push certificate for it, and MDM_Acme_renewed.pem its renewal
  MDM_APNSCert.pfx             push certificate and key for the MDM server
  ledger.db, ledger.pub        the ledger, and its public key; acme.req.tlog-proof is the receipt of acme.req
In demo-out/service/, of a service that was started, asked and stopped:
  hsmsign.yaml, service.log    its configuration, and what it logged
  acme.req                     the request that it signed for curl, and acme.req.tlog-proof its receipt
  ledger.db                    its ledger, which was verified
A test PKI issued the certificates instead of Apple. With Apple's, the customer uploads acme.req to
https://identity.apple.com/pushcert.
EOT

#!/usr/bin/env bash
# The main job from end to end, as a vendor would do it, with a test PKI in Apple's place: a customer's CSR in, Apple's
# Push Certificate Request out, once with the vendor's key in a file and once in a SoftHSM2 token. Leaves all of it in
# demo-out/.
set -euo pipefail
cd "$(dirname "$0")/.."
hsmsign=$PWD/bin/hsmsign
rm -rf demo-out && mkdir demo-out && cd demo-out
umask 077

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ hsmsign'; printf ' %s' "${@:2}"; printf '\n'; "$@"; }

say "1. The vendor's key and CSR, and a certificate from a test PKI in Apple's place"
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out vendor.key 2>/dev/null ||
	openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out vendor.key 2>/dev/null
openssl req -new -key vendor.key -subj "/C=US/O=Example MDM/CN=Example MDM" -out vendor.csr
run "$hsmsign" testpki --csr vendor.csr --out-dir pki

say "2. A customer's CSR"
openssl req -new -newkey rsa:2048 -noenc -keyout customer.key -subj "/C=US/O=Acme/CN=Acme MDM Push" -out acme.csr 2>/dev/null
run "$hsmsign" inspect acme.csr

say "3. Signed with the key in a file"
run "$hsmsign" sign --key file:vendor.key --cert pki/vendor.pem --trust-root pki/root.pem -o acme-file.req acme.csr

say "4. Signed with the same key inside a SoftHSM2 token"
module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
mkdir tokens && printf 'directories.tokendir = %s\nlog.level = ERROR\n' "$PWD/tokens" >softhsm2.conf
export SOFTHSM2_CONF=$PWD/softhsm2.conf
printf '4711\n' >pin
softhsm2-util --init-token --free --label mdm --pin 4711 --so-pin 47114711 >/dev/null
softhsm2-util --import vendor.key --token mdm --pin 4711 --label vendor --id 01 >/dev/null
run "$hsmsign" sign --key "pkcs11:token=mdm;object=vendor?module-path=$module&pin-source=file:pin" \
	--cert pki/vendor.pem --trust-root pki/root.pem -o acme-hsm.req acme.csr
cmp acme-file.req acme-hsm.req && echo "both requests are the same, byte for byte"

say "5. Looked at as Apple's portal would"
run "$hsmsign" verify --trust-root pki/root.pem --csr acme.csr acme-hsm.req
openssl base64 -d -A -in acme-hsm.req -out acme.plist
xmllint --noout acme.plist && echo "xmllint: the property list is well-formed"

say "Done: demo-out/acme-hsm.req is what the customer would upload to https://identity.apple.com/pushcert"
echo "(with a vendor certificate from Apple in the test PKI's place)"

#!/usr/bin/env bash
# Runs the conformance suite of signer/pkcs11 on opencryptoki's soft token: another implementation of PKCS#11, which signs
# with CKM_RSA_PKCS only. Token and daemon belong to the machine, so this needs root, creates the token hsmsign-test only
# if the slot is empty, and does not touch another token.
set -euo pipefail
cd "$(dirname "$0")/.."

module=$(ls /usr/lib/*/opencryptoki/libopencryptoki.so.0 | head -1)
label=hsmsign-test pin=648219 so_pin=87654321 # of every new token
work=$(mktemp -d)
daemon=

finish() {
	[ -z "$daemon" ] || pkill -x pkcsslotd || true
	rm -rf "$work"
}
trap finish EXIT

tool() { timeout 30 pkcs11-tool --module "$module" "$@"; }

if ! pkcsconf -t >/dev/null 2>&1; then
	pkcsslotd
	daemon=started
fi
for _ in $(seq 50); do
	info=$(pkcsconf -t 2>/dev/null) && break
	sleep 0.1
done

# The soft token's slot, and the label of its token.
read -r slot there < <(awk <<<"${info:-}" '
	/^Token #/ {slot = substr($2, 2)}
	/Label:/ {sub(/.*Label: */, ""); sub(/ *$/, ""); label = $0}
	/IBM SoftTok/ {print slot, label; exit}') || { echo "opencryptoki shows no soft token: is libpkcs11_sw.so in /etc/opencryptoki/opencryptoki.conf?" >&2; exit 1; }
case "$there" in
"$label") ;;
"IBM OS PKCS#11") # the slot is empty
	tool --slot "$slot" --init-token --label "$label" --so-pin "$so_pin"
	tool --slot "$slot" --init-pin --login --login-type so --so-pin "$so_pin" --new-pin "$pin"
	;;
*)
	echo "slot $slot of opencryptoki has the token \"$there\", which this must not use; run it on another machine" >&2
	exit 1
	;;
esac

(umask 077 && echo "$pin" >"$work/pin")
ref="pkcs11:token=$label;object=vendor?module-path=$module&pin-source=file:$work/pin"
bin/hsmsign key show --key "$ref" >/dev/null 2>&1 || bin/hsmsign key generate --key "$ref"
bin/hsmsign doctor --key "$ref"
HSMSIGN_TEST_PKCS11=$ref go test ./signer/pkcs11 -run TestAnyToken -count=1 -v

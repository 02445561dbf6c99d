#!/usr/bin/env bash
# Runs the conformance suite of signer/pkcs11 on opencryptoki's soft token: another implementation of PKCS#11, which signs
# with CKM_RSA_PKCS only. Token and daemon belong to the machine, so this needs root, creates the token hsmsign-test only
# if the slot is empty, and does not touch another token.
daemon=
finish() { [ -z "$daemon" ] || pkill -x pkcsslotd; }
source "$(dirname "$0")/anytoken.sh"

module=$(ls /usr/lib/*/opencryptoki/libopencryptoki.so.0 | head -1)
label=hsmsign-test

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

ref="pkcs11:token=$label;object=vendor?module-path=$module&pin-source=file:$work/pin"
"$hsmsign" key show --key "$ref" >/dev/null 2>&1 || "$hsmsign" key generate --key "$ref"
suite "$ref"

login=(--slot "$slot" --login --pin "$pin")
remove() { tool "${login[@]}" --delete-object --type privkey --label golden; }
remove >/dev/null 2>&1 || true # of a run that was interrupted
openssl pkey -in "$golden/vendor.key" -outform DER -out "$work/golden.der"
quietly tool "${login[@]}" --write-object "$work/golden.der" --type privkey --label golden --usage-sign
same "${ref/object=vendor/object=golden}"
expect 4 'no-such-key' "$hsmsign" key show --key "${ref/object=vendor/object=no-such-key}"
quietly remove
HSMSIGN_PIN=111111 expect 5 'CKR_PIN_INCORRECT' "$hsmsign" key show --key "${ref%&pin-source*}"
"$hsmsign" key show --key "$ref" >/dev/null # the right PIN, which resets the counter
rate "$ref" 1000

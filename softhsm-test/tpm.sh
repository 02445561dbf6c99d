#!/usr/bin/env bash
# Runs the conformance suite of signer/pkcs11 on a TPM 2.0: the emulator swtpm, its resource manager tpm2-abrmd, and
# tpm2-pkcs11 as the module. Token, keys, D-Bus session and emulator are in a folder that is removed; no TPM of the machine
# is used, and no root is needed.
bus=
finish() {
	bash softhsm-test/swtpm.sh end
	[ -z "$bus" ] || kill "$bus"
	wait
}
source "$(dirname "$0")/anytoken.sh"

export TPM_FOLDER=$work DBUS_SESSION_BUS_ADDRESS=unix:path=$work/bus
export TPM2TOOLS_TCTI=tabrmd:bus_type=session TPM2_PKCS11_TCTI=tabrmd:bus_type=session TPM2_PKCS11_STORE=$work/store
device=$PWD/softhsm-test/swtpm.sh
dbus-daemon --session --nofork --nosyslog --address="$DBUS_SESSION_BUS_ADDRESS" >"$work/bus.log" 2>&1 &
bus=$!
for _ in $(seq 100); do
	[ -S "$work/bus" ] && break
	sleep 0.1
done
"$device" start

module=$(ls /usr/lib/*/libtpm2_pkcs11.so.1 | head -1)
mkdir "$work/store"
quietly tpm2_ptool init
quietly tpm2_ptool addtoken --pid=1 --label=mdm --sopin="$so_pin" --userpin="$pin"
quietly tpm2_ptool addkey --algorithm=rsa2048 --label=mdm --key-label=vendor --userpin="$pin"
quietly tpm2_ptool addkey --algorithm=rsa2048 --label=mdm --key-label=each --userpin="$pin" --attr-always-authenticate
quietly tpm2_ptool import --algorithm=rsa --label=mdm --key-label=golden --userpin="$pin" --privkey="$golden/vendor.key"

# ref KEY: the reference of a key.
ref() { echo "pkcs11:token=mdm;object=$1?module-path=$module&pin-source=file:$work/pin"; }

suite "$(ref vendor)"
same "$(ref golden)"
expect 0 'CKA_ALWAYS_AUTHENTICATE yes' "$hsmsign" doctor --key "$(ref each)"

echo 'What it does not do'
expect 0 'tpm2-pkcs11 refuses keys that cannot decrypt' "$hsmsign" doctor --key "$(ref vendor)"
expect 6 'tpm2_ptool addkey --algorithm=rsa2048' "$hsmsign" key generate --key "$(ref new)"
expect 4 'no-such-key' "$hsmsign" key show --key "$(ref no-such-key)"

echo 'Wrong PINs'
failures() { tpm2_getcap properties-variable | sed -n 's/^TPM2_PT_LOCKOUT_COUNTER: 0x//p'; }
bare=$(ref vendor)
bare=${bare%&*}
for n in 1 2 3; do
	HSMSIGN_PIN=111111 expect 5 'CKR_PIN_INCORRECT' "$hsmsign" key show --key "$bare"
	[ "$(failures)" = "$n" ] || { echo "FAIL: the TPM counts $(failures) wrong PINs; want $n" >&2; exit 1; }
done
expect 5 'tpm2_dictionarylockout --clear-lockout' "$hsmsign" doctor --key "$(ref vendor)" # with the right PIN
tpm2_dictionarylockout --clear-lockout
expect 0 'made and verified' "$hsmsign" doctor --key "$(ref vendor)"

echo 'The TPM is killed and stopped'
HSMSIGN_TEST_PKCS11=$(ref vendor) HSMSIGN_TEST_PKCS11_DEVICE=$device go test ./signer/pkcs11 -run TestAnyTokenFaults -count=1 -v
"$device" kill
expect 6 'TPM2_PKCS11_TCTI' "$hsmsign" key show --key "$(ref vendor)"
"$device" start
expect 0 'made and verified' "$hsmsign" doctor --key "$(ref vendor)"
quietly tpm2_ptool objdel "$(tpm2_ptool listobjects --label=mdm | awk '/^- / {hit = /PRIVATE/} /CKA_LABEL: each/ {hit += 1} /^  id:/ && hit == 2 {print $2}')"
expect 4 'object="vendor"' "$hsmsign" key show --key "$(ref each)"

rate "$(ref vendor)" 200

#!/usr/bin/env bash
# Runs the conformance suite of signer/pkcs11 on NSS softokn, which needs an init string (module-init). Its database is in a
# folder that is removed.
finish() { :; }
source "$(dirname "$0")/anytoken.sh"

module=$(ls /usr/lib/*/libsoftokn3.so | head -1)

# database FOLDER: makes a database with the golden key, and a key without a name.
database() {
	mkdir "$1"
	quietly certutil -N -d "sql:$1" -f "$work/pin"
	head -c 64 /dev/urandom >"$work/noise"
	quietly certutil -G -d "sql:$1" -f "$work/pin" -z "$work/noise" -k rsa -g 2048 --keyAttrFlags token,private,sensitive,unextractable
	quietly pk12util -i "$work/golden.p12" -d "sql:$1" -k "$work/pin" -w "$work/pin"
}

# ref FOLDER KEY: the reference of a key.
ref() { echo "pkcs11:token=NSS%20Certificate%20DB;$2?module-path=$module&module-init=configdir='sql:$1'&pin-source=file:$work/pin"; }

quietly openssl pkcs12 -export -inkey "$golden/vendor.key" -in "$golden/chain.pem" -name golden -passout "file:$work/pin" -out "$work/golden.p12"
# NSS derives a key from the PIN for each signature, with as many rounds as the database was made with. 1,000 are few.
NSS_MAX_MP_PBE_ITERATION_COUNT=1000 database "$work/quick"
database "$work/slow"

id=$(certutil -K -d "sql:$work/quick" -f "$work/pin" | sed -n 's/^<.*> rsa *\([0-9a-f]\{40\}\) *(orphan)$/\1/p' | sed 's/../%&/g')
suite "$(ref "$work/quick" "id=$id")"
same "$(ref "$work/quick" object=golden)"

echo 'What it does not do'
expect 0 'CKA_NEVER_EXTRACTABLE yes' "$hsmsign" doctor --key "$(ref "$work/quick" "id=$id")"
expect 0 'certutil -G' "$hsmsign" doctor --key "$(ref "$work/quick" object=golden)"
expect 4 'CKA_LOCAL is no' "$hsmsign" key generate --key "$(ref "$work/quick" object=new)"
expect 4 'no-such-key' "$hsmsign" key show --key "$(ref "$work/quick" object=no-such-key)"

echo 'Failures'
golden_ref=$(ref "$work/quick" object=golden)
HSMSIGN_PIN=111111 expect 5 'CKR_PIN_INCORRECT' "$hsmsign" key show --key "${golden_ref%&pin-source*}"
expect 0 'golden' "$hsmsign" key show --key "$golden_ref"
expect 6 'NSS: module-init in the reference' "$hsmsign" doctor --key "pkcs11:object=golden?module-path=$module"
expect 6 'C_Initialize returns' "$hsmsign" doctor --key "$(ref "$work/none" object=golden)"

rate "$golden_ref" 64
echo 'The same with the rounds that NSS uses by default'
rate "$(ref "$work/slow" object=golden)" 8

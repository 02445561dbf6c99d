# What opencryptoki.sh, tpm.sh and nss.sh share. A script that sources this file defines the function finish, which ends
# what the script has started; it runs however the script ends. $work is a folder that is removed afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset "${!HSMSIGN_@}" # what is left of another use of hsmsign
hsmsign=$PWD/bin/hsmsign
golden=$PWD/testdata/golden
pin=648219 so_pin=87654321 # of every new token
work=$(mktemp -d)
(umask 077 && echo "$pin" >"$work/pin")

end() {
	trap - EXIT
	trap '' INT TERM HUP # a second Ctrl-C must not leave a daemon
	finish || true
	rm -rf "$work"
	exit "$1"
}
trap 'end $?' EXIT
trap 'end 130' INT
trap 'end 143' TERM HUP

# quietly COMMAND...: runs a command, and prints what it said only if it fails.
quietly() { "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; return 1; }; }

# expect CODE TEXT COMMAND...: the command must end with this exit code and print the text.
expect() {
	local want=$1 text=$2 got=0
	shift 2
	"$@" >"$work/said" 2>&1 || got=$?
	if [ "$got" != "$want" ] || ! grep -qF -- "$text" "$work/said"; then
		cat "$work/said" >&2
		echo "FAIL: \"$*\" ended with exit code $got; want $want and \"$text\"" >&2
		return 1
	fi
	echo "ok: exit code $want, \"$text\""
}

# suite REFERENCE: what every key must pass: doctor, the conformance suite, and a signature from the vendor's CSR to the
# request that is verified.
suite() {
	"$hsmsign" doctor --key "$1"
	HSMSIGN_TEST_PKCS11=$1 go test ./signer/pkcs11 -run 'TestAnyToken$' -count=1 -timeout 30m -v
	quietly "$hsmsign" vendor csr --key "$1" --common-name 'Example MDM' --email mdm@example.com --country US -o "$work/vendor.csr"
	quietly "$hsmsign" testpki --csr "$work/vendor.csr" --out-dir "$work/pki"
	quietly "$hsmsign" vendor import --key "$1" --trust-root "$work/pki/root.pem" -o "$work/vendor.pem" "$work/pki/vendor.pem"
	quietly "$hsmsign" sign --key "$1" --cert "$work/vendor.pem" --trust-root "$work/pki/root.pem" -o "$work/customer.req" "$golden/customer.csr"
	"$hsmsign" verify --trust-root "$work/pki/root.pem" --csr "$golden/customer.csr" "$work/customer.req"
}

# same REFERENCE: the golden key, imported into the token, signs the golden request.
same() {
	"$hsmsign" sign --key "$1" --cert "$golden/chain.pem" --trust-root "$golden/root.pem" "$golden/customer.csr" >"$work/golden.req"
	cmp "$work/golden.req" "$golden/customer.req"
	echo "ok: the imported golden key signs the golden request"
}

# rate REFERENCE N: signatures a second, and the rate as a share of bare C_Sign, measured with N signatures.
rate() { HSMSIGN_TEST_PKCS11=$1 go test ./signer/pkcs11 -run '^$' -bench AnyToken -benchtime "$2x" -timeout 30m; }

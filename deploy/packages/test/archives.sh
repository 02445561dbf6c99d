# The archives for amd64: the checksums, and a signature with a key file, in a folder with nothing else.

say "archives: checksums, and each build for amd64 signs"
if [ -f "$dist/SHA256SUMS" ]; then
	(cd "$dist" && sha256sum --check --quiet --strict SHA256SUMS) || fail "SHA256SUMS"
fi

# signed PROGRAM...: a test PKI and a request with a key file; PROGRAM runs hsmsign.
signed() {
	local dir
	dir=$(mktemp -d -p "$work")
	(
		cd "$dir"
		openssl req -new -newkey rsa:2048 -nodes -keyout acme.key -subj '/C=US/CN=Acme MDM/emailAddress=it@acme.example' -out acme.csr
		openssl rand -hex 16 >pass && chmod 600 pass
		key="file:$dir/vendor.key?passphrase-file=$dir/pass"
		"$@" version
		"$@" key generate --key "$key"
		"$@" vendor csr --key "$key" --organization 'Example MDM' --common-name 'Example MDM' --email mdm@example.com --country US -o vendor.csr
		"$@" testpki --csr vendor.csr --out-dir pki
		"$@" sign --key "$key" --cert pki/vendor.pem --trust-root pki/root.pem -o acme.req acme.csr
		"$@" verify --trust-root pki/root.pem --csr acme.csr acme.req
	) >"$work/out" 2>&1 || fail "$*: $(cat "$work/out")"
}

found=
for archive in "$dist"/hsmsign_*_linux_amd64.tar.gz "$dist"/hsmsign_*_linux_amd64_static.tar.gz; do
	[ -f "$archive" ] || continue
	found=yes
	into=$(mktemp -d -p "$work")
	tar -C "$into" -xzf "$archive"
	signed "$(find "$into" -name hsmsign -type f -perm /111 | head -n 1)"
done
[ -n "$found" ] || fail "there is no archive for amd64 in $dist"

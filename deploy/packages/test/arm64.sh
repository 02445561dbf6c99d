# The arm64 builds, by qemu: the .deb and the .rpm in a Debian 12 for arm64, with a key file and with SoftHSM2, and the archives.

# The kernel runs programs for arm64 with qemu. If no rule for that is registered, one is, until the test ends.
emulate() {
	local at=/proc/sys/fs/binfmt_misc
	if [ ! -e $at/register ]; then
		mount -t binfmt_misc binfmt_misc $at || fail "the kernel has no binfmt_misc"
		mounted=$at
	fi
	if ! grep -ls '^interpreter.*qemu-aarch64' $at/* >/dev/null; then
		printf ':hsmsign-test-arm64:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:/usr/bin/qemu-aarch64-static:OCF' >$at/register
		binfmt=$at/hsmsign-test-arm64
	fi
}

say "arm64: install the .deb, and sign with a key file and with SoftHSM2"
emulate
arm=$work/arm64
root arm64 "$arm"
install -d "$arm/srv"
cp "$dist"/hsmsign_*_arm64.deb "$arm/srv/hsmsign.deb"
chroot "$arm" dpkg -i /srv/hsmsign.deb >"$work/out" 2>&1 || fail "dpkg: $(cat "$work/out")"
same "the architecture" "$(chroot "$arm" dpkg-query -W -f '${Architecture}' hsmsign)" arm64
same "/etc/hsmsign/hsmsign.yaml" "$(chroot "$arm" stat -c '%a %U:%G' /etc/hsmsign/hsmsign.yaml)" "640 root:hsmsign"
cat >"$work/sign.sh" <<'SIGN'
set -euo pipefail
umask 077
mkdir -p /srv/t/tokens && cd /srv/t
echo "directories.tokendir = $PWD/tokens" >softhsm2.conf
export SOFTHSM2_CONF=$PWD/softhsm2.conf
openssl rand -hex 8 >pin
softhsm2-util --init-token --free --label mdm --pin "$(cat pin)" --so-pin 64821900
openssl req -new -newkey rsa:2048 -nodes -keyout acme.key -subj '/C=US/CN=Acme MDM/emailAddress=it@acme.example' -out acme.csr
for key in "file:$PWD/vendor.key?passphrase-file=$PWD/pin" "pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:$PWD/pin"; do
	hsmsign key generate --key "$key"
	hsmsign vendor csr --key "$key" --organization 'Example MDM' --common-name 'Example MDM' --email mdm@example.com --country US >vendor.csr
	rm -rf pki && hsmsign testpki --csr vendor.csr --out-dir pki
	hsmsign sign --force --key "$key" --cert pki/vendor.pem --trust-root pki/root.pem -o acme.req acme.csr
	hsmsign verify --trust-root pki/root.pem --csr acme.csr acme.req
done
SIGN
cp "$work/sign.sh" "$arm/srv/"
chroot "$arm" hsmsign version >"$work/out" 2>&1 || fail "version: $(cat "$work/out")"
has "the version" "$(cat "$work/out")" 'arm64'
chroot "$arm" bash /srv/sign.sh >"$work/out" 2>&1 || fail "sign: $(tail -n 20 "$work/out")"

for archive in "$dist"/hsmsign_*_linux_arm64.tar.gz "$dist"/hsmsign_*_linux_arm64_static.tar.gz; do
	[ -f "$archive" ] || continue
	tar -xzf "$archive" -C "$work" --one-top-level=arm64archive
	cp "$(find "$work/arm64archive" -name hsmsign -type f -perm /111 | head -n 1)" "$arm/srv/hsmsign"
	chroot "$arm" /srv/hsmsign version >"$work/out" 2>&1 || fail "$archive: $(cat "$work/out")"
	rm -r "$work/arm64archive"
done

say "arm64: install the .rpm in a folder"
rm -rf --one-file-system "$arm"
root arm64 "$arm"
rpm --root "$arm" --initdb
rpm --root "$arm" --nodeps --ignorearch -i "$dist"/hsmsign-*.aarch64.rpm >"$work/out" 2>&1 || fail "rpm: $(cat "$work/out")"
has "the installation" "$(cat "$work/out")" '^hsmsign: the service is not enabled'
same "the architecture" "$(rpm --root "$arm" -q --queryformat '%{ARCH}' hsmsign)" aarch64
while read -r path mode; do
	same "$path" "$(chroot "$arm" stat -c '%a %U:%G' "$path")" "$mode"
done <<'MODES'
/usr/bin/hsmsign 755 root:root
/etc/hsmsign/hsmsign.yaml 640 root:hsmsign
/etc/hsmsign/secrets 700 root:root
/var/lib/hsmsign 700 hsmsign:hsmsign
MODES
chroot "$arm" hsmsign version >"$work/out" 2>&1 || fail "version: $(cat "$work/out")"
has "the version" "$(cat "$work/out")" 'arm64'
install -d "$arm/srv"
cp "$work/sign.sh" "$arm/srv/"
chroot "$arm" bash /srv/sign.sh >"$work/out" 2>&1 || fail "sign: $(tail -n 20 "$work/out")"
rpm --root "$arm" -e hsmsign >"$work/out" 2>&1 || fail "rpm -e: $(cat "$work/out")"
test ! -e "$arm/usr/bin/hsmsign" || fail "the program is still there"

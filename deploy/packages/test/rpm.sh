# The .rpm with its scriptlets, in a folder. Debian's rpm knows no packages of Debian, so the dependencies are not checked.

say "rpm: install, upgrade and remove in a folder"
[ -d "$work/next" ] || next 99.0.0
rpmroot=$work/rpmroot
root amd64 "$rpmroot"
rpm_in() { rpm --root "$rpmroot" --nodeps "$@" >"$work/out" 2>&1 || fail "rpm $*: $(cat "$work/out")"; }
rpm --root "$rpmroot" --initdb
rpm_in -i "$dist"/hsmsign-*.x86_64.rpm
has "the installation" "$(cat "$work/out")" '^hsmsign: the service is not enabled'
while read -r path mode; do
	same "$path" "$(chroot "$rpmroot" stat -c '%a %U:%G' "$path")" "$mode"
done <<'MODES'
/usr/bin/hsmsign 755 root:root
/etc/hsmsign/hsmsign.yaml 640 root:hsmsign
/etc/hsmsign/secrets 700 root:root
/var/lib/hsmsign 700 hsmsign:hsmsign
/usr/lib/systemd/system/hsmsign.service 644 root:root
/usr/share/zsh/site-functions/_hsmsign 644 root:root
MODES
rpm_in -V hsmsign
same "what rpm finds changed" "$(cat "$work/out")" ""
same "enabled units" "$(find "$rpmroot/etc/systemd/system" -name 'hsmsign*')" ""
chroot "$rpmroot" hsmsign check-config >"$work/out" 2>&1 || fail "the example configuration: $(cat "$work/out")"

chroot "$rpmroot" sh -c 'echo "digest: sha256" >>/etc/hsmsign/hsmsign.yaml; runuser -u hsmsign -- hsmsign ledger init --ledger sqlite:/var/lib/hsmsign/ledger.db --origin example.com/mdm' >"$work/out" 2>&1 ||
	fail "ledger: $(cat "$work/out")"
chroot "$rpmroot" systemctl --quiet enable hsmsign.service
rpm_in -U "$work/next/hsmsign.rpm"
if grep -q 'is not enabled' "$work/out"; then fail "an upgrade greets like an installation"; fi
same "the version" "$(rpm --root "$rpmroot" -q --queryformat '%{VERSION}' hsmsign)" 99.0.0
has "the configuration after the upgrade" "$(tail -n 1 "$rpmroot/etc/hsmsign/hsmsign.yaml")" '^digest: sha256$'
same "the unit after the upgrade" "$(find "$rpmroot/etc/systemd/system" -name 'hsmsign.service' | wc -l)" 1
chroot "$rpmroot" runuser -u hsmsign -- hsmsign ledger verify --ledger sqlite:/var/lib/hsmsign/ledger.db >"$work/out" 2>&1 || fail "ledger: $(cat "$work/out")"

rpm_in -e hsmsign
has "the removal" "$(cat "$work/out")" '^hsmsign: /var/lib/hsmsign is kept\. '
test ! -e "$rpmroot/usr/bin/hsmsign" || fail "the program is still there"
test -s "$rpmroot/var/lib/hsmsign/ledger.db" || fail "the ledger was removed"
test -s "$rpmroot/etc/hsmsign/hsmsign.yaml.rpmsave" || fail "the changed configuration was removed"
same "enabled units" "$(find "$rpmroot/etc/systemd/system" -name 'hsmsign*')" ""

say "rpm: without systemd-sysusers the scriptlet uses useradd"
without=$work/without
root amd64 "$without"
rm "$without/usr/bin/systemd-sysusers" "$without/usr/bin/systemctl"
rpm --root "$without" --initdb
rpm --root "$without" --nodeps -i "$dist"/hsmsign-*.x86_64.rpm >"$work/out" 2>&1 || fail "rpm: $(cat "$work/out")"
same "the user" "$(chroot "$without" getent passwd hsmsign | cut -d: -f 6-7)" /var/lib/hsmsign:/usr/sbin/nologin
same "the ledger's folder" "$(chroot "$without" stat -c '%a %U:%G' /var/lib/hsmsign)" "700 hsmsign:hsmsign"

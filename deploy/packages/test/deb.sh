# The .deb in a booted Debian 12: install, start, reload, notices, restart, upgrade, remove, purge.

say "deb: Debian 12 with systemd boots"
[ -d "$work/next" ] || next 99.0.0
root amd64 "$work/debian"
install -d "$work/debian/srv"
cp "$dist"/hsmsign_*_amd64.deb "$work/debian/srv/first.deb"
cp "$work/next/hsmsign.deb" "$work/debian/srv/next.deb"
cp "$source/deploy/packages/test/receiver.py" "$work/debian/srv/"
# as_service COMMAND: what docs/install.md says about a command that needs the service's user and credentials.
cat >"$work/debian/srv/as-service" <<'SH'
#!/bin/sh
exec systemd-run --quiet --pipe --wait --collect -p User=hsmsign -p SupplementaryGroups=softhsm -p WorkingDirectory=/var/lib/hsmsign \
	-p LoadCredential=secrets:/etc/hsmsign/secrets "$@"
SH
chmod 755 "$work/debian/srv/as-service"
boot "$work/debian"

say "deb: install"
out=$(inside 'apt-get -o Dpkg::Use-Pty=0 install -y --no-install-recommends /srv/first.deb 2>&1')
has "the installation" "$out" '^hsmsign: the service is not enabled. Configure it with: hsmsign setup$'
while read -r path mode; do
	same "$path" "$(inside "stat -c '%a %U:%G' $path")" "$mode"
done <<'MODES'
/usr/bin/hsmsign 755 root:root
/etc/hsmsign 755 root:root
/etc/hsmsign/hsmsign.yaml 640 root:hsmsign
/etc/hsmsign/secrets 700 root:root
/var/lib/hsmsign 700 hsmsign:hsmsign
/usr/lib/systemd/system/hsmsign.service 644 root:root
/usr/lib/systemd/system/hsmsign.socket 644 root:root
/usr/lib/systemd/system/hsmsign-due.service 644 root:root
/usr/lib/systemd/system/hsmsign-due.timer 644 root:root
/usr/share/bash-completion/completions/hsmsign 644 root:root
/usr/share/zsh/vendor-completions/_hsmsign 644 root:root
/usr/share/fish/vendor_completions.d/hsmsign.fish 644 root:root
/usr/share/man/man1/hsmsign.1.gz 644 root:root
/usr/share/doc/hsmsign 755 root:root
/usr/share/doc/hsmsign/examples/usb-hsm.conf 644 root:root
MODES
for file in $(inside "sed -n 's/^Documentation=.*file://p' /usr/lib/systemd/system/hsmsign* | sort -u"); do
	inside "test -s $file" || fail "the units name $file, which is not in the package"
done
same "the user" "$(inside 'getent passwd hsmsign | cut -d: -f 6-7')" /var/lib/hsmsign:/usr/sbin/nologin
for unit in hsmsign.service hsmsign.socket hsmsign-due.timer; do
	same "$unit" "$(inside "systemctl is-enabled $unit || true; systemctl is-active $unit || true" | tr '\n' ' ')" "disabled inactive "
done
inside 'hsmsign version && hsmsign check-config' >"$work/out" || fail "the example configuration: $(cat "$work/out")"

say "deb: a service without a configuration does not start, and is not tried again"
inside '! systemctl start hsmsign.service' 2>"$work/out" || fail "it started"
same "the result" "$(inside 'systemctl show -P Result -P NRestarts -P ExecMainStatus hsmsign.service' | tr '\n' ' ')" "exit-code 0 2 "
inside 'systemctl reset-failed'

say "deb: a key in SoftHSM2, made as the service's user"
pin=$((RANDOM % 9000 + 1000))$((RANDOM % 9000 + 1000))
inside "
umask 077
echo $pin >/etc/hsmsign/secrets/pin
echo whsec_\$(openssl rand -base64 32) >/etc/hsmsign/secrets/webhook
umask 022
useradd --uid 1001 caller; useradd --uid 1002 --groups hsmsign later; useradd --uid 1003 stranger
mkdir /srv/out && cd /srv/out && chmod 777 .
/srv/as-service softhsm2-util --init-token --free --label mdm --pin $pin --so-pin 64821900
key='pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=credential:secrets_pin'
/srv/as-service hsmsign key generate --key \"\$key\"
/srv/as-service hsmsign vendor csr --key \"\$key\" --organization 'Example MDM' --common-name 'Example MDM' --email mdm@example.com --country US >vendor.csr
hsmsign testpki --csr vendor.csr --out-dir pki
install -m 644 pki/vendor.pem pki/root.pem /etc/hsmsign/
openssl req -new -newkey rsa:2048 -nodes -keyout push.key -subj '/C=US/CN=Acme MDM/emailAddress=it@acme.example' -out acme.csr
cat >/srv/setup <<'SH'
#!/bin/sh
exec hsmsign setup --yes --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=credential:secrets_pin' \
	--cert /etc/hsmsign/vendor.pem --trust-root /etc/hsmsign/root.pem --origin example.com/mdm --operator caller \"\$@\"
SH
chmod 755 /srv/setup
" >"$work/out" 2>&1 || fail "the key: $(tail -n 20 "$work/out")"

# refused WHAT PATTERN COMMAND: setup is refused with a line, and the configuration and the secrets stay as they are.
refused() {
	local before after
	before=$(inside 'sha256sum /etc/hsmsign/hsmsign.yaml /etc/hsmsign/secrets/*; stat -c %a:%U:%G /etc/hsmsign/hsmsign.yaml')
	if inside "$3" >"$work/out" 2>&1; then fail "$1: it was accepted"; fi
	has "$1" "$(cat "$work/out")" "$2"
	after=$(inside 'sha256sum /etc/hsmsign/hsmsign.yaml /etc/hsmsign/secrets/*; stat -c %a:%U:%G /etc/hsmsign/hsmsign.yaml')
	same "what setup left" "$after" "$before"
}

say "deb: setup refuses a token that the service cannot use, although root can"
refused "setup without the drop-in" '^hsmsign: hsmsign.service has no access to the tokens of SoftHSM2: install -D -m 0644 /usr/share/doc/hsmsign/examples/softhsm.conf ' /srv/setup
has "what stays" "$(cat "$work/out")" '^hsmsign: the ledger sqlite:/var/lib/hsmsign/ledger.db .* was made and stays; the configuration was not written$'
inside "$(sed -n 's/^hsmsign: .*: \(install -D .*\), and run setup again$/\1/p' "$work/out")" >"$work/out" 2>&1 || fail "the drop-in: $(cat "$work/out")"
inside 'chown -R root:root /var/lib/softhsm/tokens && chmod 700 /var/lib/softhsm/tokens'
refused "setup with root's tokens" "^hsmsign: the key opens as root; the user hsmsign must be able to read and write SoftHSM2's folder of tokens" /srv/setup
inside 'chown -R hsmsign:softhsm /var/lib/softhsm/tokens && chmod 750 /var/lib/softhsm/tokens'
inside "printf '[Service]\nSupplementaryGroups=no-such-group\n' >/etc/systemd/system/hsmsign.service.d/bad.conf && systemctl daemon-reload"
refused "setup with a unit that cannot start" '^hsmsign: systemd cannot run a program as hsmsign.service does \(status 216\); see journalctl ' /srv/setup
inside 'rm /etc/systemd/system/hsmsign.service.d/bad.conf && systemctl daemon-reload'

say "deb: setup writes the configuration, and its next commands start the service"
inside 'rm /var/lib/hsmsign/ledger.* /etc/hsmsign/ledger.pub && /srv/setup' >"$work/out" 2>&1 || fail "setup: $(cat "$work/out")"
has "setup" "$(cat "$work/out")" '^/etc/hsmsign/hsmsign.yaml is written; check-config and doctor accept it$'
while read -r path mode; do
	same "$path" "$(inside "stat -c '%a %U:%G' $path")" "$mode"
done <<'MODES'
/etc/hsmsign/hsmsign.yaml 640 root:hsmsign
/etc/hsmsign/ledger.pub 644 root:root
/etc/hsmsign/secrets/pin 600 root:root
/var/lib/hsmsign/ledger.db 600 hsmsign:hsmsign
/var/lib/hsmsign/ledger.db.key 600 hsmsign:hsmsign
/var/lib/hsmsign/ledger.db.last 600 hsmsign:hsmsign
MODES
same "other owners" "$(inside 'find /var/lib/hsmsign ! -user hsmsign')" ""
same "unfinished files" "$(inside "ls -A /etc/hsmsign | sed 's/^hsmsign.yaml.2.*Z$/copy/' | sort | tr '\n' ' '")" "copy hsmsign.yaml ledger.pub root.pem secrets vendor.pem "
same "units of setup" "$(inside "systemctl list-units --all --no-legend 'hsmsign-setup-*'")" ""
commands=$(sed -n '/^Next:  /,$p' "$work/out" | sed 's/^Next://; s/^ *//')
same "the next commands" "$(tr '\n' ';' <<<"$commands")" "usermod -a -G hsmsign caller;systemctl enable --now hsmsign.socket hsmsign.service;"
inside "$commands" 2>"$work/out" || fail "the next commands: $(cat "$work/out")"

# sign USER NAME: signs acme.csr through the Unix socket, and checks the answer.
sign() {
	inside "cd /srv/out && runuser -u $1 -- curl -fsS --max-time 60 --unix-socket /run/hsmsign/agent.sock --data-binary @acme.csr \
		-o $2.req 'http://localhost/v1/requests?customer=acme' && hsmsign verify --trust-root /etc/hsmsign/root.pem --csr acme.csr $2.req" >"$work/out" 2>&1
}
state() { inside "systemctl show -P $1 hsmsign.service"; }
ready() { inside 'curl -fsS --max-time 5 http://127.0.0.1:9090/readyz'; }

say "deb: the service signs; the first connection to the socket starts it when it is stopped"
sign caller first || fail "sign: $(cat "$work/out"; inside 'journalctl -u hsmsign --no-pager -n 20 -o cat; systemctl status hsmsign hsmsign.socket --no-pager' || true)"
inside 'systemctl stop hsmsign.service' 2>"$work/out"
same "the service before" "$(state ActiveState)" inactive
inside "sed -i 's/^  listen: .*/&\n  metrics: \"127.0.0.1:9090\"/; \$a notify: { webhook: { url: \"http://127.0.0.1:9000/hook\", secret-file: \"credential:secrets_webhook\" } }' /etc/hsmsign/hsmsign.yaml"
sign caller again || fail "sign: $(cat "$work/out")"
same "the service" "$(state ActiveState) $(state Type)" "active notify"
main=$(state MainPID)
has "the sandbox" "$(inside "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$main/status" | tr '\t\n' '  ')" 'CapEff: 0+ CapBnd: 0+ NoNewPrivs: 1 Seccomp: 2 '
if inside 'runuser -u hsmsign -- cat /etc/hsmsign/secrets/pin' >"$work/out" 2>&1; then fail "the service's user reads the secrets themselves"; fi
if sign stranger none; then fail "a user outside of the group was served"; fi
if sign later none; then fail "a user who is no caller was served"; fi
has "the refusal" "$(cat "$work/out")" '401|403'

say "deb: a reload adds a caller, with the same process"
inside "sed -i 's/^  caller: .*/&\n  later: { role: admin, person: later, uid: [ 1002 ] }/' /etc/hsmsign/hsmsign.yaml && systemctl reload hsmsign"
until_ok "the new caller is served" sign later later
same "the process" "$(state MainPID)" "$main"

say "deb: the timer's service sends what is due to a webhook, and fails visibly if it cannot"
inside 'systemd-run --quiet --unit=receiver python3 /srv/receiver.py /etc/hsmsign/secrets/webhook /srv/out/notices'
until_ok "the receiver listens" inside 'python3 -c "import socket; socket.create_connection((\"127.0.0.1\", 9000))"'
inside 'systemctl enable --now hsmsign-due.timer && systemctl start hsmsign-due.service' 2>"$work/out" || fail "hsmsign-due: $(inside 'journalctl -u hsmsign-due --no-pager -o cat -n 5')"
has "the notice" "$(inside 'cat /srv/out/notices')" '^genuine \{"type":"ledger.due",.*"customer":"acme"'
has "the timer" "$(inside 'systemctl list-timers hsmsign-due.timer --no-pager')" 'hsmsign-due.service'
inside 'systemctl stop receiver; ! systemctl start hsmsign-due.service' 2>"$work/out" || fail "it succeeded without a receiver"
same "the result" "$(inside 'systemctl show -P Result -P ExecMainStatus hsmsign-due.service' | tr '\n' ' ')" "exit-code 6 "
has "the journal" "$(inside 'journalctl -u hsmsign-due --no-pager -o cat -n 5')" 'what is due was not sent to everyone: webhook: '

say "deb: credentials are read at a restart, and not at a reload"
inside 'systemctl stop hsmsign.socket hsmsign.service; echo 00000000 >/etc/hsmsign/secrets/pin; systemctl start hsmsign.socket hsmsign.service' 2>"$work/out"
until_ok "a wrong PIN is not ready" inside "curl -sS --max-time 5 -o /dev/null -w '%{http_code}' http://127.0.0.1:9090/readyz | grep -q 503 && journalctl -u hsmsign --no-pager -o cat -n 5 | grep -q 'not ready'"
inside "echo $pin >/etc/hsmsign/secrets/pin; journalctl --rotate -q; journalctl --vacuum-time=1s -q; systemctl reload hsmsign"
until_ok "it is reloaded" inside "journalctl -u hsmsign --no-pager -o cat | grep -q '\"msg\":\"reloaded\"'"
if ready >"$work/out" 2>&1; then fail "a reload has read the credential"; fi
inside 'systemctl restart hsmsign'
until_ok "the right PIN is ready" ready

say "deb: setup again, with the checkpoint key and the key of a TLS listener as credentials"
inside 'cp -a /etc/hsmsign/hsmsign.yaml /srv/before.yaml
mv /var/lib/hsmsign/ledger.db.key /etc/hsmsign/secrets/ledger.key && chown root:root /etc/hsmsign/secrets/ledger.key
cd /etc/hsmsign && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout secrets/tls.key -out server.pem
openssl ecparam -name prime256v1 -genkey -noout -out secrets/other.key
chmod 600 secrets/*.key' >"$work/out" 2>&1 || fail "$(cat "$work/out")"
again='/srv/setup --replace --listen unix:///run/hsmsign/agent.sock --listen tls://127.0.0.1:8443 --tls-cert /etc/hsmsign/server.pem --checkpoint-key credential:secrets_ledger.key --tls-key credential:secrets_'
refused "a credential that does not exist" '"/etc/hsmsign/secrets/absent.key": .*no such file' "${again}absent.key"
refused "the key of another certificate" 'does not match' "${again}other.key"
inside "${again}tls.key" >"$work/out" 2>&1 || fail "setup: $(cat "$work/out")"
has "the configuration" "$(inside 'cat /etc/hsmsign/hsmsign.yaml')" '^  checkpoint-key: "credential:secrets_ledger.key"$'
inside 'systemctl restart hsmsign'
until_ok "TLS answers" inside "curl -sS --max-time 5 --cacert /etc/hsmsign/server.pem -o /dev/null https://localhost:8443/v1/status"
sign caller credential || fail "sign: $(cat "$work/out")"
# The webhook and the metrics of before, for the rest.
inside "cp -a /etc/hsmsign/hsmsign.yaml /srv/made.yaml && sed 's|^  checkpoint-key: .*|  checkpoint-key: \"credential:secrets_ledger.key\"|' /srv/before.yaml >/etc/hsmsign/hsmsign.yaml && systemctl restart hsmsign"
until_ok "it is ready" ready

say "deb: the drop-in for USB HSMs starts, too, and no secret is in the journal"
inside 'install -m 644 /usr/share/doc/hsmsign/examples/usb-hsm.conf /etc/systemd/system/hsmsign.service.d/ && systemctl daemon-reload && systemctl restart hsmsign'
until_ok "it is ready" ready
same "its devices" "$(state PrivateDevices) $(state DevicePolicy)" "no closed"
inside 'rm /etc/systemd/system/hsmsign.service.d/usb-hsm.conf && systemctl daemon-reload && systemctl restart hsmsign'
if inside "journalctl -u hsmsign -u hsmsign-due --no-pager | grep -F -e $pin -e whsec_"; then fail "a secret is in the journal"; fi

say "deb: an upgrade keeps the data and restarts the service with the new program"
before=$(inside 'sha256sum /etc/hsmsign/hsmsign.yaml; hsmsign ledger status --json')
main=$(state MainPID)
inside 'apt-get -o Dpkg::Use-Pty=0 install -y --no-install-recommends /srv/next.deb 2>&1' >"$work/out" || fail "upgrade: $(cat "$work/out")"
has "dpkg" "$(inside "dpkg-query -W -f '\${Version} \${Status}\n' hsmsign")" '^99.0.0 install ok installed$'
[ "$(state MainPID)" != "$main" ] || fail "the service was not restarted"
same "the program that runs" "$(inside "sha256sum </proc/$(state MainPID)/exe")" "$(sha256sum <"$work/stage/bin/hsmsign")"
same "the configuration" "$(inside 'sha256sum /etc/hsmsign/hsmsign.yaml')" "$(head -n 1 <<<"$before")"
until_ok "it is ready" ready
sign caller second || fail "sign after the upgrade: $(cat "$work/out")"
inside 'cmp /srv/out/first.req /srv/out/second.req' || fail "the stored answer is another one"
inside 'hsmsign ledger verify && hsmsign ledger list' >"$work/out" 2>&1 || fail "ledger: $(cat "$work/out")"
has "the ledger" "$(cat "$work/out")" 'acme'

say "deb: remove stops the service and keeps data and configuration; purge keeps the ledger and the secrets"
inside 'apt-get -o Dpkg::Use-Pty=0 remove -y hsmsign 2>&1' >"$work/out" || fail "remove: $(cat "$work/out")"
same "the service" "$(state ActiveState) $(state LoadState)" "inactive not-found"
inside 'test ! -e /usr/bin/hsmsign && test -e /etc/hsmsign/hsmsign.yaml && test -s /var/lib/hsmsign/ledger.db && ! ls /etc/systemd/system/*/hsmsign* 2>/dev/null | grep -v service.d'
inside 'apt-get -o Dpkg::Use-Pty=0 purge -y hsmsign 2>&1' >"$work/out" || fail "purge: $(cat "$work/out")"
has "purge" "$(cat "$work/out")" '^hsmsign: /var/lib/hsmsign is kept\. '
inside 'test ! -e /etc/hsmsign/hsmsign.yaml && test -s /var/lib/hsmsign/ledger.db && test -s /etc/hsmsign/secrets/ledger.key && getent passwd hsmsign >/dev/null'
halt

#!/usr/bin/env bash
# Starts a service with the console in demo-out/console/, with a test PKI instead of Apple, three customers and a request that waits. It
# prints the address and a one-time link, and runs until Ctrl-C. The vendor's key is in a SoftHSM2 token, or without SoftHSM2 in a file.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/bin:$PATH
rm -rf demo-out/console && mkdir -p demo-out/console && cd demo-out/console
unset "${!HSMSIGN_@}" # what is left of another use of hsmsign

service=
# stop ends the service, whatever ends the script.
stop() {
	trap - EXIT INT TERM
	[ -z "$service" ] || { kill -TERM "$service" 2>/dev/null && wait "$service" || true; }
	exit "${1:-0}"
}
trap 'stop $?' EXIT
trap 'echo; echo "stopping"; stop 0' INT TERM

# port FIRST: prints the first port from FIRST on that nobody listens on.
port() {
	local p=$1
	while (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; do p=$((p + 1)); done
	echo "$p"
}

# quietly COMMAND...: runs a command, and prints what it said only if it fails.
quietly() { "$@" >>setup.log 2>&1 || { tail -5 setup.log >&2; return 1; }; }

# newcsr NAME COMPANY: makes NAME.csr.
newcsr() { quietly hsmsign push csr --name "$2 MDM" --email "it@$1.example" --country US --organization "$2" --key-out "$1.key" --passphrase-file pass -o "$1.csr"; }

echo "Making a vendor, a ledger and customers in $PWD"
(umask 077 && echo 'a passphrase of the demo' >pass && echo 648219 >pin)
module=
for m in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so; do [ -e "$m" ] && module=$m && break; done
if [ -n "$module" ] && command -v softhsm2-util >/dev/null; then
	mkdir tokens && echo "directories.tokendir = $PWD/tokens" >softhsm2.conf
	export SOFTHSM2_CONF=$PWD/softhsm2.conf
	quietly softhsm2-util --init-token --free --label mdm --pin 648219 --so-pin 64821900
	key="pkcs11:token=mdm;object=vendor?module-path=$module&pin-source=file:$PWD/pin"
else
	echo "SoftHSM2 is not installed: the vendor's key is in a file"
	key="file:$PWD/vendor.key?passphrase-file=$PWD/pass"
fi
quietly hsmsign key generate --key "$key"
quietly hsmsign vendor csr --key "$key" --organization 'Example MDM' --common-name 'Example MDM' --email mdm@example.com --country US -o vendor.csr
quietly hsmsign testpki --csr vendor.csr --out-dir pki
quietly hsmsign vendor import --key "$key" --trust-root pki/root.pem -o vendor.pem pki/vendor.pem
quietly hsmsign ledger init --ledger sqlite:ledger.db --origin example.com/demo

http=$(port 8080)
(umask 077 && hsmsign caller token --expires 1d >token.txt 2>>setup.log && sed -n 's/^token: //p' token.txt >portal.token)
(umask 077 && hsmsign caller token --expires 1d >approver.txt 2>>setup.log && sed -n 's/^token: //p' approver.txt >approver.token)
cat >hsmsign.yaml <<YAML
key: "$key"
cert: vendor.pem
trust-root: [ pki/root.pem ]
ledger: sqlite:ledger.db
serve:
  listen: [ "http://127.0.0.1:$http", "unix://$PWD/agent.sock" ]
  console: true
callers:
  you: { role: admin, person: you, uid: [ $(id -u) ] }
  portal: { role: portal, owners: [ bo ], tokens: [ "$(sed -n 's/^entry: //p' token.txt)" ] }
  fay: { role: approver, person: fay, tokens: [ "$(sed -n 's/^entry: //p' approver.txt)" ] }
roles:
  approver: { may: [ approve, read ], customers: [ "*" ] }
  admin: { may: [ sign, read, customers, freeze ], customers: [ "*" ], per-second: 5, per-day: 500, approvals: none }
  portal: { may: [ sign ], customers: [ "*" ], per-second: 5, per-day: 500, approvals: { new-customer: 1, new-key: 1, same-key: 0 } }
YAML
chmod 600 hsmsign.yaml
rm token.txt approver.txt
quietly hsmsign --config hsmsign.yaml check-config

export HSMSIGN_CONFIG=$PWD/hsmsign.yaml
for c in 'alder-logistics:Alder Logistics' 'brook-dental:Brook Dental Group' 'cobalt-press:Cobalt Press'; do
	name=${c%%:*}
	newcsr "$name" "${c#*:}"
	quietly hsmsign ledger customer add --contact "it@$name.example" --account "mdm@$name.example" "$name"
	quietly hsmsign sign --customer "$name" -o "$name.req" "$name.csr"
	[ "$name" = cobalt-press ] && continue # its request is not redeemed
	quietly hsmsign testpki issue-push --request "$name.req" --out-dir pki -o "$name.pem"
	quietly hsmsign ledger attach --customer "$name" "$name.pem"
done
newcsr dune-hotels 'Dune Hotels'
newcsr elm-schools 'Elm District Schools'

hsmsign serve 2>service.log &
service=$!
for _ in $(seq 100); do
	[ -S agent.sock ] && curl -fs --unix-socket agent.sock http://localhost/readyz >ready.json && break
	kill -0 "$service" 2>/dev/null || { tail -5 service.log >&2; service=; exit 1; }
	sleep 0.1
done
[ -s ready.json ] || { echo "the service is not ready:" >&2; tail -5 service.log >&2; exit 1; }
# It waits for an approval: exit code 8, or 202 as the client says it.
hsmsign sign --agent "http://127.0.0.1:$http" --agent-token-from file:portal.token --customer dune-hotels -o dune-hotels.req dune-hotels.csr >>setup.log 2>&1 || [ $? = 8 ]

cat <<TEXT

The console runs at http://127.0.0.1:$http/console/
Open this link, which works once and for two minutes:

  $(hsmsign console login --agent "unix://$PWD/agent.sock" | head -1)

Another link:  HSMSIGN_CONFIG=$PWD/hsmsign.yaml $(command -v hsmsign) console login --agent unix://$PWD/agent.sock
To try:        sign demo-out/console/elm-schools.csr; see what waits for an approval; attach demo-out/console/alder-logistics.pem
A sign-in by link does not approve. The caller fay does:
               hsmsign approve --agent http://127.0.0.1:$http --agent-token-from file:$PWD/approver.token ID
A test PKI replaces Apple, and this data is removed by the next run. Ctrl-C ends the service.
TEXT
wait "$service"

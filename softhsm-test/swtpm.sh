#!/usr/bin/env bash
# Starts, kills, stops or continues a TPM emulator in the folder TPM_FOLDER, for tpm.sh and for TestAnyTokenFaults. Programs
# reach it through tpm2-abrmd on the D-Bus session of the caller: a TPM has memory for three keys, and tpm2-pkcs11 relies
# on a resource manager that moves keys in and out. On a machine with a TPM, Linux has one (/dev/tpmrm0).
set -euo pipefail
cd "$TPM_FOLDER"

# begin NAME COMMAND...: runs a command in the background, with its process id in NAME.pid and its output in NAME.log.
begin() {
	local name=$1
	shift
	"$@" >"$name.log" 2>&1 </dev/null &
	echo $! >"$name.pid"
}

# send SIGNAL NAME...: sends a signal to commands of begin, if they are there.
send() {
	local signal=$1 name
	shift
	for name; do kill -s "$signal" "$(cat "$name.pid" 2>/dev/null)" 2>/dev/null || true; done
}

# until_works COMMAND...: waits at most 15 seconds until a command works.
until_works() {
	for _ in $(seq 150); do
		"$@" >check.log 2>&1 && return
		sleep 0.1
	done
	cat ./*.log >&2
	echo "the TPM emulator does not start: \"$*\" fails" >&2
	return 1
}

case "$1" in
start)
	mkdir -p state
	rm -f tpm.sock tpm.sock.ctrl
	begin swtpm swtpm socket --tpm2 --tpmstate dir=state --server type=unixio,path=tpm.sock --ctrl type=unixio,path=tpm.sock.ctrl \
		--flags not-need-init,startup-clear
	until_works test -S tpm.sock.ctrl # the second of its sockets
	root=
	[ "$(id -u)" != 0 ] || root=--allow-root
	begin abrmd tpm2-abrmd --session $root --tcti=swtpm:path=tpm.sock
	until_works tpm2_getcap properties-fixed
	# A TPM that loses its power after a login counts a failed authorization; three of them lock it.
	tpm2_dictionarylockout --clear-lockout
	;;
kill) send KILL swtpm abrmd ;;
stop) send STOP swtpm ;;
continue) send CONT swtpm ;;
end)
	send TERM abrmd
	send KILL swtpm # also if it is stopped
	;;
*)
	echo "usage: TPM_FOLDER=FOLDER swtpm.sh start|kill|stop|continue|end" >&2
	exit 2
	;;
esac

# Functions of the package test: see run.sh.

say() { printf '%s\n' "== $*"; }
fail() { printf 'package test: %s\n' "$*" >&2; exit 1; }

# same WHAT GOT WANT
same() { [ "$2" = "$3" ] || fail "$1 is \"$2\", want \"$3\""; }

# has WHAT TEXT PATTERN: the text has a line that the pattern matches.
has() { grep -Eq -- "$3" <<<"$2" || fail "$1 has no \"$3\": $2"; }

# until WHAT COMMAND...: waits until the command succeeds, at most 60 seconds.
until_ok() {
	local what=$1 end=$((SECONDS + 60))
	shift
	until "$@" >"$work/until" 2>&1; do
		[ "$SECONDS" -lt "$end" ] || fail "$what: not in 60 seconds: $(tail -n 5 "$work/until")"
		sleep 0.2
	done
}

# mirror prints the Debian mirror that this machine uses.
mirror() { apt-cache policy bash | grep -oE 'https?://[^ ]+' | head -n 1; }

# root ARCH DIR: a Debian 12 with systemd and SoftHSM2 in DIR. It is made once and kept as a tar file.
root() {
	local arch=$1 dir=$2 tar=$cache/debian12-$1.tar
	if [ ! -f "$tar" ]; then
		say "debootstrap of Debian 12 for $arch, once"
		local made=$work/debootstrap-$arch foreign=()
		[ "$arch" = amd64 ] || foreign=(--foreign)
		debootstrap --arch="$arch" --variant=minbase --include="$(included "$arch")" "${foreign[@]}" bookworm "$made" "$(mirror)" >"$work/debootstrap.log" 2>&1 ||
			fail "debootstrap: $(tail -n 5 "$work/debootstrap.log")"
		[ "$arch" = amd64 ] || chroot "$made" /debootstrap/debootstrap --second-stage >"$work/debootstrap.log" 2>&1 ||
			fail "debootstrap, second stage: $(tail -n 5 "$work/debootstrap.log")"
		rm -f "$made"/var/cache/apt/archives/*.deb
		mkdir -p "$cache"
		tar -C "$made" --one-file-system -cf "$tar.part" . && mv "$tar.part" "$tar"
		rm -rf "$made"
	fi
	mkdir "$dir"
	tar -C "$dir" -xf "$tar"
	printf '127.0.0.1 localhost\n' >"$dir/etc/hosts"
}

included() {
	case "$1" in
	amd64) echo systemd,systemd-sysv,dbus,softhsm2,curl,openssl,python3 ;;
	*) echo softhsm2,openssl ;;
	esac
}

# boot DIR: starts the system in DIR without a network. inside runs commands in it.
boot() {
	systemd-nspawn --quiet -D "$1" --boot --register=no --keep-unit --private-network --console=pipe --machine=hsmsign-test \
		</dev/null >"$work/boot.log" 2>&1 &
	nspawn=$!
	until_ok "the container starts" pgrep -P "$nspawn"
	leader=$(pgrep -P "$nspawn")
	until_ok "systemd answers" inside 'test -S /run/systemd/private && systemctl list-jobs | grep -q "No jobs"'
}

# halt ends the system.
halt() {
	[ -n "${nspawn:-}" ] || return 0
	kill -s RTMIN+4 "$leader" 2>/dev/null || true # systemd's signal for poweroff
	local end=$((SECONDS + 30))
	while kill -0 "$nspawn" 2>/dev/null && [ "$SECONDS" -lt "$end" ]; do sleep 0.2; done
	kill -KILL "$nspawn" "$leader" 2>/dev/null || true # it is gone, or it hangs
	wait "$nspawn" 2>/dev/null || true
	nspawn=
}

# inside SCRIPT: runs a script as root in the system.
inside() {
	nsenter --target "$leader" --mount --uts --ipc --net --pid --root --wd -- \
		env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive bash -euo pipefail -c "$1" </dev/null
}

# next VERSION: makes the packages of a later version in $work/next, with another program, from the .deb in dist.
next() {
	local stage=$work/stage deb
	deb=$(ls "$dist"/hsmsign_*_amd64.deb)
	mkdir "$work/next" "$stage" "$work/unpacked"
	dpkg-deb -x "$deb" "$work/unpacked"
	local share=$work/unpacked/usr/share
	mkdir -p "$stage"/{bin,man/man1,completions,doc}
	cp "$share"/man/man1/*.gz "$stage/man/man1/"
	cp "$share/bash-completion/completions/hsmsign" "$share/zsh/vendor-completions/_hsmsign" "$share/fish/vendor_completions.d/hsmsign.fish" "$stage/completions/"
	cp -R "$share/doc/hsmsign/." "$stage/doc/"
	rm -r "$stage/doc/examples"
	echo "a later version" >"$work/note"
	objcopy --add-section .note.later="$work/note" "$work/unpacked/usr/bin/hsmsign" "$stage/bin/hsmsign"
	local format
	for format in deb rpm; do
		(cd "$source" && VERSION=$1 ARCH=amd64 STAGE=$stage SOURCE_DATE_EPOCH=1790000000 \
			go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0 package -f deploy/packages/nfpm.yaml -p "$format" -t "$work/next/hsmsign.$format" >"$work/nfpm.log") ||
			fail "nfpm: $(cat "$work/nfpm.log")"
	done
}

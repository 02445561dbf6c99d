#!/usr/bin/env bash
# rename.sh MODULE: changes the module path in go.mod and in every import, in Go files and in documentation. The modules
# below deploy/ follow.
set -euo pipefail
new=${1:-}
if [[ ! $new =~ ^[A-Za-z0-9][A-Za-z0-9._~/-]*[A-Za-z0-9]$ ]]; then
	echo "usage: make rename MODULE=example.org/team/hsmsign" >&2
	exit 2
fi
old=$(go list -m)
go mod edit -module "$new"
find deploy -name go.mod | while read -r mod; do
	path=$(awk '$1 == "module" {print $2}' "$mod")
	[[ $path != "$old"/* ]] || go mod edit -module "$new${path#"$old"}" "$mod"
done
# An import is alone on its line: an optional name, then the path in quotes.
find . \( -name .git -o -name bin -o -name demo-out -o -name dist -o -name .tools \) -prune -o -type f \( -name '*.go' -o -name '*.md' \) -print0 |
	xargs -0 sed -i -E "s#^([[:space:]]*(import )?([A-Za-z_.][A-Za-z0-9_]* )?)\"${old//./\\.}(/[^\"]*)?\"\$#\1\"$new\4\"#"
gofmt -w .
echo "the module is $new now, was $old; see git diff"

# hsmsign. "make demo" and "make test" are all that a new Debian machine with Go, gcc and make needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

FUZZTIME ?= 30s
GOLANGCI_VERSION := v2.12.2
TOOLS := $(CURDIR)/.tools
GOLANGCI := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)
ACTIONLINT_VERSION := v1.7.12
ACTIONLINT := $(TOOLS)/actionlint-$(ACTIONLINT_VERSION)
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0
KUSTOMIZE := sigs.k8s.io/kustomize/kustomize/v5@v5.7.1

# Go modules below deploy/, whose libraries must not weigh on go.mod.
MODULES := $(patsubst %/go.mod,%,$(wildcard deploy/*/go.mod deploy/*/*/go.mod))

# What the tests and the demo call, and the Debian packages that have it.
PROGRAMS := softhsm2-util pkcs11-tool p11-kit openssl curl xmllint plistutil keytool zsh fish python3 sqlite3 chromium systemd-analyze mandoc minisign
PACKAGES := softhsm2 opensc p11-kit p11-kit-modules openssl curl libxml2-utils libplist-utils default-jre-headless zsh fish postgresql libnss3 python3 sqlite3 chromium fonts-dejavu-core systemd mandoc minisign

# What the libraries have and the program does not use: gRPC's trace pages, and manual pages made from commands.
LEAN := grpcnotrace urfave_cli_no_docs
TAGS ?=
comma := ,
space := $(subst ,, )

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build bin/hsmsign; TAGS=nocloud builds it without AWS KMS, GCP KMS and Azure Key Vault
	go build -trimpath -tags '$(subst $(space),$(comma),$(strip $(LEAN) $(TAGS)))' -o bin/hsmsign ./cmd/hsmsign

PREFIX ?= /usr/local
.PHONY: install
install: build ## Install the program, its manual pages and its completions below PREFIX (default /usr/local); DESTDIR is put before it
	install -D -m 0755 bin/hsmsign '$(DESTDIR)$(PREFIX)/bin/hsmsign'
	install -d '$(DESTDIR)$(PREFIX)/share/bash-completion/completions' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions' '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	bin/hsmsign completion bash >'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/hsmsign'
	bin/hsmsign completion zsh >'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_hsmsign'
	bin/hsmsign completion fish >'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/hsmsign.fish'
	bin/hsmsign man --force --out-dir '$(DESTDIR)$(PREFIX)/share/man/man1'

.PHONY: deps
deps: ## Install the programs that tests and demo need, if any is missing (Debian, Ubuntu)
	@missing=; for p in $(PROGRAMS); do command -v $$p >/dev/null || missing="$$missing $$p"; done; \
	[[ "$(PACKAGES)" != *postgresql* ]] || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$$missing postgresql"; \
	[[ "$(PACKAGES)" != *p11-kit* ]] || ls /usr/lib/*/pkcs11/p11-kit-client.so >/dev/null 2>&1 || missing="$$missing p11-kit-client.so"; \
	if [ -n "$$missing" ]; then \
		echo "installing what is missing:$$missing"; \
		run=; [ "$$(id -u)" = 0 ] || run=sudo; \
		$$run apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$run apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
	fi

# Debian's package prometheus also starts a server and installs a web interface, so only promtool is taken out of it.
PROMTOOL := $(TOOLS)/promtool
$(PROMTOOL):
	@mkdir -p $(TOOLS)
	@if command -v promtool >/dev/null; then ln -sf "$$(command -v promtool)" $@; exit; fi; \
	echo "extracting promtool from Debian's package prometheus"; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir"; \
	run=; [ "$$(id -u)" = 0 ] || run=sudo; \
	apt-get download -qq prometheus 2>/dev/null || { $$run apt-get update -qq; apt-get download -qq prometheus; }; \
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool; \
	mv usr/bin/promtool $@

# axe-core audits the pages of the console in the browser. The program does not contain it.
AXE_VERSION := 4.14.1
AXE_SHA512 := 1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5
AXE := $(TOOLS)/axe-core-$(AXE_VERSION).min.js
$(AXE):
	@mkdir -p $(TOOLS)
	@if ! command -v npm >/dev/null; then \
		echo "installing npm"; \
		run=; [ "$$(id -u)" = 0 ] || run=sudo; \
		$$run apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$run apt-get install -y -qq --no-install-recommends npm >/dev/null; \
	fi
	@echo "downloading axe-core $(AXE_VERSION)"; \
	dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; cd "$$dir"; \
	npm pack --silent axe-core@$(AXE_VERSION) >/dev/null; \
	echo "$(AXE_SHA512)  axe-core-$(AXE_VERSION).tgz" | sha512sum --check --quiet; \
	tar -xmzf axe-core-$(AXE_VERSION).tgz package/axe.min.js; \
	rm -f $(TOOLS)/axe-core-*; mv package/axe.min.js $@

# The packages that run with the race detector. It is off in two packages that only compute: SQLite's parser and the
# arithmetic of RSA would take most of the time, and the detector has nothing to say about them.
RACED := ./ledger/... ./server ./signer/pkcs11/... ./agent/... ./client/... ./server/authn/... ./server/dropin ./server/notify/... ./server/traces/... ./signer ./signer/awskms/... ./signer/azurekms/... ./signer/gcpkms/... ./signer/vault/... ./signer/isolate ./signer/kms ./signer/signertest ./request
RACE := -race -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=crypto/internal/fips140/bigmod=-race=false
# These packages take longest, so they begin first.
LONG := ./cmd/hsmsign ./softhsm-test ./server/consoletest

.PHONY: test
test: deps $(PROMTOOL) $(AXE) ## Run every test, including those with SoftHSM2; with the race detector for concurrent packages
	go test $(RACE) -p 2 -timeout 600s $(RACED) & race=$$!; \
	go test -p 3 -timeout 600s $(LONG) $$(go list ./... | grep -vxF "$$(go list $(RACED) $(LONG))") || { wait $$race; exit 1; }; \
	wait $$race
	CGO_ENABLED=0 go test -timeout 300s ./signer/pkcs11/...
	for module in $(MODULES); do go test -C $$module -timeout 300s ./...; done

.PHONY: race
race: deps $(PROMTOOL) $(AXE) ## Run every test with the race detector
	go test -race -timeout 600s ./...

# The linter's cache is keyed by content and names files by path: a shared one reports lines of a checkout that is gone.
.PHONY: lint
lint: $(GOLANGCI) $(ACTIONLINT) ## Run gofmt, go vet, golangci-lint and actionlint, and build without cgo for other systems
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	GOLANGCI_LINT_CACHE=$(TOOLS)/lint-cache $(GOLANGCI) run ./...
	go vet -tags nocloud ./cmd/...
	for module in $(MODULES); do (cd $$module && go vet ./... && GOLANGCI_LINT_CACHE=$(TOOLS)/lint-cache $(GOLANGCI) run ./...); done
	$(ACTIONLINT) -shellcheck= -pyflakes= .github/workflows/*.yml
	for doc in docs/ci.md docs/callers.md; do awk '/^```/ { on = 0 } on; /^# \.github\/workflows\// { on = 1 }' $$doc | $(ACTIONLINT) -shellcheck= -pyflakes= -stdin-filename $$doc -; done
	for target in linux/arm64 darwin/arm64 windows/amd64; do \
		echo "build without cgo for $$target"; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} go build -o /dev/null ./cmd/hsmsign; \
	done

$(GOLANGCI):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(TOOLS)/golangci-lint $(GOLANGCI)

$(ACTIONLINT):
	GOBIN=$(TOOLS) go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)
	mv $(TOOLS)/actionlint $(ACTIONLINT)

.PHONY: vuln
vuln: ## Compare the code with the Go vulnerability database (downloads it)
	for module in . $(MODULES); do go run $(GOVULNCHECK) -C $$module -test ./...; done

.PHONY: kubernetes
kubernetes: ## Render deploy/kubernetes with kustomize into the files that the tests compare
	for overlay in aws gcp; do go run $(KUSTOMIZE) build deploy/kubernetes/overlays/$$overlay -o deploy/kubernetes/check/testdata/$$overlay.yaml; done

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 30s) each
	@grep -rHoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sed -E 's,^\./(.*)/[^/]+:func ,\1 ,' | sort | \
	while read -r dir name; do bash internal/fuzz.sh "$$dir" "$$name" $(FUZZTIME); done

.PHONY: bench
bench: deps ## Measure each hot path as a ratio to its raw limit in the same run
	go test ./cmd/hsmsign -run '^$$' -bench 'Batch(File|SoftHSM|Ledger)' -benchtime 9x
	go test ./cmd/hsmsign -run '^$$' -bench Process -benchtime 100x
	go test ./cmd/hsmsign -run '^$$' -bench Memory -benchtime 1x
	go test ./cmd/hsmsign -run '^$$' -bench 'Serve(File|SoftHSM|AWSKMS|GCPKMS)' -benchtime 5x -timeout 30m
	go test ./cmd/hsmsign -run '^$$' -bench ServeStart -benchtime 10x
	go test ./request ./signer/... -run '^$$' -bench . -benchtime 3s -timeout 30m
	go test ./ledger/... -run '^$$' -bench . -benchtime 1x
	go test ./server -run '^$$' -bench ConsolePages -benchtime 1x

# signer includes the backends and takes hours.
MUTATED ?= fault agent request chain signer
.PHONY: mutate
mutate: ## Change the code of MUTATED (default: fault agent request chain signer) in small ways, and list the changes that no test notices
	@for package in $(MUTATED); do \
		echo "$$package"; \
		go run github.com/go-gremlins/gremlins/cmd/gremlins@v0.5.0 unleash --timeout-coefficient 10 ./$$package | grep -E 'LIVED|NOT COVERED|Killed|Timed'; \
	done

.PHONY: opencryptoki
opencryptoki: deps build ## Run the conformance suite on opencryptoki's soft token (installs it; needs root)
	@command -v pkcsslotd >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq opencryptoki >/dev/null; }
	@bash softhsm-test/opencryptoki.sh

.PHONY: tpm
tpm: PROGRAMS := swtpm tpm2_ptool tpm2_getcap tpm2-abrmd dbus-daemon
tpm: PACKAGES := swtpm tpm2-tools libtpm2-pkcs11-1 libtpm2-pkcs11-tools tpm2-abrmd libtss2-tcti-tabrmd0 libtss2-tcti-swtpm0 dbus
tpm: export PATH := $(PATH):/usr/sbin
tpm: deps build ## Run the conformance suite and faults on a TPM 2.0: swtpm and tpm2-pkcs11 (installs them)
	@bash softhsm-test/tpm.sh

.PHONY: nss
nss: PROGRAMS := certutil pk12util openssl
nss: PACKAGES := libnss3 libnss3-tools openssl
nss: deps build ## Run the conformance suite on NSS softokn (installs it)
	@bash softhsm-test/nss.sh

.PHONY: soak
soak: deps ## Make 100,000 signatures, kill 250 batches with a ledger and 100 services, overload a service, take away its key and its ledger; 30 minutes
	HSMSIGN_SOAK=100000 go test ./signer/pkcs11 -run TestSoak -v -timeout 30m
	HSMSIGN_SOAK=1 go test ./internal/architecture -run TestRename -v
	HSMSIGN_SOAK=1 go test ./cmd/hsmsign -run TestLedgerAfterKill -v -timeout 30m
	HSMSIGN_SOAK=1 go test ./cmd/hsmsign -run 'TestServe(Overload|Faults|AfterKill)' -v -parallel 4 -timeout 60m

VERSION ?=
MINISIGN_KEY ?=
DIST ?= dist
ARCH ?= amd64
STAGE ?= dist-stage-$(ARCH)
RELEASE = cd deploy/release && go run . $(1) --tags '$(subst $(space),$(comma),$(strip $(LEAN) $(TAGS)))' --version '$(VERSION)'

.PHONY: release-deps
release-deps: PROGRAMS := aarch64-linux-gnu-gcc x86_64-linux-gnu-gcc objdump dpkg-deb minisign rpm2cpio cpio skopeo umoci qemu-aarch64-static python3
release-deps: PACKAGES := gcc binutils gcc-aarch64-linux-gnu libc6-dev-arm64-cross dpkg minisign rpm rpm2cpio cpio skopeo umoci qemu-user-static python3
release-deps: deps ## Install the programs that make a release and test it, if any is missing (Debian 12)

.PHONY: release
release: release-deps ## Write archives, packages, images, SBOM and checksums into dist/; VERSION=0.1.0 (default: the tag), MINISIGN_KEY=FILE signs
	$(call RELEASE,build) --key '$(MINISIGN_KEY)' --out '$(abspath $(DIST))' '$(CURDIR)'

.PHONY: release-verify
release-verify: release-deps ## Build the commit twice, in two folders and with an empty cache, and compare every byte; 30 minutes
	$(call RELEASE,verify) --out '$(abspath $(DIST))' '$(CURDIR)'

.PHONY: stage
stage: release-deps ## Write what a package contains into STAGE, for ARCH=amd64 or arm64
	$(call RELEASE,stage) --arch '$(ARCH)' --out '$(abspath $(STAGE))' '$(CURDIR)'

.PHONY: release-test
release-test: PROGRAMS := debootstrap systemd-nspawn rpm qemu-aarch64-static objcopy nsenter openssl rpm2cpio cpio skopeo umoci python3
release-test: PACKAGES := debootstrap systemd-container rpm qemu-user-static binutils util-linux openssl rpm2cpio cpio skopeo umoci python3
release-test: deps ## Check dist/ and run it: .deb in Debian 12 with systemd, .rpm, images, archives, arm64 by emulation; needs root
	cd deploy/release && HSMSIGN_DIST='$(abspath $(DIST))' go test -count 1 -run TestDist .
	deploy/packages/test/run.sh '$(abspath $(DIST))'

.PHONY: demo
demo: PROGRAMS := softhsm2-util openssl curl
demo: PACKAGES := softhsm2 openssl curl
demo: deps build ## Run docs/walkthrough.md and docs/service.md end to end with SoftHSM2, or with a key file; see demo-out/
	@bash softhsm-test/demo.sh

.PHONY: demo-console
demo-console: PROGRAMS := softhsm2-util openssl curl
demo-console: PACKAGES := softhsm2 openssl curl
demo-console: deps build ## Start a service with the console at a loopback address, with some customers; prints the address and a one-time link; ends on Ctrl-C
	@bash softhsm-test/demo-console.sh

.PHONY: screenshots
screenshots: PROGRAMS := chromium
screenshots: PACKAGES := chromium fonts-dejavu-core
screenshots: deps $(AXE) ## Make the pictures of docs/console.md: every page of the console, light and dark, narrow and wide
	HSMSIGN_SCREENSHOTS=$(CURDIR)/docs/console go test ./server/consoletest -run TestConsole -count 1

# The fixture of a release is never changed again. A new one also needs identity.yaml and vendors.yaml: copy those of the last release.
.PHONY: release-fixture
release-fixture: deps ## Make testdata/releases/VERSION with the ledgers of this program: make release-fixture VERSION=0.1.0
	@test -d 'testdata/releases/$(VERSION)' || { echo 'copy identity.yaml and vendors.yaml of the last release to testdata/releases/$(VERSION) first'; exit 2; }
	@test ! -e 'testdata/releases/$(VERSION)/ledger.sql' || { echo 'testdata/releases/$(VERSION) has its ledgers already'; exit 2; }
	go test ./config -run TestReleases -update-release '$(VERSION)'
	go test ./cmd/hsmsign -run TestReleaseLedgers -update-release '$(VERSION)'

.PHONY: rename
rename: ## Change the module path everywhere: make rename MODULE=example.org/team/hsmsign
	@bash internal/rename.sh '$(MODULE)'

.PHONY: clean
clean: ## Remove build outputs, demo-out/ and installed tools
	rm -rf bin demo-out dist dist-stage-* .tools

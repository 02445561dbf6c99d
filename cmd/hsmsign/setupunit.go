package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/secret"
	"hsmsign/signer"
)

// The service of the packages.
const (
	unitName      = "hsmsign.service"
	unitConfig    = "/etc/hsmsign/hsmsign.yaml"
	softhsmDropIn = "/usr/share/doc/hsmsign/examples/softhsm.conf"
)

// packaged returns whether hsmsign.service is installed and runs the configuration that is made.
func (job *setupJob) packaged() bool {
	installed := slices.ContainsFunc([]string{"/usr/lib/systemd/system", "/etc/systemd/system"}, func(dir string) bool { return isFile(filepath.Join(dir, unitName)) == nil })
	return job.service != nil && installed && job.path == unitConfig
}

// hasUnit returns whether systemd can run a program here as hsmsign.service runs the service.
func (job *setupJob) hasUnit() bool { return job.packaged() && isFolder("/run/systemd/system") }

// unitSettings returns the settings of hsmsign.service and its drop-ins for runInUnit.
func unitSettings(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "--no-pager", "cat", unitName).Output()
	if err != nil {
		return nil, fault.Unavailable.Errorf("systemctl cat %s: %w", unitName, err).Fix("see systemctl status " + unitName)
	}
	return programSettings(string(out)), nil
}

// lifeSettings are prefixes of settings about the life of a service, which a program that runs once does not have, and of its
// runtime folder, which may be in use.
var lifeSettings = []string{
	"Type", "Exec", "Restart", "KillMode", "Timeout", "Runtime", "NotifyAccess", "Watchdog", "Standard", "TTY", "Sockets", "PIDFile", "BusName",
	"GuessMainPID", "RemainAfterExit", "SuccessExitStatus", "FileDescriptor", "NonBlocking", "OOMPolicy", "RootDirectoryStartOnly",
}

// programSettings returns the settings in the [Service] sections of a unit, without those about the life of a service: who runs it,
// its credentials, its environment and its sandbox.
func programSettings(unit string) (settings []string) {
	inService := false
	for line := range strings.Lines(strings.ReplaceAll(unit, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		name, _, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			inService = line == "[Service]"
		case !inService, !ok, strings.HasPrefix(line, "#"), strings.HasPrefix(line, ";"):
		case !slices.ContainsFunc(lifeSettings, func(prefix string) bool { return strings.HasPrefix(name, prefix) }):
			settings = append(settings, line)
		}
	}
	return settings
}

// runInUnit is run, in a unit with the settings of hsmsign.service: what the service cannot read there, it cannot read either.
func (job *setupJob) runInUnit(ctx context.Context, settings []string, args ...string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	unit := fmt.Sprintf("hsmsign-setup-%d.service", os.Getpid())
	run := []string{
		"--quiet", "--pipe", "--wait", "--collect", "--service-type=exec", "--unit=" + unit,
		"--property=RuntimeMaxSec=" + fmt.Sprint(int(checkTimeout/time.Second)), "--property=TimeoutStopSec=10",
	}
	for _, setting := range settings {
		run = append(run, "--property="+setting)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemd-run", append(append(run, self), args...)...) // #nosec G204 -- settings of root, and this program
	out, err := job.finish(ctx, cmd, args)
	if err != nil { // the unit does not end with systemd-run
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
		defer cancel()
		_ = exec.CommandContext(stop, "systemctl", "--no-block", "stop", unit).Run() // #nosec G204 -- the name of above; it may be gone
	}
	if exit, ok := errors.AsType[exitStatus](err); ok && exit >= 200 { // systemd.exec(5): before the program ran
		err = fault.Unavailable.Errorf("systemd cannot run a program as %s does (status %d)", unitName, int(exit)).Fix("see journalctl -u " + unit + ", and correct " + unitName + " or its drop-ins")
	}
	return out, err
}

// explainSoftHSM says why the service cannot use a token of SoftHSM2 that root can use, if it is one.
func (job *setupJob) explainSoftHSM(settings []string) {
	ref, err := signer.ParseRef(job.config.Key)
	if err != nil {
		return
	}
	module, _ := ref.Query("module-path")
	switch {
	case !strings.Contains(strings.ToLower(filepath.Base(module)), "softhsm"):
	case settings != nil && !slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, "ReadWritePaths=") }):
		job.p.con.Infof("%s has no access to the tokens of SoftHSM2: install -D -m 0644 %s /etc/systemd/system/%s.d/softhsm.conf && systemctl daemon-reload, and run setup again",
			unitName, softhsmDropIn, unitName)
	default:
		job.p.con.Infof("the key opens as root; the user %s must be able to read and write SoftHSM2's folder of tokens: make the token as that user, see docs/install.md", job.service.name)
	}
}

// credentialFile returns the file of a credential of the service, as root reads it: NAME in secrets for credential:secrets_NAME.
func (job *setupJob) credentialFile(text string) (string, bool) {
	name, ok := strings.CutPrefix(text, secretsCredential)
	return filepath.Join(job.secrets(), name), ok && filepath.Base(name) == name
}

// secretFile makes the path of a file with a secret absolute. A credential is accepted where the unit of the packages has it.
func (job *setupJob) secretFile(path *string) error {
	if !strings.HasPrefix(*path, "credential:") {
		return job.absolute(path)
	}
	file, ok := job.credentialFile(*path)
	switch {
	case !ok:
		return fault.Usage.Errorf("%q is not a credential of the service", *path).Fix("write " + secretsCredential + "NAME for the file NAME in " + job.secrets())
	case !job.hasUnit():
		return fault.Usage.Errorf("%q is a credential, and systemd does not run %s with this configuration here", *path, unitName).Fix("name a file")
	}
	return isFile(file)
}

// credentials are the parameters of a reference that may name a secret.
var credentials = []string{"pin-source", "passphrase-file"}

// readable returns a reference as setup can open it, and the file of its credential: a credential is read from the folder that the
// service gets it from.
func (job *setupJob) readable(ref signer.Ref) (readable signer.Ref, file string) {
	for _, parameter := range credentials {
		source, _ := ref.Query(parameter)
		if path, ok := job.credentialFile(source); ok {
			return ref.Without(parameter).With(parameter, "file:"+path), path
		}
	}
	return ref, ""
}

// inherited is where a program finds the first file that it inherits.
const inherited = "/proc/self/fd/3"

// withoutCredential adds a reference of the key to the arguments of doctor, if that of the configuration has a credential, which only
// systemd could pass to the service. The secret is then in memory, in a file that the service's user can read and doctor inherits;
// without a service it is in its own file.
func (job *setupJob) withoutCredential(doctor []string) ([]string, *os.File, error) {
	ref, err := signer.ParseRef(job.config.Key)
	if err != nil {
		return nil, nil, err
	}
	ref, path := job.readable(ref)
	if path == "" {
		return doctor, nil, nil
	}
	if job.service == nil {
		return append(doctor, "--key", ref.Encode()), nil, nil
	}
	data, err := secret.ReadFile(path, secret.Max+2, false)
	if err != nil {
		return nil, nil, err
	}
	defer clear(data)
	for _, parameter := range credentials {
		if source, _ := ref.Query(parameter); source == "file:"+path {
			ref = ref.Without(parameter).With(parameter, "file:"+inherited)
		}
	}
	passed, err := inMemory(data, job.service)
	return append(doctor, "--key", ref.Encode()), passed, err
}

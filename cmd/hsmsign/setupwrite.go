package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger/open"
)

const (
	verifierMode = 0o644 // of the verifier key, which is public
	configMode   = 0o640 // of the configuration of root, which the group of the service reads
)

// plan returns the files that setup writes.
func (job *setupJob) plan() (files []api.SetupFile) {
	add := func(path, mode, owner, what string) {
		files = append(files, api.SetupFile{Path: path, Mode: mode, Owner: owner, What: what})
	}
	me, service := "you", "you"
	if job.service != nil {
		me, service = "root", job.service.name
	}
	if job.secret != "" {
		owner := service
		if filepath.Dir(job.secret) == job.secrets() {
			owner = me
		}
		add(job.secret, "0600", owner, "the secret that was typed")
	}
	if job.origin != "" {
		if path := open.Path(job.config.Ledger.Store); path != "" {
			add(path, "0600", service, "the ledger")
		}
		add(job.config.Ledger.CheckpointKey, "0600", service, "the checkpoint key of the ledger, a secret")
		last := "0644"
		if job.hasUnit() {
			last = "0600" // by the umask of the unit
		}
		add(job.config.Ledger.LastCheckpoint, last, service, "the newest checkpoint")
		add(job.pinned, "0644", me, "the verifier key of the ledger")
	}
	if job.replace {
		add(job.copyName(), "0600", me, "a copy of the configuration before")
	}
	mode := "0600"
	if job.service != nil {
		mode = "0640"
	}
	add(job.path, mode, me, "the configuration")
	return files
}

func fileRows(files []api.SetupFile) (rows [][]string) {
	for _, f := range files {
		rows = append(rows, []string{"", f.Path, f.Mode, f.Owner, f.What})
	}
	return rows
}

// copyName is where the configuration before is kept.
func (job *setupJob) copyName() string {
	return job.path + "." + job.begun.UTC().Format("20060102T150405.000Z")
}

// write makes the ledger and the secret, checks the new configuration under another name, and gives it its own. An error names what
// was made and stays.
func (job *setupJob) write(ctx context.Context, text string, files []api.SetupFile) (err error) {
	if err := os.MkdirAll(job.dir, 0o755); err != nil { // #nosec G301 -- secrets in it have their own modes
		return fault.Usage.Errorf("configuration: %w", err).Fix("name another file with --config")
	}
	wholefile.Sweep(job.dir)
	candidate, err := job.candidate(text)
	if err != nil {
		return fault.Usage.Errorf("configuration: %w", err).Fix("run setup as a user who can write there, or name another file with --config")
	}
	defer func() { _ = os.RemoveAll(filepath.Dir(candidate)) }() // it is a copy
	var made []string
	defer func() {
		if err != nil && len(made) > 0 {
			job.p.con.Infof("%s was made and stays; the configuration was not written", strings.Join(made, " and "))
		}
	}()
	if job.secret != "" {
		if err := job.writeSecret(); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				_ = os.Remove(job.secret) // it is that of this run
			}
		}()
	}
	if job.origin != "" {
		if err := job.makeLedger(ctx, candidate); err != nil {
			return err
		}
		made = append(made, "the ledger "+job.config.Ledger.Store+" with the checkpoint key "+job.config.Ledger.CheckpointKey+" and the verifier key "+job.pinned)
	}
	if err := job.check(ctx, candidate); err != nil {
		return err
	}
	if err := job.publish(candidate, text); err != nil {
		return err
	}
	job.report(files)
	return nil
}

// candidate writes the configuration into a folder of unfinished files.
func (job *setupJob) candidate(text string) (string, error) {
	dir, err := wholefile.Folder(job.path)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, filepath.Base(job.path))
	err = wholefile.Write(path, []byte(text), job.mode(), false)
	if err == nil && job.service != nil {
		err = errors.Join(os.Chown(dir, -1, job.service.gid), os.Chmod(dir, 0o710), os.Chown(path, -1, job.service.gid), os.Chmod(path, configMode)) // #nosec G302 -- the service reads it
	}
	if err != nil {
		_ = os.RemoveAll(dir)
	}
	return path, err
}

// mode is that of the configuration.
func (job *setupJob) mode() fs.FileMode {
	if job.service != nil {
		return configMode
	}
	return secretMode
}

// writeSecret writes the PIN or passphrase that was typed. The service owns it, unless it is a credential.
func (job *setupJob) writeSecret() error {
	err := wholefile.Write(job.secret, append(bytes.Clone(job.typed), '\n'), secretMode, false)
	if err == nil && job.service != nil && filepath.Dir(job.secret) != job.secrets() {
		err = os.Lchown(job.secret, job.service.uid, job.service.gid)
	}
	if errors.Is(err, fs.ErrExist) {
		return notThere(job.secret)
	}
	return err
}

// makeLedger makes the ledger as the user of the service, and pins its verifier key.
func (job *setupJob) makeLedger(ctx context.Context, candidate string) error {
	out, err := job.run(ctx, nil, "--config", candidate, "ledger", "init", "--origin", job.origin, "--json")
	if err != nil {
		if path := open.Path(job.config.Ledger.Store); path != "" { // askLedger found no file there
			_ = errors.Join(os.Remove(path), os.Remove(path+"-wal"), os.Remove(path+"-shm"))
		}
		return err
	}
	var made api.LedgerInit
	if err := json.Unmarshal(out, &made); err != nil {
		return fault.Errorf("ledger init: %w", err)
	}
	return wholefile.Write(job.pinned, []byte(made.VerifierKey+"\n"), verifierMode, false)
}

// check runs check-config and doctor with the new configuration, as the service will run, which must be able to read everything: in a
// unit with the settings of hsmsign.service, or as the user of the service.
func (job *setupJob) check(ctx context.Context, candidate string) error {
	run := func(passed *os.File, args ...string) ([]byte, error) { return job.run(ctx, passed, args...) }
	doctor, passed, settings := []string{"--config", candidate, "doctor"}, (*os.File)(nil), []string(nil)
	var err error
	if job.hasUnit() {
		settings, err = unitSettings(ctx)
		run = func(_ *os.File, args ...string) ([]byte, error) { return job.runInUnit(ctx, settings, args...) }
	} else {
		doctor, passed, err = job.withoutCredential(doctor)
	}
	if err != nil {
		return err
	}
	if passed != nil {
		defer passed.Close()
	}
	status := func() (found api.LedgerStatus, err error) {
		out, err := run(nil, "--config", candidate, "ledger", "status", "--json")
		if err == nil {
			err = json.Unmarshal(out, &found)
		}
		return found, err
	}
	if _, err := run(nil, "--config", candidate, "check-config"); err != nil {
		return err
	}
	before, err := status()
	if err != nil {
		return err
	}
	out, err := run(passed, doctor...)
	if err != nil {
		job.show(out)
		if job.service != nil {
			job.explainSoftHSM(settings)
		}
		return err
	}
	if !job.json {
		job.p.con.Printf("")
		job.show(out)
	}
	if after, err := status(); err != nil || after.Entries <= before.Entries {
		return errors.Join(err, fault.Unavailable.Errorf("the service could not write to the ledger %s", before.Store).Fix("see the warning above"))
	}
	return nil
}

// show writes the output of a command for the person: to standard error if standard output is JSON.
func (job *setupJob) show(out []byte) {
	if !job.json {
		job.p.con.Write(out)
		return
	}
	_, _ = os.Stderr.Write(out) // there is nobody to tell
}

// publish gives the checked configuration its name; a file that has it is kept as a copy.
func (job *setupJob) publish(candidate, text string) error {
	if job.replace {
		before, err := os.ReadFile(job.path)
		if err == nil {
			err = wholefile.Write(job.copyName(), before, secretMode, false)
		}
		if err != nil {
			return fault.Errorf("copy of the configuration before: %w", err)
		}
		if job.service == nil {
			return wholefile.Write(job.path, []byte(text), secretMode, true)
		}
		if err := os.Rename(candidate, job.path); err != nil {
			return fault.Errorf("configuration: %w", err)
		}
		return wholefile.FlushFolder(job.dir)
	}
	err := wholefile.Place(candidate, job.path)
	if errors.Is(err, fs.ErrExist) {
		return fault.Usage.Errorf("the configuration %q was made meanwhile", job.path).Fix("run setup again")
	}
	return err
}

// checkTimeout bounds one command that setup runs.
const checkTimeout = 5 * time.Minute

// run runs a command of this program, as the user of the service, and returns its standard output. The variables of hsmsign
// are left out: the service has none. What the command says on standard error is shown if it is a warning or it fails; the error then
// has its exit code. The command inherits a file, unless it is nil.
func (job *setupJob) run(ctx context.Context, passed *os.File, args ...string) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...) // #nosec G204 -- this program
	cmd.Args[0] = "hsmsign"
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "HSMSIGN_") })
	if passed != nil {
		cmd.ExtraFiles = []*os.File{passed}
	}
	if job.service != nil {
		cmd.Dir = "/"
		cmd.Env = append(cmd.Env, "HOME="+job.service.home, "USER="+job.service.name)
		become(cmd, job.service)
	}
	return job.finish(ctx, cmd, args)
}

// finish runs a command of this program for run; args are the arguments of hsmsign.
func (job *setupJob) finish(ctx context.Context, cmd *exec.Cmd, args []string) ([]byte, error) {
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	for line := range strings.Lines(complaints.String()) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "hsmsign: "))
		if i := slices.Index(args, "--config"); i >= 0 {
			line = strings.ReplaceAll(line, args[i+1], job.path)
		}
		if err != nil || strings.HasPrefix(line, "warning: ") {
			job.p.con.Infof("%s: %s", strings.Join(words(args), " "), line)
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(words(args), " "), ctx.Err())
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.Bytes(), exitStatus(max(exit.ExitCode(), fault.Internal.Exit()))
	}
	return out.Bytes(), err
}

// words returns the name of a command in its arguments.
func words(args []string) []string {
	args = args[2:] // --config FILE
	end := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "-") })
	if end < 0 {
		end = len(args)
	}
	return args[:end]
}

// report prints what was written, and what to do next.
func (job *setupJob) report(files []api.SetupFile) {
	next := job.next()
	if job.json {
		job.p.con.JSON(api.Setup{Config: job.path, Files: files, Origin: job.origin, Backend: job.backend, Token: job.token, Next: next})
		return
	}
	job.p.con.Printf("")
	job.p.con.Printf("%s is written; check-config and doctor accept it", job.path)
	if job.origin != "" {
		job.p.con.Printf("verifier key of the ledger: %s; keep a copy elsewhere, and back up %s", job.pinned, job.config.Ledger.CheckpointKey)
	}
	if job.token != "" {
		job.p.con.Printf("token of %s, shown once: %s", job.backend, job.token)
	}
	for i, command := range next {
		job.p.con.Printf("%s", map[bool]string{true: "Next:  ", false: "       "}[i == 0]+command)
	}
}

// next returns the commands that start the service.
func (job *setupJob) next() (commands []string) {
	socket := slices.Contains(job.config.Serve.Listen, "unix:///run/hsmsign/agent.sock")
	if job.service != nil && socket {
		for name, caller := range job.config.Callers {
			if len(caller.UID) > 0 {
				commands = append(commands, "usermod -a -G "+job.service.name+" "+name)
			}
		}
		slices.Sort(commands)
	}
	switch {
	case job.packaged() && socket:
		return append(commands, "systemctl enable --now hsmsign.socket hsmsign.service")
	case job.packaged():
		return append(commands, "systemctl enable --now hsmsign.service")
	}
	return append(commands, "hsmsign serve --config "+job.path)
}

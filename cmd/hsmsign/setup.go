package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/config"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/keystore"
)

func (p *program) setupCommand() *cli.Command {
	return &cli.Command{
		Name: "setup", Usage: "write the configuration of a service in one dialogue: key, certificate, ledger, listener and callers",
		Description: "Each answer is checked at once: the key is opened, and the certificate must match it. The configuration and the list of\n" +
			"files are shown before anything is written. The new configuration gets its name only after check-config and doctor\n" +
			"have accepted it. They run as the user of the service, or, with the packages, as systemd runs hsmsign.service.\n" +
			"A flag is an answer that is not asked for; with --yes nothing is asked.\n\n" +
			"  hsmsign setup\n" +
			"  hsmsign setup --config ./hsmsign.yaml --yes --operator ada --ledger sqlite:/srv/hsmsign/ledger.db \\\n" +
			"      --key 'pkcs11:token=mdm;object=vendor?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/srv/hsmsign/pin' \\\n" +
			"      --cert vendor.pem --listen unix:///run/hsmsign/agent.sock\n" +
			"  hsmsign setup --yes --key awskms:///alias/mdm-vendor?region=eu-west-1 --cert vendor.pem --operator ada --backend portal \\\n" +
			"      --ledger postgres://hsmsign@db/hsmsign --listen tls://0.0.0.0:8443 --tls-cert server.pem --tls-key server.key --json",
		Flags: append([]cli.Flag{
			keyFlag(),
			stringFlag("cert", "vendor certificate `FILE`, or the whole chain (PEM, DER, PKCS#7), or the pkcs11: reference of a certificate in a token"),
			listFlag("chain", "`FILE` with intermediate or root certificates; may be repeated"), trustRootFlag(),
			stringFlag("origin", "`NAME` of a new ledger in its checkpoints: a name of yours, as example.com/mdm"), verifierFlag(),
			listFlag("listen", "`ADDRESS`: unix:///PATH, tls://HOST:PORT or http://LOOPBACK:PORT; may be repeated"),
			stringFlag("tls-cert", "`FILE` with the certificate of tls: listeners, PEM"), stringFlag("tls-key", "`FILE` with its key, PEM, mode 0600, or credential:secrets_NAME"),
			stringFlag("operator", "Unix `USER` who may sign, read, manage customers and freeze"),
			stringFlag("backend", "`NAME` of a machine that gets a token to sign; needs a tls: or http: listener"),
			stringFlag("expires", "`TIME` for which the token is accepted, from 1m to 366d, as 90d or 24h (default: 90d)"),
			listFlag("approver", "Unix `USER` who may approve requests; may be repeated"),
			stringFlag("approvals", "`NUMBER` of other people who must approve a new customer or a new key, or none (default: none)"),
			stringFlag("per-second", "`NUMBER` of requests of one caller in a second (default: 5)"), stringFlag("per-day", "`NUMBER` of requests of one caller in a day (default: 500)"),
			stringFlag("user", "Unix `USER` of the service, who gets its files (default for root: hsmsign, if there is such a user)"),
			boolFlag("replace", "replace an existing configuration; a copy is kept next to it"),
			boolFlag("yes", "ask nothing: what has no flag gets its default"), jsonFlag(), configFlag(),
		}, ledgerFlags()...),
		Action: p.setup,
	}
}

// setupJob is one run of setup.
type setupJob struct {
	*settings // of command line and environment; its config is the one that is made
	p         *program
	dir       string   // of the configuration, absolute
	service   *account // of the service; nil: the user who runs setup
	replace   bool     // the file at path has settings, or comments alone
	silent    bool     // nothing is asked

	tested  string // reference that opens the key here; that of the configuration may name a credential
	typed   []byte // PIN or passphrase
	secret  string // file for it
	origin  string // of the new ledger; "": the ledger exists
	pinned  string // file for its verifier key; "": the verifier key is known
	backend string // name of a machine; "": it has no caller
	token   string // of the backend
	begun   time.Time
}

func (p *program) setup(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	job := &setupJob{settings: s, p: p, silent: s.boolean("yes"), begun: time.Now()}
	if err := job.place(explicitConfig(ctx)); err != nil {
		return err
	}
	defer func() { clear(job.typed) }()
	switch {
	case !job.silent && p.prompt == nil:
		return fault.Usage.Errorf("there is no terminal to ask at").Fix("add --yes to do it without a question, and give the answers as flags")
	case !job.silent:
		p.con.Infof("this writes %s for hsmsign serve; an empty answer is the one in brackets; until you confirm, nothing is written", job.path)
	}
	for _, ask := range []func(context.Context) error{job.askKey, job.askCertificates, job.askLedger, job.askListeners, job.askCallers} {
		if err := ask(ctx.Context); err != nil {
			return err
		}
	}
	text, err := job.render()
	if err != nil {
		return err
	}
	files := job.plan()
	if !s.json {
		p.con.Write([]byte("\n" + text + "\n"))
		p.con.Printf("These files will be written:")
		p.con.Table(fileRows(files))
	}
	if !job.silent {
		yes, err := console.Confirm(ctx.Context, "hsmsign: write them? [y/N] ")
		if err == nil && !yes {
			err = fault.Usage.Errorf("not confirmed, and nothing was written").Fix("run setup again")
		}
		if err != nil {
			return err
		}
	}
	return job.write(ctx.Context, text, files)
}

// account is a Unix user with its groups.
type account struct {
	name     string
	uid, gid int
	groups   []uint32
	home     string
}

// findAccount returns a Unix user, by name or number.
func findAccount(name string) (*account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, fault.Usage.Errorf("there is no Unix user %q", fault.Clip(name, 64)).Fix("name one that getent passwd lists")
		}
	}
	a := &account{name: u.Username, home: u.HomeDir}
	var errs [2]error
	a.uid, errs[0] = strconv.Atoi(u.Uid)
	a.gid, errs[1] = strconv.Atoi(u.Gid)
	if err := errors.Join(errs[:]...); err != nil { // Windows
		return nil, fault.Usage.Errorf("the user %q has no number", u.Username).Fix("hsmsign serve accepts Unix users on Linux only")
	}
	groups, _ := u.GroupIds() // without them it has its own
	for _, text := range groups {
		if gid, err := strconv.ParseUint(text, 10, 32); err == nil {
			a.groups = append(a.groups, uint32(gid))
		}
	}
	return a, nil
}

// serviceUser is the account that the packages make.
const serviceUser = "hsmsign"

// place decides where the configuration will be and whose service it is, and refuses one that exists and has settings.
func (job *setupJob) place(explicit string) error {
	root := os.Geteuid() == 0
	if explicit == "" {
		explicit = job.getenv("HSMSIGN_CONFIG")
	}
	if explicit == "" {
		explicit = "/etc/hsmsign/hsmsign.yaml"
		if dir, err := os.UserConfigDir(); err == nil && !root {
			explicit = filepath.Join(dir, "hsmsign", "hsmsign.yaml")
		}
	}
	var err error
	if job.path, err = filepath.Abs(explicit); err != nil {
		return err
	}
	job.dir = filepath.Dir(job.path)
	name, from := job.str("user")
	switch _, unknown := user.Lookup(serviceUser); {
	case name != "" && !root:
		return fault.Usage.Errorf("%s needs root", from).Fix("run setup as root, or as the user of the service")
	case name == "" && root && unknown == nil:
		name = serviceUser
	}
	if name != "" {
		if job.service, err = findAccount(name); err != nil {
			return fmt.Errorf("user: %w", err)
		}
		if job.service.uid == 0 {
			job.service = nil
		}
	}
	return job.checkPlace()
}

// checkPlace refuses a configuration that exists and has settings, unless it may be replaced. That of the packages has comments alone.
func (job *setupJob) checkPlace() error {
	info, err := os.Lstat(job.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return fault.Usage.Errorf("configuration %q: %w", job.path, err).Fix("name another file with --config")
	}
	job.replace = true
	if existing, err := config.Load(job.path); err == nil && existing.Empty() || job.boolean("replace") {
		return nil
	}
	return fault.Usage.Errorf("the configuration %q exists", job.path).Fix("change it in an editor and run hsmsign check-config, or replace it with --replace, which keeps a copy")
}

// keys returns the key stores of setup. They ask the person for a PIN or passphrase, once, and keep it; the environment of setup is
// not that of the service, so it counts for nothing.
func (job *setupJob) keys() *keystore.Store {
	asking := *job.p
	asking.getenv = func(name string) string {
		if strings.HasPrefix(name, "HSMSIGN_") {
			return ""
		}
		return job.getenv(name)
	}
	if prompt := asking.prompt; job.silent || prompt == nil {
		asking.prompt = nil
	} else {
		asking.prompt = askOnce(func(ctx context.Context, label string) ([]byte, error) {
			answer, err := prompt(ctx, label)
			if err == nil {
				job.typed = append([]byte(nil), answer...)
			}
			return answer, err
		})
	}
	return asking.keystore(nil)
}

// matchKey refuses a chain that is not complete or not that of the key.
func (job *setupJob) matchKey(ctx context.Context) error {
	key, err := job.store.Parse(job.tested)
	if err != nil {
		return err
	}
	c := job.config
	vendor, err := agent.NewVendor(ctx, agent.Config{
		Key: key, OpenTimeout: openTimeout, SignTimeout: signTimeout, Certificates: agent.CertificateFiles(job.store, c.Cert, c.Chain, c.TrustRoot),
	})
	if err != nil {
		return err
	}
	defer vendor.Close()
	job.p.con.Warnings(keystore.Redact(c.Cert), vendor.Chain().Findings)
	return vendor.Open(ctx)
}

package main

import (
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger"
)

func (p *program) rotateCommand() *cli.Command {
	return &cli.Command{
		Name: "rotate", Usage: "replace the checkpoint key: first both keys sign, then, with --end, only the new one",
		Description: "The new key has the same origin and is added to the checkpoint key file. From then on each checkpoint has two signatures,\n" +
			"and verifiers with either verifier key accept it. Pin the new one everywhere, then end the rotation.\n" +
			"If several hosts append, prepare first, and copy the key file to each host.\n\n" +
			"  hsmsign ledger rotate --ledger sqlite:ledger.db\n" +
			"  hsmsign ledger rotate --ledger sqlite:ledger.db --verifier-key new.pub --end\n" +
			"  hsmsign ledger rotate --ledger postgres:///mdm --checkpoint-key mdm.key --prepare",
		Flags: append(ledgerFlags(), verifierFlag(), boolFlag("prepare", "only add the new key to the key file; run it again without --prepare to begin"),
			boolFlag("end", "only the new key signs from now on; it must be the pinned one"), jsonFlag(), configFlag()),
		Action: p.ledgerRotate,
	}
}

func (p *program) ledgerRotate(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	c, err := s.neededLedger()
	if err != nil {
		return err
	}
	actor, err := s.caller() // before the key file changes
	if err != nil {
		return err
	}
	prepare, end := s.boolean("prepare"), s.boolean("end")
	switch {
	case prepare && end:
		return fault.Usage.Errorf("--prepare and --end exclude each other").Fix("leave one out")
	case end:
		return p.endRotation(ctx, s, &c, actor)
	}
	key, verifier, err := c.addKey()
	if err != nil {
		return err
	}
	if prepare {
		p.rotated(s, &c, "prepared", verifier, "copy the key file to each host that appends, then run hsmsign ledger rotate")
		return nil
	}
	l, done, err := p.openLedger(ctx.Context, s, true)
	if err != nil {
		return err
	}
	defer done()
	if err := l.Rotate(ctx.Context, actor.Name, actor.Channel, key); err != nil {
		return err
	}
	p.rotated(s, &c, "begun", verifier, "both keys sign now: pin the new verifier key wherever the ledger is verified, then run hsmsign ledger rotate --end")
	return nil
}

// addKey returns the new checkpoint key and its verifier key. It adds the key to the key file, unless a run before did.
func (c *ledgerConfig) addKey() (key, verifier string, err error) {
	_, keys, err := c.keys(true)
	if err != nil {
		return "", "", err
	}
	lines := strings.Fields(keys)
	if len(lines) == 1 {
		verifier, err := ledger.VerifierKey(keys)
		if err != nil {
			return "", "", err
		}
		origin, _, _ := strings.Cut(verifier, "+")
		if key, _, err = ledger.GenerateKey(origin); err != nil {
			return "", "", err
		}
		if err := c.writeKey(lines[0], key); err != nil {
			return "", "", err
		}
		lines = append(lines, key)
	}
	key = lines[len(lines)-1]
	verifier, err = ledger.VerifierKey(key)
	return key, verifier, err
}

// writeKey replaces the checkpoint key file.
func (c *ledgerConfig) writeKey(keys ...string) error {
	path, err := filepath.EvalSymlinks(c.keyFile)
	if err == nil {
		err = wholefile.Write(path, []byte(strings.Join(keys, "\n")+"\n"), 0o600, true)
	}
	if err != nil {
		return fault.Usage.Errorf("checkpoint key: %w", err).Fix("name the file itself with --checkpoint-key, not a copy that cannot be written, such as a systemd credential")
	}
	return nil
}

func (p *program) endRotation(ctx *cli.Context, s *settings, c *ledgerConfig, actor agent.Caller) error {
	_, keys, err := c.keys(true)
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx.Context, s, true)
	if err != nil {
		return err
	}
	defer done()
	verifier, err := l.EndRotation(ctx.Context, actor.Name, actor.Channel)
	if err != nil {
		return err
	}
	for _, key := range strings.Fields(keys) {
		if own, err := ledger.VerifierKey(key); err != nil || own != verifier {
			continue
		}
		if err := c.writeKey(key); err != nil {
			return err
		}
		p.rotated(s, c, "ended", verifier, "copy the key file to each host that appends; keep the old verifier key for old receipts and checkpoints")
		return nil
	}
	return fault.Auth.Errorf("the rotation has ended, and the new key is not in %q", c.keyFile).Fix("copy the key file from the host that began the rotation")
}

// rotated prints the state of the rotation.
func (p *program) rotated(s *settings, c *ledgerConfig, state, verifier, next string) {
	origin, _, _ := strings.Cut(verifier, "+")
	if s.json {
		p.con.JSON(api.LedgerRotate{State: state, Origin: origin, VerifierKey: verifier, KeyFile: c.keyFile})
		return
	}
	p.con.Printf("verifier key: %s", verifier)
	p.con.Infof("the rotation of the checkpoint key of %s: %s", origin, state)
	p.con.Infof("%s", next)
}

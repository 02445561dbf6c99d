package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
)

func (p *program) copyCommand() *cli.Command {
	return &cli.Command{
		Name: "copy", Usage: "append the newest checkpoint to a file, such as one on a removable disk; with --to: move the ledger to another store", ArgsUsage: "[FILE]",
		Description: "With FILE it is the newest checkpoint that as many witnesses have cosigned as the configuration requires (at least one),\n" +
			"or the head if there is none. The ledger must have grown from the checkpoints that the file contains.\n\n" +
			"  hsmsign ledger copy --ledger sqlite:ledger.db --verifier-key ledger.pub /media/usb/ledger.checkpoints\n" +
			"  hsmsign ledger verify --ledger sqlite:ledger.db --verifier-key ledger.pub --against /media/usb/ledger.checkpoints\n\n" +
			"With --to the whole ledger is copied to another, empty store while it is in use. Then the ledger is closed with a last\n" +
			"entry, so that it is never appended to in two stores; the rest is copied, and the copy is verified. Origin, keys and\n" +
			"entries stay the same, so receipts and checkpoints stay valid. Run the same command again if it was interrupted.\n\n" +
			"  hsmsign ledger copy --ledger sqlite:ledger.db --to 'postgres://owner@/hsmsign?host=/run/postgresql'",
		Flags: slices.Concat(ledgerFlags(), []cli.Flag{
			verifierFlag(), stringFlag("to", "move the ledger to the empty store of this `REFERENCE`"), jsonFlag(), configFlag(),
		}),
		Action: p.ledgerCopy,
	}
}

func (p *program) ledgerCopy(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	to, from := s.str("to")
	switch {
	case to == "" && len(args) != 1:
		return fault.Usage.Errorf("%d files given", len(args)).Fix("name one file for the newest checkpoint, or another store with --to")
	case to != "" && len(args) > 0:
		return fault.Usage.Errorf("%s and a file exclude each other", from).Fix("leave one out; the checkpoint is copied to a file by itself")
	case to != "":
		return p.moveLedger(ctx.Context, s, to, from)
	}
	l, done, err := p.openLedger(ctx.Context, s, false)
	if err != nil {
		return err
	}
	defer done()
	copied, err := l.Copy(ctx.Context, args[0], s.config.Ledger.Required)
	if err != nil {
		return err
	}
	if s.json {
		p.con.JSON(api.LedgerCopy{File: args[0], Entries: copied.Size})
		return nil
	}
	p.con.Infof("appended the checkpoint of %d entries to %s", copied.Size, args[0])
	return nil
}

// moveLedger moves the ledger to another store.
func (p *program) moveLedger(ctx context.Context, s *settings, to, from string) error {
	if from != "$"+envName("to") && open.HasPassword(to) {
		return fault.Usage.Errorf("%s contains a password", from).Fix("leave the password to PGPASSFILE")
	}
	if !open.IsReference(to) {
		return fault.Usage.Errorf("%s: %q does not name a store", from, fault.Clip(to, 64)).Fix("write sqlite:PATH or postgres://USER@HOST/DATABASE")
	}
	c, err := s.neededLedger()
	if err != nil {
		return err
	}
	actor, err := s.caller()
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx, s, true)
	if err != nil {
		return err
	}
	defer done()
	var store *ledger.Store
	progress := &moveProgress{p: p}
	result, err := l.Move(ctx, ledger.Move{
		Open: func(create bool) (*ledger.Store, error) {
			store, err = open.Store(ctx, to, create)
			return store, err
		},
		Actor: actor.Name, Channel: actor.Channel, Step: progress.step,
	})
	progress.end()
	if store != nil {
		defer func() { _ = store.DB.Close() }() // every transaction has ended
	}
	if err != nil {
		return err
	}
	if s.json {
		p.con.JSON(api.LedgerMove{
			Store: c.name(), To: result.Name, ToID: result.Store.String(), Origin: l.Origin(), Entries: result.Head.Size, Copied: result.Entries,
			Root: hex.EncodeToString(result.Head.Root[:]), Again: result.Again,
		})
		return nil
	}
	if result.Again {
		p.con.Infof("the ledger had been moved to %s before; the copy is whole and has all %d entries", result.Name, result.Head.Size)
	} else {
		p.con.Infof("moved %d entries to %s; the copy is whole, and nothing is appended to %s any more", result.Head.Size, result.Name, c.name())
	}
	p.con.Infof("in the configuration, write ledger: { store: %q, checkpoint-key: %q, last-checkpoint: %q }, and restart what uses the ledger", nameOf(to, result.Name), c.keyFile, c.last)
	return nil
}

// nameOf returns a reference, or its name without secrets if it has a password.
func nameOf(reference, name string) string {
	if open.HasPassword(reference) {
		return name
	}
	return reference
}

// moveProgress shows how far a copy is.
type moveProgress struct {
	p     *program
	said  []string
	step1 func() // of the bar; nil: there is none
	done  func()
	shown int64 // entries that the bar shows
}

// step says what happens next, and advances the bar.
func (m *moveProgress) step(step string, copied, entries int64) error {
	const unit = 256 // entries of one step of the bar
	if step == ledger.StepEntries {
		m.say("copying the entries")
		if m.done == nil && entries-copied > unit {
			m.step1, m.done = m.p.con.Progress(int((entries-copied)/unit), "copying")
			m.shown = copied
		}
		for ; m.done != nil && m.shown+unit <= copied; m.shown += unit {
			m.step1()
		}
		return nil
	}
	m.end()
	m.say(map[string]string{
		ledger.StepVerify: "verifying the ledger", ledger.StepClose: "closing the ledger: from now on it is only read",
		ledger.StepTables: "copying the lists", ledger.StepCompare: fmt.Sprintf("verifying the copy of %d entries", entries),
	}[step])
	return nil
}

// say prints what happens, once.
func (m *moveProgress) say(text string) {
	if text == "" || slices.Contains(m.said, text) {
		return
	}
	m.said = append(m.said, text)
	m.p.con.Infof("%s", text)
}

// end removes the bar.
func (m *moveProgress) end() {
	if m.done != nil {
		m.done()
		m.done = nil
	}
}

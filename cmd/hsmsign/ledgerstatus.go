package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/ledger"
)

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show the size of the ledger, what is frozen, what witnesses have cosigned, and how far the copies are",
		Description: "Sizes and times of witnesses are those of cosignatures that were verified. Services that use the ledger are listed\n" +
			"for an hour after their last sign of life. Exit code 3 if they apply different policies.\n\n" +
			"  hsmsign ledger status --ledger sqlite:ledger.db",
		Flags:  slices.Concat(ledgerFlags(), []cli.Flag{verifierFlag(), witnessKeyFlag(), jsonFlag(), configFlag()}),
		Action: p.ledgerStatus,
	}
}

func (p *program) ledgerStatus(ctx *cli.Context) error {
	s, _, l, done, err := p.reader(ctx, noFiles)
	if err != nil {
		return err
	}
	defer done()
	status, err := newLedgerStatus(ctx, l, s.config.Ledger.Required)
	if err != nil {
		return err
	}
	if s.json {
		p.con.JSON(status)
		return differing(status)
	}
	for _, f := range [][2]string{
		{"store", status.Store}, {"origin", status.Origin}, {"entries", strconv.FormatInt(status.Entries, 10)}, {"root", status.Root}, {"newest", status.Newest},
	} {
		p.con.Field(f[0], f[1])
	}
	if status.Moved != nil {
		p.con.Field("moved to", status.Moved.Name)
	}
	p.printPublished(status)
	if status.Pending > 0 {
		p.con.Field("pending", strconv.Itoa(status.Pending)+" wait for approval")
	}
	for _, f := range status.Frozen {
		p.con.Field("frozen", fmt.Sprintf("%s since %s by %s: %s", freezeText(f.Scope, f.Name), f.Since, f.Actor, f.Reason))
	}
	for _, r := range status.Replicas {
		p.con.Field("replica", fmt.Sprintf("%s: policy %s, seen %s", r.Name, r.PolicySHA256, r.Seen))
	}
	if status.PoliciesDiffer {
		p.con.Warnf("the replicas apply different policies: give all of them the same configuration, and let them read it again")
	}
	return differing(status)
}

// differing returns exit code 3 if the replicas apply different policies.
func differing(status *api.LedgerStatus) error {
	if status.PoliciesDiffer {
		return exitStatus(fault.Refused.Exit())
	}
	return nil
}

// addService adds what is frozen, and the services that use the ledger.
func addService(ctx *cli.Context, l *ledger.Ledger, status *api.LedgerStatus) error {
	waiting, err := l.Questions(ctx.Context)
	if err != nil {
		return err
	}
	status.Pending = waiting.Requests
	frozen, err := l.Freezes(ctx.Context)
	if err != nil {
		return err
	}
	for _, f := range frozen {
		status.Frozen = append(status.Frozen, api.LedgerFreeze{Scope: f.Scope, Name: f.Name, Reason: f.Reason, Since: rfc3339(f.Since), Actor: f.Actor, Entry: f.Entry})
	}
	replicas, err := l.Replicas(ctx.Context)
	for _, r := range replicas {
		status.Replicas = append(status.Replicas, api.LedgerReplica{Name: r.Name, PolicySHA256: r.Policy.String(), Entry: r.Entry, Seen: rfc3339(r.Seen)})
		status.PoliciesDiffer = status.PoliciesDiffer || r.Policy != replicas[0].Policy
	}
	return err
}

// newLedgerStatus describes the ledger, its witnesses and its copies.
func newLedgerStatus(ctx *cli.Context, l *ledger.Ledger, required int) (*api.LedgerStatus, error) {
	status, err := ledgerapi.Status(ctx.Context, l, required, time.Now())
	if err != nil {
		return nil, err
	}
	return status, addService(ctx, l, status)
}

// rfc3339 returns a time in UTC; "" for the zero time.
func rfc3339(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// printPublished prints what witnesses and copies have.
func (p *program) printPublished(status *api.LedgerStatus) {
	switch {
	case status.Cosigned != nil:
		age := time.Duration(status.Cosigned.AgeSeconds) * time.Second
		p.con.Field("cosigned", fmt.Sprintf("%d entries by %d operators, %v ago", status.Cosigned.Entries, status.Cosigned.Operators, age))
	case len(status.Witnesses) > 0:
		p.con.Field("cosigned", "never")
	}
	if status.Required > 0 {
		p.con.Field("required", strconv.Itoa(status.Required)+" operators")
	}
	for _, w := range status.Witnesses {
		text := "has cosigned nothing"
		if w.Time != "" {
			text = fmt.Sprintf("%d entries at %s", w.Entries, w.Time)
		}
		if w.Error != "" {
			text += fmt.Sprintf("; %s at %s: %s", map[bool]string{false: "failed", true: "ALARM"}[w.Alarm], w.Failed, w.Error)
		}
		p.con.Field("witness", w.Name+": "+text)
	}
	for _, c := range status.Copies {
		text := fmt.Sprintf("%d entries", c.Entries)
		if c.Error != "" {
			text = c.Error
		}
		p.con.Field("copy", c.File+": "+text)
	}
}

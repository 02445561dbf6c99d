package main

import (
	"context"
	"crypto/x509"
	"time"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/internal/console"
	"hsmsign/ledger/record"
	"hsmsign/signer"
)

// probeHelp is what the help of a command says that signs the probe message.
const probeHelp = "The key signs one fixed message, which is no request. With a ledger the signatures are an entry of kind probe; if that\n" +
	"cannot be written, a warning is printed, and the exit code is the same.\n\n"

// recordLimit bounds recording probes: monitoring waits for the command.
const recordLimit = 10 * time.Second

// recordProbe records the signatures of a command in the ledger, if there is one. key may be nil; of certs, that of the key is
// recorded.
func (p *program) recordProbe(ctx context.Context, s *settings, probe record.Probe, key signer.Signer, certs []*x509.Certificate) {
	if key != nil {
		probe.SPKI, _ = x509.MarshalPKIXPublicKey(key.Public()) // nil for a key of another kind, which cannot have signed
	}
	if key != nil && len(certs) > 0 {
		if own, err := ownCertificates(certs, key.Public()); err == nil {
			probe.Vendor = own[0].Raw
		}
	}
	p.recordProbes(ctx, s, probe)
}

// recordStates records the signatures of vendor status.
func (p *program) recordStates(ctx context.Context, s *settings, states []*agent.Status) {
	var probes []record.Probe
	for _, state := range states {
		if state.Probe != nil {
			probes = append(probes, *state.Probe)
		}
	}
	p.recordProbes(ctx, s, probes...)
}

// recordProbes records probes in the ledger, if there is one. A failure is a warning: what the commands find out about a key
// must not depend on the ledger. A user without a role is recorded by its number.
func (p *program) recordProbes(ctx context.Context, s *settings, probes ...record.Probe) {
	if reference, _ := s.str("ledger"); reference == "" || len(probes) == 0 {
		return
	}
	// An interruption ends the signatures, not the record of them.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	if err := p.appendProbes(ctx, s, probes); err != nil {
		p.con.Warnf("the ledger has no entry of these signatures: %s", console.ErrorLine(err))
	}
}

func (p *program) appendProbes(ctx context.Context, s *settings, probes []record.Probe) error {
	l, done, err := p.openLedger(ctx, s, true)
	if err != nil {
		return err
	}
	defer done()
	caller, _ := s.caller()
	for _, probe := range probes {
		probe.Actor, probe.Channel = caller.Name, caller.Channel
		if err := l.Probe(ctx, probe); err != nil {
			return err
		}
	}
	return nil
}

// printProbed shows the requests of a probe to the key store.
func (p *program) printProbed(probed *record.Probed) {
	if probed == nil {
		return
	}
	p.con.Field("began", api.Time(probed.Began))
	for _, operation := range probed.Operations {
		p.con.Field("operation", orDefault(operation, "no id"))
	}
}

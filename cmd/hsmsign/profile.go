package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/agent"
	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/lifecycle/profile"
)

func (p *program) profileCommand() *cli.Command {
	return &cli.Command{
		Name:  "profile",
		Usage: "sign, verify, show and encrypt configuration profiles (.mobileconfig)",
		Subcommands: []*cli.Command{
			{
				Name: "sign", Usage: "sign a profile with a key and certificate of its own", ArgsUsage: "PROFILE",
				Description: "The signed profile is CMS SignedData (DER) with SHA-256, the profile and the chain inside. Only a profile is\n" +
					"signed that can be read and has every key that devices need. A vendor key is refused: it signs CSRs only. With a\n" +
					"ledger the signature is recorded, and --customer is optional. The identity is --profile-key and --profile-cert, or one\n" +
					"below profiles: in the configuration. With --agent a service signs.\n\n" +
					"  hsmsign profile sign --profile-key file:profile.key --profile-cert profile.pem --profile-chain ca.pem -o wifi.signed.mobileconfig wifi.mobileconfig\n" +
					"  hsmsign profile sign --agent unix:///run/hsmsign/agent.sock -o wifi.signed.mobileconfig wifi.mobileconfig",
				Flags: append([]cli.Flag{
					stringFlag("profile-key", "`REFERENCE` of the key that signs profiles: file:PATH, pkcs11:..., awskms:///... or gcpkms://..."),
					stringFlag("profile-cert", "`FILE` with the certificate of that key, or its whole chain"),
					listFlag("profile-chain", "`FILE` with certificates of its issuers; may be repeated"),
					stringFlag("profile", "`NAME` of the identity below profiles: in the configuration, or of the service (default: its active one)"),
					outputFlag(), stringFlag("customer", "`NAME` of the customer whose profile it is, for the ledger"),
					stringFlag("timeout", "`TIME` limit for the signature, 100ms to 10m (default: 1m)"),
					jsonFlag(), forceFlag(), configFlag(),
				}, slices.Concat(ledgerFlags(), agentFlags())...),
				Action: p.profileSign,
			},
			{
				Name: "verify", Usage: "tell whether the signature of a profile is valid, and what devices would show", ArgsUsage: "PROFILE...",
				Description: "It accepts DER, BER, PEM and base64. Signer, chain, dates and digest are shown. Exit code 7 if there is a defect, as a\n" +
					"signer that has expired: devices show such a profile as \"Unverified\".\n\n" +
					"  hsmsign profile verify --trust-root ca.pem wifi.signed.mobileconfig",
				Flags:  []cli.Flag{listFlag("trust-root", "trust the root certificate in `FILE`, as the devices do; may be repeated"), configFlag(), jsonFlag()},
				Action: p.profileVerify,
			},
			{
				Name: "inspect", Usage: "show what a profile contains, signed or not", ArgsUsage: "PROFILE...",
				Description: "Types, identifiers and UUIDs of the payloads are shown, and no settings, which may be secret. There is no verdict.\n\n" +
					"  hsmsign profile inspect wifi.mobileconfig",
				Flags:  []cli.Flag{jsonFlag()},
				Action: p.profileInspect,
			},
			{
				Name: "encrypt", Usage: "encrypt the payloads of a profile for devices", ArgsUsage: "PROFILE",
				Description: "PayloadContent becomes EncryptedPayloadContent: CMS EnvelopedData with AES-256-CBC, for the certificates of --device.\n" +
					"Each must be that of an identity which the device has. Sign the result: encryption does not show who made a profile.\n\n" +
					"  hsmsign profile encrypt --device device.pem -o wifi.encrypted.mobileconfig wifi.mobileconfig",
				Flags:  []cli.Flag{listFlag("device", "`FILE` with the certificate of a device; may be repeated, 8 at most"), outputFlag(), forceFlag()},
				Action: p.profileEncrypt,
			},
		},
	}
}

// profileIdentity returns the identity that the flags name, or the configuration.
func (s *settings) profileIdentity() (name string, key keystore.Key, certs []string, err error) {
	reference, from := s.str("profile-key")
	cert, _ := s.str("profile-cert")
	extra, _ := s.list("profile-chain")
	if reference == "" && cert == "" {
		if name, from = s.str("profile"); name == "" && len(s.config.Profiles) == 1 {
			name = slices.Collect(maps.Keys(s.config.Profiles))[0]
		}
		names := slices.Sorted(maps.Keys(s.config.Profiles))
		identity, ok := s.config.Profiles[name]
		switch {
		case len(names) == 0:
			return name, key, nil, fault.Usage.Errorf("no key for profiles given").Fix("name it with --profile-key and --profile-cert, or below profiles: in the configuration")
		case !ok:
			return name, key, nil, fault.Usage.Errorf("there is no identity %q for profiles", name).Fix("choose with --profile; there are " + strings.Join(names, ", "))
		}
		reference, cert, extra, from = identity.Key, identity.Cert, identity.Chain, cmp.Or(s.path, from)+", profiles: "+name
	}
	if reference == "" || cert == "" {
		return name, key, nil, fault.Usage.Errorf("a key for profiles without a certificate, or the other way round").Fix("name both: --profile-key and --profile-cert")
	}
	if key, err = s.store.Parse(reference); err != nil {
		return name, key, nil, fmt.Errorf("%s: %w", from, err)
	}
	return name, key, append([]string{cert}, extra...), nil
}

// profileConfig returns where the identity for profiles is. A key that the configuration names as a vendor's is refused.
func (s *settings) profileConfig(ctx context.Context, name string, key keystore.Key, certs []string) (agent.ProfileConfig, error) {
	cfg := agent.ProfileConfig{
		Name: name, Key: key, OpenTimeout: openTimeout,
		Certificates: func(ctx context.Context) ([]*x509.Certificate, error) { return s.store.LoadCertificates(ctx, certs...) },
	}
	for _, vendor := range s.configuredVendors() {
		if vendor.namesKey(key) {
			return cfg, fault.Usage.Errorf("%s is the vendor's key, and a vendor key signs requests only", key).Fix("generate a separate key for profiles")
		}
		vendorCerts, err := vendor.vendorCerts(ctx, time.Now())
		if err != nil || len(vendorCerts) == 0 {
			continue // the vendor's certificate is missing: its key is known by its reference only
		}
		cfg.Vendors = append(cfg.Vendors, vendorCerts[0])
	}
	return cfg, nil
}

// checkProfiles checks the certificates of the identities for profiles.
func (s *settings) checkProfiles(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(s.config.Profiles)) {
		if _, err := s.newProfileSigner(ctx, name, nil); err != nil {
			return fmt.Errorf("profiles: %s: %w", name, err)
		}
	}
	return nil
}

// newProfileSigner returns the signer of an identity of the configuration.
func (s *settings) newProfileSigner(ctx context.Context, name string, change func(cfg *agent.ProfileConfig)) (*agent.ProfileSigner, error) {
	i := s.config.Profiles[name]
	key, err := s.store.Parse(i.Key)
	if err != nil {
		return nil, err
	}
	cfg, err := s.profileConfig(ctx, name, key, append([]string{i.Cert}, i.Chain...))
	if err != nil {
		return nil, err
	}
	if change != nil {
		change(&cfg)
	}
	return agent.NewProfileSigner(ctx, cfg)
}

func (p *program) profileSign(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneFile)
	if err != nil {
		return err
	}
	output, force, err := s.output(args[0])
	if err != nil {
		return err
	}
	timeout, err := s.duration("timeout", signTimeout, 100*time.Millisecond, 10*time.Minute)
	if err != nil {
		return err
	}
	service, err := s.agentURL()
	if err != nil {
		return err
	}
	data, err := p.read(ctx.Context, args[0], profile.MaxSize, "name a readable profile")
	if err != nil {
		return err
	}
	var result *api.ProfileSignResult
	var signed []byte
	if service != "" {
		result, signed, err = p.profileByService(ctx.Context, s, service, data, timeout)
	} else {
		result, signed, err = p.profileLocally(ctx.Context, s, data, timeout)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	result.File, result.Output = args[0], output
	toFile := output != "" && output != "-"
	if toFile || !s.json {
		if err := p.emit(output, signed, requestMode, force); err != nil {
			return err
		}
		result.Signed = ""
	}
	if s.json {
		p.con.JSON(result)
	} else if toFile {
		p.con.Infof("wrote %s, signed by %s; devices show it as \"Verified\" until %s if they trust the signer", output, result.Signer, result.NotAfter[:len(time.DateOnly)])
	}
	return nil
}

// profileLocally signs with a key of this machine.
func (p *program) profileLocally(ctx context.Context, s *settings, data []byte, timeout time.Duration) (*api.ProfileSignResult, []byte, error) {
	name, key, certs, err := s.profileIdentity()
	if err != nil {
		return nil, nil, err
	}
	cfg, err := s.profileConfig(ctx, name, key, certs)
	if err != nil {
		return nil, nil, err
	}
	cfg.SignTimeout = timeout
	caller, err := s.caller() // callers need a ledger
	if err != nil {
		return nil, nil, err
	}
	customer, _ := s.str("customer")
	if reference, _ := s.str("ledger"); reference != "" {
		l, done, err := p.openLedger(ctx, s, true)
		if err != nil {
			return nil, nil, err
		}
		defer done()
		cfg.Recorder = l
	}
	identity, err := agent.NewProfileSigner(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	defer identity.Close()
	signed, err := identity.Sign(ctx, caller, agent.ProfileOrder{Profile: data, Customer: customer})
	if err != nil {
		return nil, nil, err
	}
	result := api.NewProfileSignResult(signed.Profile, signed.File, identity.Chain())
	result.Customer, result.RequestID = customer, signed.RequestID
	return &result, signed.File, nil
}

// profileByService has a service sign, and verifies its answer.
func (p *program) profileByService(ctx context.Context, s *settings, url string, data []byte, timeout time.Duration) (*api.ProfileSignResult, []byte, error) {
	if _, err := profile.Parse(data); err != nil { // what the service would refuse is not sent
		return nil, nil, err
	}
	c, err := p.agentClient(s, url, timeout)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	customer, _ := s.str("customer")
	name := ""
	if s.given("profile") || s.getenv(envName("profile")) != "" { // that of the configuration is local
		name, _ = s.str("profile")
	}
	result, err := c.SignProfile(ctx, data, api.ProfileOrder{Customer: customer, Profile: name})
	if err != nil {
		return nil, nil, err
	}
	signed, err := base64.StdEncoding.DecodeString(result.Signed)
	if err != nil {
		signed = nil // which does not verify
	}
	report := profile.Verify(signed, profile.VerifyOptions{Now: time.Now()})
	if !report.OK() || report.Profile == nil || string(report.Profile.XML) != string(data) {
		return nil, nil, fault.Unavailable.Errorf("the answer of the service %s is not this profile with a valid signature", c).
			Fix("check that the address is that of hsmsign serve, and the clocks")
	}
	return result, signed, nil
}

func (p *program) profileVerify(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	options := profile.VerifyOptions{Now: time.Now()}
	if options.Roots, err = s.trustRoots(ctx.Context); err != nil {
		return err
	}
	return p.eachProfile(ctx.Context, args, func(file string, data []byte) error {
		report := profile.Verify(data, options)
		p.printProfile(api.NewProfileReport(file, report, true, options.Now), s.json)
		if !report.OK() {
			return errDefects
		}
		return nil
	})
}

func (p *program) profileInspect(ctx *cli.Context) error {
	s, args, err := p.startBare(ctx, anyFiles)
	if err != nil {
		return err
	}
	return p.eachProfile(ctx.Context, args, func(file string, data []byte) error {
		now := time.Now()
		report := profile.Verify(data, profile.VerifyOptions{Now: now})
		if report.Profile == nil {
			return fmt.Errorf("%s: %w", file, fault.First(report.Findings))
		}
		report.Findings = nil // it gives no verdict
		p.printProfile(api.NewProfileReport(file, report, false, now), s.json)
		return nil
	})
}

// eachProfile reads files one by one; the first failure decides the exit code.
func (p *program) eachProfile(ctx context.Context, files []string, do func(file string, data []byte) error) error {
	if len(files) == 0 {
		return fault.Usage.Errorf("no profile given").Fix("name a profile, or - for standard input")
	}
	var failed error
	for _, file := range files {
		data, err := p.read(ctx, file, 2*profile.MaxSize, "name a readable profile")
		if err == nil {
			err = do(file, data)
		}
		if err == nil {
			continue
		}
		if len(files) == 1 || fault.KindOf(err) == fault.Interrupted {
			return err
		}
		if err != errDefects { //nolint:errorlint // printed already
			p.con.Fail(err)
			err = exitStatus(exitCode(err))
		}
		failed = cmp.Or(failed, err)
	}
	return failed
}

func (p *program) profileEncrypt(ctx *cli.Context) error {
	s, args, err := p.startBare(ctx, oneFile)
	if err != nil {
		return err
	}
	devices, _ := s.list("device")
	if len(devices) == 0 {
		return fault.Usage.Errorf("no device given").Fix("name the certificate of a device with --device")
	}
	output, force, err := s.output(append(devices, args[0])...)
	if err != nil {
		return err
	}
	var certs []*x509.Certificate
	for _, file := range devices {
		data, err := p.read(ctx.Context, file, chain.MaxFile, "name the certificate of a device")
		if err != nil {
			return err
		}
		found, err := chain.Parse(data)
		if err != nil {
			return fault.Refused.Errorf("%s: %w", file, err).Fix("name the certificate of a device")
		}
		certs = append(certs, found[0])
	}
	data, err := p.read(ctx.Context, args[0], profile.MaxSize, "name a readable profile")
	if err != nil {
		return err
	}
	found, err := profile.Parse(data)
	if err == nil {
		found, err = profile.Encrypt(found, certs...)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return p.emit(output, found.XML, requestMode, force)
}

package main

import (
	"errors"
	"io/fs"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/testpki"
)

func (p *program) testIdentitiesCommand() *cli.Command {
	return &cli.Command{
		Name: "identities", Usage: "issue a test certificate of every kind of device management, with key, and profiles that contain them",
		Description: "Writes KIND.pem (certificate and chain) and KIND.key for each kind of docs/certificates.md, two PKCS#12 files with the\n" +
			"passphrase \"" + testpki.Passphrase + "\", an enrollment profile for each way to a device identity, and a DEP profile. The\n" +
			"certificates that Apple issues are from the test authority of --authority-dir; without it, from a new one.\n\n" +
			"  hsmsign testpki identities --out-dir identities/",
		Flags: []cli.Flag{
			stringFlag("out-dir", "`FOLDER` for the files, made if it does not exist"),
			stringFlag("authority-dir", "`FOLDER` of a test authority, as testpki made it"), jsonFlag(),
		},
		Action: p.testIdentities,
	}
}

func (p *program) testIdentities(ctx *cli.Context) error {
	s, _, err := p.startBare(ctx, noFiles)
	if err != nil {
		return err
	}
	dir, _ := s.str("out-dir")
	if dir == "" {
		return fault.Usage.Errorf("--out-dir is needed").Fix("hsmsign testpki identities --out-dir identities/")
	}
	now := time.Now()
	var authority *testpki.Authority
	if from, _ := s.str("authority-dir"); from != "" {
		if authority, err = testpki.Load(from); err != nil {
			return fault.Usage.Errorf("%w", err).Fix("name the folder of a test authority; hsmsign testpki --csr vendor.csr --out-dir FOLDER makes one")
		}
	} else if authority, err = testpki.New(now); err != nil {
		return err
	}
	list, err := authority.Identities(now)
	if err != nil {
		return err
	}
	names, err := testpki.SaveIdentities(dir, list)
	if errors.Is(err, fs.ErrExist) {
		return fault.Usage.Errorf("%w", err).Fix("name another --out-dir")
	}
	if err != nil {
		return err
	}
	if s.json {
		p.con.JSON(api.TestIdentities{Outputs: names, Passphrase: testpki.Passphrase})
		return nil
	}
	p.con.Infof("wrote %d files with TEST certificates of %d kinds into %s; the passphrase of .p12 files is %q", len(names), len(list), dir, testpki.Passphrase)
	return nil
}

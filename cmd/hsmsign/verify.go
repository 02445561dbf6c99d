package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/request"
)

func (p *program) verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "tell whether Apple would accept a Push Certificate Request, and if not, why; or verify a device's Mdm-Signature",
		ArgsUsage: "[REQUEST...]",
		Description: "Each defect is listed with what to do and the error that Apple's portal would show. Exit code 7 if there is one.\n\n" +
			"  hsmsign verify acme.req\n" +
			"  hsmsign verify --csr acme.csr acme.req      # and whether it contains this CSR\n\n" +
			"With --mdm-signature it tells whether a device signed a message that it sent to its MDM server: the header Mdm-Signature,\n" +
			"over exactly the bytes of the body. Without --trust-root, the CA of the devices, anybody could have made the signature.\n\n" +
			"  hsmsign verify --mdm-signature @header.txt --body checkin.plist --trust-root device-ca.pem",
		Flags: []cli.Flag{
			stringFlag("csr", "the CSR `FILE` that the request must contain"),
			stringFlag("mdm-signature", "verify a device's message instead: the `VALUE` of its header Mdm-Signature, or @FILE"),
			stringFlag("body", "`FILE` with the body of that message, or - for standard input"),
			listFlag("chain", "`FILE` with issuers of the device's certificate that are not in the signature; may be repeated"),
			trustRootFlag(), configFlag(), jsonFlag(),
		},
		Action: p.verify,
	}
}

func (p *program) verify(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	header, _ := s.str("mdm-signature")
	if body, _ := s.str("body"); header != "" || body != "" {
		return p.verifyMessage(ctx, s, args)
	}
	if len(args) == 0 {
		return fault.Usage.Errorf("no request given").Fix("name the Push Certificate Request, or - for standard input")
	}
	opts := request.VerifyOptions{Now: time.Now()}
	if opts.TrustRoots, err = s.trustRoots(ctx.Context); err != nil {
		return err
	}
	if file, _ := s.str("csr"); file != "" {
		if len(args) > 1 {
			return fault.Usage.Errorf("--csr goes with one request, not %d", len(args)).Fix("verify them one by one")
		}
		if opts.CSR, err = p.readCSR(ctx.Context, file); err != nil {
			return err
		}
	}
	var failed error
	for _, file := range args {
		data, err := p.read(ctx.Context, file, request.MaxRequest, "name a readable request file")
		if err != nil {
			if len(args) == 1 || fault.KindOf(err) == fault.Interrupted {
				return err
			}
			p.con.Fail(err)
			failed = cmp.Or[error](failed, exitStatus(exitCode(err)))
			continue
		}
		report := request.Verify(data, opts)
		p.printReport(file, report, opts.Now, s.json)
		if !report.OK() {
			failed = cmp.Or[error](failed, errDefects)
		}
	}
	return failed
}

// readCSR reads a CSR that only has to be readable: defects of it are findings of the request.
func (p *program) readCSR(ctx context.Context, file string) (*request.CSR, error) {
	data, err := p.read(ctx, file, request.MaxCSR, "name a readable CSR file")
	if err != nil {
		return nil, err
	}
	csr, err := request.ParseCSR(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return csr, nil
}

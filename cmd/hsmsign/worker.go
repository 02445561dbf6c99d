package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"hsmsign/signer"
	"hsmsign/signer/pkcs11"
)

const workerCommand = "pkcs11-worker"

// workerCommand is what the program runs for itself, to keep a PKCS#11 module in a process of its own.
func (p *program) workerCommand() *cli.Command {
	return &cli.Command{
		Name: workerCommand, Usage: "serve one PKCS#11 key to the hsmsign that started this (isolate=yes)", Hidden: true,
		Action: func(ctx *cli.Context) error {
			// systemd sends SIGTERM to the workers of a service, too, which still needs them to finish its work.
			err := pkcs11.RunWorker(context.WithoutCancel(ctx.Context), ctx.Args().Slice())
			if errors.Is(err, signer.ErrReference) {
				return usage("use isolate=yes in a key reference", "%s is run by hsmsign itself", workerCommand)
			}
			return err
		},
	}
}

// worker is the command line that starts this program as a worker; nil where it cannot find itself.
func worker() []string {
	path, err := os.Executable()
	if err != nil || !filepath.IsAbs(path) {
		return nil
	}
	return []string{path, workerCommand}
}

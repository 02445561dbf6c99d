package main

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"hsmsign/agent"
	"hsmsign/fault"
	"hsmsign/request"
)

// batchItem is one CSR file. There may be very many, so what can be derived is.
type batchItem struct{ dir, name string }

func (item batchItem) file() string { return filepath.Join(item.dir, item.name) }

// outputName is the name of the request for a CSR file.
func (job *signJob) outputName(item batchItem) string {
	name := item.name
	if name == "-" {
		name = "stdin"
	}
	if job.format == request.Plist {
		return strings.TrimSuffix(name, filepath.Ext(name)) + ".plist"
	}
	return strings.TrimSuffix(name, filepath.Ext(name)) + ".req"
}

// batch signs many CSRs into --out-dir. A refused CSR is one line and does not stop the others; a fault of the
// vendor's key, certificate or backend would meet them all, so it stops the batch.
func (job *signJob) batch(ctx context.Context, args []string) error {
	items, err := job.items(args)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(job.outDir, 0o755); err != nil { // #nosec G301 -- requests are no secret
		return usage("name a folder that can be made", "--out-dir: %w", err)
	}
	sweep(job.outDir)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	step, end := job.p.ui.progress(len(items))
	var count tally
	var workers sync.WaitGroup
	next := make(chan batchItem)
	for range min(job.workers, len(items)) {
		workers.Go(func() {
			for item := range next {
				job.one(ctx, stop, item, &count)
				step()
			}
		})
	}
feed:
	for _, item := range items {
		select {
		case next <- item:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	workers.Wait()
	end()
	return job.finish(ctx, len(items), &count)
}

// tally counts the outcomes; worst is the exit code of the first file that was not refused but failed.
type tally struct{ signed, unchanged, refused, failed, failedExit atomic.Int64 }

// one takes one CSR through: check, sign, write, report.
func (job *signJob) one(ctx context.Context, stop context.CancelCauseFunc, item batchItem, count *tally) {
	result := &signResult{File: item.file(), Output: filepath.Join(job.outDir, job.outputName(item)), Customer: job.customer}
	err := job.produce(ctx, result)
	if err != nil && ctx.Err() != nil {
		return // stopped: this file was not produced, and the reason is told once
	}
	job.report(result, err)
	switch {
	case err == nil && result.Status == statusUnchanged:
		count.unchanged.Add(1)
	case err == nil:
		count.signed.Add(1)
	case result.Status == statusRefused:
		count.refused.Add(1)
	default:
		count.failed.Add(1)
		count.failedExit.CompareAndSwap(0, int64(exitCode(err)))
		if !errors.Is(err, errExists) {
			stop(err)
			return
		}
	}
	if err != nil {
		job.p.ui.fail(err)
	}
}

func (job *signJob) produce(ctx context.Context, result *signResult) error {
	p, err := job.prepare(ctx, result)
	if err != nil {
		return err
	}
	if !job.force {
		done, err := job.isDone(p, result.Output)
		if err != nil {
			return err
		}
		if done {
			result.Status = statusUnchanged
			return nil
		}
	}
	encoded, err := job.issue(ctx, p)
	if err != nil {
		return err
	}
	err = writeFile(result.Output, encoded, requestMode, job.force)
	if !errors.Is(err, errExists) {
		return err
	}
	// Another run was faster. What it wrote may be this.
	if done, err := job.isDone(p, result.Output); !done {
		return err
	}
	result.Status = statusUnchanged
	return nil
}

// isDone says whether the output exists and is the very request that this CSR and vendor give, so that a batch that
// was cut off can be run again. RSASSA-PKCS1-v1_5 is deterministic: a signature that verifies is the signature.
func (job *signJob) isDone(p *agent.Prepared, output string) (bool, error) {
	data, err := readFile(output, request.MaxRequest)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %q: %w", output, err)
	}
	req, err := request.Parse(data)
	if err != nil || !bytes.Equal(req.CSR, p.CSR.DER) {
		return false, existsError(output)
	}
	pub, ok := job.chain.Leaf().PublicKey.(*rsa.PublicKey)
	hash := job.digest.New()
	hash.Write(req.CSR)
	if !ok || rsa.VerifyPKCS1v15(pub, job.digest, hash.Sum(nil), req.Signature) != nil {
		return false, existsError(output)
	}
	if !bytes.Equal(job.encoder.Encode(req.CSR, req.Signature), data) {
		return false, existsError(output)
	}
	return true, nil
}

// finish says how the batch went.
func (job *signJob) finish(ctx context.Context, total int, count *tally) error {
	signed, unchanged, refused, failed := count.signed.Load(), count.unchanged.Load(), count.refused.Load(), count.failed.Load()
	err := syncDir(job.outDir)
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("stopped with %d of %d requests written: %w", signed+unchanged, total, cause)
	}
	if !job.json {
		job.p.ui.info("%d signed, %d unchanged, %d refused, %d failed, of %d", signed, unchanged, refused, failed, total)
	}
	switch {
	case err != nil:
		return err
	case refused > 0:
		return exitStatus(fault.Refused.Exit())
	case failed > 0:
		return exitStatus(int(count.failedExit.Load()))
	}
	return nil
}

// items lists the CSR files. Two that would give the same output are refused, and so is an output folder that holds
// the inputs.
func (job *signJob) items(args []string) ([]batchItem, error) {
	var items []batchItem
	for _, arg := range args {
		if info, err := os.Stat(arg); err != nil || !info.IsDir() {
			// What cannot be read is told in its turn.
			items = append(items, batchItem{filepath.Dir(arg), filepath.Base(arg)})
			continue
		}
		if sameFile(arg, job.outDir) {
			return nil, usage("name another --out-dir", "%q is the folder of the CSRs and of the requests", arg)
		}
		var err error
		if items, err = appendFolder(items, arg); err != nil {
			return nil, usage("", "read the folder: %w", err)
		}
	}
	if len(items) == 0 {
		return nil, usage("put the customers' CSR files there", "no CSR in %s", strings.Join(args, ", "))
	}
	from := make(map[string]int, len(items))
	for i, item := range items {
		name := job.outputName(item)
		if other, ok := from[name]; ok {
			return nil, usage("rename one, or sign them into two folders", "%q and %q would both give %q", items[other].file(), item.file(), name)
		}
		from[name] = i
		if output := filepath.Join(job.outDir, name); item.name == name && sameFile(item.file(), output) {
			return nil, usage("name another --out-dir", "the output %q is also an input", output)
		}
	}
	return items, nil
}

// appendFolder adds a folder's files by name; folders inside and hidden files are left out.
func appendFolder(items []batchItem, dir string) ([]batchItem, error) {
	d, err := os.Open(dir) // #nosec G304 -- the user's own argument
	if err != nil {
		return nil, err
	}
	defer d.Close()
	first := len(items)
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				items = append(items, batchItem{dir, e.Name()})
			}
		}
		if errors.Is(err, io.EOF) {
			slices.SortFunc(items[first:], func(a, b batchItem) int { return strings.Compare(a.name, b.name) })
			return items, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// syncDir makes the names of a folder's new files survive a power cut; where the system has no such call (Windows),
// nothing is lost but that.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir) // #nosec G304 -- the user's own argument
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

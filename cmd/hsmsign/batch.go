package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/internal/input"
	"hsmsign/internal/wholefile"
	"hsmsign/request"
)

// batchItem is one CSR file. There may be very many, so it stores nothing that can be derived.
type batchItem struct {
	dir, name string
	waiting   error // of the last try: others must approve it first
}

func (item batchItem) file() string { return filepath.Join(item.dir, item.name) }

// outputName returns the name of the request for a CSR file.
func (job *signJob) outputName(item batchItem) string {
	name := item.name
	if name == "-" {
		name = "stdin"
	}
	extension := ".req"
	if job.order.Format == request.Plist {
		extension = ".plist"
	}
	return strings.TrimSuffix(name, filepath.Ext(name)) + extension
}

// batch is one run over many CSRs. A rejected CSR is reported on one line and the rest continue; a fault of the vendor's
// key, certificate or backend would affect all of them, so it stops the batch.
type batch struct {
	*signJob
	// open opens the vendor's key, once: a wrong passphrase is not asked for again by the next worker.
	open                                           func() error
	stop                                           context.CancelCauseFunc
	signed, unchanged, refused, failed, failedExit atomic.Int64

	mu      sync.Mutex
	waiting []batchItem // others must approve them first
}

// batch signs many CSRs into --out-dir.
func (job *signJob) batch(ctx context.Context, args []string) error {
	items, err := job.items(args)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(job.outDir, 0o755); err != nil { // #nosec G301 -- requests are no secret
		return fault.Usage.Errorf("--out-dir: %w", err).Fix("name a folder that can be made")
	}
	wholefile.Sweep(job.outDir)
	inFlight, err := job.issuer.workers(ctx)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	b := &batch{signJob: job, stop: stop, open: sync.OnceValue(func() error { return job.issuer.open(ctx) })}
	b.all(ctx, items, inFlight)
	return b.finish(ctx, len(items))
}

// all signs the items. Those that wait for others are tried again, one round after the other, while --wait says so.
func (b *batch) all(ctx context.Context, items []batchItem, inFlight int) {
	b.round(ctx, items, inFlight)
	for pause := time.Duration(0); len(b.waiting) > 0 && !b.wait.IsZero(); {
		if pause == 0 {
			b.p.con.Infof("%d requests wait for approval; hsmsign pending lists them", len(b.waiting))
		}
		if pause = client.NextPause(pause, nil); !b.rest(ctx, pause) {
			break
		}
		again := b.waiting
		b.waiting = nil
		b.round(ctx, again, inFlight)
	}
}

// round signs the items, so many at once.
func (b *batch) round(ctx context.Context, items []batchItem, inFlight int) {
	step, end := b.p.con.Progress(len(items), "signing")
	defer end()
	var workers sync.WaitGroup
	next := make(chan batchItem)
	for range min(inFlight, len(items)) {
		workers.Go(func() {
			for item := range next {
				b.one(ctx, item)
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
}

// one signs one CSR: check, sign, write, report.
func (b *batch) one(ctx context.Context, item batchItem) {
	result := b.newResult(item.file())
	result.Output = filepath.Join(b.outDir, b.outputName(item))
	err := b.try(ctx, item, result)
	if err != nil && ctx.Err() != nil {
		return // stopped: this file was not produced, and the reason is reported once
	}
	if isWaiting(err) {
		b.mu.Lock()
		defer b.mu.Unlock()
		item.waiting = err
		b.waiting = append(b.waiting, item)
		return // finish reports those that still wait
	}
	b.report(result, err)
	switch {
	case err == nil && result.Status == api.StatusUnchanged:
		b.unchanged.Add(1)
	case err == nil:
		b.signed.Add(1)
	case result.Status == api.StatusRefused:
		b.refused.Add(1)
	default:
		b.failed.Add(1)
		b.failedExit.CompareAndSwap(0, int64(exitCode(err)))
		if !errors.Is(err, errExists) {
			b.stop(err)
			return
		}
	}
	if err != nil {
		b.p.con.Fail(err)
	}
}

// try signs one CSR, unless it still waits for others.
func (b *batch) try(ctx context.Context, item batchItem, result *api.SignResult) error {
	if item.waiting == nil {
		return b.produce(ctx, result)
	}
	if err := b.lookAgain(ctx, item.waiting); err != nil {
		return err
	}
	return b.stillAsked(ctx, item.waiting, b.produce(ctx, result))
}

func (b *batch) produce(ctx context.Context, result *api.SignResult) error {
	prepared, err := b.prepare(ctx, result)
	if err != nil {
		return err
	}
	if !b.force {
		if done, err := isDone(ctx, prepared, result); done || err != nil {
			return err
		}
	}
	if err := b.open(); err != nil {
		return err
	}
	issued, err := prepared.issue(ctx)
	if err != nil {
		return err
	}
	setIssued(result, issued)
	err = wholefile.WriteDeferred(result.Output, issued.file, requestMode, b.force) // finish flushes the folder
	if err == nil {
		err = writeReceipt(result.Output, issued)
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Another run was faster, and may have written this request.
	if done, err := isDone(ctx, prepared, result); done || err != nil {
		return err
	}
	return existsError(result.Output)
}

// isDone returns whether the output exists and is already this request, so that an interrupted batch can be run again.
func isDone(ctx context.Context, prepared preparedRequest, result *api.SignResult) (bool, error) {
	data, err := input.File(result.Output, request.MaxRequest)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil { // what cannot be read is not this request either
		return false, existsError(result.Output)
	}
	useBefore, is, err := prepared.matches(ctx, data)
	switch {
	case err != nil:
		return false, err
	case !is:
		return false, existsError(result.Output)
	}
	result.Status, result.UseBefore = api.StatusUnchanged, api.Time(useBefore)
	return true, nil
}

// finish returns the outcome of the batch.
func (b *batch) finish(ctx context.Context, total int) error {
	signed, unchanged, refused, failed := b.signed.Load(), b.unchanged.Load(), b.refused.Load(), b.failed.Load()
	err := wholefile.FlushFolder(b.outDir)
	cause := context.Cause(ctx)
	if _, interrupted := errors.AsType[signalError](cause); interrupted {
		err = fault.Interrupted.Errorf("interrupted with %d of %d requests written", signed+unchanged, total).Fix("run it again to complete the rest")
	} else if cause != nil {
		err = fmt.Errorf("stopped with %d of %d requests written: %w", signed+unchanged, total, cause)
	}
	b.reportWaiting()
	if !b.json {
		waiting := ""
		if n := len(b.waiting); n > 0 {
			waiting = fmt.Sprintf("%d waiting for approval, ", n)
		}
		b.p.con.Infof("%d signed, %d unchanged, %d refused, %d failed, %sof %d", signed, unchanged, refused, failed, waiting, total)
	}
	switch {
	case err != nil:
		return err
	case refused > 0:
		return exitStatus(fault.Refused.Exit())
	case failed > 0:
		return exitStatus(b.failedExit.Load())
	case len(b.waiting) > 0:
		return exitStatus(fault.Pending.Exit())
	}
	return nil
}

// reportWaiting reports the CSRs whose requests still wait for others.
func (b *batch) reportWaiting() {
	slices.SortFunc(b.waiting, func(a, c batchItem) int { return strings.Compare(a.file(), c.file()) })
	for _, item := range b.waiting {
		b.report(b.newResult(item.file()), item.waiting)
		b.p.con.Fail(fault.Errorf("%s: %w", item.file(), item.waiting))
	}
}

// items lists the CSR files. Two with the same output are an error, and so is an output folder that contains the inputs.
func (job *signJob) items(args []string) ([]batchItem, error) {
	var items []batchItem
	for _, arg := range args {
		if info, err := os.Stat(arg); err != nil || !info.IsDir() {
			// A file that cannot be read is reported in its turn.
			items = append(items, batchItem{dir: filepath.Dir(arg), name: filepath.Base(arg)})
			continue
		}
		if sameFile(arg, job.outDir) {
			return nil, fault.Usage.Errorf("%q is the folder of the CSRs and of the requests", arg).Fix("name another --out-dir")
		}
		var err error
		if items, err = job.appendFolder(items, arg); err != nil {
			return nil, fault.Usage.Errorf("read the folder: %w", err)
		}
	}
	if len(items) == 0 {
		return nil, fault.Usage.Errorf("no CSR in %s", strings.Join(args, ", ")).Fix("put the customers' CSR files there")
	}
	from := make(map[string]int, len(items))
	for i, item := range items {
		name := job.outputName(item)
		if other, ok := from[name]; ok {
			return nil, fault.Usage.Errorf("%q and %q would both give %q", items[other].file(), item.file(), name).Fix("rename one, or sign them into two folders")
		}
		from[name] = i
		if output := filepath.Join(job.outDir, name); item.name == name && sameFile(item.file(), output) {
			return nil, fault.Usage.Errorf("the output %q is also an input", output).Fix("name another --out-dir")
		}
	}
	return items, nil
}

// csrExtensions are the names of CSR files in a folder.
var csrExtensions = []string{".csr", ".pem", ".der", ".txt"}

// appendFolder adds the CSR files of a folder in the order of their names, and reports the files that it skips.
// Subfolders and hidden files are skipped silently.
func (job *signJob) appendFolder(items []batchItem, dir string) ([]batchItem, error) {
	d, err := os.Open(dir) // #nosec G304 -- the user's own argument
	if err != nil {
		return nil, err
	}
	defer d.Close()
	first, skipped, example := len(items), 0, ""
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			switch {
			case e.IsDir() || strings.HasPrefix(e.Name(), "."):
			case slices.Contains(csrExtensions, strings.ToLower(filepath.Ext(e.Name()))):
				items = append(items, batchItem{dir: dir, name: e.Name()})
			default:
				skipped, example = skipped+1, e.Name()
			}
		}
		if errors.Is(err, io.EOF) {
			if skipped > 0 {
				job.p.con.Infof("%s: skipped %d files that are not named %s, such as %q", dir, skipped, strings.Join(csrExtensions, ", "), example)
			}
			slices.SortFunc(items[first:], func(a, b batchItem) int { return strings.Compare(a.name, b.name) })
			return items, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

type memoryOptions struct {
	drivers       []string
	layers, files int
	keep          string
	dir, out      string
}

func parseMemory(args []string) (memoryOptions, error) {
	var o memoryOptions
	var names string
	f := flags("memory")
	f.StringVar(&names, "drivers", strings.Join(driverNames, ","), "which drivers; those that do not work here are left out")
	f.IntVar(&o.layers, "layers", 100, "layers of the image")
	f.IntVar(&o.files, "files", 10_000, "files of each layer, 100 to a directory")
	f.StringVar(&o.keep, "heap", "", "directory for heap profiles of the daemon; empty keeps none")
	f.StringVar(&o.dir, "dir", scratchDir, "directory for scratch files, on ext4, xfs or btrfs")
	f.StringVar(&o.out, "out", resultsDir, "directory for the JSON result")
	if err := onlyFlags(f, args); err != nil {
		return o, err
	}
	if o.layers < 1 || o.files < 1 {
		return o, fmt.Errorf("%d layers of %d files are no image", o.layers, o.files)
	}
	o.drivers = strings.Split(names, ",")
	return o, nil
}

// memoryReport is what a bench of memory found.
type memoryReport struct {
	machine
	Layers  int         `json:"layers"`
	Files   int         `json:"files_per_layer"`
	Skipped []string    `json:"skipped"`
	Rows    []memoryRow `json:"rows"`
}

// memoryRow is the daemon at one moment. Sizes are in KiB.
type memoryRow struct {
	Driver   string `json:"driver"`
	When     string `json:"when"`
	Resident int    `json:"rss_kib"`      // VmRSS
	Peak     int    `json:"rss_peak_kib"` // VmHWM
	Anon     int    `json:"rss_anon_kib"` // RssAnon: the rest is the program file
	// CPU is what the daemon has computed since its start.
	CPU time.Duration `json:"cpu_ns"`
}

func runMemory(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parseMemory(args)
	if err != nil {
		return err
	}
	m, err := newMachine()
	if err != nil {
		return err
	}
	report := &memoryReport{machine: m, Layers: o.layers, Files: o.files}
	dir, err := os.MkdirTemp(o.dir, "lazyerofs-bench-")
	if err != nil {
		return fmt.Errorf("making a directory for the bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bed, err := coldstart.NewBed(dir, testenv.Profile{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	fmt.Fprintf(out, "making %d layers of %d files\n", o.layers, o.files)
	ref := bed.Registry.Addr() + "/many:" + coldstart.TagLazy
	if err := publishMany(ctx, dir, ref, o.layers, o.files); err != nil {
		return err
	}
	for _, d := range o.drivers {
		rows, err := measureMemory(ctx, dir, d, ref, o)
		var not *unusableError
		if errors.As(err, &not) {
			fmt.Fprintln(out, "skipped", not)
			report.Skipped = append(report.Skipped, not.Error())
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		report.Rows = append(report.Rows, rows...)
	}
	if err := report.noteLoad(); err != nil {
		return err
	}
	fmt.Fprint(out, report.table())
	return store(o.out, report.Date, "memory", report)
}

// publishMany converts generated layers and puts them into the registry.
func publishMany(ctx context.Context, dir, ref string, layers, files int) error {
	at := filepath.Join(dir, "layout")
	if err := writeMany(at, layers, files); err != nil {
		return err
	}
	return errors.Join(convert(ctx, dir, "oci:"+at+":latest", ref), os.RemoveAll(at))
}

// measureMemory mounts the image on a new host, walks it and reads from it.
func measureMemory(ctx context.Context, dir, driver, ref string, o memoryOptions) (rows []memoryRow, err error) {
	h, err := startHost(ctx, dir, driver, map[string]any{"metrics": map[string]any{
		"address": "unix:" + filepath.Join(dir, driver+".sock"), "pprof": true,
	}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	pid, err := child(h.daemon.Pid())
	if err != nil {
		return nil, err
	}
	note := func(when string) error {
		row, err := memoryOf(pid)
		row.Driver, row.When = driver, when
		rows = append(rows, row)
		if o.keep != "" {
			err = errors.Join(err, heap(ctx, filepath.Join(dir, driver+".sock"), filepath.Join(o.keep, driver+"-"+when+".pprof")))
		}
		return err
	}
	names, err := someFiles(o.layers, o.files)
	if err != nil {
		return nil, err
	}
	steps := []struct {
		when string
		do   func() error
	}{
		{"started", func() error { return nil }},
		{"mounted", func() error { return h.mount(ctx, ref) }},
		{"walked", func() error { _, err := reader(ctx, job{Kind: kindWalk, Root: h.root}); return err }},
		{"read", func() error {
			_, err := reader(ctx, job{Kind: kindSequential, Root: h.root, Paths: names})
			return err
		}},
	}
	for _, s := range steps {
		if err := errors.Join(s.do(), note(s.when)); err != nil {
			return nil, fmt.Errorf("%s: %w", s.when, err)
		}
	}
	return slices.Clone(rows), nil
}

func (r *memoryReport) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "driver\twhen\tRSS MiB\tpeak MiB\tof it heap MiB\tCPU s\t")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.1f\t%.1f\t%.2f\t\n", x.Driver, x.When,
			float64(x.Resident)/1024, float64(x.Peak)/1024, float64(x.Anon)/1024, x.CPU.Seconds())
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	for _, s := range r.Skipped {
		fmt.Fprintln(&b, "skipped", s)
	}
	return b.String()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// driverNames are all drivers, in the order of preference.
var driverNames = []string{"fanotify", "cachefiles", "fuseblock", "fusetree"}

// State of a layer when it is read.
const (
	statePlain    = "plain"    // a mount of the whole image in a file, with no driver
	stateColdLAN  = "cold-lan" // nothing is here, the registry is behind the line
	stateCold     = "cold"     // nothing is here, the registry is on loopback
	stateResident = "resident" // everything that is read is here, but the layer is not complete
	stateComplete = "complete" // everything is here, since the mount
	stateAgain    = "mounted-again"
)

// states are measured in this order.
var states = []string{stateColdLAN, stateCold, stateResident, stateComplete, stateAgain}

type driverOptions struct {
	drivers, work []string
	rounds        int
	dir, out      string
}

func parseDrivers(args []string) (driverOptions, error) {
	var o driverOptions
	var names, work string
	f := flags("drivers")
	f.StringVar(&names, "drivers", strings.Join(driverNames, ","), "which drivers; those that do not work here are left out")
	f.StringVar(&work, "work", strings.Join(workNames(), ","), "which workloads")
	f.IntVar(&o.rounds, "rounds", 5, "how often each driver, state and workload takes its turn")
	f.StringVar(&o.dir, "dir", scratchDir, "directory for scratch files, on ext4, xfs or btrfs")
	f.StringVar(&o.out, "out", resultsDir, "directory for the JSON result")
	if err := onlyFlags(f, args); err != nil {
		return o, err
	}
	o.drivers, o.work = strings.Split(names, ","), strings.Split(work, ",")
	for _, w := range o.work {
		if !slices.Contains(workNames(), w) {
			return o, fmt.Errorf("no workload named %q; there are %s", w, strings.Join(workNames(), ", "))
		}
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("%d rounds give no median", o.rounds)
	}
	return o, nil
}

func runDrivers(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parseDrivers(args)
	if err != nil {
		return err
	}
	report, err := newDriverReport()
	if err != nil {
		return err
	}
	r, err := newRig(ctx, o.dir, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.start(ctx, o.drivers); err != nil {
		return err
	}
	report.Skipped = r.skipped
	for round := range o.rounds {
		fmt.Fprintf(out, "round %d of %d\n", round+1, o.rounds)
		for _, w := range r.work() {
			if !slices.Contains(o.work, w.name) {
				continue
			}
			if err := r.turn(ctx, w, round, report); err != nil {
				return err
			}
		}
	}
	if err := r.check(); err != nil {
		return err
	}
	if err := report.finish(); err != nil {
		return err
	}
	fmt.Fprint(out, report.table())
	return report.write(o.out)
}

// turn measures one workload on the plain mount, and then on every driver in
// every state.
func (r *rig) turn(ctx context.Context, w workload, round int, to *driverReport) error {
	samples, err := r.measure(ctx, w.job(r.plain, round))
	if err != nil {
		return fmt.Errorf("plain mount: %w", err)
	}
	to.add(w.name, "", statePlain, samples)
	for _, d := range r.usable {
		for _, state := range states {
			if w.warms && (state == stateCold || state == stateColdLAN) {
				continue // it reads everything before it measures
			}
			samples, err := r.inState(ctx, d, state, func(root string) ([]sample, error) {
				return r.measure(ctx, w.job(root, round))
			})
			if err != nil {
				return fmt.Errorf("%s, %s, %s: %w", d, state, w.name, err)
			}
			to.add(w.name, d, state, samples)
		}
	}
	return nil
}

// inState runs fn on a mount of driver d in the given state. A cold mount is made
// for it; the others are kept, because reading does not change their state.
func (r *rig) inState(ctx context.Context, d, state string, fn func(root string) ([]sample, error)) (_ []sample, err error) {
	if state != stateCold && state != stateColdLAN {
		return fn(r.kept[d+" "+state].root)
	}
	ref := r.ref
	if state == stateColdLAN {
		ref = r.shaped
	}
	h, err := startHost(ctx, r.dir, d, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	if err := h.mount(ctx, ref); err != nil {
		return nil, err
	}
	return fn(h.root)
}

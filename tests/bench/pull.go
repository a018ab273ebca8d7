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

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// mkfsTarOptions are those that containerd's documentation advises.
var mkfsTarOptions = []string{"-T0", "--mkfs-time", "--sort=none"}

// pullers take a plain image in, in this order; ratios are against the first.
var pullers = []coldstart.System{
	coldstart.LazyerofsTar(), coldstart.Overlayfs(),
	coldstart.Erofs(mkfsTarOptions...), coldstart.ErofsTarIndex("-T0", "--mkfs-time"),
}

// pullLines are what lies between the host and the registry: nothing, or a line
// of the benches of cold starts.
func pullLine(name string) (testenv.Profile, bool) {
	if name == "none" {
		return testenv.Profile{}, true
	}
	p, ok := lines[name]
	return p, ok
}

type pullOptions struct {
	images, lines []string
	rounds        int
	dir, out      string
}

func parsePull(args []string) (pullOptions, error) {
	var o pullOptions
	var images, profiles string
	f := flags("pull")
	f.StringVar(&images, "images", "python,go,node", "of python, go, node")
	f.StringVar(&profiles, "lines", "none,lan", "of none, lan (10 ms, 100 MB/s), wan (50 ms, 12 MB/s)")
	f.IntVar(&o.rounds, "rounds", 5, "pulls by each system of each image over each line")
	f.StringVar(&o.dir, "dir", scratchDir, "directory for scratch files, on ext4, xfs or btrfs")
	f.StringVar(&o.out, "out", resultsDir, "directory for the JSON result")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q; see bench pull -h", f.Arg(0))
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("%d rounds give no median", o.rounds)
	}
	o.images, o.lines = strings.Split(images, ","), strings.Split(profiles, ",")
	for _, i := range o.images {
		if recipes[i] == nil {
			return o, fmt.Errorf("no image named %q; there are python, go and node", i)
		}
	}
	for _, l := range o.lines {
		if _, ok := pullLine(l); !ok {
			return o, fmt.Errorf("no line named %q; there are none, lan and wan", l)
		}
	}
	return o, nil
}

// pullReport is what a bench of pulls found.
type pullReport struct {
	machine
	Rows []pullRow `json:"rows"`
}

// pullRow is one system that takes in one image over one line.
type pullRow struct {
	Image     string             `json:"image"`
	Line      string             `json:"line"`
	System    string             `json:"system"`
	ImageSize int64              `json:"image_size"` // of the tar layers, compressed
	Pull      int64              `json:"pull_ms"`    // medians
	Run       int64              `json:"run_ms"`
	CPU       int64              `json:"pull_cpu_ms"`
	Disk      int64              `json:"disk"`
	Ratio     float64            `json:"time_by_lazyerofs"` // of the pull, median over the rounds
	Low       float64            `json:"time_by_lazyerofs_min"`
	High      float64            `json:"time_by_lazyerofs_max"`
	Runs      []coldstart.Result `json:"runs"`
}

func runPull(ctx context.Context, args []string, out io.Writer) error {
	o, err := parsePull(args)
	if err != nil {
		return err
	}
	m, err := newMachine()
	if err != nil {
		return err
	}
	// containerd finds mkfs.erofs there.
	mkfs, err := testenv.Tool("mkfs.erofs")
	if err != nil {
		return err
	}
	if err := os.Setenv("PATH", filepath.Dir(mkfs)+":"+os.Getenv("PATH")); err != nil {
		return fmt.Errorf("leading containerd to mkfs.erofs: %w", err)
	}
	report := &pullReport{machine: m}
	for _, image := range o.images {
		for _, line := range o.lines {
			p, _ := pullLine(line)
			fmt.Fprintf(out, "%s over %s (%s)\n", image, line, p)
			runs, size, err := measurePulls(ctx, image, p, o, out)
			if err != nil {
				return err
			}
			report.add(image, line, size, runs)
		}
	}
	if err := report.noteLoad(); err != nil {
		return err
	}
	fmt.Fprint(out, report.table())
	return store(o.out, report.Date, "pull", report)
}

// measurePulls returns the results of every system, by name, and the image's size
// as tar layers.
func measurePulls(ctx context.Context, name string, p testenv.Profile, o pullOptions, out io.Writer) (_ map[string][]coldstart.Result, size int64, err error) {
	dir, err := os.MkdirTemp(o.dir, "lazyerofs-bench-")
	if err != nil {
		return nil, 0, fmt.Errorf("making a directory for the bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bed, err := coldstart.NewBed(dir, p)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	recipe, err := recipes[name](ctx)
	if err != nil {
		return nil, 0, err
	}
	image, err := recipe.Build(ctx, func(layer string) { fmt.Fprintln(out, "building the layer:", layer) })
	if err != nil {
		return nil, 0, err
	}
	if err := image.Push(ctx, bed.Registry.Addr()+"/"+image.Name+":"+coldstart.TagTar); err != nil {
		return nil, 0, err
	}
	runs := make(map[string][]coldstart.Result)
	for round := range o.rounds {
		for _, s := range pullers {
			r, err := bed.Measure(ctx, s, image.Name, image.Ready)
			if err != nil {
				return nil, 0, err
			}
			fmt.Fprintf(out, "  %d/%d %-15s pull %6.2f s, %6.2f s of CPU, first run %5.2f s, %.1f MB on disk\n", round+1, o.rounds, s.Name(),
				r.Pull.Seconds(), r.CPU.Seconds(), r.Run.Seconds(), float64(r.Disk)/1e6)
			runs[s.Name()] = append(runs[s.Name()], r)
		}
	}
	return runs, image.Size(), nil
}

// add takes the results of all systems on one image and line.
func (r *pullReport) add(image, line string, size int64, runs map[string][]coldstart.Result) {
	base := runs[pullers[0].Name()]
	for _, s := range pullers {
		results := runs[s.Name()]
		median := func(value func(coldstart.Result) int64) int64 {
			_, mid, _ := spread(results, value)
			return mid
		}
		x := pullRow{
			Image: image, Line: line, System: s.Name(), ImageSize: size, Runs: results,
			Pull: median(func(x coldstart.Result) int64 { return x.Pull.Milliseconds() }),
			Run:  median(func(x coldstart.Result) int64 { return x.Run.Milliseconds() }),
			CPU:  median(func(x coldstart.Result) int64 { return x.CPU.Milliseconds() }),
			Disk: median(func(x coldstart.Result) int64 { return x.Disk }),
		}
		var ratios []float64
		for k := range min(len(base), len(results)) {
			ratios = append(ratios, results[k].Pull.Seconds()/base[k].Pull.Seconds())
		}
		x.Low, x.Ratio, x.High = lowMidHigh(ratios)
		r.Rows = append(r.Rows, x)
	}
}

// lowMidHigh returns the least, the median and the greatest; of an even number
// the median is the lower of the middle two.
func lowMidHigh(all []float64) (low, mid, high float64) {
	if len(all) == 0 {
		return 0, 0, 0
	}
	all = slices.Sorted(slices.Values(all))
	return all[0], all[(len(all)-1)/2], all[len(all)-1]
}

func (r *pullReport) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "image\tline\tsystem\tpull ms\tCPU ms\tfirst run ms\tdisk MB\tpull / ours\tmin-max\t")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%.0f\t%.2f\t%.2f-%.2f\t\n", x.Image, x.Line, x.System,
			x.Pull, x.CPU, x.Run, float64(x.Disk)/1e6, x.Ratio, x.Low, x.High)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.String()
}

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

	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// mkfsTarOptions are those that containerd's documentation advises.
var mkfsTarOptions = []string{"-T0", "--mkfs-time", "--sort=none"}

// pullers take a plain image in, in this order; ratios are against the first.
var pullers = []coldstart.System{
	coldstart.LazyerofsTar(), coldstart.Overlayfs(),
	coldstart.Erofs(mkfsTarOptions...),
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
	keep          string
	dir, out      string
}

func parsePull(args []string) (pullOptions, error) {
	var o pullOptions
	var images, profiles string
	f := flags("pull")
	f.StringVar(&images, "images", "python,go,node", "of python, go, node")
	f.StringVar(&profiles, "lines", "none,lan", "of none, lan (10 ms, 100 MB/s), wan (50 ms, 12 MB/s)")
	f.IntVar(&o.rounds, "rounds", 5, "pulls by each system of each image over each line")
	f.StringVar(&o.keep, "profile", "", "directory for CPU profiles of our daemon; empty keeps none")
	f.StringVar(&o.dir, "dir", scratchDir, "directory for scratch files, on ext4, xfs or btrfs")
	f.StringVar(&o.out, "out", resultsDir, "directory for the JSON result")
	if err := onlyFlags(f, args); err != nil {
		return o, err
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("%d rounds give no median", o.rounds)
	}
	o.images, o.lines = strings.Split(images, ","), strings.Split(profiles, ",")
	if err := checkImages(o.images); err != nil {
		return o, err
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
	Rows  []pullRow  `json:"rows"`
	Where []spending `json:"where"` // of our daemon, while it pulls
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
			if err := report.measure(ctx, image, line, p, o, out); err != nil {
				return err
			}
		}
	}
	if err := report.noteLoad(); err != nil {
		return err
	}
	fmt.Fprint(out, report.table())
	return store(o.out, report.Date, "pull", report)
}

// measure lets every system pull an image over a line, in turn, and looks once more
// at where our daemon spends its time.
func (r *pullReport) measure(ctx context.Context, name, line string, p testenv.Profile, o pullOptions, out io.Writer) (err error) {
	dir, err := os.MkdirTemp(o.dir, "lazyerofs-bench-")
	if err != nil {
		return fmt.Errorf("making a directory for the bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bed, err := coldstart.NewBed(dir, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	recipe, err := recipes[name](ctx)
	if err != nil {
		return err
	}
	image, err := recipe.Build(ctx, func(layer string) { fmt.Fprintln(out, "building the layer:", layer) })
	if err != nil {
		return err
	}
	if err := image.Push(ctx, bed.Registry.Addr()+"/"+image.Name+":"+coldstart.TagTar); err != nil {
		return err
	}
	runs := make(map[string][]coldstart.Result)
	for round := range o.rounds {
		for _, s := range pullers {
			x, err := bed.Measure(ctx, s, image.Name, image.Ready)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "  %d/%d %-15s pull %6.2f s, %6.2f s of CPU, first run %5.2f s, %.1f MB on disk\n", round+1, o.rounds, s.Name(),
				x.Pull.Seconds(), x.CPU.Seconds(), x.Run.Seconds(), float64(x.Disk)/1e6)
			runs[s.Name()] = append(runs[s.Name()], x)
		}
	}
	r.add(name, line, image.Size(), runs)
	file := filepath.Join(dir, "pull.pprof")
	if o.keep != "" {
		file = filepath.Join(o.keep, name+"-"+line+"-pull.pprof")
	}
	_, pull, _ := spread(runs[pullers[0].Name()], func(x coldstart.Result) int64 { return int64(x.Pull) })
	where, err := profilePull(ctx, bed, image, time.Duration(pull), file)
	where.Image, where.Input = name, line
	r.Where = append(r.Where, where)
	return err
}

// profilePull pulls once more and profiles the daemon meanwhile, for as long as a
// pull takes.
func profilePull(ctx context.Context, bed *coldstart.Bed, image *testenv.Image, pull time.Duration, file string) (spending, error) {
	w := spending{Parts: make(map[string]float64)}
	socket := filepath.Join(bed.Dir, "metrics.sock")
	s := profiled{coldstart.LazyerofsTarObserved(socket), func(ctx context.Context) error {
		return fetchProfile(ctx, socket, fmt.Sprintf("profile?seconds=%d", max(1, pull/time.Second)), file)
	}}
	if _, err := bed.Measure(ctx, s, image.Name, image.Ready); err != nil {
		return w, err
	}
	if err := w.addProfile(file); err != nil {
		return w, err
	}
	w.finish()
	return w, nil
}

// profiled is a system of which each pull is looked at meanwhile.
type profiled struct {
	coldstart.System
	look func(context.Context) error
}

func (p profiled) Start(ctx context.Context, dir string) (coldstart.Node, error) {
	n, err := p.System.Start(ctx, dir)
	return profiledNode{n, p.look}, err
}

type profiledNode struct {
	coldstart.Node
	look func(context.Context) error
}

func (n profiledNode) Pull(ctx context.Context, ref string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.look(ctx) })
	g.Go(func() error { return n.Node.Pull(ctx, ref) })
	return g.Wait()
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
	fmt.Fprintf(&b, "\nwhere our daemon spends its processor time meanwhile, %%\n")
	b.WriteString(spendingTable(r.Where, func(x spending) string { return x.Image + " " + x.Input }))
	return b.String()
}

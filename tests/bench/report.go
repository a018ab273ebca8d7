package main

import (
	"bytes"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/lazyerofs/lazyerofs/tests/coldstart"
)

// report is what one run of the bench found, as it is written to disk.
type report struct {
	machine
	Rows []row `json:"rows"`
}

// row is one system on one image over one line. Times are medians in
// milliseconds, bytes the median too.
type row struct {
	Image     string             `json:"image"`
	Line      string             `json:"line"`
	System    string             `json:"system"`
	ImageSize int64              `json:"image_size"` // of the tar layers, compressed
	Pull      int64              `json:"pull_ms"`
	Run       int64              `json:"run_ms"`
	Ready     int64              `json:"ready_ms"`
	Min       int64              `json:"ready_min_ms"`
	Max       int64              `json:"ready_max_ms"`
	Received  int64              `json:"received"`
	Requests  int64              `json:"requests"`
	Speedup   float64            `json:"speedup"` // against the first system
	Runs      []coldstart.Result `json:"runs"`
}

func newReport() (*report, error) {
	m, err := newMachine()
	return &report{machine: m}, err
}

// add takes the results of all systems on one image and line.
func (r *report) add(image, line string, size int64, runs map[string][]coldstart.Result) {
	var base int64
	for _, s := range systems {
		results := runs[s.Name()]
		ready := func(x coldstart.Result) int64 { return x.Ready().Milliseconds() }
		low, mid, high := spread(results, ready)
		if base == 0 {
			base = mid
		}
		_, pull, _ := spread(results, func(x coldstart.Result) int64 { return x.Pull.Milliseconds() })
		_, run, _ := spread(results, func(x coldstart.Result) int64 { return x.Run.Milliseconds() })
		_, received, _ := spread(results, func(x coldstart.Result) int64 { return x.Received })
		_, requests, _ := spread(results, func(x coldstart.Result) int64 { return int64(x.Requests) })
		r.Rows = append(r.Rows, row{
			Image: image, Line: line, System: s.Name(), ImageSize: size,
			Pull: pull, Run: run, Ready: mid, Min: low, Max: high,
			Received: received, Requests: requests,
			Speedup: float64(base) / float64(max(1, mid)), Runs: results,
		})
	}
}

// spread returns the least, the median and the greatest of what value gives; of
// an even number of results the median is the lower of the middle two.
func spread(results []coldstart.Result, value func(coldstart.Result) int64) (low, mid, high int64) {
	if len(results) == 0 {
		return 0, 0, 0
	}
	values := make([]int64, 0, len(results))
	for _, x := range results {
		values = append(values, value(x))
	}
	slices.Sort(values)
	return values[0], values[(len(values)-1)/2], values[len(values)-1]
}

func (r *report) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "image\tline\tsystem\tpull ms\trun ms\tready ms\tmin-max\tMB\trequests\tspeedup\t")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d-%d\t%.1f\t%d\t%.2fx\t\n", x.Image, x.Line, x.System,
			x.Pull, x.Run, x.Ready, x.Min, x.Max, float64(x.Received)/1e6, x.Requests, x.Speedup)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.String()
}

// write stores the report under its date.
func (r *report) write(dir string) error {
	if err := r.noteLoad(); err != nil {
		return err
	}
	return store(dir, r.Date, "", r)
}

package main

import (
	"bytes"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"
)

// driverReport is what a bench of drivers found.
type driverReport struct {
	machine
	Skipped []string    `json:"skipped"` // drivers that do not work here, and why
	Rows    []driverRow `json:"rows"`
}

// driverRow is one workload through one driver in one state, every round.
type driverRow struct {
	Work   string          `json:"work"`
	Driver string          `json:"driver"` // "" for the plain mount
	State  string          `json:"state"`
	Ops    int64           `json:"ops"`
	Bytes  int64           `json:"bytes"`
	Took   []time.Duration `json:"took_ns"` // by round
	Median time.Duration   `json:"median_ns"`
	// Ratio is the median, over the rounds, of the plain mount's time in that round
	// by this one's: 1 is as fast, 0.5 takes twice as long. Low and High are the
	// worst and the best round.
	Ratio float64 `json:"ratio"`
	Low   float64 `json:"ratio_min"`
	High  float64 `json:"ratio_max"`
	// Best is the plain mount's best time by this one's best: what is left of the
	// difference when a machine that does other things too leaves both alone for
	// once.
	Best float64 `json:"ratio_of_best"`
}

func newDriverReport() (*driverReport, error) {
	m, err := newMachine()
	return &driverReport{machine: m}, err
}

// add takes what one turn measured.
func (r *driverReport) add(work, driver, state string, samples []sample) {
	for _, s := range samples {
		name := work
		if len(samples) > 1 {
			name = s.Name
		}
		row := r.row(name, driver, state)
		row.Ops, row.Bytes = s.Ops, s.Bytes
		row.Took = append(row.Took, s.Took)
	}
}

// row finds the row, or makes it. The rows of a workload stand together.
func (r *driverReport) row(work, driver, state string) *driverRow {
	for i := range r.Rows {
		if x := &r.Rows[i]; x.Work == work && x.Driver == driver && x.State == state {
			return x
		}
	}
	at := len(r.Rows)
	for i := range r.Rows {
		if r.Rows[i].Work == work {
			at = i + 1
		}
	}
	r.Rows = slices.Insert(r.Rows, at, driverRow{Work: work, Driver: driver, State: state})
	return &r.Rows[at]
}

// finish derives medians and ratios.
func (r *driverReport) finish() error {
	for i := range r.Rows {
		x := &r.Rows[i]
		plain := r.row(x.Work, "", statePlain)
		if len(x.Took) == 0 || len(x.Took) != len(plain.Took) {
			return fmt.Errorf("%s, %s, %s: %d rounds, %d of the plain mount", x.Work, x.Driver, x.State, len(x.Took), len(plain.Took))
		}
		var ratios []float64
		for k, took := range x.Took {
			ratios = append(ratios, float64(plain.Took[k])/float64(max(1, took)))
		}
		x.Median = slices.Sorted(slices.Values(x.Took))[(len(x.Took)-1)/2]
		x.Best = float64(slices.Min(plain.Took)) / float64(max(1, slices.Min(x.Took)))
		slices.Sort(ratios)
		x.Low, x.Ratio, x.High = ratios[0], ratios[(len(ratios)-1)/2], ratios[len(ratios)-1]
	}
	return r.noteLoad()
}

func (r *driverReport) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "work\tdriver\tstate\tms\tMB/s\tus/op\tof plain\tmin-max\tbest\t")
	for _, x := range r.Rows {
		rate := "-"
		if x.Bytes > 0 {
			rate = fmt.Sprintf("%.0f", float64(x.Bytes)/1e6/x.Median.Seconds())
		}
		driver := x.Driver
		if driver == "" {
			driver = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%s\t%.1f\t%.2f\t%.2f-%.2f\t%.2f\t\n", x.Work, driver, x.State,
			x.Median.Seconds()*1e3, rate, x.Median.Seconds()*1e6/float64(max(1, x.Ops)), x.Ratio, x.Low, x.High, x.Best)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	for _, s := range r.Skipped {
		fmt.Fprintln(&b, "skipped", s)
	}
	for i, l := range r.Load {
		fmt.Fprintf(&b, "load %d: %s\n", i, l)
	}
	return b.String()
}

func (r *driverReport) write(dir string) error { return store(dir, r.Date, "drivers", r) }

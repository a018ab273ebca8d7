package main

import (
	"bytes"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"
)

// convertReport is what a bench of conversions found.
type convertReport struct {
	machine
	Level int          `json:"level"`
	Floor int64        `json:"peak_floor_kib"` // peak of a program that does nothing
	Rows  []convertRow `json:"rows"`
	Where []spending   `json:"where"` // of lazyerofs
}

// convertRow is one way to convert all layers of one image, one after the other.
type convertRow struct {
	Image  string          `json:"image"`
	Input  string          `json:"input"`
	System string          `json:"system"`
	Size   int64           `json:"size"`     // of all layers made
	Peak   int64           `json:"peak_kib"` // the greatest of all processes and rounds
	Wall   []time.Duration `json:"wall_ns"`  // by round
	CPU    []time.Duration `json:"cpu_ns"`
	Steps  [][]step        `json:"steps"`
	// Ratio is the median over the rounds of this time by that of lazyerofs in the
	// same round: 2 takes twice as long as lazyerofs.
	Ratio float64 `json:"time_by_lazyerofs"`
	Low   float64 `json:"time_by_lazyerofs_min"`
	High  float64 `json:"time_by_lazyerofs_max"`
}

// add takes the outcome of one round.
func (r *convertReport) add(image, input string, o outcome) {
	row := r.row(image, input, o.name)
	row.Size = o.size
	row.Peak = max(row.Peak, o.Peak)
	row.Wall = append(row.Wall, o.Wall)
	row.CPU = append(row.CPU, o.CPU)
	row.Steps = append(row.Steps, o.steps)
}

// row finds the row, or makes it.
func (r *convertReport) row(image, input, system string) *convertRow {
	at := slices.IndexFunc(r.Rows, func(x convertRow) bool { return x.Image == image && x.Input == input && x.System == system })
	if at < 0 {
		r.Rows = append(r.Rows, convertRow{Image: image, Input: input, System: system})
		at = len(r.Rows) - 1
	}
	return &r.Rows[at]
}

// compare fills in the ratios.
func (r *convertReport) compare() {
	for i := range r.Rows {
		x := &r.Rows[i]
		base := r.row(x.Image, x.Input, rival(x.System))
		x = &r.Rows[i] // row may have moved it
		var all []float64
		for k := range min(len(x.Wall), len(base.Wall)) {
			all = append(all, x.Wall[k].Seconds()/base.Wall[k].Seconds())
		}
		x.Low, x.Ratio, x.High = lowMidHigh(all)
	}
}

func (r *convertReport) table() string {
	r.compare()
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "image\tfrom\tsystem\ts\tCPU s\tpeak MiB\tMB\ttime / ours\tmin-max\t")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%.2f\t%d\t%.1f\t%.2f\t%.2f-%.2f\t\n", x.Image, x.Input, x.System,
			medianOf(x.Wall).Seconds(), medianOf(x.CPU).Seconds(), x.Peak>>10, float64(x.Size)/1e6, x.Ratio, x.Low, x.High)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	fmt.Fprintf(&b, "\nwhere lazyerofs spends its processor time, %%\n")
	fmt.Fprint(w, "\t")
	for _, x := range r.Where {
		fmt.Fprintf(w, "%s %s\t", x.Image, x.Input)
	}
	fmt.Fprintln(w)
	for _, name := range append(partNames(), partOther) {
		fmt.Fprintf(w, "%s\t", name)
		for _, x := range r.Where {
			fmt.Fprintf(w, "%.1f\t", 100*x.Parts[name])
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "CPU s\t")
	for _, x := range r.Where {
		fmt.Fprintf(w, "%.2f\t", x.Total)
	}
	fmt.Fprintln(w)
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.String()
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

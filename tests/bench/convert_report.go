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
	// CPURatio is the same of the processor time, which other load changes less.
	CPURatio float64 `json:"cpu_by_lazyerofs"`
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
		var all, cpu []float64
		for k := range min(len(x.Wall), len(base.Wall)) {
			all = append(all, x.Wall[k].Seconds()/base.Wall[k].Seconds())
			cpu = append(cpu, x.CPU[k].Seconds()/max(base.CPU[k].Seconds(), 1e-3))
		}
		x.Low, x.Ratio, x.High = lowMidHigh(all)
		_, x.CPURatio, _ = lowMidHigh(cpu)
	}
}

func (r *convertReport) table() string {
	r.compare()
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "image\tfrom\tsystem\ts\tCPU s\tpeak MiB\tMB\ttime / ours\tmin-max\tCPU / ours\t")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%.2f\t%d\t%.1f\t%.2f\t%.2f-%.2f\t%.2f\t\n", x.Image, x.Input, x.System,
			medianOf(x.Wall).Seconds(), medianOf(x.CPU).Seconds(), x.Peak>>10, float64(x.Size)/1e6, x.Ratio, x.Low, x.High, x.CPURatio)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	fmt.Fprintf(&b, "\nwhere lazyerofs spends its processor time, %%\n")
	b.WriteString(spendingTable(r.Where, func(x spending) string { return x.Image + " " + x.Input }))
	return b.String()
}

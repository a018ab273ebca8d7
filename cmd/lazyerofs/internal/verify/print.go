package verify

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/docker/go-units"
)

// Print writes for people what was checked; faults are for standard error.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LAYER\tKIND\tSIZE\tCHUNKS\tINODES\tRESULT")
	for _, l := range r.Layers {
		result := "good"
		if l.NotLazy != "" {
			result = "good, not lazy"
		}
		if l.Verity != "" {
			result += ", with hash tree"
		}
		if l.Faults > 0 {
			result = count(l.Faults, "fault")
		}
		hex := l.Digest.Encoded()
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\n", hex[:min(12, len(hex))], l.Kind, units.HumanSize(float64(l.Size)), l.Chunks, l.Inodes, result)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	verdict := "good"
	if !r.Sound {
		verdict = r.Count()
	}
	if _, err := fmt.Fprintf(w, "%s@%s: %s, %s, %s: %s\n", r.Image, r.Digest, count(r.Documents, "document"), count(len(r.Layers), "layer"),
		units.HumanSize(float64(r.Bytes)), verdict); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

// Count says how many faults there are.
func (r *Report) Count() string { return count(len(r.Faults), "fault") }

// count puts a number before what is counted.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

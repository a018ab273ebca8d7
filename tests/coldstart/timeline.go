package coldstart

import (
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

const columns = 60 // of the timeline; it fits a terminal with its labels

// Row is one line of a timeline.
type Row struct {
	Label string
	Blob  digest.Digest // "" collects what belongs to no other row
	Size  int64
}

// Timeline draws what was fetched when: a row per blob, and in each column a
// mark for the bytes that the registry sent in that part of the time.
func (r Result) Timeline(rows []Row) string {
	total := r.Ready()
	var b strings.Builder
	fmt.Fprintf(&b, "  %-22s |%-*s| %.1f s   (per column: . <64 kB  o <1 MB  # more; one column is %d ms)\n",
		"fetched when", columns, " pull ends at :", total.Seconds(), (total / columns).Milliseconds())
	pullEnds := columnOf(r.Pull, total)
	for _, row := range rows {
		var cells [columns]int64
		var sum int64
		requests := 0
		for _, req := range r.Log {
			if !row.owns(req, rows) || req.Bytes == 0 {
				continue
			}
			requests++
			sum += req.Bytes
			spread(&cells, req, r.Start, total)
		}
		fmt.Fprintf(&b, "  %-22s |%s| %6.1f of %6.1f MB in %d requests\n", row.Label, draw(cells, pullEnds), mb(sum), mb(row.Size), requests)
	}
	return b.String()
}

// owns reports whether req is drawn in this row.
func (row Row) owns(req testenv.Request, rows []Row) bool {
	if row.Blob != "" {
		return req.Blob() == row.Blob.String()
	}
	for _, other := range rows {
		if other.Blob != "" && req.Blob() == other.Blob.String() {
			return false
		}
	}
	return true
}

// spread shares the bytes of a request evenly over the columns it took.
func spread(cells *[columns]int64, req testenv.Request, start time.Time, total time.Duration) {
	first, last := columnOf(req.Start.Sub(start), total), columnOf(req.End.Sub(start), total)
	n := int64(last - first + 1)
	for c := first; c <= last; c++ {
		cells[c] += max(1, req.Bytes/n)
	}
}

func columnOf(at, total time.Duration) int {
	if total <= 0 {
		return 0
	}
	return min(columns-1, max(0, int(at*columns/total)))
}

func draw(cells [columns]int64, pullEnds int) string {
	line := make([]byte, columns)
	for c, n := range cells {
		switch {
		case n >= 1e6:
			line[c] = '#'
		case n >= 64e3:
			line[c] = 'o'
		case n > 0:
			line[c] = '.'
		case c == pullEnds:
			line[c] = ':'
		default:
			line[c] = ' '
		}
	}
	return string(line)
}

func mb(n int64) float64 { return float64(n) / 1e6 }

package progress

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/docker/go-units"
	digest "github.com/opencontainers/go-digest"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/lazyerofs/lazyerofs/differ/converter"
)

// Display shows events. Show is safe for concurrent use; Close waits until
// everything is on the screen.
type Display interface {
	Show(e converter.Event)
	Close()
}

// New returns bars when w is a terminal and lines otherwise.
func New(w io.Writer) Display {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return newBars(w)
	}
	return &lines{w: w}
}

// Line describes a finished layer.
func Line(layer digest.Digest, r *converter.LayerResult) string {
	what := fmt.Sprintf("%s, %d inodes", sizes(r.SourceSize, r.Size), r.Inodes)
	if r.Chunks > 0 { // none in a tar
		what += fmt.Sprintf(", %d chunks", r.Chunks)
	}
	what += fmt.Sprintf(", %.1f s", r.Seconds)
	if r.Reused {
		what = "carried over, " + units.HumanSize(float64(r.Size))
	}
	if r.Resumed {
		what += ", converted earlier"
	}
	if r.Existed {
		what += ", was there"
	}
	return short(layer) + "  " + what
}

func sizes(from, to int64) string {
	return units.HumanSize(float64(from)) + " -> " + units.HumanSize(float64(to))
}

// short is the beginning of a digest that people compare by eye.
func short(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// lines prints one line per finished layer.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) Show(e converter.Event) {
	if e.Phase != converter.Done || e.Result == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.w, Line(e.Layer, e.Result))
}

func (l *lines) Close() {}

// bars draws one bar per layer, which first follows the conversion and then
// the push.
//
// mpb calls decorators on the goroutine that also serves the methods of a bar,
// so what a decorator locks must never be held over such a method: each bar has
// a lock of its own for its text.
type bars struct {
	p    *mpb.Progress
	mu   sync.Mutex // guards each
	each map[digest.Digest]*bar
}

type bar struct {
	bar *mpb.Bar

	mu    sync.Mutex // guards what follows
	phase converter.Phase
	line  string
}

func newBars(w io.Writer) *bars {
	return &bars{p: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithAutoRefresh()), each: make(map[digest.Digest]*bar)}
}

func (b *bars) Show(e converter.Event) {
	x := b.of(e)
	if e.Phase == converter.Done {
		x.finish(e)
		x.bar.SetTotal(e.Total, false)
		x.bar.SetCurrent(e.Total)
		x.bar.SetTotal(-1, true)
		return
	}
	if x.enter(e.Phase) {
		// One more than there is, so that the bar is not complete before Done.
		x.bar.SetTotal(e.Total+1, false)
	}
	x.bar.SetCurrent(e.Bytes)
}

// enter notes the phase and reports whether it is a new one.
func (x *bar) enter(p converter.Phase) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	was := x.phase
	x.phase = p
	return was != p
}

// finish notes that the layer is done.
func (x *bar) finish(e converter.Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.phase = converter.Done
	if e.Result != nil {
		x.line = Line(e.Layer, e.Result)
	}
}

// state returns the phase, and the line of a layer that is done.
func (x *bar) state() (converter.Phase, string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.phase, x.line
}

// of returns the bar of a layer, a new one for its first event.
func (b *bars) of(e converter.Event) *bar {
	b.mu.Lock()
	defer b.mu.Unlock()
	x, ok := b.each[e.Layer]
	if ok {
		return x
	}
	x = &bar{phase: e.Phase, line: short(e.Layer) + "  done"}
	b.each[e.Layer] = x
	x.bar = b.p.AddBar(e.Total+1,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
			phase, line := x.state()
			if phase == converter.Done {
				return line
			}
			return fmt.Sprintf("%s  %-10s ", short(e.Layer), phase)
		})),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
			if phase, _ := x.state(); phase == converter.Done {
				return ""
			}
			return fmt.Sprintf("%s / %s", units.HumanSize(float64(s.Current)), units.HumanSize(float64(max(0, s.Total-1))))
		})),
		mpb.BarFillerClearOnComplete(),
	)
	return x
}

func (b *bars) Close() {
	b.mu.Lock()
	for _, x := range b.each {
		if phase, _ := x.state(); phase != converter.Done {
			x.bar.Abort(false)
		}
	}
	b.mu.Unlock()
	b.p.Wait()
}

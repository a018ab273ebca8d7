package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/log"
)

// flusher keeps the bitmap on disk at most interval behind, and at once when
// the layer has become whole. It ends with ctx, or when nothing is left to do.
func (f *File) flusher(ctx context.Context, interval time.Duration) {
	defer close(f.stopped)
	timer := time.NewTimer(interval)
	defer timer.Stop()
	timer.Stop()
	armed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.dirty:
			if !armed {
				timer.Reset(interval)
				armed = true
			}
			continue
		case <-f.urgent:
		case <-timer.C:
		}
		armed = false
		if err := f.Flush(ctx); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).WithField("layer", f.name).Error("bitmap could not be brought to disk; it is tried again")
			wake(f.dirty)
		}
	}
}

// Flush brings data and bitmap to disk. When the kernel reports that data was
// lost on its way, the chunks since the last good Flush are no longer resident
// and the error says so. A sync that has begun cannot be interrupted.
func (f *File) Flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.flushing.Lock()
	defer f.flushing.Unlock()
	next := slot{
		seq:      f.durable.seq + 1,
		verified: f.verified.Load(),
		words:    make([]uint64, len(f.bits)),
	}
	f.bits.snapshot(next.words)
	if slices.Equal(next.words, f.durable.words) && next.verified == f.durable.verified {
		return nil
	}
	if err := f.datasync(f.data); err != nil {
		return f.forget(err)
	}
	if err := f.writeSlot(&next); err != nil {
		return fmt.Errorf("writing the bitmap of %s: %w", f.name, err)
	}
	f.durable = next
	if countWords(next.words) == f.id.chunks {
		f.closeComplete()
	}
	return nil
}

// writeSlot overwrites the older slot.
func (f *File) writeSlot(s *slot) error {
	at := int64(s.seq%2) * slotLen(f.id.chunks)
	if _, err := f.bitmap.WriteAt(encodeSlot(&f.id, s), at); err != nil {
		return err
	}
	return f.datasync(f.bitmap)
}

// forget takes back every bit that is not on disk: after a failed sync the
// kernel may have dropped what was written and says so only once.
func (f *File) forget(cause error) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.whole.Store(false)
	f.bits.restore(f.durable.words)
	f.recount()
	return fmt.Errorf("syncing the data file of %s, its newest chunks will be fetched again: %w", f.name, cause)
}

func (f *File) closeComplete() {
	select {
	case <-f.complete:
	default:
		close(f.complete)
	}
}

// Close brings everything to disk, ends the flusher and closes the files. When
// ctx ends first, what was not brought to disk is fetched again another time.
// Only the first call does anything.
func (f *File) Close(ctx context.Context) error {
	f.closeOnce.Do(func() {
		f.stop()
		<-f.stopped
		err := f.Flush(ctx)
		f.closeErr = errors.Join(err, f.closeFiles(nil))
	})
	return f.closeErr
}

// closeFiles closes what is open except keep.
func (f *File) closeFiles(keep *os.File) error {
	var errs []error
	for _, file := range []*os.File{f.data, f.bitmap, f.lock} {
		if file != nil && file != keep {
			errs = append(errs, file.Close())
		}
	}
	return errors.Join(errs...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	block = 1 << 20 // of sequential reads
	page  = 4 << 10 // of random reads
)

// sequential reads every file from its start to its end.
func sequential(ctx context.Context, j job) ([]sample, error) {
	s := sample{Name: j.Kind}
	buf := make([]byte, block)
	start := time.Now()
	for _, name := range j.Paths {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := readFile(filepath.Join(j.Root, name), buf)
		if err != nil {
			return nil, err
		}
		s.Bytes += n
		s.Ops++
	}
	s.Took = time.Since(start)
	return []sample{s}, nil
}

// readFile reads one file as dd would: no buffer of a library in between.
func readFile(name string, buf []byte) (total int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for {
		n, err := f.Read(buf)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// where is one page of one file.
type where struct {
	file *os.File
	off  int64
}

// random reads distinct whole pages in random order, from all files alike by
// their length. The kernel is told so, and reads no page that was not asked for.
func random(ctx context.Context, j job) ([]sample, error) {
	all, done, err := openPages(j)
	if err != nil {
		return nil, err
	}
	defer done()
	if len(all) < j.Reads {
		return nil, fmt.Errorf("the files have %d pages, not %d", len(all), j.Reads)
	}
	rnd := rand.New(rand.NewPCG(j.Seed, 0))
	rnd.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
	all = all[:j.Reads]
	readers := max(1, j.Readers)
	g, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	for r := range readers {
		g.Go(func() error {
			var buf [page]byte
			for i := r; i < len(all) && ctx.Err() == nil; i += readers {
				if _, err := all[i].file.ReadAt(buf[:], all[i].off); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return []sample{{Name: j.Kind, Took: time.Since(start), Ops: int64(len(all)), Bytes: int64(len(all)) * page}}, nil
}

// openPages opens the files of j and lists their whole pages.
func openPages(j job) (all []where, done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			_ = f.Close() // only read
		}
	}
	for _, name := range j.Paths {
		f, err := os.Open(filepath.Join(j.Root, name))
		if err != nil {
			done()
			return nil, nil, err
		}
		files = append(files, f)
		st, err := f.Stat()
		if err == nil {
			err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
		}
		if err != nil {
			done()
			return nil, nil, fmt.Errorf("looking at %s: %w", name, err)
		}
		for off := int64(0); off+page <= st.Size(); off += page {
			all = append(all, where{f, off})
		}
	}
	return all, done, nil
}

// cached reads all of the files once, drops their pages from the cache of the
// mount, and then does as do does: what the mount itself has to ask for comes
// from memory, and no disk hides what asking costs.
func cached(do func(context.Context, job) ([]sample, error)) func(context.Context, job) ([]sample, error) {
	return func(ctx context.Context, j job) ([]sample, error) {
		if _, err := sequential(ctx, j); err != nil {
			return nil, err
		}
		for _, name := range j.Paths {
			if err := forget(filepath.Join(j.Root, name)); err != nil {
				return nil, err
			}
		}
		return do(ctx, j)
	}
}

// forget drops a file's pages from the page cache.
func forget(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("dropping the pages of %s: %w", name, err)
	}
	return nil
}

// walk asks for the attributes of every file, and then once more.
func walk(ctx context.Context, j job) ([]sample, error) {
	var out []sample
	for _, name := range []string{"walk-cold", "walk-warm"} {
		s := sample{Name: name}
		start := time.Now()
		err := filepath.WalkDir(j.Root, func(_ string, d fs.DirEntry, err error) error {
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			s.Ops++
			_, err = d.Info()
			return err
		})
		if err != nil {
			return nil, err
		}
		s.Took = time.Since(start)
		out = append(out, s)
	}
	return out, nil
}

// execute runs a program of the image, which needs no library of it.
func execute(ctx context.Context, j job) ([]sample, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(j.Root, j.Paths[0]), j.Paths[1:]...)
	cmd.Env = []string{"HOME=/", "GOTOOLCHAIN=local", "GOENV=off"}
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return []sample{{Name: j.Kind, Took: time.Since(start), Ops: 1}}, nil
}

package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestErrno(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "data", Err: syscall.ENOSPC}
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{fmt.Errorf("filling: %w", full), syscall.ENOSPC},
		{errors.Join(errors.New("x"), syscall.EDQUOT), syscall.EDQUOT},
		{syscall.ETIMEDOUT, syscall.EIO}, // the kernel would leave the reader blocked
		{syscall.EAGAIN, syscall.EIO},
		{context.Canceled, syscall.EIO},
		{context.DeadlineExceeded, syscall.EIO},
		{&chunk.CorruptError{What: "chunk 1", Reason: "digest"}, syscall.EIO},
		{errors.New("registry is down"), syscall.EIO},
	} {
		require.Equal(t, c.want, Errno(c.err), "%v", c.err)
	}
}

// stub answers probes only; Select calls nothing else.
type stub struct {
	Driver
	name   string
	err    error
	probed *[]string
}

func (s stub) Name() string { return s.name }

func (s stub) Probe(dir string) error {
	*s.probed = append(*s.probed, s.name+"@"+dir)
	return s.err
}

func TestSelect(t *testing.T) {
	var probed []string
	no := errors.New("no such event class")
	drivers := []Driver{
		stub{name: "one", err: no, probed: &probed},
		stub{name: "two", probed: &probed},
		stub{name: "three", probed: &probed},
	}
	ctx := context.Background()

	d, probes, err := Select(ctx, drivers, "/c", "", nil)
	require.NoError(t, err)
	require.Equal(t, drivers[1:], d)
	require.Equal(t, []Probe{{"one", no}, {"two", nil}}, probes)
	require.Equal(t, []string{"one@/c", "two@/c"}, probed)

	d, _, err = Select(ctx, drivers, "/c", "", []string{"three"})
	require.NoError(t, err)
	require.Equal(t, drivers[1:2], d)
	require.Equal(t, "one: no such event class", probes[0].String())

	d, probes, err = Select(ctx, drivers, "/c", "", []string{"two"})
	require.NoError(t, err)
	require.Equal(t, drivers[2:], d)
	require.ErrorIs(t, probes[1].Err, ErrForbidden)

	d, _, err = Select(ctx, drivers, "/c", "three", nil)
	require.NoError(t, err)
	require.Equal(t, drivers[2:], d)

	d, probes, err = Select(ctx, drivers, "/c", "one", nil)
	require.ErrorIs(t, err, ErrNoDriver)
	require.ErrorContains(t, err, "one: no such event class")
	require.Empty(t, d)
	require.Len(t, probes, 1)

	_, _, err = Select(ctx, drivers, "/c", "four", nil)
	require.ErrorContains(t, err, `driver "four" does not exist; known are one, two, three`)

	_, _, err = Select(ctx, drivers, "/c", "", []string{"two", "three"})
	require.ErrorIs(t, err, ErrNoDriver)

	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, _, err = Select(gone, drivers, "/c", "", nil)
	require.ErrorIs(t, err, context.Canceled)
}

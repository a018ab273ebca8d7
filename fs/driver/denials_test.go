package driver

import (
	"bytes"
	"context"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// Many denials give few lines, and the next line says how many there were.
func TestDenials(t *testing.T) {
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	ctx := log.WithLogger(context.Background(), logrus.NewEntry(logger))
	d := &Denials{some: rate.Sometimes{First: 3, Every: 100}}
	for i := range 301 {
		d.Note(ctx, "sha256-1", int64(i), 4096, errNoSpace)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3+3)
	require.Contains(t, lines[0], "denying a read of [0, +4096)")
	require.Contains(t, lines[0], "layer=sha256-1")
	require.NotContains(t, lines[0], "not_logged")
	require.Contains(t, lines[4], "not_logged=99")
}

var errNoSpace = syscall.ENOSPC

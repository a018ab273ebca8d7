//go:build vm

package vm

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// TestGuests boots the guests that VM names, one after the other, or all.
func TestGuests(t *testing.T) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root, err := testenv.Root()
	require.NoError(t, err)
	cache, err := testenv.Cache()
	require.NoError(t, err)
	guests := chosen(t, os.Getenv("VM"))
	start := time.Now()
	h, err := NewHost(ctx, root, filepath.Join(cache, "vm"), t.TempDir(), guests)
	require.NoError(t, err)
	t.Logf("prepared in %s", time.Since(start).Round(time.Second))
	for _, g := range guests {
		t.Run(g.Name, func(t *testing.T) {
			start := time.Now()
			rep, err := h.Run(ctx, g)
			t.Logf("kernel %s, systemd %q, %s", rep.Kernel.Version, rep.Systemd, time.Since(start).Round(time.Second))
			if rep.Verdict != nil {
				for _, o := range rep.Verdict.Outcomes {
					t.Run(o.Package, func(t *testing.T) { show(t, o) })
				}
			}
			if err != nil || rep.Verdict.Err() != nil {
				t.Log("the kernel's console:\n" + rep.Console)
			}
			require.NoError(t, err)
			require.NoError(t, rep.Verdict.Err())
		})
	}
}

// show makes subtests of what the guest says.
func show(t *testing.T, o *Outcome) {
	for _, test := range o.Tests {
		t.Run(test.Name, func(t *testing.T) {
			if test.Status != "PASS" {
				t.Fail()
			}
		})
	}
	if err := o.Err(); err != nil {
		t.Errorf("%v\n%s", err, o.Output())
	} else if testing.Verbose() {
		t.Logf("%s took %s\n%s", o.Package, o.Took, o.Output())
	}
}

// chosen are the guests with the names in list, or all.
func chosen(t *testing.T, list string) []Guest {
	if list == "" {
		return Guests
	}
	var some []Guest
	for _, name := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		i := slices.IndexFunc(Guests, func(g Guest) bool { return g.Name == name })
		require.GreaterOrEqual(t, i, 0, "no guest is called %q", name)
		some = append(some, Guests[i])
	}
	return some
}

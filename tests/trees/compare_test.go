package trees

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestCompareSeesEveryKindOfDifference keeps the other tests honest.
func TestCompareSeesEveryKindOfDifference(t *testing.T) {
	build := func(t *testing.T) string {
		dir := t.TempDir()
		p := func(n string) string { return filepath.Join(dir, n) }
		require.NoError(t, os.Mkdir(p("d"), 0o755))
		require.NoError(t, os.WriteFile(p("d/f"), []byte("content"), 0o644))
		require.NoError(t, os.Link(p("d/f"), p("d/hard")))
		require.NoError(t, os.Symlink("f", p("d/link")))
		require.NoError(t, unix.Mknod(p("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		require.NoError(t, unix.Setxattr(p("d/f"), "user.a", []byte("1"), 0))
		for _, n := range []string{"d/f", "null", "d", ""} {
			require.NoError(t, os.Chtimes(p(n), time.Unix(1, 0), time.Unix(1, 5)))
		}
		require.NoError(t, unix.Lutimes(p("d/link"), []unix.Timeval{{Sec: 1}, {Sec: 1}}))
		return dir
	}
	want := build(t)
	diffs, err := Compare(want, build(t))
	require.NoError(t, err)
	require.Empty(t, diffs)
	diffs, err = CompareOverlay(want, build(t))
	require.NoError(t, err)
	require.Empty(t, diffs)

	for what, change := range map[string]func(p func(string) string) error{
		"mode":          func(p func(string) string) error { return os.Chmod(p("d/f"), 0o600) },
		"owner":         func(p func(string) string) error { return os.Lchown(p("d/link"), 7, 7) },
		"mtime":         func(p func(string) string) error { return os.Chtimes(p("d"), time.Unix(1, 0), time.Unix(1, 6)) },
		"content":       func(p func(string) string) error { return os.WriteFile(p("d/f"), []byte("Content"), 0o644) },
		"size":          func(p func(string) string) error { return os.WriteFile(p("d/f"), []byte("longer content"), 0o644) },
		"xattrs":        func(p func(string) string) error { return unix.Setxattr(p("d/f"), "user.a", []byte("2"), 0) },
		"list of names": func(p func(string) string) error { return os.WriteFile(p("d/new"), nil, 0o644) },
		"lstat":         func(p func(string) string) error { return os.Remove(p("null")) },
		"link count":    func(p func(string) string) error { return os.Link(p("d/f"), p("third")) },
		"target": func(p func(string) string) error {
			return os.Rename(symlink(p("x"), "g"), p("d/link"))
		},
		"device": func(p func(string) string) error {
			if err := os.Remove(p("null")); err != nil {
				return err
			}
			return unix.Mknod(p("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5)))
		},
		"inode": func(p func(string) string) error {
			if err := os.Remove(p("d/hard")); err != nil {
				return err
			}
			return os.WriteFile(p("d/hard"), []byte("content"), 0o644)
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := build(t)
			require.NoError(t, change(func(n string) string { return filepath.Join(dir, n) }))
			for _, compare := range []func(string, string) ([]string, error){Compare, CompareOverlay} {
				diffs, err := compare(want, dir)
				require.NoError(t, err)
				var found bool
				for _, d := range diffs {
					found = found || strings.Contains(d, what)
				}
				require.True(t, found, "%q", diffs)
			}
		})
	}
}

func symlink(path, target string) string {
	if err := os.Symlink(target, path); err != nil {
		panic(err)
	}
	return path
}

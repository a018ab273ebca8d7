package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sort"
	"strings"
	"testing"
	"unicode/utf8"

	goerofs "github.com/erofs/go-erofs"
	"github.com/stretchr/testify/require"
)

// checkGoErofs compares an image with what it was made of through a second,
// independent reader.
func checkGoErofs(t *testing.T, image string, files []wantFile) {
	t.Helper()
	h, err := os.Open(image)
	require.NoError(t, err)
	defer h.Close()
	fsys, err := goerofs.Open(h)
	require.NoError(t, err)
	byPath, links, subdirs := expectations(files)
	var want, got []string
	for p := range byPath {
		want = append(want, p)
	}
	require.NoError(t, fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(p, ".")
		if p != "." {
			rel = p
		}
		if err != nil {
			if !utf8.ValidString(p) { // io/fs has no such paths
				return nil
			}
			return err
		}
		got = append(got, rel)
		f := byPath[rel]
		if f == nil {
			return fmt.Errorf("%q should not be there", rel)
		}
		nlink := links[f]
		if f.attr.Mode&modeType == modeDir {
			nlink = 2 + subdirs[rel]
		}
		if err := checkGoFile(fsys, p, d, f, nlink); err != nil {
			t.Errorf("go-erofs: %q: %v", p, err)
		}
		return nil
	}))
	sort.Strings(want)
	sort.Strings(got)
	require.Equal(t, want, got)
}

func checkGoFile(fsys fs.FS, path string, d fs.DirEntry, f *wantFile, nlink int) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*goerofs.Stat)
	if !ok {
		return fmt.Errorf("stat is a %T", info.Sys())
	}
	got := []any{st.Mode.Perm(), st.UID, st.GID, int64(st.Mtime), st.MtimeNs, st.Nlink, st.Rdev}
	want := []any{fs.FileMode(f.attr.Mode & 0o777), f.attr.UID, f.attr.GID, f.attr.Mtime, f.attr.MtimeNsec, nlink, f.attr.Rdev}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("mode, uid, gid, mtime, nsec, nlink, rdev: %v, want %v", got, want)
	}
	x := map[string]string{}
	for name, value := range st.Xattrs {
		// It writes the names of ACLs with a trailing dot.
		x[strings.TrimSuffix(name, ".")] = value
	}
	if !maps.Equal(x, f.xattrs) && len(x)+len(f.xattrs) > 0 {
		return fmt.Errorf("xattrs %q, want %q", x, f.xattrs)
	}
	if f.target != "" {
		if got, err := fs.ReadLink(fsys, path); err != nil || got != f.target {
			return fmt.Errorf("target %q, %w", got, err)
		}
	}
	if f.data == nil || !utf8.ValidString(path) {
		return nil
	}
	if got, err := fs.ReadFile(fsys, path); err != nil || !bytes.Equal(got, f.data) {
		return fmt.Errorf("content of %d bytes differs, %w", len(got), err)
	}
	return nil
}

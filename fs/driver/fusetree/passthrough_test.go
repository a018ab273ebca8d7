package fusetree

import (
	"bytes"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver/drivertest"
	"github.com/lazyerofs/lazyerofs/fs/driver/fusesession"
)

// passing has one file, "f" of 4096 bytes, that is backed by another.
type passing struct {
	fuse.RawFileSystem
	backing atomic.Int32
}

func (p *passing) attr(node uint64, out *fuse.Attr) {
	out.Ino, out.Nlink, out.Mode = node, 2, unix.S_IFDIR|0o755
	if node == 2 {
		out.Nlink, out.Mode, out.Size = 1, unix.S_IFREG|0o644, 4096
	}
}

func (p *passing) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "f" {
		return fuse.ENOENT
	}
	out.NodeId = 2
	p.attr(2, &out.Attr)
	return fuse.OK
}

func (p *passing) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	p.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (p *passing) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, p.backing.Load()
	return fuse.OK
}

// A file whose bytes lie at 4096 of a data file is not read from there but from
// its start, and on into the next one: passthrough has no offset and does not look
// at the size.
func TestPassthroughHasNoOffset(t *testing.T) {
	data, err := os.Create(filepath.Join(t.TempDir(), "data"))
	require.NoError(t, err)
	defer data.Close()
	first, second := bytes.Repeat([]byte("1"), 4096), bytes.Repeat([]byte("2"), 4096)
	_, err = data.Write(append(first, second...))
	require.NoError(t, err)

	var keeper drivertest.Keeper
	p := &passing{RawFileSystem: fuse.NewDefaultRawFileSystem()}
	target := t.TempDir()
	s, err := fusesession.Mount(t.Context(), fusesession.MountConfig{Target: target, Source: "passing", Subtype: "passing"},
		fusesession.Config{Name: "passing", Keeper: &keeper, FS: p, Passthrough: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Unmount()); <-s.Done() }()
	id, err := s.RegisterBacking(data)
	require.NoError(t, err, "this kernel has no FUSE passthrough")
	p.backing.Store(id)
	got, err := os.ReadFile(filepath.Join(target, "f"))
	require.NoError(t, err)
	require.Equal(t, first, got[:4096], "the kernel has learned offsets: fusetree could use passthrough")
	f, err := os.Open(filepath.Join(target, "f"))
	require.NoError(t, err)
	defer f.Close()
	beyond := make([]byte, 4096)
	n, err := f.ReadAt(beyond, 4096)
	require.NoError(t, err)
	require.Equal(t, second, beyond[:n], "what is behind its end is another file's")
}

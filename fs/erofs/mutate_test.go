package erofs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mutant is an image that a test damages before it is parsed.
type mutant struct {
	t    testing.TB
	b    []byte
	img  testImage
	path map[string]Inode
	// device and policy are what the image is bound to.
	policy Policy
}

// victimFiles is a small tree with one of everything that the rules are about.
func victimFiles() []wantFile {
	acl := string([]byte{2, 0, 0, 0,
		1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
		16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255})
	files := []wantFile{
		{path: "a", attr: dirAttr(0o755), xattrs: map[string]string{"trusted.overlay.opaque": "y"}},
		{path: "a/one", attr: regAttr(0o644), data: pattern(10000, 1)},
		{path: "a/sub", attr: dirAttr(0o755)},
		{path: "a/sub/deep", attr: regAttr(0o644), data: pattern(100, 2)},
		{path: "b", attr: dirAttr(0o700)},
		{path: "b/acl", attr: regAttr(0o644), xattrs: map[string]string{"system.posix_acl_access": acl, "user.k": "value"}},
		{path: "b/hard", attr: Attr{Mode: modeReg | 0o600, UID: 70000}, data: pattern(5000, 3)},
		{path: "b/zhard", link: "b/hard"},
		{path: "c", attr: regAttr(0o644), runs: []wantRun{
			{len: 4096, data: pattern(4096, 4)}, {off: 4096, len: 8192, hole: true}, {off: 12288, len: 77, data: pattern(77, 5)}}},
		{path: "d", attr: regAttr(0o644), runs: []wantRun{{len: 4096, device: 1, addr: 4096, data: nil}}},
		{path: "link", target: "a/one"},
		{path: "pipe", attr: Attr{Mode: modeFifo | 0o600}},
		{path: "white", attr: Attr{Mode: modeChar}},
		{path: "tty", attr: Attr{Mode: modeChar | 0o600, Rdev: 0x501}},
		{path: "many", attr: dirAttr(0o755)},
	}
	for k := range 200 {
		files = append(files, wantFile{path: "many/" + strings.Repeat("n", 30) + string(rune('a'+k/20)) + string(rune('a'+k%20)), attr: regAttr(0o644)})
	}
	return files
}

var victimDevice = Device{Tag: strings.Repeat("ab", 32), Blocks: 4}

func newMutant(t testing.TB, img testImage) *mutant {
	t.Helper()
	b, err := os.ReadFile(img.path)
	require.NoError(t, err)
	m := &mutant{t: t, b: b, img: img, path: map[string]Inode{}, policy: DefaultPolicy(int64(len(b)))}
	m.policy.Devices = []Device{victimDevice}
	require.NoError(t, img.tree.Walk(func(path []byte, i Inode) error {
		m.path[string(path)] = i
		return nil
	}))
	return m
}

// at returns the address of the inode at path.
func (m *mutant) at(path string) int64 {
	i, ok := m.path[path]
	require.True(m.t, ok, path)
	return m.img.layout.address(i)
}

func (m *mutant) nid(path string) uint64 { return uint64(m.img.layout.inodes[m.path[path]].nid) }

func (m *mutant) placed(path string) *placedInode { return &m.img.layout.inodes[m.path[path]] }

// xattrs is where the attribute body of path begins, content what follows it.
func (m *mutant) xattrs(path string) int64 { return m.at(path) + int64(m.placed(path).size()) }

func (m *mutant) content(path string) int64 { return m.xattrs(path) + int64(m.placed(path).body) }

// chunk is where entry k of the chunk map of path is.
func (m *mutant) chunk(path string, k int64) int64 {
	return alignUp(m.content(path), chunkIndexSize) + k*chunkIndexSize
}

// dirent returns the address of the entry for name in an inline directory, and
// that of the name.
func (m *mutant) dirent(dir, name string) (entry, text int64) {
	base := m.content(dir)
	n := int64(getDirent(m.b[base:]).NameOff) / direntSize
	for k := range n {
		d := getDirent(m.b[base+k*direntSize:])
		at := base + int64(d.NameOff)
		end := m.content(dir) + int64(m.placed(dir).tail)
		if k+1 < n {
			end = base + int64(getDirent(m.b[base+(k+1)*direntSize:]).NameOff)
		}
		if string(m.b[at:end]) == name {
			return base + k*direntSize, at
		}
	}
	require.Fail(m.t, "no such entry", "%s in %s", name, dir)
	return 0, 0
}

func (m *mutant) entry(dir, name string) int64 {
	e, _ := m.dirent(dir, name)
	return e
}

func (m *mutant) name(dir, name string) int64 {
	_, at := m.dirent(dir, name)
	return at
}

func (m *mutant) put8(at int64, v uint8)   { m.b[at] = v }
func (m *mutant) put16(at int64, v uint16) { binary.LittleEndian.PutUint16(m.b[at:], v) }
func (m *mutant) put32(at int64, v uint32) { binary.LittleEndian.PutUint32(m.b[at:], v) }
func (m *mutant) put64(at int64, v uint64) { binary.LittleEndian.PutUint64(m.b[at:], v) }

// setSize and setNlink write a field of either inode form.
func (m *mutant) setSize(path string, size uint64) {
	if m.placed(path).format&formatExtended != 0 {
		m.put64(m.at(path)+8, size)
	} else {
		m.put32(m.at(path)+8, uint32(size))
	}
}

func (m *mutant) setNlink(path string, n uint16) {
	if m.placed(path).format&formatExtended != 0 {
		m.put16(m.at(path)+44, n)
	} else {
		m.put16(m.at(path)+6, n)
	}
}

// seal makes the superblock's checksum right again.
func (m *mutant) seal() {
	b := m.b[superOffset : superOffset+superChecksumLen(12)]
	clear(b[4:8])
	binary.LittleEndian.PutUint32(b[4:], superChecksum(b))
}

func (m *mutant) parse() (*Parsed, error) {
	m.policy.ImageSize = int64(len(m.b))
	return Parse(bytes.NewReader(m.b), m.policy)
}

func (m *mutant) save() string {
	path := filepath.Join(m.t.TempDir(), "mutant")
	require.NoError(m.t, os.WriteFile(path, m.b, 0o600))
	return path
}

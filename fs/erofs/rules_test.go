package erofs

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// ruleTest damages the victim in one place.
type ruleTest struct {
	name   string
	number int // of the rule in the list of what a mount must not be given
	rule   string
	fsck   bool // fsck.erofs accepts it
	damage func(m *mutant)
}

func superRules() []ruleTest {
	return []ruleTest{
		{"magic", 1, RuleSuperblock, false, func(m *mutant) { m.put32(1024, 1) }},
		{"reserved byte", 1, RuleSuperblock, true, func(m *mutant) { m.put8(1024+112, 1) }},
		{"unknown compatible feature", 1, RuleFeatures, true, func(m *mutant) { m.put32(1024+8, 0x80000007) }},
		{"no checksum", 1, RuleFeatures, true, func(m *mutant) { m.put32(1024+8, 0x6) }},
		{"compression feature", 1, RuleFeatures, true, func(m *mutant) { m.put32(1024+80, 0xD) }},
		{"fragments feature", 1, RuleFeatures, false, func(m *mutant) { m.put32(1024+80, 0x2C) }},
		{"directory blocks", 1, RuleFeatures, true, func(m *mutant) { m.put8(1024+90, 1) }},
		{"extra slots", 1, RuleFeatures, true, func(m *mutant) { m.put8(1024+13, 1) }},
		{"algorithms", 1, RuleFeatures, true, func(m *mutant) { m.put16(1024+84, 1) }},
		{"fewer blocks", 1, RuleSize, true, func(m *mutant) { m.put32(1024+36, 1) }},
		{"cut short", 1, RuleSize, true, func(m *mutant) { m.b = m.b[:len(m.b)-4096] }},
		{"block size", 1, RuleFeatures, false, func(m *mutant) { m.put8(1024+12, 13) }},
		{"epoch", 1, RuleSuperblock, true, func(m *mutant) { m.put32(1024+32, 2e9) }},
		{"metadata address", 1, RuleBounds, false, func(m *mutant) { m.put32(1024+40, 1<<30) }},

		{"fewer devices expected", 2, RuleDevices, true, func(m *mutant) { m.policy.Devices = nil }},
		{"another tag", 2, RuleDevices, true, func(m *mutant) { m.put8(1152, 'x') }},
		{"another length", 2, RuleDevices, true, func(m *mutant) { m.put32(1152+64, 5) }},
		{"48-bit length", 2, RuleDevices, true, func(m *mutant) { m.put16(1152+72, 1) }},
		{"device over the image", 2, RuleDevices, false, func(m *mutant) { m.put32(1152+68, 1) }},
		{"reserved in slot", 2, RuleDevices, true, func(m *mutant) { m.put8(1152+100, 1) }},
		{"table over the superblock", 2, RuleOverlap, true, func(m *mutant) { m.put16(1024+88, 8); m.policy.Devices = []Device{{}}; m.put32(1024+64, 0) }},
	}
}

func inodeRules() []ruleTest {
	return []ruleTest{
		{"unknown format bit", 3, RuleInode, true, func(m *mutant) { m.b[m.at("a/one")] |= 0x10 }},
		{"high format bit", 3, RuleInode, true, func(m *mutant) { m.b[m.at("a/one")+1] |= 0x80 }},
		{"reserved byte", 3, RuleInode, true, func(m *mutant) { m.put8(m.at("b/hard")+6, 1) }},
		{"compact time", 3, RuleInode, true, func(m *mutant) { m.put32(m.at("a/one")+12, 7) }},
		{"nanoseconds", 3, RuleInode, true, func(m *mutant) { m.put32(m.at("b/hard")+40, 2e9) }},
		{"no type", 3, RuleInode, false, func(m *mutant) { m.put16(m.at("a/one")+4, 0o644) }},
		{"compressed", 3, RuleLayout, false, func(m *mutant) { m.b[m.at("a/one")] |= 1 << 1 }},
		{"inline regular file", 3, RuleLayout, true, func(m *mutant) { m.b[m.at("a/sub/deep")] |= layoutInline << 1 }},
		{"negative size", 3, RuleLimit, false, func(m *mutant) { m.setSize("b/hard", 1<<63) }},
		{"pipe with content", 3, RuleInode, true, func(m *mutant) { m.setSize("pipe", 100) }},
		{"pipe with a device", 3, RuleInode, true, func(m *mutant) { m.put32(m.at("pipe")+16, 5) }},
		{"link with NUL", 3, RuleSymlink, true, func(m *mutant) { m.put8(m.content("link")+1, 0) }},
		{"empty link", 3, RuleSymlink, true, func(m *mutant) { m.setSize("link", 0) }},
		{"too many inodes", 3, RuleCount, true, func(m *mutant) { m.put64(1024+16, uint64(m.img.tree.Len())+1) }},
		{"too few inodes", 3, RuleCount, true, func(m *mutant) { m.put64(1024+16, 3) }},
		{"more inodes than allowed", 3, RuleLimit, true, func(m *mutant) { m.put64(1024+16, 1<<60) }},
		{"link count of a file", 3, RuleNlink, true, func(m *mutant) { m.setNlink("b/hard", 3) }},
		{"link count one", 3, RuleNlink, true, func(m *mutant) { m.setNlink("b/hard", 1) }},
		{"link count of a directory", 3, RuleNlink, true, func(m *mutant) { m.setNlink("a", 9) }},
		{"link count zero", 3, RuleNlink, true, func(m *mutant) { m.setNlink("a/one", 0) }},
	}
}

func dirRules() []ruleTest {
	return []ruleTest{
		{"type of an entry", 3, RuleType, true, func(m *mutant) { m.put8(m.entry("a", "one")+10, ftDir) }},
		{"type of dot", 3, RuleType, true, func(m *mutant) { m.put8(m.entry("a", ".")+10, ftReg) }},
		{"reserved byte of an entry", 3, RuleDirectory, true, func(m *mutant) { m.put8(m.entry("a", "one")+11, 1) }},
		{"second name of a directory", 3, RuleParent, false, func(m *mutant) {
			m.put64(m.entry("b", "zhard"), m.nid("a/sub"))
			m.put8(m.entry("b", "zhard")+10, ftDir)
		}},
		{"dot-dot elsewhere", 3, RuleParent, false, func(m *mutant) { m.put64(m.entry("a/sub", ".."), m.nid("b")) }},
		{"no dot-dot", 3, RuleParent, false, func(m *mutant) { m.put8(m.name("a", "..")+1, ',') }},
		{"order", 3, RuleOrder, false, func(m *mutant) { m.put8(m.name("b", "acl"), 'x') }},
		{"order across blocks", 3, RuleOrder, true, func(m *mutant) {
			// The first name of the second block before the last of the first.
			at := m.img.layout.dirBase + m.img.layout.block*int64(m.placed("many").start)
			m.put8(at+m.img.layout.block+int64(getDirent(m.b[at+m.img.layout.block:]).NameOff), 'm')
		}},
		{"slash", 3, RuleName, false, func(m *mutant) { m.put8(m.name("a", "one")+1, '/') }},
		{"NUL", 3, RuleName, true, func(m *mutant) { m.put8(m.name("a", "one")+1, 0) }},
		{"number outside the image", 3, RuleBounds, false, func(m *mutant) { m.put64(m.entry("a", "one"), 1<<31) }},
		{"number of 64 bits", 3, RuleBounds, false, func(m *mutant) { m.put64(m.entry("a", "one"), 1<<63) }},
		{"number inside an inode", 3, RuleOverlap, false, func(m *mutant) { m.put64(m.entry("a", "one"), m.nid("link")+1) }},
		{"first name offset", 3, RuleDirectory, false, func(m *mutant) { m.put16(m.entry("a", ".")+8, 13) }},
		{"name offset backwards", 3, RuleDirectory, false, func(m *mutant) { m.put16(m.entry("a", "one")+8, 0) }},
		{"empty directory", 3, RuleLayout, false, func(m *mutant) { m.setSize("a/sub", 0) }},
		{"depth", 3, RuleLimit, true, func(m *mutant) { m.policy.MaxDepth = 1 }},
		{"entries", 3, RuleLimit, true, func(m *mutant) { m.policy.MaxEntries = 100 }},
		{"names", 3, RuleLimit, true, func(m *mutant) { m.policy.MaxNames = 100 }},
		{"metadata", 3, RuleLimit, true, func(m *mutant) { m.policy.MaxMeta = 8192 }},
		{"file size", 3, RuleLimit, true, func(m *mutant) { m.policy.MaxFileSize = 9999 }},
	}
}

func dataRules() []ruleTest {
	return []ruleTest{
		{"plain behind the end", 4, RuleExtent, true, func(m *mutant) { m.put32(m.at("a/one")+16, 1<<30) }},
		{"plain over the end", 4, RuleExtent, true, func(m *mutant) { m.put32(m.at("a/one")+16, uint32(len(m.b)/4096-1)) }},
		{"plain in metadata", 4, RuleExtent, true, func(m *mutant) { m.put32(m.at("a/one")+16, 0) }},
		{"plain on the device's flat address", 4, RuleExtent, true, func(m *mutant) { m.put32(m.at("a/sub/deep")+16, uint32(len(m.b)/4096)) }},
		{"chunk in metadata", 4, RuleExtent, true, func(m *mutant) { m.put32(m.chunk("c", 0)+4, 0) }},
		{"chunk behind the end", 4, RuleExtent, true, func(m *mutant) { m.put32(m.chunk("c", 3)+4, uint32(len(m.b)/4096)) }},
		{"chunk behind the end of its device", 4, RuleExtent, true, func(m *mutant) { m.put32(m.chunk("d", 0)+4, 4) }},
		{"chunk on another layer's device", 4, RuleExtent, true, func(m *mutant) { m.put16(m.chunk("c", 0)+2, 2) }},
		{"masked device bits", 4, RuleExtent, true, func(m *mutant) { m.put16(m.chunk("d", 0)+2, 0x8001) }},
		{"48-bit chunk", 4, RuleExtent, true, func(m *mutant) { m.put16(m.chunk("c", 0), 1) }},
		{"hole with a device", 4, RuleHole, true, func(m *mutant) { m.put16(m.chunk("c", 1)+2, 1) }},
		{"hole where none is allowed", 4, RuleHole, true, func(m *mutant) { m.policy.NoHoles = true }},
		{"chunk format", 4, RuleInode, false, func(m *mutant) { m.put16(m.at("c")+16, 0x8020) }},
		{"endless map", 4, RuleBounds, false, func(m *mutant) {
			m.put16(m.at("c")+16, chunkIndexes)
			m.setSize("c", 1<<32-1)
		}},
		{"extents", 4, RuleLimit, true, func(m *mutant) { m.policy.MaxExtents = 2 }},
	}
}

func xattrRules() []ruleTest {
	return []ruleTest{
		{"trusted on a file", 5, RuleXattrPolicy, true, func(m *mutant) { m.retag("b/acl", "user.k", xattrIndexTrusted) }},
		{"opaque marked otherwise", 5, RuleXattrPolicy, true, func(m *mutant) { m.put8(m.value("a", XattrOpaque), 'x') }},
		{"redirect", 5, RuleXattrPolicy, true, func(m *mutant) { m.rename("a", XattrOpaque, "overlay.nopaqu") }},
		{"access control list version", 5, RuleXattrPolicy, true, func(m *mutant) { m.put8(m.value("b/acl", "system.posix_acl_access"), 3) }},
		{"access control list order", 5, RuleXattrPolicy, true, func(m *mutant) { m.put8(m.value("b/acl", "system.posix_acl_access")+4, 32) }},
		{"access control list rights", 5, RuleXattrPolicy, true, func(m *mutant) { m.put8(m.value("b/acl", "system.posix_acl_access")+6, 8) }},
		{"default list on a file", 5, RuleXattrPolicy, true, func(m *mutant) { m.retag("b/acl", "system.posix_acl_access", xattrIndexACLDefault) }},
		{"name index", 5, RuleXattr, true, func(m *mutant) { m.put8(m.value("b/acl", "user.k")-4, 9) }},
		{"long prefix", 5, RuleXattr, true, func(m *mutant) { m.put8(m.value("b/acl", "user.k")-4, 0x80) }},
		{"filter that hides", 5, RuleXattr, true, func(m *mutant) { m.put32(m.xattrs("a"), 0xFFFFFFFF) }},
		{"reserved byte of a body", 5, RuleXattr, true, func(m *mutant) { m.put8(m.xattrs("a")+6, 1) }},
		{"padding of an attribute", 5, RuleXattr, true, func(m *mutant) { m.put8(m.value("b/acl", "user.k")+5, 1) }},
		{"value over the end", 5, RuleXattr, false, func(m *mutant) { m.put16(m.value("b/acl", "user.k")-3, 999) }},
		{"shared attributes over the end", 5, RuleXattr, true, func(m *mutant) { m.put8(m.xattrs("a")+4, 255) }},
		{"bare body", 5, RuleXattr, false, func(m *mutant) { m.put16(m.at("a")+2, 1) }},
		{"number of attributes", 5, RuleLimit, true, func(m *mutant) { m.policy.MaxXattrs = 1 }},
		{"bytes of attributes", 5, RuleLimit, true, func(m *mutant) { m.policy.MaxXattrBytes = 20 }},
		{"references to attributes", 5, RuleLimit, true, func(m *mutant) { m.policy.MaxXattrRefs = 1 }},

		{"whiteout with content", 6, RuleWhiteout, true, func(m *mutant) { m.setSize("white", 1) }},
		{"device that becomes a whiteout with content", 6, RuleWhiteout, true, func(m *mutant) { m.put32(m.at("tty")+16, 0); m.setSize("tty", 9) }},
	}
}

// value is where the value of an inline attribute begins.
func (m *mutant) value(path, name string) int64 {
	index, suffix, ok := splitXattr(name)
	require.True(m.t, ok)
	for at := m.xattrs(path) + xattrHeaderSize; at < m.content(path); {
		e, n, err := cutXattr(at, m.b[at:m.content(path)])
		require.NoError(m.t, err)
		if e.index == index && string(e.suffix) == suffix {
			return at + xattrEntrySize + int64(len(suffix))
		}
		at += int64(n)
	}
	require.Fail(m.t, "no such attribute", name)
	return 0
}

// retag gives an attribute another prefix, and the filter what belongs to it.
func (m *mutant) retag(path, name string, index uint8) {
	_, suffix, _ := splitXattr(name)
	m.put8(m.value(path, name)-int64(len(suffix))-3, index)
	m.refilter(path)
}

// rename gives an attribute another suffix of the same length.
func (m *mutant) rename(path, name, suffix string) {
	copy(m.b[m.value(path, name)-int64(len(suffix)):], suffix)
	m.refilter(path)
}

func (m *mutant) refilter(path string) {
	filter := ^uint32(0)
	for at := m.xattrs(path) + xattrHeaderSize; at < m.content(path); {
		e, n, err := cutXattr(at, m.b[at:m.content(path)])
		require.NoError(m.t, err)
		filter &^= 1 << (xxh32(e.suffix, xattrFilterSeed+uint32(e.index)) & 31)
		at += int64(n)
	}
	m.put32(m.xattrs(path), filter)
}

// fsckAccepts asks fsck.erofs for its opinion.
func fsckAccepts(t *testing.T, image, device string) (bool, string) {
	t.Helper()
	out, err := exec.Command(erofsTool(t, "fsck.erofs"), "--device="+device, image).CombinedOutput()
	return err == nil, string(out)
}

func TestChecksum(t *testing.T) {
	m := newMutant(t, buildImage(t, victimFiles(), WriteOptions{Devices: []Device{victimDevice}}))
	m.b[1024+64] ^= 1 // the volume's name, which nothing else looks at
	_, err := m.parse()
	var refused *RefusedError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, RuleChecksum, refused.Rule)
	require.ErrorContains(t, err, "checksum")
	m.seal()
	_, err = m.parse()
	require.NoError(t, err)
}

func TestRules(t *testing.T) {
	img := buildImage(t, victimFiles(), WriteOptions{Devices: []Device{victimDevice}})
	device := filepath.Join(t.TempDir(), "device")
	require.NoError(t, os.WriteFile(device, make([]byte, 4*4096), 0o600))
	healthy := newMutant(t, img)
	healthy.seal()
	_, err := healthy.parse()
	require.NoError(t, err)
	accepted, out := fsckAccepts(t, healthy.save(), device)
	require.True(t, accepted, out)

	blind := map[int]int{}
	for _, rules := range [][]ruleTest{superRules(), inodeRules(), dirRules(), dataRules(), xattrRules()} {
		for _, r := range rules {
			t.Run(r.name, func(t *testing.T) {
				m := newMutant(t, img)
				r.damage(m)
				m.seal()
				_, err := m.parse()
				var refused *RefusedError
				require.ErrorAs(t, err, &refused)
				require.Equal(t, r.rule, refused.Rule, "%v", err)
				accepted, out := fsckAccepts(t, m.save(), device)
				require.True(t, accepted || !r.fsck, out)
				if accepted {
					blind[r.number]++
				}
			})
		}
	}
	for number := 1; number <= 6; number++ {
		require.NotZero(t, blind[number], "no image that fsck.erofs accepts and rule %d refuses", number)
	}
}

// Random damage to metadata is either refused or leaves a sound tree.
func TestRandomDamage(t *testing.T) {
	img := buildImage(t, victimFiles(), WriteOptions{Devices: []Device{victimDevice}})
	rnd := rand.New(rand.NewPCG(1, 2))
	m := newMutant(t, img)
	whole := bytes.Clone(m.b)
	refusedBy := map[string]int{}
	for range 5000 {
		copy(m.b, whole)
		for range 1 + rnd.IntN(3) {
			at := superOffset + rnd.Int64N(img.layout.MetaSize()-superOffset)
			m.b[at] = uint8(rnd.Uint32())
		}
		m.seal()
		got, err := m.parse()
		if err == nil {
			require.NoError(t, sound(got, int64(len(m.b))))
			continue
		}
		var refused *RefusedError
		require.ErrorAs(t, err, &refused)
		refusedBy[refused.Rule]++
	}
	require.Greater(t, len(refusedBy), 8, "damage in many places: %v", refusedBy)
}

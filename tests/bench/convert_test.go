package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

func TestParseConvert(t *testing.T) {
	for _, args := range [][]string{
		{"-images", "ruby"}, {"-inputs", "xz"}, {"-rounds", "0"}, {"-level", "23"}, {"-size", "much"}, {"-size", "-1G"}, {"extra"},
	} {
		_, err := parseConvert(args)
		require.Error(t, err, "%q", args)
	}
	o, err := parseConvert([]string{"-images", "go", "-inputs", "gzip", "-size", "10G"})
	require.NoError(t, err)
	require.Equal(t, int64(10<<30), o.size)
	require.Equal(t, []string{"gzip"}, o.inputs)
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"": 0, "5": 5, "5K": 5 << 10, "64M": 64 << 20, "10G": 10 << 30} {
		got, err := parseSize(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"G", "0", "1T", "1GG", "99999999999G", "1 2"} {
		_, err := parseSize(in)
		require.Error(t, err, in)
	}
}

// TestConverters: every system converts a layer, in both forms of it, and what it
// cost was measured.
func TestConverters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var data bytes.Buffer
	require.NoError(t, generate(&data, 1<<20))
	files := layerFiles{tar: filepath.Join(dir, "tar"), gzip: filepath.Join(dir, "gzip")}
	require.NoError(t, os.WriteFile(files.tar, data.Bytes(), 0o600))
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	_, err := zw.Write(data.Bytes())
	require.NoError(t, err)
	require.NoError(t, zw.Close())
	require.NoError(t, os.WriteFile(files.gzip, packed.Bytes(), 0o600))
	back := filepath.Join(dir, "back")
	require.NoError(t, gunzip(files.gzip, back))
	same, err := os.ReadFile(back)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data.Bytes(), same))

	report := &convertReport{}
	for _, input := range []string{inputTar, inputGzip} {
		for _, s := range converters {
			got, err := s.convert(t.Context(), conversion{in: files.in(input), input: input, dir: dir, level: 3})
			require.NoError(t, err, s.name)
			for _, o := range got {
				require.Greater(t, o.size, int64(100<<10), o.name)
				require.Positive(t, o.Wall)
				require.Positive(t, o.Peak)
				report.add("x", input, o)
			}
		}
		w, err := profileOf(t.Context(), "x", input, []layerFiles{files}, dir, convertOptions{level: 3})
		require.NoError(t, err)
		report.Where = append(report.Where, w)
	}
	table := report.table()
	for _, name := range []string{oursZstd, oursRaw, mkfsRaw, mkfsZstd1, mkfsZstd, mkfsDigests, mkfsInside, "compress"} {
		require.Contains(t, table, name)
	}
}

func TestConvertReportComparesWithinARound(t *testing.T) {
	r := &convertReport{}
	for round, ours := range []int{100, 200, 400} {
		wall := func(ms int) cost { return cost{Wall: time.Duration(ms) * time.Millisecond} }
		r.add("go", inputTar, outcome{name: oursZstd, cost: wall(ours)})
		r.add("go", inputTar, outcome{name: mkfsZstd, cost: wall(ours * (round + 1)), size: 7})
	}
	r.compare()
	require.InDelta(t, 2.0, r.Rows[1].Ratio, 1e-9)
	require.InDelta(t, 1.0, r.Rows[1].Low, 1e-9)
	require.InDelta(t, 3.0, r.Rows[1].High, 1e-9)
	require.Equal(t, 400*time.Millisecond, medianOf(r.Rows[1].Wall))
	require.Zero(t, medianOf(nil))
}

func TestAddOutcomesAddsStepsAndTakesTheGreatestPeak(t *testing.T) {
	a := outcomeOf("x", 10, step{"one", cost{Wall: 1, CPU: 2, Peak: 9}}, step{"two", cost{Wall: 3, CPU: 4, Peak: 5}})
	require.Equal(t, cost{Wall: 4, CPU: 6, Peak: 9}, a.cost)
	b := outcomeOf("x", 5, step{"one", cost{Wall: 10, CPU: 20, Peak: 1}}, step{"two", cost{Wall: 30, CPU: 40, Peak: 50}})
	sum := addOutcomes(addOutcomes(nil, []outcome{a}), []outcome{b})
	require.Equal(t, cost{Wall: 44, CPU: 66, Peak: 50}, sum[0].cost)
	require.Equal(t, int64(15), sum[0].size)
	require.Equal(t, cost{Wall: 11, CPU: 22, Peak: 9}, sum[0].steps[0].cost)
}

// TestSpending: the innermost function that is known decides.
func TestSpending(t *testing.T) {
	const ours = "github.com/lazyerofs/lazyerofs/differ."
	var id uint64
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}}}
	sample := func(ns int64, stack ...string) {
		s := &profile.Sample{Value: []int64{1, ns}}
		for _, name := range stack {
			id++
			f := &profile.Function{ID: id, Name: name}
			l := &profile.Location{ID: id, Line: []profile.Line{{Function: f}}}
			p.Function, p.Location, s.Location = append(p.Function, f), append(p.Location, l), append(s.Location, l)
		}
		p.Sample = append(p.Sample, s)
	}
	sample(4e9, "runtime.memmove", "github.com/klauspost/compress/zstd.(*Encoder).EncodeAll", ours+"(*encoder).encode", ours+"(*pool).run")
	sample(3e9, "crypto/internal/fips140/sha256.blockSHANI", ours+"(*emitter).put")
	sample(2e9, "internal/runtime/syscall/linux.Syscall6", ours+"(*spool).Write", ours+"(*store).putSmall")
	sample(1e9, "runtime.goexit")
	file := filepath.Join(t.TempDir(), "profile")
	f, err := os.Create(file)
	require.NoError(t, err)
	require.NoError(t, p.Write(f))
	require.NoError(t, f.Close())
	w := spending{Parts: map[string]float64{}}
	require.NoError(t, w.addProfile(file))
	w.finish()
	require.InDelta(t, 10, w.Total, 1e-6)
	require.Equal(t, map[string]float64{"compress": .4, "sha-256": .3, "write spool": .2, partOther: .1}, w.Parts)
	require.NoError(t, os.WriteFile(file, []byte("no profile"), 0o600))
	require.Error(t, w.addProfile(file))
	require.Error(t, w.addProfile(filepath.Join(t.TempDir(), "none")))
}

func TestGenerateIsATarOfThatSize(t *testing.T) {
	const size = 8 << 20
	var a, b bytes.Buffer
	require.NoError(t, generate(&a, size))
	require.NoError(t, generate(&b, size))
	require.True(t, bytes.Equal(a.Bytes(), b.Bytes()))
	var data int64
	files := 0
	for r := tar.NewReader(&a); ; files++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		data += h.Size
	}
	require.Greater(t, files, 100)
	require.InDelta(t, size, data, size/2)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	require.NoError(t, err)
	packed := len(enc.EncodeAll(b.Bytes(), nil))
	require.Greater(t, packed, 4*size/10, "weights do not compress")
	require.Less(t, packed, 9*size/10, "the rest does")
}

func TestGeneratedEndsWhenItIsClosed(t *testing.T) {
	src := generated(t.Context(), 1<<30)
	_, err := io.CopyN(io.Discard, src, 1<<20)
	require.NoError(t, err)
	require.NoError(t, src.Close())
	_, err = src.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestOriginServesAnImage(t *testing.T) {
	o, err := startOrigin(t.Context(), 2<<20)
	require.NoError(t, err)
	defer func() { require.NoError(t, o.close()) }()
	get := func(method, path string) (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+o.lis.Addr().String()+path, nil)
		require.NoError(t, err)
		resp, err := http.DefaultTransport.RoundTrip(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, body
	}
	code, _ := get(http.MethodGet, "/v2/")
	require.Equal(t, http.StatusOK, code)
	_, byTag := get(http.MethodGet, "/v2/generated/manifests/tar")
	require.Equal(t, o.top.Encoded(), fmt.Sprintf("%x", sha256.Sum256(byTag)))
	_, layer := get(http.MethodGet, "/v2/generated/blobs/"+o.layer.Digest.String())
	require.Equal(t, o.layer.Digest.Encoded(), fmt.Sprintf("%x", sha256.Sum256(layer)))
	code, head := get(http.MethodHead, "/v2/generated/blobs/"+o.layer.Digest.String())
	require.Equal(t, http.StatusOK, code)
	require.Empty(t, head)
	code, _ = get(http.MethodGet, "/v2/generated/blobs/sha256:0")
	require.Equal(t, http.StatusNotFound, code)
	code, _ = get(http.MethodPut, "/v2/generated/manifests/tar")
	require.Equal(t, http.StatusMethodNotAllowed, code)
}

// TestBigInBoundedMemory: a layer four times as large needs the same memory, both
// through the command line and through Apply.
func TestBigInBoundedMemory(t *testing.T) {
	testenv.RequireRoot(t)
	t.Parallel()
	dir := t.TempDir()
	peaks := map[string][]int64{}
	for _, size := range []string{"24M", "96M"} {
		require.NoError(t, runConvert(t.Context(), []string{"-size", size, "-level", "1", "-dir", dir, "-out", dir}, io.Discard))
		found, err := filepath.Glob(filepath.Join(dir, "*-big.json"))
		require.NoError(t, err)
		require.Len(t, found, 1)
		data, err := os.ReadFile(found[0])
		require.NoError(t, err)
		require.NoError(t, os.Remove(found[0]))
		var r bigReport
		require.NoError(t, json.Unmarshal(data, &r))
		require.Len(t, r.Rows, 2)
		for _, x := range r.Rows {
			require.Positive(t, x.Out)
			peaks[x.Way] = append(peaks[x.Way], x.Peak)
		}
	}
	for way, p := range peaks {
		require.Less(t, p[1], p[0]+36<<10, "KiB, %s", way) // half of what was added
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

package remote_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/fs/source"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/remote"
	"github.com/lazyerofs/lazyerofs/fs/remote/remotetest"
)

func TestLawsBare(t *testing.T) {
	g := newRig(t, nil)
	remotetest.Laws(t, g.bare(t), g.content)
}

func TestLawsDecorated(t *testing.T) {
	g := newRig(t, nil)
	o := remote.Options{
		Retry: quick, Limiter: remote.NewLimiter(3, 2), Observer: remote.NewMetrics(),
		Coalesce: remote.Coalescing{MaxGap: 100, MaxRequest: 64 << 10, Parallel: 3},
	}
	b, err := remote.Open(t.Context(), g.resolver, []source.Source{g.source(t)}, ocispec.Descriptor{}, o)
	require.NoError(t, err)
	remotetest.Laws(t, b, g.content)
}

// TestLawsUnderFaults has every kind of transient fault answer every other request.
func TestLawsUnderFaults(t *testing.T) {
	for name, f := range map[string]remotetest.Fault{
		"truncate": remotetest.Truncate(100),
		"short":    remotetest.Short(50_000),
		"status":   remotetest.Status(http.StatusServiceUnavailable),
		"abort":    remotetest.Abort,
		"range":    remotetest.ContentRange("bytes 0-0/1"),
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, nil)
			for range 200 {
				g.faults.Add(http.MethodGet, "/blobs/", 1, f)
				g.faults.Add(http.MethodGet, "/blobs/", 1, func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) })
			}
			remotetest.Laws(t, remote.Decorate(g.bare(t), "x", remote.Options{Retry: quick}), g.content)
		})
	}
}

func TestResolveMakesNoRequest(t *testing.T) {
	g := newRig(t, nil)
	g.bare(t)
	require.Empty(t, g.log.Requests())
}

func TestResolveUnknownSize(t *testing.T) {
	for name, faults := range map[string]func(*rig){
		"HEAD": func(*rig) {},
		"HEAD refused": func(g *rig) {
			g.faults.Add(http.MethodHead, "", remotetest.Always, remotetest.Status(http.StatusForbidden))
		},
		"not ranged": func(g *rig) {
			g.faults.Add(http.MethodHead, "", remotetest.Always, remotetest.Status(http.StatusMethodNotAllowed))
			g.faults.Add(http.MethodGet, "", remotetest.Always, remotetest.IgnoreRange)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, nil)
			faults(g)
			src := g.source(t)
			src.Target.Size = 0
			b, err := g.resolver.Resolve(t.Context(), []source.Source{src}, ocispec.Descriptor{})
			require.NoError(t, err)
			require.Equal(t, int64(len(g.content)), b.Size())
		})
	}
	g := newRig(t, nil)
	src := g.source(t)
	src.Target.Size, src.Target.Digest = 0, ocispec.DescriptorEmptyJSON.Digest
	_, err := g.resolver.Resolve(t.Context(), []source.Source{src}, ocispec.Descriptor{})
	require.ErrorIs(t, err, remote.ErrGone)
}

func TestShortBodyGoesOnWhereItStopped(t *testing.T) {
	g := newRig(t, nil)
	g.faults.Add(http.MethodGet, "/blobs/", 1, remotetest.Truncate(1000))
	g.faults.Add(http.MethodGet, "/blobs/", 1, remotetest.Short(500))
	require.NoError(t, g.read(t, g.bare(t), 100, 5000))
	reqs := g.blobGets()
	require.Len(t, reqs, 3)
	require.Equal(t, "bytes=100-5099", reqs[0].Range)
	require.Equal(t, "bytes=1100-5099", reqs[1].Range)
	require.Equal(t, "bytes=1600-5099", reqs[2].Range)
}

func TestTrickleOfShortAnswersEnds(t *testing.T) {
	g := newRig(t, nil)
	g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, remotetest.Short(1))
	err := g.read(t, g.bare(t), 0, 5000)
	require.ErrorIs(t, err, remote.ErrUnavailable)
	require.Len(t, g.blobGets(), 64)
}

func TestWholeBlobForRange(t *testing.T) {
	g := newRig(t, nil)
	g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, remotetest.IgnoreRange)
	b := remote.Retry(g.bare(t), quick)
	require.NoError(t, g.read(t, b, 1000, 1000), "near the start the range is cut out")
	g.log.Reset()
	err := g.read(t, b, 900_000, 1000)
	require.ErrorIs(t, err, remote.ErrNotRanged)
	require.ErrorIs(t, err, remote.ErrUnavailable)
	require.Len(t, g.blobGets(), 3, "asked again twice, no more")
	// Once the host mends its ways the next read works.
	g.faults.Clear()
	require.NoError(t, g.read(t, b, 900_000, 1000))
}

func TestMalformedAnswers(t *testing.T) {
	for name, f := range map[string]remotetest.Fault{
		"wrong start": remotetest.ContentRange("bytes 0-999/1048576"),
		"wrong total": remotetest.ContentRange("bytes 5000-5999/1048577"),
		"too long":    remotetest.ContentRange("bytes 5000-6000/1048576"),
		"shorter":     remotetest.ContentRange("bytes 5000-5998/1048576"),
		"no range":    remotetest.ContentRange(""),
		"words":       remotetest.ContentRange("bytes all of it"),
		"multipart":   remotetest.Status(http.StatusMultiStatus),
		"redirect circle": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		},
		"redirect nowhere": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		},
		"encoded": func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			w.Header().Set("Content-Encoding", "gzip")
			next.ServeHTTP(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, nil)
			g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, f)
			err := g.read(t, g.bare(t), 5000, 1000)
			var perr *remote.ProtocolError
			require.ErrorAs(t, err, &perr)
			require.ErrorIs(t, err, remote.ErrUnavailable)
			require.NotErrorIs(t, err, remote.ErrGone)
		})
	}
}

func TestBlobSmallerThanManifestSays(t *testing.T) {
	g := newRig(t, nil)
	src := g.source(t)
	src.Target.Size += 10
	b, err := g.resolver.Resolve(t.Context(), []source.Source{src}, ocispec.Descriptor{})
	require.NoError(t, err)
	_, err = b.ReadAt(t.Context(), make([]byte, 4), int64(len(g.content))+2)
	var status *remote.HTTPError
	require.ErrorAs(t, err, &status)
	require.Equal(t, http.StatusRequestedRangeNotSatisfiable, status.Status)
	require.ErrorIs(t, err, remote.ErrGone)
}

func TestRetryAfterIsKept(t *testing.T) {
	g := newRig(t, nil)
	g.faults.Add(http.MethodGet, "/blobs/", 1, remotetest.Status(http.StatusTooManyRequests, "Retry-After", "60"))
	start := time.Now()
	err := g.read(t, remote.Retry(g.bare(t), quick), 0, 10)
	var status *remote.HTTPError
	require.ErrorAs(t, err, &status)
	require.Equal(t, time.Minute, status.RetryAfter)
	require.ErrorIs(t, err, remote.ErrUnavailable)
	require.Len(t, g.blobGets(), 1, "a wait beyond the budget is not begun, nor cut short")
	require.Less(t, time.Since(start), time.Minute)
	require.NoError(t, g.read(t, g.bare(t), 0, 10))
}

func TestDownThenUp(t *testing.T) {
	for _, f := range []remotetest.Fault{
		remotetest.Abort, remotetest.Status(http.StatusInternalServerError), remotetest.Status(http.StatusTooManyRequests), remotetest.Truncate(0),
	} {
		g := newRig(t, nil)
		g.faults.Add(http.MethodGet, "/blobs/", 4, f)
		require.NoError(t, g.read(t, remote.Retry(g.bare(t), quick), 77, 1000))
		require.GreaterOrEqual(t, len(g.blobGets()), 5)
	}
}

func TestPermanentFailuresAreNotRetried(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusForbidden, http.StatusUnauthorized, http.StatusGone} {
		g := newRig(t, nil)
		g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, remotetest.Status(code))
		err := g.read(t, remote.Retry(g.bare(t), quick), 0, 10)
		require.ErrorIs(t, err, remote.ErrGone)
		require.NotErrorIs(t, err, remote.ErrUnavailable)
		require.LessOrEqual(t, len(g.blobGets()), 4, "status %d", code)
	}
}

func TestHangMeetsLimits(t *testing.T) {
	for name, f := range map[string]remotetest.Fault{
		"no answer": remotetest.Hang, "no progress": remotetest.Stall(1), "trickle": remotetest.Slow(1, time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, nil)
			g.resolver = newResolver(t, remote.Timeouts{Header: 200 * time.Millisecond, Progress: 50 * time.Millisecond})
			g.faults.Add(http.MethodGet, "/blobs/", 1, f)
			// What came before the limit counts; the rest comes with the next request.
			require.NoError(t, g.read(t, remote.Retry(g.bare(t), quick), 0, 9000))
			require.GreaterOrEqual(t, len(g.blobGets()), 1)
		})
	}
}

func TestCancelEndsHangingRead(t *testing.T) {
	g := newRig(t, nil)
	inside := make(chan struct{})
	g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		close(inside)
		remotetest.Hang(w, r, next)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-inside; cancel() }()
	_, err := remote.Retry(g.bare(t), quick).ReadAt(ctx, make([]byte, 10), 0)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, remote.ErrUnavailable)
}

func TestWrongBytesAreFetchedAgain(t *testing.T) {
	g := newRig(t, nil)
	b := remote.Decorate(g.bare(t), "x", remote.Options{Retry: quick})
	g.faults.Add(http.MethodGet, "/blobs/", 1, remotetest.Flip(10))
	require.NoError(t, g.readExtents(t, b, []chunk.Extent{{Off: 0, Len: 100}, {Off: 100, Len: 50}}))
	g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, remotetest.Flip(10))
	g.log.Reset()
	err := g.readExtents(t, b, []chunk.Extent{{Off: 0, Len: 100}, {Off: 100, Len: 50}})
	var corrupt *chunk.CorruptError
	require.True(t, errors.As(err, &corrupt))
	require.Len(t, g.blobGets(), 3, "asked again twice, no more")
}

func TestNeverMoreThanAsked(t *testing.T) {
	g := newRig(t, nil)
	// 206 that promises the range and sends more.
	g.faults.Add(http.MethodGet, "/blobs/", remotetest.Always, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Range", "bytes 0-9/1048576")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(bytes.Repeat([]byte{1}, 4096)) // chunked, without a length
	})
	es := []chunk.Extent{{Off: 0, Len: 10}}
	var got []byte
	err := g.bare(t).ReadExtents(t.Context(), es, collect(&got))
	require.NoError(t, err)
	require.Len(t, got, 10)
}

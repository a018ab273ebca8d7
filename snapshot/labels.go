package snapshot

import (
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// Labels that containerd's unpacker sets and that we read.
const (
	labelTarget      = snapshots.LabelSnapshotRef
	labelParentChain = "containerd.io/snapshot/parent-chain-id"
	labelManifest    = "containerd.io/snapshot/cri.manifest-digest"
	labelInherited   = "containerd.io/snapshot"
)

// labelPrivate starts the labels that only this package writes. containerd hands
// a snapshotter only labels under "containerd.io/snapshot", so no manifest can
// carry one of these; what other clients send is dropped.
const labelPrivate = "io.lazyerofs.v1/"

const (
	// LabelLayer is what a committed snapshot is as a lower layer: LayerLazy or
	// LayerFile. Absent, it is a LayerDir.
	LabelLayer = labelPrivate + "layer"
	// LabelMiss is why a layer was left to containerd: a Reason, a colon and the
	// cause in words. Absent on layers that nobody asked for by name.
	LabelMiss = labelPrivate + "miss"
)

// Values of LabelLayer.
const (
	// LayerLazy is a layer that the Filesystem mounted from its labels.
	LayerLazy = "lazy"
	// LayerFile is an unpacked layer in LayerFileName.
	LayerFile = "file"
	// LayerDir is a layer whose files lie in the snapshot's own directory.
	LayerDir = "dir"
)

// The differ and the snapshotter meet in the directory of the mount that the
// differ is handed: the parent of "fs". The names are containerd's own.
const (
	// MarkerFile says that the differ may write LayerFileName.
	MarkerFile = ".erofslayer"
	// LayerFileName is the EROFS image that the differ wrote.
	LayerFileName = "layer.erofs"
)

// maxReason bounds the cause in LabelMiss: containerd refuses labels longer than
// 4096 bytes and people read one sentence.
const maxReason = 512

// public returns labels without the ones only we may write.
func public(labels map[string]string) map[string]string {
	out := make(map[string]string, len(labels)+1)
	for k, v := range labels {
		if !strings.HasPrefix(k, labelPrivate) {
			out[k] = v
		}
	}
	return out
}

// private returns only the labels that this package wrote.
func private(labels map[string]string) map[string]string {
	out := make(map[string]string)
	for k, v := range labels {
		if strings.HasPrefix(k, labelPrivate) {
			out[k] = v
		}
	}
	return out
}

// frozen returns the labels of a snapshot that no Update may change: our own, and
// on a lazy layer what it is mounted from.
func frozen(labels map[string]string) map[string]string {
	out := private(labels)
	if labels[LabelLayer] != LayerLazy {
		return out
	}
	for k, v := range labels {
		if strings.HasPrefix(k, labelInherited) {
			out[k] = v
		}
	}
	return out
}

// thaw merges what an Update asks for with what it may not change.
func thaw(want, have map[string]string) map[string]string {
	out := public(want)
	if have[LabelLayer] == LayerLazy {
		maps.DeleteFunc(out, func(k, _ string) bool { return strings.HasPrefix(k, labelInherited) })
	}
	maps.Copy(out, frozen(have))
	return out
}

// missLabel is the value of LabelMiss for m.
func missLabel(m *MissError) string {
	s := m.Error()
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	return s
}

// Package proofs shows end to end, with a real containerd, registry, kernel and
// container, the properties that the project promises: what is fetched, what a
// lying registry can and cannot do, which labels are believed, and that stock
// containerd runs the same images. It holds only tests. Package e2e shows that
// the ordinary life of an image works; nothing of that is repeated here.
//
// Known deadlock: see package testenv. Containers end before the daemon does.
package proofs

// Package formattest holds the laws of a format.Format as tests that every
// implementation runs, builders of native layers, and a Blob in memory with
// knobs for what goes wrong on a network. Only tests import it.
//
// A Gate that blocks holds up whoever reads the Blob: release it before the
// test ends.
package formattest

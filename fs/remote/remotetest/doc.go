// Package remotetest has what tests of registry access share: a registry
// handler with content in memory, a token server, a storage host that
// registries redirect to, faults to put in front of any handler, a log of
// requests, and the laws of remote.Blob.
//
// All parts are plain http.Handlers, so that an end-to-end test can put the
// same log and the same faults in front of a real registry.
package remotetest

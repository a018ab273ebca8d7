// Package layer joins a format's Plan, a registry Blob and a cache File into one
// lazily filled layer, which the drivers serve to the kernel.
//
// # Contract
//
// Nothing reaches the data file that Plan.Decode did not verify. Each chunk is
// fetched by one batch at a time, whoever asks for it; who waits can stop
// waiting without disturbing the others, and a batch that nobody waits for any
// more because all gave up is cancelled. A batch belongs to the Layer, not to
// the caller that started it: Close cancels and awaits all of them.
//
// A chunk that is corrupt fails those who need it, not its neighbours in the
// same request. An error is remembered by nobody: the next read tries again.
//
// # Known deadlocks
//
// Ensure waits for the network, so a driver must not call it on the goroutine
// that reads the kernel's events: the answer to one event may be what the fetch
// for another waits for. Resident never waits. The process that fills a layer
// must not read from a mount of that layer, its own binary and certificates
// included.
package layer

// Package crash tests what holds when the daemon goes away under readers: a
// supervisor, a daemon that serves layers, and readers, in processes of their own,
// with the real descriptor store between them.
//
// TestKilledUnderReaders is the measure: the lazyerofsd of this tree serves an
// image of three layers from a registry behind a slow line, processes read it
// cold and compare every byte, and the daemon is killed with -9 while it starts
// and while it works, every tenth time twice in a row; the registry dies too. A
// kill counts if the journal shows that the daemon held an event at that moment.
// -n says how many kills, -driver which driver; `make crash` runs 1000.
//
// Readers are never in the test's own process: whoever waits for a page holds a
// processor of its Go runtime.
package crash

// Package lifetime is what drivers share about how long things live: a mount from
// its attachment until nothing holds it (Mount), the goroutines that wait for that
// until Shutdown (Watchers), and descriptors that outlive both.
//
// A mount is detached from its target by Close, left to a successor by Release, and
// gone when the kernel has no superblock, open file or connection of it any more,
// whoever held those: overlays, other namespaces, processes. For most of this the
// kernel has no event, so Await looks, ever less often.
//
// There is no lock that is held while the driver's own functions run, so they may
// take the driver's. Known deadlock: a function that Watchers run must end when
// Stopping is closed, or Wait hangs.
package lifetime

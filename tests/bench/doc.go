// Command bench measures six things, each by a verb of its own.
//
// starts, the default: cold starts. For every image, line and system, the time
// to pull, to create and run, and until the workload has ended, with the bytes
// that went over the line. Another system is one more coldstart.System in
// starts.go, another workload one more recipe.
//
// drivers: reads through every driver that works here, with nothing resident,
// with everything resident that is read, and of a complete layer, against a
// plain file-backed mount of the same image data with the same read-ahead. The
// layer is real, so are the daemon, its supervisor and the registry, and readers
// are processes of their own.
//
// memory: the size of the daemon with many layers mounted, which were generated
// and then converted like any other.
//
// convert: every layer of real images made into an EROFS image, by Convert in a
// process of its own, by mkfs.erofs followed by zstd at the same level, and by
// mkfs.erofs compressing itself: time, processor time, peak memory, size, and from
// a CPU profile on what ours spends its time. With -size one generated layer of
// any size goes through the command line and through Apply; no file ever holds it.
//
// pull: an image that was never converted, pulled by each system: time, processor
// time of the daemons, first run, and what is on disk afterwards. Another system is
// one more coldstart.System in pull.go.
//
// shared: how many bytes of a release of an image are in the one before it, as
// "lazyerofs inspect --diff" finds out from the chunk indexes of both.
//
// Whatever is compared takes turns within a round, so that whatever else the
// machine does falls on all of it; medians are reported, and ratios are taken
// within a round. Registry, line, daemon and readers share the processors of one
// machine: absolute times say little, above all of many readers at once.
//
// Results go to standard output as a table and to tests/bench/results as JSON
// with what they were measured on and how loaded it was.
//
// Mount namespaces that somebody else makes meanwhile copy our mounts and keep
// their superblocks alive, and with them the daemon: on a machine that also does
// other things run it below "unshare -m".
package main

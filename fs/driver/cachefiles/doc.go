// Package cachefiles is the driver for kernels with cachefiles' on-demand mode
// (Linux 5.19 to 7.0, where it was built): a layer is an EROFS mount over fscache,
// and /dev/cachefiles asks us for the ranges that the kernel's own cache lacks.
//
// One device serves every mount of the machine. A mount has a cookie for each of
// its images; the kernel OPENs it, which gives us a descriptor to write data to,
// READs ranges of it, and CLOSEs it after the superblock. Its rules:
//
//   - Order: the device is with the Keeper before the mount exists, an object before
//     its OPEN is answered. The kernel opens the cookies of devices in the background;
//     a mount is shown when all of them were opened.
//   - It fails closed. A READ that cannot be served is completed with nothing written:
//     the kernel looks once more, finds a hole and gives EIO (cachefiles_prepare_read,
//     erofs_fscache_read_folios_async). The page stays unread, so that the next read
//     asks again. When the device is closed for good, every read gives EIO.
//   - What decides whether data is there is the holes of the kernel's cache file, not
//     our bitmap. So each mount has cookies of its own, which nothing used before, the
//     directory is emptied before it is bound, and nothing in it survives as data: the
//     truth is the layer's own data file. What is served twice lies on disk twice as
//     long as it is mounted.
//   - EROFS loses what follows a hole in one read-ahead (see withoutHoles), so the
//     kernel is shown none.
//   - Data is written with O_DIRECT by the kernel: whole blocks from aligned memory. What
//     is there anyway is written ahead to the end of a window, which saves requests.
//   - A mount stays on its cache files when its layer becomes complete. The next mount
//     of the layer uses the data file itself where the kernel can, over a loop device
//     before 6.12.
//
// Order at the end, since kernels before the fixes of mid 2024, which stable series got
// too, freed objects under requests: first the superblock goes, then CLOSE is read, then
// the object's descriptor is closed, and only when no object is left, the device. The
// device is never closed under a mount: a process that ends leaves it with the Keeper.
// Shutdown closes no object that the Keeper does not hold.
//
// A successor finds the device and the objects among its inherited descriptors. It
// first answers again the OPEN of each object, because one that was kept and not
// answered would never be opened; then "restore" makes the kernel ask again for all
// that was taken and not answered. An object whose descriptor was lost is opened anew
// by the kernel when it is read, from 6.8 on and where that was backported (6.1.192 has
// it); before, its reads give EIO. Until Settle requests of layers that nobody adopted wait.
//
// The device can be opened once on a machine: a cachefilesd, or another daemon of this
// kind, makes Probe and the first Mount say EBUSY.
//
// Known deadlocks: this process must never read from a mount that it serves, or make
// its superblock: who waits for an OPEN or a READ cannot be killed, so that a killed
// server would wait for itself for ever. A child makes superblocks (package mountproc).
// The unmount of the last reference waits until CLOSE is read, by the loop of this driver or of its
// successor.
package cachefiles
